"""The JSON codec: what it makes of Python's values, and what it forgives when it reads."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import math
import re
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_subshells.wire import EncodeError, encode
from trio_subshells.wire._codec import MOST_NESTED, DecodeError, decode, decode_strictly

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates included
HUGE_INTEGERS = st.integers(-(2**2000), 2**2000)
JSON_LEAVES = st.none() | st.booleans() | HUGE_INTEGERS | st.floats() | ANY_TEXT
JSON_VALUES = st.recursive(
    JSON_LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
PYTHON_VALUES = st.recursive(
    JSON_LEAVES | st.binary() | st.datetimes() | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(ANY_TEXT, inner, max_size=4)
        | st.lists(inner, max_size=4).map(collections.deque)
        | st.dictionaries(ANY_TEXT, inner, max_size=4).map(types.MappingProxyType)
    ),
    max_leaves=12,
)


def as_json(value: Any) -> Any:
    """What should arrive when `value` is sent: the codec's table, written down a second time."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case str():
            return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in value)
        case bytes():
            return base64.b64encode(value).decode()
        case dt.date():  # a datetime is one, too
            return value.isoformat()
        case dict() | types.MappingProxyType():
            return {as_json(key): as_json(item) for key, item in value.items()}
        case list() | tuple() | collections.deque():
            return [as_json(item) for item in value]
        case _:
            return value


def read_like_a_browser(frame: bytes) -> Any:
    """Decode strictly: UTF-8 without surrogates, no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} isn't JSON")

    return json.loads(frame.decode("utf-8"), parse_constant=refuse)


@given(PYTHON_VALUES)
@settings(deadline=None, max_examples=300)
def test_whatever_is_sent_can_be_read_by_a_browser(value: Any) -> None:
    frame = encode(value)
    assert repr(read_like_a_browser(frame)) == repr(as_json(value))
    assert repr(decode_strictly(frame)) == repr(as_json(value))


@given(JSON_VALUES)
@settings(deadline=None, max_examples=300)
def test_what_the_standard_library_writes_is_read_back(value: Any) -> None:
    frame = json.dumps(value).encode()  # NaN, Infinity and "\ud800" as such
    assert repr(decode(frame)) == repr(value)


@given(st.binary() | st.text('[]{}",:0123456789eE+-.\\u dDnulNaInfinity').map(str.encode))
@settings(deadline=None, max_examples=500)
def test_decoding_anything_raises_nothing_but_decode_error(frame: bytes) -> None:
    try:
        value = decode(frame)
    except DecodeError as caught:
        value, words = None, str(caught)
    else:
        words = ""
    if words:
        with pytest.raises((ValueError, RecursionError)):
            json.loads(frame.decode("utf-8"))
    else:
        assert repr(value) == repr(json.loads(frame))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Shout(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Count(int):
    def __str__(self) -> str:
        return "many"


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Point(NamedTuple):
    x: int
    y: int


@attrs.frozen
class Cell:
    code: str


@dataclasses.dataclass
class Span:
    start: int
    text: str


class Array:
    """Like numpy's: its elements aren't Python's own, `tolist()` makes them so."""

    def tolist(self) -> list[float]:
        return [1.0, math.nan]


class Flag:
    """Like numpy's scalars, whose `tolist()` gives one value."""

    def tolist(self) -> bool:
        return True


VALUES = [
    (dt.datetime(2024, 1, 2, 3, 4, 5, 6, dt.UTC), "2024-01-02T03:04:05.000006Z"),
    (dt.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
    (dt.timedelta(days=1, hours=2), "P1DT7200S"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (decimal.Decimal("1.50"), "1.50"),
    (fractions.Fraction(1, 2), 0.5),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Shout("quiet"), "quiet"),
    (Count(3), 3),
    (Ratio(0.5), 0.5),
    (Ratio("nan"), None),
    (Blob(b"xx"), "eHg="),
    (bytearray(b"xx"), "eHg="),
    (memoryview(b"x-x-")[::2], "eHg="),
    (Point(1, 2), [1, 2]),
    ({"one"}, ["one"]),
    (frozenset({"one"}), ["one"]),
    (range(3), [0, 1, 2]),
    ({"a": 1}.keys(), ["a"]),
    (collections.UserDict(a=1), {"a": 1}),
    (Cell("1+1"), {"code": "1+1"}),
    (Span(1, "x"), {"start": 1, "text": "x"}),
    (Array(), [1.0, None]),
    (Flag(), True),
    (2**64, 2**64),
    ({1: "int"}, {"1": "int"}),
    ({1.5: "float"}, {"1.5": "float"}),
    ({True: 1, False: 2, None: 3}, {"true": 1, "false": 2, "null": 3}),
    ({(1, "a"): 1}, {"(1, 'a')": 1}),
    ({Count(3): 1}, {"3": 1}),
    ({Shout("quiet"): 1}, {"quiet": 1}),
    ({Colour.RED: 1}, {"red": 1}),
    ({dt.date(2024, 1, 2): 1}, {"2024-01-02": 1}),
]


def name(value: object) -> str:
    """Return a test's name, which is the same in each process: without an address."""
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))[:40]


IDS = [name(value) for value, _ in VALUES]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=IDS)
def test_python_values_have_a_json_form(value: object, expected: object) -> None:
    assert read_like_a_browser(encode({"value": value})) == {"value": expected}


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=IDS)
def test_the_slow_path_gives_the_same_as_the_fast_one(value: object, expected: object) -> None:
    forces_slow_path = "\ud800"
    frame = encode([value, forces_slow_path])
    assert read_like_a_browser(frame) == [expected, "\\ud800"]


def test_an_iterator_is_consumed_once_even_if_the_fast_path_fails_after_it() -> None:
    def outputs() -> Iterator[str]:
        yield from ("a", "b")

    assert decode(encode({"first": outputs(), "then": "\udcff"})) == {
        "first": ["a", "b"],
        "then": "\\udcff",
    }


def test_surrogates_are_found_wherever_they_hide() -> None:
    hidden = {"\ud800": Cell("\udcff"), ("\ud801",): Span(1, "\udcfe"), Shout("\ud802"): 1}
    assert decode(encode(hidden)) == {
        "\\ud800": {"code": "\\udcff"},
        "('\\ud801',)": {"start": 1, "text": "\\udcfe"},
        "\\ud802": 1,
    }


@pytest.mark.parametrize("value", [object(), 1j, len, Cell, ValueError("x")], ids=name)
def test_what_has_no_json_form_is_named(value: object) -> None:
    with pytest.raises(
        EncodeError, match=rf"^{type(value).__qualname__} objects have no JSON form"
    ):
        encode({"data": [value]})


def test_an_error_in_a_users_own_iterator_is_the_cause() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the middle")

    with pytest.raises(EncodeError, match="in the middle") as caught:
        encode({"data": broken()})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_contains_itself_or_is_too_deep_cannot_be_sent() -> None:
    ring: list[object] = []
    ring.append(ring)
    with pytest.raises(EncodeError, match="contains itself"):
        encode({"data": ring})
    deep: list[object] = []
    for _ in range(1_000_000):  # from CPython 3.14 on, it is the stack's size that is the limit
        deep = [deep]
    with pytest.raises(EncodeError, match="nested too deep"):
        encode(deep)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"\\ud800":'])
def test_deep_nesting_is_an_error_like_any_other(opening: bytes) -> None:
    with pytest.raises(DecodeError, match="nested too deep"):
        decode(opening * 1_000_000)


def nested(depth: int, text: str) -> bytes:
    """Arrays and objects in turn, that many levels, each with a sibling and with `text` in it."""
    value: object = [text]
    for level in range(depth - 1):
        value = {text: [], "": value} if level % 2 else [{}, text, value]
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "text", ["", "[", "]", '"', '\\"]', "\\", '\\\\"', '"[', "{}[", "]" * 300, '\\["' * 300]
)
def test_so_many_levels_are_read_and_no_more(text: str) -> None:
    for depth in (1, MOST_NESTED - 1, MOST_NESTED):
        frame = nested(depth, text)
        assert decode(frame) == decode_strictly(frame) == json.loads(frame)
    for depth in (MOST_NESTED + 1, MOST_NESTED + 2, 2 * MOST_NESTED):
        for read in (decode, decode_strictly):
            with pytest.raises(DecodeError, match=r"nested too deep \(more than 200 levels\)"):
                read(nested(depth, text))


def test_much_is_not_deep() -> None:
    wide = {"data": [{"key": [], "text": "[[{{"} for _ in range(10_000)]}
    assert decode(json.dumps(wide).encode()) == wide


_COLLECTING = """
import gc, sys, threading
from trio_subshells.wire import _codec

collections = 0
deep, lowered = threading.Lock(), threading.Lock()

def collect(phase, info):
    global collections
    collections += 1
    if collections == 1500:
        deep.release()
        lowered.acquire()
    try:
        str(gc)
    except RecursionError:
        raise

def lower():  # as jedi does, when it has completed what was asked of it
    deep.acquire()
    sys.setrecursionlimit(1000)
    lowered.release()

deep.acquire()
lowered.acquire()
sys.setrecursionlimit(3000)  # as jedi does, when it begins
threading.Thread(target=lower, daemon=True).start()
gc.callbacks.append(collect)
gc.set_threshold(1)
try:
    _codec.decode(b"[" * 2500 + b"]" * 2500)
except _codec.DecodeError as error:
    print(error)
"""


def test_a_garbage_collection_in_the_middle_of_what_is_deep() -> None:
    """It ran code, which found the stack at its end, and CPython ended the process."""
    done = subprocess.run(
        [sys.executable, "-c", _COLLECTING], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("it is nested too deep")


@pytest.mark.parametrize(
    ("frame", "value"),
    [
        (b"[NaN]", "[nan]"),
        (b"[Infinity,-Infinity]", "[inf, -inf]"),
        (b"1e400", "inf"),
        (b'"\\ud800"', r"'\ud800'"),
        (b'{"\\udc00":1}', r"{'\udc00': 1}"),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"9" * 4300, "9" * 4300),
        (b' {"a" : [ ] }\n', "{'a': []}"),
    ],
)
def test_tolerances(frame: bytes, value: str) -> None:
    assert repr(decode(frame)) == value


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "it isn't JSON: Expecting value"),
        (b"{]", "it isn't JSON: Expecting property name"),
        (b'{"a":1}x', "it isn't JSON: Extra data"),
        (b'"\xff"', "it isn't UTF-8: byte 0xff at offset 1"),
        (b'"\xed\xa0\x80"', "it isn't UTF-8: byte 0xed at offset 1"),
        (b"\xef\xbb\xbf{}", "it isn't JSON: Unexpected UTF-8 BOM"),
        (b"9" * 5000, "it isn't JSON: Exceeds the limit"),
    ],
)
def test_intolerable_input_is_described(frame: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(frame)
    assert str(caught.value).startswith(words)


def test_the_recursion_limit_is_left_alone() -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(DecodeError):
        decode(b"[" * 100_000)
    assert sys.getrecursionlimit() == limit
