"""The ladder: each rung is tried when those before it had no effect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.kernel._guard import CellEnded, CellGuard, EndReason
from trio_subshells.kernel._ladder import end_cell
from trio_subshells.kernel._raisers import AsyncRaiser

from .helpers import HANG, Flag


class CellInThread:
    """A guarded cell in a thread of its own, which `end_cell` is to end from here."""

    def __init__(self, body: Callable[[CellGuard, Flag], object]) -> None:
        self.guard = CellGuard()
        self.started = Flag()
        self.reason: object = None

        async def cell() -> None:
            result = body(self.guard, self.started)
            if hasattr(result, "__await__"):
                await result

        async def main() -> None:
            try:
                self.reason = await self.guard.run(cell, what=1, raiser=AsyncRaiser())
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

    async def end(self, reason: EndReason, deadline: float = HANG) -> bool:
        return await end_cell(self.guard, 1, reason, deadline=deadline)


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


@pytest.mark.parametrize("body", [await_something, compute, compute_stubbornly, block_in_a_call])
@pytest.mark.parametrize("reason", [EndReason.INTERRUPTED, EndReason.DELETED])
async def test_it_ends_what_can_be_ended(
    body: Callable[[CellGuard, Flag], object], reason: EndReason
) -> None:
    async with CellInThread(body) as cell:
        assert await cell.end(reason)
    assert cell.reason is reason


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
        answers.append(await cell.end(EndReason.INTERRUPTED, deadline=2 * HANG))

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
    await guard.run(trio.lowlevel.checkpoint, what=1, raiser=AsyncRaiser())
    assert await end_cell(guard, 1, EndReason.INTERRUPTED, deadline=HANG)
    assert await end_cell(CellGuard(), 0, EndReason.INTERRUPTED, deadline=HANG)


async def test_a_later_cell_is_left_alone() -> None:
    guard, answers = CellGuard(), []

    async def end_the_first() -> None:
        await wait_all_tasks_blocked()
        answers.append(await end_cell(guard, 1, EndReason.INTERRUPTED, deadline=HANG))
        event.set()

    event = trio.Event()
    run = partial(guard.run, what=1, raiser=AsyncRaiser())
    await run(trio.lowlevel.checkpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_the_first)
        await run(event.wait)
    assert answers == [True]


async def test_a_canceller_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ValueError("a broken canceller")

    async def body(guard: CellGuard, started: Flag) -> None:
        with guard.canceller(broken):
            started.set()
            await trio.sleep_forever()

    async with CellInThread(body) as cell:
        assert await cell.end(EndReason.INTERRUPTED)
    assert "a broken canceller" in caplog.text
