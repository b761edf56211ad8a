"""The two ends of the wire: a session makes frames out of messages, a receiver does the reverse.

They are apart because they are shared differently. A `WireSession` never changes, so every thread
of a kernel sends with the same one and nobody waits for anybody. A `Receiver` remembers what it has
received.

On the wire (messaging specification, "The Wire Protocol") a message is a list of frames::

    ident*  <IDS|MSG>  signature  header  parent_header  metadata  content  buffer*
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from . import _codec
from ._errors import MalformedMessage, MalformedReason
from ._messages import Envelope, Header, Message
from ._signing import ReplayMemory, Signer

DELIMITER: Final = b"<IDS|MSG>"
"""The frame between the idents and the message."""

PROTOCOL_VERSION: Final = "5.6"
"""The version of the messaging protocol in every header made here. Since 5.5 it has subshells; all
that 5.6 adds is the registration file (see `RegistrationInfo`)."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Binary data to send along with a message."""

LARGEST_HEADER: Final = 1 << 20
"""Bytes of a header that is received, or a parent header. Those that there are have some 200; and
each is copied into everything that is said about its message."""

_SIGNED_FRAMES: Final = 4
_MISSING: Final = (
    "after the delimiter come a signature, a header, a parent header, metadata and content"
)


class _MessageIds(threading.local):
    """An endless supply of message ids, for each thread its own: unique without a lock.

    One counter for all of them would need one on free-threaded builds, where two threads can get
    the same number from an `itertools.count`. And a lock would be met again by a signal handler, or
    a finalizer, that prints while its own thread is busy making an id.
    """

    def __init__(self, session_id: str) -> None:  # called again in each thread
        self.prefix = f"{session_id}_{secrets.token_hex(6)}_"
        self.numbers = itertools.count(1)


@attrs.frozen(eq=False)
class WireSession:
    """Makes messages and their frames, in the name of one sender.

    All methods are synchronous, do no I/O, and may be called from several threads at the same time.

    Args:
        key: the connection's key, which both sides have. Empty: messages are neither signed nor
            verified, and replays can't be told.
        signature_scheme: ``hmac-`` and the name of a hash function that hashlib has. It has no
            meaning without a key.
        username: goes into the headers.
        session_id: goes into the headers, and tells this sender from all others. A new one by
            default; so a restarted kernel is seen to be another one.

    Raises:
        TypeError: `key` isn't bytes.
        ValueError: there is no such signature scheme.
    """

    key: bytes = attrs.field(repr=False)
    signature_scheme: str = attrs.field(default="hmac-sha256", kw_only=True)
    username: str = attrs.field(default="kernel", kw_only=True)
    session_id: str = attrs.field(factory=lambda: secrets.token_hex(16), kw_only=True)
    _signer: Signer = attrs.field(init=False, repr=False)
    _ids: _MessageIds = attrs.field(init=False, repr=False)

    @_signer.default
    def _make_signer(self) -> Signer:
        return Signer(self.key, self.signature_scheme)

    @_ids.default
    def _make_ids(self) -> _MessageIds:
        return _MessageIds(self.session_id)

    def header(self, msg_type: str, *, subshell_id: str | None = None) -> Header:
        """Return a new header: a `msg_id` of its own, and the date is now.

        Raises:
            ValueError: `msg_type` is empty, or one of the two isn't a string.
        """
        ids = self._ids
        return Header(
            f"{ids.prefix}{next(ids.numbers)}",
            msg_type,
            self.session_id,
            self.username,
            _now(),
            PROTOCOL_VERSION,
            subshell_id,
        )

    def message(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        *,
        parent: Header | Message | Envelope | None = None,
        metadata: Mapping[str, Any] | None = None,
        buffers: Iterable[Buffer] = (),
        idents: Iterable[bytes] = (),
        subshell_id: str | None = None,
    ) -> Message:
        """Return a new message, for whoever needs its `msg_id` before it is sent: clients do.

        The arguments are those of `serialize`. Send it with ``serialize_message(message)``.

        Raises:
            ValueError: `msg_type` is empty, or it or `subshell_id` isn't a string.
        """
        return Message(
            header=self.header(msg_type, subshell_id=subshell_id),
            parent_header=_header_of(parent),
            metadata=dict(metadata or {}),
            content=dict(content or {}),
            buffers=_frozen(buffers),
            idents=tuple(idents),
        )

    def serialize(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        *,
        parent: Header | Message | Envelope | None = None,
        metadata: Mapping[str, Any] | None = None,
        buffers: Iterable[Buffer] = (),
        idents: Iterable[bytes] = (),
        subshell_id: str | None = None,
    ) -> list[bytes]:
        """Return the frames of a new message, ready for a multipart send.

        Args:
            msg_type: what kind of message it is.
            content: what it says: anything that JSON, or one of the many things listed at
                `encode`, can express. None is an empty content.
            parent: the request that this message answers, or is a side effect of. Its header is
                copied as it was received.
            metadata: likewise, about the message.
            buffers: binary data that goes with it. Bytes are sent as they are; what can change is
                copied.
            idents: who gets it. For a reply, the request's idents; on iopub the topic.
            subshell_id: for a client: the subshell that a request is for.

        Raises:
            EncodeError: the content or the metadata has no JSON form. Nothing has been sent.
            ValueError: `msg_type` is empty, or it or `subshell_id` isn't a string.
        """
        header = self.header(msg_type, subshell_id=subshell_id)
        return self._frames(header, _header_of(parent), metadata, content, idents, _frozen(buffers))

    def serialize_message(self, message: Message) -> list[bytes]:
        """Return the frames of `message`, signed with this session's key.

        Raises:
            EncodeError: as in `serialize`.
        """
        return self._frames(
            message.header,
            message.parent_header,
            message.metadata,
            message.content,
            message.idents,
            message.buffers,
        )

    def receiver(self, *, replay_memory: int = 65_536, refuse_own: bool = False) -> Receiver:
        """Return a new receiver for messages that are signed with this session's key.

        Args:
            replay_memory: how many signatures it remembers (24 bytes each).
                With 0, replays aren't noticed.
            refuse_own: whether to refuse messages that this session itself has sent. A kernel
                should: what it publishes is signed with the key of the connection, anybody who
                listens can send it back, and comm messages go both ways.

        Raises:
            ValueError: `replay_memory` is negative.
        """
        own = self.session_id if refuse_own else None
        if not self._signer.signs:
            replay_memory = min(replay_memory, 0)  # nothing would ever get into it
        return Receiver(self._signer, ReplayMemory(replay_memory), own)

    def _frames(
        self,
        header: Header,
        parent: Header | None,
        metadata: Mapping[str, Any] | None,
        content: Mapping[str, Any] | None,
        idents: Iterable[bytes],
        buffers: tuple[bytes, ...],
    ) -> list[bytes]:
        signed = (
            header.raw,
            b"{}" if parent is None else parent.raw,
            _encoded("metadata", metadata),
            _encoded("content", content),
        )
        return [*idents, DELIMITER, self._signer.sign(signed), *signed, *buffers]


class Receiver:
    """Verifies frames and reads who they are for. Made by `WireSession.receiver`.

    Make one per kernel, and let its shell, control and stdin channels share it: then a message
    that somebody recorded on one channel is refused on the others too. (With one receiver per
    channel, a recorded ``shutdown_request`` from the shell channel would be good once more on
    the control channel.) That is why it may be called from several threads at the same time.
    """

    __slots__ = ("_own_session", "_replays", "_signer")

    def __init__(self, signer: Signer, replays: ReplayMemory, own_session: str | None) -> None:
        self._signer = signer
        self._replays = replays
        self._own_session = own_session

    def receive(self, frames: Sequence[bytes]) -> Envelope:
        """Return the envelope of the message that `frames` are.

        A message is remembered only once its signature has been found valid: somebody without the
        key can't fill the memory.

        Raises:
            MalformedMessage: they aren't a message (`MalformedReason.NO_DELIMITER`,
                `MalformedReason.MISSING_FRAMES`, `MalformedReason.BAD_HEADER`), or not one to trust
                (`MalformedReason.BAD_SIGNATURE`, `MalformedReason.REFLECTED`,
                `MalformedReason.REPLAYED`). Only for the last two is the header known, for the log;
                none of them may be answered.
        """
        try:
            start = frames.index(DELIMITER) + 1
        except ValueError:
            raise MalformedMessage(
                MalformedReason.NO_DELIMITER,
                f"none of the {len(frames)} frames is the delimiter {DELIMITER.decode()}",
            ) from None
        signed = frames[start + 1 : start + 1 + _SIGNED_FRAMES]
        if len(signed) < _SIGNED_FRAMES:
            raise MalformedMessage(
                MalformedReason.MISSING_FRAMES, f"{_MISSING}, but only {len(frames) - start} frames"
            )
        for name, frame in zip(("header", "parent header"), signed, strict=False):
            if len(frame) > LARGEST_HEADER:
                raise MalformedMessage(
                    MalformedReason.BAD_HEADER,
                    f"the {name} has {len(frame)} bytes, and may have {LARGEST_HEADER}",
                )
        digest = self._verify(frames[start], signed)
        header = Header.from_frame(signed[0])
        if header.session == self._own_session:
            raise MalformedMessage(
                MalformedReason.REFLECTED,
                "it was sent from here, and somebody has sent it back",
                header,
            )
        if digest and not self._replays.add(digest):
            raise MalformedMessage(
                MalformedReason.REPLAYED,
                "a message with this signature was received before",
                header,
            )
        return Envelope(
            header=header,
            idents=tuple(frames[: start - 1]),
            buffers=tuple(frames[start + 1 + _SIGNED_FRAMES :]),
            parent_header=signed[1],
            metadata=signed[2],
            content=signed[3],
        )

    def _verify(self, signature: bytes, signed: Sequence[bytes]) -> bytes:
        """Return the digest of a message whose signature is valid; empty if there is no key."""
        if not self._signer.signs:
            return b""
        digest = self._signer.digest(signed)
        if not hmac.compare_digest(digest.hex().encode("ascii"), signature):
            raise MalformedMessage(
                MalformedReason.BAD_SIGNATURE,
                "the signature isn't valid: the sender has another key or signature scheme, "
                "as another kernel's client has"
                if signature
                else "the message isn't signed, but this connection has a key",
            )
        return digest


def _now() -> str:
    """The date in ISO 8601, with the ``Z`` that jupyter_client sends, too.

    What changes within a second is put together here: that takes a fourth of the time.
    """
    global _second  # noqa: PLW0603 - threads that meet here write the same
    second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
    known, text = _second
    if known != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second, text
    return f"{text}.{microsecond:06}Z"


_second = (0, "1970-01-01T00:00:00")


def _header_of(parent: Header | Message | Envelope | None) -> Header | None:
    return parent if parent is None or isinstance(parent, Header) else parent.header


def _frozen(buffers: Iterable[Buffer]) -> tuple[bytes, ...]:
    return tuple(buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers)


def _encoded(name: str, value: Mapping[str, Any] | None) -> bytes:
    if value is None:
        return b"{}"
    frame = _codec.encode(value)
    if not frame.startswith(b"{"):
        raise _codec.EncodeError(f"a message's {name} must be a dict, not {type(value).__name__}")
    return frame
