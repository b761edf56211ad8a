"""Strategies: which schedules to run, out of far too many.

A strategy makes a *chooser* for each schedule, and may learn from the run. All chance comes from a
generator that is seeded with the exploration's seed and the number of the schedule, so that the
same seed explores the same schedules in any process.

Time is one more thing that may be next. Left to itself it passes only when nothing else can happen,
and then a race between a timeout and what it guards is never lost. In half of the schedules it is a
candidate, with a small weight or a priority of its own; in the other half it is not, so that a
timeout that comes early doesn't hide what else there is to be found.

- `Random`: each candidate is as likely as any other. Finds much, but starves nobody for long.
- `PCT` (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs",
  2010): random priorities, the highest runs, and at d − 1 random decisions the one that would run
  falls behind all others. A bug that needs d things to be in order is hit with a probability of at
  least 1/(n·k^(d−1)), for n tasks and k decisions.
- `POS` (Yuan, Yang, Gu: "Partial Order Aware Concurrency Sampling", 2018): each step, not each
  task, has a random priority. Samples orders more evenly than `Random`, which favours those that
  differ only in steps that don't matter. This is the paper's basic form: what a step will race
  with, and whose priority would be drawn anew for that, isn't known before it is made.
- `FewDelays`: the default order, but for one or two that are held, or preempted (`_preemption`).
- `Portfolio`: several of them, in turn.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Final

from ._schedules import Delayer, Delays, Replayer, Schedule
from ._simulation import TIME, Chooser, Simulation

_TIME_WEIGHT: Final = 0.05
"""Of time as a candidate, where each task weighs 1."""


class Strategy(ABC):
    """Makes the choosers of an exploration, one for each schedule. Stateful: one exploration each.

    Each call of `explore` calls `start` first, so that a strategy may be used again.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """For people."""

    def start(self) -> None:
        """Forget what was learned."""

    @abstractmethod
    def chooser(self, rng: random.Random) -> Chooser | None:
        """What makes the decisions of the next schedule; None if there is none left to run.

        Args:
            rng: the schedule's own; all chance is to come from it.
        """

    def learn(self, simulation: Simulation) -> None:
        """Learn from the schedule that has just been run."""

    @property
    def chance(self) -> bool:
        """Whether more is left to chance in the schedule whose chooser was made last.

        That is, faults and where threads are preempted.
        """
        return True

    def watching(self) -> AbstractContextManager[None]:
        """Entered by `explore` around all of its schedules."""
        return nullcontext()

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Replay(Strategy):
    """One schedule, once more.

    A deviation whose turn isn't there any more, because the code has changed, is skipped.

    Args:
        schedule: as a failure report prints it.

    Raises:
        InvalidSchedule: that isn't a schedule.
    """

    def __init__(self, schedule: Schedule | str) -> None:
        self.schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        self._done = False

    @property
    def name(self) -> str:
        """For people."""
        return "replay"

    def start(self) -> None:
        """Run it once more."""
        self._done = False

    def chooser(self, rng: random.Random) -> Chooser | None:
        """The schedule's decisions, once."""
        if self._done:
            return None
        self._done = True
        return Replayer(self.schedule)

    @property
    def chance(self) -> bool:
        """What is in the schedule, and no more."""
        return False


class Default(Replay):
    """The one schedule without a deviation: each task goes on until it has to wait."""

    def __init__(self) -> None:
        super().__init__(Schedule())

    @property
    def name(self) -> str:
        """For people."""
        return "default order"


class FewDelays(Strategy):
    """The default order, but for a task or two that wait until nothing else can happen.

    (Emmi, Qadeer and Rakamarić: "Delay-bounded scheduling", 2011.) And for threads that are
    preempted, where that is allowed: for a race between two statements more is seldom needed.
    """

    def __init__(self) -> None:
        self._length = 0

    @property
    def name(self) -> str:
        """For people."""
        return "delays"

    def start(self) -> None:
        """Forget how long the schedules are."""
        self._length = 0

    def chooser(self, rng: random.Random) -> Chooser:
        """A new one."""
        count = rng.choice((0, 1, 1, 2)) if self._length else 0
        return Delayer(Delays(frozenset(int(rng.random() * self._length) for _ in range(count))))

    def learn(self, simulation: Simulation) -> None:
        """Take the longest schedule for the length of all."""
        self._length = max(self._length, simulation.decisions)


class Random(Strategy):
    """Each candidate is as likely as any other.

    Args:
        time: the weight of time where each task weighs 1, in every other schedule; 0: never.
    """

    def __init__(self, time: float = _TIME_WEIGHT) -> None:
        if not 0 <= time <= 1:
            raise ValueError(f"the weight of time must be between 0 and 1, not {time!r}")
        self._time = time

    @property
    def name(self) -> str:
        """For people."""
        return "random"

    def chooser(self, rng: random.Random) -> Chooser:
        """A new one."""
        if self._time and rng.random() < 0.5:
            return _RandomWithTime(rng, self._time)
        return _Random(rng)


class _Random:
    wants_time = False

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def choose(self, simulation: Simulation, default: int) -> int:
        return int(self._random() * len(simulation.turns))


class _RandomWithTime:
    wants_time = True

    def __init__(self, rng: random.Random, weight: float) -> None:
        self._random = rng.random
        self._weight = weight

    def choose(self, simulation: Simulation, default: int) -> int:
        count = len(simulation.turns)
        if not simulation.may_pass_time:
            return int(self._random() * count)
        drawn = self._random() * (count + self._weight)
        return int(drawn) if drawn < count else TIME


class PCT(Strategy):
    """Random priorities that change at `depth` − 1 random decisions.

    Args:
        depth: of the bugs that are looked for: how many things must be in order for one to show.
    """

    def __init__(self, depth: int = 3) -> None:
        if depth < 1:
            raise ValueError(f"the depth must be at least 1, not {depth!r}")
        self._depth = depth
        self._length = 0

    @property
    def name(self) -> str:
        """For people."""
        return f"PCT, depth {self._depth}"

    def start(self) -> None:
        """Forget how long the schedules are."""
        self._length = 0

    def chooser(self, rng: random.Random) -> Chooser:
        """A new one; the first decides by default, to learn how many decisions there are."""
        if not self._length:
            return Replayer(Schedule())
        points = [1 + int(rng.random() * self._length) for _ in range(self._depth - 1)]
        return _Priorities(rng, points, wants_time=rng.random() < 0.5)

    def learn(self, simulation: Simulation) -> None:
        """Take the longest schedule for the length of all."""
        self._length = max(self._length, simulation.decisions, 1)


class _Priorities:
    """PCT's chooser. A priority of 0 hasn't been drawn yet; those that fell are negative."""

    def __init__(self, rng: random.Random, points: list[int], *, wants_time: bool) -> None:
        self.wants_time = wants_time
        self._random = rng.random
        self.points = sorted(points, reverse=True)
        self._next = self.points[-1] if points else -1
        self._lowest = 0.0
        # Time falls behind all from the start in some schedules, and races ahead in others.
        self._time = 1 - self._random()

    def choose(self, simulation: Simulation, default: int) -> int:
        turns = simulation.turns
        highest = -1e9
        index = 0
        for number, turn in enumerate(turns):
            priority = turn.priority
            if not priority:
                priority = turn.priority = 1 - self._random()
            if priority > highest:
                highest = priority
                index = number
        if simulation.may_pass_time and self._time > highest:
            index = TIME
        if simulation.decisions >= self._next > 0:
            return self._fall(simulation, default, index)
        return index

    def _fall(self, simulation: Simulation, default: int, index: int) -> int:
        """A change point: the one that would be next falls behind all others."""
        self.points.pop()
        self._next = self.points[-1] if self.points else -1
        self._lowest -= 1
        if index == TIME:
            self._time = self._lowest
        elif simulation.may_pass_time and self._random() < 0.5:
            return TIME  # once, however low it is: a timeout comes early, and no other
        else:
            simulation.turns[index].priority = self._lowest
        return self.choose(simulation, default)


class POS(Strategy):
    """Partial-order sampling: each step has a random priority of its own."""

    @property
    def name(self) -> str:
        """For people."""
        return "POS"

    def chooser(self, rng: random.Random) -> Chooser:
        """A new one."""
        return _StepPriorities(rng, wants_time=rng.random() < 0.5)


class _StepPriorities:
    def __init__(self, rng: random.Random, *, wants_time: bool) -> None:
        self.wants_time = wants_time
        self._random = rng.random

    def choose(self, simulation: Simulation, default: int) -> int:
        if simulation.may_pass_time:
            count = len(simulation.turns)
            if self._random() * (count + _TIME_WEIGHT) < _TIME_WEIGHT:
                return TIME
        highest = -1.0
        index = 0
        for number, turn in enumerate(simulation.turns):
            priority = turn.priority
            if not priority:
                priority = turn.priority = 1 - self._random()
            if priority > highest:
                highest = priority
                index = number
        simulation.turns[index].priority = 0.0
        return index


class Portfolio(Strategy):
    """Several strategies in turn, the default order first. What `explore` uses by default.

    A strategy that has no schedule left drops out.

    Args:
        strategies: by default random ones of each kind.
        preempts: whether threads may be preempted; by default, half of the schedules are made by
            `FewDelays` then.
    """

    def __init__(self, strategies: Sequence[Strategy] = (), *, preempts: bool = False) -> None:
        chosen = tuple(strategies) or (
            *(Random(), PCT(2), POS(), PCT(3)),
            *(Random(), PCT(1), POS(), PCT(4)),
        )
        if preempts and not strategies:
            delays = FewDelays()
            chosen = tuple(each for pair in zip(itertools.repeat(delays), chosen) for each in pair)
        self._strategies: tuple[Strategy, ...] = chosen
        self._current: Strategy = self
        self.start()

    @property
    def name(self) -> str:
        """The name of the one that made the last chooser."""
        if self._current is self:
            return "portfolio"
        return self._current.name

    def start(self) -> None:
        """Begin with the default order again."""
        for strategy in self._strategies:
            strategy.start()
        self._left: deque[Strategy] = deque((Default(), *self._strategies))

    def chooser(self, rng: random.Random) -> Chooser | None:
        """That of the next strategy that has a schedule left."""
        while self._left:
            chooser = self._left[0].chooser(rng)
            if chooser is not None:
                self._current = self._left[0]
                self._left.rotate(-1)
                return chooser
            self._left.popleft()
        return None

    @property
    def chance(self) -> bool:
        """As that strategy says."""
        return self._current is not self and self._current.chance

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What any of them needs."""
        with ExitStack() as stack:
            for strategy in self._strategies:
                stack.enter_context(strategy.watching())
            yield

    def learn(self, simulation: Simulation) -> None:
        """Let each of them learn."""
        for strategy in self._strategies:
            strategy.learn(simulation)
