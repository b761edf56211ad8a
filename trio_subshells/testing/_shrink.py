"""Shrinking: of a schedule that fails, the few deviations that it takes.

Plain delta debugging. Deviations are taken away, many at once first, then single ones, as long as
what is left fails in the same way. A deviation is tied to the number of its decision, and without
one before it that number may be another: a few shifts are tried. Each attempt is a run, so there is
a bound on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import attrs

from ._schedules import Schedule


def shrink(
    schedule: Schedule,
    attempt: Callable[[Schedule], Schedule | None],
    *,
    runs: int = 2_000,
    seconds: float = 5,
) -> Schedule:
    """Shrink a schedule that fails to one that fails in the same way with fewer deviations.

    Args:
        schedule: the one that fails.
        attempt: runs a schedule; returns None if it doesn't fail in the same way, else the schedule
            that was really run, without the deviations that were skipped.
        runs: how many attempts at most.
        seconds: how long at most, in real time.
    """
    bounded = _Bounded(attempt, runs, time.perf_counter() + seconds)
    best = schedule
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


class _Bounded:
    """Attempts, until there were enough of them."""

    def __init__(
        self, attempt: Callable[[Schedule], Schedule | None], runs: int, end: float
    ) -> None:
        self._attempt = attempt
        self._runs = runs
        self._end = end

    @property
    def spent(self) -> bool:
        return not self._runs or time.perf_counter() > self._end

    def __call__(self, schedule: Schedule) -> Schedule | None:
        if self.spent:
            return None
        self._runs -= 1
        return self._attempt(schedule)


def _without(
    schedule: Schedule, position: int, size: int, attempt: Callable[[Schedule], Schedule | None]
) -> Schedule | None:
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


_SHIFTS: Final = (0, -1, 1, -2, 2, -3, 3)
