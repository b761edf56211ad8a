"""A trio loop that makes one step when it is told to: what a simulated thread is made of.

What the simulator leans on and trio doesn't document is in this module, but for what only reports
and reductions need; docs/testing.md lists all of it, and `tests/testing/test_loops.py` has a canary
for each:

- `trio.run` is a generator, ``trio._core._run.unrolled_run``, that yields before each look at the
  operating system. Whoever advances it is the loop's master. Several of them can be advanced in
  turn in one OS thread, if ``GLOBAL_RUN_CONTEXT`` is set to the right one before each advance.
- Whatever wakes a task (an event, a deadline, a cancellation, a spawn) appends it to
  ``Runner.runq``; each pass of the loop runs what is in there. If that is the one task that was
  chosen, the pass is a step of it. Nothing of trio is patched for that, and no task can tell the
  difference: trio promises nothing about whose turn is next.
- A pass looks at much else, which takes longer than the step. Nearly always there is nothing to be
  seen: no deadline is due, and no instrument listens. Then `Loop.step` runs the task itself, and
  does what trio does with the two things that a task says when it waits (``_traps``). Whatever else
  it says, and an error of trio's own, is left to the generator.
- ``Runner.deadlines`` and ``Runner.waiting_for_idle`` say what else the loop waits for. What wakes
  it from outside, ``Runner.entry_queue``, and what looks at descriptors, ``Runner.io_manager``, are
  given to it: a simulated thread has no descriptors but simulated ones.
"""

from __future__ import annotations

import contextvars
import functools
import math
import sys
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from types import CoroutineType, MappingProxyType
from typing import Any, Final, NoReturn, Protocol

import outcome
import trio
from trio._core import _run as trio_run
from trio._core._instrumentation import Instruments
from trio._core._ki import KIManager
from trio._core._traps import CancelShieldedCheckpoint, WaitTaskRescheduled

from ._errors import RealInput

_context: Final = trio_run.GLOBAL_RUN_CONTEXT

_PRUNED: Final = 1_000
"""From how many deadlines on trio looks whether they are still wanted."""


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
        return 0 if deadline <= self.now else math.inf


class _RunQueue(list[trio.lowlevel.Task]):
    """Stands in for ``Runner.runq``: has the one task whose turn it is.

    Args:
        woken: called with each task that becomes runnable.
    """

    def __init__(self, woken: Callable[[trio.lowlevel.Task], object]) -> None:
        self.append = woken  # type: ignore[assignment, method-assign]

    def set(self, turn: trio.lowlevel.Task | None) -> None:
        """This is next; None: nothing is."""
        self[:] = () if turn is None else (turn,)

    def forget(self) -> None:
        """Hold nothing any more, itself included."""
        vars(self).clear()
        self.clear()


class _Instruments(dict[str, dict[trio.abc.Instrument, None]]):
    """Stands in for trio's, in which each look for what may be there is a call in Python."""

    add_instrument = Instruments.add_instrument
    remove_instrument = Instruments.remove_instrument
    call = Instruments.call

    def __init__(self) -> None:
        super().__init__(_all={})

    @property
    def data(self) -> _Instruments:
        return self


class _Calls:
    """Stands in for ``Runner.entry_queue``, through which other threads call into a loop.

    There are no other threads: whoever calls has the OS thread, and needs neither a lock nor a
    socket to wake the loop. Trio's own task, by which the calls are made, becomes runnable as ever;
    but its steps, of which there are many, are `Loop.step`'s. Trio sees it wait all the time.

    Args:
        woken: called with that task when there is a call to be made.
    """

    def __init__(self, woken: Callable[[trio.lowlevel.Task], object]) -> None:
        self._woken = woken
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._idempotent: dict[tuple[Callable[..., object], tuple[object, ...]], None] = {}
        self._cancelled = False
        self.caller: trio.lowlevel.Task | None = None
        self.wanted = False
        """Whether the caller is runnable because of a call."""
        self._is_woken = False  # and whether trio's `reschedule` has made it so: once is enough
        self.done = False
        self.wakeup = self

    def wakeup_on_signals(self) -> None:
        """Signals go to the OS thread, and end the simulation."""

    def run_sync_soon(
        self, sync_fn: Callable[..., object], *args: object, idempotent: bool = False
    ) -> None:
        if self.done:
            raise trio.RunFinishedError("run() has exited")
        if idempotent:
            self._idempotent[sync_fn, args] = None
        else:
            self._calls.append((sync_fn, args))
        self._want()

    def _want(self) -> None:
        if self.caller is not None and not self.wanted and not self._is_woken:
            self.wanted = True
            self._woken(self.caller)

    async def task(self) -> None:
        caller = trio.lowlevel.current_task()
        self.make()
        self.caller = caller
        try:
            while True:
                self._is_woken = False
                if self._calls or self._idempotent:
                    self._want()
                self._cancelled = False
                await trio.lowlevel.wait_task_rescheduled(self._abort)
        finally:
            self.caller = None
            self.done = True
            self.make()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        if self.wanted:  # it is runnable already: the calls first
            self._cancelled = True
            return trio.lowlevel.Abort.FAILED
        self._is_woken = True
        return trio.lowlevel.Abort.SUCCEEDED

    def make(self) -> None:
        """Make the calls that there are now; as the caller."""
        self.wanted = False
        for _ in range(len(self._calls)):
            self._call(*self._calls.popleft())
        for call in list(self._idempotent):
            del self._idempotent[call]
            self._call(*call)
        if self._calls or self._idempotent:
            self._want()
        elif self._cancelled and self.caller is not None:
            self._is_woken = True
            wake(self.caller)

    def _call(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            function(*args)
        except BaseException as error:
            trio.lowlevel.spawn_system_task(_raise, error)  # as trio does: it ends the loop

    def size(self) -> int:
        return len(self._calls) + len(self._idempotent)

    def close(self) -> None:
        """Nothing is held."""


async def _raise(error: BaseException) -> NoReturn:
    raise error


class Descriptor(Protocol):
    """A simulated file descriptor: see `_descriptors`."""

    async def wait_readable(self) -> None:
        """Wait until there is something to read."""

    def notify_closing(self) -> None:
        """Wake who waits, with `trio.ClosedResourceError`."""


class _IO:
    """Stands in for what looks at descriptors: it knows the simulated ones only.

    Args:
        descriptors: those there are.
    """

    def __init__(self, descriptors: Mapping[int, Descriptor]) -> None:
        self._descriptors = descriptors

    async def wait_readable(self, fd: object) -> None:
        await self._find("wait_readable", fd).wait_readable()

    def notify_closing(self, fd: object) -> None:
        self._find("notify_closing", fd).notify_closing()

    def _find(self, name: str, fd: object) -> Descriptor:
        found = self._descriptors.get(fd) if isinstance(fd, int) else None
        return found or self.__getattr__(name)

    process_events = staticmethod(bool)  # there are none: this does nothing, and takes no time

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
        descriptors: the simulated descriptors that its tasks may wait for.
    """

    def __init__(
        self,
        body: Callable[[], Awaitable[object]],
        clock: VirtualClock,
        woken: Callable[[trio.lowlevel.Task], object],
        descriptors: Mapping[int, Descriptor] = MappingProxyType({}),
    ) -> None:
        outside = sys.get_asyncgen_hooks()
        self._calls = _Calls(woken)
        self.runner = trio_run.Runner(
            clock=clock,
            instruments=_Instruments(),  # type: ignore[arg-type]
            io_manager=_IO(descriptors),  # type: ignore[arg-type]
            ki_manager=KIManager(),  # not installed: Ctrl-C isn't part of the simulation
            strict_exception_groups=True,
            system_context=contextvars.copy_context(),
            entry_queue=self._calls,  # type: ignore[arg-type]
        )
        self.runner.asyncgens.install_hooks(self.runner)
        self._queue = _RunQueue(woken)
        self.runner.runq = self._queue  # type: ignore[assignment]
        # A tuple: what is in the named one that this returns, the garbage collector doesn't see.
        self._hooks = tuple(sys.get_asyncgen_hooks())
        self.finished = False
        self._passes: Generator[float, Any, None] = trio_run.unrolled_run(self.runner, body, ())
        self._advance = self._passes.send
        self._clock = clock
        self._deadlines = self.runner.deadlines
        self._instruments = self.runner.instruments
        self._events: Any = None  # a generator begins with None
        self.next_deadline: Callable[[], float] = self.runner.deadlines.next_deadline
        """Tells when the next scope expires; `math.inf` if none does."""
        sys.set_asyncgen_hooks(*outside)

    @property
    def outcome(self) -> outcome.Outcome[object]:
        """What `body` returned or raised, once the loop has finished."""
        result = self.runner.main_task_outcome
        assert result is not None
        return result

    def enter(self, task: trio.lowlevel.Task | None = None) -> None:
        """Make this the loop that trio's functions mean. `step` is to be called in it.

        Args:
            task: in the middle of whose step this is; None: it is between two steps.
        """
        _context.runner = self.runner
        if task is not None:
            _context.task = task
        sys.set_asyncgen_hooks(*self._hooks)

    def step(self, task: trio.lowlevel.Task | None) -> None:
        """Expire what is due, and run a task until it waits; no task: only the former.

        Raises:
            trio.TrioInternalError: a system task has failed, or trio is not what it was.
        """
        if task is not None and task is self._calls.caller and self._calls.wanted:
            _context.task = task
            try:
                task.context.run(self._calls.make)
            finally:
                del _context.task
            return
        heap = self._deadlines._heap
        if (
            task is None
            or (heap and (heap[0][0] <= self._clock.now or len(heap) > _PRUNED))
            or len(self._instruments) > 1
        ):
            self._pass(task)
            return
        # The rest is what a pass comes to, if there is nothing to do but this task's step.
        resume, value = task._next_send_fn, task._next_send
        task._next_send_fn = task._next_send = None
        assert resume is not None
        _context.task = task
        try:
            try:
                said = task.context.run(resume, value)
            except BaseException as error:
                self._exited(task, error)
                return
            if said is CancelShieldedCheckpoint:
                task._schedule_points += 1
                self.runner.reschedule(task)
            elif type(said) is WaitTaskRescheduled:
                task._schedule_points += 1
                task._cancel_points += 1
                task._abort_func = said.abort_func
                if task._cancel_status.effectively_cancelled:
                    task._attempt_delivery_of_any_pending_cancel()
            else:  # trio hears it once more, and knows what to do
                task._next_send_fn = functools.partial(_say, said)
                self._pass(task)
                return
        except BaseException as error:
            self._pass(None, error)
            raise AssertionError("trio goes on after an internal error") from error
        del _context.task

    def _exited(self, task: trio.lowlevel.Task, error: BaseException) -> None:
        """A task has ended, with its result in a `StopIteration`, or with an exception."""
        result: outcome.Outcome[object]
        if isinstance(error, StopIteration):
            result = outcome.Value(error.value)
        else:
            traceback = error.__traceback__
            assert traceback is not None
            result = outcome.Error(error.with_traceback(traceback.tb_next))  # without `step`
            del traceback
        try:
            self.runner.task_exited(task, result)
        finally:
            del error, result  # they would hold each other
        del _context.task
        if not self.runner.tasks:
            self._pass(None)

    def _pass(self, task: trio.lowlevel.Task | None, error: BaseException | None = None) -> None:
        """Let trio make a pass: expire what is due, and run a task; or end with an error."""
        self._queue.set(task)
        try:
            if error is None:
                self._advance(self._events)
            else:
                self._passes.throw(error)
        except StopIteration:
            self._finish()
        except BaseException:
            self._finish()
            self._calls.done = True  # it ends like others: nobody can wake its tasks
            raise
        self._events = ()

    def _finish(self) -> None:
        self.finished = True
        self.next_deadline = _never

    def forget(self) -> None:
        """The run is over: hold nothing of it that holds the loop, so that no garbage is made."""
        self._queue.forget()
        self.runner.init_task = self.runner.main_task = None
        self.runner.system_nursery = None

    def waits_for_idle(self) -> bool:
        """Whether a task is in `trio.testing.wait_all_tasks_blocked`."""
        return bool(self.runner.waiting_for_idle)

    def tell_idle(self) -> None:
        """Wake who is in `trio.testing.wait_all_tasks_blocked`."""
        waiting = len(self.runner.waiting_for_idle)
        self.step(None)
        if len(self.runner.waiting_for_idle) == waiting:
            self.step(None)  # trio looks whether it is idle before it yields

    def abandon(self) -> None:
        """End a loop that doesn't end by itself: close it, and what is left of its tasks."""
        if self.finished:
            return
        self._finish()
        self.enter()
        tasks = sorted(self.runner.tasks, key=order_of_start, reverse=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it was abandoned, we know
            self._passes.close()
            self.enter()  # the end of a loop clears that
            for task in tasks:
                for nursery in task.child_nurseries:
                    nursery._children.clear()  # it would complain of them
                _close(task.coro)


def _say(said: object, _: object) -> object:
    return said


def _never() -> float:
    return math.inf


def _close(coro: CoroutineType[Any, Any, Any]) -> None:
    """Unwind a task's stack. What it does on the way is of no interest: the run has failed."""
    with suppress(BaseException):
        coro.close()


def order_of_start(task: trio.lowlevel.Task) -> int:
    """To sort tasks by, which trio keeps in sets: the order of these is one of addresses."""
    return task._counter


def wake(task: trio.lowlevel.Task) -> None:
    """Let a task go on that waits, from outside of its loop."""
    task._runner.reschedule(task)


def save_place() -> dict[str, Any]:
    """Which loop and which task runs, to go back to after another loop's step."""
    return _context.__dict__.copy()


def restore_place(place: dict[str, Any]) -> None:
    """Go back to where `save_place` was called."""
    _context.__dict__.clear()
    _context.__dict__.update(place)
