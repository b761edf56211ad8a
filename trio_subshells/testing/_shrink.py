"""Shrinking: of a schedule that fails, the few deviations that it takes.

Plain delta debugging. Deviations are taken away, many at once first, then single ones, as long as
what is left fails in the same way. A deviation is tied to the number of its decision, and without
one before it that number may be another: a few shifts are tried.

Where every single deviation seems to be needed, though there are many, context switches are merged:
a task that goes on later is made to go on at once, or to wait altogether until then (Jalbert and
Sen, "A trace simplification technique for effective debugging of concurrent programs", 2010), and
what comes of that is shrunk as before.

Each attempt is a run, so there is a bound on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from ._schedules import Order, Schedule


def shrink(
    schedule: Schedule,
    attempt: Callable[[Schedule | Order], Schedule | None],
    order: Callable[[Schedule], Order] | None = None,
    *,
    runs: int = 3_000,
    seconds: float = 10,
) -> Schedule:
    """Shrink a schedule that fails to one that fails in the same way with fewer deviations.

    Args:
        schedule: the one that fails.
        attempt: runs a schedule; returns None if it doesn't fail in the same way, else the schedule
            that was really run, without the deviations that were skipped. Runs an order as well.
        order: tells the order in which things happen in a schedule.
        runs: how many attempts at most.
        seconds: how long at most, in seconds of processor time.
    """
    bounded = _Bounded(attempt, runs, time.process_time() + seconds)
    best = _fewer_deviations(schedule, bounded)
    while order is not None and len(best) > _FEW and not bounded.spent:
        merged = _fewer_switches(best, order, bounded)
        if merged is best:
            break
        best = _fewer_deviations(merged, bounded)
    return best


def _fewer_deviations(best: Schedule, bounded: _Bounded) -> Schedule:
    size = len(best)
    while size and not bounded.spent:
        position = 0
        shrunk = False
        while position < len(best):
            found = _without(best, position, size, bounded)
            if found is not None:
                best = found
                shrunk = True
            else:
                position += size
        if size > 1:
            size //= 2
        elif not shrunk:
            break
    return best


def _fewer_switches(
    best: Schedule, order: Callable[[Schedule], Order], bounded: _Bounded
) -> Schedule:
    """A schedule with fewer deviations, where tasks have two blocks of steps in one."""
    blocks = order(best).blocks
    first = 0
    while first < len(blocks):
        for rearranged in _merged(blocks, first):
            found = bounded(Order(rearranged, best.time))
            if found is not None and len(found) < len(best):
                best = found
                blocks = order(best).blocks
                break
        else:
            first += 1
    return best


def _merged(
    blocks: tuple[tuple[str, int], ...], first: int
) -> Iterator[tuple[tuple[str, int], ...]]:
    """The blocks, with the next one of the same task brought to this one, and the other way."""
    name, _ = blocks[first]
    second = next((at for at in range(first + 1, len(blocks)) if blocks[at][0] == name), None)
    if second is not None:
        between, both = blocks[first + 1 : second], (blocks[first], blocks[second])
        for middle in (both + between, between + both):
            yield blocks[:first] + middle + blocks[second + 1 :]


class _Bounded:
    """Attempts, until there were enough of them."""

    def __init__(
        self, attempt: Callable[[Schedule | Order], Schedule | None], runs: int, end: float
    ) -> None:
        self._attempt = attempt
        self._runs = runs
        self._end = end

    @property
    def spent(self) -> bool:
        return not self._runs or time.process_time() > self._end

    def __call__(self, schedule: Schedule | Order) -> Schedule | None:
        if self.spent:
            return None
        self._runs -= 1
        return self._attempt(schedule)


def _without(schedule: Schedule, position: int, size: int, attempt: _Bounded) -> Schedule | None:
    """A failing schedule without some of the deviations; None if none was found."""
    before = schedule.deviations[:position]
    after = schedule.deviations[position + size :]
    # Without one deviation, those after it may have to come a decision or two sooner or later.
    shifts = _SHIFTS if size == 1 and after else (0,)
    for shift in shifts:
        shifted = [attrs.evolve(each, decision=each.decision + shift) for each in after]
        if before and shifted and shifted[0].decision <= before[-1].decision:
            continue
        if shifted and shifted[0].decision < 0:
            continue
        found = attempt(schedule.only([*before, *shifted]))
        if found is not None and len(found) < len(schedule):
            return found
    return None


_FEW: Final = 2
"""Deviations that nobody needs fewer of."""

_SHIFTS: Final = (0, -1, 1, -2, 2, -3, 3)
