"""What a kernel's process leaves behind when it ends: nothing, and in bounded time.

Python, at its end, waits for every thread that isn't a daemon and for every child process of
`multiprocessing`, for ever if need be, and leaves all other child processes running. A kernel ends
its children first (SIGTERM, then SIGKILL), and what else holds up the end has `EXIT_TIMEOUT`.
Handlers of `atexit` run, as long as nothing is stuck.

This is for a process that is nothing but a kernel: `main`'s. A program with a kernel inside may
have children of its own. What has a session of its own is left alone, see `_processes`; on Windows
only children of `multiprocessing` are found.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

from ._processes import Process, leftovers, send

_log = logging.getLogger("trio_subshells.kernel")

TERM_PATIENCE: Final = 0.5
"""Seconds that child processes have to obey SIGTERM."""
KILL_PATIENCE: Final = 0.5
"""Seconds that the machine has to end those that got SIGKILL."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds that threads and handlers of `atexit` have."""

_INTERVAL: Final = 0.01
"""Seconds between two looks: nothing announces that another's child has ended."""


@contextmanager
def nothing_left_behind(has_lived: threading.Event) -> Iterator[None]:
    """Around the life of a process's kernel. After it the process has to come to its end, and does.

    Args:
        has_lived: set if a kernel lived here at all.
    """
    # At once, as these handlers run in the reverse order, and this has to be the last.
    atexit.register(_end_the_rest)
    code = 1
    try:
        yield
        code = 0
    finally:
        if has_lived.is_set():
            terminate_children()
            kill_children()
            threading.Thread(
                target=_leave_in_time, args=(code,), name="deadline of the end", daemon=True
            ).start()
        else:
            atexit.unregister(_end_the_rest)


def terminate_children() -> None:
    """Ask the child processes of this one, and theirs, to end."""
    _end_pools()
    if sys.platform == "win32":
        for child in _children_of_multiprocessing():
            child.kill()
        return
    send(signal.SIGTERM, _children())


def _end_pools() -> None:
    """Have `multiprocessing` end its pools, which would replace those of their processes that end.

    That may take for ever, if one of these is deaf; it goes on when that is killed.
    """
    finish = getattr(sys.modules.get("multiprocessing.util"), "_run_finalizers", None)
    if finish is not None:
        ending = threading.Thread(target=finish, args=(0,), name="end of pools", daemon=True)
        ending.start()
        ending.join(TERM_PATIENCE)


def kill_children(patience: float = TERM_PATIENCE) -> None:
    """Wait for their end; after so many seconds, end those that are still there."""
    if sys.platform == "win32" or _gone_within(patience):
        return
    send(signal.SIGKILL, _children())
    if not _gone_within(KILL_PATIENCE):
        pids = ", ".join(str(each.pid) for each in _children())
        _log.error("these child processes can't be ended: %s", pids)


def leave_at_once(code: int, *, handlers: bool = True) -> NoReturn:
    """End this process, when something in it can't be ended. Its children are gone already.

    Args:
        code: its exit code.
        handlers: whether to run those of `atexit`, as nobody has begun to.
    """
    with suppress(RuntimeError):  # Python is too far in its end for that, so it is in ours
        # Not a threading.Thread: its start() waits for it to run, at Python's end for ever.
        _thread.start_new_thread(_exit_after, (EXIT_TIMEOUT, code))
    try:
        if handlers:
            atexit._run_exitfuncs()
        _end_the_rest()
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(code)


def _exit_after(seconds: float, code: int) -> NoReturn:
    time.sleep(seconds)
    os._exit(code)


def _leave_in_time(code: int) -> NoReturn:
    """Python is ending this process. If it doesn't manage to, do it."""
    time.sleep(EXIT_TIMEOUT)
    stuck = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    what = f"the threads {', '.join(stuck)}" if stuck else "handlers of atexit"
    _log.warning("the kernel's process ends without waiting any longer for %s", what)
    leave_at_once(code, handlers=bool(stuck))


def _end_the_rest() -> None:
    """What was started meanwhile, and the servant of `multiprocessing` that the others need."""
    tracker = _resource_tracker()
    stop = getattr(tracker, "_stop", None)
    if sys.platform != "win32":
        send(signal.SIGKILL, _children())
        if stop is not None and getattr(tracker, "_pid", None) is not None:
            stop()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # a zombie less


def _children() -> list[Process]:
    """Who is to be ended. `multiprocessing`'s resource tracker is not: see `_end_the_rest`."""
    tracker = getattr(_resource_tracker(), "_pid", None)
    try:
        return [each for each in leftovers() if each.pid != tracker]
    except (OSError, subprocess.SubprocessError) as error:  # there is no ps
        _log.warning("child processes can't be found: %s", error)
        return []


def _gone_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _children():
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL)
    return True


def _resource_tracker() -> Any:
    """It cleans up what is shared when all who use it are gone. It has no public name."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return getattr(module, "_resource_tracker", None)


def _children_of_multiprocessing() -> list[Any]:
    module = sys.modules.get("multiprocessing")
    return [] if module is None else module.active_children()
