"""The ladder: each rung is tried when those before it had no effect."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.kernel import _guard
from trio_subshells.kernel._guard import (
    CellEnded,
    CellGuard,
    EndReason,
    Raiser,
    SubshellGuards,
    drive_tasks,
    exposed,
    interruptible_sleep,
)
from trio_subshells.kernel._ladder import end_cell
from trio_subshells.kernel._raisers import AsyncRaiser

from .helpers import HANG, Flag, run_cell


class CellInThread:
    """A guarded cell in a thread of its own, which `end_cell` is to end from here."""

    def __init__(
        self,
        body: Callable[[CellGuard, Flag], object],
        make_raiser: Callable[[], Raiser] = AsyncRaiser,
    ) -> None:
        guards = SubshellGuards()
        self.guard = guards.requests
        self.started = Flag()
        self.reason: object = None

        async def cell() -> None:
            result = body(self.guard, self.started)
            if hasattr(result, "__await__"):
                await result

        async def main() -> None:
            with drive_tasks(guards):
                try:
                    self.reason = await run_cell(self.guard, cell, make_raiser())
                except CellEnded as ended:
                    self.reason = ended.reason

        self._thread = threading.Thread(target=trio.run, args=(main,))

    async def __aenter__(self) -> Self:
        self._thread.start()
        with trio.fail_after(HANG):
            await self.started.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._thread.join(HANG)
        assert not self._thread.is_alive()

    async def end(self, reason: EndReason, deadline: float = HANG / 2) -> bool:
        return await end_cell(self.guard, 1, reason, deadline=deadline)


class MissingRaiser:
    """Its first strike comes to nothing, after all."""

    def __init__(self) -> None:
        self._raiser = AsyncRaiser()
        self.strikes = 0

    @property
    def missed(self) -> bool:
        return self.strikes == 1

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        self.strikes += 1
        return self.strikes == 1 or self._raiser.strike(error)

    def strike_on(self) -> None:
        self._raiser.strike_on()

    def withdraw(self) -> None:
        self._raiser.withdraw()


async def await_something(guard: CellGuard, started: Flag) -> None:
    started.set()
    await trio.sleep_forever()


def compute(guard: CellGuard, started: Flag) -> None:
    started.set()
    while True:
        pass


def compute_stubbornly(guard: CellGuard, started: Flag) -> None:
    """Catches the first interrupts, as careless code does."""
    caught = 0
    while caught < 2:
        try:
            started.set()
            while True:
                pass
        except KeyboardInterrupt:
            caught += 1
    while True:
        pass


def block_in_a_call(guard: CellGuard, started: Flag) -> None:
    """A call that ends only if somebody tells it to, and the author knows how."""
    told = Flag()
    with guard.canceller(told.set):
        started.set()
        told.block()
        raise OSError("the call was cancelled")


def catch_everything(guard: CellGuard, started: Flag) -> None:
    started.set()
    while True:
        try:
            while True:
                sum((1, 2, 3))
        except BaseException:  # noqa: S110 - that's what it is about
            pass


def catch_everything_twice(guard: CellGuard, started: Flag) -> None:
    while True:
        try:
            catch_everything(guard, started)
        except BaseException:
            sum((1, 2, 3))


def suppress_everything(guard: CellGuard, started: Flag) -> None:
    started.set()
    while True:
        with suppress(BaseException):
            sum((1, 2, 3))


def clean_up_for_ever(guard: CellGuard, started: Flag) -> None:
    try:
        started.set()
        while True:
            pass
    finally:
        while True:
            pass


def sleep_in_spite_of_everything(guard: CellGuard, started: Flag) -> None:
    started.set()
    while True:
        try:  # noqa: SIM105
            interruptible_sleep(HANG, time.sleep)
        except BaseException:  # noqa: S110
            pass


async def await_in_spite_of_everything(guard: CellGuard, started: Flag) -> None:
    started.set()
    while True:
        try:  # noqa: SIM105
            await trio.sleep(HANG)
        except BaseException:  # noqa: S110 - that's what it is about
            pass


async def await_behind_a_shield(guard: CellGuard, started: Flag) -> None:
    with trio.CancelScope(shield=True):
        started.set()
        await trio.sleep_forever()


async def compute_in_a_task(guard: CellGuard, started: Flag) -> None:
    async def spin() -> None:
        started.set()
        while True:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        await trio.sleep_forever()


async def compute_in_a_worker(guard: CellGuard, started: Flag) -> None:
    await trio.to_thread.run_sync(exposed(partial(compute, guard, started)))


async def sleep_in_a_worker(guard: CellGuard, started: Flag) -> None:
    started.set()
    await trio.to_thread.run_sync(exposed(interruptible_sleep), HANG, time.sleep)


def sleep_for_long(guard: CellGuard, started: Flag) -> None:
    started.set()
    interruptible_sleep(HANG, time.sleep)


def block_in_a_call_that_begins_late(guard: CellGuard, started: Flag) -> None:
    """When it is struck, it is in the call already; but when it was first cancelled, it was not."""
    started.set()
    while guard.ends == 0:
        pass
    block_in_a_call(guard, started)


GENTLE = [
    await_something,
    compute,
    block_in_a_call,
    block_in_a_call_that_begins_late,
    compute_in_a_task,
    compute_in_a_worker,
    sleep_in_a_worker,
    sleep_for_long,
]
STUBBORN = [
    compute_stubbornly,
    catch_everything,
    catch_everything_twice,
    suppress_everything,
    clean_up_for_ever,
    sleep_in_spite_of_everything,
    await_in_spite_of_everything,
    await_behind_a_shield,
]


@pytest.mark.parametrize("body", GENTLE)
async def test_an_interrupt_ends_what_lets_itself_be_ended(
    body: Callable[[CellGuard, Flag], object],
) -> None:
    async with CellInThread(body) as cell:
        assert await cell.end(EndReason.INTERRUPTED)
    assert cell.reason is EndReason.INTERRUPTED


@pytest.mark.parametrize("body", [*GENTLE, *STUBBORN])
@pytest.mark.parametrize("reason", [EndReason.TIMED_OUT, EndReason.DELETED, EndReason.SHUTDOWN])
async def test_it_ends_what_can_be_ended(
    body: Callable[[CellGuard, Flag], object], reason: EndReason
) -> None:
    async with CellInThread(body) as cell:
        assert await cell.end(reason)
    assert cell.reason is reason


async def test_a_cell_that_is_traced_is_ended_and_leaves_no_tool() -> None:
    """Neither a debugger's trace function nor tools of `sys.monitoring` are in the ladder's way."""

    def trace(frame: FrameType, event: str, arg: object) -> object:
        return trace

    def catch_everything_traced(guard: CellGuard, started: Flag) -> None:
        sys.settrace(trace)
        sleep_in_spite_of_everything(guard, started)

    async with CellInThread(catch_everything_traced) as cell:
        assert await cell.end(EndReason.DELETED)
    assert cell.reason is EndReason.DELETED
    if sys.version_info >= (3, 12):
        assert "trio_subshells" not in map(sys.monitoring.get_tool, range(6))


async def test_an_interrupt_may_be_caught_but_not_another_one() -> None:
    caught, sum_of_all = Flag(), 0

    def go_on_once_caught(guard: CellGuard, started: Flag) -> None:
        nonlocal sum_of_all
        while True:
            try:
                started.set()
                while True:
                    sum_of_all += 1
            except KeyboardInterrupt:
                caught.set()

    async with CellInThread(go_on_once_caught) as cell:
        assert not await cell.end(EndReason.INTERRUPTED, deadline=0.2)
        assert caught.is_set()
        before = sum_of_all
        assert cell.guard.running
        assert await cell.end(EndReason.INTERRUPTED)
        assert sum_of_all > before  # it had gone on
    assert cell.reason is EndReason.INTERRUPTED


async def test_at_the_deadline_it_says_that_the_cell_is_still_there() -> None:
    go = Flag()

    def stuck(guard: CellGuard, started: Flag) -> None:
        started.set()
        go.block()

    async with CellInThread(stuck) as cell:
        assert not await cell.end(EndReason.INTERRUPTED, deadline=0.1)
        assert cell.guard.running is not None
        go.set()


async def test_two_who_end_the_same_cell_both_hear_of_its_end() -> None:
    """The first has tried in vain for a while already, when the second comes."""
    go, tried_again = Flag(), Flag()
    rounds = 0
    answers: list[bool] = []

    def count() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            tried_again.set()

    def stuck(guard: CellGuard, started: Flag) -> None:
        with guard.canceller(count):
            started.set()
            go.block()

    async def end() -> None:
        answers.append(await cell.end(EndReason.TIMED_OUT, deadline=2 * HANG))

    with trio.fail_after(HANG):
        async with CellInThread(stuck) as cell, trio.open_nursery() as nursery:
            nursery.start_soon(end)
            await tried_again.wait()
            nursery.start_soon(end)
            await wait_all_tasks_blocked()
            go.set()
    assert answers == [True, True]


async def test_a_cell_that_has_ended_needs_no_ending() -> None:
    guard = CellGuard()
    await run_cell(guard, trio.lowlevel.checkpoint, AsyncRaiser())
    assert await end_cell(guard, 1, EndReason.INTERRUPTED, deadline=HANG)
    assert await end_cell(CellGuard(), 0, EndReason.INTERRUPTED, deadline=HANG)


async def test_a_later_cell_is_left_alone() -> None:
    guard, answers = CellGuard(), []

    async def end_the_first() -> None:
        await wait_all_tasks_blocked()
        answers.append(await end_cell(guard, 1, EndReason.INTERRUPTED, deadline=HANG))
        event.set()

    event = trio.Event()
    await run_cell(guard, trio.lowlevel.checkpoint, AsyncRaiser())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_the_first)
        await run_cell(guard, event.wait, AsyncRaiser())
    assert answers == [True]


async def test_a_canceller_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ValueError("a broken canceller")

    called = Flag()

    async def body(guard: CellGuard, started: Flag) -> None:
        with guard.canceller(broken), guard.canceller(called.set):
            started.set()
            await trio.sleep_forever()

    async with CellInThread(body) as cell:
        assert await cell.end(EndReason.INTERRUPTED)
    assert "a broken canceller" in caplog.text
    assert called.is_set()


async def test_an_interrupt_that_has_come_to_nothing_is_tried_again() -> None:
    async with CellInThread(compute, MissingRaiser) as cell:
        assert await cell.end(EndReason.INTERRUPTED)
    assert cell.reason is EndReason.INTERRUPTED


class RefusingRaiser:
    """Finds its thread in machinery, the first time."""

    missed = False

    def __init__(self) -> None:
        self._raiser = AsyncRaiser()
        self.strikes = 0

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        self.strikes += 1
        return self.strikes > 1 and self._raiser.strike(error)

    def strike_on(self) -> None:
        self._raiser.strike_on()

    def withdraw(self) -> None:
        self._raiser.withdraw()


async def test_each_worker_of_a_cell_is_interrupted_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them can't be struck at first; the other is, and cleans up meanwhile."""
    kinds = [RefusingRaiser, AsyncRaiser]  # each is made in its own thread

    def make_raiser() -> Raiser:
        return kinds.pop()()

    monkeypatch.setattr(_guard, "AsyncRaiser", make_raiser)
    struck: list[str] = []
    cleaned_up = Flag()

    def spin(name: str, ready: Flag, *, wait: bool) -> None:
        try:
            ready.set()
            while True:
                pass
        except KeyboardInterrupt:
            struck.append(name)
            while wait and len(struck) < 2:  # a second strike would hit here
                pass
            cleaned_up.set()

    async def body(guard: CellGuard, started: Flag) -> None:
        async with trio.open_nursery() as nursery:
            for name in ("first", "second"):
                ready = Flag()
                work = exposed(partial(spin, name, ready, wait=name == "first"))
                nursery.start_soon(trio.to_thread.run_sync, work)
                await ready.wait()
            started.set()

    async with CellInThread(body) as cell:
        assert await cell.end(EndReason.INTERRUPTED)
        await cleaned_up.wait()
    assert struck == ["first", "second"]
