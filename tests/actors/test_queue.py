"""The queue: order, bounds, cancellation, no lost wake-up; within a loop and between threads."""

from __future__ import annotations

import math
import signal
import threading
from collections import deque
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors._queue import Queue
from trio_subshells.actors._transport import TrioBell


class Refused(Exception):
    """What a closed queue raises in these tests."""


def attached(capacity: float = math.inf) -> Queue[object]:
    queue: Queue[object] = Queue(capacity)
    queue.attach(TrioBell())
    return queue


@pytest.mark.parametrize("capacity", [0, -1, 0.5, math.nan])
def test_a_capacity_below_one_is_refused(capacity: float) -> None:
    with pytest.raises(ValueError, match="capacity must be a number of at least 1"):
        Queue(capacity)


async def test_values_come_out_in_order() -> None:
    queue = attached()
    for n in range(3):
        queue.put_nowait(n)
    await queue.put(3)
    assert [await queue.get() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(trio.WouldBlock):
        queue.get_nowait()


async def test_a_full_queue_refuses_or_waits() -> None:
    queue = attached(2)
    queue.put_nowait("a")
    queue.put_nowait("b")
    with pytest.raises(trio.WouldBlock):
        queue.put_nowait("c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.put, "d")
        await wait_all_tasks_blocked()
        assert (queue.statistics().length, queue.statistics().senders_waiting) == (2, 1)
        assert queue.get_nowait() == "a"
    # The sender has returned, with its value in the queue.
    assert [queue.get_nowait(), queue.get_nowait()] == ["b", "d"]
    assert queue.statistics().sent == 3


async def test_waiting_senders_are_served_in_their_order() -> None:
    queue = attached(1)
    queue.put_nowait("first")
    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(queue.put, n)
            await wait_all_tasks_blocked()
        assert queue.get_nowait() == "first"
        # The room went to who has waited longest: a newcomer doesn't overtake.
        with pytest.raises(trio.WouldBlock):
            queue.put_nowait("newcomer")
        assert [await queue.get() for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_cancelled_sender_has_sent_nothing() -> None:
    queue = attached(1)
    queue.put_nowait("first")
    scope = trio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await queue.put("cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await wait_all_tasks_blocked()
        nursery.start_soon(queue.put, "second")
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert queue.statistics().senders_waiting == 1
        assert [await queue.get(), await queue.get()] == ["first", "second"]
    assert scope.cancelled_caught
    assert queue.statistics().length == 0


@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_a_sender_cancelled_after_its_value_was_taken_has_sent(in_a_thread: bool) -> None:
    queue = attached(1)
    queue.put_nowait("first")
    scope = trio.CancelScope()

    async def send() -> None:
        with scope:
            await queue.put("second")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        if in_a_thread:  # the sender's wake-up is under way through its token
            thread = threading.Thread(target=queue.get_nowait)
            thread.start()
            thread.join()
        else:
            queue.get_nowait()
        scope.cancel()
    assert not scope.cancelled_caught
    assert queue.get_nowait() == "second"


async def test_a_send_that_starts_cancelled_sends_nothing() -> None:
    queue = attached()
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.put("x")
    assert scope.cancelled_caught
    assert queue.statistics().sent == 0


async def test_a_cancelled_get_takes_nothing() -> None:
    queue = attached()
    scope = trio.CancelScope()
    got: list[object] = []

    async def get() -> None:
        with scope:
            got.append(await queue.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await wait_all_tasks_blocked()
        scope.cancel()
        queue.put_nowait("x")  # while the cancellation is under way
    assert [*got, *([queue.get_nowait()] if not got else [])] == ["x"]

    queue.put_nowait("y")
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.get()
    assert scope.cancelled_caught
    assert await queue.get() == "y"


async def test_get_and_put_are_checkpoints() -> None:
    queue = attached()
    with trio.testing.assert_checkpoints():
        await queue.put(1)
    with trio.testing.assert_checkpoints():
        await queue.get()


async def test_a_value_put_between_the_last_look_and_the_sleep_is_not_missed() -> None:
    class SlowToSleep(TrioBell):
        """A bell whose owner is overtaken by a sender just before it falls asleep."""

        async def wait(self) -> None:
            thread = threading.Thread(target=queue.put_nowait, args=("x",))
            thread.start()
            thread.join()
            await super().wait()

    queue: Queue[object] = Queue(1)
    queue.attach(SlowToSleep())
    with trio.fail_after(60):
        assert await queue.get() == "x"


async def test_a_burst_rings_once() -> None:
    queue = attached()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            for n in range(1000):
                assert await queue.get() == n

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        for n in range(1000):
            queue.put_nowait(n)
    assert queue.statistics().rings == 1


async def test_getting_without_a_bell_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"call attach\(\) first"):
        await Queue[object](1).get()


async def test_a_queue_keeps_its_values_and_senders_from_one_receiver_to_the_next() -> None:
    queue: Queue[object] = Queue(1)
    async with trio.open_nursery() as nursery:
        await queue.put("a")
        nursery.start_soon(queue.put, "b")
        await wait_all_tasks_blocked()

        async def receiver() -> object:
            bell = TrioBell()
            queue.attach(bell)
            value = await queue.get()
            assert queue.detach() is bell
            bell.close()
            return value

        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(trio.run, receiver) == "a"
            assert await trio.to_thread.run_sync(trio.run, receiver) == "b"
        with pytest.raises(RuntimeError, match=r"call attach\(\) first"):
            await queue.get()  # the bell that was detached is somebody else's


async def test_nobody_is_rung_for_who_went_in_his_sleep() -> None:
    """A receiver that is cancelled while it sleeps, and that doesn't receive any more."""
    queue, bell = Queue[object](1), TrioBell()
    queue.attach(bell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.get)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    queue.detach()
    bell.close()
    queue.put_nowait("value")
    assert queue.statistics().rings == 0


async def test_closing_refuses_senders_and_leaves_the_rest_to_the_receiver() -> None:
    queue = attached(1)
    queue.put_nowait("a")
    refusals: list[Exception] = []

    async def send() -> None:
        with pytest.raises(Refused) as caught:
            await queue.put("b")
        refusals.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert queue.close(Refused, discard=False) == []
    assert len(refusals) == 2
    assert refusals[0] is not refusals[1]  # each has its own traceback
    with pytest.raises(Refused):
        queue.put_nowait("c")
    with pytest.raises(Refused):
        await queue.put("c")
    assert await queue.get() == "a"
    with pytest.raises(Refused):
        await queue.get()
    with pytest.raises(Refused):
        queue.get_nowait()


async def test_closing_can_take_out_what_is_left() -> None:
    queue = attached()
    queue.put_nowait("a")
    queue.put_nowait("b")
    assert queue.close(Refused, discard=True) == ["a", "b"]
    assert queue.close(KeyError, discard=True) == []
    with pytest.raises(Refused):  # the first reason stays
        await queue.get()


async def test_closing_wakes_the_receiver() -> None:
    queue = attached()

    async def receive() -> None:
        with pytest.raises(Refused):
            await queue.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        queue.close(Refused, discard=False)


def test_ctrl_c_in_the_middle_of_a_send_loses_no_ring() -> None:
    """The signal comes after the value is in and before the receiver is woken."""

    class Interrupted(TrioBell):
        def ring(self) -> None:
            signal.raise_signal(signal.SIGINT)
            super().ring()

    received: list[object] = []

    async def main() -> None:
        queue: Queue[object] = Queue(1)
        queue.attach(Interrupted())

        async def receive() -> None:
            received.append(await queue.get())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            queue.put_nowait("x")  # doesn't raise; the signal is kept for the next checkpoint
            received.append("sent")
            with trio.CancelScope(shield=True):
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    await wait_all_tasks_blocked()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert received == ["sent", "x"]


# ------------------------------------------------------------------------------ against a model

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.just(0)),
        st.tuples(st.just("put_nowait"), st.just(0)),
        st.tuples(st.just("get"), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.tuples(st.just("close"), st.booleans()),
    ),
    max_size=40,
)


@given(capacity=st.integers(1, 4), operations=OPERATIONS)
@settings(max_examples=200, deadline=None)
def test_a_queue_behaves_like_a_list_with_a_line_in_front(
    capacity: int, operations: list[tuple[str, int]]
) -> None:
    """Any sequence of operations: the same values, in the same order, the same senders waiting."""
    trio.run(compare_with_model, capacity, operations)


async def compare_with_model(capacity: int, operations: list[tuple[str, int]]) -> None:
    queue = attached(capacity)
    values: deque[int] = deque()  # the model: what is in the queue,
    line: deque[int] = deque()  # who waits in front of it,
    closed = False
    expected: dict[int, str] = {}  # and how each send ended
    ended: dict[int, str] = {}
    scopes: dict[int, trio.CancelScope] = {}

    async def put(n: int) -> None:
        with scopes[n]:
            try:
                await queue.put(n)
                ended[n] = "sent"
            except Refused:
                ended[n] = "refused"
        ended.setdefault(n, "cancelled")

    async with trio.open_nursery() as nursery:
        for n, (operation, argument) in enumerate(operations):
            if operation == "put":
                scopes[n] = trio.CancelScope()
                nursery.start_soon(put, n)
                if closed:
                    expected[n] = "refused"
                elif len(values) < capacity:
                    values.append(n)
                    expected[n] = "sent"
                else:
                    line.append(n)
            elif operation == "put_nowait":
                if closed:
                    with pytest.raises(Refused):
                        queue.put_nowait(n)
                elif len(values) < capacity:
                    queue.put_nowait(n)
                    values.append(n)
                else:
                    with pytest.raises(trio.WouldBlock):
                        queue.put_nowait(n)
            elif operation == "get":
                if values:
                    assert queue.get_nowait() == values.popleft()
                    if line:
                        sent = line.popleft()
                        values.append(sent)
                        expected[sent] = "sent"
                else:
                    with pytest.raises(Refused if closed else trio.WouldBlock):
                        queue.get_nowait()
            elif operation == "cancel":
                if argument < len(line):
                    cancelled = line[argument]
                    line.remove(cancelled)
                    scopes[cancelled].cancel()
                    expected[cancelled] = "cancelled"
            else:
                assert operation == "close"
                left = queue.close(Refused, discard=bool(argument))
                assert left == (list(values) if argument else [])
                if argument:
                    values.clear()
                expected.update(dict.fromkeys(line, "refused"))
                line.clear()
                closed = True
            await wait_all_tasks_blocked()
            statistics = queue.statistics()
            assert (statistics.length, statistics.senders_waiting) == (len(values), len(line))
            assert ended == expected
        nursery.cancel_scope.cancel()


# --------------------------------------------------------------------------------- many threads


async def test_many_senders_in_many_threads() -> None:
    """Each value arrives exactly once, and those of one sender in its order."""
    loops, tasks, count = 4, 3, 200
    queue = attached(3)
    barrier = threading.Barrier(loops)

    async def sender(key: tuple[int, int]) -> None:
        for n in range(count):
            await queue.put((key, n))

    async def loop(number: int) -> None:
        barrier.wait()
        async with trio.open_nursery() as nursery:
            for task in range(tasks):
                nursery.start_soon(sender, (number, task))

    key: object
    n: int
    received: dict[object, list[int]] = {}
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(loops):
                nursery.start_soon(trio.to_thread.run_sync, trio.run, loop, number)
            for _ in range(loops * tasks * count):
                key, n = await queue.get()  # type: ignore[misc]
                received.setdefault(key, []).append(n)
    assert len(received) == loops * tasks
    assert all(values == list(range(count)) for values in received.values())
    assert queue.statistics().length == 0


async def test_plain_threads_that_send_at_once() -> None:
    threads, count = 4, 2000
    queue = attached()
    barrier = threading.Barrier(threads)

    def sender(key: int) -> None:
        barrier.wait()
        for n in range(count):
            queue.put_nowait((key, n))

    running = [threading.Thread(target=sender, args=(key,)) for key in range(threads)]
    for thread in running:
        thread.start()
    key: object
    n: int
    received: dict[object, list[int]] = {}
    with trio.fail_after(120):
        for _ in range(threads * count):
            key, n = await queue.get()  # type: ignore[misc]
            received.setdefault(key, []).append(n)
    for thread in running:
        thread.join()
    assert received == {key: list(range(count)) for key in range(threads)}


async def test_senders_cancelled_at_random_have_sent_or_have_not() -> None:
    """Across threads: a value has arrived if and only if its sender was not cancelled."""
    loops, count = 3, 300
    queue = attached(2)

    async def loop(seed: int) -> set[object]:
        random = Random(seed)
        sent: set[object] = set()

        async def send(value: object, scope: trio.CancelScope) -> None:
            with scope:
                await queue.put(value)
                sent.add(value)

        for n in range(count):
            async with trio.open_nursery() as nursery:
                scopes = [trio.CancelScope() for _ in range(3)]
                for i, scope in enumerate(scopes):
                    nursery.start_soon(send, (seed, n, i), scope)
                for _ in range(random.randrange(3)):
                    await trio.lowlevel.checkpoint()
                random.choice(scopes).cancel()
        return sent

    sent: set[object] = set()
    received: list[object] = []

    async def run(seed: int) -> None:
        sent.update(await trio.to_thread.run_sync(trio.run, loop, seed))

    async def receive() -> None:
        while True:
            received.append(await queue.get())

    with trio.fail_after(120):
        async with trio.open_nursery() as receiver:
            receiver.start_soon(receive)
            async with trio.open_nursery() as senders:
                for seed in range(loops):
                    senders.start_soon(run, seed)
            await wait_all_tasks_blocked()
            receiver.cancel_scope.cancel()
    assert len(received) == len(set(received))
    assert set(received) == sent
    assert 0 < len(sent) < loops * count * 3  # some were cancelled, some were not
