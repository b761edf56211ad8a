"""What child processes write reaches the cell that has started them.

A child inherits the kernel's own standard output, which no frontend shows. A process has only one,
so to replace it would tell nobody which of several cells a text is from. Instead each child is
given pipes of its own, where a cell starts it without saying where its output is to go: by
`os.fork` (and what is built on it), `subprocess.Popen` (and what is built on that), `os.system`,
and by `multiprocessing` with fork or spawn. What they start in their turn inherits them.

One thread reads all the pipes. As a child's output should come before what its cell prints after
it, and before the cell's end, they are also read by whoever writes to the same cell (`Activity`
has them). A pipe ends when the last process that has its other end is gone; so a process in the
background goes on writing to its cell.

Left alone: children with a terminal of their own (`pty`); children of a cell that has redirected
descriptor 1 or 2 itself; those of forkserver, whose parent is not the cell; what C code prints in
the kernel's own process; and everything on Windows, where one can't wait for several pipes. All
these write where the kernel does.
"""

from __future__ import annotations

import codecs
import os
import selectors
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Self

from ..kernel import Cell
from ..kernel._fork import DESCRIPTORS
from ..kernel._guard import protected
from ._activity import Activity, ActivityTracker

CHUNK: Final = 1 << 16
"""Bytes that are read at once: what a pipe holds."""
CHUNKS: Final = 16
"""So many are read before whoever reads goes on with its own work."""


class ChildPipe:
    """The reading end of a child's ``stdout`` or ``stderr``. Closed by the thread that reads."""

    def __init__(self, descriptor: int, name: str, activity: Activity, cell: Cell) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._name = name
        self._activity = activity
        self._cell = cell
        self._lock = threading.RLock()  # a garbage collection in the middle of it may print
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = True
        activity.pipes.append(self)

    def drain(self) -> bool:
        """Publish what is there; returns whether more may come. In any thread."""
        with protected(), self._lock:
            for _ in range(CHUNKS):
                if not self._open:
                    return False
                try:
                    data = os.read(self.descriptor, CHUNK)
                except BlockingIOError:
                    return True
                text = self._decoder.decode(data, final=not data)
                if text:
                    self._cell.stream(self._name, text)
                if not data:
                    return False
            return True

    def close(self) -> None:
        """Close it. A process that still writes is told so by an error."""
        with self._lock:
            self._open = False
            os.close(self.descriptor)
            self._activity.pipes.remove(self)


class _Forking(threading.local):
    """What a thread has prepared for the child that it is about to fork."""

    stack: ExitStack | None = None
    writers: dict[str, int] = {}  # noqa: RUF012 - each thread's own, and replaced, not changed


class ChildOutput:
    """Makes the pipes, and reads them. A context manager: leaving it closes them all.

    Args:
        tracker: knows which cell starts a child.
    """

    def __init__(self, tracker: ActivityTracker) -> None:
        self._tracker = tracker
        self._process = os.getpid()
        self._ours = {name: _identity(fd) for name, fd in DESCRIPTORS.items()}
        self._pipes: set[ChildPipe] = set()
        self._new: deque[ChildPipe] = deque()
        self._forking = _Forking()
        self._lock = threading.Lock()  # of the next two
        self._closed = False
        self._bell = -1
        self._thread = threading.Thread(
            target=self._read_all, name="output of child processes", daemon=True
        )

    def __enter__(self) -> Self:
        reader, self._bell = os.pipe()
        self._bell_reader = reader
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._closed = True
            os.close(self._bell)
        self._thread.join()

    # ------------------------------------------------------------------------ in a cell's thread

    @contextmanager
    def given(self, *names: str) -> Iterator[dict[str, int]]:
        """Within this block a child is started; yields the descriptors that it is to be given.

        Args:
            names: those of ``stdout`` and ``stderr`` that nobody else has plans with.
        """
        writers: dict[str, int] = {}
        pipes: list[ChildPipe] = []
        activity = self._tracker.current()
        cell = None if activity is None else activity.cell
        try:
            if activity is not None and cell is not None and not cell.silent:
                # If there are no descriptors left, the child does without.
                with protected(), suppress(OSError):
                    for name in names:
                        if _identity(DESCRIPTORS[name]) != self._ours[name]:
                            continue
                        reader, writers[name] = os.pipe()
                        pipe = ChildPipe(reader, name, activity, cell)
                        pipes.append(pipe)
                        self._pipes.add(pipe)
            yield writers
        finally:
            if os.getpid() == self._process:
                with protected():
                    for descriptor in writers.values():
                        os.close(descriptor)
                    self._have_read(pipes)

    def _have_read(self, pipes: list[ChildPipe]) -> None:
        with self._lock:
            if not self._closed:
                self._new.extend(pipes)
                if pipes:
                    os.write(self._bell, b"!")
                return
        for pipe in pipes:
            pipe.close()

    def before_fork(self) -> None:
        """Make the pipes of a child that the calling thread is about to fork."""
        with protected():
            forking = self._forking
            forking.stack = ExitStack()
            forking.writers = forking.stack.enter_context(self.given(*DESCRIPTORS))

    def after_fork_in_parent(self) -> None:
        """Begin to read them, also if there is no child after all."""
        with protected():
            stack, self._forking.stack = self._forking.stack, None
            if stack is not None:
                stack.close()

    def after_fork_in_child(self) -> None:
        """Make them this process's own output, unless it has a terminal by now."""
        writers = self._forking.writers
        with suppress(OSError):
            for name, descriptor in writers.items():
                if _identity(DESCRIPTORS[name]) == self._ours[name]:
                    os.dup2(descriptor, DESCRIPTORS[name])
        pipes = [pipe.descriptor for pipe in self._pipes]
        for descriptor in (*writers.values(), *pipes, self._bell, self._bell_reader):
            with suppress(OSError):
                os.close(descriptor)

    # -------------------------------------------------------------------- in the reading thread

    def _read_all(self) -> None:
        bell = self._bell_reader
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in selector.select():
                    pipe = key.data
                    if pipe is None:
                        os.read(bell, CHUNK)
                    elif not pipe.drain():
                        selector.unregister(pipe.descriptor)
                        self._forget(pipe)
                while self._new:
                    pipe = self._new.popleft()
                    selector.register(pipe.descriptor, selectors.EVENT_READ, pipe)
        os.close(bell)
        for pipe in list(self._pipes):
            pipe.drain()
            self._forget(pipe)

    def _forget(self, pipe: ChildPipe) -> None:
        self._pipes.discard(pipe)
        pipe.close()


def _identity(descriptor: int) -> tuple[int, int, int] | None:
    """What a descriptor leads to; None if it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_rdev


_living: list[ChildOutput] = []
"""Of the kernel that lives in this process, if one does: what is called at a fork can't be given
anything, nor be taken back."""


@contextmanager
def children_heard(tracker: ActivityTracker) -> Iterator[ChildOutput | None]:
    """Within this block, children of cells are given pipes. None where that can't be done."""
    if not hasattr(os, "register_at_fork"):
        yield None
        return
    with ChildOutput(tracker) as output:
        _living.append(output)
        try:
            yield output
        finally:
            _living.remove(output)


def _before_fork() -> None:
    for output in _living:
        output.before_fork()


def _after_fork_in_parent() -> None:
    for output in _living:
        output.after_fork_in_parent()


def _after_fork_in_child() -> None:
    while _living:
        _living.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
