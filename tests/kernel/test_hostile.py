"""Hostile input, over the kernel's real sockets: dropped or answered, counted, no harm to others.

A bad message is followed by a good one on the same socket: the answer to that says that the bad one
has been dealt with.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import zmq

import trio_subshells as ts
from trio_subshells.kernel import DropReason, _channels, _control, _shell
from trio_subshells.kernel._ground import ZMQGround
from trio_subshells.sockets import Socket, open_context
from trio_subshells.testing import Client, Exchange
from trio_subshells.wire import Channel, MalformedReason, Message, WireSession

from .helpers import CellsKernel, Flag, Served, local_connection, open_client, served

CHANNELS: tuple[Channel, ...] = ("shell", "control")
SIGNATURE, HEADER, PARENT, METADATA, CONTENT = range(1, 6)  # where they are in a client's frames
DEEP = b"[" * 100_000 + b"]" * 100_000


class Willing(CellsKernel):
    """Takes everything that is well formed."""

    async def execute(self, cell: ts.Cell) -> None:
        if cell.code in self.functions:
            await super().execute(cell)

    async def evaluate(self, cell: ts.Cell, expression: str) -> dict[str, Any]:
        return {}


def signed(session: WireSession, frames: list[bytes]) -> list[bytes]:
    frames[SIGNATURE] = session._signer.sign(frames[HEADER : CONTENT + 1])
    return frames


def send_frames(client: Client, channel: Channel, message: Message, **frames: bytes) -> Exchange:
    """Send a message in which some frames are others, rightly signed."""
    whole = client.session.serialize_message(message)
    for name, frame in frames.items():
        whole[globals()[name]] = frame
    return client.send(message, channel=channel, frames=signed(client.session, whole))


async def drops(at: Served) -> dict[tuple[str, str], int]:
    dropped = (await at.running.statistics()).dropped
    return {(each.channel, str(each.reason)): each.count for each in dropped}


async def check_alive(client: Client) -> None:
    """Both channels answer, as always."""
    assert (await client.execute("")).status == "ok"
    assert (await client.control("kernel_info_request")).status == "ok"


async def test_who_comes_back_under_its_old_identity_is_answered() -> None:
    """Though nobody has noticed yet that its old connection is dead."""
    async with served(Willing()) as at, AsyncExitStack() as stack:
        assert at.running.connection is not None
        context = stack.enter_context(open_context())
        for _ in range(2):
            socket = stack.enter_context(context.socket(zmq.DEALER, identity=b"the same"))
            socket.connect(at.running.connection.url("shell"))
            request = at.client.session.message("kernel_info_request", {})
            await socket.send(at.client.session.serialize_message(request))
            reply = at.client.session.receiver().receive(await socket.receive()).open()
            assert reply.parent_header is not None
            assert reply.parent_header.msg_id == request.header.msg_id


async def test_what_was_heard_on_one_channel_is_a_replay_on_another() -> None:
    async with served(Willing()) as at:
        frames = at.client.session.serialize("kernel_info_request", {})
        for channel in CHANNELS:
            at.client.send_raw(channel, frames)
            await check_alive(at.client)
        assert await drops(at) == {(CHANNELS[1], "replayed"): 1}


async def test_all_that_is_lost_on_iopub_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[Callable[[int, str], None]] = []
    open_iopub = ZMQGround.open_iopub

    def open_and_lose(
        ground: ZMQGround, url: str, *, on_loss: Callable[[int, str], None], **options: Any
    ) -> Any:
        losses.append(on_loss)
        return open_iopub(ground, url, on_loss=on_loss, **options)

    monkeypatch.setattr(ZMQGround, "open_iopub", open_and_lose)
    async with served(Willing()) as at:
        (lose,) = losses
        at.running._parts.io_token.run_sync_soon(lose, 3, "output for a client that doesn't read")
        while not await drops(at):
            pass
        assert await drops(at) == {("iopub", "not_read"): 3}


# ---------------------------------------------------------------------------- what is no message


def bad_messages(session: WireSession) -> Iterator[tuple[MalformedReason, list[bytes]]]:
    def good() -> list[bytes]:
        return session.serialize("execute_request", {"code": ""})

    def changed(index: int, frame: bytes) -> list[bytes]:
        frames = good()
        frames[index] = frame
        return frames if index == SIGNATURE else signed(session, frames)

    header = json.loads(good()[HEADER])
    yield MalformedReason.NO_DELIMITER, [b""]
    yield MalformedReason.NO_DELIMITER, [b"", b"", b""]
    yield MalformedReason.NO_DELIMITER, [b"<IDS|MSG>\0", *good()[1:]]
    yield MalformedReason.NO_DELIMITER, [b"<ids|msg>", *good()[1:]]
    yield MalformedReason.NO_DELIMITER, [b"x"] * 10_000
    for length in range(1, 6):
        yield MalformedReason.MISSING_FRAMES, good()[:length]
    for signature in (b"", b"0" * 64, b"\xff" * 64, b"0" * 1_000_000):
        yield MalformedReason.BAD_SIGNATURE, changed(SIGNATURE, signature)
    yield MalformedReason.BAD_SIGNATURE, WireSession(b"a guess").serialize("execute_request", {})
    yield MalformedReason.BAD_SIGNATURE, [*good()[:CONTENT], b'{"code": "1"}']
    for frame in (b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b'"text"', DEEP, b"{}"):
        yield MalformedReason.BAD_HEADER, changed(HEADER, frame)
    for field, value in itertools.product(
        ("msg_id", "msg_type", "subshell_id"), (None, "", 7, True, [], {}, [None], {"a": 1})
    ):
        if field == "subshell_id" and value in (None, ""):
            continue
        frame = json.dumps({**header, field: value}).encode()
        yield MalformedReason.BAD_HEADER, changed(HEADER, frame)
    large = json.dumps({**header, "username": "x" * 2_000_000}).encode()
    yield MalformedReason.BAD_HEADER, changed(HEADER, large)
    yield MalformedReason.BAD_HEADER, changed(PARENT, large)


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
async def test_what_is_no_message_is_dropped_and_counted(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    expected: dict[tuple[str, str], int] = {}
    async with served(Willing()) as at:
        for reason, frames in bad_messages(at.client.session):
            at.client.send_raw(channel, frames)
            key = (channel, str(reason))
            expected[key] = expected.get(key, 0) + 1
        frames = at.client.session.serialize(
            "no_such_type" if channel != "stdin" else "input_reply"
        )
        for _ in range(3):
            at.client.send_raw(channel, frames)
        expected[channel, "replayed"] = 2
        if channel == "stdin":
            expected["stdin", "bad_content"] = 1
            kernel = at.running
            while (await drops(at)).get(("stdin", "replayed"), 0) < 2:
                await kernel.main.execute("")  # it has no answer to wait for
        await check_alive(at.client)
        assert await drops(at) == expected
        assert [each for each in at.client.strays if each.parent_header is None] == [
            each for each in at.client.strays if each.content.get("execution_state") == "starting"
        ]
        lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert len(lines) == len(expected)


async def test_who_has_no_key_to_a_connection_gets_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(Willing()) as at:
        assert at.running.connection is not None
        with open_context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.connect(at.running.connection.url("shell"))
            session = WireSession(b"")
            for _ in range(2000):
                await stranger.send(session.serialize("execute_request", {"code": ""}))
            while (await drops(at)).get(("shell", "bad_signature"), 0) < 2000:
                await check_alive(at.client)
            with pytest.raises(trio.WouldBlock):
                stranger.receive_nowait()
    lines = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(lines) == 2  # the first, and a sum at the end
    assert "isn't signed" in lines[0]
    assert "1999 more" in lines[1]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "msg_type", ["execute_reply", "kernel_info_reply", "status", "stream", "input_request"]
)
async def test_what_only_kernels_send_is_dropped(channel: Channel, msg_type: str) -> None:
    async with served(Willing()) as at:
        exchange = at.client.request(msg_type, {"status": "ok"}, channel=channel)
        await check_alive(at.client)
        assert exchange.replies == exchange.published == []
        assert await drops(at) == {(channel, "not_a_request"): 1}


async def test_what_belongs_on_another_channel_is_dropped() -> None:
    async with served(Willing()) as at:
        exchanges = [
            at.client.request("input_reply", {"value": ""}, channel="shell"),
            at.client.request("input_reply", {"value": ""}, channel="control"),
            at.client.request("comm_msg", {"comm_id": "c"}, channel="control"),
            at.client.request("execute_request", {"code": "", "value": ""}, channel="stdin"),
        ]
        while sum((await drops(at)).values()) < 4:
            await check_alive(at.client)
        assert all(each.replies == each.published == [] for each in exchanges)
        assert await drops(at) == {
            ("shell", "not_a_request"): 1,
            ("control", "not_a_request"): 2,
            ("stdin", "not_a_request"): 1,
        }


# ------------------------------------------------------------------------- what is wrong inside


REQUESTS: dict[Channel, dict[str, dict[str, Any]]] = {
    "shell": {
        "execute_request": {
            "code": "",
            "silent": False,
            "store_history": True,
            "user_expressions": {"a": "b"},
            "allow_stdin": False,
            "stop_on_error": False,
        },
        "complete_request": {"code": "", "cursor_pos": 0},
        "inspect_request": {"code": "", "cursor_pos": 0, "detail_level": 0},
        "is_complete_request": {"code": ""},
        "history_request": {
            "hist_access_type": "range",
            "output": False,
            "raw": True,
            "session": 0,
            "start": 0,
            "stop": 1,
            "n": 1,
            "pattern": "*",
            "unique": False,
        },
        "comm_info_request": {"target_name": "t"},
        "kernel_info_request": {},
        "connect_request": {},
        "comm_open": {"comm_id": "c", "target_name": "t", "data": {}},
        "comm_msg": {"comm_id": "c", "data": {}},
        "comm_close": {"comm_id": "c", "data": {}},
        "no_such_request": {"a": 1},
    },
    "control": {
        "interrupt_request": {"subshell_id": None},
        "create_subshell_request": {},
        "delete_subshell_request": {"subshell_id": "nobody", "timeout": 1},
        "list_subshell_request": {},
        "kernel_info_request": {},
        "debug_request": {"command": "debugInfo", "seq": 1, "arguments": {}},
        "usage_request": {},
        "no_such_request": {"a": 1},
    },
}

WRONG = (None, True, 7, -1, 1.5, 1e300, 2**80, "text", "\ud800", [], [[]], {}, {"": None}, {"a": 1})


async def check_answered(exchange: Exchange) -> None:
    """One reply, unless none is due, between busy and idle."""
    if exchange.message.header.msg_type.startswith("comm_") and not (
        exchange.message.header.msg_type.endswith("_request")
    ):
        await exchange.idle()
        assert exchange.replies == []
    else:
        await exchange.done()


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_wrong_type_in_any_field_is_answered(channel: Channel) -> None:
    async with served(Willing()) as at:
        for msg_type, content in REQUESTS[channel].items():
            exchanges = [at.client.request(msg_type, content, channel=channel)]
            for field, value in itertools.product([*content, "subshell_id", "unknown"], WRONG):
                changed = {**content, field: value}
                message = at.client.session.message(msg_type)
                exchanges.append(
                    send_frames(at.client, channel, message, CONTENT=json.dumps(changed).encode())
                )
            for field in content:
                less = {key: value for key, value in content.items() if key != field}
                exchanges.append(at.client.request(msg_type, less, channel=channel))
            exchanges += [  # the metadata's fields that mean something
                at.client.request(msg_type, content, channel=channel, metadata={"timeout": value})
                for value in WRONG
            ]
            for exchange in exchanges:
                await check_answered(exchange)
        for subshell_id in await at.running.subshells():
            if subshell_id is not None:
                await at.running.delete_subshell(subshell_id)
        await check_alive(at.client)


FRAMES = (b"", b"{", b"\xff", b"[]", b"7", b'"\xed\xa0\x80"', DEEP, b'{"a": ' + DEEP + b"}", b"nul")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("frame", ["PARENT", "METADATA", "CONTENT"])
async def test_a_frame_that_cant_be_read_is_answered(channel: Channel, frame: str) -> None:
    async with served(Willing()) as at:
        for msg_type, content in REQUESTS[channel].items():
            exchanges = []
            for text in FRAMES:
                message = at.client.session.message(msg_type, content)
                exchanges.append(send_frames(at.client, channel, message, **{frame: text}))
            for exchange in exchanges:
                await check_answered(exchange)
        await check_alive(at.client)


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_shutdown_request_that_cant_be_read_shuts_nothing_down(channel: Channel) -> None:
    async with served(Willing()) as at:
        for value in ("yes", 1, [], {}):
            exchange = at.client.request("shutdown_request", {"restart": value}, channel=channel)
            assert (await exchange.done()).ename == "MalformedMessage"
        await check_alive(at.client)


async def test_a_header_may_say_anything_else() -> None:
    """What isn't needed is taken as it comes, and comes back with the reply."""
    async with served(Willing()) as at:
        for field, value in itertools.product(("session", "username", "date", "new"), WRONG):
            message = at.client.session.message("kernel_info_request")
            header = {**json.loads(message.header.raw), field: value}
            exchange = send_frames(at.client, "shell", message, HEADER=json.dumps(header).encode())
            assert (await exchange.done()).status == "ok"


@pytest.mark.parametrize("frame", ["PARENT", "METADATA", "CONTENT"])
async def test_an_answer_that_cant_be_read_is_dropped(frame: str) -> None:
    """And who has asked goes on to wait for another."""
    willing = Willing()

    @willing.cell
    async def ask(cell: ts.Cell) -> None:
        cell.stdout(await cell.input("?"))

    async with served(willing) as at:
        cell = at.client.execute_soon("ask")
        prompt = await at.client.prompt()
        for text in FRAMES:
            message = at.client.session.message("input_reply", {"value": ""}, parent=prompt.header)
            send_frames(at.client, "stdin", message, **{frame: text})
        at.client.answer(prompt, "the answer")
        assert (await cell.done()).status == "ok"
        assert cell.text() == "the answer"


async def test_the_handlers_of_wrong_comm_messages_count_too() -> None:
    async with served(Willing()) as at:
        exchange = at.client.request("comm_msg", {"comm_id": 5})
        await exchange.idle()
        await check_alive(at.client)
        assert await drops(at) == {("shell", "bad_content"): 1}


async def test_comm_messages_for_a_subshell_that_ends_become_idle() -> None:
    """Those that wait there, and that which is being handled: each busy once, and idle once."""
    handling = Flag()

    class Slow(Willing):
        async def comm_message(self, message: ts.CommMessage) -> None:
            handling.set()
            await trio.sleep_forever()

    async with served(Slow()) as at:
        subshell_id = await at.client.create_subshell()
        comms = [
            at.client.request("comm_msg", {"comm_id": "c"}, subshell=subshell_id) for _ in range(5)
        ]
        await handling.wait()
        await check_alive(at.client)
        await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        for comm in comms:
            await comm.idle()
        await check_alive(at.client)
        for comm in comms:
            assert [each.content["execution_state"] for each in comm.published] == ["busy", "idle"]


# ------------------------------------------------------------------------------------- too much


async def test_a_frame_of_100_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends it with a wrong signature: it is dropped. Who has the key may."""
    async with served(Willing()) as at:
        session = at.client.session
        frames = session.serialize("execute_request", {"code": ""})
        frames[CONTENT] = b" " * 100_000_000
        at.client.send_raw("shell", frames)
        at.client.send_raw("shell", [b"x" * 100_000_000])
        message = session.message("comm_msg", {"comm_id": "c"}, buffers=[b"x" * 100_000_000])
        exchange = at.client.send(message)
        await check_alive(at.client)
        await exchange.idle()
        assert await drops(at) == {("shell", "bad_signature"): 1, ("shell", "no_delimiter"): 1}


async def test_large_messages_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose signature another thread verifies: an error aborts what came after, no less."""
    monkeypatch.setattr(_channels, "LARGE_MESSAGE", 0)
    kernel = Willing()
    ran: list[str] = []
    for name in ("one", "two"):
        kernel.functions[name] = lambda cell: ran.append(cell.code)

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        ran.append("fail")
        raise ts.CellError("Failed", "on purpose")

    async with served(kernel) as at:
        for _ in range(20):
            ran.clear()
            codes = ["one", "two", "fail", "one", "two"]
            exchanges = [at.client.execute_soon(code) for code in codes]
            statuses = [(await each.done()).status for each in exchanges]
            # What has come to the kernel when it fails is aborted; what has not, is served.
            assert statuses[:3] == ["ok", "ok", "error"]
            served_later = [
                code for code, s in zip(codes[3:], statuses[3:], strict=True) if s == "ok"
            ]
            assert ran == ["one", "two", "fail", *served_later]
            assert statuses[3:] in (["aborted", "aborted"], ["aborted", "ok"], ["ok", "ok"])


async def test_what_comes_while_a_large_one_is_verified_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A subshell that asks for what is there is told of it only after that one."""
    kernel = Willing()
    failing, go = Flag(), Flag()
    ran: list[str] = []
    kernel.functions["one"] = lambda cell: ran.append("one")

    @kernel.cell
    async def fail(cell: ts.Cell) -> None:
        failing.set()
        await go.wait()
        raise ts.CellError("Failed", "on purpose")

    async with served(kernel) as at:
        first = at.client.execute_soon("fail")
        await failing.wait()
        verifying, verify = Flag(), Flag()
        receiver = type(at.client._receiver)
        real = receiver.receive

        def slow(self: Any, frames: Any) -> Any:
            if sum(map(len, frames)) >= _channels.LARGE_MESSAGE:
                verifying.set()
                verify.block()
            return real(self, frames)

        monkeypatch.setattr(receiver, "receive", slow)
        message = at.client.session.message(
            "execute_request", {"code": "one"}, buffers=[bytes(_channels.LARGE_MESSAGE)]
        )
        large = at.client.send(message)
        small = at.client.execute_soon("one")
        await verifying.wait()
        await check_answered(at.client.control_soon("kernel_info_request"))  # nobody else waits
        go.set()
        await check_answered(at.client.control_soon("kernel_info_request"))
        assert first.replies == []  # what it aborts isn't known yet
        verify.set()
        assert (await first.done()).status == "error"
        assert (await large.done()).status == "aborted"
        await small.done()
        assert len(ran) <= 1


@pytest.mark.parametrize("largest", ["messages", "bytes"])
async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, largest: str) -> None:
    kernel = Willing()
    go = Flag()
    kernel.functions["wait"] = lambda cell: go.wait()
    if largest == "messages":
        monkeypatch.setattr(_shell, "MOST_PENDING", 5)
        code = ""
    else:
        monkeypatch.setattr(_shell, "MOST_PENDING_BYTES", 50_000)
        code = "#" * 10_000
    async with served(kernel) as at:
        waiting = [
            at.client.execute_soon("wait"),
            *(at.client.execute_soon(code) for _ in range(100)),
        ]
        refused = (await waiting[-1].done()).content
        assert refused["ename"] == "TooManyRequests"
        assert "wait in the main shell already" in refused["evalue"]
        comm = at.client.request("comm_msg", {"comm_id": "c"})
        await comm.idle()
        assert await drops(at) == {("shell", "too_many"): 1}
        other = await at.client.create_subshell()  # somewhere else, there is room
        assert (await at.client.execute("", subshell=other)).status == "ok"
        go.set()
        statuses = [(await each.done()).status for each in waiting]
        assert statuses[0] == statuses[4] == "ok"
        assert statuses.count("error") in (94, 95, 96)
        for _ in range(20):  # what was taken was let go of
            await check_alive(at.client)
            comm = at.client.request("comm_msg", {"comm_id": "c"})
            await comm.idle()


async def test_control_requests_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_control, "MOST_IN_PROGRESS", 3)
    kernel = Willing()
    started, go = Flag(), Flag()

    @kernel.cell
    def block(cell: ts.Cell) -> None:
        started.set()
        go.block()

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        at.client.execute_soon("block", subshell=subshell_id)
        await started.wait()
        deletes = [
            at.client.control_soon("delete_subshell_request", subshell_id=subshell_id, timeout=1e9)
            for _ in range(3)
        ]
        for _ in range(3):  # which don't count any more when they have been refused
            refused = (await at.client.control("list_subshell_request")).content
            assert refused["ename"] == "TooManyRequests"
        go.set()
        for delete in deletes:
            await delete.done()
        listed = (await at.client.control("list_subshell_request")).content
        assert listed == {"status": "ok", "subshell_id": []}


async def test_who_asks_too_much_can_still_shut_the_kernel_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served(Willing()) as at:
        monkeypatch.setattr(_control, "MOST_IN_PROGRESS", 0)
        assert (await at.client.control("list_subshell_request")).ename == "TooManyRequests"
        assert (await at.client.control("shutdown_request")).status == "ok"


async def test_a_frame_that_is_larger_than_allowed_costs_its_sender_the_connection() -> None:
    class Small(Willing):
        largest_frame = 10_000

    async with (
        served(Small()) as at,
        open_client(at.running.connection, "greedy") as greedy,
    ):
        greedy.execute_soon("x" * 20_000)
        await check_alive(at.client)
        # Its socket connects again by itself.
        while True:
            with trio.move_on_after(1):
                await check_alive(greedy)
                break
        assert (await at.client.execute("x" * 5_000)).status == "ok"


async def test_a_flood_on_one_channel_starves_no_other() -> None:
    """For as long as it goes on, control and stdin and heartbeat serve as ever."""
    kernel = Willing()

    @kernel.cell
    async def ask(cell: ts.Cell) -> None:
        cell.stdout(await cell.input())

    async with served(kernel) as at:
        assert at.running.connection is not None
        url = at.running.connection.url("shell")
        session = at.client.session
        floods = {"garbage": 0, "valid": 0}

        async def flood(socket: Socket, name: str, make: Callable[[], list[bytes]]) -> None:
            socket.connect(url)
            while True:
                await socket.send(make())
                floods[name] += 1

        with open_context() as context, ExitStack() as stack:
            sockets = [stack.enter_context(context.socket(zmq.DEALER, linger=0)) for _ in floods]
            heart = stack.enter_context(context.socket(zmq.REQ))
            heart.connect(at.running.connection.url("hb"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, sockets[0], "garbage", lambda: [b"x" * 100])
                nursery.start_soon(
                    flood, sockets[1], "valid", lambda: session.serialize("sing_request", {})
                )
                for number in range(4):
                    listed = (await at.client.control("list_subshell_request")).content
                    assert listed["status"] == "ok"
                    exchange = at.client.execute_soon("ask")
                    prompt = await at.client.prompt()
                    at.client.answer(prompt, f"{number}")
                    await exchange.done()
                    assert exchange.text() == f"{number}"
                    await heart.send([b"ping"])
                    assert await heart.receive() == [b"ping"]
                nursery.cancel_scope.cancel()
        assert all(floods.values())


# -------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # TLS
        b"\xff\0\0\0\0\0\0\0\x01\x7f",  # the greeting of ZMQ, and no more of it
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL" + b"\0" * 48 + b"\x04\xff",
        b"\x01\0" * 500,
        b"\xff" * 10_000,
    ],
    ids=["port scan", "HTTP", "TLS", "greeting", "handshake", "ZMTP 1.0", "bytes"],
)
async def test_strangers_at_the_ports(said: bytes) -> None:
    async with served(Willing()) as at:
        assert at.running.connection is not None
        channels: tuple[Channel, ...] = ("shell", "control", "stdin", "iopub", "hb")
        for _, channel in itertools.product(range(20), channels):
            address = urlsplit(at.running.connection.url(channel))
            stream = await trio.open_tcp_stream(address.hostname or "", address.port or 0)
            async with stream:
                try:
                    await stream.send_all(said)
                except trio.BrokenResourceError:
                    continue  # it was shown the door: as well
        await check_alive(at.client)


async def test_garbage_on_the_heartbeat() -> None:
    async with served(Willing()) as at:
        assert at.running.connection is not None
        with open_context() as context:
            for garbage in ([b"x" * 1_000_000], [b""] * 1000, [b"\xff", b"<IDS|MSG>"]):
                with context.socket(zmq.DEALER, linger=0) as stranger:
                    stranger.connect(at.running.connection.url("hb"))
                    await stranger.send(garbage)
                    with context.socket(zmq.REQ) as heart:
                        heart.connect(at.running.connection.url("hb"))
                        await heart.send([b"ping"])
                        assert await heart.receive() == [b"ping"]


async def test_garbage_on_iopub() -> None:
    """A client that publishes, subscribes to nonsense, and changes its mind a thousand times."""
    async with served(Willing()) as at:
        assert at.running.connection is not None
        with open_context() as context, context.socket(zmq.XSUB, linger=0) as stranger:
            stranger.connect(at.running.connection.url("iopub"))
            for number in range(1000):
                await stranger.send([b"\1%d" % number])
                await stranger.send([b"\1same"])
                await stranger.send([b"\0same"])
                await stranger.send([b"\1\xff\xfe"])
                await stranger.send([b"neither", b"nor"])
            await check_alive(at.client)
            async with open_client(at.running.connection, "late") as late:
                await check_alive(late)


async def test_ten_thousand_idents() -> None:
    """Those of proxies: each reply finds its way, and no client is remembered."""
    async with served(Willing()) as at:
        session = at.client.session
        assert at.running.connection is not None
        with open_context() as context, context.socket(zmq.DEALER) as proxy:
            proxy.connect(at.running.connection.url("shell"))
            receiver = session.receiver()
            for first in range(0, 10_000, 500):
                idents = {b"%d" % number for number in range(first, first + 500)}
                for ident in idents:
                    await proxy.send(
                        session.serialize("kernel_info_request", {}, idents=[ident, b"", ident])
                    )
                for _ in range(500):
                    reply = receiver.receive(await proxy.receive())
                    assert reply.header.msg_type == "kernel_info_reply"
                    ident, empty, again = reply.idents
                    assert (empty, again) == (b"", ident)
                    idents.remove(ident)
        assert await drops(at) == {}


async def test_clients_that_come_and_go() -> None:
    """Each with an identity of its own, some in the middle of a request."""
    async with served(Willing()) as at:
        assert at.running.connection is not None
        session = at.client.session
        with open_context() as context:
            for number in range(300):
                with context.socket(zmq.DEALER, identity=b"%d" % number, linger=0) as client:
                    client.connect(at.running.connection.url("shell"))
                    await client.send(session.serialize("execute_request", {"code": ""}))
                    if number % 2:
                        await client.receive()
        await check_alive(at.client)


async def test_no_connection_no_drops() -> None:
    async with ts.open_kernel(Willing(), local_connection()) as running:
        assert (await running.statistics()).dropped == ()


def test_reasons_have_names_of_their_own() -> None:
    names: Mapping[str, object] = {**MalformedReason.__members__, **DropReason.__members__}
    assert len(names) == len(MalformedReason) + len(DropReason)
