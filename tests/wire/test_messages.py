"""Headers, envelopes and messages: what is kept, what is checked, and what the errors say."""

from __future__ import annotations

import json
import pickle
from typing import Any

import attrs
import pytest

from trio_subshells.wire import Envelope, Header, MalformedMessage, MalformedReason, Message

RAW = {"msg_id": "a1", "msg_type": "execute_request", "session": "s", "username": "u"}
REQUEST = Header("a1", "execute_request")


def frame(**changes: Any) -> bytes:
    return json.dumps(RAW | {"date": "2024-01-02T03:04:05Z", "version": "5.5"} | changes).encode()


def test_a_header_is_read() -> None:
    header = Header.from_frame(frame(subshell_id="sub"))
    assert header == Header("a1", "execute_request", "s", "u", "2024-01-02T03:04:05Z", "5.5", "sub")


def test_a_received_header_is_kept_as_it_was() -> None:
    raw = b'{ "msg_type":"x", "msg_id":"1", "later": {"extension": [1.0, 1e2]} }'
    assert Header.from_frame(raw).raw is raw


def test_a_header_that_browsers_could_not_read_is_repaired_in_its_copies() -> None:
    header = Header.from_frame(b'{"msg_id":"\\ud800","msg_type":"x","extra":[NaN]}')
    assert header.msg_id == "\ud800"
    assert header.raw == b'{"msg_id":"\\\\ud800","msg_type":"x","extra":[null]}'


def test_a_header_of_our_own_reads_back() -> None:
    for header in (REQUEST, attrs.evolve(REQUEST, subshell_id="sub", date="d", session="\ud800")):
        again = Header.from_frame(header.raw)
        assert again == attrs.evolve(header, session=header.session.replace("\ud800", "\\ud800"))
    assert b"subshell_id" not in REQUEST.raw


def test_a_changed_header_does_not_keep_the_frame_of_the_old_one() -> None:
    changed = attrs.evolve(Header.from_frame(frame()), msg_id="b2")
    assert json.loads(changed.raw)["msg_id"] == "b2"


def test_text_that_is_missing_or_not_text_is_empty() -> None:
    header = Header.from_frame(b'{"msg_id":"a","msg_type":"b","session":7,"date":null}')
    assert (header.session, header.username, header.date, header.version) == ("", "", "", "")
    assert header.subshell_id is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the header can't be read: it isn't JSON: Expecting value"),
        (b"\xff", "the header can't be read: it isn't UTF-8"),
        (b"[]", "the header must be a JSON object, not []"),
        (b"null", "the header must be a JSON object, not None"),
        (b"{}", "a header's msg_id must be a string that isn't empty, not None"),
        (frame(msg_id=""), "a header's msg_id must be a string that isn't empty, not ''"),
        (frame(msg_id=7), "a header's msg_id must be a string that isn't empty, not 7"),
        (frame(msg_type=["x"]), "a header's msg_type must be a string that isn't empty, not ['x']"),
        (frame(subshell_id=3), "a header's subshell_id must be a string or None, not 3"),
        (b"[" * 100_000, "the header can't be read: it is nested too deep"),
    ],
)
def test_a_bad_header_is_described(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        Header.from_frame(raw)
    assert caught.value.reason is MalformedReason.BAD_HEADER
    assert str(caught.value).startswith(words)
    assert caught.value.header is None


def test_an_error_shows_only_so_much_of_what_it_found() -> None:
    with pytest.raises(MalformedMessage) as caught:
        Header.from_frame(frame(msg_id=["x" * 10_000] * 10_000))
    assert len(str(caught.value)) < 1000


def test_a_header_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="msg_type must be a string that isn't empty, not ''"):
        Header("a1", "")
    with pytest.raises(ValueError, match="subshell_id must be a string or None, not b'sub'"):
        Header("a1", "execute_request", subshell_id=b"sub")  # type: ignore[arg-type]


def test_an_envelope_opens_to_a_message() -> None:
    parent = b'{"msg_id":"p","msg_type":"input_request","extra":1}'
    envelope = Envelope(
        header=REQUEST,
        idents=(b"client",),
        buffers=(b"\x00",),
        parent_header=parent,
        metadata=b'{"cellId":"7"}',
        content=b'{"code":"1+1","limit":NaN}',
    )
    message = envelope.open()
    assert message.header is REQUEST
    assert message.parent_header == Header("p", "input_request")
    assert message.parent_header.raw is parent
    assert (message.idents, message.buffers) == ((b"client",), (b"\x00",))
    assert message.metadata == {"cellId": "7"}
    assert message.content["code"] == "1+1"
    assert message.content["limit"] != message.content["limit"]  # NaN
    again = envelope.open()
    again.content["code"] = "changed"
    assert message.content["code"] == "1+1", "each opening gives a content of its own"


@pytest.mark.parametrize("empty", [b"{}", b"{ }", b"\n{\n}"])
def test_an_empty_parent_header_is_none(empty: bytes) -> None:
    assert Envelope(header=REQUEST, parent_header=empty).open().parent_header is None


@pytest.mark.parametrize(
    ("bad", "reason", "words"),
    [
        ({"content": b"[1]"}, "bad_content", "the content must be a JSON object, not [1]"),
        ({"content": b'"x"'}, "bad_content", "the content must be a JSON object, not 'x'"),
        ({"content": b"null"}, "bad_content", "the content must be a JSON object, not None"),
        ({"content": b"{"}, "bad_content", "the content can't be read: it isn't JSON: Expecting"),
        ({"content": b'{"a":"\xff"}'}, "bad_content", "the content can't be read: it isn't UTF-8"),
        ({"content": b'{"a":' * 100_000}, "bad_content", "the content can't be read: it is nested"),
        ({"metadata": b"0"}, "bad_metadata", "the metadata must be a JSON object, not 0"),
        ({"metadata": b""}, "bad_metadata", "the metadata can't be read: it isn't JSON"),
        ({"parent_header": b"[]"}, "bad_parent_header", "the parent header must be a JSON object"),
        (
            {"parent_header": b'{"msg_id":"p"}'},
            "bad_parent_header",
            "the parent header isn't a header: a header's msg_type must be a string",
        ),
    ],
)
def test_what_is_wrong_inside_is_found_when_it_is_opened(
    bad: dict[str, bytes], reason: str, words: str
) -> None:
    with pytest.raises(MalformedMessage) as caught:
        Envelope(header=REQUEST, **bad).open()
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(words)
    assert caught.value.header is REQUEST, "with it, an error reply can be sent"
    assert str(caught.value) == f"execute_request a1: {caught.value.detail}"


def test_fields_of_the_content_are_checked() -> None:
    content = {"code": "x", "pos": 3, "when": 1, "silent": False, "items": [], "none": None}
    message = Message(header=REQUEST, content=content)
    assert message.field("code", str) == "x"
    assert message.field("pos", int) == 3
    assert message.field("when", float) == 1
    assert message.field("silent", bool) is False
    assert message.field("silent", bool, True) is False
    assert message.field("items", list) == []
    assert message.field("absent", str, None) is None
    assert message.field("none", dict, {}) == {}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("code", str, "the content's field 'code' must be a string, not nothing"),
        ("null", str, "the content's field 'null' must be a string, not None"),
        ("number", str, "the content's field 'number' must be a string, not 3"),
        ("number", bool, "the content's field 'number' must be true or false, not 3"),
        ("truth", int, "the content's field 'truth' must be an integer, not True"),
        ("truth", float, "the content's field 'truth' must be a number, not True"),
        ("text", dict, "the content's field 'text' must be an object, not 'x'"),
    ],
)
def test_a_wrong_field_is_named(name: str, kind: type, words: str) -> None:
    content = {"null": None, "number": 3, "truth": True, "text": "x"}
    message = Message(header=REQUEST, content=content)
    with pytest.raises(MalformedMessage) as caught:
        message.field(name, kind)
    assert caught.value.reason is MalformedReason.BAD_CONTENT
    assert caught.value.detail == words
    assert caught.value.header is REQUEST


def test_a_default_is_for_what_is_absent_not_for_what_is_wrong() -> None:
    with pytest.raises(MalformedMessage, match="'silent' must be true or false, not 'yes'"):
        Message(header=REQUEST, content={"silent": "yes"}).field("silent", bool, False)


def test_everything_can_be_pickled() -> None:
    header = Header.from_frame(frame(extra=1))
    assert pickle.loads(pickle.dumps(header)).raw == header.raw
    error = MalformedMessage(MalformedReason.REPLAYED, "twice", header)
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.detail, again.header) == (error.reason, error.detail, header)
