"""The guard: an interrupt ends the cell that it was aimed at, and nothing else."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.kernel._guard import (
    CellEnded,
    CellGuard,
    EndReason,
    Exposure,
    FirmInterrupt,
    SubshellGuards,
    ThrownInterrupt,
    _here,
    _strikes_before_line,
    checkpoint_if_ending,
    drive_tasks,
    exposed,
    protected,
)
from trio_subshells.kernel._raisers import AsyncRaiser, SignalRaiser

from .helpers import HANG, Flag, run_cell

INTERRUPTS = int(os.environ.get("TRIO_SUBSHELLS_INTERRUPTS", "20000"))
"""At least as many are aimed at short cells. 100,000 take half a minute on a slow machine."""

CELLS = 300
"""At least as many are to be hit: of one that is slow, each moment is aimed at, which isn't much of
a test. How many of the aims these take depends on Python's version, too."""


class NotedRaiser:
    """Raises nothing; notes what it was asked for."""

    def __init__(self) -> None:
        self.strikes = 0
        self.strikes_on = 0
        self.withdrawals = 0
        self.missed = False

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        self.strikes += 1
        return True

    def strike_on(self) -> None:
        self.strikes_on += 1

    def withdraw(self) -> None:
        self.withdrawals += 1


async def run(guard: CellGuard, body: Callable[[], Awaitable[object]]) -> object:
    return await run_cell(guard, body, AsyncRaiser(), what="a cell")  # type: ignore[arg-type]


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


# ------------------------------------------------------------------------------- what a cell does


async def test_a_result_and_an_exception_pass() -> None:
    guard = CellGuard()

    async def answer() -> int:
        assert guard.running == "a cell"
        await trio.lowlevel.checkpoint()
        return 42

    assert await run(guard, answer) == 42
    assert guard.running is None

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(guard, fail)
    assert guard.running is None
    assert guard.generation == 2


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopAsyncIteration()]
)
async def test_a_base_exception_of_the_cell_passes(error: BaseException) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    guard = CellGuard()
    with pytest.raises(type(error)):
        await run(guard, fail)
    assert guard.running is None


async def test_what_trio_throws_in_reaches_the_cell() -> None:
    seen = []

    async def catch() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        return "not cancelled"

    with trio.CancelScope() as scope:
        scope.cancel()
        await run(CellGuard(), catch)
    assert scope.cancelled_caught
    assert seen == ["cancelled"]


async def test_a_closed_guard_starts_no_cell() -> None:
    guard = CellGuard()
    guard.close(EndReason.DELETED)

    async def never() -> None:
        raise AssertionError("it was started")

    with pytest.raises(CellEnded) as caught:
        await run(guard, never)
    assert caught.value.reason is EndReason.DELETED
    assert not caught.value.started


async def test_the_guards_of_a_subshell_are_closed_together() -> None:
    guards = SubshellGuards()

    async def look() -> None:
        assert guards.running

    for guard in guards:
        await run(guard, look)
        assert not guards.running
    guards.close(EndReason.DELETED)
    for guard in guards:
        with pytest.raises(CellEnded) as caught:
            await run(guard, look)
        assert not caught.value.started


# --------------------------------------------------------------------------------- cancelling


async def test_cancel_ends_a_cell_that_awaits() -> None:
    guard = CellGuard()

    async def end() -> None:
        await wait_all_tasks_blocked()
        ended = guard.begin_end(1, EndReason.TIMED_OUT)
        assert ended is not None
        guard.cancel(1)
        await ended.wait()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(CellEnded) as caught:
                await run(guard, trio.sleep_forever)
    assert caught.value.reason is EndReason.TIMED_OUT


async def test_a_wish_for_an_earlier_cell_hits_nothing() -> None:
    guard = CellGuard()
    await run(guard, trio.lowlevel.checkpoint)
    assert guard.begin_end(1, EndReason.INTERRUPTED) is None
    assert guard.watch(1) is None

    async def later() -> str:
        assert guard.begin_end(1, EndReason.INTERRUPTED) is None
        assert guard.cancellers(1) == []
        guard.cancel(1)
        assert not guard.strike(1)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        return "undisturbed"

    assert await run(guard, later) == "undisturbed"


async def test_the_end_is_the_reason_whatever_the_cell_makes_of_it() -> None:
    guard = CellGuard()

    async def turn_it_into_something_else() -> None:
        guard.begin_end(guard.generation, EndReason.INTERRUPTED)
        guard.cancel(guard.generation)
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(1)

    with pytest.raises(CellEnded):
        await run(guard, turn_it_into_something_else)


async def test_an_end_in_a_group_with_cancellations_is_the_reason() -> None:
    """A cell's nursery raises the interrupt together with the cancellations of its tasks."""
    guard = CellGuard()

    async def with_tasks() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            guard.begin_end(guard.generation, EndReason.INTERRUPTED)
            guard.cancel(guard.generation)
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                raise BaseExceptionGroup("both", [cancelled, KeyboardInterrupt()]) from None

    with pytest.raises(CellEnded) as caught:
        await run(guard, with_tasks)
    assert caught.value.reason is EndReason.INTERRUPTED


async def test_a_loop_of_its_own_in_a_worker_thread_cancels_nothing_here() -> None:
    """trio isn't thread-safe; what tells the cell's loop is the ladder."""
    guard = CellGuard()

    async def cell() -> str:
        guard.begin_end(1, EndReason.INTERRUPTED)
        await trio.to_thread.run_sync(trio.run, checkpoint_if_ending)
        await trio.lowlevel.checkpoint()
        return "not cancelled"

    assert await run(guard, cell) == "not cancelled"


async def test_what_a_cell_has_got_it_keeps_though_a_scope_of_its_own_is_cancelled() -> None:
    async def cell() -> str:
        with trio.CancelScope() as own:
            own.cancel()
            await checkpoint_if_ending()
            return "kept"

    assert await run(CellGuard(), cell) == "kept"


async def test_every_watcher_hears_of_the_end() -> None:
    guard = CellGuard()
    first = second = None

    async def watched() -> None:
        nonlocal first, second
        first, second = guard.watch(guard.generation), guard.watch(guard.generation)

    await run(guard, watched)
    assert first is not None
    assert second is not None
    await first.wait()
    await second.wait()


# ---------------------------------------------------------------------------------- cancellers


async def test_cancellers_are_there_for_their_block_only() -> None:
    guard = CellGuard()
    calls: list[str] = []
    late: list[Callable[[], object]] = []

    async def work() -> None:
        with guard.canceller(lambda: calls.append("a")), guard.canceller(lambda: calls.append("b")):
            late.extend(guard.cancellers(guard.generation))
            for canceller in late:
                canceller()
        assert calls == ["a", "b"]
        assert guard.cancellers(guard.generation) == []

        with suppress(ZeroDivisionError), guard.canceller(lambda: calls.append("c")):
            raise ZeroDivisionError
        assert guard.cancellers(guard.generation) == []

    await run(guard, work)
    assert guard.cancellers(guard.generation) == []
    for canceller in late:  # the ladder was held up: by now another cell may use the connection
        canceller()
    assert calls == ["a", "b"]


async def test_the_block_of_a_canceller_is_not_left_while_that_is_called() -> None:
    guard, called, go_on = CellGuard(), Flag(), Flag()
    order: list[str] = []

    def stop() -> None:
        called.set()
        go_on.block()
        order.append("called")

    async def work() -> None:
        with guard.canceller(stop):
            (canceller,) = guard.cancellers(guard.generation)
            thread = threading.Thread(target=canceller)
            thread.start()
            await called.wait()
            threading.Thread(target=go_on.set).start()
        order.append("left")
        thread.join(HANG)

    await run(guard, work)
    assert order == ["called", "left"]


async def test_a_canceller_that_blocks_keeps_no_other_cell() -> None:
    stuck, other = CellGuard(), CellGuard()
    called, go_on = Flag(), Flag()

    def stop() -> None:
        called.set()
        go_on.block()

    def leave_another_block() -> None:
        called.block()
        with other.canceller(lambda: None):
            pass
        go_on.set()

    async def work() -> None:
        thread = threading.Thread(target=leave_another_block)
        thread.start()
        with stuck.canceller(stop):
            (canceller,) = stuck.cancellers(1)
            canceller()
        thread.join(HANG)

    await run(stuck, work)


# ------------------------------------------------------------------------------------ striking


def in_thread(main: Callable[[], Awaitable[object]]) -> tuple[threading.Thread, list[object]]:
    """Run an async function in a thread of its own; the list gets what came of it."""
    outcome: list[object] = []

    def target() -> None:
        try:
            outcome.append(trio.run(main))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, outcome


async def test_a_strike_ends_a_loop_in_another_thread() -> None:
    guard, spinning = CellGuard(), Flag()

    async def spin() -> None:
        spinning.set()
        while True:
            pass

    thread, outcome = in_thread(lambda: run(guard, spin))
    with trio.fail_after(HANG):
        await spinning.wait()
        ended = guard.begin_end(1, EndReason.INTERRUPTED)
        assert ended is not None
        while not guard.strike(1):
            await trio.lowlevel.checkpoint()
        await ended.wait()
    thread.join(HANG)
    assert [type(each) for each in outcome] == [CellEnded]


async def test_nothing_strikes_a_cell_that_awaits() -> None:
    guard, raiser = CellGuard(), NotedRaiser()

    async def strike() -> None:
        await wait_all_tasks_blocked()
        assert not guard.strike(1)
        event.set()

    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(strike)
        await run_cell(guard, event.wait, raiser)
    assert raiser.strikes == 0


async def test_a_protected_block_that_awaits_is_left_to_the_cancellation() -> None:
    """What was to strike in it before is not raised when it ends, in the midst of cleaning up."""
    guard, raiser = CellGuard(), NotedRaiser()

    async def ask() -> str:
        try:
            with protected():
                assert not guard.strike(1)
                await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            return "struck"
        return "undisturbed"

    assert await run_cell(guard, ask, raiser) == "undisturbed"
    assert raiser.strikes == 0


async def test_a_piece_is_struck_in_its_steps_only() -> None:
    """Before the first one, it is the scheduler that runs in its thread, or another cell."""
    guard, raiser = CellGuard(), NotedRaiser()

    async def cell() -> None:
        piece = guard.expose(1, NotedRaiser())
        guard.strike(1)
        assert raiser.strikes == 1
        assert not piece.raised
        piece.close()

    await run_cell(guard, cell, raiser)


async def test_all_pieces_of_a_cell_are_struck_at_once() -> None:
    """And none of an earlier cell's, which goes on though that one has ended."""
    guard, raisers = CellGuard(), [NotedRaiser(), NotedRaiser()]
    of_an_earlier_cell = NotedRaiser()

    def expose_in_a_thread(raiser: NotedRaiser) -> None:
        guard.expose(guard.generation, raiser).armed = True

    async def leave() -> None:
        expose_in_a_thread(of_an_earlier_cell)

    async def cell() -> None:
        for raiser in raisers:
            expose_in_a_thread(raiser)
        assert guard.strike(2, firmly=True)
        assert [raiser.strikes for raiser in raisers] == [1, 1]
        guard.begin_end(2, EndReason.INTERRUPTED)
        guard.strike_each_once(2)

    await run_cell(guard, leave, NotedRaiser())
    await run_cell(guard, cell, NotedRaiser(), what=2)
    assert of_an_earlier_cell.strikes == 0


async def test_a_strike_that_has_missed_is_tried_again_in_a_later_step() -> None:
    """A signal may find its thread in machinery, and the cell awaits before the ladder looks."""
    guard, raiser = CellGuard(), NotedRaiser()

    async def cell() -> None:
        guard.begin_end(1, EndReason.INTERRUPTED)
        assert guard.strike_each_once(1)
        raiser.missed = True
        await trio.lowlevel.checkpoint()
        raiser.missed = False
        assert guard.strike_each_once(1)
        assert raiser.strikes == 2
        await trio.lowlevel.checkpoint()
        raiser.missed = True  # a signal for another piece, which has the same raiser
        assert guard.strike_each_once(1)
        assert raiser.strikes == 2

    await run_cell(guard, cell, raiser)


async def test_a_strike_goes_on_until_its_piece_has_settled() -> None:
    guard, raiser = CellGuard(), NotedRaiser()

    async def cell() -> None:
        guard.begin_end(1, EndReason.INTERRUPTED)
        for _ in range(3):
            assert guard.strike_each_once(1)
        assert (raiser.strikes, raiser.strikes_on) == (1, 2)
        await trio.lowlevel.checkpoint()
        assert guard.strike_each_once(1)
        assert (raiser.strikes, raiser.strikes_on) == (1, 2)

    await run_cell(guard, cell, raiser)


async def test_what_begins_is_struck_unless_it_is_for_cleaning_up() -> None:
    """What a cell begins before anything of it has been struck doesn't know of the interrupt."""
    guards, raiser = SubshellGuards(), NotedRaiser()
    guard = guards.requests
    strikes = []

    async def piece() -> None:
        guard.strike_each_once(1)
        strikes.append(raiser.strikes)

    async def cell() -> None:
        guard.begin_end(1, EndReason.INTERRUPTED)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(piece)

    with drive_tasks(guards):
        await run_cell(guard, cell, raiser)
    assert strikes == [1, 1]


async def test_a_strike_waits_for_the_end_of_a_protected_block() -> None:
    guard, raiser, reached = CellGuard(), NotedRaiser(), []

    async def publish() -> None:
        with protected():
            with protected():  # as by a finalizer that prints
                assert not guard.strike(1)
            reached.append("the end of the block")
        reached.append("after it")

    with pytest.raises(KeyboardInterrupt):
        await run_cell(guard, publish, raiser)
    assert reached == ["the end of the block"]
    assert raiser.strikes == 0


async def test_a_protected_block_may_await() -> None:
    guard, raiser, reached = CellGuard(), NotedRaiser(), []

    async def ask() -> None:
        with protected():
            assert not guard.strike(1)
            await trio.lowlevel.checkpoint()
            assert not guard.strike(1)
            reached.append("the end of the block")
        reached.append("after it")

    with pytest.raises(KeyboardInterrupt):
        await run_cell(guard, ask, raiser)
    assert reached == ["the end of the block"]
    assert raiser.strikes == 0

    async def ask_and_compute() -> None:
        with protected():
            await trio.lowlevel.checkpoint()
        assert guard.strike(2)
        await trio.lowlevel.checkpoint()
        assert guard.strike(2)

    await run_cell(guard, ask_and_compute, raiser, what=2)
    assert raiser.strikes == 2


async def test_a_task_of_the_cell_in_such_a_block_changes_nothing() -> None:
    """Whether its block begins and ends before or after those of the cell itself."""
    guard, raiser = CellGuard(), NotedRaiser()
    enter, leave = [trio.Event(), trio.Event()], [trio.Event(), trio.Event()]

    async def ask_as_a_task(number: int) -> None:
        await enter[number].wait()
        with protected():
            await leave[number].wait()

    async def ask() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_as_a_task, 0)
            nursery.start_soon(ask_as_a_task, 1)
            enter[0].set()
            await wait_all_tasks_blocked()
            with protected():
                enter[1].set()
                leave[0].set()
                await wait_all_tasks_blocked()
                assert not guard.strike(1)
                assert _here.exposure is not None
                _here.exposure.wanted = False  # it is not to be raised here
            assert guard.strike(1)
            leave[1].set()
            await wait_all_tasks_blocked()
            assert guard.strike(1)

    await run_cell(guard, ask, raiser)
    assert raiser.strikes == 2


async def test_a_block_in_another_thread_protects_nothing() -> None:
    guard, raiser = CellGuard(), NotedRaiser()

    async def compute() -> None:
        def publish() -> None:
            with protected():
                entered.set()
                leave.block()

        entered, leave = Flag(), Flag()
        thread = threading.Thread(target=publish)
        thread.start()
        entered.block()
        struck = guard.strike(1)
        leave.set()
        thread.join()
        assert struck

    await run_cell(guard, compute, raiser)
    assert raiser.strikes == 1
    assert raiser.withdrawals >= 1  # the cell ended before it was hit


async def test_a_cell_that_was_ended_before_it_was_begun_does_nothing() -> None:
    guard, done = CellGuard(), []

    async def cell() -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        done.append(True)

    with guard.cell(1):
        ended = guard.begin_end(1, EndReason.INTERRUPTED)
        assert ended is not None
        with pytest.raises(CellEnded) as info:
            await guard.run(cell, NotedRaiser())
        assert info.value.reason is EndReason.INTERRUPTED
        assert not ended.resolved
    assert ended.resolved
    assert not done


async def test_a_strike_between_two_cells_meets_neither() -> None:
    """It comes after the last step of a cell, but before that is said to have ended."""
    guard, raiser = CellGuard(), NotedRaiser()
    with guard.cell(1):
        await guard.run(trio.lowlevel.checkpoint, raiser)
        assert not guard.strike(1)

    async def innocent() -> str:
        with protected():
            pass
        return "undisturbed"

    assert await run_cell(guard, innocent, raiser, what=2) == "undisturbed"
    assert raiser.strikes == 0


async def short(guard: CellGuard) -> int:
    """A cell that is over almost as soon as it has begun, with all that a cell can go through."""
    with protected():
        total = sum((1, 2, 3))
        if guard.generation % 15 == 0:
            await trio.lowlevel.checkpoint()
    if guard.generation % 10 == 0:
        await trio.lowlevel.checkpoint()
    return total


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no such timer")
def test_thousands_of_interrupts_at_every_point_of_short_cells() -> None:
    """Only odd cells are aimed at: the even ones must not be hit, nor the code around cells.

    The strikes come from a timer's signal, whose handler Python runs just where it lets another
    thread run, and raises what that has left there: any of these points gets its share of strikes,
    which two threads that take turns would need minutes for.
    """
    guard = CellGuard()
    attempts = 0
    handling = False
    struck: set[int] = set()
    points: set[str] = set()

    def is_reported(frame: FrameType | None) -> bool:
        """Whether this is a callback that something is gone, or pytest being told of its failure:
        what is raised there is lost.
        """
        while frame is not None:
            if frame.f_code.co_name in {"__del__", "unraisable_hook"}:
                return True
            if frame.f_globals.get("__name__") in {"_weakrefset", "weakref"}:
                return True
            frame = frame.f_back
        return False

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal attempts, handling
        if handling:
            return  # the timer is quick: this is the handler of the signal before
        handling = True
        try:
            generation = guard.generation
            # Another thread would wait for the lock; this one would wait for itself.
            if generation % 2 and not guard.lock.locked() and not is_reported(frame):
                attempts += 1
                if frame is not None:
                    points.add(frame.f_code.co_name)
                guard.strike(generation)
        finally:
            handling = False

    async def cells() -> None:
        raiser = AsyncRaiser()
        signal.setitimer(signal.ITIMER_REAL, 3e-5, 3e-5)
        try:
            while attempts < INTERRUPTS or len(struck) < CELLS:
                try:
                    await run_cell(guard, partial(short, guard), raiser)
                except KeyboardInterrupt:
                    struck.add(guard.generation)
                if guard.generation % 50 == 0:
                    await trio.lowlevel.checkpoint()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    gc.collect()
    gc.disable()  # what other tests have left isn't to be finalized in the midst of it
    before = signal.signal(signal.SIGALRM, strike)
    try:
        trio.run(cells)
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert all(generation % 2 for generation in struck)
    # It is a test only if the machinery at work was aimed at as well.
    assert points >= {"short", "_drive", "run", "cell", "__enter__", "__exit__", "finishing"}


@pytest.mark.usefixtures("fast_switches")
def test_interrupts_from_another_thread_hit_their_cells_only() -> None:
    """The same with two threads, for as long as it takes to hit some cells."""
    guard, enough = CellGuard(), threading.Event()
    struck: set[int] = set()

    async def cells() -> str:
        raiser = AsyncRaiser()
        while not enough.is_set():
            try:
                await run_cell(guard, partial(short, guard), raiser)
            except KeyboardInterrupt:
                struck.add(guard.generation)
            if guard.generation % 50 == 0:
                await trio.lowlevel.checkpoint()
        return "undisturbed"

    thread, outcome = in_thread(cells)
    while thread.is_alive() and len(struck) < 5:
        generation = guard.generation
        if generation % 2:
            guard.strike(generation)
        time.sleep(0)  # the other thread's turn
    enough.set()
    thread.join(HANG)
    assert outcome == ["undisturbed"]
    assert all(generation % 2 for generation in struck)


# -------------------------------------------------------------------------- what a cell starts


async def test_a_task_of_the_cell_is_struck_as_the_cell_itself() -> None:
    guards, spinning = SubshellGuards(), Flag()
    guard = guards.requests

    async def spin() -> None:
        await trio.lowlevel.checkpoint()
        spinning.set()
        while True:
            pass

    async def cell() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spin)

    async def main() -> None:
        with drive_tasks(guards):
            await run(guard, cell)

    thread, outcome = in_thread(main)
    with trio.fail_after(HANG):
        await spinning.wait()
        ended = guard.begin_end(1, EndReason.INTERRUPTED)
        assert ended is not None
        while not guard.strike(1):
            await trio.lowlevel.checkpoint()
        await ended.wait()
    thread.join(HANG)
    assert [type(each) for each in outcome] == [CellEnded]


async def test_a_task_of_the_cell_is_a_task_like_any_other() -> None:
    """That we replace its coroutine can't be told: trio doesn't document that it may be done."""
    guards = SubshellGuards()
    steps: list[object] = []

    async def child(name: str, *, task_status: trio.TaskStatus[str]) -> None:
        assert _here.exposure is not None  # it is driven, or this test tests nothing
        task = trio.lowlevel.current_task()
        assert not trio.lowlevel.currently_ki_protected()  # looks at the task's coroutine
        task_status.started(name + "!")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            steps.append(task.name)
            raise

    async def fail() -> None:
        assert _here.exposure is not None
        raise ZeroDivisionError

    async def cell() -> str:
        async with trio.open_nursery() as nursery:
            steps.append(await nursery.start(child, "started"))
            nursery.start_soon(trio.sleep, 0)
            nursery.cancel_scope.cancel()
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
        assert caught.group_contains(ZeroDivisionError)
        return "the end"

    with drive_tasks(guards):
        assert await run(guards.requests, cell) == "the end"
    assert steps[0] == "started!"
    assert "child" in str(steps[1])
    assert not guards.requests._exposures


async def test_tasks_of_nobodys_cell_are_left_alone() -> None:
    guards = SubshellGuards()
    seen = []

    async def look() -> None:
        seen.append(_here.exposure)

    with drive_tasks(guards):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
    assert seen == [None, None]


async def test_what_a_cell_has_left_running_is_struck_once_no_other_cell_starts() -> None:
    guards, spinning = SubshellGuards(), Flag()
    guard = guards.requests

    async def spin() -> None:
        await trio.lowlevel.checkpoint()
        await over.wait()
        spinning.set()
        while True:
            pass

    over = trio.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def leave_it_running() -> None:
                nursery.start_soon(spin)

            with drive_tasks(guards):
                await run(guard, leave_it_running)
                over.set()

    thread, outcome = in_thread(main)
    with trio.fail_after(HANG):
        await spinning.wait()
        assert not guard.strike(1)  # that cell has ended
        guard.strike_leftovers()  # and there may be others yet
        assert thread.is_alive()
        guard.close(EndReason.DELETED)
        while thread.is_alive():
            guard.strike_leftovers()
            await trio.lowlevel.checkpoint()
    assert outcome[0] is None  # it is no failure in that nursery
    assert not guard._exposures


async def test_what_a_cell_has_left_running_is_struck_firmly() -> None:
    """It would go on otherwise, if it catches an interrupt, and its thread never end."""
    guard = CellGuard()
    left: list[Exposure] = []

    async def leave() -> None:
        left.append(guard.expose(1, NotedRaiser()))

    await run(guard, leave)
    guard.close(EndReason.DELETED)
    guard.strike_leftovers()
    assert [each.firmly for each in left] == [True]


@pytest.mark.parametrize("struck", [False, True])
async def test_what_else_fails_in_what_a_cell_has_left_running_is_a_failure(struck: bool) -> None:
    """An interrupt of its own, or an error that comes together with ours."""
    errors = [KeyboardInterrupt(), ZeroDivisionError()] if struck else [KeyboardInterrupt()]
    guards = SubshellGuards()
    guard = guards.requests
    over = trio.Event()

    async def left() -> None:
        await over.wait()
        if struck:
            guard.close(EndReason.DELETED)
            guard.strike_leftovers()
        raise BaseExceptionGroup("", errors)

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:

            async def leave_it_running() -> None:
                nursery.start_soon(left)

            with drive_tasks(guards):
                await run_cell(guard, leave_it_running, NotedRaiser())
                over.set()
    assert caught.group_contains(ZeroDivisionError if struck else KeyboardInterrupt)


async def test_what_a_cell_has_left_running_starts_is_no_part_of_the_next_cell() -> None:
    guards = SubshellGuards()
    guard = guards.requests
    go_on, started = trio.Event(), trio.Event()
    seen = []

    async def started_late() -> None:
        assert _here.exposure is not None
        seen.append((_here.exposure.is_of(1), _here.exposure.is_of(2)))
        started.set()

    async with trio.open_nursery() as nursery:

        async def left() -> None:
            await go_on.wait()
            nursery.start_soon(started_late)

        async def leave_it_running() -> None:
            nursery.start_soon(left)

        async def next_one() -> None:
            go_on.set()
            await started.wait()

        with drive_tasks(guards):
            await run(guard, leave_it_running)
            await run(guard, next_one)
    assert seen == [(True, False)]


@pytest.mark.parametrize("in_nursery", [False, True])
async def test_what_a_cell_has_left_running_ends_cancelled_though_it_was_struck(
    in_nursery: bool,
) -> None:
    guards = SubshellGuards()

    async def left() -> None:
        if in_nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
        else:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:  # fails, if one of its tasks does

        async def leave_it_running() -> None:
            nursery.start_soon(left)

        with drive_tasks(guards):
            await run(guards.requests, leave_it_running)
            await wait_all_tasks_blocked()
            guards.close(EndReason.SHUTDOWN)
            guards.requests.strike_leftovers()
            nursery.cancel_scope.cancel()
    assert not guards.requests._exposures


async def test_a_function_in_a_worker_thread_is_struck_as_the_cell_itself() -> None:
    guard, spinning = CellGuard(), Flag()

    def spin() -> None:
        with protected():  # as by a print
            pass
        spinning.set()
        while True:
            pass

    async def cell() -> None:
        await trio.to_thread.run_sync(exposed(spin))

    async def strike() -> None:
        await spinning.wait()
        assert guard.begin_end(1, EndReason.INTERRUPTED) is not None
        while not guard.strike(1):
            await trio.lowlevel.checkpoint()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike)
            with pytest.raises(CellEnded):
                await run(guard, cell)
    assert not guard._exposures


async def test_a_function_in_a_worker_thread_returns_and_raises_as_ever() -> None:
    guard = CellGuard()

    def add(one: int, other: int) -> int:
        assert _here.exposure is not None
        return one + other

    def fail() -> None:
        raise ZeroDivisionError

    async def cell() -> int:
        with pytest.raises(ZeroDivisionError):
            await trio.to_thread.run_sync(exposed(fail))
        return await trio.to_thread.run_sync(exposed(add), 1, 2)

    assert await run(guard, cell) == 3
    assert exposed(add) is add  # nobody's cell


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_shields_are_lifted(in_a_task: bool) -> None:
    """Where trio keeps the scopes within a scope is nowhere documented."""
    guard = CellGuard()
    cleaned_up = False

    async def shielded() -> None:
        nonlocal cleaned_up
        try:
            with trio.CancelScope(shield=True), trio.CancelScope(shield=True):
                await trio.sleep_forever()
        finally:
            cleaned_up = True

    async def cell() -> None:
        if in_a_task:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shielded)
        else:
            await shielded()

    async def end() -> None:
        await wait_all_tasks_blocked()
        assert guard.begin_end(1, EndReason.DELETED) is not None
        guard.cancel(1)
        await wait_all_tasks_blocked()
        assert guard.running
        guard.cancel(1, lift_shields=True)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(CellEnded):
                await run(guard, cell)
    assert cleaned_up


async def test_who_is_ended_firmly_hears_of_errors_as_ever() -> None:
    """Only what trio cancels is interrupted instead: a cleanup sees how its stream has ended."""
    guard = CellGuard()

    async def end() -> None:
        await wait_all_tasks_blocked()
        guard.strike(1, firmly=True)
        send.close()

    async def cell() -> str:
        with pytest.raises(trio.EndOfChannel):
            await receive.receive()
        return "heard"

    send, receive = trio.open_memory_channel[None](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        assert await run_cell(guard, cell, NotedRaiser()) == "heard"


async def test_code_is_struck_before_its_lines_only_in_a_cell_that_is_ended_firmly() -> None:
    """Others may run the same functions at the same time."""
    guard = CellGuard()
    seen = []

    def look() -> None:
        seen.append(_strikes_before_line(sys._getframe()))

    async def cell() -> None:
        look()
        guard.strike(1)
        look()
        guard.strike(1, firmly=True)
        look()

    await run_cell(guard, cell, NotedRaiser())
    assert seen == [None, None, FirmInterrupt]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="nothing strikes before lines there")
def test_no_code_is_struck_before_its_lines_once_its_cell_has_ended() -> None:
    exposure = CellGuard().expose(0, NotedRaiser())

    def comes_to_one() -> None:
        exposure.strike_before_each_line(sys._getframe())

    def comes_to_another() -> None:
        exposure.strike_before_each_line(sys._getframe())

    comes_to_one()
    comes_to_another()
    exposure.close()
    if sys.version_info >= (3, 12):
        assert "trio_subshells" not in map(sys.monitoring.get_tool, range(6))


def test_an_interrupt_may_be_dropped_at_the_end_of_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    kept = threading.local()

    def keep() -> None:
        kept.interrupt = ThrownInterrupt()

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    assert not ignored


# ------------------------------------------------------------------------------------- signals


@pytest.mark.skipif(sys.platform == "win32", reason="signals can't be held back there")
def test_a_signal_that_was_withdrawn_does_nothing() -> None:
    raiser, interrupts = SignalRaiser(), []
    with raiser.installed(lambda: interrupts.append("the user's")):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        raiser.strike()  # it is on its way
        raiser.withdraw()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        assert interrupts == []
        signal.raise_signal(signal.SIGINT)
        assert interrupts == ["the user's"]


def test_a_signal_of_our_own_is_raised_and_the_users_is_not() -> None:
    raiser, interrupts = SignalRaiser(), []
    before = signal.getsignal(signal.SIGINT)
    with raiser.installed(lambda: interrupts.append("the user's")):
        with pytest.raises(KeyboardInterrupt):
            strike_and_wait(raiser)
        assert interrupts == []
        raiser.withdraw()  # it has struck: nothing is left to be ignored
        signal.raise_signal(signal.SIGINT)
        assert interrupts == ["the user's"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals are for the process there")
def test_a_signal_that_comes_too_late_to_interrupt_a_call_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raiser, interrupts = SignalRaiser(), []
    sent: list[int] = []
    send = signal.pthread_kill

    def send_the_first_elsewhere(thread: int, number: int) -> None:
        sent.append(thread)
        send(thread if len(sent) > 1 else threading.get_ident(), number)

    def strike() -> None:
        runs.wait()
        raiser.strike()
        while not done.wait(0.01):
            raiser.strike_on()

    monkeypatch.setattr(signal, "pthread_kill", send_the_first_elsewhere)
    runs, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=strike)
    with raiser.installed(lambda: interrupts.append("the user's")):
        thread.start()
        try:
            begin = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                runs.set()
                threading.Event().wait(HANG)
                raise AssertionError("the signal was not handled at all")
        finally:
            done.set()
            thread.join()
        assert time.monotonic() - begin < HANG, "it was handled at the end of the call"
        assert interrupts == [], "none of them is the user's"
        raiser.strike_on()
        assert set(sent) == {threading.main_thread().ident}
        count = len(sent)
        raiser.strike_on()
        assert len(sent) == count, "what has struck strikes no more"


def strike_and_wait(raiser: SignalRaiser) -> None:
    runs = threading.Event()  # nothing strikes while a thread is being started

    def strike() -> None:
        runs.wait()
        raiser.strike()

    threading.Thread(target=strike).start()
    runs.set()
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        threading.Event().wait(0.1)  # a signal that comes just before it doesn't interrupt it
    raise AssertionError("the signal didn't interrupt the wait")
