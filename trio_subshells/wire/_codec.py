"""JSON as Jupyter speaks it: fast for what is well formed, forgiving for the rest.

One frame of a message is one JSON text in UTF-8. Two functions make and read it, `encode` and
`decode`. Each has a fast path (msgspec) that handles nearly everything, and a slow one that is
taken only when the fast one refuses.

Why msgspec and not orjson. Time per call, msgspec : orjson, both on CPython 3.11:

============================  ========  ========
message                       encode    decode
============================  ========  ========
header and status content     1 : 1.0   1 : 1.2
a stream output, 200 bytes    1 : 1.1   1 : 1.0
a Vega-Lite plot, 125 kB      1 : 0.8   1 : 1.0
HTML, 160 kB                  1 : 0.5   1 : 1.6
a PNG in base64, 100 kB       1 : 0.2   1 : 1.1
============================  ========  ========

(The standard library's `json` takes 7 to 14 times as long to encode, and 2 to 7 times to decode.)
They tie on the short messages, which a kernel sends by the thousand; orjson copies a long string
faster, by 15 µs for a picture, which is lost in the time it takes to sign it. What decides
is elsewhere: msgspec has wheels for free-threaded builds, on which this project's threads pay off,
and orjson has none. (Neither has any for PyPy.) And orjson reads an integer beyond 64 bits as a
float and refuses to write one, while msgspec is exact both ways.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

import attrs
import msgspec


class EncodeError(ValueError):
    """What a kernel wanted to send has no JSON form: the fault is on this side of the wire.

    The counterpart of `MalformedMessage`, which is about what the other side sent.
    """


class DecodeError(ValueError):
    """A frame isn't JSON, or isn't UTF-8. Callers turn it into `MalformedMessage`."""


class NestedTooDeep(DecodeError):
    """It has more levels than `MOST_NESTED`: no reader is to try it."""


def encode(value: object) -> bytes:
    r"""Return `value` as one line of JSON that every client can read.

    That means strict JSON in valid UTF-8: a browser's ``JSON.parse`` takes neither ``NaN`` nor a
    byte that isn't UTF-8, and one such message is enough to make a front end drop the connection.

    ==================================  =====================================================
    Python                              JSON
    ==================================  =====================================================
    NaN and the infinities              null, as JavaScript's own ``JSON.stringify`` does
    lone surrogates in a string         backslash escapes that can be read: ``\udcff``
    datetime, date, time, timedelta     ISO 8601 (a naive one stays without an offset)
    bytes, bytearray, memoryview        a string, in base64
    UUID, Decimal                       a string
    enum members                        their value
    list, tuple, set, any iterable      an array (an iterator is consumed)
    dict, any `Mapping`                 an object
    dataclass and attrs instances       an object of their fields
    other numbers, numpy's too          a number
    what has ``tolist()`` (an array)    what that returns
    ==================================  =====================================================

    Keys that aren't strings become strings: a number or a date as above, True, False and None as in
    JSON, a tuple as its `repr`. Two keys that become the same string are both written; readers keep
    the last one.

    Raises:
        EncodeError: something in `value` has no JSON form (it isn't sent as its `repr`: nobody can
            use that at the other end, and nobody would notice), or `value` contains itself.
    """
    try:
        return _encoder.encode(value)
    except Exception:  # whatever it was: the slow path finds a way, or the words for it
        return _encode_slowly(value)


def decode(frame: bytes) -> Any:
    r"""Return the JSON value of `frame`, read as tolerantly as Jupyter's own implementation.

    ``NaN``, ``Infinity`` and ``-Infinity`` are floats, numbers out of a float's range are infinite,
    an escape like ``\ud800`` may stand alone, integers of up to 4,300 digits are exact.

    Raises:
        DecodeError: `frame` isn't UTF-8, or isn't JSON, or has more than `MOST_NESTED` levels.
    """
    try:
        return decode_strictly(frame)
    except NestedTooDeep:
        raise
    except DecodeError:
        return _decode_slowly(frame)


def decode_strictly(frame: bytes) -> Any:
    """Return the JSON value of `frame` if that is what every other reader could read as well.

    Raises:
        DecodeError: `frame` isn't strict JSON in UTF-8. It may still be good enough for `decode`.
    """
    _check_depth(frame)
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(str(error)) from error


def _check_depth(frame: bytes) -> None:
    """Refuse what is nested too deep, before a reader recurses that far: see `MOST_NESTED`.

    Up to the first mistake in `frame`, where any reader stops, this tells strings from the rest.
    """
    if len(frame) <= MOST_NESTED or frame.count(b"[") + frame.count(b"{") <= MOST_NESTED:
        return
    unescaped = frame.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_of_strings = b"".join(unescaped.split(b'"')[::2])
    brackets = outside_of_strings.translate(_ONE_KIND, _NO_BRACKETS)
    for level in range(_FEW_LEVELS):
        left = brackets.replace(b"[]", b"")  # of each branch, the innermost level
        if len(left) == len(brackets):  # the rest is ]]...[[
            depth = level + brackets.count(b"[")
            break
        brackets = left
    else:  # Rare, and looked at once: level by level, 100 kB could take 50 ms.
        depth = _FEW_LEVELS + max(accumulate(array("b", brackets.translate(_STEPS))), default=0)
    if depth > MOST_NESTED:
        raise NestedTooDeep(
            f"it is nested too deep (more than {MOST_NESTED} levels), or its brackets don't match"
        )


class _NeedsSlowPath(Exception):
    """Raised by the fast path's hook to leave an iterator alone: it can be consumed only once."""


def _encode_natively(value: object) -> object:
    """Return what stands in for a `value` that msgspec doesn't know: its hook."""
    if isinstance(value, Iterator):
        raise _NeedsSlowPath
    return _substitute(value)


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode_natively)
_decoder: Final = msgspec.json.Decoder()

MOST_NESTED: Final = 200
"""Levels of arrays and objects in a frame; those of messages have ten or twenty. Not as many as the
interpreter's stack allows: a garbage collection may run anybody's code in the middle of reading,
and where that finds the stack at its end CPython may give up (``Cannot recover from stack
overflow``), and take the process with it."""

_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")  # 1 and -1
_FEW_LEVELS: Final = 8

# What msgspec writes by itself, and what can't hide anything that it refuses.
_SAFE_LEAVES: Final = frozenset({type(None), bool, int, float, bytes, bytearray})
_KEY_CONSTANTS: Final = {None: "null", True: "true", False: "false"}


def _substitute(value: object) -> object:
    """Return `value` as something closer to JSON, one step, not its elements.

    msgspec asks for values that it doesn't know, and for keys. None, booleans, tuples and frozen
    sets it knows as values; so when it asks for one of these, that was a key.
    """
    if value is None or value is True or value is False:
        return _KEY_CONSTANTS[value]
    if isinstance(value, tuple | frozenset):
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)  # a subclass may have its own idea of __str__
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, Mapping):
        return dict(value)
    tolist = getattr(value, "tolist", None)
    if callable(tolist) and not isinstance(value, type):
        return tolist()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(
        f"{type(value).__qualname__} objects have no JSON form: convert them to strings, numbers, "
        "lists or dicts before you send them"
    )


def _encode_slowly(value: object) -> bytes:
    """Encode what the fast path refused: repair it throughout, then try again."""
    try:
        return _encoder.encode(_repaired(value))
    except RecursionError as error:
        raise EncodeError("the value contains itself, or is nested too deep for JSON") from error
    except Exception as error:
        raise EncodeError(str(error) or repr(error)) from error


def _repaired(value: object) -> object:
    """Return a copy of `value` in which every string is valid Unicode and every iterator a list."""
    kind = type(value)
    if kind in _SAFE_LEAVES:
        return value
    if isinstance(value, str):
        return _valid_text(value)
    if isinstance(value, dict):
        return {_repaired_key(key): _repaired(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_repaired(item) for item in value]
    if isinstance(value, memoryview):
        return bytes(value)  # one that isn't contiguous, msgspec refuses
    if attrs.has(kind):
        return {field.name: _repaired(getattr(value, field.name)) for field in attrs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        return {field.name: _repaired(getattr(value, field.name)) for field in fields}
    try:
        builtin = msgspec.to_builtins(value, builtin_types=(bytes, bytearray))
    except (TypeError, ValueError):
        builtin = _substitute(value)
    return _repaired(builtin)


def _repaired_key(key: object) -> object:
    """Return a key of a JSON object for `key`."""
    if isinstance(key, str):
        return _valid_text(key)
    if isinstance(key, tuple):
        return _valid_text(str(key))
    return key  # whatever it is, it can't be a string with a surrogate: the hook does the rest


def _valid_text(text: str) -> str:
    """Return `text` with its lone surrogates spelled out, and everything else as it was."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decode_slowly(frame: bytes) -> Any:
    """Decode what the fast path refused, with the standard library's tolerances."""
    try:
        return json.loads(frame.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"it isn't UTF-8: byte 0x{frame[error.start]:02x} at offset {error.start}"
        ) from error
    except RecursionError as error:
        raise DecodeError("it is nested too deep") from error
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise DecodeError(f"it isn't JSON: {error}") from error
