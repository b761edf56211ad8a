"""Sockets on an edge-triggered descriptor: nothing is stranded, and nobody sleeps for ever.

libzmq is simulated here, see `trio_subshells.testing._libzmq`; `trio_subshells.sockets` is as it
ships. What isn't woken is a deadlock, and what wakes itself again and again doesn't progress.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import trio
import zmq

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.kernel import open_kernel
from trio_subshells.kernel._ground import ZMQGround
from trio_subshells.sockets import (
    Context,
    InprocTransport,
    Ledger,
    Publisher,
    Socket,
    SocketsLeftOpenError,
    SubscriberLimits,
    _publisher,
    _socket,
    _subscribers,
    _transport,
    open_context,
    open_iopub_device,
    open_publisher,
)
from trio_subshells.sockets._subscribers import LOOKING_INTERVAL, Subscribers, _Connection
from trio_subshells.testing import check_protocol, explore_schedules
from trio_subshells.testing._hosted import host_kernel
from trio_subshells.testing._network import SimulatedRaiser
from trio_subshells.testing._real import RealKernel
from trio_subshells.testing._simulation import Simulation
from trio_subshells.wire import ConnectionInfo

from .lines import before_a_line
from .threads import in_threads

FEW_STEPS = 3_000


@contextlib.contextmanager
def open_pair(
    context: Context, url: str = "inproc://pair", **options: Any
) -> Iterator[tuple[Socket, Socket]]:
    """Two connected DEALERs."""
    with (
        context.socket(zmq.DEALER, name="left", **options) as left,
        context.socket(zmq.DEALER, name="right", **options) as right,
    ):
        right.connect(left.bind(url))
        yield left, right


def fill(socket: Socket) -> int:
    """Send until there is no room; how many messages went."""
    for count in itertools.count():
        try:
            socket.send_nowait([b"%d" % count])
        except trio.WouldBlock:
            return count
    raise AssertionError("unreachable")


async def answer_all(router: Socket) -> None:
    """Receive requests, and answer each in a task of its own."""
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(router.send, await router.receive())


# -- one loop ---------------------------------------------------------------------------------


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_requests_that_arrive_while_replies_are_sent_are_answered() -> None:
    with (
        open_context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as client,
    ):
        client.connect(router.bind("tcp://127.0.0.1:0"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, router)
            for number in range(3):
                await client.send([b"%d" % number])
            replies = [(await client.receive())[0] for _ in range(3)]
            nursery.cancel_scope.cancel()
    assert sorted(replies) == [b"0", b"1", b"2"]


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_whatever_else_is_done_strands_no_message() -> None:
    with open_context() as context, open_pair(context) as (left, right):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.receive)
            await trio.sleep(1)  # until it waits
            await left.send([b"message"])
            right.bind("inproc://another")


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_both_directions_go_on_while_both_are_full() -> None:
    received: list[bytes] = []
    tcp = "tcp://127.0.0.1:0"
    with open_context() as context, open_pair(context, tcp, sndhwm=1, rcvhwm=1) as (left, right):
        count = fill(left)

        async def echo() -> None:
            async for frames in right:
                await right.send(frames)

        async def receive() -> None:
            for _ in range(count + 2):
                received.extend(await left.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            async with trio.open_nursery() as inner:
                inner.start_soon(receive)
                for number in range(count, count + 2):
                    await left.send([b"%d" % number])
            nursery.cancel_scope.cancel()
    assert received == [b"%d" % number for number in range(count + 2)]


@explore_schedules(800, max_steps=FEW_STEPS)
async def test_a_sender_is_woken_though_a_receiver_waits() -> None:
    """There will be a message only once there was room."""
    with open_context() as context, open_pair(context, sndhwm=1, rcvhwm=1) as (left, right):
        count = fill(left)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.receive)
            await trio.sleep(1)  # until it waits
            nursery.start_soon(left.send, [b"waited"])
            await trio.lowlevel.checkpoint()
            for _ in range(count):
                right.receive_nowait()
            assert await right.receive() == [b"waited"]
            await right.send([b"message"])


@explore_schedules(400, max_steps=FEW_STEPS)
async def test_a_receiver_is_woken_though_a_sender_waits() -> None:
    """There will be room only once the message has been received."""
    tcp = "tcp://127.0.0.1:0"
    with open_context() as context, open_pair(context, tcp, sndhwm=1, rcvhwm=1) as (left, right):
        count = 0
        while more := fill(left):
            count += more
            await trio.sleep(1)  # until what could be carried has been
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send, [b"waited"])
            await trio.sleep(1)  # until it waits
            right.send_nowait([b"message"])
            assert await left.receive() == [b"message"]
            for _ in range(count + 1):
                frames = await right.receive()
            assert frames == [b"waited"]


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_who_stops_waiting_leaves_the_descriptor_to_who_goes_on() -> None:
    with open_context() as context, open_pair(context, sndhwm=1, rcvhwm=1) as (left, right):
        count = fill(left)
        received = []

        async def receive(scope: trio.CancelScope) -> None:
            with scope:
                await left.receive()

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(receive, scope)
            nursery.start_soon(left.send, [b"waited"])
            await trio.lowlevel.checkpoint()
            scope.cancel()
            for _ in range(count + 1):
                received += await right.receive()
    assert received[count:] == [b"waited"]


@contextlib.asynccontextmanager
async def a_router_with_a_slow_peer() -> AsyncIterator[tuple[Socket, Socket, Socket]]:
    """A ROUTER that has no room for one of its two peers; that one, and the other."""
    with (
        open_context() as context,
        context.socket(zmq.ROUTER, router_mandatory=True, sndhwm=1) as router,
        context.socket(zmq.DEALER, identity=b"slow", rcvhwm=1) as slow,
        context.socket(zmq.DEALER, identity=b"idle", rcvhwm=1) as idle,
    ):
        url = router.bind("inproc://router")
        for peer in (slow, idle):
            peer.connect(url)
            await peer.send([b"hello"])
            await router.receive()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                router.send_nowait([b"slow", b"x"])
        yield router, slow, idle


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_a_slow_peer_keeps_nobody_busy() -> None:
    """One task waits for room at a slow peer, one for a message, and other peers have room."""
    async with (
        a_router_with_a_slow_peer() as (router, slow, idle),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(router.send, [b"slow", b"waited"])
        nursery.start_soon(router.receive)
        await trio.sleep(1)
        while await slow.receive() != [b"waited"]:
            pass
        await idle.send([b"done"])


@explore_schedules(300, max_steps=FEW_STEPS)
async def test_a_slow_peer_holds_up_no_other() -> None:
    """It reads only once another has been heard; and then the message for it is sent at last."""
    async with (
        a_router_with_a_slow_peer() as (router, slow, idle),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(router.send, [b"slow", b"waited"])
        nursery.start_soon(idle.send, [b"message"])
        assert await router.receive() == [b"idle", b"message"]
        nursery.start_soon(router.receive)
        while await slow.receive() != [b"waited"]:
            pass
        await slow.send([b"done"])


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_messages_go_in_the_order_of_the_calls() -> None:
    """Nobody overtakes who waits for room, not even who doesn't wait."""
    called: list[bytes] = []
    received: list[bytes] = []
    with open_context() as context, open_pair(context, sndhwm=1, rcvhwm=1) as (left, right):

        async def send(frame: bytes) -> None:
            called.append(frame)
            await left.send([frame])

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(send, b"%d" % number)
            while len(received) - received.count(b"hurried") < 5:
                received += await right.receive()
                with contextlib.suppress(trio.WouldBlock):
                    left.send_nowait([b"hurried"])
                    called.append(b"hurried")
    assert received == called[: len(received)]


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_messages_come_in_their_order_to_whoever_receives() -> None:
    """To one task that waits for them, and to another that looks whether there is one."""
    sent = [b"%d" % number for number in range(4)]
    received: list[bytes] = []
    with open_context() as context, open_pair(context) as (left, right):

        async def wait() -> None:
            while True:
                received.extend(await right.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for frame in sent:
                await left.send([frame])
                with contextlib.suppress(trio.WouldBlock):
                    received.extend(right.receive_nowait())
            await trio.sleep(1)  # until there is none left to wait for
            nursery.cancel_scope.cancel()
    assert received == sent


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_a_message_is_received_or_still_there() -> None:
    with open_context() as context, open_pair(context) as (left, right):
        received: list[bytes] = []

        async def receive(scope: trio.CancelScope) -> None:
            with scope:
                while True:
                    received.extend(await right.receive())

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(receive, scope)
            for number in range(3):
                await left.send([b"%d" % number])
            scope.cancel()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                received += right.receive_nowait()
    assert received == [b"0", b"1", b"2"]


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_closing_wakes_all_who_wait() -> None:
    woken: list[str] = []
    with open_context() as context, open_pair(context, sndhwm=1, rcvhwm=1) as (left, _):
        fill(left)

        async def receive() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await left.receive()
            woken.append("receiver")

        async def send() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await left.send([b"more"])
            woken.append("sender")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            nursery.start_soon(send)
            await trio.lowlevel.checkpoint()
            left.close()
    assert sorted(woken) == ["receiver", "sender", "sender"]


def interrupts(module: ModuleType, lines: int) -> AbstractContextManager[None]:
    """A KeyboardInterrupt may strike before one of the first lines that a module runs."""

    def strike() -> None:
        raise KeyboardInterrupt

    return before_a_line(module, lines, "an interrupt strikes", strike)


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_an_interrupt_cuts_no_message() -> None:
    message = [b"begin", b"middle", b"end"]
    with open_context() as context, open_pair(context) as (left, right):
        for _ in range(2):
            with contextlib.suppress(KeyboardInterrupt), interrupts(_socket, 40):
                left.send_nowait(message)
        await left.send([b"whole"])
        received = []
        while (frames := await right.receive()) != [b"whole"]:
            received.append(frames)
    assert len(received) <= 2
    assert all(frames == message for frames in received)


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_an_interrupt_takes_no_ring_with_it() -> None:
    """Whoever was interrupted may ring again, and is heard."""
    with open_context() as context:
        transport = InprocTransport(context)
        with transport.attach():
            bell = transport.open_bell()
            for lines in (0, 20, 20):
                with contextlib.suppress(KeyboardInterrupt), interrupts(_transport, lines):
                    bell.ring()
                bell.ring()
                await bell.wait()
            bell.close()


@explore_schedules(20, max_steps=FEW_STEPS)
async def test_a_socket_is_closed_also_by_who_is_cancelled() -> None:
    with open_context() as context:  # which would tell of one that is left open
        async with trio.open_nursery() as nursery, context.socket(zmq.DEALER) as socket:
            nursery.cancel_scope.cancel()
            await socket.receive()


# -- several threads ---------------------------------------------------------------------------


class Echo(actors.Actor):
    """Answers with what it is asked."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            letter.reply(letter.message)


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_who_goes_to_sleep_while_it_is_rung_for_is_woken() -> None:
    with open_context() as context:
        transport = InprocTransport(context)
        async with actors.open_system(transport=transport) as system:
            echo = await system.spawn(Echo(), name="echo", host=actors.ThreadHost())
            for number in range(3):
                assert await echo.ask(number, timeout=math.inf) == number


class Ringer(actors.Actor):
    """Sends numbers through a channel, from its own thread, each as soon as there is room."""

    def __init__(self, channel: trio.abc.SendChannel[int], count: int) -> None:
        self._channel = channel
        self._count = count

    async def run(self, mailbox: actors.Mailbox) -> None:
        for number in range(self._count):
            await self._channel.send(number)


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_two_threads_ring_one_bell() -> None:
    with open_context() as context:
        transport = InprocTransport(context)
        send: trio.abc.SendChannel[int]
        send, receive = actors.open_channel(2, transport=transport)
        async with send, receive, actors.open_system(transport=transport) as system:
            for name in ("one", "other"):
                await system.spawn(Ringer(send, 3), name=name, host=actors.ThreadHost())
            received = [await receive.receive() for _ in range(6)]
        assert sorted(received) == [0, 0, 1, 1, 2, 2]


class Speaker(actors.Actor):
    """Publishes from a thread of its own, as soon as it can."""

    def __init__(self, context: Context, publisher_url: str) -> None:
        self._context = context
        self._url = publisher_url

    async def run(self, mailbox: actors.Mailbox) -> None:
        async with open_publisher(self._context, self._url) as publisher:
            speak(publisher, b"thread")


def speak(publisher: Publisher, who: bytes) -> None:
    for number in range(2):
        publisher.publish([b"topic", who, b"%d" % number])


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_not_even_the_first_output_of_a_new_publisher_is_lost() -> None:
    with open_context() as context:
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            with context.socket(zmq.SUB, subscribe=b"topic", linger=0) as client:
                client.connect(device.url)
                assert (await device.publisher.receive_subscription()).topic == b"topic"
                async with actors.open_system() as system:
                    speaker = Speaker(context, device.publisher_url)
                    await system.spawn(speaker, name="speaker", host=actors.ThreadHost())
                    speak(device.publisher, b"main")
                    received = [await client.receive() for _ in range(4)]
    for who in (b"main", b"thread"):
        said = [frames for frames in received if frames[1] == who]
        assert said == [[b"topic", who, b"0"], [b"topic", who, b"1"]]


@explore_schedules(100, max_steps=FEW_STEPS)
async def test_who_is_notified_hears_of_all_who_come_however_much_it_publishes() -> None:
    topics = [b"%d" % number for number in range(4)]
    with mock.patch.object(_publisher, "DRAIN_INTERVAL", 2), open_context() as context:
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:

            async def publish() -> None:
                for _ in topics:
                    speak(device.publisher, b"main")
                    await trio.sleep(1)

            with context.socket(zmq.SUB, linger=0) as client:
                client.connect(device.url)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish)
                    for topic in topics:
                        client.set(zmq.SUBSCRIBE, topic)
                        await trio.sleep(1)
                    heard = [await device.publisher.receive_subscription() for _ in topics]
    assert [each.topic for each in heard] == topics


@explore_schedules(150, max_steps=FEW_STEPS)
async def test_the_last_output_before_the_device_ends_is_not_lost() -> None:
    with open_context() as context, context.socket(zmq.SUB, subscribe=b"topic") as client:
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            client.connect(device.url)
            await device.publisher.receive_subscription()
            speak(device.publisher, b"main")
        received = [await client.receive() for _ in range(2)]
    assert received == [[b"topic", b"main", b"0"], [b"topic", b"main", b"1"]]


@explore_schedules(100, max_steps=FEW_STEPS)
async def test_a_device_that_is_cancelled_ends_as_any_other() -> None:
    """What was published is delivered."""
    with open_context() as context, context.socket(zmq.SUB, subscribe=b"topic") as client:
        with trio.CancelScope() as scope:
            async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
                client.connect(device.url)
                await device.publisher.receive_subscription()
                speak(device.publisher, b"main")
                scope.cancel()
        received = [await client.receive() for _ in range(2)]
    assert received == [[b"topic", b"main", b"0"], [b"topic", b"main", b"1"]]


class Listener(actors.Actor):
    """Waits on a socket of its own until the context ends."""

    def __init__(self, context: Context, is_open: trio.Event, told: list[str]) -> None:
        self._context = context
        self._is_open = is_open
        self._told = told
        self._token = trio.lowlevel.current_trio_token()

    async def run(self, mailbox: actors.Mailbox) -> None:
        with self._context.socket(zmq.PULL, name="forgotten") as socket:
            self._token.run_sync_soon(self._is_open.set)
            try:
                await socket.receive()
            except trio.BrokenResourceError as error:
                self._told.append(str(error))


@explore_schedules(100, max_steps=FEW_STEPS)
async def test_the_end_of_a_context_is_told_to_who_waits() -> None:
    told: list[str] = []
    is_open = trio.Event()
    async with actors.open_system() as system:
        with pytest.raises(SocketsLeftOpenError) as left_open, open_context() as context:
            listener = Listener(context, is_open, told)
            ref = await system.spawn(listener, name="listener", host=actors.ThreadHost())
            await is_open.wait()
        await ref.watch()
    assert left_open.value.names == ("forgotten",)
    assert told == ["the context of the socket 'forgotten' has ended"]


@explore_schedules(100, max_steps=FEW_STEPS, preempt=["trio_subshells.sockets._context"])
async def test_a_socket_is_opened_before_the_end_of_its_context_or_not_at_all() -> None:
    context = Context()
    opened: list[str] = []
    left: list[str] = []

    async def opens() -> None:
        try:
            socket = context.socket(zmq.PULL, name="late")
        except RuntimeError:
            return
        opened.append(socket.name)
        with socket, contextlib.suppress(trio.BrokenResourceError):
            await socket.receive()

    async def closes() -> None:
        try:
            context.close()
        except SocketsLeftOpenError as error:
            left.extend(error.names)

    await in_threads(opens=opens, closes=closes)
    assert left == opened


# -- subscribers that don't read ---------------------------------------------------------------


@explore_schedules(10)
async def test_who_was_slow_the_last_time_has_all_the_patience_again() -> None:
    lost: list[str] = []
    looks: Iterator[object] = iter(())
    ledger = Ledger(math.inf)
    subscribers = Subscribers(
        SubscriberLimits(patience=100, patience_seconds=40 * LOOKING_INTERVAL),
        ledger,
        lambda count, what: lost.append(what),
        lambda reason: None,
        is_encrypted=False,
    )
    subscribers._connections[1] = _Connection(1, ("here", "there"))

    async def is_watched(count: int) -> None:
        nonlocal looks
        looks = iter(range(count - 1))
        ledger._held = 100
        await subscribers.watch()

    def bytes_left(descriptor: int) -> int:
        if next(looks, None) is None:
            ledger._held = 0
        return 10

    def disconnect(connection: _Connection) -> bool:
        ledger._held = 0
        return True

    with mock.patch.multiple(
        _subscribers,
        _can_be_sent_to=lambda descriptor: False,
        _bytes_left=bytes_left,
        _disconnect=disconnect,
    ):
        await is_watched(30)
        await is_watched(30)
        assert not lost
        await is_watched(41)
        assert len(lost) == 1


@explore_schedules(10)
async def test_whatever_was_refused_is_told_of() -> None:
    """What was refused after the last look, too, and what is as it is being told."""
    told: list[int] = []
    ledger = Ledger(100)

    def tell(count: int, what: str) -> None:
        told.append(count)
        if len(told) == 1:
            assert ledger.refuses(5000)  # as another thread would

    subscribers = Subscribers(
        SubscriberLimits(patience=100), ledger, tell, lambda reason: None, is_encrypted=False
    )
    ledger._held = 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribers.watch)
        for _ in range(3):
            await trio.sleep(0.4 * LOOKING_INTERVAL)
            assert ledger.refuses(5000)
        ledger._held = 0
    assert sum(told) == 4


# -- a whole kernel ----------------------------------------------------------------------------


class SocketsGround(ZMQGround):
    """A kernel's real ground, but for what interrupts its threads."""

    def make_raiser(self) -> SimulatedRaiser:
        return make_raiser()


def make_raiser() -> SimulatedRaiser:
    simulation = Simulation.current
    assert simulation is not None
    assert simulation.thread is not None
    return SimulatedRaiser(simulation, simulation.thread)


@contextlib.contextmanager
def open_ground() -> Iterator[SocketsGround]:
    with open_context() as context:
        yield SocketsGround(context)


class Repeater(ts.Kernel):
    implementation = "repeater"
    language_info = ts.LanguageInfo(name="repeater")
    subshells = True

    async def execute(self, cell: ts.Cell) -> None:
        cell.stdout(cell.code)
        await trio.sleep(1)
        cell.stdout(cell.code)


@explore_schedules(40, max_steps=30_000)
async def test_a_kernel_does_on_its_own_sockets_what_it_promises() -> None:
    kernel = functools.partial(
        open_kernel,
        Repeater(),
        ConnectionInfo.local(),
        make_raiser=make_raiser,
        open_ground=open_ground,
    )
    async with host_kernel(kernel) as hosted:
        under_test = RealKernel(hosted)
        async with under_test.connect("client") as under_test.client:
            client = under_test.client
            subshell = await under_test.create_subshell()
            cells = [
                client.execute_soon("a"),
                client.execute_soon("b", subshell=subshell),
                client.execute_soon("c", subshell=subshell),
            ]
            assert [(await cell.done()).status for cell in cells] == ["ok"] * 3
            assert [cell.text() for cell in cells] == ["aa", "bb", "cc"]
            assert (await under_test.delete_subshell(subshell)).status == "ok"
            check_protocol(client)
