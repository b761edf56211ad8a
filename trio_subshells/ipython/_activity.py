"""What runs right now, seen from any thread: the answer to "whose output is this?".

The cells of several subshells run at once, and one ``sys.stdout``, one ``get_ipython()``, one
``sys.displayhook`` serve them all. Whatever is called through these asks the `ActivityTracker` for
the `Activity` on whose behalf it is called. The tracker knows, in this order:

1. a context variable. It is set around each cell, and trio hands it on to the tasks that the cell
   starts and to the functions that it runs with `trio.to_thread`;
2. who started the thread. A plain `threading.Thread` begins with an empty context (by default, and
   always before Python 3.14), so the tracker is told of every thread that is started, and keeps the
   activity of the one who started it;
3. for a thread that nobody knows, say one that a C library made: the main shell's latest cell.

A child process that was forked knows nothing: the sockets that lead to the client are its parent's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import attrs

if TYPE_CHECKING:
    from ..kernel import Cell, CellError
    from ._children import ChildPipe
    from ._session import Session

_activity: ContextVar[Activity | None] = ContextVar("trio_subshells_ipython_activity", default=None)


@attrs.define(eq=False)
class Activity:
    """A cell that runs, or another request that is served, or what was left running by it."""

    session: Session
    """Of the subshell."""
    cell: Cell | None = None
    """None for another request than an execution."""
    source: str = ""
    """The cell's code as it is compiled, without IPython's syntax."""
    collects: bool = False
    """Whether an error that is shown is the cell's own end, rather than output of the user's code.
    True only where no user code runs: before, between and after the statements of the cell."""
    failure: CellError | None = None
    """The cell's own end."""
    running: bool = True
    """Whether it has not ended, whatever it has left running."""
    pipes: list[ChildPipe] = attrs.field(factory=list, init=False, repr=False)
    """What its child processes write into; see `_children`."""

    def hear_children(self) -> None:
        """Publish what its child processes have written so far."""
        for pipe in list(self.pipes):
            pipe.drain()


class ActivityTracker:
    """Finds the activity that a call belongs to. See the module's theory. Thread-safe."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._threads: WeakKeyDictionary[threading.Thread, Activity] = WeakKeyDictionary()
        self._latest: Activity | None = None

    def current(self) -> Activity | None:
        """The activity on whose behalf the caller runs.

        None before the main shell's first cell, and in a forked child process.
        """
        if os.getpid() != self._process:
            return None
        return self._known() or self._latest

    def cell(self) -> Cell | None:
        """The cell of that activity, if it has one."""
        activity = self.current()
        return None if activity is None else activity.cell

    @contextmanager
    def entered(self, activity: Activity) -> Iterator[Activity]:
        """Within this block, and in what is started in it, `activity` is the current one."""
        if activity.cell is not None and activity.session.info.is_main:
            self._latest = activity
        token = _activity.set(activity)
        try:
            yield activity
        finally:
            _activity.reset(token)

    def thread_starts(self, thread: threading.Thread) -> None:
        """Whoever calls this is about to start `thread`: what that does is done on its behalf."""
        activity = self._known()
        if activity is not None:
            self._threads[thread] = activity

    def _known(self) -> Activity | None:
        return _activity.get() or self._threads.get(threading.current_thread())
