"""What travels: a header, a message, and the envelope a message arrives in.

A received message is opened in two steps, because two threads do it. The shell channel needs
to know where a request goes, and nothing more: it gets an `Envelope`, whose header is read and
whose other frames are still bytes. The subshell that handles the request opens it, and gets a
`Message`; what is malformed further inside is found there, where an error reply can be sent between
``busy`` and ``idle``, as for any other failure.

All three are frozen, and a header and an envelope are immutable all through: they can be handed to
any thread. A message's content is a plain dict, which belongs to the one who opened the envelope.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar, overload

import attrs
import msgspec

from . import _codec
from ._errors import MalformedMessage, MalformedReason, shown

JSONObject: TypeAlias = dict[str, Any]
"""A JSON object: the form of every content and of all metadata."""

_T = TypeVar("_T")
_D = TypeVar("_D")


def _check_name(header: Header, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"a header's {attribute.name} must be a string that isn't empty, not {shown(value)}"
        )


def _check_subshell_id(
    header: Header, attribute: attrs.Attribute[str | None], value: object
) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a header's subshell_id must be a string or None, not {shown(value)}")


@attrs.frozen
class Header:
    """The header of a message: who sends what, and to which subshell.

    Two headers are equal if their fields are; `raw` takes no part in that.

    Raises:
        ValueError: `msg_id` or `msg_type` isn't a string or is empty, or `subshell_id` is neither a
            string nor None.

    See the messaging specification, "Message header", and JEP 91 for `subshell_id`.
    """

    msg_id: str = attrs.field(validator=_check_name)
    """What the replies to this message, and its side effects, refer to. Unique."""
    msg_type: str = attrs.field(validator=_check_name)
    """For example ``execute_request``."""
    session: str = ""
    """Names the sender, be it a kernel or a client, from its start to its end."""
    username: str = ""
    """Whoever runs the sender."""
    date: str = ""
    """When the message was made: ISO 8601, in UTC."""
    version: str = ""
    """The version of the messaging protocol that the sender speaks."""
    subshell_id: str | None = attrs.field(default=None, validator=_check_subshell_id)
    """The subshell a request is for. None: the main shell, or no subshell at all."""
    raw: bytes = attrs.field(init=False, repr=False, eq=False)
    """The header as a frame. A received header keeps the frame it came in, with all its fields,
    also those nobody here knows: as the parent header of hundreds of messages it is copied,
    never encoded again."""

    @raw.default
    def _encoded(self) -> bytes:
        fields = {
            "msg_id": self.msg_id,
            "msg_type": self.msg_type,
            "session": self.session,
            "username": self.username,
            "date": self.date,
            "version": self.version,
        }
        if self.subshell_id is not None:  # absent and null mean the same, and older clients know
            fields["subshell_id"] = self.subshell_id  # only the former
        return _codec.encode(fields)

    @classmethod
    def from_frame(cls, frame: bytes) -> Header:
        """Read a header that was received.

        It must have a `msg_id` and a `msg_type`, and a `subshell_id` that is a string or null or
        absent. For the rest it is taken as it is: a text field that is absent or isn't text is
        empty here, and a field that is unknown here is kept in `raw`.

        `raw` is `frame` itself, except when that isn't strict JSON (a NaN in an unknown field,
        say): then it is what `encode` makes of it, since every client gets to see its copies.

        Raises:
            MalformedMessage: `frame` isn't such a header.
        """
        try:
            plain = _plain_headers.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls._from_unusual_frame(frame)
        if not plain.msg_id or not plain.msg_type:
            return cls._from_unusual_frame(frame)
        header = cls.__new__(cls)
        put = object.__setattr__  # what the validators look for has been seen to
        put(header, "msg_id", plain.msg_id)
        put(header, "msg_type", plain.msg_type)
        put(header, "session", plain.session)
        put(header, "username", plain.username)
        put(header, "date", plain.date)
        put(header, "version", plain.version)
        put(header, "subshell_id", plain.subshell_id)
        put(header, "raw", frame)
        return header

    @classmethod
    def _from_unusual_frame(cls, frame: bytes) -> Header:
        """Read any other header, or find the words for what is wrong with it."""
        try:
            try:
                fields, raw = _codec.decode_strictly(frame), frame
            except _codec.NestedTooDeep:
                raise
            except _codec.DecodeError:
                fields = _codec.decode(frame)
                raw = _codec.encode(fields)
        except ValueError as error:  # DecodeError, EncodeError
            raise MalformedMessage(
                MalformedReason.BAD_HEADER, f"the header can't be read: {error}"
            ) from error
        if not isinstance(fields, dict):
            raise MalformedMessage(
                MalformedReason.BAD_HEADER,
                f"the header must be a JSON object, not {shown(fields)}",
            )
        texts = {name: fields.get(name) for name in _TEXT_FIELDS}
        try:
            header = cls(
                fields.get("msg_id"),  # type: ignore[arg-type]  # the validators check it
                fields.get("msg_type"),  # type: ignore[arg-type]
                subshell_id=fields.get("subshell_id"),
                **{name: text for name, text in texts.items() if isinstance(text, str)},
            )
        except ValueError as error:
            raise MalformedMessage(MalformedReason.BAD_HEADER, str(error)) from error
        object.__setattr__(header, "raw", raw)
        return header


_TEXT_FIELDS: Final = ("session", "username", "date", "version")


class _PlainHeader(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A header with no fields but those everybody knows, each of its type: that of nearly all.

    Reading it so takes a third of the time. It is strict JSON, and isn't nested.
    """

    msg_id: str
    msg_type: str
    session: str = ""
    username: str = ""
    date: str = ""
    version: str = ""
    subshell_id: str | None = None


_plain_headers: Final = msgspec.json.Decoder(_PlainHeader)


@attrs.frozen(kw_only=True)
class Message:
    """A message, complete and readable."""

    header: Header
    """Its own header."""
    parent_header: Header | None = None
    """The header of the message that caused this one, if there is one."""
    metadata: JSONObject = attrs.field(factory=dict)
    """About the message rather than part of it, such as which cell of a notebook it comes from."""
    content: JSONObject = attrs.field(factory=dict)
    """What the message says. Which fields it has depends on the header's `msg_type`."""
    buffers: tuple[bytes, ...] = ()
    """Binary data that doesn't go through JSON."""
    idents: tuple[bytes, ...] = ()
    """What came before the delimiter: on a ROUTER socket the way back to the sender, on iopub the
    topic."""

    @overload
    def field(self, name: str, kind: type[_T]) -> _T: ...
    @overload
    def field(self, name: str, kind: type[_T], default: _D) -> _T | _D: ...
    def field(self, name: str, kind: type[_T], default: object = attrs.NOTHING) -> object:
        """Return the field `name` of the content, which must be of this `kind`.

        `kind` is one of the types that JSON is decoded to: str, int, float, bool, list or dict. An
        integer is good as a float; a boolean isn't a number. Without a `default` the field is
        required; with one, a field that is absent or null is the default.

        Raises:
            MalformedMessage: the field is missing, or isn't of this kind. It has the message's
                header.
        """
        value = self.content.get(name)
        if value is None and default is not attrs.NOTHING:
            return default
        if isinstance(value, bool) is (kind is bool):
            if isinstance(value, kind):
                return value
            if kind is float and isinstance(value, int):
                return value
        found = shown(value) if name in self.content else "nothing"
        raise MalformedMessage(
            MalformedReason.BAD_CONTENT,
            f"the content's field {name!r} must be {_KINDS[kind]}, not {found}",
            self.header,
        )


@lru_cache(maxsize=32)
def _parent_header(frame: bytes) -> Header:
    """A parent header; all that a request brings about has the same."""
    return Header.from_frame(frame)


_SHORT_HEADER: Final = 1000
"""Bytes of a header that is worth being kept for a while."""


_KINDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


@attrs.frozen(kw_only=True)
class Envelope:
    """A message that was received and verified, of which only the header has been read.

    Opening it is a matter of reading bytes that don't change: any thread may, as often as it likes.
    """

    header: Header
    """The message's header: enough to decide where it goes."""
    idents: tuple[bytes, ...] = ()
    """What came before the delimiter, see `Message.idents`."""
    buffers: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    """The message's buffers."""
    _parent_header: bytes = attrs.field(default=b"{}", repr=False)
    _metadata: bytes = attrs.field(default=b"{}", repr=False)
    _content: bytes = attrs.field(default=b"{}", repr=False)

    @property
    def size(self) -> int:
        """How many bytes there are in all its frames."""
        signed = (self.header.raw, self._parent_header, self._metadata, self._content)
        return sum(map(len, (*self.idents, *signed, *self.buffers)))

    def content_mentions(self, text: bytes) -> bool:
        """Whether `text` occurs anywhere in the unread content: if not, that saves opening it."""
        return text in self._content

    def open(self) -> Message:
        """Read the rest of the message.

        Raises:
            MalformedMessage: the content, the metadata or the parent header isn't what it must be.
                The error has the message's header.
        """
        return Message(
            header=self.header,
            parent_header=self._read_parent_header(),
            metadata=self._read_object(self._metadata, MalformedReason.BAD_METADATA, "metadata"),
            content=self._read_object(self._content, MalformedReason.BAD_CONTENT, "content"),
            buffers=self.buffers,
            idents=self.idents,
        )

    def _read_parent_header(self) -> Header | None:
        if self._parent_header == b"{}":  # requests have no parent; this is how it is said
            return None
        reason, name = MalformedReason.BAD_PARENT_HEADER, "parent header"
        if not self._read_object(self._parent_header, reason, name):
            return None  # empty, with blanks in it
        try:
            if len(self._parent_header) <= _SHORT_HEADER:
                return _parent_header(self._parent_header)
            return Header.from_frame(self._parent_header)
        except MalformedMessage as error:
            raise MalformedMessage(
                reason, f"the {name} isn't a header: {error.detail}", self.header
            ) from error

    def _read_object(self, frame: bytes, reason: MalformedReason, name: str) -> JSONObject:
        if frame == b"{}":
            return {}
        try:
            value = _codec.decode(frame)
        except _codec.DecodeError as error:
            raise MalformedMessage(
                reason, f"the {name} can't be read: {error}", self.header
            ) from error
        if not isinstance(value, dict):
            raise MalformedMessage(
                reason, f"the {name} must be a JSON object, not {shown(value)}", self.header
            )
        return value
