"""The one error for whatever the other side got wrong, and the list of what that can be."""

from __future__ import annotations

import enum
import reprlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._messages import Header


class MalformedReason(enum.StrEnum):
    """What is wrong with a message, in the order in which a receiver finds out."""

    NO_DELIMITER = "no_delimiter"
    """None of the frames is ``<IDS|MSG>``."""
    MISSING_FRAMES = "missing_frames"
    """Fewer than five frames follow the delimiter."""
    BAD_SIGNATURE = "bad_signature"
    """The signature is absent or wrong: the sender doesn't have the key, or the frames changed."""
    BAD_HEADER = "bad_header"
    """The header isn't a JSON object with the fields that a header must have."""
    REFLECTED = "reflected"
    """It is the receiver's own, sent back: the signature is as good as any (see
    `WireSession.receiver`)."""
    REPLAYED = "replayed"
    """A message with this very signature was received before."""
    BAD_PARENT_HEADER = "bad_parent_header"
    """The parent header is neither empty nor a header."""
    BAD_METADATA = "bad_metadata"
    """The metadata isn't a JSON object."""
    BAD_CONTENT = "bad_content"
    """The content isn't a JSON object, or a field of it isn't what the message type asks for."""


class MalformedMessage(ValueError):
    """What arrived isn't a message of the Jupyter protocol, or isn't one to be trusted.

    Raised for every kind of bad input from the wire, and for nothing else. What is wrong with a
    message that *we* want to send is an `EncodeError`, a `TypeError` or a plain `ValueError`.

    Args:
        reason: which check the message failed.
        detail: the same in words, with what was found and what would have been right.
        header: the message's header, if the signature was valid and the header could be read. With
            it an error reply can be addressed, except for what was sent before
            (`MalformedReason.REFLECTED`, `MalformedReason.REPLAYED`), which must not be answered.
            Without it nobody knows whom to answer: log and drop.
    """

    def __init__(self, reason: MalformedReason, detail: str, header: Header | None = None) -> None:
        super().__init__(reason, detail, header)  # all of them in `args`: it can be pickled
        self.reason: Final = reason
        self.detail: Final = detail
        self.header: Final = header

    def __str__(self) -> str:
        if self.header is None:
            return self.detail
        return f"{self.header.msg_type} {self.header.msg_id}: {self.detail}"


def shown(value: object) -> str:
    """Return `value` for an error message: what it is, cut to a length that fits in a log line."""
    return _shortener.repr(value)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 60
