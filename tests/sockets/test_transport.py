"""Bells on inproc sockets: no ring is lost, and nothing is left over; and what is built on them."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
import trio.testing
import zmq

from trio_subshells import actors
from trio_subshells.sockets import (
    Context,
    InprocBell,
    InprocTransport,
    open_channel,
    open_context,
)
from trio_subshells.sockets._transport import _Ringer

HANG = 60


@pytest.fixture
def transport(context: Context) -> InprocTransport:
    return InprocTransport(context)


def in_a_thread(function: Callable[[], object]) -> None:
    """Run something in a thread of its own, and wait for it."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(HANG)
    assert not thread.is_alive()


def ring_attached(transport: InprocTransport, *bells: InprocBell) -> None:
    with transport.attach():
        for bell in bells:
            bell.ring()


def test_it_is_a_transport(transport: InprocTransport) -> None:
    as_transport: actors.Transport = transport  # for mypy
    as_bell: Callable[[], actors.Bell] = as_transport.open_bell
    assert as_bell


@pytest.mark.parametrize("attached", [True, False])
async def test_a_ring_wakes_the_waiter(transport: InprocTransport, attached: bool) -> None:
    bell = transport.open_bell()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait)
            await trio.testing.wait_all_tasks_blocked()
            in_a_thread(lambda: ring_attached(transport, bell) if attached else bell.ring())
    bell.close()


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("attached", [True, False])
async def test_rings_before_the_wait_are_remembered_as_one(
    transport: InprocTransport, attached: bool, heard: bool
) -> None:
    bell = transport.open_bell()

    def ring() -> None:
        for _ in range(10):
            ring_attached(transport, bell, bell) if attached else bell.ring()

    in_a_thread(ring)
    if heard:
        await trio.testing.wait_all_tasks_blocked()  # the loop has done what it was asked to
    with trio.fail_after(HANG):
        await bell.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert bell._waiting  # for the next one
        in_a_thread(ring)
    bell.close()


async def test_its_own_loop_can_ring_it(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    with trio.fail_after(HANG):
        for attached in (True, False):
            if attached:
                with transport.attach():
                    bell.ring()
                    await bell.wait()
            else:
                bell.ring()
                await bell.wait()
    bell.close()


async def test_waiting_is_a_checkpoint_even_when_it_has_rung(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    in_a_thread(lambda: ring_attached(transport, bell))
    with trio.testing.assert_checkpoints():
        await bell.wait()
    bell.close()


async def test_a_wait_under_a_cancelled_scope_takes_no_ring(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    in_a_thread(lambda: ring_attached(transport, bell))
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait()
    assert scope.cancelled_caught
    with trio.fail_after(HANG):
        await bell.wait()
    bell.close()


async def test_a_cancelled_wait_loses_no_ring(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    go, gone = threading.Semaphore(0), threading.Semaphore(0)
    rounds = 200

    def ring() -> None:
        with transport.attach():
            for _ in range(rounds):
                assert go.acquire(timeout=HANG)
                bell.ring()
                gone.release()

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await bell.wait()

    thread = threading.Thread(target=ring)
    thread.start()
    cancelled = 0
    with trio.fail_after(HANG):
        for number in range(rounds):
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, scope)
                await trio.testing.wait_all_tasks_blocked()
                go.release()
                if number % 2:
                    assert gone.acquire(timeout=HANG)
                scope.cancel()
            if not number % 2:
                assert gone.acquire(timeout=HANG)
            if scope.cancelled_caught:
                cancelled += 1
                await bell.wait()  # it is still to be had
    assert cancelled
    thread.join(HANG)
    bell.close()


async def test_only_one_task_may_wait(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await bell.wait()
        nursery.cancel_scope.cancel()
    bell.close()


async def test_closing_wakes_the_waiter_and_ends_it(transport: InprocTransport) -> None:
    bell = transport.open_bell()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bell.wait()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            bell.close()
        bell.close()
        in_a_thread(lambda: ring_attached(transport, bell))
        in_a_thread(bell.ring)
        await trio.testing.wait_all_tasks_blocked()  # what the last one has set off is over
        await wait()


def test_a_ring_after_the_end_of_the_loop_does_nothing(transport: InprocTransport) -> None:
    bells: list[InprocBell] = []

    async def main() -> None:
        bells.append(transport.open_bell())

    trio.run(main)
    bells[0].ring()
    in_a_thread(lambda: ring_attached(transport, *bells))
    bells[0].close()


async def test_no_ring_is_lost_however_many_ring(transport: InprocTransport) -> None:
    """The use it is made for: items in a deque, and a ring after each."""
    threads, each = 4, 2000
    bell = transport.open_bell()
    items: deque[int] = deque()

    def produce(attached: bool) -> None:
        with transport.attach() if attached else threading.Lock():
            for number in range(each):
                items.append(number)
                bell.ring()

    producers = [
        threading.Thread(target=produce, args=(number % 2 == 0,)) for number in range(threads)
    ]
    for producer in producers:
        producer.start()
    taken = 0
    with trio.fail_after(HANG):
        while taken < threads * each:
            await bell.wait()
            while items:
                items.popleft()
                taken += 1
    for producer in producers:
        producer.join(HANG)
    bell.close()


async def test_an_interrupt_while_ringing_does_not_silence_the_bell(
    transport: InprocTransport, monkeypatch
) -> None:
    """Another thread's exception strikes when the right to ring is taken, and not yet used."""

    class Planted(BaseException):
        pass

    def interrupted(ringer: _Ringer, bell: InprocBell) -> None:
        raise Planted

    bell = transport.open_bell()
    with transport.attach(), trio.fail_after(HANG):
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(_Ringer, "ring", interrupted)
                with pytest.raises(Planted):
                    bell.ring()
            await bell.wait()
        bell.ring()
        await bell.wait()
    bell.close()


async def test_without_room_for_a_socket_it_rings_all_the_same() -> None:
    with trio.fail_after(HANG), open_context(max_sockets=1) as context:
        transport = InprocTransport(context)
        bell = transport.open_bell()
        in_a_thread(lambda: ring_attached(transport, bell))
        await bell.wait()
        bell.close()


async def test_everything_is_given_back(
    context: Context, transport: InprocTransport, count_descriptors
) -> None:
    with context.socket(zmq.PAIR), transport.attach():
        before = count_descriptors()
        bells = [transport.open_bell() for _ in range(20)]
        for bell in bells:
            bell.ring()
        in_a_thread(lambda: ring_attached(transport, *bells))
        assert len(context.statistics().sockets_open) == 1 + 2 * len(bells)
        assert [len(bell._ringers) for bell in bells] == [1] * len(bells)
        *others, last = bells
        for bell in others:
            bell.close()
        # A ringer's own sockets are for its own thread to close.
        assert len(context.statistics().sockets_open) == 2 + len(bells)
        last.ring()
        await last.wait()
        last.ring()
        # ours, one bell, and this thread's way to it: the others went when it rang again
        assert len(context.statistics().sockets_open) == 3
        last.close()
    assert context.statistics().sockets_open == ()
    with trio.fail_after(HANG):
        while count_descriptors() > before:
            await trio.lowlevel.checkpoint()


async def test_each_thread_has_its_own_sockets_and_gives_back_its_own(
    context: Context, transport: InprocTransport
) -> None:
    bell = transport.open_bell()
    beside: list[int] = []

    def ring_and_fail() -> None:
        with contextlib.suppress(ZeroDivisionError), transport.attach():
            bell.ring()
            beside.append(len(bell._ringers))
            raise ZeroDivisionError

    with transport.attach(), trio.fail_after(HANG):
        bell.ring()
        await bell.wait()
        in_a_thread(ring_and_fail)
        await bell.wait()
        assert beside == [2]
        assert len(bell._ringers) == 1  # ours
        assert len(context.statistics().sockets_open) == 2
    assert not bell._ringers
    bell.close()
    assert context.statistics().sockets_open == ()


async def test_who_rings_for_the_first_time_as_the_bell_is_closed_keeps_nothing_of_it(
    context: Context, transport: InprocTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ringer = InprocBell._add_ringer

    def close_first(bell: InprocBell, ringer: _Ringer) -> None:
        bell.close()
        add_ringer(bell, ringer)

    closed, other = transport.open_bell(), transport.open_bell()
    with transport.attach(), trio.fail_after(HANG):
        with monkeypatch.context() as patch:
            patch.setattr(InprocBell, "_add_ringer", close_first)
            closed.ring()
        other.ring()
        await other.wait()
        assert len(context.statistics().sockets_open) == 2  # the other bell, and the way to it
    other.close()


async def test_attaching_twice_is_attaching_once(transport: InprocTransport) -> None:
    bell = transport.open_bell()
    with transport.attach():
        with transport.attach():
            bell.ring()
        await bell.wait()
        bell.ring()  # still through the socket
        assert len(bell._ringers) == 1
        await bell.wait()
    bell.close()


def test_the_end_of_the_context_ends_the_wait() -> None:
    context = Context()
    transport = InprocTransport(context)
    waiting = threading.Event()

    async def main() -> None:
        bell = transport.open_bell()
        trio.lowlevel.spawn_system_task(tell_when_blocked)
        with pytest.raises(trio.BrokenResourceError):
            await bell.wait()
        bell.close()

    async def tell_when_blocked() -> None:
        await trio.testing.wait_all_tasks_blocked()
        waiting.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert waiting.wait(HANG)
    with pytest.raises(RuntimeError, match="inproc://bell-"):
        context.close()
    thread.join(HANG)
    assert not thread.is_alive()


# -- channels and actors over it ------------------------------------------------------------------


def sender_thread(
    transport: InprocTransport, function: Callable[[], Awaitable[object]]
) -> threading.Thread:
    def main() -> None:
        with transport.attach():
            trio.run(function)

    thread = threading.Thread(target=main)
    thread.start()
    return thread


async def test_a_channel_keeps_the_order_of_thousands_of_items(
    transport: InprocTransport,
) -> None:
    send, receive = open_channel(10, transport=transport)
    count = 5000

    async def produce() -> None:
        with send:
            for number in range(count):
                await send.send(number)

    with transport.attach(), trio.fail_after(HANG):
        thread = sender_thread(transport, produce)
        with receive:
            assert [number async for number in receive] == list(range(count))
            with pytest.raises(trio.EndOfChannel):
                await receive.receive()
        thread.join(HANG)


async def test_a_full_channel_pushes_back(transport: InprocTransport) -> None:
    send, receive = open_channel(3, transport=transport)
    sent = []
    blocked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def produce() -> None:
        async def tell() -> None:
            await trio.testing.wait_all_tasks_blocked()
            token.run_sync_soon(blocked.set)

        trio.lowlevel.spawn_system_task(tell)
        with send:
            for number in range(10):
                await send.send(number)
                sent.append(number)

    with transport.attach(), trio.fail_after(HANG):
        thread = sender_thread(transport, produce)
        await blocked.wait()
        assert sent == [0, 1, 2]
        with receive:
            assert [number async for number in receive] == list(range(10))
        thread.join(HANG)


async def test_a_closed_receiver_wakes_the_sender_of_another_thread(
    transport: InprocTransport,
) -> None:
    send, receive = open_channel(1, transport=transport)
    errors: list[type[BaseException]] = []
    blocked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def produce() -> None:
        async def tell() -> None:
            await trio.testing.wait_all_tasks_blocked()
            token.run_sync_soon(blocked.set)

        trio.lowlevel.spawn_system_task(tell)
        await send.send(1)
        try:
            await send.send(2)
        except trio.BrokenResourceError as error:
            errors.append(type(error))
        send.close()
        try:
            await send.send(3)
        except trio.ClosedResourceError as error:
            errors.append(type(error))

    with transport.attach(), trio.fail_after(HANG):
        thread = sender_thread(transport, produce)
        await blocked.wait()
        receive.close()
        thread.join(HANG)
        assert not thread.is_alive()
        assert errors == [trio.BrokenResourceError, trio.ClosedResourceError]
        with pytest.raises(trio.ClosedResourceError):
            await receive.receive()


async def test_a_cancelled_receive_on_a_channel_loses_nothing(transport: InprocTransport) -> None:
    send, receive = open_channel(math.inf, transport=transport)
    count = 300
    got: list[int] = []
    go = threading.Semaphore(0)

    def produce() -> None:
        with transport.attach(), send:
            for number in range(count):
                assert go.acquire(timeout=HANG)
                send.send_nowait(number)

    async def take(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await receive.receive())

    thread = threading.Thread(target=produce)
    thread.start()
    with transport.attach(), receive, trio.fail_after(HANG):
        for _ in range(count):
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, scope)
                await trio.testing.wait_all_tasks_blocked()
                go.release()
                await trio.lowlevel.checkpoint()
                scope.cancel()
        got += [number async for number in receive]
    thread.join(HANG)
    assert got == list(range(count))


async def test_a_cancelled_send_on_a_channel_is_all_or_nothing(transport: InprocTransport) -> None:
    send, receive = open_channel(1, transport=transport)
    sent: list[int] = []

    async def produce() -> None:
        with send:
            for number in range(300):
                with trio.move_on_after(0.0002) as scope:
                    await send.send(number)
                if not scope.cancelled_caught:
                    sent.append(number)

    with transport.attach(), receive, trio.fail_after(HANG):
        thread = sender_thread(transport, produce)
        got = [number async for number in receive]
        thread.join(HANG)
    assert got == sent
    assert sent


@attrs.frozen
class Add:
    amount: int


class Adder(actors.Actor):
    """Answers each `Add` with the sum so far."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        total = 0
        async for letter in mailbox:
            total += letter.message.amount
            letter.reply(total)


async def test_actors_on_threads_talk_through_it(
    context: Context, transport: InprocTransport
) -> None:
    with trio.fail_after(HANG):
        async with actors.open_system(transport=transport) as system:
            adders = [
                await system.spawn(Adder(), name=f"adder-{n}", host=actors.ThreadHost())
                for n in range(3)
            ]
            for number in range(1, 200):
                for adder in adders:
                    assert await adder.ask(Add(1), timeout=HANG) == number
            assert context.statistics().sockets_open != ()
    assert context.statistics().sockets_open == ()
