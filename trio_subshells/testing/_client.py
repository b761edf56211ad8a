"""A client of a kernel under test: the same for a simulated kernel and for a real one.

It has a socket for each channel, one identity for all of them, and it remembers everything that
comes, by the request that it belongs to (`Exchange`). It belongs to the trio loop that opened it.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from ..kernel._open import one_as_itself
from ..wire import Channel, Message, WireSession

CLIENT_CHANNELS: Final[tuple[Channel, ...]] = ("iopub", "shell", "control", "stdin")


class NumberedFrames(list[bytes]):
    """A message's frames, and its number among all that a simulated kernel has sent."""

    __slots__ = ("number",)

    def __init__(self, frames: Iterable[bytes], number: int) -> None:
        super().__init__(frames)
        self.number = number


class ClientSocket(Protocol):
    """One channel's end at the client."""

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send."""

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""

    def close(self) -> None:
        """Close it."""


class HandingSocket(ABC):
    """A `ClientSocket` that needs nobody to receive from it."""

    @abstractmethod
    async def read(self, reader: Callable[[list[bytes]], object]) -> None:
        """Have each message handed to a function, until cancelled."""

    @abstractmethod
    def stop(self) -> None:
        """Hand over nothing more; `read` is about to be cancelled."""


_numbers: Final = itertools.count(1)


def _now() -> float:
    return time.monotonic()  # looked up each time, as the simulator replaces it


@attrs.frozen(order=True)
class Moment:
    """When something happened at a client: of two, also at different clients, the later is greater.

    Attributes:
        number: of all moments, in their order.
        time: in seconds; virtual ones in the simulator.
    """

    number: int = attrs.field(factory=_numbers.__next__)
    time: float = attrs.field(factory=_now, order=False)


@attrs.frozen
class Reply:
    """What a request was answered.

    Attributes:
        status: ``ok``, ``error`` or ``aborted``.
        content: all of it.
        ename: of an error.
        evalue: of an error.
    """

    status: str
    content: Mapping[str, Any]

    @property
    def ename(self) -> str | None:
        """The error's name; None if it isn't one."""
        return self.content.get("ename")

    @property
    def evalue(self) -> str | None:
        """What the error says; None if it isn't one."""
        return self.content.get("evalue")


class Exchange:
    """A request, and everything that came back for it so far.

    Attributes:
        message: the request.
        channel: that it was sent on.
        asked: when it was sent.
        replies: on that channel; there should be one.
        published: on iopub, in its order.
    """

    def __init__(self, message: Message, channel: Channel) -> None:
        self.message = message
        self.channel = channel
        self.asked = Moment()
        self.replies: list[Message] = []
        self.published: list[Message] = []
        self._waiting: list[tuple[Callable[[], bool], trio.Event]] = []

    @property
    def id(self) -> str:
        """The request's ``msg_id``."""
        return self.message.header.msg_id

    def add(self, message: Message, channel: Channel) -> None:
        """Something has come."""
        (self.published if channel == "iopub" else self.replies).append(message)
        for condition, fulfilled in self._waiting:
            if _may_hold(condition):
                fulfilled.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has come fulfils a condition."""
        while not condition():
            waiting = (condition, trio.Event())
            self._waiting.append(waiting)
            try:
                await waiting[1].wait()
            finally:
                self._waiting.remove(waiting)

    async def reply(self) -> Reply:
        """Wait for the reply."""
        await self.until(lambda: bool(self.replies))
        content = self.replies[0].content
        return Reply(str(content.get("status")), content)

    async def busy(self) -> None:
        """Wait until the kernel is busy with it."""
        await self.until(lambda: "busy" in self.states)

    async def idle(self) -> None:
        """Wait until the kernel is idle again."""
        await self.until(lambda: "idle" in self.states)

    async def done(self) -> Reply:
        """Wait for the reply and for idle."""
        await self.until(lambda: bool(self.replies) and "idle" in self.states)
        return await self.reply()

    async def output(self, msg_type: str, **content: object) -> Message:
        """Wait for the first message of a type on iopub, with this in its content."""

        def found() -> Iterator[Message]:
            return (
                each
                for each in self.published
                if each.header.msg_type == msg_type and content.items() <= each.content.items()
            )

        await self.until(lambda: any(found()))
        return next(found())

    @property
    def states(self) -> list[str]:
        """``busy``, ``idle``: what was published of it, in order."""
        return [
            each.content["execution_state"]
            for each in self.published
            if each.header.msg_type == "status"
        ]

    @property
    def types(self) -> list[str]:
        """The types of everything that was published, in order."""
        return [each.header.msg_type for each in self.published]

    @property
    def outputs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What was published but for busy and idle: types and contents, in order."""
        return [
            (each.header.msg_type, each.content)
            for each in self.published
            if each.header.msg_type != "status"
        ]

    def text(self, stream: str = "stdout") -> str:
        """All that was written to a stream."""
        return "".join(
            each.content["text"]
            for each in self.published
            if each.header.msg_type == "stream" and each.content["name"] == stream
        )

    def __str__(self) -> str:
        header = self.message.header
        code = self.message.content.get("code")
        what = header.msg_type.removesuffix("_request")
        what = what if code is None else f"{what} {code!r}"
        return what if header.subshell_id is None else f"{what} (for {header.subshell_id[-6:]})"

    def __repr__(self) -> str:
        return f"<Exchange {self.message.header.msg_type} {self.id[-8:]}>"


def _may_hold(condition: Callable[[], bool]) -> bool:
    """Whether a condition holds, or raises: that is the affair of who waits for it."""
    try:
        return condition()
    except Exception:
        return True


def _nothing() -> None:
    """Whoever waited for the start knows of it."""


class Client:
    """See the module's first lines. Made by `simulated_kernel`, `real_kernel` and their `connect`.

    Attributes:
        exchanges: everything that it has asked, in order.
        heard: everything on iopub, in order.
        prompts: every ``input_request``, in order.
        received: when each message has come, by its id; and on which channel.
        sent: how many messages the kernel had sent until then, that one included, by its id. Known
            in the simulator only.
        unread: channels that it reads no more.
        strays: messages on iopub that are of nobody's request here.
        second_replies: replies on shell and control to nothing that was asked.
        welcomed: set once the kernel has greeted it on iopub.
        late: None; or, if it has asked before it listened, from when on it has heard everything.
        vanished: whether it has gone.
    """

    def __init__(
        self, session: WireSession, open_socket: Callable[[Channel], ClientSocket]
    ) -> None:
        self.session = session
        self._receiver = session.receiver()
        self._open_socket = open_socket
        self._sockets: dict[Channel, ClientSocket] = {}
        self._readers: dict[Channel, trio.CancelScope] = {}
        self.exchanges: list[Exchange] = []
        self._by_id: dict[str, Exchange] = {}
        self.heard: list[Message] = []
        self.strays: list[Message] = []
        self.prompts: list[Message] = []
        self.received: dict[str, tuple[Moment, Channel]] = {}
        self.sent: dict[str, int] = {}
        self.unread: set[Channel] = set()
        self.second_replies: list[Message] = []
        self.welcomed = trio.Event()
        self.late: Moment | None = None
        self._nursery: trio.Nursery
        self.vanished = False
        self._read_on: dict[Channel, trio.Event] = {}
        self._taken = 0
        self._after: list[tuple[int, Callable[[], object]]] = []
        self._prompts_in, self._prompts = trio.open_memory_channel[Message](1000)

    @asynccontextmanager
    async def connected(self, *, listens: bool = True) -> AsyncIterator[Client]:
        """Connected to every channel, and welcomed on iopub.

        Args:
            listens: whether it connects to iopub now; or else, when `listen` is called.
        """
        with one_as_itself():
            async with self._connected(listens):
                yield self

    @asynccontextmanager
    async def _connected(self, listens: bool) -> AsyncIterator[None]:
        async with trio.open_nursery() as self._nursery:
            try:
                for channel in CLIENT_CHANNELS:
                    if channel != "iopub" or listens:
                        await self._connect(channel)
                if listens:
                    await self.welcomed.wait()
                else:
                    self.unread.add("iopub")
                yield
            finally:
                self._nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    # not before: a reader that was just woken reads once more
                    await trio.lowlevel.checkpoint()
                self._close()

    async def listen(self) -> None:
        """Connect to iopub, and wait to be welcomed there."""
        await self._connect("iopub")
        await self.welcomed.wait()
        if self.exchanges:
            self.late = Moment()
        else:  # it has missed nothing
            self.unread.discard("iopub")

    async def _connect(self, channel: Channel) -> None:
        self._sockets[channel] = self._open_socket(channel)
        await self._nursery.start(self._read, channel)

    async def _read(self, channel: Channel, task_status: trio.TaskStatus[None]) -> None:
        started: Callable[[], object] = task_status.started
        while True:
            with trio.CancelScope() as self._readers[channel]:
                started()
                await self._read_to_the_end(channel)
                return
            started = _nothing
            await self._read_on[channel].wait()
            del self._read_on[channel]
            self.unread.discard(channel)

    async def _read_to_the_end(self, channel: Channel) -> None:
        socket = self._sockets[channel]
        if isinstance(socket, HandingSocket):
            await socket.read(partial(self._receive, channel))
        while True:
            try:
                frames = await socket.receive()
            except trio.ClosedResourceError:
                return
            self._receive(channel, frames)

    def _receive(self, channel: Channel, frames: list[bytes]) -> None:
        message = self._receiver.receive(frames).open()
        if isinstance(frames, NumberedFrames):
            self.sent[message.header.msg_id] = frames.number
        self._take(channel, message)

    def _take(self, channel: Channel, message: Message) -> None:
        self.received[message.header.msg_id] = Moment(), channel
        if channel == "iopub":
            self.heard.append(message)
        parent = message.parent_header
        exchange = self._by_id.get(parent.msg_id) if parent is not None else None
        if message.header.msg_type == "iopub_welcome":
            self.welcomed.set()
        elif channel == "stdin":
            self.prompts.append(message)
            self._prompts_in.send_nowait(message)
        elif exchange is not None:
            exchange.add(message, channel)
        elif channel == "iopub":
            self.strays.append(message)
        else:
            self.second_replies.append(message)
        self._taken += 1
        for due in [each for each in self._after if each[0] <= self._taken]:
            self._after.remove(due)
            due[1]()

    @property
    def name(self) -> str:
        """For people."""
        return self.session.username

    # ----------------------------------------------------------------------------- requests

    def request(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        *,
        channel: Channel = "shell",
        subshell: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Exchange:
        """Send a request; what comes back is found in the `Exchange`.

        Args:
            msg_type: ``execute_request``, ...
            content: of the request.
            channel: ``shell`` or ``control``.
            subshell: the id of the subshell that it is for; None for the main shell.
            metadata: of the request.
        """
        message = self.session.message(
            msg_type, dict(content or {}), subshell_id=subshell, metadata=dict(metadata or {})
        )
        return self.send(message, channel=channel)

    def send(
        self,
        message: Message,
        *,
        channel: Channel = "shell",
        frames: Sequence[bytes] | None = None,
    ) -> Exchange:
        """Send a request that its `session` has made.

        Args:
            message: the request.
            channel: ``shell`` or ``control``.
            frames: what to send in its place, for what no well-behaved client sends.
        """
        exchange = Exchange(message, channel)
        self.exchanges.append(exchange)
        self._by_id[exchange.id] = exchange
        self.send_raw(channel, frames or self.session.serialize_message(message))
        return exchange

    def send_raw(self, channel: Channel, frames: Sequence[bytes]) -> None:
        """Send frames as they are, for what no well-behaved client sends."""
        self._sockets[channel].send_nowait(frames)

    def execute_soon(
        self,
        code: str,
        *,
        subshell: str | None = None,
        timeout: float | None = None,
        **content: Any,
    ) -> Exchange:
        """Send an ``execute_request``, and don't wait.

        Args:
            code: the cell.
            subshell: where; None for the main shell.
            timeout: in seconds, that the cell has; see the extension in `docs/kernel.md`.
            content: more of the request's content: ``silent``, ``stop_on_error``...
        """
        metadata = {} if timeout is None else {"timeout": timeout}
        return self.request(
            "execute_request", {"code": code, **content}, subshell=subshell, metadata=metadata
        )

    async def execute(self, code: str, *, subshell: str | None = None, **content: Any) -> Reply:
        """Execute a cell, and wait for its reply and for idle."""
        return await self.execute_soon(code, subshell=subshell, **content).done()

    def control_soon(self, msg_type: str, **content: Any) -> Exchange:
        """Send a request on the control channel, and don't wait."""
        return self.request(msg_type, content, channel="control")

    async def control(self, msg_type: str, **content: Any) -> Reply:
        """Send a request on the control channel; wait for its reply and for idle."""
        return await self.control_soon(msg_type, **content).done()

    async def create_subshell(self) -> str:
        """Create a subshell, and return its id."""
        reply = await self.control("create_subshell_request")
        if reply.status != "ok":
            raise AssertionError(f"no subshell: {reply.content}")
        return str(reply.content["subshell_id"])

    async def prompt(self) -> Message:
        """Wait for the next ``input_request``."""
        return await self._prompts.receive()

    def answer(self, prompt: Message, value: str, *, parent: bool = True) -> None:
        """Answer an ``input_request``.

        Args:
            prompt: the request.
            value: what the user has typed.
            parent: whether the reply names it, as the protocol wants it and not every client does.
        """
        self._sockets["stdin"].send_nowait(
            self.session.serialize(
                "input_reply",
                {"status": "ok", "value": value},
                parent=prompt.header if parent else None,
            )
        )

    # ------------------------------------------------------------------------- what it suffers

    def stop_reading(self, channel: Channel) -> None:
        """Read no more from a channel; the connection stays."""
        if channel not in self._read_on:
            self.unread.add(channel)
            self._read_on[channel] = trio.Event()
            self._readers[channel].cancel()
            socket = self._sockets[channel]
            if isinstance(socket, HandingSocket):
                socket.stop()

    def read_on(self, channel: Channel) -> None:
        """Read again from a channel, after `stop_reading`; first what has come meanwhile."""
        if channel in self._read_on:
            self._read_on[channel].set()

    @property
    def reading(self) -> list[Channel]:
        """The channels that it reads from."""
        return [each for each in self._readers if each not in self.unread]

    def when_taken(self, messages: int, do: Callable[[], object]) -> None:
        """Do something when so many more messages have come; 0: now."""
        if messages:
            self._after.append((self._taken + messages, do))
        else:
            do()

    def vanish(self) -> None:
        """Go, without a word. What was on its way to it is lost."""
        self.vanished = True
        self.unread.update(CLIENT_CHANNELS)
        self._close()

    def _close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
