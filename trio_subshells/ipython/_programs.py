"""Programs that cells start: where their output goes, and how a cell that waits for one is ended.

Both need to know of the start and of the wait, so the functions of Python that start and wait are
replaced while the kernel lives (see `_patches`). Outside of cells they do what they always do.

A thread that waits for a child process sits in a system call, and only in the main thread can that
be interrupted. So what ends a cell first ends what it waits for, in the way that Ctrl-C in a
terminal does, and more firmly if need be (`Ending`). What a cell has started without waiting for
it goes on: it may be a server. It ends with the kernel.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from multiprocessing import util as multiprocessing_util
from multiprocessing.process import BaseProcess
from typing import Any, Final, NoReturn

from IPython.core import interactiveshell
from IPython.core.magics.script import ScriptMagics

from ..kernel._guard import interruptible, protected
from ..kernel._processes import signal_tree
from ..kernel._raisers import like_the_users
from ._activity import ActivityTracker
from ._children import ChildOutput

Undo = Callable[[], None]

PATIENCE: Final = 0.5
"""Seconds that a process has to obey a signal, before it gets a stronger one."""

STRIKE_PATIENCE: Final = 0.25
"""Seconds in which the ladder's interrupt should come."""

_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    getattr(signal, "SIGKILL", signal.SIGTERM),
)


class Ending:
    """Ends the processes that a cell waits for: it is what the cell's `Cell.on_cancel` is given.

    In a thread of its own, as the ladder, which calls this, must not wait. Called again, it does
    nothing: it is at it.

    Args:
        pids: asked for the processes, at every rung.
    """

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self.begun = False
        """Whether the cell is being ended."""

    def __call__(self) -> None:
        """Begin."""
        if not self.begun:
            self.begun = True
            threading.Thread(target=self._end, name="end of child processes", daemon=True).start()

    def _end(self) -> None:
        for number in _SIGNALS:
            for pid in self._pids():
                if not self._over.is_set():
                    signal_tree(pid, number)
            if self._over.wait(PATIENCE):
                return

    def over(self) -> None:
        """The cell doesn't wait any longer."""
        self._over.set()


@like_the_users
def _be_interrupted() -> NoReturn:
    """The wait is over as the cell is being ended, and so is what the cell would do next.

    The ladder's next rung is about to interrupt this thread. If it comes only when the error is
    shown already, it interrupts that. But this may be another thread, which it doesn't mean.
    """
    deadline = time.monotonic() + STRIKE_PATIENCE
    while interruptible() and time.monotonic() < deadline:
        time.sleep(0.005)
    raise KeyboardInterrupt


def _end_all(terminals: Sequence[Any]) -> None:
    with protected():
        for terminal in terminals:
            if terminal.isalive():
                signal_tree(terminal.pid, _SIGNALS[-1])


_terminals: ContextVar[list[Any] | None] = ContextVar("trio_subshells_terminals", default=None)
"""Where the pseudo-terminals are noted down that are opened in this context."""

_collected: ContextVar[list[subprocess.Popen[Any]] | None] = ContextVar(
    "trio_subshells_collected", default=None
)
"""Where programs are noted down that are started in this context."""


class Programs:
    """The functions that replace Python's.

    Args:
        tracker: knows the cell.
        output: gives pipes to the children of cells; None where that can't be done.
    """

    def __init__(self, tracker: ActivityTracker, output: ChildOutput | None) -> None:
        self._tracker = tracker
        self._output = output
        self._waits = threading.local()

    @contextmanager
    def _given(self, *names: str) -> Iterator[dict[str, int]]:
        if self._output is None or not names:
            yield {}
            return
        with self._output.given(*names) as given:
            yield given

    @contextmanager
    def _waiting(self, pids: Callable[[], Sequence[int]]) -> Iterator[None]:
        """Within this block, ending the cell begins with these processes."""
        activity = self._tracker.current()
        if (
            activity is None
            or activity.cell is None
            or not activity.running  # a thread that it has left behind
            or getattr(self._waits, "waiting", False)  # communicate() calls wait()
        ):
            yield
            return
        ending = Ending(pids)
        try:
            self._waits.waiting = True
            with activity.cell.on_cancel(ending):
                yield
        finally:
            self._waits.waiting = False
            ending.over()
        if ending.begun:
            _be_interrupted()

    # ------------------------------------------------------------------------------------ start

    def popen_init(self, original: Callable[..., None]) -> Callable[..., None]:
        """`subprocess.Popen`: what isn't redirected goes to the cell."""

        @wraps(original)
        def __init__(  # noqa: N807
            popen: subprocess.Popen[Any],
            args: Any,
            bufsize: int = -1,
            executable: Any = None,
            stdin: Any = None,
            stdout: Any = None,
            stderr: Any = None,
            *more: Any,
            **options: Any,
        ) -> None:
            streams = {"stdout": stdout, "stderr": stderr}
            with self._given(*(name for name, stream in streams.items() if stream is None)) as own:
                streams |= own
                original(
                    popen, args, bufsize, executable, stdin, *streams.values(), *more, **options
                )
            started = _collected.get()
            if started is not None:
                started.append(popen)

        return __init__

    def system(self, original: Callable[[Any], int]) -> Callable[[Any], int]:
        """`os.system`: in a cell, by `subprocess`."""

        @wraps(original)
        @like_the_users
        def system(command: Any) -> int:
            if self._tracker.cell() is None:
                return original(command)
            code = subprocess.call(os.fspath(command), shell=True)
            if sys.platform == "win32":
                return code
            return -code if code < 0 else code << 8  # as os.wait() has it

        return system

    def spawnv_passfds(self, original: Callable[..., int]) -> Callable[..., int]:
        """How `multiprocessing` starts interpreters: those that are a cell's children."""

        @wraps(original)
        def spawnv_passfds(path: Any, args: Any, passfds: Any) -> int:
            if self._tracker.cell() is None or "--multiprocessing-fork" not in args:
                return original(path, args, passfds)  # the server of forkserver is everybody's
            popen = subprocess.Popen(args, executable=path, pass_fds=[int(fd) for fd in passfds])
            popen.returncode = 0  # from here on it is multiprocessing that waits for it
            return popen.pid

        return spawnv_passfds

    # ------------------------------------------------------------------------------------- wait

    def popen_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`subprocess.Popen.wait` and ``communicate``."""

        @wraps(original)
        @like_the_users
        def wait(popen: subprocess.Popen[Any], *args: Any, **options: Any) -> Any:
            with self._waiting(lambda: [popen.pid]):
                return original(popen, *args, **options)

        return wait

    def join(self, original: Callable[..., None]) -> Callable[..., None]:
        """`multiprocessing.Process.join`."""

        @wraps(original)
        @like_the_users
        def join(process: BaseProcess, timeout: float | None = None) -> None:
            with self._waiting(lambda: [process.pid] if process.pid is not None else []):
                original(process, timeout)

        return join

    def shebang(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``%%bash`` and its like, which wait for another thread that waits for the program."""

        @wraps(original)  # it has its parser as an attribute
        @like_the_users
        def shebang(magics: ScriptMagics, line: str, cell: str) -> Any:
            started: list[subprocess.Popen[Any]] = []
            token = _collected.set(started)
            try:
                with self._waiting(lambda: [each.pid for each in started]):
                    return original(magics, line, cell)
            finally:
                _collected.reset(token)

        return shebang

    def command(self, original: Callable[[str], Any]) -> Callable[[str], Any]:
        """``!command``. It ends its program itself when it is interrupted, if it is given time."""

        @wraps(original)
        @like_the_users
        def command(cmd: str) -> Any:
            terminals: list[Any] = []
            token = _terminals.set(terminals)
            try:
                with self._waiting(lambda: [each.pid for each in terminals]):
                    return original(cmd)
            finally:
                _terminals.reset(token)
                _end_all(terminals)

        return command

    def spawn(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`ptyprocess.PtyProcess.spawn`, by which IPython runs a ``!command``."""

        def spawn(owner: type[Any], *args: Any, **options: Any) -> Any:
            terminal = original(*args, **options)
            terminals = _terminals.get()
            if terminals is not None:
                terminals.append(terminal)
            return terminal

        return classmethod(spawn)  # type: ignore[return-value]

    def getoutput(self, original: Callable[[str], str]) -> Callable[[str], str]:
        """``x = !command``: without a terminal, from which IPython reads in a system call."""

        @wraps(original)
        @like_the_users
        def getoutput(cmd: str) -> str:
            if self._tracker.cell() is None:
                return original(cmd)
            done = subprocess.run(
                cmd,
                shell=True,
                executable=os.environ.get("SHELL"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            return done.stdout

        return getoutput

    def replacements(self) -> Iterator[tuple[Any, str, Any]]:
        """What is to be replaced: the owner, the attribute, and by what."""
        popen = subprocess.Popen
        yield popen, "__init__", self.popen_init(popen.__init__)
        yield popen, "wait", self.popen_wait(popen.wait)
        yield popen, "communicate", self.popen_wait(popen.communicate)
        yield os, "system", self.system(os.system)
        yield BaseProcess, "join", self.join(BaseProcess.join)
        yield ScriptMagics, "shebang", self.shebang(ScriptMagics.shebang)
        commands: Any = interactiveshell  # into which they are imported
        yield commands, "system", self.command(commands.system)
        if os.name == "posix":
            yield commands, "getoutput", self.getoutput(commands.getoutput)
            from ptyprocess import PtyProcess  # type: ignore[import-untyped]

            yield PtyProcess, "spawn", self.spawn(PtyProcess.spawn)
        if hasattr(multiprocessing_util, "spawnv_passfds"):
            original = multiprocessing_util.spawnv_passfds
            yield multiprocessing_util, "spawnv_passfds", self.spawnv_passfds(original)
