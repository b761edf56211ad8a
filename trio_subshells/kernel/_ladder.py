"""The ladder: how a running cell is ended, one rung after the other.

0. The author's own cancellers (`Cell.on_cancel`): they end a call that knows how to be ended.
1. The cell's scope is cancelled: ends everything that awaits.
2. `KeyboardInterrupt` is raised where the cell computes: ends what computes in Python.
3. Firmly: what the cell has shielded is cancelled, and where it catches `KeyboardInterrupt`, it is
   struck again. Before that it has a *grace*.
4. It is still there at the deadline (a call into C that doesn't return): that is reported, and its
   request is answered on its behalf (see `_pending`). The ladder goes on, in case it returns.

It runs in the kernel's I/O thread, never in the cell's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs
import trio
from trio_util import move_on_when

from ..actors import Promise
from ._failures import failures
from ._guard import CellGuard, EndReason

FIRST_PAUSE: Final = 0.02
"""Seconds that a cell has for each of the first rungs to take effect."""
LONGEST_PAUSE: Final = 0.25
"""Seconds between later attempts."""

GRACE: Final = {EndReason.INTERRUPTED: math.inf, EndReason.TIMED_OUT: 0.5}
"""Seconds that a cell has to clean up, and to say where it was, before it is ended firmly.

An interrupt is one `KeyboardInterrupt`, as everywhere in Python, and what a cell makes of that is
its own business.
"""
SHORT_GRACE: Final = 0.06
"""The same, if the cell's subshell is to end; and if it has been told before, and has gone on."""

DELETE_TIMEOUT: Final = 5.0
"""Seconds that a busy subshell has to end, unless the request says otherwise (``timeout``)."""
GIVE_UP_AFTER: Final = 5.0
"""Seconds that a cell has to end after its timeout, unless its request says otherwise
(``give_up_after``). Then its request is answered without it."""
INTERRUPT_TIMEOUT: Final = 5.0
"""Seconds after which an interrupt that had no effect is reported as such."""
SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that running cells have to end, when a client shuts the kernel down: clients wait for
some seconds in all, then kill."""


async def end_cell(
    guard: CellGuard, generation: int, reason: EndReason, *, deadline: float
) -> bool:
    """End the cell of that generation; returns whether it has ended, whatever of.

    Cancelled, it stops trying: the cell may end or not.

    Args:
        guard: of the subshell that it runs in.
        generation: of the cell that is meant. If another one runs by now, it is left alone.
        reason: what the cell's reply says.
        deadline: in seconds from now.
    """
    [ended] = await end_cells([(guard, generation)], reason, deadline=deadline)
    return ended


async def end_cells(
    cells: Sequence[tuple[CellGuard, int]], reason: EndReason, *, deadline: float
) -> list[bool]:
    """End several cells, as `end_cell` does: each is told so before any of them can have ended.

    One of them may wait for another; that one's end is nothing that it should go on with.
    """
    endings = [_announce(guard, generation, reason) for guard, generation in cells]
    for each in endings:
        if each is not None:
            _cancel(each.guard, each.generation)
    async with trio.open_nursery() as nursery:
        for each in endings:
            if each is not None:
                nursery.start_soon(_await_end, each, deadline)
    return [each is None or each.ended.resolved for each in endings]


@attrs.frozen
class _Ending:
    """A cell that is to end."""

    guard: CellGuard
    generation: int
    grace: float
    ended: Promise[None]


def _announce(guard: CellGuard, generation: int, reason: EndReason) -> _Ending | None:
    """None: it has ended."""
    ended = guard.begin_end(generation, reason)
    if ended is None:
        return None
    grace = GRACE.get(reason, SHORT_GRACE) if guard.ends == 1 else SHORT_GRACE
    return _Ending(guard, generation, grace, ended)


async def _await_end(ending: _Ending, deadline: float) -> None:
    with trio.move_on_after(deadline):
        async with move_on_when(ending.ended.wait):
            await _climb(ending.guard, ending.generation, ending.grace)


async def _climb(guard: CellGuard, generation: int, grace: float) -> None:
    """Try everything, for ever. Its cancellers have been called, and it has been cancelled."""
    pause = FIRST_PAUSE
    with trio.move_on_after(grace):
        while True:
            await trio.sleep(pause)
            if guard.strike_each_once(generation):
                pause = min(2 * pause, LONGEST_PAUSE)
            _cancel(guard, generation)  # again and again: it may register another canceller
    pause = FIRST_PAUSE
    while True:
        _cancel(guard, generation, lift_shields=True)
        guard.strike(generation, firmly=True)
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _cancel(guard: CellGuard, generation: int, *, lift_shields: bool = False) -> None:
    for canceller in guard.cancellers(generation):
        try:
            canceller()
        except BaseException as error:  # even a SystemExit: it is the author's code, in our thread
            failures.add("a canceller of a cell", error)
    guard.cancel(generation, lift_shields=lift_shields)
