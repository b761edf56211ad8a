"""Shrinking: of a schedule that fails, the few deviations that it takes.

Most of the deviations of a schedule that was found by chance are chance. So first another one is
looked for that fails in the same way, and is the default order but for a turn or two that are held:
each waits from some decision on, until nothing else can happen. That is one deviation for each,
however long it waits (Emmi, Qadeer and Rakamarić, "Delay-bounded scheduling", 2011). Where threads
were preempted, the default order with one or two of these, and a turn held, comes before that.

If there is none, or in the end, plain delta debugging. Deviations are taken away, many at once
first, then single ones, as long as what is left fails in the same way. A deviation is tied to the
number of its decision, and without one before it that number may be another: a few shifts are
tried. A stop and what was chosen there are taken away together, if neither can be alone. And where
several deviations are left, each stop is tried by itself, in the default order.

Where every single deviation seems to be needed, though there are many, a turn that is passed over
again and again is held; and context switches are merged: a task that goes on later is made to go on
at once, or to wait altogether until then (Jalbert and Sen, "A trace simplification technique for
effective debugging of concurrent programs", 2010). What comes of that is shrunk as before.

Each attempt is a run, so there is a bound on them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Final

import attrs

from ._preemption import Stop
from ._schedules import Delays, Order, Schedule
from ._simulation import FAULT_PREFIX, TIME_PASSES, Deviation


def shrink(
    schedule: Schedule,
    attempt: Callable[[Schedule | Order | Delays], Schedule | None],
    order: Callable[[Schedule], Order] | None = None,
    defaults: Callable[..., list[str]] | None = None,
    *,
    stops: Sequence[Stop] = (),
    runs: int = 3_000,
    seconds: float = 60,
) -> Schedule:
    """Shrink a schedule that fails to one that fails in the same way with fewer deviations.

    Args:
        schedule: the one that fails.
        attempt: runs a schedule; returns None if it doesn't fail in the same way, else the schedule
            that was really run, without the deviations that were skipped. Runs an order, and a
            few delays, as well.
        order: tells the order in which things happen in a schedule.
        defaults: tells which turn is the default in each decision of the default order.
        stops: where threads were preempted, as counted in the whole run.
        runs: how many attempts at most.
        seconds: how long at most, in seconds of processor time.
    """
    bounded = _Bounded(attempt, runs, time.process_time() + seconds)

    def few_delays(schedule: Schedule, share: float) -> Schedule | None:
        if defaults is None:
            return None
        end = time.process_time() + seconds * share
        patience = _Bounded(bounded, int(runs * share), end)
        return _few_delays(schedule, defaults, stops, patience)

    best = schedule
    if len(schedule) > _MANY:
        best = few_delays(schedule, 0.6) or schedule
    best = _fewer_deviations(best, bounded)
    while len(best) > _FEW and not bounded.spent:
        shorter = _held(best, bounded)
        if shorter is best and order is not None:
            shorter = _fewer_switches(best, order, bounded)
        if shorter is best:
            break
        best = _fewer_deviations(shorter, bounded)
    if len(best) > _FEW and len(schedule) <= _MANY and stops:
        other = few_delays(best, 0.5)
        if other is not None and len(other) < len(best):
            best = _fewer_deviations(other, bounded)
    return _one_stop(best, stops, bounded) or best


def _fewer_deviations(best: Schedule, bounded: _Bounded) -> Schedule:
    size = len(best)
    while size and not bounded.spent:
        position = 0
        shrunk = False
        while position < len(best):
            found = _without(best, position, size, bounded, may_shift=size == 1)
            if found is not None:
                best = found
                shrunk = True
            else:
                position += size
        if size > 1:
            size //= 2
        elif not shrunk:
            shorter = _without_vain_stops(best, bounded)
            if shorter is best:
                break
            best = shorter
    return best


def _without_vain_stops(best: Schedule, bounded: _Bounded) -> Schedule:
    """The schedule without a stop and what was chosen there, such as the same thread again.

    Neither can be left out without the other.
    """
    for position, (stop, other) in enumerate(pairwise(best.deviations)):
        if stop.preempts and other.decision == stop.decision:
            found = _without(best, position, 2, bounded, may_shift=True)
            if found is not None:
                return found
    return best


def _held(best: Schedule, bounded: _Bounded) -> Schedule:
    """A schedule where one that is passed over again and again is held, and decided less of."""
    for position, each in enumerate(best.deviations):
        if not each.instead or each.holds:
            continue
        before, after = best.deviations[:position], best.deviations[position + 1 :]
        hold = Deviation(each.decision, each.instead, holds=True)
        others = [later for later in after if later.instead != each.instead]
        for rest in ([], [each], others, [each, *others]):
            shorter = best.only([*before, hold, *rest])
            found = bounded(shorter) if len(shorter) < len(best) else None
            if found is not None and len(found) < len(best):
                return found
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


def _one_stop(best: Schedule, stops: Sequence[Stop], bounded: _Bounded) -> Schedule | None:
    """A schedule that fails though a thread is stopped at one place only; None if none was found.

    For one with several deviations, all of which seem to be needed: with the others gone, that
    place may be reached at quite another decision.
    """
    special = (TIME_PASSES, FAULT_PREFIX)
    if len(best) < 2 or any(each.choice.startswith(special) for each in best.deviations):
        return None
    for each in stops:
        for times in dict.fromkeys((1, each.times)):
            found = bounded(Delays(frozenset(), stops=(attrs.evolve(each, times=times),)))
            if found is not None and len(found) < len(best):
                return found
    return None


def _few_delays(
    schedule: Schedule,
    defaults: Callable[..., list[str]],
    stops: Sequence[Stop],
    bounded: _Bounded,
) -> Schedule | None:
    """A schedule that fails and has next to no deviations; None if none was found.

    It isn't a part of the one that is known, which has so many that most of them are chance; that
    one says whom to hold first. Not for schedules with faults: those have to be kept.
    """
    if any(each.choice.startswith(FAULT_PREFIX) for each in schedule.deviations):
        return None
    passed = {each.instead for each in schedule.deviations}
    time_passes = any(each.choice == TIME_PASSES for each in schedule.deviations)
    chance = random.Random(0)
    names = defaults(time=time_passes)
    likely = [number for number, name in enumerate(names) if name in passed]
    others = [number for number, name in enumerate(names) if name not in passed]

    def stopped() -> Iterator[Delays]:
        for each in stops:
            for times in dict.fromkeys((each.times, *range(1, min(each.times, _SEVERAL)))):
                yield stopping(attrs.evolve(each, times=times))
        pairs = list(combinations(stops, 2))
        for pair in chance.sample(pairs, min(len(pairs), _SEVERAL**2)):
            yield stopping(*pair)
        for each in stops:
            for number in chance.sample(range(len(names)), min(len(names), _SEVERAL**2)):
                yield stopping(each, hold=number)

    def stopping(*where: Stop, hold: int | None = None) -> Delays:
        holds = frozenset(() if hold is None else (hold,))
        return Delays(holds, time=time_passes, stops=where)

    def tried() -> Iterator[Delays]:
        yield Delays(frozenset(), time=time_passes)
        yield from stopped()
        for each in chance.sample(likely, len(likely)):
            yield Delays(frozenset({each}), time=time_passes)
        if time_passes:
            for each in range(len(names)):
                yield Delays(frozenset(), frozenset({each}), time=True)
        for _ in range(len(likely)):
            yield several()
        for each in others:
            yield Delays(frozenset({each}), time=time_passes)
        while likely:
            yield several()

    def several() -> Delays:
        holds = chance.choices(likely, k=chance.randint(1 if time_passes else 2, 3))
        times = {chance.randrange(len(names))} if time_passes else set[int]()
        return Delays(frozenset(holds), frozenset(times), time=time_passes)

    for delays in tried():
        found = bounded(delays)
        if found is not None or bounded.spent:
            return found
    return None


class _Bounded:
    """Attempts, until there were enough of them."""

    def __init__(
        self,
        attempt: Callable[[Schedule | Order | Delays], Schedule | None],
        runs: int,
        end: float,
    ) -> None:
        self._attempt = attempt
        self._runs = runs
        self._end = end

    @property
    def spent(self) -> bool:
        return not self._runs or time.process_time() > self._end

    def __call__(self, schedule: Schedule | Order | Delays) -> Schedule | None:
        if self.spent:
            return None
        self._runs -= 1
        return self._attempt(schedule)


def _without(
    schedule: Schedule, position: int, size: int, attempt: _Bounded, *, may_shift: bool
) -> Schedule | None:
    """A failing schedule without some of the deviations; None if none was found."""
    before = schedule.deviations[:position]
    after = schedule.deviations[position + size :]
    # Without one deviation, those after it may have to come a decision or two sooner or later.
    shifts = _SHIFTS if may_shift and after and len(schedule) <= _MANY else (0,)
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


_FEW: Final = 3
"""Deviations that nobody needs fewer of."""

_SEVERAL: Final = 10
"""Of what is tried in several ways: how many."""

_MANY: Final = 20
"""Deviations: a schedule with more isn't looked at closely, but for another one with a few."""

_SHIFTS: Final = (0, -1, 1, -2, 2, -3, 3)
