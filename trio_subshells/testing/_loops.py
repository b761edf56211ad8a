"""A trio loop that makes one step when it is told to: what a simulated thread is made of.

Everything that the simulator leans on and that trio doesn't document is in this module, and
`tests/testing/test_loops.py` has a canary for each:

- `trio.run` is a generator, ``trio._core._run.unrolled_run``, that yields before each look at the
  operating system. Whoever advances it is the loop's master. Several of them can be advanced in
  turn in one OS thread, if ``GLOBAL_RUN_CONTEXT`` is set to the right one before each advance.
- Whatever wakes a task (an event, a deadline, a cancellation, a spawn) appends it to
  ``Runner.runq``; each pass of the loop runs what iterating over ``runq`` yields. A queue that
  yields the one task that was chosen makes a step of it. Nothing of trio is patched or slowed down
  for that, and no task can tell the difference: trio promises nothing about whose turn is next.
- ``Runner.deadlines`` and ``Runner.waiting_for_idle`` say what else the loop waits for. What wakes
  it from outside, ``Runner.entry_queue``, and what looks at descriptors, ``Runner.io_manager``, are
  given to it: a simulated thread has no descriptors.
"""

from __future__ import annotations

import contextvars
import math
import sys
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, NoReturn

import outcome
import trio
from trio._core import _run as trio_run
from trio._core._entry_queue import EntryQueue
from trio._core._instrumentation import Instruments
from trio._core._ki import KIManager

from ._errors import RealInput

_context: Final = trio_run.GLOBAL_RUN_CONTEXT


class VirtualClock(trio.abc.Clock):
    """A clock that stands still, but for whoever sets `now`. In seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """The virtual time."""
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Nobody sleeps; but what is due only in a while isn't due now."""
        return 0 if deadline <= self.now else 1


class _RunQueue:
    """Stands in for ``Runner.runq``: hands out the one task whose turn it is.

    Args:
        woken: called with each task that becomes runnable.
    """

    def __init__(self, woken: Callable[[trio.lowlevel.Task], object]) -> None:
        self.append = woken
        self.turn: trio.lowlevel.Task | None = None
        self.idle = False

    def __bool__(self) -> bool:
        return not self.idle

    def __len__(self) -> int:
        return int(not self.idle)

    def __iter__(self) -> Iterator[trio.lowlevel.Task]:
        return iter(()) if self.turn is None else iter((self.turn,))

    def clear(self) -> None:
        self.turn = None


class _Wakeup:
    """Stands in for the socket pair through which other threads wake a loop.

    There are no other threads: whoever wakes the loop has the OS thread, and may wake the task.
    """

    def __init__(self) -> None:
        self._woken = False
        self._waiter: trio.lowlevel.Task | None = None

    def wakeup_thread_and_signal_safe(self) -> None:
        if self._waiter is None:
            self._woken = True
        else:
            waiter, self._waiter = self._waiter, None
            waiter._runner.reschedule(waiter)

    async def wait_woken(self) -> None:
        if self._woken:
            self._woken = False
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def drain(self) -> None:
        """There is nothing to drain."""

    def wakeup_on_signals(self) -> None:
        """Signals go to the OS thread, and end the simulation."""

    def close(self) -> None:
        """Nothing is held."""


class _NoIO:
    """Stands in for what looks at descriptors: nobody does."""

    def process_events(self, events: object) -> None:
        """There are none."""

    def force_wakeup(self) -> None:
        """Nothing sleeps."""

    def close(self) -> None:
        """Nothing is held."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RealInput(
            f"trio.lowlevel.{name}() needs the operating system, and there is no I/O in a "
            "simulation: use memory channels, or trio.testing.memory_stream_pair()"
        )


class Loop:
    """One trio loop, under control. Entered by `step`, left when that returns.

    Args:
        body: what the loop runs, to its end.
        clock: what tells the time.
        woken: called with each task that becomes runnable, in whichever loop's step that happens.
    """

    def __init__(
        self,
        body: Callable[[], Awaitable[object]],
        clock: VirtualClock,
        woken: Callable[[trio.lowlevel.Task], object],
    ) -> None:
        outside = sys.get_asyncgen_hooks()
        self.runner = trio_run.Runner(
            clock=clock,
            instruments=Instruments(()),
            io_manager=_NoIO(),  # type: ignore[arg-type]
            ki_manager=KIManager(),  # not installed: Ctrl-C isn't part of the simulation
            strict_exception_groups=True,
            system_context=contextvars.copy_context(),
            entry_queue=EntryQueue(wakeup=_Wakeup()),  # type: ignore[arg-type]
        )
        self.runner.asyncgens.install_hooks(self.runner)
        self._queue = _RunQueue(woken)
        self.runner.runq = self._queue  # type: ignore[assignment]
        self._hooks = sys.get_asyncgen_hooks()
        self.finished = False
        self._passes: Generator[float, Any, None] = trio_run.unrolled_run(self.runner, body, ())
        self._first = True
        sys.set_asyncgen_hooks(*outside)

    @property
    def outcome(self) -> outcome.Outcome[object]:
        """What `body` returned or raised, once the loop has finished."""
        result = self.runner.main_task_outcome
        assert result is not None
        return result

    def enter(self) -> None:
        """Make this the loop that trio's functions mean. `step` is to be called in it."""
        _context.runner = self.runner
        sys.set_asyncgen_hooks(*self._hooks)

    def step(self, task: trio.lowlevel.Task | None) -> None:
        """Expire what is due, and run a task until it waits; no task: only the former.

        Raises:
            trio.TrioInternalError: a system task has failed, or trio is not what it was.
        """
        self._queue.turn = task
        try:
            self._passes.send(None if self._first else ())
        except StopIteration:
            self.finished = True
        except BaseException:
            self.finished = True
            self.runner.entry_queue.done = True  # it ends like others: nobody can wake its tasks
            raise
        self._first = False

    def next_deadline(self) -> float:
        """When the next scope expires; `math.inf` if none does."""
        return math.inf if self.finished else self.runner.deadlines.next_deadline()

    def waits_for_idle(self) -> bool:
        """Whether a task is in `trio.testing.wait_all_tasks_blocked`."""
        return bool(self.runner.waiting_for_idle)

    def tell_idle(self) -> None:
        """Wake who is in `trio.testing.wait_all_tasks_blocked`."""
        self._queue.idle = True
        self.step(None)  # it looks whether it is idle before it yields
        self.step(None)
        self._queue.idle = False

    def abandon(self) -> None:
        """End a loop that doesn't end by itself: close it, and what is left of its tasks."""
        if self.finished:
            return
        self.finished = True
        self.enter()
        tasks = sorted(self.runner.tasks, key=lambda task: task._counter, reverse=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it was abandoned, we know
            self._passes.close()
            self.enter()  # the end of a loop clears that
            for task in tasks:
                for nursery in task.child_nurseries:
                    nursery._children.clear()  # it would complain of them
                _close(task.coro)


def _close(coro: CoroutineType[Any, Any, Any]) -> None:
    """Unwind a task's stack. What it does on the way is of no interest: the run has failed."""
    with suppress(BaseException):
        coro.close()


def save_place() -> dict[str, Any]:
    """Which loop and which task runs, to go back to after another loop's step."""
    return _context.__dict__.copy()


def restore_place(place: dict[str, Any]) -> None:
    """Go back to where `save_place` was called."""
    _context.__dict__.clear()
    _context.__dict__.update(place)
