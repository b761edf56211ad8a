"""The simulated ground of a kernel: sockets without ZMQ, whose messages travel by decision.

What is sent on a *line* (from one socket to another) arrives there, in its order, some time later:
each arrival is a happening of its own, so the messages of different lines overtake each other as
the schedule wants it. What arrives waits in an `Inbox` and wakes its receiver; a client needs no
step of its own to read it.

A ROUTER without a route for a message drops it, as ZMQ's does; a client that has stopped reading
has room for so many replies, and no more.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import trio

from ..actors import Transport, TrioTransport
from ..kernel._limits import DESCRIPTORS
from ..sockets import Subscription
from ..wire import Channel
from ._client import HandingSocket, NumberedFrames
from ._loops import wake
from ._simulation import SimulatedThread, Simulation, Turn

if TYPE_CHECKING:
    from ._client import Client

MOST_UNREAD: Final = 10_000
"""Messages that may wait for a socket that isn't read."""


MAIN_THREAD: Final = "kernel"
"""The name of the thread of a simulated kernel's main shell, which takes no descriptors."""


class Line:
    """Carries messages from one socket to another, in order, by decision.

    Args:
        network: that it is a part of.
        name: for people: ``client > shell``.
        arrived: called with each message, when it arrives.
    """

    def __init__(self, network: Network, name: str, arrived: Callable[[Any], object]) -> None:
        self._network = network
        self._simulation = network.simulation
        self.name = name
        self._arrived = arrived
        network.lines.append(self)
        self._under_way: deque[Any] = deque()
        self._next: Turn | None = None
        self._numbers = itertools.count(1)

    def send(self, message: Any) -> None:
        """Put a message onto the line."""
        self._under_way.append(message)
        if self._next is None:
            self._prepare()

    def _prepare(self) -> None:
        faults = self._simulation.faults
        if faults is not None and faults.is_held(self):
            return
        number = next(self._numbers)
        self._next = self._simulation.happening(None, f"{self.name} {number}", self._arrive)
        self._simulation.add(self._next)

    def look(self) -> None:
        """Whether it is held may have changed."""
        if self._next is not None:
            self._simulation.remove(self._next)
            self._next = None
        if self._under_way:
            self._prepare()

    def _arrive(self) -> None:
        message = self._under_way.popleft()
        self._next = None
        if self._under_way:
            self._prepare()
        self._arrived(message)
        if self._simulation.faults is not None:
            self._simulation.faults.delivered(self)

    def cut(self) -> None:
        """Lose what is under way, and what will be sent."""
        if self._next is not None:
            self._simulation.remove(self._next)
            self._next = None
        self._under_way.clear()
        self._arrived = lambda message: None
        if self in self._network.lines:
            self._network.lines.remove(self)

    def __len__(self) -> int:
        return len(self._under_way)


class Inbox:
    """What has arrived at a socket, for the simulated thread that opened it.

    Whoever waits is woken at once, as a loop is by a descriptor.

    Args:
        simulation: that it belongs to.
        name: the socket's, for people.
    """

    def __init__(self, simulation: Simulation, name: str) -> None:
        self._simulation = simulation
        self._name = name
        self._thread = simulation.thread
        self._messages: deque[Any] = deque()
        self._waiter: trio.lowlevel.Task | None = None
        self._reader: Callable[[Any], object] | None = None
        self._reading: Turn | None = None
        self._closed = False

    def put(self, message: Any) -> None:
        """A message has arrived."""
        if self._closed:
            return
        self._messages.append(message)
        if self._reader is not None:
            self._enter_and_hand_over()
        else:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            wake(waiter)

    async def receive(self) -> Any:
        """Wait for the next message. A checkpoint; cancelled, none was taken."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._messages:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not self._messages:
            if self._closed:
                raise _closed()
            if self._waiter is not None:
                raise trio.BusyResourceError("another task waits for this socket already")
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        return self._messages.popleft()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED

    def receive_nowait(self) -> Any:
        """The next message, or `trio.WouldBlock`."""
        if self._closed:
            raise _closed()
        if not self._messages:
            raise trio.WouldBlock
        return self._messages.popleft()

    async def read(self, reader: Callable[[Any], object]) -> None:
        """Have each message handed to a function of the thread's as it arrives, until cancelled.

        That isn't a step of anybody's: a client that is slow to read is one whose messages are slow
        to arrive. But while synchronous code blocks the thread, it waits.
        """
        self._reader = reader
        try:
            self._hand_over()
            await trio.sleep_forever()
        finally:
            self._reader = None

    def stop(self) -> None:
        """Hand over nothing more, also before `read` has noticed that it was cancelled."""
        self._reader = None

    def _hand_over(self) -> None:
        """Hand over what is there, now or when the thread isn't blocked any more."""
        simulation, thread = self._simulation, self._thread
        if thread is not None and thread.blocked is not None:
            if self._reading is None:
                self._reading = simulation.happening(
                    None, f"{thread.name} reads {self._name}", self._read
                )
                thread.held.append(self._reading)
            return
        while self._messages and self._reader is not None:
            try:
                self._reader(self._messages.popleft())
            except Exception as error:
                simulation.fail(error)

    def _read(self) -> None:
        self._reading = None
        self._enter_and_hand_over()

    def _enter_and_hand_over(self) -> None:
        if self._thread is not None and self._thread.blocked is None:
            self._simulation.enter(self._thread)
        self._hand_over()

    def __len__(self) -> int:
        return len(self._messages)

    def close(self) -> None:
        """Drop what is there, and wake who waits."""
        self._closed = True
        self._reader = None
        self._messages.clear()
        self._wake()


def _no_descriptors(purpose: str) -> OSError:
    return OSError(errno.EMFILE, f"no room for {purpose}: too many open files (simulated)")


def _lose(frames: list[bytes]) -> None:
    """The kernel has ended; a socket connects all the same, and waits for another."""


def _closed() -> Exception:
    return trio.ClosedResourceError("this socket was closed")


class SimulatedRouter:
    """A ROUTER of the simulated kernel."""

    def __init__(self, network: Network, channel: Channel) -> None:
        self._network = network
        self.channel = channel
        self.inbox = Inbox(network.simulation, channel)
        self.clients: dict[bytes, Plug] = {}

    def bind(self, url: str) -> str:
        """Let clients connect."""
        self._network.routers[self.channel] = self
        return url

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""
        frames: list[bytes] = await self.inbox.receive()
        self._network.taken.append(frames)
        return frames

    def receive_nowait(self) -> list[bytes]:
        """The next message, or `trio.WouldBlock`."""
        frames: list[bytes] = self.inbox.receive_nowait()
        self._network.taken.append(frames)
        return frames

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send to the client that the first frame names; to nobody, if it has gone."""
        plug = self.clients.get(bytes(frames[0]))
        if plug is None:
            return
        if len(plug.inbox) + len(plug.line) >= self._network.most_unread:
            raise trio.WouldBlock
        plug.line.send(self._network.numbered(frames[1:]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inbox.close()
        self._network.routers.pop(self.channel, None)


class Plug:
    """A client's end of a connection."""

    def __init__(self, network: Network, name: str) -> None:
        self.inbox = Inbox(network.simulation, name)
        self.line = Line(network, name, self.inbox.put)


class SimulatedPublisher:
    """Publishes into the simulated iopub."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._line = Line(network, name, network.distribute)
        self._subscriptions = Inbox(network.simulation, f"subscriptions of {name}")

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send; never blocks."""
        self._line.send(self._network.numbered(frames))

    async def receive_subscription(self) -> Subscription:
        """Wait for the next client to subscribe."""
        subscription: Subscription = await self._subscriptions.receive()
        return subscription

    def notify(self, subscription: Subscription) -> None:
        """Somebody has subscribed."""
        self._subscriptions.put(subscription)

    def close(self) -> None:
        """What has been published still arrives."""
        self._subscriptions.close()


@attrs.frozen
class SimulatedIOPub:
    """The simulated iopub device."""

    url: str
    publisher_url: str
    publisher: SimulatedPublisher


@attrs.frozen
class SimulatedHeartbeat:
    """It answers always: in reality, it is native."""

    url: str


class _NoRefusals:
    async def receive(self) -> str:
        await trio.sleep_forever()
        raise AssertionError("unreachable")


@attrs.frozen(eq=False)
class Met:
    """A client that is connected.

    Attributes:
        client: the one.
        scope: around the block that uses it.
        token: of its loop.
    """

    client: Client
    scope: trio.CancelScope
    token: trio.lowlevel.TrioToken


class Network:
    """The simulated ground: see the module's first lines, and `trio_subshells.kernel._ground`.

    Args:
        simulation: decides.
        descriptors: how many file descriptors there are for subshells in threads, each of which
            takes some and gives them back; infinitely many by default.
        most_unread: how many messages may wait for a client that doesn't read.
    """

    def __init__(
        self,
        simulation: Simulation,
        *,
        descriptors: float = math.inf,
        most_unread: int = MOST_UNREAD,
    ) -> None:
        self.simulation = simulation
        self.descriptors = descriptors
        self.most_unread = most_unread
        self.lines: list[Line] = []
        self.taken: list[list[bytes]] = []
        """Every message that the kernel has taken from a ROUTER."""
        self.exhausted = 0
        """How many faults there are now that leave no descriptor."""
        self.met: dict[str, Met] = {}
        """The clients that are connected, by name."""
        self._open = 0
        self.routers: dict[Channel, SimulatedRouter] = {}
        self.subscribers: dict[bytes, Plug] = {}
        self._iopub: SimulatedPublisher | None = None
        self._publishers = itertools.count(1)
        self._numbers = itertools.count(1)

    def numbered(self, frames: Sequence[bytes]) -> NumberedFrames:
        """What the kernel sends, as its next message."""
        return NumberedFrames(map(bytes, frames), next(self._numbers))

    @contextmanager
    def met_by(self, met: Met) -> Iterator[None]:
        """A client is connected, for the time of the block."""
        name = met.client.name
        self.met[name] = met
        try:
            yield
        finally:
            if self.met.get(name) is met:
                del self.met[name]

    # ----------------------------------------------------------------------- for the kernel

    @property
    def transport(self) -> Transport:
        """Rings through trio's tokens, which are simulated with the loops."""
        return TrioTransport()

    def make_raiser(self) -> SimulatedRaiser:
        """Strikes where the thread blocks."""
        thread = self.simulation.thread
        assert thread is not None
        return SimulatedRaiser(self.simulation, thread)

    def check_room(self, needed: int, purpose: str) -> None:
        """Raise `OSError` if there aren't as many descriptors."""
        if self.exhausted or self._open + needed > self.descriptors:
            raise _no_descriptors(purpose)

    def have_descriptors(self) -> None:
        """A fault that has left none is over."""
        self.exhausted = max(0, self.exhausted - 1)

    @contextmanager
    def open_router(self, channel: Channel, **_: Any) -> Iterator[SimulatedRouter]:
        """A channel's ROUTER."""
        with SimulatedRouter(self, channel) as router:
            yield router

    @contextmanager
    def open_refusals(self, router: object) -> Iterator[_NoRefusals]:
        """Nobody is refused."""
        yield _NoRefusals()

    @asynccontextmanager
    async def open_iopub(self, url: str, **_: Any) -> AsyncIterator[SimulatedIOPub]:
        """What distributes output."""
        self._iopub = SimulatedPublisher(self, "kernel > iopub")
        try:
            yield SimulatedIOPub(url, "simulated://iopub", self._iopub)
        finally:
            self._iopub.close()

    @asynccontextmanager
    async def open_heartbeat(self, url: str, **_: Any) -> AsyncIterator[SimulatedHeartbeat]:
        """What answers heartbeats."""
        yield SimulatedHeartbeat(url)

    @asynccontextmanager
    async def open_publisher(self, publisher_url: str) -> AsyncIterator[SimulatedPublisher]:
        """A publisher for the calling thread."""
        thread = self.simulation.thread
        assert thread is not None
        needed = 0 if thread.name == MAIN_THREAD else DESCRIPTORS
        if needed and (self.exhausted or self._open + needed > self.descriptors):
            raise _no_descriptors("a publisher")
        self._open += needed
        try:
            publisher = SimulatedPublisher(self, f"{thread.name} > iopub{next(self._publishers)}")
            await trio.lowlevel.checkpoint()
            try:
                yield publisher
            finally:
                publisher.close()
        finally:
            self._open -= needed

    def distribute(self, frames: list[bytes]) -> None:
        """What has been published arrives at those who have subscribed."""
        for plug in list(self.subscribers.values()):  # one may vanish because of it
            if len(plug.inbox) < self.most_unread:
                plug.inbox.put(frames)

    # ---------------------------------------------------------------------- for its clients

    def connect(self, channel: Channel, identity: bytes) -> SimulatedSocket:
        """A client's socket, for the calling thread."""
        return SimulatedSocket(self, channel, identity)

    def subscribed(self, plug: Plug, identity: bytes) -> None:
        """A subscription has arrived: from here on, it gets what is published."""
        self.subscribers[identity] = plug
        if self._iopub is not None:
            self._iopub.notify(Subscription(b"", subscribed=True))


class SimulatedSocket(HandingSocket):
    """A client's socket."""

    def __init__(self, network: Network, channel: Channel, identity: bytes) -> None:
        self._network = network
        self._channel = channel
        self._identity = identity
        name = identity.decode()
        self._plug = Plug(network, f"{channel} > {name}")
        if channel == "iopub":
            self._line = Line(
                network,
                f"{name} > iopub",
                lambda plug: network.subscribed(plug, identity),
            )
            self._line.send(self._plug)
        else:
            router = network.routers.get(channel)
            if router is not None:
                router.clients[identity] = self._plug
            arrived = _lose if router is None else router.inbox.put
            self._line = Line(network, f"{name} > {channel}", arrived)

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send; never blocks."""
        self._line.send([self._identity, *frames])

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""
        frames: list[bytes] = await self._plug.inbox.receive()
        return frames

    async def read(self, reader: Callable[[list[bytes]], object]) -> None:
        """Have each message handed to a function, until cancelled."""
        await self._plug.inbox.read(reader)

    def stop(self) -> None:
        """Hand over nothing more, until `read` is called again."""
        self._plug.inbox.stop()

    def close(self) -> None:
        """The client has gone: what was on its way to it is lost."""
        self._plug.line.cut()
        self._plug.inbox.close()
        if self._channel == "iopub":
            self._network.subscribers.pop(self._identity, None)
        else:
            with suppress(KeyError):
                del self._network.routers[self._channel].clients[self._identity]


class SimulatedInterrupt(KeyboardInterrupt):
    """What simulated code is struck with: nobody has pressed Ctrl-C."""


SimulatedInterrupt.__name__ = SimulatedInterrupt.__qualname__ = "KeyboardInterrupt"


class SimulatedRaiser:
    """Raises an exception in a simulated thread that is blocked by synchronous code.

    It arrives late, by decision; where a thread isn't blocked, no user's code is on its stack.
    """

    def __init__(self, simulation: Simulation, thread: SimulatedThread) -> None:
        self._simulation = simulation
        self._thread = thread

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        """Raise it at the place where the thread is blocked; returns whether it is."""
        if error is KeyboardInterrupt:
            error = SimulatedInterrupt
        return self._simulation.raise_in(self._thread, error)

    @property
    def missed(self) -> bool:
        """Never: what it was told to raise is raised, or withdrawn."""
        return False

    def strike_on(self) -> None:
        """Nothing: it is on its way until it has arrived."""

    def withdraw(self) -> None:
        """Take back what hasn't been raised yet."""
        self._simulation.withdraw(self._thread)
