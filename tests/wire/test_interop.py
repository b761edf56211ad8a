"""With the reference implementation at the other end: `jupyter_client.session.Session`."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.jsonutil import extract_dates
from jupyter_client.session import Session

from trio_subshells.wire import MalformedMessage, MalformedReason, WireSession

SCHEMES = ["hmac-sha256", "hmac-sha512", "hmac-sha3_256", "hmac-blake2b"]
ENDS = [(b"the key", scheme) for scheme in SCHEMES] + [(b"", "hmac-sha256")]
PACKERS = ["json", "orjson"]
CONTENT = {"code": "print('é 🐱')", "n": [1, 2.5, None, True], "nested": {"big": 2**60}}


@pytest.fixture(params=ENDS, ids=lambda end: f"{end[1]}{'' if end[0] else ', no key'}")
def ends(request: pytest.FixtureRequest) -> tuple[WireSession, Session]:
    key, scheme = request.param
    ours = WireSession(key, signature_scheme=scheme)
    return ours, Session(key=key, signature_scheme=scheme, packer="json")


def theirs_read(session: Session, frames: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    idents, rest = session.feed_identities(frames)
    return idents, session.deserialize(rest)


def test_they_read_what_we_send(ends: tuple[WireSession, Session]) -> None:
    ours, theirs = ends
    parent = ours.header("execute_request", subshell_id="sub")
    frames = ours.serialize(
        "display_data",
        CONTENT,
        parent=parent,
        metadata={"m": 1},
        buffers=[b"\x00\xff"],
        idents=[b"a", b"b"],
    )
    idents, message = theirs_read(theirs, frames)
    assert idents == [b"a", b"b"]
    assert message["content"] == CONTENT
    assert message["metadata"] == {"m": 1}
    assert [bytes(buffer) for buffer in message["buffers"]] == [b"\x00\xff"]
    assert message["header"]["session"] == ours.session_id
    assert message["header"]["date"].tzinfo is not None, "they parse our dates"
    assert message["parent_header"]["msg_id"] == parent.msg_id
    assert message["parent_header"]["subshell_id"] == "sub"
    assert message["parent_header"] == extract_dates(message["parent_header"])


def test_we_read_what_they_send(ends: tuple[WireSession, Session]) -> None:
    ours, theirs = ends
    asked = theirs.msg("input_request")
    sent = theirs.msg("execute_request", content=CONTENT, parent=asked, metadata={"m": 1})
    sent["header"]["subshell_id"] = "sub"
    frames = [*theirs.serialize(sent, ident=[b"a", b"b"]), b"\x00\xff"]
    message = ours.receiver().receive(frames).open()
    assert message.idents == (b"a", b"b")
    assert message.content == CONTENT
    assert message.metadata == {"m": 1}
    assert message.buffers == (b"\x00\xff",)
    assert message.header.msg_id == sent["header"]["msg_id"]
    assert message.header.session == theirs.session
    assert message.header.username == theirs.username
    assert message.header.version == sent["header"]["version"]
    assert message.header.subshell_id == "sub"
    assert message.header.date
    assert message.parent_header is not None
    assert message.parent_header.msg_id == asked["header"]["msg_id"]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_reply_comes_back_with_the_header_of_the_request(packer: str) -> None:
    if packer == "orjson":
        pytest.importorskip("orjson", reason="jupyter_client's optional codec")
    ours, theirs = WireSession(b"k"), Session(key=b"k", packer=packer)
    sent = theirs.msg("execute_request", {"code": ""})
    sent["header"]["a field of the future"] = {"kept": [1.0, "as it is"]}
    request = ours.receiver().receive(theirs.serialize(sent, ident=b"x"))
    reply = ours.serialize("execute_reply", {}, parent=request, idents=request.idents)
    idents, message = theirs_read(theirs, reply)
    assert idents == [b"x"]
    assert theirs.pack(message["parent_header"]) == theirs.pack(sent["header"])


@pytest.mark.parametrize("packer", PACKERS)
def test_they_read_what_json_does_not_have(packer: str) -> None:
    if packer == "orjson":
        pytest.importorskip("orjson", reason="jupyter_client's optional codec")
    ours, theirs = WireSession(b"k"), Session(key=b"k", packer=packer)
    frames = ours.serialize("stream", {"nan": float("nan"), "path": "caf\udce9", "raw": b"\x00"})
    _, message = theirs_read(theirs, frames)
    assert message["content"] == {"nan": None, "path": "caf\\udce9", "raw": "AA=="}


def test_both_refuse_the_others_replays() -> None:
    ours, theirs = WireSession(b"k"), Session(key=b"k")
    frames = ours.serialize("status", {})
    theirs_read(theirs, frames)
    with pytest.raises(ValueError, match="Duplicate Signature"):
        theirs_read(theirs, frames)
    frames = theirs.serialize(theirs.msg("execute_request"))
    receiver = ours.receiver()
    receiver.receive(frames)
    with pytest.raises(MalformedMessage) as caught:
        receiver.receive(frames)
    assert caught.value.reason is MalformedReason.REPLAYED
