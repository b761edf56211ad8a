"""What threads, time and blocking calls are in a simulation."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import attrs
import pytest
import trio

from trio_subshells import actors
from trio_subshells.actors import _hosts
from trio_subshells.testing import Random, ScheduleFailed, Unjoined, _process, explore
from trio_subshells.testing._simulation import Simulation

Body = Callable[[], Awaitable[object]]


def once(body: Body) -> None:
    explore(body, schedules=1, strategy=Random(), seed=1)


@attrs.frozen
class Add:
    amount: int


@attrs.frozen
class Total:
    pass


class Counter(actors.Actor):
    """Counts in its own thread, and remembers which one that is."""

    def __init__(self) -> None:
        self.thread = 0
        self.name = ""

    async def run(self, mailbox: actors.Mailbox) -> None:
        self.thread = threading.get_ident()
        self.name = threading.current_thread().name
        total = 0
        async for letter in mailbox:
            match letter.message:
                case Add(amount):
                    total += amount
                case Total():
                    letter.reply(total)


def test_an_actor_in_a_thread_has_a_thread_of_its_own() -> None:
    real = set(threading.enumerate())

    async def body() -> None:
        counters = [Counter(), Counter()]
        async with actors.open_system() as system:
            for number, counter in enumerate(counters):
                ref = await system.spawn(counter, name=f"{number}", host=actors.ThreadHost())
                await ref.tell(Add(2))
                assert await ref.ask(Total(), timeout=math.inf) == 2
            assert set(threading.enumerate()) <= real
        idents = {threading.get_ident(), *(each.thread for each in counters)}
        assert len(idents) == 3
        assert {each.name for each in counters} == {"system/0", "system/1"}

    explore(body, schedules=50)


def test_the_order_of_messages_from_two_threads_is_a_decision() -> None:
    orders: set[tuple[int, ...]] = set()

    class Sender(actors.Actor):
        def __init__(self, to: actors.ActorRef, amount: int) -> None:
            self.to = to
            self.amount = amount

        async def run(self, mailbox: actors.Mailbox) -> None:
            await self.to.tell(Add(self.amount))

    class Receiver(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            received = [(await mailbox.receive()).message.amount for _ in range(3)]  # type: ignore[attr-defined]
            orders.add(tuple(received))

    async def body() -> None:
        async with actors.open_system() as system:
            receiver = await system.spawn(Receiver(), name="receiver")
            watched = receiver.watch
            for amount in (1, 2, 3):
                sender = Sender(receiver, amount)
                await system.spawn(sender, name=f"sender {amount}", host=actors.ThreadHost())
            await watched()

    explore(body, schedules=1_000)
    assert len(orders) == 6


def test_time_is_virtual_everywhere() -> None:
    async def body() -> None:
        assert time.monotonic() == trio.current_time() == 0
        time.sleep(60)
        await trio.sleep(3540)
        assert time.monotonic() == trio.current_time() == 3600

    began = time.monotonic()
    once(body)
    assert time.monotonic() - began < 3600


def test_a_thread_that_blocks_stands_still_and_others_do_not() -> None:
    seen: list[tuple[str, float]] = []

    class Sleeper(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.tick)
                time.sleep(10)
                seen.append(("slept", trio.current_time()))

        async def tick(self, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await trio.sleep(1)
            seen.append(("ticked", trio.current_time()))

    async def body() -> None:
        seen.clear()
        async with actors.open_system() as system:
            sleeper = await system.spawn(Sleeper(), name="sleeper", host=actors.ThreadHost())
            await trio.sleep(5)
            seen.append(("went on", trio.current_time()))
            await sleeper.watch()

    once(body)
    assert seen == [("went on", 5), ("slept", 10), ("ticked", 10)]


def test_who_asks_blocking_blocks_its_thread_only() -> None:
    async def body() -> None:
        async with actors.open_system() as system:
            counter = await system.spawn(Counter(), name="counter", host=actors.ThreadHost())
            assert counter.ask_blocking(Total(), timeout=math.inf) == 0

    explore(body, schedules=50)


def test_who_asks_blocking_in_vain_has_its_timeout() -> None:
    class Deaf(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            await trio.sleep_forever()

    async def body() -> None:
        async with actors.open_system() as system:
            deaf = await system.spawn(Deaf(), name="deaf", host=actors.ThreadHost())
            with pytest.raises(actors.AskTimeout):
                deaf.ask_blocking(Total(), timeout=3)
            assert trio.current_time() == 3

    explore(body, schedules=20)


def test_an_event_of_threading_blocks_a_simulated_thread() -> None:
    class Waiter(actors.Actor):
        def __init__(self, event: threading.Event) -> None:
            self.event = event

        async def run(self, mailbox: actors.Mailbox) -> None:
            assert not self.event.wait(1)
            assert trio.current_time() == 1
            assert self.event.wait()

    async def body() -> None:
        event = threading.Event()
        async with actors.open_system() as system:
            waiter = await system.spawn(Waiter(event), name="waiter", host=actors.ThreadHost())
            await trio.sleep(2)
            event.set()
            assert (await waiter.watch()).state is actors.ActorState.FINISHED

    explore(body, schedules=20)


def test_a_function_for_a_worker_thread_is_called() -> None:
    async def body() -> None:
        assert await trio.to_thread.run_sync(lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await trio.to_thread.run_sync(lambda: 1 // 0)

    once(body)


def test_a_cancellation_is_told_in_the_order_of_starting() -> None:
    """trio keeps those whom it tells in sets, whose order is one of addresses."""

    async def body() -> None:
        told: list[int] = []

        async def wait(number: int) -> None:
            def abort(_: object) -> trio.lowlevel.Abort:
                told.append(number)
                return trio.lowlevel.Abort.SUCCEEDED

            with trio.CancelScope() if number % 3 else nullcontext():
                await trio.lowlevel.wait_task_rescheduled(abort)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(wait, number)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            assert told == list(range(40))

    explore(body, schedules=3)


def test_a_thread_that_is_left_behind_is_a_failure() -> None:
    async def forever() -> None:
        await trio.sleep_forever()

    async def body() -> None:
        simulation = Simulation.current
        assert simulation is not None
        simulation.start_thread("stray", forever, lambda result: None)

    with pytest.raises(ScheduleFailed) as failed:
        once(body)
    assert isinstance(failed.value.__cause__, Unjoined)
    assert "stray" in str(failed.value.__cause__)


def test_a_thread_that_nobody_joins_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    start = _process._start_thread

    def without_join(child: _hosts.ChildThread, name: str) -> Callable[[], None]:
        start(child, name)
        return lambda: None

    monkeypatch.setattr(
        _process,
        "_REPLACED",
        [
            (where, name, without_join if name == "start_thread" else what)
            for where, name, what in _process._REPLACED
        ],
    )

    async def body() -> None:
        async with actors.open_system() as system:
            ref = await system.spawn(Counter(), name="counter", host=actors.ThreadHost())
            ref.cancel()
            await ref.watch()

    with pytest.raises(ScheduleFailed) as failed:
        once(body)
    assert isinstance(failed.value.__cause__, Unjoined)
    assert "system/counter" in str(failed.value.__cause__)


def test_the_main_thread_is_that_which_explores() -> None:
    async def body() -> None:
        assert threading.current_thread() is exploring
        logging.getLogger("somebody").error("asks for the thread, too")

    exploring = threading.current_thread()
    before = threading.enumerate()
    once(body)
    assert threading.enumerate() == before


def test_outside_of_a_simulation_everything_is_real() -> None:
    async def body() -> None:
        await trio.lowlevel.checkpoint()

    def replaced() -> tuple[object, ...]:
        threads = threading.get_ident, threading.current_thread
        return (*threads, time.monotonic, time.sleep, trio.to_thread.run_sync)

    before = replaced()
    once(body)
    assert replaced() == before


@pytest.mark.parametrize("host", [actors.TaskHost(), actors.ThreadHost()], ids=["task", "thread"])
def test_a_loop_that_dies_is_a_failure(host: actors.Host) -> None:
    class Deadly(actors.Actor):
        """Does to its loop what trio calls an internal error: wakes a task that doesn't wait."""

        async def run(self, mailbox: actors.Mailbox) -> None:
            token = trio.lowlevel.current_trio_token()
            task = trio.lowlevel.current_task()
            token.run_sync_soon(trio.lowlevel.reschedule, task)
            token.run_sync_soon(trio.lowlevel.reschedule, task)
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)

    async def body() -> None:
        async with actors.open_system() as system:
            counter = await system.spawn(Counter(), name="counter", host=actors.ThreadHost())
            await system.spawn(Deadly(), name="deadly", host=host)
            for _ in range(10):
                await counter.ask(Total(), timeout=math.inf)

    with pytest.raises(ScheduleFailed) as raised:
        explore(body, schedules=50, strategy=Random())
    assert isinstance(raised.value.failure, trio.TrioInternalError)


def test_what_fails_outside_of_any_task_is_a_failure() -> None:
    async def body() -> None:
        simulation = Simulation.current
        assert simulation is not None
        simulation.add(simulation.happening(None, "a failure", lambda: 1 / 0))
        await trio.sleep(10)

    with pytest.raises(ScheduleFailed) as raised:
        explore(body, schedules=1)
    assert isinstance(raised.value.failure, ZeroDivisionError)
