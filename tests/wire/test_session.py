"""Sending and receiving: signatures, replays, threads, and fuzzing of everything that arrives."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_subshells.wire import (
    DELIMITER,
    EncodeError,
    Header,
    MalformedMessage,
    MalformedReason,
    Message,
    Receiver,
    WireSession,
)
from trio_subshells.wire._signing import Signer

KEY = b"a0436f6c-1916-498b-8eb9-e81ab9368e84"
SESSION = WireSession(KEY)
UNSIGNED = WireSession(b"")
HEADER_FRAME = 2  # of a message without idents: delimiter, signature, header, ...


def refusal(receiver: Receiver, frames: list[bytes]) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        receiver.receive(frames)
    return caught.value


@pytest.mark.parametrize("session", [SESSION, UNSIGNED], ids=["signed", "unsigned"])
def test_a_message_arrives_as_it_was_sent(session: WireSession) -> None:
    request = session.message("execute_request", {"code": "1"}, subshell_id="sub")
    frames = session.serialize(
        "stream",
        {"name": "stdout", "text": "é\n"},
        parent=request,
        metadata={"m": [1]},
        buffers=[b"one", bytearray(b"two"), memoryview(b"t-h-r-e-e")[::2]],
        idents=[b"stream.stdout"],
    )
    message = session.receiver().receive(frames).open()
    assert message.header.msg_type == "stream"
    assert message.parent_header == request.header
    assert message.parent_header.subshell_id == "sub"
    assert message.content == {"name": "stdout", "text": "é\n"}
    assert message.metadata == {"m": [1]}
    assert message.buffers == (b"one", b"two", b"three")
    assert message.idents == (b"stream.stdout",)


def test_a_message_that_was_made_first_and_serialized_then_is_the_same() -> None:
    message = SESSION.message(
        "comm_msg", {"a": 1}, metadata={"b": 2}, buffers=[bytearray(b"c")], idents=[b"d"]
    )
    assert SESSION.receiver().receive(SESSION.serialize_message(message)).open() == message


def test_every_frame_is_bytes_and_large_buffers_are_not_copied() -> None:
    large = b"x" * 1_000_000
    frames = SESSION.serialize("comm_msg", {}, buffers=[large, bytearray(b"small")])
    assert {type(frame) for frame in frames} == {bytes}
    assert frames[-2] is large
    assert SESSION.receiver().receive(frames).buffers[0] is large


def test_nothing_but_the_message_type_is_needed() -> None:
    message = SESSION.receiver().receive(SESSION.serialize("kernel_info_request")).open()
    assert (message.content, message.metadata, message.parent_header) == ({}, {}, None)
    assert (message.idents, message.buffers) == ((), ())


def test_a_parent_is_its_header_however_it_is_given() -> None:
    frames = SESSION.serialize("execute_request", {"code": ""})
    envelope = SESSION.receiver().receive(frames)
    for parent in (envelope, envelope.header, envelope.open()):
        reply = SESSION.serialize("execute_reply", {}, parent=parent)
        assert reply[HEADER_FRAME + 1] is frames[HEADER_FRAME], "a verbatim copy, not encoded again"


def test_a_header_says_who_and_when() -> None:
    session = WireSession(KEY, username="me", session_id="this one")
    before = dt.datetime.now(dt.UTC)
    header = session.header("status")
    after = dt.datetime.now(dt.UTC)
    assert (header.username, header.session, header.version) == ("me", "this one", "5.6")
    assert header.date.endswith("Z")
    assert before <= dt.datetime.fromisoformat(header.date) <= after
    assert WireSession(KEY).session_id != WireSession(KEY).session_id


def test_what_has_no_json_form_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(EncodeError, match="object objects have no JSON form"):
        SESSION.serialize("stream", {"text": object()})
    with pytest.raises(EncodeError, match="a message's content must be a dict, not list"):
        SESSION.serialize("stream", [("text", "x")])  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="a message's metadata must be a dict, not str"):
        SESSION.serialize("stream", {}, metadata="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="msg_type must be a string that isn't empty"):
        SESSION.serialize("")


def test_no_key_is_shown() -> None:
    assert KEY.decode() not in repr(SESSION)


def changed(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


@pytest.mark.parametrize("index", range(1, 6))
def test_a_changed_frame_is_noticed(index: int) -> None:
    frames = SESSION.serialize("execute_request", {"code": "1"}, metadata={"m": 1})
    frames[index] = changed(frames[index])
    error = refusal(SESSION.receiver(), frames)
    assert error.reason is MalformedReason.BAD_SIGNATURE
    assert error.header is None, "nothing of it can be trusted"


@pytest.mark.parametrize(
    "sender",
    [WireSession(b"another"), WireSession(KEY, signature_scheme="hmac-sha512")],
    ids=["key", "scheme"],
)
def test_another_key_or_scheme_is_refused(sender: WireSession) -> None:
    error = refusal(SESSION.receiver(), sender.serialize("shutdown_request"))
    assert error.reason is MalformedReason.BAD_SIGNATURE
    assert "another key or signature scheme" in str(error)


def test_a_message_without_a_signature_is_refused_if_there_is_a_key() -> None:
    error = refusal(SESSION.receiver(), UNSIGNED.serialize("shutdown_request"))
    assert error.reason is MalformedReason.BAD_SIGNATURE
    assert "isn't signed" in str(error)


def test_without_a_key_nothing_is_signed_and_any_signature_will_do() -> None:
    assert UNSIGNED.serialize("status")[1] == b""
    receiver = UNSIGNED.receiver()
    frames = SESSION.serialize("status")
    assert receiver.receive(frames) == receiver.receive(frames)


def test_frames_that_are_no_message() -> None:
    receiver = SESSION.receiver()
    frames = SESSION.serialize("status")
    assert refusal(receiver, []).reason is MalformedReason.NO_DELIMITER
    error = refusal(receiver, frames[1:])
    assert error.reason is MalformedReason.NO_DELIMITER
    assert str(error) == "none of the 5 frames is the delimiter <IDS|MSG>"
    error = refusal(receiver, frames[:-1])
    assert error.reason is MalformedReason.MISSING_FRAMES
    assert str(error).endswith("metadata and content, but only 4 frames")


def test_a_signed_message_with_a_bad_header_is_refused() -> None:
    frames = SESSION.serialize("status")
    frames[HEADER_FRAME] = b'{"msg_id": 1}'
    assert refusal(SESSION.receiver(), signed(frames)).reason is MalformedReason.BAD_HEADER


def signed(frames: list[bytes]) -> list[bytes]:
    """Sign the frames of a message without idents, whatever they are."""
    return [frames[0], Signer(KEY, "hmac-sha256").sign(frames[2:6]), *frames[2:]]


def test_a_replay_is_refused_and_named() -> None:
    receiver = SESSION.receiver()
    frames = SESSION.serialize("execute_request", {"code": "launch()"}, idents=[b"me"])
    original = receiver.receive(frames)
    for replay in (frames, [b"somebody else", *frames[1:]], [*frames, b"another buffer"]):
        error = refusal(receiver, replay)
        assert error.reason is MalformedReason.REPLAYED
        assert error.header == original.header


def test_a_message_that_was_refused_is_not_remembered() -> None:
    receiver = SESSION.receiver()
    frames = SESSION.serialize("execute_request")
    forged = [*frames[:HEADER_FRAME], b"{}", *frames[HEADER_FRAME + 1 :]]
    assert refusal(receiver, forged).reason is MalformedReason.BAD_SIGNATURE
    receiver.receive(frames)  # its signature was seen, but never with its message


@given(st.integers(0, 5), st.lists(st.integers(0, 8), max_size=40))
@settings(deadline=None, max_examples=200)
def test_the_replay_memory_forgets_the_oldest_first(size: int, arrivals: list[int]) -> None:
    messages = [SESSION.serialize("status", {"n": n}) for n in range(9)]
    receiver = SESSION.receiver(replay_memory=size)
    remembered: deque[int] = deque(maxlen=size)
    for n in arrivals:
        if n in remembered:
            assert refusal(receiver, messages[n]).reason is MalformedReason.REPLAYED
        else:
            assert receiver.receive(messages[n]).open().content == {"n": n}
            remembered.append(n)


def test_receivers_do_not_share_their_memory() -> None:
    frames = SESSION.serialize("status")
    assert SESSION.receiver().receive(frames) == SESSION.receiver().receive(frames)


def test_what_was_sent_from_here_is_refused_on_demand() -> None:
    kernel, client = WireSession(b"key"), WireSession(b"key")
    receiver = kernel.receiver(refuse_own=True)
    published = kernel.serialize("comm_msg", {"comm_id": "c", "data": {}}, idents=[b"comm"])
    for _ in range(2):
        error = refusal(receiver, published)
        assert error.reason is MalformedReason.REFLECTED
        assert error.header is not None
    assert receiver.receive(client.serialize("comm_msg", {})).header.msg_type == "comm_msg"
    assert client.receiver(refuse_own=True).receive(published).header.msg_type == "comm_msg"
    assert kernel.receiver().receive(published).header.msg_type == "comm_msg"


def test_a_replay_memory_has_a_size() -> None:
    with pytest.raises(ValueError, match="can't be negative: -1"):
        SESSION.receiver(replay_memory=-1)


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Call `work` in `count` threads that start together, and return what the calls returned."""
    start = threading.Barrier(count)
    results: list[Any] = []

    def run() -> None:
        start.wait(60)
        results.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == count
    return results


def test_threads_that_send_with_one_session_never_make_the_same_id() -> None:
    session = WireSession(KEY)
    made = in_threads(8, lambda: [session.header("status").msg_id for _ in range(1000)])
    ids = Counter(msg_id for ids in made for msg_id in ids)
    assert len(ids) == 8000
    assert all(msg_id.startswith(session.session_id) for msg_id in ids)


def test_threads_that_send_with_one_session_sign_what_they_send() -> None:
    sent = in_threads(4, lambda: [SESSION.serialize("status", {"n": n}) for n in range(500)])
    receiver = SESSION.receiver()
    for frames in sent:
        assert [receiver.receive(each).open().content["n"] for each in frames] == list(range(500))


def test_of_the_same_message_on_several_channels_one_is_accepted() -> None:
    receiver = SESSION.receiver()
    messages = [SESSION.serialize("shutdown_request") for _ in range(200)]

    def channel() -> list[str]:
        outcomes = []
        for frames in messages:
            try:
                receiver.receive(frames)
            except MalformedMessage as caught:
                outcomes.append(caught.reason.value)
            else:
                outcomes.append("accepted")
        return outcomes

    for outcomes in zip(*in_threads(4, channel), strict=True):
        assert Counter(outcomes) == {"accepted": 1, "replayed": 3}


# Fuzzing: whatever the frames are, a receiver returns a message or raises MalformedMessage.

JUNK = st.binary(max_size=40) | st.sampled_from([DELIMITER, b"", b"{}", b"null", b"[]", b"\xff"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
JSON_LIKE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
HEADER_LIKE = st.dictionaries(
    st.sampled_from(["msg_id", "msg_type", "session", "date", "subshell_id", "more"]),
    st.text(st.characters(exclude_categories=())) | JSON_LIKE,
)
JSON_FRAMES = (JSON_LIKE | HEADER_LIKE).map(lambda value: json.dumps(value).encode())


def read(receiver: Receiver, frames: list[bytes]) -> Message | MalformedMessage:
    """Receive and open; what is readable must also be sendable, and arrive."""
    try:
        message = receiver.receive(frames).open()
    except MalformedMessage as caught:
        return caught
    again = UNSIGNED.receiver().receive(UNSIGNED.serialize_message(message)).open()
    assert again.buffers == message.buffers
    assert again.idents == message.idents
    assert again.header.msg_type != ""
    return message


@given(st.lists(JUNK, max_size=9))
@settings(deadline=None, max_examples=400)
def test_arbitrary_frames_are_refused_in_words(frames: list[bytes]) -> None:
    refused = read(SESSION.receiver(), frames)
    assert isinstance(refused, MalformedMessage)
    assert str(refused)
    read(UNSIGNED.receiver(), frames)


@given(st.lists(JUNK, max_size=3), st.lists(JSON_FRAMES | JUNK, min_size=4, max_size=6))
@settings(deadline=None, max_examples=400)
def test_nonsense_with_a_valid_signature_is_refused_in_words(
    idents: list[bytes], parts: list[bytes]
) -> None:
    # with the key, so that it gets past the signature and into every decoder
    message = [*idents, *signed([DELIMITER, b"", *parts])]
    read(SESSION.receiver(), message)
    read(UNSIGNED.receiver(), message)


@given(HEADER_LIKE, HEADER_LIKE, HEADER_LIKE, HEADER_LIKE | JSON_LIKE)
@settings(deadline=None, max_examples=400)
def test_nearly_right_messages_are_read_or_refused_in_words(
    header: dict[str, Any], parent_header: dict[str, Any], metadata: object, content: object
) -> None:
    parts = ({"msg_id": "a", "msg_type": "b"} | header, parent_header, metadata, content)
    frames = [json.dumps(part).encode() for part in parts]
    result = read(SESSION.receiver(), signed([DELIMITER, b"", *frames]))
    if isinstance(result, Message):
        fits = []
        for kind in (str, int, bool, list, dict, float):
            try:
                fits.append(result.field("more", kind))
            except MalformedMessage as caught:
                assert caught.header == result.header  # noqa: PT017  # none is fine as well
        more = result.content.get("more")
        expected = [] if more is None else [more, more] if type(more) is int else [more]
        assert repr(fits) == repr(expected)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Draw a valid message, and one that was damaged on its way."""
    frames = SESSION.serialize(
        "execute_request",
        {"code": draw(st.text(max_size=5)), "silent": False},
        parent=draw(st.sampled_from([None, Header("p", "parent")])),
        idents=draw(st.lists(st.binary(max_size=3), max_size=2)),
        buffers=draw(st.lists(st.binary(max_size=3), max_size=2)),
    )
    damaged = list(frames)
    for _ in range(draw(st.integers(1, 3))):
        if not damaged:
            break
        at = draw(st.integers(0, len(damaged) - 1))
        match draw(st.sampled_from(["drop", "double", "swap", "replace", "cut", "flip"])):
            case "drop":
                del damaged[at]
            case "double":
                damaged.insert(at, damaged[at])
            case "swap":
                damaged[0], damaged[at] = damaged[at], damaged[0]
            case "replace":
                damaged[at] = draw(JUNK)
            case "cut":
                damaged[at] = damaged[at][: draw(st.integers(0, len(damaged[at])))]
            case "flip" if damaged[at]:
                byte = draw(st.integers(0, len(damaged[at]) - 1))
                mask = draw(st.integers(1, 255))
                whole = bytearray(damaged[at])
                whole[byte] ^= mask
                damaged[at] = bytes(whole)
    return frames, damaged


def signed_part(frames: list[bytes]) -> list[bytes]:
    start = frames.index(DELIMITER) + 1
    return frames[start : start + 5]


@given(mutations())
@settings(deadline=None, max_examples=400)
def test_a_damaged_message_is_refused_unless_only_what_is_unsigned_changed(
    message: tuple[list[bytes], list[bytes]],
) -> None:
    frames, damaged = message
    read(UNSIGNED.receiver(), damaged)
    result = read(SESSION.receiver(), damaged)
    if isinstance(result, Message):
        assert signed_part(damaged) == signed_part(frames)
