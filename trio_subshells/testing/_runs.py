"""Running one schedule after the other, each as if it were the first.

What isn't the simulator's business, and would still make a run depend on those before it, is taken
care of here:

- Garbage is collected between runs and not during one: a collection finalizes things (asynchronous
  generators, files) at a moment that depends on how much was allocated so far.
- What is collected after a run belongs to it: a coroutine that was never awaited, a file that was
  never closed, an exception that nobody could catch. Each is a failure of that run.
- `random` begins each run with the same seed.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Final, Self, TextIO

import attrs
import outcome

from ._errors import LeftBehind, RealLock, SimulationFailure, leaves
from ._preemption import Preemption
from ._process import simulated_process
from ._simulation import Chooser, Recorder, Simulation

_exploring: Final = threading.Lock()
_FROZEN_BY_PYTHON: Final = gc.get_freeze_count()
"""Some versions start with a few hundred objects that are; to leave these alone is not worth it."""


@attrs.frozen
class Run:
    """What one schedule came to.

    Attributes:
        simulation: how it went; it is over.
        failure: what it failed with, if it did.
    """

    simulation: Simulation
    failure: BaseException | None

    @property
    def steps(self) -> list[int]:
        """The trace up to the failure; what happens after that is of no interest."""
        trace, end = self.simulation.trace, self.simulation.failed_at
        return trace if end < 0 else trace[:end]

    def fails_like(self, other: Run) -> bool:
        """Whether both have failed with the same kind of exception, raised at the same place."""
        if self.failure is None or other.failure is None:
            return False
        return signature(self.failure) == signature(other.failure)


class Runs:
    """Runs schedules of an async function. To be entered, in one OS thread at a time.

    Args:
        body: the async function, without parameters.
        max_steps: see `Simulation`.
        fairness: see `Simulation`.
        lag: see `Simulation`.
        max_time: see `Simulation`.
        starvation: see `Simulation`.
        checks: see `Simulation`.
        begin: called before each run.
        preemption: where threads may be stopped; None: nowhere in the midst of a step.
    """

    def __init__(
        self,
        body: Callable[[], Awaitable[object]],
        *,
        max_steps: int,
        fairness: int | None,
        lag: float,
        checks: tuple[Callable[[], object], ...],
        max_time: float = math.inf,
        starvation: float = math.inf,
        begin: Callable[[], object] | None = None,
        preemption: Preemption | None = None,
    ) -> None:
        self._body = body
        self._max_steps = max_steps
        self._fairness = fairness
        self._lag = lag
        self._max_time = max_time
        self._starvation = starvation
        self._checks = checks
        self._begin = begin
        self._preemption = preemption
        self._left: list[tuple[str, BaseException | None]] = []

    def __enter__(self) -> Self:
        self._entered = self._enter()
        self._entered.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered.__exit__(exc_type, exc, traceback)

    @contextmanager
    def _enter(self) -> Iterator[None]:
        if not _exploring.acquire(blocking=False):
            raise RuntimeError("another thread of this process explores schedules: one at a time")
        try:
            with ExitStack() as stack:
                stack.enter_context(simulated_process())
                if self._preemption is not None:
                    stack.enter_context(self._preemption.installed())
                stack.enter_context(_no_chance())
                stack.enter_context(_no_garbage())
                stack.enter_context(self._noticing())
                yield
        finally:
            _exploring.release()

    def run(
        self,
        chooser: Chooser,
        recorder: Recorder | None = None,
        chance: Callable[[str], random.Random] | None = None,
        max_steps: float = math.inf,
    ) -> Run:
        """Run one schedule.

        Args:
            chooser: makes the decisions; its ``recorder``, if it has one, is told of the run, and
                its ``stops`` say where threads are to be stopped.
            recorder: is told of the run instead.
            chance: see `Simulation`; where threads are stopped is drawn from it, too.
            max_steps: that of all runs, if that is less.

        Raises:
            BaseException: what isn't a failure of the code, but says that all is to end:
                `KeyboardInterrupt`, `SystemExit`, pytest's skip and xfail, `RealLock`.
        """
        if self._begin is not None:
            self._begin()
        random.seed(0)
        simulation = Simulation(
            chooser,
            max_steps=min(max_steps, self._max_steps),
            fairness=self._fairness,
            lag=self._lag,
            max_time=self._max_time,
            starvation=self._starvation,
            checks=list(self._checks),
            recorder=recorder or getattr(chooser, "recorder", None),
            chance=chance,
        )
        if self._preemption is not None:
            self._preemption.watch(simulation, getattr(chooser, "stops", ()), chance)
        result = simulation.run(self._body)
        failure = result.error if isinstance(result, outcome.Error) else None
        del result
        gc.collect()
        left, self._left = self._left, []
        if failure is None:
            if left:
                failure = LeftBehind(
                    "the run has left behind: " + "; ".join(text for text, _ in left)
                )
                failure.__cause__ = left[0][1]
        else:
            _raise_what_ends_all(failure)
        return Run(simulation, failure)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Notice what is only told to somebody who reads warnings."""
        tell = warnings.showwarning
        previous_hook = sys.unraisablehook

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, ResourceWarning) or "was never awaited" in str(message):
                text = str(message).partition("\n")[0]
                self._left.append((text, message if isinstance(message, Warning) else None))
            else:
                tell(message, category, filename, lineno, file, line)

        def unraisable(what: Any) -> None:
            where = f" in {what.object!r}" if what.object is not None else ""
            self._left.append(
                (f"{what.exc_type.__name__}: {what.exc_value}{where}", what.exc_value)
            )

        with warnings.catch_warnings():
            warnings.filterwarnings("always", ".*was never awaited", RuntimeWarning)
            warnings.simplefilter("always", ResourceWarning)
            warnings.showwarning = show
            sys.unraisablehook = unraisable
            try:
                yield
            finally:
                sys.unraisablehook = previous_hook


@contextmanager
def _no_chance() -> Iterator[None]:
    """Give `random` back as it was."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """No collection but ours; and none looks at what was there before, which would take long."""
    enabled = gc.isenabled()
    freeze = gc.get_freeze_count() <= _FROZEN_BY_PYTHON  # else a user wants it so
    gc.disable()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.collect()  # or the next exploration would freeze what this one leaves, for ever
            gc.unfreeze()
        if enabled:
            gc.enable()


def _raise_what_ends_all(failure: BaseException) -> None:
    errors = list(leaves(failure))
    if all(_ends_all(each) for each in errors):
        raise errors[0]


def _ends_all(error: BaseException) -> bool:
    # A subclass of it is what a kernel ends its cells with.
    if type(error) is KeyboardInterrupt or isinstance(error, SystemExit | RealLock):
        return True
    outcomes = sys.modules.get("_pytest.outcomes")
    if outcomes is None:
        return False
    kinds = (outcomes.Skipped, outcomes.XFailed, outcomes.Exit)
    return isinstance(error, kinds)


def signature(failure: BaseException) -> frozenset[tuple[str, str, int]]:
    """What makes two failures the same: the exceptions' types, and where each was raised."""
    return frozenset((type(each).__qualname__, *_place(each)) for each in leaves(failure))


def _place(error: BaseException) -> tuple[str, int]:
    """The innermost line that is neither trio's nor the simulator's."""
    found = ("", 0)
    if isinstance(error, SimulationFailure):
        return found
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if not frame.f_globals.get("__name__", "").startswith(_OURS):
            found = (frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


_OURS: Final = ("trio.", "outcome", f"{__package__}.")
