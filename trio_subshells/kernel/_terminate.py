"""What a kernel's process does when it is told to end: by SIGTERM, on Windows by Ctrl-Break.

The same as for a ``shutdown_request``: what runs is ended, everything that was asked is answered,
no child is left, and the exit code is 0. A second one leaves at once, with the code of a process
that SIGTERM has ended.

Python calls a signal's handler in the main thread, once that comes back to Python: in a call into C
that doesn't return, never. But the number of the signal is written to the *wakeup descriptor* by C
code, at once. So a thread reads it there. It passes on each byte to trio, whose descriptor that
was; and should somebody's code take the descriptor away, there is still the handler.

A handler that a cell installs takes the place of ours, as usual: then SIGTERM is its business. And
a child process that a cell forks has neither handler nor descriptor: what ends the child says
nothing to its parent. Between the fork and that, the signal is blocked.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import ClassVar, Final, NoReturn

import trio
from trio_util import move_on_when

from .._files import remove_own_files
from ._leftovers import kill_children, leave_at_once
from ._parent import parent_death

_log = logging.getLogger("trio_subshells.kernel")

NUMBER: Final[int] = getattr(signal, "SIGBREAK", signal.SIGTERM)
"""Windows has no SIGTERM that another process could send."""

CODE: Final = 128 + signal.SIGTERM
"""The exit code, when it has come twice: what a shell tells of a process that it has ended."""

TOGETHER: Final = 0.1
"""Seconds. Who sends it to the process and to its group (``timeout`` does) means it once."""


class Terminator:
    """See the module's first lines. In the main thread of a process that is a kernel.

    Args:
        leave: called, in another thread, if the signal comes again.
    """

    installed_one: ClassVar[Terminator | None] = None
    """For those that fork."""

    def __init__(self, leave: Callable[[], object] | None = None) -> None:
        self._leave = leave or _leave
        self._lock = threading.Lock()
        self._bytes = 0  # how often it has come, by the descriptor
        self._calls = 0  # the same, by the handler
        self._counted = 0  # how often it has been seen to have come
        self._first = 0.0  # when that was
        self._tell: Callable[[], object] | None = None
        self._process = os.getpid()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signal within this block, in trio's loop of the main thread.

        Where the process was started with the signal being ignored, it still is.
        """
        if signal.getsignal(NUMBER) is not signal.SIG_DFL:
            yield
            return
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        trios = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(
            target=self._listen, args=(reader, trios), name="trio kernel signals", daemon=True
        )
        thread.start()
        Terminator.installed_one = self
        signal.signal(NUMBER, self.handle)
        try:
            yield
        finally:
            Terminator.installed_one = None
            if signal.getsignal(NUMBER) == self.handle:
                signal.signal(NUMBER, signal.SIG_DFL)
            signal.set_wakeup_fd(trios, warn_on_full_buffer=False)
            # Closing it would be no end to who reads, as processes that were forked have it, too.
            self._writer.shutdown(socket.SHUT_RDWR)
            thread.join()
            self._writer.close()
            reader.close()

    async def wait(self) -> None:
        """Return when the process is to end: for this, or as its parent has ended. In any loop."""
        told = trio.Event()
        with self._lock:
            if self._counted:
                return
            self._tell = partial(trio.lowlevel.current_trio_token().run_sync_soon, told.set)
        async with move_on_when(told.wait):
            await parent_death()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Called by Python, in the main thread, in the middle of anything."""
        if os.getpid() != self._process:  # a fork that Python knows nothing of
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self._calls += 1
        with suppress(OSError):
            self._writer.send(b"\0")

    def _listen(self, reader: socket.socket, trios: int) -> None:
        with _borrowed(trios) as waker:
            while data := reader.recv(64):
                if waker is not None:
                    with suppress(OSError):  # it is full: trio is being woken
                        waker.send(b"\0")
                if signal.getsignal(NUMBER) == self.handle:
                    self._bytes += data.count(NUMBER)
                self._look()

    def _look(self) -> None:
        # Each counts all that have come, unless somebody has taken the descriptor away.
        count = max(self._bytes, self._calls)
        if count <= self._counted:
            return
        with self._lock:
            first, self._counted = not self._counted, count
            tell = self._tell
        if first:
            self._first = time.monotonic()
            _log.warning("the kernel was sent %s, and ends", signal.Signals(NUMBER).name)
            if tell is not None:
                with suppress(trio.RunFinishedError):  # it has ended by itself
                    tell()
        elif time.monotonic() - self._first > TOGETHER:
            self._leave()


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket | None]:
    """Somebody else's socket, to write to."""
    if descriptor == -1:
        yield None
        return
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _leave() -> NoReturn:
    kill_children(0)
    remove_own_files()
    leave_at_once(CODE, handlers=False)


# ---------------------------------------------------------------------------------- forked children


class _Forking(threading.local):
    mask: set[signal.Signals | int] | None = None


_forking = _Forking()


def _before_fork() -> None:
    if Terminator.installed_one is not None:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {NUMBER})


def _after_fork_in_parent() -> None:
    mask, _forking.mask = _forking.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    terminator, Terminator.installed_one = Terminator.installed_one, None
    if terminator is not None:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(NUMBER) == terminator.handle:
            signal.signal(NUMBER, signal.SIG_DFL)
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
