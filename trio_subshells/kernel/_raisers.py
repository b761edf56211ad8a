"""The ways to raise `KeyboardInterrupt` in a thread that computes: see `_guard`.

`AsyncRaiser` works in every thread; it strikes between two bytecodes, so a thread that is blocked
in a system call is struck when the call returns. `SignalRaiser` is for the main thread of a process
that is a kernel: a signal interrupts blocking system calls as well. `LineRaiser` is for what these
two have struck in vain: it strikes before every line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, TypeVar

import attrs

_MACHINERY: Final = frozenset(
    {
        "trio",
        "outcome",
        "trio_subshells",
        "importlib",
        "_frozen_importlib",
        "_frozen_importlib_external",
        "logging",
        "warnings",
        "weakref",
        "_weakrefset",
    }
)
"""Packages whose functions aren't struck while they are what runs: they would leave their thread's
loop in a state that nobody has thought of, or a lock taken that all threads share; or what strikes
them is reported as ignored, and is lost, as in a ``__del__``."""

ON_ITS_WAY: Final = 0.5
"""Seconds in which a signal that was sent is handled. It may be none: two that come soon one after
the other are one. The next SIGINT after that is the user's."""

_LIKE_THE_USERS: Final[set[CodeType]] = set()

F = TypeVar("F", bound=Callable[..., Any])


def like_the_users(function: F) -> F:
    """Decorate a function of ours that can be struck like one of the user's."""
    _LIKE_THE_USERS.add(function.__code__)
    return function


def is_like_the_users(frame: FrameType) -> bool:
    """Whether it runs a function of ours that `like_the_users` was told of."""
    return frame.f_code in _LIKE_THE_USERS


def is_in_machinery(frame: FrameType | None) -> bool:
    """Whether what runs in this frame is not to be torn apart by a strike.

    What of the standard library runs belongs to who has called it. But `threading.Thread.start`
    must not be struck: the new thread has the same identifier as the one that starts it until it
    runs, before CPython 3.12, and is struck instead. Then it never runs, and is waited for.
    """
    while frame is not None and frame.f_code not in _LIKE_THE_USERS:
        module, function = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        package = module.partition(".")[0]
        if package in _MACHINERY or function == "__del__" or _is_of_cython(frame):
            return True
        if (module, function) == ("threading", "start"):
            return True
        if package not in sys.stdlib_module_names or package == "__main__":
            return False
        frame = frame.f_back
    return False


def _is_of_cython(frame: FrameType) -> bool:
    """Whether it is the frame of one call, by which Cython adds a line of its own to a traceback.

    In extensions for several versions of Python (pyzmq's wheels for 3.12 and later, for one). What
    strikes there is lost, in favour of the exception whose traceback it is.
    """
    return frame.f_code.co_names == ("_getframe",) and "__name__" not in frame.f_globals


# Prototypes of our own: those of `ctypes.pythonapi` are anybody's to change.
_this_thread_state: Final = ctypes.PYFUNCTYPE(ctypes.c_void_p)(
    ("PyThreadState_Get", ctypes.pythonapi)
)
_frame_of: Final = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(
    ("PyThreadState_GetFrame", ctypes.pythonapi)
)
_raise_in: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_gil: Final[Callable[[], bool]] = getattr(sys, "_is_gil_enabled", lambda: True)
_NOTHING: Final[ctypes.py_object[Any]] = ctypes.py_object()


class _Nothing(BaseException):
    """What has no other meaning than that it can be raised."""


_something: Final = ctypes.py_object(_Nothing)


def _withdraw(thread: int) -> None:
    """Take back what has not been raised yet in that thread, which is the calling one."""
    _raise_in(thread, _NOTHING)
    if sys.version_info < (3, 13):
        # Even that has told the interpreter that there is something to raise, and so it looks for
        # it at every turn, in all threads, until it has raised something. That is slow; and a
        # function that is traced is not entered before there is nothing more to look for.
        while True:
            try:
                _raise_in(thread, _something)  # is raised here
            except _Nothing:
                return
            except BaseException:  # of a signal's handler
                _raise_in(thread, _NOTHING)
                raise


@attrs.frozen
class AsyncRaiser:
    """Raises in the thread that makes it, through ``PyThreadState_SetAsyncExc``.

    `strike` is for as long as that thread lives: it looks at what runs there. It doesn't ask
    `sys._current_frames` for that, which makes a frame object for every thread there is, with a
    lock of the interpreter's taken. Before CPython 3.11.9 that may start a garbage collection, and
    all threads stop for ever if one of them ends meanwhile (python/cpython#106883).
    """

    thread: int = attrs.field(init=False, factory=threading.get_ident)
    _state: int = attrs.field(init=False, factory=_this_thread_state)

    @like_the_users
    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        """Raise it at the thread's next bytecode: see `trio_subshells.kernel._guard.Raiser`."""
        # Without a GIL the thread runs on meanwhile: then all threads have to be stopped for that.
        # Those builds are newer than the ones that it may stop for ever.
        frame = _frame_of(self._state) if _gil() else sys._current_frames().get(self.thread)
        if is_in_machinery(frame):
            return False
        _raise_in(self.thread, ctypes.py_object(error))
        return True

    @property
    def missed(self) -> bool:
        """Never: it is looked first where the thread is, and at once that something is raised."""
        return False

    def strike_on(self) -> None:
        """Nothing: what is to be raised is raised as soon as the thread runs Python code."""

    def withdraw(self) -> None:
        """Take back what has not been raised yet."""
        _withdraw(self.thread)


class SignalRaiser:
    """Raises in the main thread through a signal (SIGINT), which it tells from the user's own."""

    def __init__(self) -> None:
        self._pending = False
        self._error = KeyboardInterrupt
        self._ours_until = 0.0  # time.monotonic(): one that comes before may be ours
        self._missed = False
        ident = threading.main_thread().ident
        assert ident is not None
        self._thread: int = ident

    @like_the_users
    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        """Interrupt the main thread, a blocking system call included."""
        self._error = error
        self._missed = False
        self._pending = True
        self._send()
        return True

    def strike_on(self) -> None:
        """Send the signal once more, if it has not been handled yet.

        A thread handles it before its next bytecode, and a system call returns for that; but there
        is a moment between the last look for signals and a system call, in which one that comes is
        seen only when the call returns, however long that takes.
        """
        if self._pending:
            # If the first one is handled just now, this one is another, and nobody's.
            self._ours_until = time.monotonic() + ON_ITS_WAY
            self._send()

    @like_the_users
    def _send(self) -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self._thread, signal.SIGINT)
        else:  # Windows: sets the event that its time.sleep() waits for
            signal.raise_signal(signal.SIGINT)

    @property
    def missed(self) -> bool:
        """Whether the signal found the thread in something that is not to be torn apart."""
        return self._missed

    def withdraw(self) -> None:
        """Take back what has not been raised yet. The signal still comes, and does nothing then."""
        if self._pending:
            self._ours_until = time.monotonic() + ON_ITS_WAY
            self._pending = False
        _withdraw(self._thread)

    @contextmanager
    def installed(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        """Handle SIGINT within this block; in the main thread.

        Args:
            on_interrupt: called, in the main thread, for every SIGINT that isn't our own. It may
                strike anywhere, so it must be as reentrant as a signal handler has to be.
        """
        process = os.getpid()

        @like_the_users
        def handle(signal_number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:  # a forked child: the kernel isn't here
                raise KeyboardInterrupt
            if self._pending:
                self._pending = False
                if is_in_machinery(frame):
                    self._missed = True  # the ladder tries again
                    return
                raise self._error
            if time.monotonic() < self._ours_until:
                self._ours_until = 0.0
                return
            on_interrupt()

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class LineRaiser:
    """Raises before each line of certain code, in whichever thread runs that.

    Through `sys.monitoring`, which is there from CPython 3.12 on and leaves debuggers, coverage and
    the like alone, as they leave it; `sys.settrace` is theirs, so that is no substitute on 3.11.
    Only that code is slowed down, and no longer than somebody asks for it.

    Args:
        wanted: called before each line with the frame that is about to run it; returns what is to
            be raised there, if anything is. Code may be run by others than those who are meant.
    """

    _NAME: Final = "trio_subshells"
    _TOOLS: Final = (4, 3, 5, 2, 1, 0)
    """Nobody has a claim to the first two of these numbers; a debugger and the like to others."""

    def __init__(self, wanted: Callable[[FrameType], type[KeyboardInterrupt] | None]) -> None:
        self._wanted = wanted
        self._tool: int | None = None
        self._codes: Counter[int] = Counter()  # by identity: code compares equal to its likes
        self._lock = threading.Lock()

    if sys.version_info >= (3, 12):

        def begin(self, codes: Iterable[CodeType]) -> bool:
            """Strike in these from now on, even where they run already.

            Returns:
                whether that can be done: six tools at the same time are the most there may be.
            """
            with self._lock:
                if not self._has_tool():
                    self._codes.clear()
                    self._tool = self._new_tool()
                if self._tool is None:
                    return False
                for code in codes:
                    self._codes[id(code)] += 1
                    sys.monitoring.set_local_events(self._tool, code, sys.monitoring.events.LINE)
            return True

        def end(self, codes: Iterable[CodeType]) -> None:
            """No more; once for every `begin` with the same code that has returned true."""
            with self._lock:
                if not self._has_tool():
                    return
                assert self._tool is not None
                for code in codes:
                    self._codes[id(code)] -= 1
                    if self._codes[id(code)] <= 0:
                        del self._codes[id(code)]
                        sys.monitoring.set_local_events(self._tool, code, 0)
                if not self._codes:
                    sys.monitoring.register_callback(self._tool, sys.monitoring.events.LINE, None)
                    sys.monitoring.free_tool_id(self._tool)
                    self._tool = None

        def _has_tool(self) -> bool:
            """Users may free what isn't theirs."""
            return self._tool is not None and sys.monitoring.get_tool(self._tool) == self._NAME

        def _new_tool(self) -> int | None:
            for tool in self._TOOLS:
                if sys.monitoring.get_tool(tool) is None:
                    sys.monitoring.use_tool_id(tool, self._NAME)
                    sys.monitoring.register_callback(
                        tool, sys.monitoring.events.LINE, self._on_line
                    )
                    return tool
            return None

    else:

        def begin(self, codes: Iterable[CodeType]) -> bool:
            """This Python doesn't have it."""
            return False

        def end(self, codes: Iterable[CodeType]) -> None:
            """Nothing has begun."""

    def _on_line(self, code: CodeType, line: int) -> None:
        error = self._wanted(sys._getframe(1))
        if error is not None:
            raise error

    def forget_others(self) -> None:
        """In a forked child: who had the lock isn't there."""
        self._lock = threading.Lock()


def without_our_frames(frames: TracebackType | None, package: str | None) -> TracebackType | None:
    """A traceback as the author of the code wants it, whose code it is.

    Args:
        frames: changed in place, where the frame of what has raised is cut off its end.
        package: whose frames are taken off the beginning: they have run the code.
    """
    while frames is not None and frames.tb_frame.f_globals.get("__package__") == package:
        frames = frames.tb_next
    last = frames
    while last is not None and last.tb_next is not None:
        if last.tb_next.tb_frame.f_globals.get("__name__") == __name__:
            last.tb_next = None
        last = last.tb_next
    return frames
