"""The two ways to raise `KeyboardInterrupt` in a thread that computes: see `_guard`.

`AsyncRaiser` works in every thread; it strikes between two bytecodes, so a thread that is blocked
in a system call is struck when the call returns. `SignalRaiser` is for the main thread of a process
that is a kernel: a signal interrupts blocking system calls as well.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


def is_in_machinery(frame: FrameType | None) -> bool:
    """Whether what runs in this frame is not to be torn apart by a strike.

    What of the standard library runs belongs to who has called it. But `threading.Thread.start`
    must not be struck: the new thread has the same identifier as the one that starts it until it
    runs, before CPython 3.12, and is struck instead. Then it never runs, and is waited for.
    """
    while frame is not None and frame.f_code not in _LIKE_THE_USERS:
        module, function = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        package = module.partition(".")[0]
        if package in _MACHINERY or function == "__del__":
            return True
        if (module, function) == ("threading", "start"):
            return True
        if package not in sys.stdlib_module_names or package == "__main__":
            return False
        frame = frame.f_back
    return False


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
_NOTHING: Final[ctypes.py_object[Any]] = ctypes.py_object()


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
        if is_in_machinery(_frame_of(self._state)):
            return False
        _raise_in(self.thread, ctypes.py_object(error))
        return True

    @property
    def missed(self) -> bool:
        """Never: it is looked first where the thread is, and at once that something is raised."""
        return False

    def withdraw(self) -> None:
        """Take back what has not been raised yet."""
        _raise_in(self.thread, _NOTHING)


class SignalRaiser:
    """Raises in the main thread through a signal (SIGINT), which it tells from the user's own."""

    def __init__(self) -> None:
        self._pending = False
        self._error = KeyboardInterrupt
        self._withdrawn_until = 0.0  # time.monotonic()
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
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self._thread, signal.SIGINT)
        else:  # Windows: sets the event that its time.sleep() waits for
            signal.raise_signal(signal.SIGINT)
        return True

    @property
    def missed(self) -> bool:
        """Whether the signal found the thread in something that is not to be torn apart."""
        return self._missed

    def withdraw(self) -> None:
        """Take back what has not been raised yet. The signal still comes, and does nothing then."""
        if self._pending:
            self._withdrawn_until = time.monotonic() + ON_ITS_WAY
            self._pending = False
        _raise_in(self._thread, _NOTHING)

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
            if time.monotonic() < self._withdrawn_until:
                self._withdrawn_until = 0.0
                return
            on_interrupt()

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def without_our_frames(frames: TracebackType | None, package: str | None) -> TracebackType | None:
    """A traceback as the author of the code wants it, whose code it is.

    Args:
        frames: changed in place, where the signal handler's frame is cut off its end.
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
