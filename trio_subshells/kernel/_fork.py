"""What happens in a child process that a cell has forked: it must leave all that is ours alone.

A fork copies the memory and shares the descriptors, and of the threads it copies only the one that
has called it. So the child has our sockets but not the threads that serve them, locks that nobody
will ever release, and a trio loop whose epoll and wakeup socket are its parent's. Whatever it did
with these, its parent would feel it. The child's own code may run as long as it likes; but:

- what it publishes goes nowhere, save for text, which goes to its own output (`write_own`);
- at the end of its cell, by returning or by raising, it exits (`leave_child`), where otherwise the
  stack would unwind through our loop, and the child would answer its parent's client. `_guard` sees
  to that for a cell's own code and the tasks that it starts, `_Watch` for other tasks of an
  author's. (`Kernel.execute` may do it nearer to the user's code.) A thread of the user's is his
  own business.
- awaiting means to leave that code for the loop, so a child that awaits exits, too: it says why.

Handlers of `atexit` are its parent's, and don't run. What `multiprocessing` forks exits by itself,
before it gets here, and runs its own finalizers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Final, NoReturn

import attrs
import trio

DESCRIPTORS: Final = {"stdout": 1, "stderr": 2}

_PACKAGE: Final = __name__.partition(".")[0]

_AWAITS: Final = (
    "trio_subshells: a child process that was forked in a cell can't await, as the trio loop is "
    "its parent's; it ends here. Fork where nothing is awaited afterwards, or run a program "
    "(trio.run_process).\n"
)


def write_own(name: str, text: str) -> None:
    """Write to this process's own ``stdout`` or ``stderr``.

    Straight to the descriptor: the buffer of `sys.__stdout__` may hold what the parent wrote, and
    its lock be held by a thread of the parent. If there is no such descriptor, it goes nowhere.
    """
    data = text.encode("utf-8", "backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(DESCRIPTORS[name], data) :]


def leave_child(error: BaseException | None = None, *, awaits: bool = False) -> NoReturn:
    """End this process, a forked child, as Python ends one whose program has come to its end.

    Its threads that aren't daemons are waited for, its standard streams flushed.

    Args:
        error: what the program has raised: a `SystemExit` says the exit code; anything else is
            shown on stderr, and the code is 1.
        awaits: the program is not at its end, but awaits: that is said, and the code is 1.
    """
    code = 1
    try:
        if awaits:
            write_own("stderr", _AWAITS)
        else:
            code = _exit_code(error)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except BaseException as worse:  # an interrupt, or the text of the error can't be had
        write_own("stderr", f"{type(worse).__name__} at the end of a forked child process\n")
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            os._exit(code)


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        write_own("stderr", f"{error.code}\n")
        return 1
    frames = _without_ours(error.__traceback__)
    write_own("stderr", "".join(traceback.format_exception(type(error), error, frames)))
    return 1


def _without_ours(frames: TracebackType | None) -> TracebackType | None:
    """The frames from where the user's code begins, or all of them."""
    rest = frames
    while rest is not None and _is_ours(str(rest.tb_frame.f_globals.get("__name__"))):
        rest = rest.tb_next
    return rest or frames


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


@attrs.frozen
class _Watch(trio.abc.Instrument):
    """Of a loop that exists in a forked child only as a memory: ends the child after this step."""

    task: trio.lowlevel.Task
    failing: bool

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Its code has come to its end. Trio doesn't say how; but an error cancels the nursery."""
        if task is self.task:
            failed = not self.failing and _is_failing(task)
            leave_child(SystemExit("a task of a forked child has failed") if failed else None)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Its code awaits."""
        leave_child(awaits=True)


def _is_failing(task: trio.lowlevel.Task) -> bool:
    nursery = task.parent_nursery
    return nursery is not None and nursery.cancel_scope.cancel_called


def _after_fork_in_child() -> None:
    from ._wiring import place  # it needs this module

    if place.get(None) is None:
        return  # not code of a kernel
    signal.set_wakeup_fd(-1)  # trio's, of which the parent has the other end
    try:
        task = trio.lowlevel.current_task()
    except RuntimeError:
        return  # a thread's: its own business
    trio.lowlevel.add_instrument(_Watch(task, _is_failing(task)))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
