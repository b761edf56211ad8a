"""How a running cell is ended from another thread, and nothing but that cell.

Theory. A guard runs one cell at a time; each gets a *generation*, a number that is never reused.
Whoever wants to end it names the generation, so a wish that comes too late hits nothing. The
`CellGuard` is what both sides share: the subshell, which enters and leaves cells, and the ladder
(`_ladder`), which runs in the kernel's I/O thread and never runs user code. A "cell" is here
whatever of the kernel author's is run for a client: the handler of any request. A subshell has a
second guard for the handlers of comm messages, which run while a cell awaits; several subshells may
be tasks of one loop.

A cell that awaits is ended by its cancel scope. One that computes has to be hit by an exception out
of nowhere (`KeyboardInterrupt`), and that is only safe while the cell's own code is on top of the
stack: in the scheduler, or in our code, it would wreck the loop. So everything that the cell has
running is *exposed* by itself, in an `Exposure`: its own task, each task that it starts, each
function that it runs in a worker thread. A task's coroutine is stepped by `_drive`, which *arms*
the exposure right before a step and disarms it right after; what the cell calls of ours disarms it
meanwhile (`protected`). Of all exposures of a thread only one is armed at a time, as only one task
runs.

Arming takes no lock, as it happens at every step. Raising and disarming settle who was first thus:

    the ladder                        the cell's thread
    ----------                        -----------------
    raised = True                     armed = False
    if armed: raise in the thread     if raised: withdraw, under the lock
    else: raised = False

the left column under the lock. Either the ladder sees that the exposure is not armed, or the cell's
thread sees that something was raised, waits for the lock, and withdraws what has not struck yet.

CPython looks for such an exception, and for signals, only at certain points: when a function is
entered, at a jump backwards, after a call. `_drive` has none of them between arming and disarming,
other than in the cell's own code: that's why it steps the coroutine in that peculiar way, with
``out[:] = steps``. So nothing that the coroutine yields can get lost on its way to trio.

A cell may be in the middle of something of trio's (or ours) that is not to be torn apart: entering
a cancel scope, say. So the raiser looks where the thread is, and waits for another moment (see
`Raiser`); it can't see what the thread is about to enter, so a strike may still come right at the
beginning of such a function.

Checked for: 3.11 to 3.14, by tests that strike at every point of short cells (``RESUME``,
``JUMP_BACKWARD`` and the ``CALL`` family check, though a call with keywords not always in 3.14;
what stores and loads attributes and slices doesn't). Not checked for: free-threaded builds. There
the table above needs each thread's store to be seen before its load is made. An attribute is stored
under its object's own lock, which orders the two on x86, but that is promised nowhere. And
anywhere: a trace function in Python (`sys.settrace`: a debugger, coverage) adds such points to
`_drive` itself.

What trio promises nowhere, and `test_guard` checks: that a task's coroutine can be replaced when
the task is spawned (`drive_tasks`), and where a cancel scope keeps those within it
(`_lift_shields`).
"""

from __future__ import annotations

import ctypes
import enum
import logging
import operator
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CodeType, FrameType, TracebackType, coroutine
from typing import Any, Final, Protocol, TypeVar, cast

import attrs
import outcome
import trio

from ..actors import Promise
from ._fork import leave_child
from ._raisers import (
    AsyncRaiser,
    LineRaiser,
    is_in_machinery,
    is_like_the_users,
    like_the_users,
)

T = TypeVar("T")

_log: Final = logging.getLogger("trio_subshells.kernel")

MOST_TIMES_AGAIN: Final = 50
"""How often one firm strike comes again. CPython takes an exception at a jump backwards for one of
the code before the jump's target. If that is in the same ``try``, another moment has to be tried.
"""

SHORT_SLEEP: Final = 0.02
"""Seconds. What sleeps for less is not worth being woken."""


class EndReason(enum.Enum):
    """Why a cell is being ended. The value is the error's name in its reply."""

    INTERRUPTED = "KeyboardInterrupt"
    TIMED_OUT = "CellTimeout"
    DELETED = "SubshellDeleted"
    SHUTDOWN = "KernelShutdown"
    DIED = "KernelDied"


class Raiser(Protocol):
    """Raises `KeyboardInterrupt` in the thread of a running cell."""

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        """Raise it there, as soon as may be. Called from another thread.

        Returns:
            whether it was, or may yet be, raised; if not, as the thread is in something that is not
            to be torn apart, it may be tried again.
        """

    @property
    def missed(self) -> bool:
        """Whether the last strike has come to nothing, as the thread had meanwhile got into
        something that is not to be torn apart: then it is to be tried again.
        """

    def strike_on(self) -> None:
        """See to it that the last strike, if it has neither struck nor missed yet, still may.

        Called from another thread, now and then.
        """

    def withdraw(self) -> None:
        """Take back what has not struck yet. Called in that thread."""


@attrs.frozen
class CellEnded(Exception):
    """What `CellGuard.run` raises for a cell that was ended from outside."""

    reason: EndReason
    started: bool = True


class Exposure:
    """A piece of a cell that runs in one thread, and may be struck there. See the module's theory.

    Args:
        guard: of the cell.
        generation: of the cell. What it has left running is still of that generation.
        raiser: for the thread.
    """

    __slots__ = (
        "_alarm",
        "_codes",
        "_generation",
        "_guard",
        "_raiser",
        "armed",
        "firmly",
        "forked",
        "hit_in",
        "protections",
        "raised",
        "times_again",
        "wanted",
    )

    def __init__(self, guard: CellGuard, generation: int, raiser: Raiser) -> None:
        self.armed = False
        self.raised = False
        self.wanted = False  # at the end of the protected block
        self.firmly = False
        self.times_again = 0
        self.forked = False  # this is a child process that the cell has forked
        self.hit_in = 0  # the last end (see `CellGuard.ends`) in which it was struck
        self.protections = 0
        self._guard = guard
        self._generation = generation
        self._raiser = raiser
        self._alarm: threading.Lock | None = None
        self._codes: list[CodeType] = []  # struck before each of their lines

    # ----------------------------------------------------------------- in the ladder's thread

    def strike(self, *, firmly: bool) -> bool:
        """Raise `KeyboardInterrupt` in it, if the cell's code is on top of the stack now.

        Under the guard's lock.
        """
        self.firmly = firmly
        self.times_again = MOST_TIMES_AGAIN
        raised_before, self.raised = self.raised, True
        if not self.armed:
            self.raised = raised_before
            self.wanted = True
            return False
        if not self._raiser.strike(FirmInterrupt if firmly else KeyboardInterrupt):
            self.raised = raised_before
            return False
        self.hit_in = self._guard.ends
        alarm, self._alarm = self._alarm, None  # the sleeper may be about to clear it, too
        if alarm is not None:
            alarm.release()
        return True

    @property
    def missed(self) -> bool:
        """Whether a strike was under way, and has come to nothing."""
        return self.raised and self._raiser.missed

    def strike_on(self) -> None:
        """See to it that a strike that is under way still strikes. Under the guard's lock."""
        if self.raised:
            self._raiser.strike_on()

    def is_of(self, generation: int) -> bool:
        """Whether it belongs to that cell."""
        return self._generation == generation

    @property
    def is_left_over(self) -> bool:
        """Whether its cell has ended, and its subshell is to end."""
        guard = self._guard
        return guard.closed is not None and not guard._is_running(self._generation)

    # ------------------------------------------------------------------- in the cell's thread

    def settle(self) -> None:
        """The cell's code is off the stack, but something was raised meanwhile: withdraw it."""
        with self._guard.lock:
            if self._raiser.missed:
                self.hit_in = 0
            self._raiser.withdraw()
            self.raised = False

    @like_the_users
    def sleep(self, seconds: float) -> None:
        """Block the thread, as `time.sleep` does; a strike ends it."""
        alarm = threading.Lock()
        alarm.acquire()
        self._alarm = alarm
        # Nothing of ours is to catch what strikes here: see `FirmInterrupt`. CPython 3.14 doesn't
        # look for it after a call with keywords; 3.11 and 3.12 may have forgotten to, if another
        # thread is struck at the same time.
        if alarm.acquire(True, min(seconds, threading.TIMEOUT_MAX)):
            self._raiser.strike(FirmInterrupt if self.firmly else KeyboardInterrupt)
        self._alarm = None

    def forget_others(self) -> None:
        """In a forked child: whoever may strike is in the parent."""
        self._guard.lock = threading.Lock()
        self.raised = self.wanted = False
        self.forked = True

    def strike_before_each_line(self, frame: FrameType | None) -> None:
        """From now on, in what it has running at this moment."""
        known = {id(code) for code in self._codes}
        codes: dict[int, CodeType] = {}  # code compares equal to its likes
        while frame is not None and frame.f_code not in _STEPPING:
            code = frame.f_code
            if not (id(code) in known or is_like_the_users(frame) or is_in_machinery(frame)):
                codes[id(code)] = code
            frame = frame.f_back
        if _lines.begin(codes.values()):
            self._codes += codes.values()

    def close(self) -> None:
        """It has ended."""
        self._guard.discard(self)
        if self._codes:
            _lines.end(self._codes)


class _Canceller:
    """One that the author has registered: called within its block, or not at all."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function: Callable[[], object] | None = function
        self._calling = threading.Lock()

    def call(self) -> None:
        """In the ladder's thread. What it calls may raise."""
        with self._calling:
            if self._function is not None:
                self._function()

    def withdraw(self) -> None:
        """In the cell's thread: the block has been left."""
        with self._calling:
            self._function = None


class CellGuard:
    """What a subshell and whoever may end its cells have in common. See the module's theory."""

    def __init__(self) -> None:
        self.generation = 0
        """Of the running cell, or of the last one."""
        self.running: object | None = None
        """What the caller of `run` said it is, while a cell runs."""
        self.ends = 0
        """How often it has been wanted that the running cell ends."""
        self._hit_in = 0  # the last of them in which a piece of it was struck
        self._exposures: dict[Exposure, None] = {}  # in the order in which they began
        self.lock = threading.Lock()
        """Also of its exposures."""
        self._reason: EndReason | None = None
        self._closed: EndReason | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._cancellers: list[_Canceller] = []
        self._watchers: list[Promise[None]] = []

    # ---------------------------------------------------------------- in the subshell's thread

    @contextmanager
    def cell(self, what: object) -> Iterator[None]:
        """In this block a cell runs; the generation is new.

        To be entered before anybody is told of the cell: what they do about it then hits it, even
        if nothing of it has been begun. None does if the guard is closed.

        Args:
            what: tells others what runs.
        """
        with self.lock:
            if self._closed is None:
                self.generation += 1
                self.running = what
                self.ends = self._hit_in = 0
                self._reason = None
                self._scope = trio.CancelScope()
                self._token = trio.lowlevel.current_trio_token()
        try:
            yield
        finally:
            with self.lock:
                self.running = None
                self._cancellers.clear()
                watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                watcher.resolve(outcome.Value(None))

    async def run(self, body: Callable[[], Coroutine[Any, Any, T]], raiser: Raiser) -> T:
        """Run the cell's code, once, within its block.

        Args:
            body: the code.
            raiser: how to interrupt this thread.

        Raises:
            CellEnded: it was ended from outside, or not even started as the guard is closed. Was
                it to be ended before this, its code gets as far as its first checkpoint.
            BaseException: what the code raised by itself.
        """
        with self.lock:
            if self._closed is not None:
                raise CellEnded(self._closed, started=False)
        with self._scope as scope:
            self.cancel_if_ending(self.generation)
            task = trio.lowlevel.current_task()
            outside = tuple(task.child_nurseries)
            running = _RunningCell(self, self.generation, raiser, task, outside)
            context = _cell.set(running)
            cell = body()
            try:
                return await _drive(cell, self.expose(self.generation, raiser))
            except GeneratorExit:
                raise  # the loop itself is being thrown away
            except BaseException as error:
                # Whatever it raises now, our ending it is the reason: a database's "interrupted",
                # a `KeyboardInterrupt` that became something else on its way. Only what is nothing
                # but cancelled is left to the scope that did it.
                if self._reason is not None and not _is_cancelled(error):
                    raise CellEnded(self._reason) from error
                raise
            finally:
                cell.close()  # it may have been hit before its first line: then it was never begun
                _cell.reset(context)
        assert scope.cancelled_caught
        raise CellEnded(self._reason or EndReason.INTERRUPTED)

    def expose(self, generation: int, raiser: Raiser) -> Exposure:
        """Another piece of that cell begins to run."""
        exposure = Exposure(self, generation, raiser)
        with self.lock:
            if generation == self.generation:
                exposure.hit_in = self._hit_in  # what is begun now belongs to the cleaning up
            self._exposures[exposure] = None
        return exposure

    def discard(self, exposure: Exposure) -> None:
        """It has ended."""
        with self.lock:
            self._exposures.pop(exposure, None)

    @contextmanager
    def canceller(self, canceller: Callable[[], object]) -> Iterator[None]:
        """Within this block, ending the cell begins by calling `canceller`."""
        registered = _Canceller(canceller)
        with protected(), self.lock:
            self._cancellers.append(registered)
        try:
            yield
        finally:
            with protected():
                registered.withdraw()  # waits while it is being called
                with self.lock:
                    if registered in self._cancellers:
                        self._cancellers.remove(registered)

    # ------------------------------------------------------------------- in the ladder's thread

    def begin_end(self, generation: int, reason: EndReason) -> Promise[None] | None:
        """Announce that the cell is to be ended; returns what resolves when it has ended.

        None: it is not running any more.
        """
        ended = self.watch(generation)
        if ended is not None:
            with self.lock:
                if self._is_running(generation):
                    self.ends += 1
                    if self._closed is None:
                        self._reason = reason
        return ended

    def close(self, reason: EndReason) -> None:
        """No cell starts any more; what is running stays as it is."""
        with self.lock:
            self._closed = reason
            if self.running is not None:
                self._reason = reason

    @property
    def closed(self) -> EndReason | None:
        """Why no cell starts any more, if so."""
        return self._closed

    def watch(self, generation: int) -> Promise[None] | None:
        """What resolves when that cell has ended; None if it doesn't run."""
        ended: Promise[None] = Promise()
        with self.lock:
            if not self._is_running(generation):
                return None
            self._watchers = [each for each in self._watchers if not each.abandoned]
            self._watchers.append(ended)
        return ended

    def cancellers(self, generation: int) -> list[Callable[[], object]]:
        """Rung 0: what the author registered for this cell. Called late, it does nothing."""
        with self.lock:
            return [each.call for each in self._cancellers] if self._is_running(generation) else []

    def cancel(self, generation: int, *, lift_shields: bool = False) -> None:
        """Rung 1: cancel the cell's scope.

        Args:
            generation: of the cell.
            lift_shields: cancel what the cell has shielded from that, too.
        """
        with self.lock:
            if not self._is_running(generation) or self._token is None:
                return
            scope, token = self._scope, self._token
        try:
            token.run_sync_soon(scope.cancel)
            if lift_shields:
                token.run_sync_soon(_lift_shields, scope)
        except trio.RunFinishedError:
            return  # its loop has ended, and the cell with it

    def strike(self, generation: int, *, firmly: bool = False) -> bool:
        """Rung 2: raise `KeyboardInterrupt` where the cell computes; returns whether it did.

        Args:
            generation: of the cell.
            firmly: and again, wherever the cell catches it.
        """
        with self.lock:
            if not self._is_running(generation):
                return False
            struck = [
                exposure.strike(firmly=firmly)
                for exposure in self._exposures
                if exposure.is_of(generation)
            ]
        return any(struck)

    def strike_each_once(self, generation: int) -> bool:
        """Rung 2, for what of the cell has not been hit yet since it was last wanted to end.

        What has been hit is cleaning up, and another strike would disturb that; but a strike may
        have come to nothing, or be still on its way, and some of the cell may have been where
        nothing strikes.

        Returns whether all of it has been hit.
        """
        with self.lock:
            if not self._is_running(generation):
                return True
            struck = []
            for exposure in self._exposures:
                if not exposure.is_of(generation):
                    continue
                if exposure.hit_in < self.ends or exposure.missed:
                    struck.append(exposure.strike(firmly=False))
                else:
                    exposure.strike_on()
            if any(struck):
                self._hit_in = self.ends
        return all(struck)

    def cancel_if_ending(self, generation: int) -> bool:
        """Rung 1, by the cell itself, if it is to end; returns whether it, or all around it, is.

        In a trio loop. The ladder has told the cell's loop so, too, or does it at this moment.
        """
        if trio.lowlevel.current_trio_token() is not self._token:
            return False
        if self._reason is not None and self._is_running(generation):
            self._scope.cancel()
        status = self._scope._cancel_status  # says it of the scopes around this one, too
        return status is not None and status.effectively_cancelled

    def strike_leftovers(self) -> None:
        """Strike whatever cells have left running, once no other cell starts."""
        with self.lock:
            if self._closed is not None:
                for exposure in self._exposures:
                    exposure.strike(firmly=True)

    def _is_running(self, generation: int) -> bool:
        return self.running is not None and self.generation == generation


def _is_cancelled(error: BaseException) -> bool:
    """Whether an exception is nothing but cancellations."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_cancelled(each) for each in error.exceptions)
    return isinstance(error, trio.Cancelled)


def _is_our_doing(error: BaseException) -> bool:
    """Whether an exception is nothing but what we end code with."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_our_doing(each) for each in error.exceptions)
    return isinstance(error, trio.Cancelled | KeyboardInterrupt)


@attrs.frozen
class SubshellGuards:
    """The guards of one subshell, which may run a request and a comm message at the same time."""

    requests: CellGuard = attrs.field(factory=CellGuard)
    comms: CellGuard = attrs.field(factory=CellGuard)

    def __iter__(self) -> Iterator[CellGuard]:
        return iter((self.requests, self.comms))

    def close(self, reason: EndReason) -> None:
        """Nothing starts any more; what is running stays as it is."""
        for guard in self:
            guard.close(reason)

    @property
    def closed(self) -> EndReason | None:
        """Why nothing starts any more, if so."""
        return self.requests.closed

    @property
    def running(self) -> bool:
        """Whether anything runs."""
        return any(guard.running is not None for guard in self)


# ------------------------------------------------------------------------ what a cell has running


@attrs.frozen
class _RunningCell:
    """Known to all that the cell starts.

    Attributes:
        guard: of the cell.
        generation: of the cell.
        raiser: for its thread.
        task: its own.
        outside: the nurseries that were open in that task before.
    """

    guard: CellGuard
    generation: int
    raiser: Raiser
    task: trio.lowlevel.Task
    outside: tuple[trio.Nursery, ...]

    def holds(self, task: trio.lowlevel.Task) -> bool:
        """Whether a task is in a nursery that the cell has opened, and not in one of others'."""
        nursery = task.parent_nursery
        while nursery is not None:
            if nursery.parent_task is self.task:
                return nursery not in self.outside
            nursery = nursery.parent_task.parent_nursery
        return False


_cell: ContextVar[_RunningCell | None] = ContextVar("trio_subshells_cell", default=None)


@contextmanager
def drive_tasks(guards: SubshellGuards) -> Iterator[None]:
    """Within this block, the tasks that these guards' cells start can be struck, too.

    In the thread of the loop that runs them.
    """
    instrument = _TaskExposer(guards)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


class _TaskExposer(trio.abc.Instrument):
    def __init__(self, guards: SubshellGuards) -> None:
        self._guards = tuple(guards)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Called by trio before the task's first step."""
        cell = task.context.get(_cell)
        if cell is not None and cell.guard in self._guards:
            exposure = cell.guard.expose(cell.generation, cell.raiser)
            task.coro = cast("Any", _drive_task(task.coro, exposure, cell))


def exposed(function: Callable[..., T]) -> Callable[..., T]:
    """What a cell hands to a worker thread: it is struck there as the cell itself would be.

    Called by other code than a cell's, it returns the function as it is.
    """
    cell = _cell.get()
    return function if cell is None else partial(_call_exposed, cell, function)


@like_the_users
def _call_exposed(cell: _RunningCell, function: Callable[..., T], *args: object) -> T:
    """Call it as `_drive` steps a coroutine."""
    exposure = cell.guard.expose(cell.generation, AsyncRaiser())
    out: list[T] = []
    steps = map(operator.call, (partial(function, *args),))
    try:
        try:
            _here.exposure = exposure
            exposure.armed = True
            out[:] = steps
        finally:
            exposure.armed = False
            _here.exposure = None
            if exposure.forked:
                leave_child(sys.exception())
            while exposure.raised:
                try:
                    exposure.settle()
                except KeyboardInterrupt:
                    continue  # as in _drive
    finally:
        exposure.close()
    return out[0]


@like_the_users
def interruptible_sleep(seconds: float, sleep: Callable[[float], None]) -> None:
    """Block the thread, as `time.sleep` does; but a cell that sleeps can be struck, in any thread.

    The main thread's own sleep is ended by a signal; that of other threads by nothing.

    Args:
        seconds: whatever `time.sleep` takes.
        sleep: that function.
    """
    exposure = _here.exposure
    if (
        exposure is None
        or not (isinstance(seconds, (int, float)) and seconds > SHORT_SLEEP)
        or threading.current_thread() is threading.main_thread()
    ):
        sleep(seconds)
    else:
        exposure.sleep(seconds)


def is_about_to_end() -> bool:
    """Whether the subshell of the calling cell is being ended."""
    cell = _cell.get()
    return cell is not None and cell.guard.closed is not None


async def checkpoint_if_ending() -> None:
    """For a cell that has got what it waited for: if it is to end, or its kernel, it ends here.

    That may be why it has got it: when several cells are to end, one of them may wait for another.
    What a scope of the cell's own cancels keeps what it has got, until its next checkpoint.
    """
    cell = _cell.get()
    if cell is not None and cell.guard.cancel_if_ending(cell.generation):
        await trio.lowlevel.checkpoint_if_cancelled()


def _lift_shields(scope: trio.CancelScope) -> None:
    """Let a scope's cancellation through to all that is within it. In its loop."""
    inside = [scope._cancel_status]
    while inside:
        status = inside.pop()
        if status is not None:  # else the scope has been left
            status._scope.shield = False
            inside.extend(status._children)


class _Here(threading.local):
    exposure: Exposure | None = None
    """Of the cell whose code this thread runs at this moment."""


_here = _Here()


def _after_fork_in_child() -> None:
    """Nothing strikes in a forked child, and no lock is held there (see `_fork`)."""
    exposure = _here.exposure
    if exposure is not None:
        exposure.forget_others()
        _here.exposure = None
    _lines.forget_others()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def interruptible() -> bool:
    """Whether this thread runs a cell's own code, so that an interrupt of the cell comes here."""
    return _here.exposure is not None


class FirmInterrupt(KeyboardInterrupt):
    """For code that catches what it is struck by, as ``except BaseException`` in a loop does.

    Caught, it strikes anew at the next bytecode that allows for it, which is in the handler, or at
    the loop's jump back, outside of its ``try``. So each catch costs the code one level of its own,
    until nothing of it is left. What has caught it `MOST_TIMES_AGAIN` times comes back to the same
    ``try`` each time: there, from CPython 3.12 on, it strikes before each line instead. 3.12 needs
    that often, as it takes an exception at the end of a handler for one of the ``try`` before.

    It is Python that makes it, in the thread that is struck: there, or when it is caught.
    """

    def __init__(self) -> None:
        super().__init__()
        if _strikes_again(sys._getframe(1)):
            done: list[int] = [0]
            # In this peculiar way, and last, as after a call it would strike right here.
            done[:] = map(_set_async_exc, (ctypes.c_ulong(threading.get_ident()),), (_again,))


class ThrownInterrupt(KeyboardInterrupt):
    """The same for code that awaits, into which it is thrown instead of `trio.Cancelled`.

    It is trio's code that catches it first, and raises it again. So this one strikes anew only when
    it has been dropped: where the user's handler ends.
    """

    def __del__(self) -> None:
        if _here.exposure is None:
            return  # the thread may be at its end, where nobody calls this
        if _strikes_again(sys._getframe(1)):
            done: list[int] = [0]
            done[:] = map(_set_async_exc, (ctypes.c_ulong(threading.get_ident()),), (_again,))


_again = ctypes.py_object(FirmInterrupt)
_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
for _interrupt in (FirmInterrupt, ThrownInterrupt):  # what users are shown
    _interrupt.__name__ = _interrupt.__qualname__ = "KeyboardInterrupt"
    _interrupt.__module__ = "builtins"


def _may_strike(frame: FrameType) -> Exposure | None:
    """What is to be struck firmly, if that is what runs in this frame of this thread."""
    exposure = _here.exposure
    if exposure is None or not (exposure.firmly and exposure.armed) or is_in_machinery(frame):
        return None
    return exposure


def _strikes_again(frame: FrameType) -> bool:
    exposure = _may_strike(frame)
    if exposure is None:
        return False
    if exposure.times_again == 0:
        exposure.strike_before_each_line(frame)
        return False
    exposure.times_again -= 1
    exposure.raised = True
    return True


def _strikes_before_line(frame: FrameType) -> type[KeyboardInterrupt] | None:
    return None if _may_strike(frame) is None else FirmInterrupt


_lines = LineRaiser(_strikes_before_line)


def protected() -> Protection:
    """A block, in what a cell's code calls of ours, within which nothing strikes.

    What was to strike meanwhile is raised at the block's end. The block may await; then the cell's
    cancelled scope ends it. Entered by other threads than the cell's, or while no cell runs, it
    does nothing.
    """
    return _protection


class Protection:
    """See `protected`. There is only one, as it is entered all the time; it has no state."""

    __slots__ = ()

    def __enter__(self) -> None:
        exposure = _here.exposure
        if exposure is None:
            return
        exposure.protections += 1
        exposure.armed = False
        while exposure.raised:
            try:
                exposure.settle()
            except KeyboardInterrupt:
                exposure.wanted = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        exposure = _here.exposure
        if exposure is None:
            return
        exposure.protections -= 1
        if exposure.protections == 0:
            if exposure.wanted:
                exposure.wanted = False
                exposure.armed = True
                raise KeyboardInterrupt
            exposure.armed = True


_protection = Protection()


async def _drive(body: Coroutine[Any, Any, T], exposure: Exposure) -> T:
    """Await a coroutine that may be struck during each of its steps.

    Not the generator itself: trio looks at attributes of a task that only a coroutine has.
    """
    try:
        return await _stepped(body, exposure)
    finally:
        exposure.close()


async def _drive_task(
    body: Coroutine[Any, Any, T], exposure: Exposure, cell: _RunningCell
) -> T | None:
    """`_drive` a task that a cell has started, in whatever nursery."""
    try:
        return await _drive(body, exposure)
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        # What the cell waits for ends with it. What it has put into a nursery of the author's is
        # struck with it too, or when the subshell ends, for the thread to be free; but there that
        # would be a failure, and the end of all that the author has there.
        struck = exposure.hit_in or exposure.is_left_over
        of_others = not cell.holds(trio.lowlevel.current_task())
        if struck and of_others and _is_our_doing(error):
            _log.info("a task that computed has been ended with the cell that had started it")
            return None
        raise


@coroutine
def _stepped(body: Coroutine[Any, Any, T], exposure: Exposure) -> Generator[Any, Any, T]:
    """Step a coroutine as ``yield from`` would, with the exposure armed during each step."""
    result: list[T] = []

    async def finishing() -> None:
        result.append(await body)

    stepped = finishing()
    out: list[Any] = []
    steps: Iterator[Any] = map(stepped.send, (None,))
    while True:
        try:
            _here.exposure = exposure
            exposure.armed = not exposure.protections  # it may await within a protected block
            out[:] = steps
        finally:
            exposure.armed = False
            _here.exposure = None
            if exposure.forked:
                leave_child(sys.exception(), awaits=bool(out))
            while exposure.raised:
                try:
                    exposure.settle()
                except KeyboardInterrupt:
                    # It struck after the cell's code. Either that has ended, or it awaits, and then
                    # the cancelled scope ends it: the strike isn't needed any more.
                    continue
            exposure.wanted = False
        if not out:
            return result[0]
        try:
            sent = yield out.pop()
        except GeneratorExit:
            stepped.close()
            raise
        except BaseException as error:
            steps = map(stepped.throw, (error,))
        else:
            if exposure.firmly and _delivers_cancelled(sent):
                steps = map(stepped.throw, (ThrownInterrupt,))
            else:
                steps = map(stepped.send, (sent,))


_STEPPING: Final = frozenset({_stepped.__code__, _call_exposed.__code__})
"""What arms an exposure, steps the cell's code, and disarms it."""


def _delivers_cancelled(sent: object) -> bool:
    """Whether this is what trio wakes a task with that was cancelled."""
    return isinstance(sent, outcome.Error) and isinstance(sent.error, trio.Cancelled)
