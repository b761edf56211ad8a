"""Exploring: one schedule after the other until one fails, and then what there is to say about it.

`explore` runs an async function under many schedules. When one of them fails, it

1. runs that schedule again, strictly: a run that then differs is reported as
   `UncontrolledNondeterminism`, with the await where it diverged;
2. shrinks the schedule to the deviations that it takes (`_shrink`);
3. raises `ScheduleFailed` from the exception of the shrunk schedule's run, with the line that
   replays it, and the report (`_story`).
"""

from __future__ import annotations

import functools
import inspect
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, overload

import attrs
import trio

from ._divergence import explain_divergence
from ._errors import UncontrolledNondeterminism
from ._preemption import Preemption
from ._report import Report, make_report
from ._runs import Run, Runs
from ._schedules import Delayer, Delays, Order, OrderFollower, OrderRecorder, Replayer, Schedule
from ._shrink import shrink
from ._simulation import Chooser
from ._story import Finding
from ._strategies import Portfolio, Replay, Strategy

P = ParamSpec("P")

_EXPLORED: Final = "_explored"
"""The attribute by which a decorated test has what it explores."""

_LONGER: Final = 10
_STEPS_MORE: Final = 1_000
"""What is tried in shrinking may take so many times the steps of what has failed, and some more."""

DEFAULT_SCHEDULES: Final = 200
"""How many schedules are run where nobody says how many."""


@attrs.define
class Tally:
    """What has been explored, all together.

    Attributes:
        schedules: how many schedules were run; those of the shrinking don't count.
        seconds: how long that took, in real time.
    """

    schedules: int = 0
    seconds: float = 0.0


@attrs.frozen
class Settings:
    """What is set from outside, for all explorations; it comes before what each says itself.

    Attributes:
        schedules: how many to run; None: as the exploration says, if `seconds` is None too.
        seconds: for how long to run; None: as the exploration says, if `schedules` is None too.
        seed: None: as the exploration says.
        strategy: None: as the exploration says.
        preempt: modules whose threads may be stopped anywhere, besides those that the exploration
            says.
        replay: run this schedule only.
        directory: where files of reports go.
        command: what replays a test, without the schedule: ``pytest path::test --replay``.
        name: the test's, which names the files of its report.
        details: whether reports tell of a kernel's own code, too.
        begin: called before each run.
        tally: counts what is explored.
    """

    schedules: int | None = None
    seconds: float | None = None
    seed: int | None = None
    strategy: Strategy | None = None
    preempt: tuple[str, ...] = ()
    replay: Schedule | None = None
    directory: Path | None = None
    command: str | None = None
    name: str | None = None
    details: bool = False
    begin: Callable[[], object] | None = None
    tally: Tally = attrs.field(factory=Tally)


settings: ContextVar[Settings] = ContextVar("trio_subshells_testing_settings")
"""Set by the pytest plugin."""


@attrs.frozen
class Exploration:
    """What an exploration has done. All of its schedules were fine: else `explore` raises.

    Attributes:
        schedules: how many were run.
        traces: how many of these were different.
        steps: how many steps they took, together.
        seconds: how long that took, in real time.
        seed: what it started from.
        exhausted: whether the strategy has no schedule left.
        strategies: how many schedules each strategy has made.
    """

    schedules: int
    traces: int
    steps: int
    seconds: float
    seed: int
    exhausted: bool
    strategies: dict[str, int] = attrs.field(eq=False)

    def __str__(self) -> str:
        return (
            f"{self.schedules:,} schedules ({self.traces:,} different), {self.steps:,} steps, "
            f"{self.seconds:.2f} s, seed {self.seed}" + (", exhausted" if self.exhausted else "")
        )


class ScheduleFailed(Exception):
    """A schedule has failed. What it failed with is the ``__cause__``.

    Attributes:
        schedule: the shrunk schedule, which fails in the same way.
        found: the schedule as it was found.
        number: how many schedules were run until then, this one included.
        seconds: how long that took, in seconds of processor time.
        seed: what the exploration started from.
        strategy: the name of the one that found it.
        replay: one line that replays it.
        report: the failure, told, with its sequence diagram; None if it can't be.
    """

    def __init__(
        self,
        failure: BaseException,
        *,
        schedule: Schedule,
        found: Schedule,
        number: int,
        seconds: float,
        seed: int,
        strategy: str,
        replay: str,
    ) -> None:
        super().__init__(failure)
        self.failure = failure
        self.schedule = schedule
        self.found = found
        self.number = number
        self.seconds = seconds
        self.seed = seed
        self.strategy = strategy
        self.replay = replay
        self.report: Report | None = None

    @property
    def diagram(self) -> Path | None:
        """The file with the sequence diagram, if one was written."""
        return self.report.file if self.report is not None else None

    def __str__(self) -> str:
        if self.report is not None:
            return self.report.text
        count, of = len(self.schedule), len(self.found)
        deviations = f"{count} of its {of} deviations" if of != count else f"{count} deviations"
        return (
            f"{type(self.failure).__name__}: {self.failure}\n"
            f"in schedule {self.number:,} of seed {self.seed} ({self.strategy}), with {deviations} "
            f"from the default order\nreplay it: {self.replay}"
        )


def explore(
    async_fn: Callable[..., Awaitable[object]],
    /,
    *args: object,
    schedules: int | None = None,
    seconds: float | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    max_steps: int = 100_000,
    fairness: int | None = None,
    lag: float = 1.0,
    max_time: float = math.inf,
    starvation: float = math.inf,
    checks: tuple[Callable[[], object], ...] = (),
    preempt: Sequence[ModuleType | str] = (),
    shrink: bool = True,
) -> Exploration:
    """Run an async function under many schedules, each with a new trio loop and a virtual clock.

    Not to be called in a trio loop: it makes its own, one after the other.

    Args:
        async_fn: what to run, from its beginning in each schedule. What it keeps outside of itself
            would be seen by the next one, and must not matter. May be a test that
            `explore_schedules` has decorated.
        args: what to call it with.
        schedules: how many to run at most; 200 if `seconds` isn't said either.
        seconds: for how long to go on, in real time. One schedule is always run, and each to its
            end.
        strategy: which schedules; `Portfolio()` by default.
        seed: the same seed explores the same schedules.
        max_steps: how many steps a schedule may take; one that takes more has failed, with
            `NoProgress`.
        fairness: how many decisions something that can happen may have to wait at most; None, the
            default: for ever. Strategies may starve a task as trio itself would not.
        lag: how many virtual seconds may pass at once though something could happen, as if that
            took so long: timeouts that are farther away never come early. 0: none does.
        max_time: how many virtual seconds a schedule may take; one that takes longer has failed,
            with `NoProgress`: timers that are set again and again hide that nothing else happens.
        starvation: how many virtual seconds synchronous code may block a thread in which a task
            could go on; longer, and the schedule has failed, with `Starvation`.
        checks: invariants, called after each step. One that raises ends the schedule, as failed.
        preempt: modules and packages that have been imported, or their names. In some schedules,
            threads are stopped between two statements of their functions, and others go on first,
            as in reality. Locks that they take with ``with`` or ``acquire`` are simulated; others
            must not take the same ones meanwhile, nor call into these modules while they have real
            ones.
        shrink: whether a failing schedule is shrunk, and told. That takes a while; with what makes
            many attempts by itself, as hypothesis does, it is better done for the last one only.

    Returns:
        The figures, if no schedule has failed.

    Raises:
        ScheduleFailed: one has; from the exception of that run. At a deadlock that is `Deadlock`,
            where a thread wasn't joined `Unjoined`, and so on (see `SimulationFailure`).
        UncontrolledNondeterminism: one has, but not when it was run again: something else than the
            schedule decides.
        RuntimeError: this is a trio loop; or a thread was to be stopped where it has a lock that a
            module has taken which is not preempted; it says which.
        ValueError: there is no such module to preempt, or no source of it.
    """
    __tracebackhide__ = True
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "explore() makes trio loops of its own, one for each schedule, and can't be called in "
            "one: call it in a sync function, or decorate the async test with @explore_schedules"
        )
    async_fn = getattr(async_fn, _EXPLORED, async_fn)
    outside = settings.get(Settings())
    if outside.schedules is not None or outside.seconds is not None:
        schedules, seconds = outside.schedules, outside.seconds
    if outside.seed is not None:
        seed = outside.seed
    if outside.strategy is not None:
        strategy = outside.strategy
    if outside.replay is not None:
        strategy = Replay(outside.replay)
    if schedules is None:
        schedules = DEFAULT_SCHEDULES if seconds is None else None
    if schedules is not None and schedules < 1:
        raise ValueError(f"schedules must be at least 1, not {schedules!r}")
    preempt = [*preempt, *outside.preempt]
    runs = Runs(
        functools.partial(async_fn, *args),
        max_steps=max_steps,
        fairness=fairness,
        lag=lag,
        max_time=max_time,
        starvation=starvation,
        checks=checks,
        begin=outside.begin,
        preemption=Preemption(preempt) if preempt else None,
    )
    strategy = strategy or Portfolio(preempts=bool(preempt))
    replay = _replay_line(async_fn, args, preempt, outside)
    explorer = _Explorer(runs, strategy, seed, replay, outside, shrink=shrink)
    with runs, strategy.watching():
        return explorer.explore(schedules, seconds)


class _Explorer:
    """One exploration."""

    def __init__(
        self,
        runs: Runs,
        strategy: Strategy,
        seed: int,
        replay: Callable[[Schedule], str],
        outside: Settings,
        *,
        shrink: bool,
    ) -> None:
        self._runs = runs
        self._strategy = strategy
        self._seed = seed
        self._replay = replay
        self._outside = outside
        self._shrinks = shrink

    def explore(self, schedules: int | None, seconds: float | None) -> Exploration:
        __tracebackhide__ = True
        strategy = self._strategy
        strategy.start()
        start, start_of_work = time.perf_counter(), time.process_time()
        tally, last = self._outside.tally, start
        number = steps = 0
        traces: set[int] = set()
        names: dict[str, int] = {}
        exhausted = False
        while schedules is None or number < schedules:
            if seconds is not None and number and time.perf_counter() - start >= seconds:
                break
            # As text, which is hashed: numbers that are near each other can give the same sequence.
            chooser = strategy.chooser(random.Random(f"{self._seed} {number}"))
            if chooser is None:
                exhausted = True
                break
            run = self._runs.run(chooser, chance=self._chance(number))
            number += 1
            tally.schedules += 1
            tally.seconds += time.perf_counter() - last
            last = time.perf_counter()
            if run.failure is not None:
                self._fail(run, number, time.process_time() - start_of_work, chooser)
            strategy.learn(run.simulation)
            traces.add(hash(tuple(run.simulation.trace)))
            steps += len(run.simulation.trace)
            names[strategy.name] = names.get(strategy.name, 0) + 1
        return Exploration(
            schedules=number,
            traces=len(traces),
            steps=steps,
            seconds=time.perf_counter() - start,
            seed=self._seed,
            exhausted=exhausted,
            strategies=names,
        )

    def _chance(self, number: int) -> Callable[[str], random.Random] | None:
        """Where more is drawn from: not what the chooser draws from, which goes its way."""
        if not self._strategy.chance:
            return None
        return lambda what: random.Random(f"{self._seed} {number} {what}")

    def _fail(self, run: Run, number: int, seconds: float, chooser: Chooser) -> None:
        __tracebackhide__ = True
        found = Schedule.of(run.simulation, time=chooser.wants_time)
        again = self._runs.run(Replayer(found))
        if again.steps != run.steps or not again.fails_like(run):
            raise UncontrolledNondeterminism(
                "the same schedule, run again, was not the same: something decides that isn't "
                "controlled (a real thread, the order of a set, the real time, what is left from "
                f"another run)\n{explain_divergence(self._runs, found, run, again)}"
            ) from run.failure
        shortest, last = self._shrink(found, again) if self._shrinks else (found, again)
        assert last.failure is not None
        error = ScheduleFailed(
            last.failure,
            schedule=shortest,
            found=found,
            number=number,
            seconds=seconds,
            seed=self._seed,
            strategy=self._strategy.name,
            replay=self._replay(shortest),
        )
        if self._shrinks:
            self._report(error)
        raise error from last.failure

    def _report(self, error: ScheduleFailed) -> None:
        """Tell the failure. That this can't be done must not hide it."""
        how = f"schedule {error.number:,} of seed {error.seed} ({error.strategy})"
        if isinstance(self._strategy, Replay):
            how = "replaying a schedule"
        finding = Finding(how, error.replay, len(error.schedule), len(error.found))
        try:
            error.report = make_report(
                lambda recorder: self._runs.run(Replayer(error.schedule), recorder),
                finding,
                directory=self._outside.directory,
                name=self._outside.name,
                details=self._outside.details,
            )
        except Exception as problem:
            error.add_note(f"it can't be told: {type(problem).__name__}: {problem}")

    def _shrink(self, found: Schedule, failed: Run) -> tuple[Schedule, Run]:
        """The shrunk schedule, and its run."""
        last = failed
        # What has gone on for so much longer won't fail in that way: where somebody goes on asking,
        # say, until somebody else is ready, who has been made to wait.
        most = _LONGER * len(failed.simulation.trace) + _STEPS_MORE

        def attempt(schedule: Schedule | Order | Delays) -> Schedule | None:
            nonlocal last
            chooser: Chooser
            if isinstance(schedule, Schedule):
                chooser = Replayer(schedule)
            elif isinstance(schedule, Delays):
                chooser = Delayer(schedule)
            else:
                chooser = OrderFollower(schedule)
            run = self._runs.run(chooser, max_steps=most)
            if not run.fails_like(failed):
                return None
            last = run
            return Schedule.of(run.simulation, time=schedule.time)

        def order(schedule: Schedule) -> Order:
            recorder = OrderRecorder()
            self._runs.run(Replayer(schedule), recorder)
            return Order(tuple(recorder.blocks), schedule.time)

        def defaults(*, time: bool) -> list[str]:
            delayer = Delayer(Delays(frozenset(), time=time))
            self._runs.run(delayer)
            return delayer.defaults

        shortest = shrink(found, attempt, order, defaults, stops=failed.simulation.stops)
        if len(shortest) != len(last.simulation.deviations):
            attempt(shortest)
        return shortest, last


def _replay_line(
    async_fn: Callable[..., Awaitable[object]],
    args: tuple[object, ...],
    preempt: Sequence[ModuleType | str],
    outside: Settings,
) -> Callable[[Schedule], str]:
    def line(schedule: Schedule) -> str:
        if outside.command is not None:
            return f"{outside.command} '{schedule}'"
        names = [getattr(each, "__name__", None) or repr(each) for each in (async_fn, *args)]
        modules = [each if isinstance(each, str) else each.__name__ for each in preempt]
        stopping = f"preempt={modules!r}, " if modules else ""
        return f"explore({', '.join(names)}, {stopping}strategy=Replay({str(schedule)!r}))"

    return line


@overload
def explore_schedules(async_fn: Callable[P, Awaitable[object]], /) -> Callable[P, None]: ...


@overload
def explore_schedules(
    schedules: int | None = None,
    *,
    seconds: float | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    max_steps: int = 100_000,
    fairness: int | None = None,
    lag: float = 1.0,
    max_time: float = math.inf,
    starvation: float = math.inf,
    checks: tuple[Callable[[], object], ...] = (),
    preempt: Sequence[ModuleType | str] = (),
) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, None]]: ...


def explore_schedules(first: Any = None, /, **options: Any) -> Any:
    """Make of an async test a sync one that explores it: ``@explore_schedules(500)``.

    pytest calls it with fixtures as ever, but for those of pytest-trio, which need a loop of their
    own. Fixtures are made once, for all schedules.

    Takes what `explore` does; the number of schedules may stand alone. See there for what the test
    then raises.
    """
    if callable(first) and not options:
        return _exploring(first, {})
    if first is not None:
        if isinstance(first, bool) or not isinstance(first, int):
            raise TypeError(
                f"the number of schedules, or nothing, not {first!r}: write "
                "@explore_schedules(500), or @explore_schedules(seconds=5)"
            )
        options["schedules"] = first
    return functools.partial(_exploring, options=options)


def _exploring(
    async_fn: Callable[P, Awaitable[object]], options: dict[str, Any]
) -> Callable[P, None]:
    if not inspect.iscoroutinefunction(async_fn):
        raise TypeError(
            f"@explore_schedules makes a test of an async function, and {async_fn!r} isn't one"
        )

    @functools.wraps(async_fn)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        explore(functools.wraps(async_fn)(functools.partial(async_fn, *args, **kwargs)), **options)

    vars(test)[_EXPLORED] = async_fn
    return test
