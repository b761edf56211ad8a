"""Exhaustive exploration: every schedule, within a bound or up to an order that doesn't matter.

There are two ways not to run all of the n! orders:

- A bound on preemptions: on how often a task that could go on is made to wait. Most bugs take one
  or two (Musuvathi and Qadeer, "Iterative context bounding", 2007). Those with fewer come first.
- Dynamic partial-order reduction: two schedules that differ only in the order of steps that commute
  (see `_footprints`) come to the same, and one of them is run. This is source-DPOR with sleep sets
  (Abdulla, Aronis, Jonsson, Sagonas: "Source sets", 2017). After each run its *races* are found:
  two steps of different tasks in an order that only the schedule has brought about. At the earlier
  one, the schedule is run in which the later one comes first. Tasks *sleep* where what they
  would do next was explored already, until somebody does something that isn't independent of it.

The two don't go together: the reversal of a race may take more preemptions than the bound allows,
though an equivalent schedule doesn't.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext

import attrs

from ._errors import UncontrolledNondeterminism
from ._footprints import Event, Footprint, Tracker, conflict, footprints
from ._simulation import TIME, Chooser, Simulation, Turn
from ._strategies import Strategy


class Exhaustive(Strategy):
    """All schedules of a small program, once each; `Exploration.exhausted` tells if all were run.

    Args:
        preemptions: at most so many in a schedule; None: all schedules.
        reduction: whether to run only one of those schedules that differ in the order of steps that
            commute. By default if all schedules are wanted and time is no candidate.
        time: whether time is a candidate in each decision; each passing counts as a preemption.

    Raises:
        ValueError: there is no reduction together with a bound, or with time.
    """

    def __init__(
        self,
        preemptions: int | None = None,
        *,
        reduction: bool | None = None,
        time: bool = False,
    ) -> None:
        if preemptions is not None and preemptions < 0:
            raise ValueError(f"preemptions must be at least 0, or None, not {preemptions!r}")
        if reduction is None:
            reduction = preemptions is None and not time
        if reduction and (preemptions is not None or time):
            raise ValueError(
                "a reduction works on all schedules, without time: Exhaustive() for that, "
                "Exhaustive(preemptions=2, time=True) for what it doesn't go with"
            )
        self._preemptions = preemptions
        self._reduction = reduction
        self._time = time
        self.start()

    @property
    def name(self) -> str:
        """For people."""
        if self._preemptions is not None:
            return f"exhaustive, {self._preemptions} preemptions"
        return "exhaustive, reduced" if self._reduction else "exhaustive"

    def start(self) -> None:
        """Begin with the default order again."""
        if self._reduction:
            self._search: _Reduced | _Bounded = _Reduced()
        else:
            self._search = _Bounded(self._preemptions, time=self._time)

    def watching(self) -> AbstractContextManager[None]:
        """With a reduction, footprints are needed."""
        return footprints() if self._reduction else nullcontext()

    def chooser(self, rng: random.Random) -> Chooser | None:
        """The next schedule's; chance has no part in it."""
        return self._search.chooser()

    @property
    def chance(self) -> bool:
        """None by chance: all that is explored are orders."""
        return False

    def learn(self, simulation: Simulation) -> None:
        """Find out which schedules there are beside those known."""
        self._search.learn()


# ------------------------------------------------------------------------ a bound on preemptions


@attrs.frozen
class _Branch:
    """A schedule to run: that of a run up to a decision, and then something else."""

    choices: list[int]
    decision: int
    choice: int


class _Bounded:
    """What is left to run, by the number of preemptions."""

    def __init__(self, bound: int | None, *, time: bool) -> None:
        self._bound = bound
        self._time = time
        self._left: list[list[_Branch]] = [[_Branch([], 0, 0)]]
        self._cost = 0
        self._running: _BoundedChooser | None = None

    def chooser(self) -> Chooser | None:
        while not self._left[self._cost]:
            if self._cost + 1 == len(self._left):
                return None
            self._cost += 1
        branch = self._left[self._cost].pop()
        prefix = [*branch.choices[: branch.decision], branch.choice] if branch.choices else []
        self._running = _BoundedChooser(prefix, wants_time=self._time)
        return self._running

    def learn(self) -> None:
        run = self._running
        if run is None:
            return
        self._running = None
        run.check()
        for decision in range(len(run.prefix), len(run.choices)):
            default = run.choices[decision]
            count, preempts, may_pass_time = run.seen[decision]
            for choice in range(TIME if may_pass_time else 0, count):
                if choice != default:
                    self._add(_Branch(run.choices, decision, choice), preempts or choice == TIME)

    def _add(self, branch: _Branch, preempts: bool) -> None:
        cost = self._cost + preempts
        if self._bound is not None and cost > self._bound:
            return
        if self._bound is None:
            cost = self._cost
        if cost == len(self._left):
            self._left.append([])
        self._left[cost].append(branch)


class _BoundedChooser:
    """Makes the choices of a prefix, then the default ones, and notes what else there was."""

    def __init__(self, prefix: list[int], *, wants_time: bool) -> None:
        self.prefix = prefix
        self.wants_time = wants_time
        self.choices: list[int] = []
        self.seen: list[tuple[int, bool, bool]] = []
        self._lost = False

    def choose(self, simulation: Simulation, default: int) -> int:
        turns = simulation.turns
        number = len(self.choices)
        choice = self.prefix[number] if number < len(self.prefix) else default
        if choice >= len(turns) or (choice == TIME and not simulation.may_pass_time):
            self._lost = True
            choice = default
        preempts = turns[default] is simulation._turn
        self.seen.append((len(turns), preempts, simulation.may_pass_time))
        self.choices.append(choice)
        return choice

    def check(self) -> None:
        if self._lost or len(self.choices) < len(self.prefix):
            raise _not_the_same()


def _not_the_same() -> UncontrolledNondeterminism:
    return UncontrolledNondeterminism(
        "a schedule was the same as one before it up to a decision, where other things were "
        "possible than before: something decides that isn't controlled (a real thread, the order "
        "of a set, the real time, what is left from another run)"
    )


# ------------------------------------------------------------------------------------- reduction


@attrs.define
class _Node:
    """A state on the way of the run that was made last, by the steps that led there.

    Attributes:
        enabled: whose step could be next.
        chosen: whose was.
        backtrack: whose steps have to be tried here; `chosen` is one of them.
        sleep: whose need not, and what these would touch.
    """

    enabled: frozenset[str]
    chosen: str
    sleep: dict[str, Footprint]
    backtrack: set[str] = attrs.Factory(set)


class _Reduced:
    """Source-DPOR, one run after the other."""

    def __init__(self) -> None:
        self._path: list[_Node] = []
        self._running: _ReducedChooser | None = None
        self._begun = False

    def chooser(self) -> Chooser | None:
        if self._begun and not self._path:
            return None
        self._begun = True
        self._running = _ReducedChooser(self._path)
        return self._running

    def learn(self) -> None:
        run = self._running
        if run is None:
            return
        self._running = None
        run.recorder.finish()
        if run.lost or len(run.path) < run.given:
            raise _not_the_same()
        self._path = run.path
        events = run.recorder.events[: len(self._path)]
        self._reverse_races(events, max(run.given - 1, 0))
        self._go_back(events)

    def _reverse_races(self, events: list[Event], first_new: int) -> None:
        """Have each race of the new steps tried the other way round."""
        before: list[int] = []  # of each step, the set of steps that come before it, as bits
        last_of: dict[str, int] = {}
        for number, event in enumerate(events):
            known = 0
            races = []
            own = last_of.get(event.name, -1)
            for other in range(number - 1, -1, -1):
                if known >> other & 1:
                    continue
                earlier = events[other]
                cause = other in (own, event.enabler) or earlier.epoch != event.epoch
                if cause or conflict(earlier.touched, event.touched):
                    known |= before[other]
                    if not cause and number >= first_new:
                        races.append(other)
            before.append(known | 1 << number)
            last_of[event.name] = number
            for other in races:
                self._reverse(events, before, other, number)

    def _reverse(self, events: list[Event], before: list[int], earlier: int, later: int) -> None:
        node = self._path[earlier]
        # What doesn't depend on the earlier step, and then the later one: who can begin with that?
        rest = [number for number in range(earlier + 1, later) if not before[number] >> earlier & 1]
        rest.append(later)
        mask = 0
        initials: list[str] = []
        for number in rest:
            # The last one depends on the earlier step alone, of all that isn't in the rest.
            if not before[number] & mask:
                initials.append(events[number].name)
            mask |= 1 << number
        if node.backtrack.isdisjoint(initials):
            wanted = events[later].name
            candidates = [each for each in initials if each in node.enabled]
            if not candidates:
                node.backtrack |= node.enabled
            else:
                node.backtrack.add(wanted if wanted in candidates else candidates[0])

    def _go_back(self, events: list[Event]) -> None:
        """Go back to the last state where there is something to be tried, and choose that."""
        path = self._path
        while path:
            node = path[-1]
            node.sleep[node.chosen] = events[len(path) - 1].touched
            left = [each for each in sorted(node.backtrack) if each not in node.sleep]
            if left:
                node.chosen = left[0]
                return
            path.pop()


class _ReducedChooser:
    """Follows a path, and makes it longer."""

    wants_time = False

    def __init__(self, path: list[_Node]) -> None:
        self.path = path
        self.given = len(path)
        self.lost = False
        self.recorder = _Follower(self)
        self._step = 0
        self._redundant = False

    def choose(self, simulation: Simulation, default: int) -> int:
        turns = simulation.turns
        number = len(simulation.trace)
        if number < self.given:
            wanted = self.path[number].chosen
            for index, turn in enumerate(turns):
                if turn.name == wanted:
                    return index
            self.lost = True
            return default
        if self._redundant or self.lost:
            return default
        sleep = self._sleeping(number)
        if turns[default].name not in sleep:
            return default
        for index, turn in enumerate(turns):
            if turn.name not in sleep:
                return index
        return default

    def took(self, simulation: Simulation, turn: Turn) -> None:
        """This step was chosen, or there was no other."""
        number = len(simulation.trace) - 1
        if self.lost or self._redundant:
            return
        if number < self.given:
            self.lost = turn.name != self.path[number].chosen
            return
        sleep = self._sleeping(number)
        if turn.name in sleep:
            self._redundant = True  # all that could follow was explored already
            return
        enabled = frozenset(each.name for each in (*simulation.turns, turn))
        self.path.append(_Node(enabled, turn.name, sleep, {turn.name}))

    def _sleeping(self, number: int) -> dict[str, Footprint]:
        """Who sleeps after so many steps: who did before, and wasn't woken by the last step."""
        if number == 0:
            return {}
        self.recorder.finish()
        node = self.path[number - 1]
        event = self.recorder.events[number - 1]
        return {
            name: touched
            for name, touched in node.sleep.items()
            if name != event.name and not conflict(touched, event.touched)
        }


class _Follower(Tracker):
    def __init__(self, chooser: _ReducedChooser) -> None:
        super().__init__()
        self._chooser = chooser

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        if simulation.failure is None:
            self.finish()
            self._chooser.took(simulation, turn)
        super().turn(simulation, turn)
