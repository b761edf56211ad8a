"""What every message of a kernel has to be like: headers, status, welcomes, signatures, errors."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import zmq
from jupyter_client.session import Session

from ._client import PATIENCE, Client, Kernel

# Headers and status


def test_kernel_info_says_what_the_kernel_is(client: Client) -> None:
    for channel in ("shell", "control"):
        info = client.request("kernel_info_request", channel=channel).ok()
        assert info["protocol_version"].startswith("5.6")
        assert "kernel subshells" in info["supported_features"]
        assert info["implementation"]
        assert info["implementation_version"]
        assert info["banner"]
        assert info["language_info"]["name"] == "python"
        assert info["language_info"]["mimetype"] == "text/x-python"
        assert info["language_info"]["file_extension"] == ".py"
        assert not info.get("debugger", False)
        assert "debugger" not in info["supported_features"]


def test_messages_are_unique_and_name_the_session_of_the_kernel(client: Client) -> None:
    subshell = client.create_subshell()
    for where in (None, subshell):
        client.execute("print(1); 2", subshell=where).ok()
        client.execute("1/0", subshell=where).error()
    client.request("no_such_request", channel="control").error()
    assert len({message.header["msg_id"] for message in client.memory}) == len(client.memory)
    [session] = {message.header["session"] for message in client.memory}
    assert session != client.session.session
    for message in client.memory:
        assert message.header["version"].startswith("5.")
        assert message.header["date"].tzinfo is not None


def test_a_parent_header_is_the_whole_header_of_the_request(client: Client) -> None:
    subshell = client.create_subshell()
    cell = client.execute("print('out')", subshell=subshell)
    cell.ok()
    messages = [cell.reply_message(), *cell.published()]
    assert {message.type for message in messages} == {
        "execute_reply",
        "status",
        "execute_input",
        "stream",
    }
    for message in messages:
        assert message.parent["subshell_id"] == subshell
        for field in ("msg_id", "msg_type", "session", "username", "version"):
            assert message.parent[field] == cell.header[field]


@pytest.mark.parametrize(
    ("channel", "type_", "content"),
    [
        ("shell", "kernel_info_request", {}),
        ("shell", "complete_request", {"code": "pri", "cursor_pos": 3}),
        ("shell", "inspect_request", {"code": "print", "cursor_pos": 3, "detail_level": 0}),
        ("shell", "is_complete_request", {"code": "1"}),
        ("shell", "history_request", {"output": False, "raw": True, "hist_access_type": "tail"}),
        ("shell", "comm_info_request", {}),
        ("control", "kernel_info_request", {}),
        ("control", "interrupt_request", {}),
        ("control", "create_subshell_request", {}),
        ("control", "list_subshell_request", {}),
    ],
)
def test_every_request_is_answered_between_busy_and_idle(
    client: Client, channel: str, type_: str, content: dict[str, object]
) -> None:
    request = client.request(type_, content, channel=channel)
    reply = request.finished()
    # The status of is_complete_reply tells about the code, not about the request.
    assert reply["status"] == ("complete" if type_ == "is_complete_request" else "ok")
    assert request.reply_message().type == type_.replace("_request", "_reply")


def test_shell_requests_to_a_subshell_are_answered_between_busy_and_idle(client: Client) -> None:
    subshell = client.create_subshell()
    for type_, content in (
        ("kernel_info_request", {}),
        ("complete_request", {"code": "pri", "cursor_pos": 3}),
        ("inspect_request", {"code": "print", "cursor_pos": 3, "detail_level": 0}),
        ("is_complete_request", {"code": "1"}),
        ("history_request", {"output": False, "raw": True, "hist_access_type": "tail", "n": 1}),
        ("comm_info_request", {}),
    ):
        client.request(type_, content, subshell=subshell).finished()


def test_comm_info_lists_no_comms_of_an_unknown_target(client: Client) -> None:
    assert client.request("comm_info_request").ok()["comms"] == {}
    reply = client.request("comm_info_request", {"target_name": "no such target"}).ok()
    assert reply["comms"] == {}


# Unknown things


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_an_unknown_request_gets_an_error_reply(client: Client, channel: str) -> None:
    request = client.request("frobnicate_request", {"much": True}, channel=channel)
    error = request.error()
    assert request.reply_message().type == "frobnicate_reply"
    assert "frobnicate_request" in error["evalue"]
    client.request("kernel_info_request", channel=channel).ok()


def test_an_unknown_request_to_a_subshell_gets_an_error_reply(client: Client) -> None:
    subshell = client.create_subshell()
    client.request("frobnicate_request", subshell=subshell).error()
    assert client.execute("1 + 1", subshell=subshell).result() == "2"


@pytest.mark.parametrize(
    ("type_", "content"),
    [
        ("execute_request", {"code": "hit = True"}),
        ("complete_request", {"code": "pri", "cursor_pos": 3}),
        ("kernel_info_request", {}),
    ],
)
@pytest.mark.parametrize("place", ["header", "content"])
def test_an_unknown_subshell_gets_an_error_reply(
    client: Client, type_: str, content: dict[str, object], place: str
) -> None:
    if place == "header":
        request = client.request(type_, content, subshell="nobody")
    else:
        request = client.request(type_, {**content, "subshell_id": "nobody"})
    assert "nobody" in request.error()["evalue"]
    assert request.reply_message().type == type_.replace("_request", "_reply")
    assert client.evaluate("'hit' in globals()") == "False"


@pytest.mark.parametrize(
    ("type_", "content"),
    [
        ("execute_request", {}),
        ("execute_request", {"code": 5}),
        ("complete_request", {"code": "pri", "cursor_pos": "end"}),
        ("history_request", {"output": False, "raw": True, "hist_access_type": "sideways"}),
    ],
)
def test_a_request_with_wrong_content_gets_an_error_reply(
    client: Client, type_: str, content: dict[str, object]
) -> None:
    client.request(type_, content).error()
    assert client.execute("1 + 1").result() == "2"


def test_delete_without_an_id_gets_an_error_reply(client: Client) -> None:
    error = client.request("delete_subshell_request", channel="control").error()
    assert "subshell_id" in error["evalue"]


# Subscribing


def test_every_subscriber_of_every_topic_is_welcomed(kernel: Kernel) -> None:
    kernel.connect()  # is welcomed as a first subscriber, or does not return
    session = kernel.new_session()
    for topic in (b"", b"", b"stream", b"stream", b"no such topic", "thème".encode()):
        subscriber = kernel.socket("iopub")
        subscriber.subscribe(topic)
        _, frames = session.feed_identities(subscriber.recv_multipart())
        welcome = session.deserialize(frames)
        # Another subscriber's welcome to the same topic may be seen as well, and is as good.
        assert welcome["header"]["msg_type"] == "iopub_welcome"
        assert welcome["parent_header"] == {}
        assert welcome["content"] == {"subscription": topic.decode()}


def test_a_second_subscription_on_the_same_socket_is_welcomed(kernel: Kernel) -> None:
    client = kernel.connect()
    session = kernel.new_session()
    subscriber = kernel.socket("iopub")
    for topic in ("first", "second"):
        subscriber.subscribe(topic)
        _, frames = session.feed_identities(subscriber.recv_multipart())
        assert session.deserialize(frames)["content"] == {"subscription": topic}
    client.execute("1").ok()


def test_all_clients_see_what_one_of_them_runs(kernel: Kernel) -> None:
    one, other = kernel.connect(), kernel.connect()
    cell = one.execute("print('for all')")
    cell.ok()
    other.wait_for(lambda m: m.parent_id == cell.id and m.state == "idle", "the other's idle")
    seen = [m for m in other.memory if m.parent_id == cell.id]
    assert [m.header["msg_id"] for m in seen] == [m.header["msg_id"] for m in cell.published()]
    assert {m.channel for m in seen} == {"iopub"}


def test_starting_is_published_exactly_once(start_kernel: Callable[..., Kernel]) -> None:
    # Whoever subscribes after it was published has missed it, and no client can be sure to come
    # before. One that comes in time is rare on a busy machine only; nobody may ever see two.
    for _ in range(20):
        states = _states_from_the_start(start_kernel())
        assert states.count("starting") <= 1
        if "starting" in states:
            assert states[0] == "starting"
            return
    pytest.fail("none of 20 kernels was seen to publish `starting`")


def _states_from_the_start(kernel: Kernel) -> list[str]:
    """Run a cell; return all states that a subscriber hears of who knocks every millisecond."""
    session = kernel.new_session()
    with kernel.context.socket(zmq.SUB) as subscriber:
        subscriber.reconnect_ivl = 1
        subscriber.rcvtimeo = PATIENCE * 1000
        subscriber.subscribe(b"")
        subscriber.connect(kernel.url("iopub"))
        last = kernel.connect().execute("1")
        last.ok()
        states = []
        while True:
            _, frames = session.feed_identities(subscriber.recv_multipart())
            message = session.deserialize(frames)
            if message["header"]["msg_type"] == "status":
                states.append(message["content"]["execution_state"])
                if message["parent_header"].get("msg_id") == last.id and states[-1] == "idle":
                    return states


# Heartbeat


def test_the_heart_beats_while_the_main_shell_is_busy(kernel: Kernel, client: Client) -> None:
    cell = client.execute("import threading; gate = threading.Event(); print('in'); gate.wait()")
    cell.wait_published("stream", "in")
    heart = kernel.socket("hb")
    for beat in (b"ping", b"", b"\x00\xff" * 1000):
        heart.send(beat)
        assert heart.recv() == beat
    client.execute("gate.set()", subshell=client.create_subshell()).ok()
    cell.ok()


# Signatures


def _frames(session: Session, type_: str) -> tuple[str, list[bytes]]:
    message = session.msg(type_, content={})
    return message["header"]["msg_id"], session.serialize(message)


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_message_with_a_wrong_signature_is_ignored(
    kernel: Kernel, client: Client, channel: str
) -> None:
    socket = kernel.socket(channel, identity=b"mallory")
    forged_id, forged = _frames(Session(key=b"guessed"), "kernel_info_request")
    unsigned_id, unsigned = _frames(Session(key=b""), "kernel_info_request")
    session = kernel.new_session()
    good_id, good = _frames(session, "kernel_info_request")
    for frames in (forged, unsigned, good):
        socket.send_multipart(frames)
    # One connection keeps its order: had one of the others been answered, that answer came first.
    _, reply = session.feed_identities(socket.recv_multipart())
    assert session.deserialize(reply)["parent_header"]["msg_id"] == good_id
    client.wait_for(lambda m: m.parent_id == good_id and m.state == "idle", "idle")
    assert not {forged_id, unsigned_id} & {m.parent_id for m in client.memory}


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_replayed_message_is_ignored(kernel: Kernel, client: Client, channel: str) -> None:
    socket = kernel.socket(channel, identity=b"mallory")
    session = kernel.new_session()
    first_id, first = _frames(session, "kernel_info_request")
    second_id, second = _frames(session, "kernel_info_request")
    for frames in (first, first, second):
        socket.send_multipart(frames)
    answered = []
    for _ in range(2):
        _, reply = session.feed_identities(socket.recv_multipart())
        answered.append(session.deserialize(reply)["parent_header"]["msg_id"])
    # Requests are handled concurrently: the order of the two replies is free, their number is not.
    assert sorted(answered) == sorted([first_id, second_id])
    client.wait_for(lambda m: m.parent_id == second_id and m.state == "idle", "idle")
    client.wait_for(lambda m: m.parent_id == first_id and m.state == "idle", "idle")
    assert [m.state for m in client.memory if m.parent_id == first_id].count("busy") == 1


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"no delimiter at all"],
        [b"<IDS|MSG>"],
        [b"<IDS|MSG>", b"", b"{}", b"{}"],
        [b"<IDS|MSG>", b"00", b"{}", b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>", b"\xff\xfe", b"\xff", b"[", b"null", b"\x00"],
    ],
    ids=["empty", "no-delimiter", "only-delimiter", "too-short", "bad-signature", "not-json"],
)
def test_garbage_does_no_harm(
    kernel: Kernel, client: Client, channel: str, frames: list[bytes]
) -> None:
    socket = kernel.socket(channel, identity=b"noise")
    socket.send_multipart(frames)
    session = kernel.new_session()
    if channel != "stdin":
        # What follows on the same connection proves that the kernel got past the garbage.
        good_id, good = _frames(session, "kernel_info_request")
        socket.send_multipart(good)
        _, reply = session.feed_identities(socket.recv_multipart())
        assert session.deserialize(reply)["parent_header"]["msg_id"] == good_id
    cell = client.execute("input()")
    client.answer(cell.wait_input_request(), "still here")
    assert cell.result() == "'still here'"


@pytest.mark.parametrize("part", ["header", "parent_header", "metadata", "content"])
def test_a_signed_message_that_is_no_jupyter_message_does_no_harm(
    kernel: Kernel, client: Client, part: str
) -> None:
    session = kernel.new_session()
    message = session.msg("kernel_info_request", content={})
    parts = [message["header"], message["parent_header"], message["metadata"], message["content"]]
    packed = [session.pack(it) for it in parts]
    for garbage in (b"[1, 2]", b"{", b"\xff\xff", json.dumps({"msg_id": 7}).encode()):
        broken = list(packed)
        broken[["header", "parent_header", "metadata", "content"].index(part)] = garbage
        client.sockets["shell"].send_multipart([b"<IDS|MSG>", session.sign(broken), *broken])
    client.request("kernel_info_request").ok()
