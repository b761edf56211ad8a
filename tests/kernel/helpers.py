"""A kernel whose cells are Python functions of the test, and a client that speaks to its sockets.

The kernel runs in the test's own process and loop (`open_kernel`), the client is four sockets in
that loop. So a test can let a cell and itself wait for each other, with a `Flag`, and never sleeps.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import trio
import zmq

import trio_subshells as ts
from trio_subshells.kernel import RunningKernel, open_kernel
from trio_subshells.sockets import Context, Socket, SocketOptions, open_context
from trio_subshells.wire import Channel, ConnectionInfo, Message, WireSession

HANG = 60
"""Seconds; nothing here takes a tenth of that, so what does hangs."""

CellFunction = Callable[[ts.Cell], Awaitable[None] | None]


class Flag:
    """An event between threads: set anywhere, awaited in any trio loop, or blocked on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flag = threading.Event()
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def set(self) -> None:
        with self._lock:
            self._flag.set()
            waiting, self._waiting = self._waiting, []
        for token, event in waiting:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

    def is_set(self) -> bool:
        return self._flag.is_set()

    async def wait(self) -> None:
        event = trio.Event()
        with self._lock:
            if self._flag.is_set():
                event.set()
            else:
                self._waiting.append((trio.lowlevel.current_trio_token(), event))
        await event.wait()

    def block(self) -> None:
        """Wait as a C call does that knows nothing of interrupts."""
        assert self._flag.wait(HANG)


class CellsKernel(ts.Kernel):
    """Its language consists of the names of functions: those that `cell` was told of."""

    implementation = "cells"
    implementation_version = "1.0"
    banner = "Cells"
    language_info = ts.LanguageInfo(name="cells")
    subshells = True

    def __init__(self) -> None:
        self.functions: dict[str, CellFunction] = {}

    def cell(self, function: CellFunction) -> CellFunction:
        """Decorate a function to make its name executable."""
        self.functions[function.__name__] = function  # type: ignore[attr-defined]
        return function

    async def execute(self, cell: ts.Cell) -> None:
        result = self.functions[cell.code](cell) if cell.code else None
        if inspect.isawaitable(result):
            await result


class Exchange:
    """A request, and all that came back for it so far."""

    def __init__(self, message: Message, channel: str) -> None:
        self.message = message
        self.channel = channel
        self.replies: list[Message] = []
        self.published: list[Message] = []
        self._news = trio.lowlevel.ParkingLot()

    @property
    def id(self) -> str:
        return self.message.header.msg_id

    def add(self, message: Message, channel: str) -> None:
        (self.published if channel == "iopub" else self.replies).append(message)
        self._news.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.park()

    async def reply(self) -> Message:
        await self.until(lambda: bool(self.replies))
        return self.replies[0]

    async def wait_published(self, msg_type: str, **content: object) -> Message:
        """Wait until such a message is published for this request, with this in its content."""
        found: list[Message] = []

        def look() -> bool:
            found[:] = [
                each
                for each in self.published
                if each.header.msg_type == msg_type and content.items() <= each.content.items()
            ]
            return bool(found)

        await self.until(look)
        return found[0]

    async def busy(self) -> None:
        await self.wait_published("status", execution_state="busy")

    async def idle(self) -> None:
        await self.wait_published("status", execution_state="idle")

    async def done(self) -> dict[str, Any]:
        """Wait for reply and idle; return the reply's content. Check the form of all that came."""
        reply = await self.reply()
        await self.idle()
        assert len(self.replies) == 1
        states = [
            each.content["execution_state"]
            for each in self.published
            if each.header.msg_type == "status"
        ]
        assert states == ["busy", "idle"]
        assert self.published[0].header.msg_type == self.published[-1].header.msg_type == "status"
        expected = self.message.header.msg_type.removesuffix("_request") + "_reply"
        assert reply.header.msg_type == expected
        content = reply.content
        if content["status"] == "error":
            assert isinstance(content["ename"], str)
            assert isinstance(content["evalue"], str)
            assert all(isinstance(line, str) for line in content["traceback"])
        return content

    def outputs(self) -> list[tuple[str, dict[str, Any]]]:
        """What was published but for busy and idle: types and contents."""
        return [
            (each.header.msg_type, each.content)
            for each in self.published
            if each.header.msg_type != "status"
        ]

    def types(self) -> list[str]:
        """The types of what was published but for busy and idle."""
        return [msg_type for msg_type, _ in self.outputs()]

    def text(self, stream: str = "stdout") -> str:
        """All that was written to a stream."""
        return "".join(
            content["text"]
            for msg_type, content in self.outputs()
            if msg_type == "stream" and content["name"] == stream
        )


class Client:
    """The sockets of one client: shell, control and stdin under one identity, and iopub."""

    def __init__(self, context: Context, connection: ConnectionInfo, identity: bytes) -> None:
        self.session = WireSession(
            connection.key, signature_scheme=connection.signature_scheme, username="client"
        )
        self._receiver = self.session.receiver()
        self.sockets: dict[Channel, Socket] = {}
        options: SocketOptions = {"ipv6": True, "linger": 0}
        if connection.curve_publickey is not None and connection.curve_secretkey is not None:
            options["curve_serverkey"] = connection.curve_publickey
            options["curve_publickey"] = connection.curve_publickey
            options["curve_secretkey"] = connection.curve_secretkey
        for channel in ("shell", "control", "stdin"):
            socket = context.socket(zmq.DEALER, name=channel, identity=identity, **options)
            self.sockets[channel] = socket
        self.sockets["iopub"] = context.socket(zmq.SUB, name="iopub", subscribe=b"", **options)
        self._connection = connection
        for channel in ("shell", "control", "stdin"):
            self.sockets[channel].connect(connection.url(channel))
        self._exchanges: dict[str, Exchange] = {}
        self.strays: list[Message] = []
        """Published for nobody here: what has no parent, or that of another client."""
        self.welcomed = trio.Event()
        self._prompts_in, self.prompts = trio.open_memory_channel[Message](100)

    async def listen(self) -> None:
        """Connect to iopub, and wait to be welcomed there."""
        self.sockets["iopub"].connect(self._connection.url("iopub"))
        await self.welcomed.wait()

    async def read(self, channel: Channel) -> None:
        while True:
            message = self._receiver.receive(await self.sockets[channel].receive()).open()
            if message.header.msg_type == "iopub_welcome":
                self.welcomed.set()
            elif channel == "stdin":
                await self._prompts_in.send(message)
            elif message.parent_header and message.parent_header.msg_id in self._exchanges:
                self._exchanges[message.parent_header.msg_id].add(message, channel)
            else:
                self.strays.append(message)

    def request(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        *,
        channel: Channel = "shell",
        subshell_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Exchange:
        """Send a request."""
        message = self.session.message(
            msg_type, content, subshell_id=subshell_id, metadata=metadata
        )
        exchange = self._exchanges[message.header.msg_id] = Exchange(message, channel)
        self.sockets[channel].send_nowait(self.session.serialize_message(message))
        return exchange

    def execute(self, code: str, *, subshell_id: str | None = None, **content: Any) -> Exchange:
        """Send an ``execute_request``."""
        return self.request("execute_request", {"code": code, **content}, subshell_id=subshell_id)

    def control(self, msg_type: str, **content: Any) -> Exchange:
        """Send a request on the control channel."""
        return self.request(msg_type, content, channel="control")

    def answer(self, prompt: Message, value: str, *, parent: bool = True) -> None:
        """Answer an ``input_request``; without `parent` as jupyter_client does."""
        self.sockets["stdin"].send_nowait(
            self.session.serialize(
                "input_reply",
                {"status": "ok", "value": value},
                parent=prompt.header if parent else None,
            )
        )

    async def create_subshell(self) -> str:
        content = await self.control("create_subshell_request").done()
        assert content["status"] == "ok", content
        subshell_id = content["subshell_id"]
        assert isinstance(subshell_id, str)
        return subshell_id


@asynccontextmanager
async def open_client(
    connection: ConnectionInfo | None, *, identity: bytes = b"client", listens: bool = True
) -> AsyncIterator[Client]:
    """A client of a kernel, which has been welcomed on iopub if it listens there."""
    assert connection is not None
    with open_context() as context:
        client = Client(context, connection, identity)
        try:
            async with trio.open_nursery() as nursery:
                for channel in client.sockets:
                    nursery.start_soon(client.read, channel)
                if listens:
                    await client.listen()
                yield client
                nursery.cancel_scope.cancel()
        finally:  # not before: a reader that was just woken reads once more
            for socket in client.sockets.values():
                socket.close()


@attrs.frozen
class Served:
    """A kernel that runs, and a client of it."""

    running: RunningKernel
    client: Client


@asynccontextmanager
async def served(
    kernel: ts.Kernel, connection: ConnectionInfo | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Run a kernel at real sockets, with a client; fail if it takes forever."""
    with trio.fail_after(HANG):
        async with (
            open_kernel(kernel, connection or ConnectionInfo.local(), **options) as running,
            open_client(running.connection) as client,
        ):
            yield Served(running, client)
