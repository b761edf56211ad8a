"""How a running cell is ended from another thread, and nothing but that cell.

Theory. A guard runs one cell at a time; each gets a *generation*, a number that is never reused.
Whoever wants to end it names the generation, so a wish that comes too late hits nothing. The
`CellGuard` is what both sides share: the subshell, which enters and leaves cells, and the ladder
(`_ladder`), which runs in the kernel's I/O thread and never runs user code. A "cell" is here
whatever of the kernel author's is run for a client: the handler of any request. A subshell has a
second guard for the handlers of comm messages, which run while a cell awaits; several subshells may
be tasks of one loop. Of all guards of a thread only one is armed at a time, as only one task runs.

A cell that awaits is ended by its cancel scope. One that computes has to be hit by an exception out
of nowhere (`KeyboardInterrupt`), and that is only safe while the cell's own code is on top of the
stack: in the scheduler, or in our code, it would wreck the loop. So the cell's coroutine is stepped
by `_drive`, which *arms* the guard right before a step and disarms it right after; what the cell
calls of ours disarms it meanwhile (`protected`).

Arming takes no lock, as it happens at every step. Raising and disarming settle who was first thus:

    the ladder                        the cell's thread
    ----------                        -----------------
    raised = True                     armed = False
    if armed: raise in the thread     if raised: withdraw, under the lock
    else: raised = False

the left column under the lock. Either the ladder sees that the guard is not armed, or the cell's
thread sees that something was raised, waits for the lock, and withdraws what has not struck yet.

CPython looks for such an exception, and for signals, only at certain points: when a function is
entered, at a jump backwards, after a call. `_drive` has none of them between arming and disarming,
other than in the cell's own code: that's why it steps the coroutine in that peculiar way, with
``out[:] = steps``. So nothing that the coroutine yields can get lost on its way to trio.

Checked for: 3.11, 3.12 and 3.13, by tests that strike at every point of short cells; 3.14, by its
``bytecodes.c`` only (``RESUME``, ``JUMP_BACKWARD`` and the ``CALL`` family check; what stores and
loads attributes and slices doesn't). Not checked for: free-threaded builds. There the table above
needs each thread's store to be seen before its load is made. An attribute is stored under its
object's own lock, which orders the two on x86, but that is promised nowhere. And anywhere: a trace
function in Python (`sys.settrace`: a debugger, coverage) adds such points to `_drive` itself.
"""

from __future__ import annotations

import enum
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType, coroutine
from typing import Any, Protocol, TypeVar

import attrs
import outcome
import trio

from ..actors import Promise
from ._fork import leave_child

T = TypeVar("T")


class EndReason(enum.Enum):
    """Why a cell is being ended. The value is the error's name in its reply."""

    INTERRUPTED = "KeyboardInterrupt"
    TIMED_OUT = "CellTimeout"
    DELETED = "SubshellDeleted"
    SHUTDOWN = "KernelShutdown"
    DIED = "KernelDied"


class Raiser(Protocol):
    """Raises `KeyboardInterrupt` in the thread of a running cell."""

    def strike(self) -> None:
        """Raise it there, as soon as may be. Called from another thread."""

    def withdraw(self) -> None:
        """Take back what has not struck yet. Called in that thread."""


@attrs.frozen
class CellEnded(Exception):
    """What `CellGuard.run` raises for a cell that was ended from outside."""

    reason: EndReason
    started: bool = True


class CellGuard:
    """What a subshell and whoever may end its cells have in common. See the module's theory."""

    def __init__(self) -> None:
        self.generation = 0
        """Of the running cell, or of the last one."""
        self.running: object | None = None
        """What the caller of `run` said it is, while a cell runs."""
        self._armed = False
        self._raised = False
        self._wanted = False
        self._protections = 0
        self._forked = False
        self._lock = threading.Lock()
        self._raiser: Raiser | None = None
        self._reason: EndReason | None = None
        self._closed: EndReason | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._cancellers: list[Callable[[], object]] = []
        self._watchers: list[Promise[None]] = []

    # ---------------------------------------------------------------- in the subshell's thread

    async def run(
        self,
        body: Callable[[], Coroutine[Any, Any, T]],
        *,
        what: object,
        raiser: Raiser,
    ) -> T:
        """Run a cell's code; the generation is new.

        Args:
            body: the code.
            what: tells others what runs.
            raiser: how to interrupt this thread.

        Raises:
            CellEnded: it was ended from outside, or not even started as the guard is closed.
            BaseException: what the code raised by itself.
        """
        with trio.CancelScope() as scope:
            with self._lock:
                if self._closed is not None:
                    raise CellEnded(self._closed, started=False)
                self.generation += 1
                self.running = what
                self._reason = None
                self._raiser = raiser
                self._scope = scope
                self._token = trio.lowlevel.current_trio_token()
            cell = body()
            try:
                return await _drive(cell, self)
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
                self._finish()
        assert scope.cancelled_caught
        raise CellEnded(self._reason or EndReason.INTERRUPTED)

    def _finish(self) -> None:
        with self._lock:
            self.running = None
            # A strike that came after the last step must not meet the next cell.
            self._wanted = False
            self._raiser = None
            self._cancellers.clear()
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.resolve(outcome.Value(None))

    def settle(self) -> None:
        """The cell's code is off the stack, but something was raised meanwhile: withdraw it."""
        with self._lock:
            if self._raiser is not None:
                self._raiser.withdraw()
            self._raised = False

    @contextmanager
    def canceller(self, canceller: Callable[[], object]) -> Iterator[None]:
        """Within this block, ending the cell begins by calling `canceller`."""
        with protected(), self._lock:
            self._cancellers.append(canceller)
        try:
            yield
        finally:
            with protected(), self._lock:
                if canceller in self._cancellers:
                    self._cancellers.remove(canceller)

    # ------------------------------------------------------------------- in the ladder's thread

    def begin_end(self, generation: int, reason: EndReason) -> Promise[None] | None:
        """Announce that the cell is to be ended; returns what resolves when it has ended.

        None: it is not running any more.
        """
        ended = self.watch(generation)
        if ended is not None:
            with self._lock:
                if self._is_running(generation) and self._closed is None:
                    self._reason = reason
        return ended

    def close(self, reason: EndReason) -> None:
        """No cell starts any more; what is running stays as it is."""
        with self._lock:
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
        with self._lock:
            if not self._is_running(generation):
                return None
            self._watchers = [each for each in self._watchers if not each.abandoned]
            self._watchers.append(ended)
        return ended

    def cancellers(self, generation: int) -> list[Callable[[], object]]:
        """Rung 0: what the author registered for this cell."""
        with self._lock:
            return list(self._cancellers) if self._is_running(generation) else []

    def cancel(self, generation: int) -> None:
        """Rung 1: cancel the cell's scope."""
        with self._lock:
            if not self._is_running(generation) or self._token is None:
                return
            scope, token = self._scope, self._token
        try:
            token.run_sync_soon(scope.cancel)
        except trio.RunFinishedError:
            return  # its loop has ended, and the cell with it

    def strike(self, generation: int) -> bool:
        """Rung 2: raise `KeyboardInterrupt` in the cell, if its code is on top of the stack now."""
        with self._lock:
            if not self._is_running(generation) or self._raiser is None:
                return False
            raised_before, self._raised = self._raised, True
            if not self._armed:
                self._raised = raised_before
                self._wanted = True
                return False
            self._raiser.strike()
            return True

    def _is_running(self, generation: int) -> bool:
        return self.running is not None and self.generation == generation


def _is_cancelled(error: BaseException) -> bool:
    """Whether an exception is nothing but cancellations."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_cancelled(each) for each in error.exceptions)
    return isinstance(error, trio.Cancelled)


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


class _Here(threading.local):
    guard: CellGuard | None = None
    """The one whose cell's code this thread runs at this moment."""


_here = _Here()


def _after_fork_in_child() -> None:
    """Nothing strikes in a forked child, and no lock is held there (see `_fork`)."""
    guard = _here.guard
    if guard is not None:
        guard._lock = threading.Lock()
        guard._raised = guard._wanted = False
        guard._forked = True
        _here.guard = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def interruptible() -> bool:
    """Whether this thread runs a cell's own code, so that an interrupt of the cell comes here."""
    return _here.guard is not None


def protected() -> Protection:
    """A block, in what a cell's code calls of ours, within which nothing strikes.

    What was to strike meanwhile is raised at the block's end. The block may await; then the cell's
    cancelled scope ends it. Entered by other threads than the cell's, by tasks that the cell has
    started, or while no cell runs, it does nothing.
    """
    return _protection


class Protection:
    """See `protected`. There is only one, as it is entered all the time; it has no state."""

    __slots__ = ()

    def __enter__(self) -> None:
        guard = _here.guard
        if guard is None:
            return
        guard._protections += 1
        guard._armed = False
        while guard._raised:
            try:
                guard.settle()
            except KeyboardInterrupt:
                guard._wanted = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        guard = _here.guard
        if guard is None:
            return
        guard._protections -= 1
        if guard._protections == 0:
            if guard._wanted:
                guard._wanted = False
                guard._armed = True
                raise KeyboardInterrupt
            guard._armed = True


_protection = Protection()


@coroutine
def _drive(body: Coroutine[Any, Any, T], guard: CellGuard) -> Generator[Any, Any, T]:
    """Step a coroutine as ``yield from`` would, with the guard armed during each step."""
    result: list[T] = []

    async def finishing() -> None:
        result.append(await body)

    stepped = finishing()
    guard._protections = 0
    out: list[Any] = []
    steps: Iterator[Any] = map(stepped.send, (None,))
    while True:
        try:
            _here.guard = guard
            guard._armed = not guard._protections  # it may await within a protected block
            out[:] = steps
        finally:
            guard._armed = False
            _here.guard = None
            if guard._forked:
                leave_child(sys.exception(), awaits=bool(out))
            while guard._raised:
                try:
                    guard.settle()
                except KeyboardInterrupt:
                    # It struck after the cell's code. Either that has ended, or it awaits, and then
                    # the cancelled scope ends it: the strike isn't needed any more.
                    continue
            guard._wanted = False
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
            steps = map(stepped.send, (sent,))
