"""The processes that descend from this one: who they are, and how they are ended.

Found by looking at all processes of the machine, as there is no other way to see a child's
children: in ``/proc`` where there is one, by ``ps`` elsewhere. On Windows ``taskkill`` does both.

Whoever has a session of its own has been detached on purpose (``setsid``, ``start_new_session``),
and is left alone, with all its descendants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

_PROC: Final = Path("/proc")
_PATIENCE: Final = 5.0
"""Seconds that a program which lists or ends processes may take."""


@attrs.frozen
class Process:
    """A living process.

    Attributes:
        pid: its id.
        parent: its parent's; 1, or that of a subreaper, if the parent has ended.
        session: its session.
    """

    pid: int
    parent: int
    session: int


def living_processes() -> list[Process]:
    """All of the machine, without zombies; on POSIX."""
    if (_PROC / "self" / "stat").exists():
        return _from_proc()
    return _from_ps()


def _from_proc() -> list[Process]:
    found = []
    for name in os.listdir(_PROC):  # noqa: PTH208 - a Path each is slow
        if not name.isdecimal():
            continue
        with suppress(OSError):  # it has ended meanwhile
            text = (_PROC / name / "stat").read_text("utf-8", "replace")
            # "pid (name) state ppid pgrp session ...", and the name may contain anything.
            state, parent, _, session = text.rpartition(")")[2].split()[:4]
            if state not in "ZX":
                found.append(Process(int(name), int(parent), int(session)))
    return found


def _from_ps() -> list[Process]:
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    found = []
    for line in listing.stdout.splitlines():
        pid, parent, state = line.split()[:3]
        if state.startswith("Z"):
            continue
        with suppress(OSError):  # ps itself has ended, of course
            found.append(Process(int(pid), int(parent), os.getsid(int(pid))))
    return found


def descendants(root: int) -> list[Process]:
    """The living processes that descend from `root`, in its session, without it; on POSIX."""
    return _below(root, living_processes())


def _below(root: int, processes: Iterable[Process]) -> list[Process]:
    session = os.getsid(root)
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for each in processes:
        if each.session == session and each.pid != each.parent:
            children[each.parent].append(each)
    found: list[Process] = []
    parents = [root]
    while parents:
        of_one = children.pop(parents.pop(), [])
        found += of_one
        parents += [each.pid for each in of_one]
    return found


def leftovers() -> list[Process]:
    """What this process would leave behind: its descendants; on POSIX.

    Also those that have lost the parent in between, if this process leads its session, as a kernel
    does that Jupyter has started: nobody else's processes are in there.
    """
    own = os.getpid()
    processes = living_processes()
    if os.getsid(own) == own:
        return [each for each in processes if each.session == own and each.pid != own]
    return _below(own, processes)


def send(number: signal.Signals, processes: Iterable[Process]) -> None:
    """Send a signal to each process that still lives."""
    for process in processes:
        _kill(process.pid, number)


def signal_tree(root: int, number: signal.Signals) -> None:
    """Send a signal to a child of this process, and to what descends from it.

    They are stopped for that moment: one that starts another just then, and ends, would leave it
    with a parent that nobody knows. On Windows they are ended, whatever the signal.
    """
    if sys.platform == "win32":
        end_by_taskkill(root)
        return
    tree = {root}
    try:
        _kill(root, signal.SIGSTOP)
        with suppress(OSError, subprocess.SubprocessError):  # it has ended, or there is no ps
            while new := {each.pid for each in descendants(root)} - tree:
                tree |= new
                for pid in new:
                    _kill(pid, signal.SIGSTOP)
    finally:
        for pid in tree:
            _kill(pid, number)
            _kill(pid, signal.SIGCONT)


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def end_by_taskkill(pid: int) -> None:
    """End a process and its descendants; on Windows."""
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
