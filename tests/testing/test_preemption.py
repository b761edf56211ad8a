"""Threads that are stopped between two statements."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_subshells import actors
from trio_subshells.testing import (
    Deadlock,
    Deviation,
    Exploration,
    InvalidSchedule,
    Random,
    Replay,
    Schedule,
    ScheduleFailed,
    explore,
)
from trio_subshells.testing._preemption import Preemption, Stop
from trio_subshells.testing._simulation import Simulation

from . import shared
from .shared import Counter, Once, Pair, Shapes, Table, fails, passing


class _Caller(actors.Actor):
    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    async def run(self, mailbox: actors.Mailbox) -> None:
        result = self._function()
        if isinstance(result, Awaitable):
            await result


async def in_threads(*functions: Callable[[], object]) -> None:
    """Call functions, each in a thread of its own, and wait for all of them."""
    async with actors.open_system() as system:
        refs = [
            await system.spawn(_Caller(function), name=f"thread-{number}", host=actors.ThreadHost())
            for number, function in enumerate(functions)
        ]
        for ref in refs:
            await ref.watch()


def explored(body: Callable[[], Awaitable[object]], **options: Any) -> Exploration:
    options.setdefault("schedules", 200)
    return explore(body, preempt=[shared], **options)


def failure_of(body: Callable[[], Awaitable[object]], **options: Any) -> ScheduleFailed:
    with pytest.raises(ScheduleFailed) as raised:
        explored(body, **options)
    return raised.value


async def counting(how: str) -> None:
    counter = Counter()
    await in_threads(getattr(counter, how), getattr(counter, how))
    assert counter.count == 2


# ------------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize("how", ["add_in_place", "add_in_two_statements"])
def test_a_lost_update_is_found(how: str) -> None:
    async def body() -> None:
        await counting(how)

    error = failure_of(body)
    (deviation,) = error.schedule.deviations
    assert deviation.preempts
    assert deviation.choice.startswith("testing.shared:")


def test_without_preemption_it_is_not() -> None:
    async def body() -> None:
        await counting("add_in_place")

    explore(body, schedules=200)


@pytest.mark.parametrize("how", ["add_under_lock", "add_between_calls"])
def test_a_lock_keeps_statements_together(how: str) -> None:
    async def body() -> None:
        await counting(how)

    explored(body, schedules=400)


@pytest.mark.parametrize("how", ["by_and", "by_or", "by_condition", "by_loop"])
def test_what_is_checked_and_then_done_is_found_in_one_expression(how: str) -> None:
    async def body() -> None:
        once = Once()
        given: list[bool] = []
        await in_threads(*(2 * [lambda: given.append(getattr(once, how)())]))
        assert given.count(True) == 1

    assert failure_of(body).schedule.deviations[0].preempts


def test_what_changes_while_it_is_walked_through_is_found() -> None:
    async def body() -> None:
        table = Table()
        await in_threads(table.total, table.grow)

    error = failure_of(body)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="changed size")):
        raise error.failure
    assert error.schedule.deviations[0].preempts


def test_who_does_not_take_the_lock_sees_what_is_half_done() -> None:
    async def body() -> None:
        pair = Pair()
        seen: list[bool] = []
        await in_threads(pair.increase, lambda: seen.append(pair.look_without_lock()))
        assert seen == [True]

    assert failure_of(body).schedule.deviations[0].preempts


def test_who_takes_it_waits() -> None:
    async def body() -> None:
        pair = Pair()
        seen: list[bool] = []
        await in_threads(pair.increase, lambda: seen.append(pair.look()), pair.increase)
        assert seen == [True]
        assert pair.first == 2

    explored(body, schedules=400)


# -------------------------------------------------------------------------- schedules with it


def test_it_is_replayed_from_text() -> None:
    async def body() -> None:
        await counting("add_in_place")

    error = failure_of(body)
    again = failure_of(body, strategy=Replay(str(error.schedule)))
    assert again.schedule == error.schedule


def test_its_text() -> None:
    schedule = Schedule(
        (
            Deviation(3, "kernel._guard:88.2*4", preempts=True),
            Deviation(3, "main/writer", holds=True),
            Deviation(3, "main/reader"),
        )
    )
    assert str(schedule) == "1:3@kernel._guard:88.2*4,3~main/writer,3=main/reader"
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", ["1:3@", "1:@a:1", "1:3@a:1*x", "1:3@a:1*0", "1:3=a,3@b:1"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidSchedule):
        Schedule.parse(text)


def test_a_place_that_is_gone_is_passed_over() -> None:
    async def body() -> None:
        await counting("add_under_lock")

    places = "1:0@testing.shared:99999,1@elsewhere:1"
    assert explored(body, strategy=Replay(places)).schedules == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_is_found_again(seed: int) -> None:
    async def body() -> None:
        counter, pair = Counter(), Pair()
        await in_threads(
            counter.add_under_lock,
            pair.increase,
            counter.add_in_two_statements,
            lambda: pair.look_without_lock() or pair.increase(),
        )
        assert (counter.count, pair.first) == (2, 1)

    # Raises something else if it can't be.
    failure_of(body, seed=seed, schedules=1000, strategy=Random(), shrink=False)


# ------------------------------------------------------------------------------------------- locks


def test_a_lock_that_is_not_given_back_is_a_deadlock() -> None:
    async def body() -> None:
        counter = Counter()
        counter.lock.acquire()
        await in_threads(counter.add_under_lock, counter.add_under_lock)

    # The first one has been taken where nobody is preempted; so it is not known to be.
    assert explored(body, schedules=20).schedules == 20

    async def other() -> None:
        counter = Counter()
        await in_threads(lambda: shared_acquire(counter), counter.add_under_lock)

    def shared_acquire(counter: Counter) -> None:
        counter.lock.acquire()

    with pytest.raises(ScheduleFailed) as raised:
        explore(other, preempt=[shared, sys.modules[__name__]], schedules=20)
    assert isinstance(raised.value.failure, Deadlock)


def test_its_timeout_is_in_virtual_seconds() -> None:
    lock = threading.Lock()
    got: list[tuple[bool, float]] = []

    def holds() -> None:
        with lock:
            time.sleep(100)

    def waits() -> None:
        got.append((lock.acquire(timeout=3), trio.current_time()))
        got.append((lock.acquire(blocking=False), trio.current_time()))
        got.append((lock.locked(), trio.current_time()))
        with lock:
            got.append((lock.locked(), trio.current_time()))

    async def body() -> None:
        await in_threads(holds, waits)

    explore(body, preempt=[sys.modules[__name__]], strategy=Replay("1:"))
    assert got == [(False, 3), (False, 3), (True, 3), (True, 100)]


class Outside:
    """Calls the modules that are preempted, and isn't in one of them."""

    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        self.counter = Counter()

    def add_under_lock(self) -> None:
        with self.lock:
            self.counter.add_in_place()

    def add_after_it(self) -> None:
        with self.lock:
            pass
        self.counter.add_under_lock()


@pytest.mark.parametrize("kind", [threading.Lock, threading.RLock])
def test_nobody_is_stopped_with_a_lock_that_is_not_simulated(kind: Callable[[], Any]) -> None:
    """Whoever wanted that would wait for ever, and not in virtual time."""

    async def body() -> None:
        outside = Outside()
        outside.lock = kind()
        await in_threads(outside.add_under_lock, outside.add_under_lock)

    line = Outside.add_under_lock.__code__.co_firstlineno + 2
    wrong = re.escape(f"a lock, self.lock, from {__name__}:{line}")
    right = re.escape(f"preempt=[..., {__name__!r}]")
    with pytest.raises(RuntimeError, match=f"can't be stopped at .*shared.*{wrong}.*{right}"):
        explored(body)
    assert explore(body, preempt=[shared, __name__], schedules=200).schedules == 200


def test_who_has_given_it_back_is_stopped() -> None:
    async def body() -> None:
        outside = Outside()
        await in_threads(outside.add_after_it, outside.add_after_it)
        assert outside.counter.count == 2

    assert explored(body).schedules == 200


def test_what_is_no_lock_is_left_alone() -> None:
    async def body() -> None:
        semaphore = trio.Semaphore(1)
        async with semaphore:
            await trio.lowlevel.checkpoint()
        await semaphore.acquire()
        semaphore.release()

    explore(body, preempt=[sys.modules[__name__]], schedules=20)


def test_what_happens_in_between_does_not_take_a_lock_from_who_was_stopped() -> None:
    """A happening can't wait; it takes place when the lock is free, or before."""
    told: list[int] = []

    class Told:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.first = self.second = 0

        def tell(self) -> None:
            with self.lock:
                assert self.first == self.second
                told.append(self.first)

        def change(self) -> None:
            with self.lock:
                self.first += 1
                self.second += 1

    async def body() -> None:
        one = Told()
        simulation = Simulation.current
        assert simulation is not None
        for _ in range(3):
            simulation.add(simulation.happening(None, "it is told", one.tell))
        await in_threads(one.change, one.change)

    explore(body, preempt=[sys.modules[__name__]], schedules=300)
    assert set(told) == {0, 1, 2}


def test_what_is_removed_while_it_waits_for_a_lock_to_be_free_does_not_happen() -> None:
    """A line that is cut, say, by one thread, while another was stopped with a lock."""

    class Owner:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.first = self.second = 0

        def change(self) -> None:
            with self.lock:
                self.first += 1
                self.second += 1

    async def body() -> None:
        owner = Owner()
        simulation = Simulation.current
        assert simulation is not None
        removed = False

        def happen() -> None:
            assert not removed

        async def remove() -> None:
            nonlocal removed
            turn = simulation.happening(None, "it happens", happen)
            simulation.add(turn)
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            simulation.remove(turn)
            removed = True

        await in_threads(owner.change, remove)

    explore(body, preempt=[sys.modules[__name__]], schedules=300)


# ------------------------------------------------------------------------------------------ checks


def test_checks_see_no_step_that_was_stopped() -> None:
    pair = Pair()

    def check() -> None:
        assert pair.first == pair.second

    async def body() -> None:
        await in_threads(pair.increase, pair.increase)

    explored(body, checks=(check,))


# --------------------------------------------------------------------------------------- the code


def test_all_kinds_of_functions_do_what_they_did() -> None:
    expected = Shapes().all_of_them()
    seen: list[list[str]] = []

    async def body() -> None:
        await in_threads(*(2 * [lambda: seen.append(Shapes().all_of_them())]))
        assert await passing([1]) == [1]

    explored(body)
    assert all(each == expected for each in seen)


def test_they_are_put_back() -> None:
    code = Counter.add_in_place.__code__
    inside: list[types.CodeType] = []

    async def body() -> None:
        inside.append(Counter.add_in_place.__code__)

    explored(body, schedules=1)
    assert inside[0] is not code
    assert Counter.add_in_place.__code__ is code


def test_lines_stay_where_they_are() -> None:
    async def body() -> None:
        await in_threads(fails)

    with pytest.raises(ValueError, match="here") as before:
        fails()
    error = failure_of(body)
    cause: BaseException | None = error.failure
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    while cause is not None and not isinstance(cause, ValueError):
        cause = cause.__cause__
    assert cause is not None
    expected = traceback.extract_tb(before.value.__traceback__)[-1]
    (*_, last) = traceback.extract_tb(cause.__traceback__)
    assert (last.filename, last.lineno) == (expected.filename, expected.lineno)


def test_modules_are_named_or_given() -> None:
    async def body() -> None:
        await counting("add_in_place")

    for module in (shared, shared.__name__, shared.__name__.rpartition(".")[0]):
        with pytest.raises(ScheduleFailed):
            explore(body, preempt=[module], schedules=200, shrink=False)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="'shraed'"):
        explore(trio.lowlevel.checkpoint, preempt=["shraed"])


def test_a_module_without_source(tmp_path: Path) -> None:
    module = types.ModuleType("made_of_nothing")
    module.__file__ = str(tmp_path / "made_of_nothing.py")
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(ValueError, match="no source of 'made_of_nothing'"):
            explore(trio.lowlevel.checkpoint, preempt=[module])
    finally:
        del sys.modules[module.__name__]


def test_a_stop_as_text() -> None:
    for stop in (Stop("a:1"), Stop("a.b:12.3", 4)):
        assert Stop.parse(str(stop)) == stop


def test_every_place_has_its_turn() -> None:
    """Within not too many schedules, a thread is stopped at each place that is reached."""
    stopped: set[str] = set()
    reached: set[str] = set()

    async def body() -> None:
        pair = Pair()
        await in_threads(pair.increase, pair.increase)

    class Noting(Random):
        def learn(self, simulation: Simulation) -> None:
            stopped.update(each.choice for each in simulation.deviations if each.preempts)

    preemptions: list[Preemption] = []
    with pytest.MonkeyPatch.context() as patch:
        real = Preemption.__init__

        def init(self: Preemption, modules: Any) -> None:
            real(self, modules)
            preemptions.append(self)

        patch.setattr(Preemption, "__init__", init)
        explored(body, strategy=Noting(), schedules=300)
    reached.update(preemptions[0].reached)
    assert reached == {each.partition("*")[0] for each in stopped}
    assert len(reached) >= 5
