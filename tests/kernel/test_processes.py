"""The processes that descend from this one: who is found, who is left alone, and that they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from trio_subshells.kernel import _processes
from trio_subshells.kernel._processes import Process, descendants, living_processes, signal_tree

from .helpers import HANG, CellsKernel, served

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="taskkill finds them there")

#: Starts another one, says who that is, and waits for its own stdin to be closed.
PARENT = """
import subprocess, sys
child = subprocess.Popen(['sleep', '3600'], start_new_session=len(sys.argv) > 1)
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def parent_and_child(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            yield parent, child
        finally:
            os.kill(child, signal.SIGKILL)
            parent.kill()


def test_the_children_of_children_are_found() -> None:
    with parent_and_child() as (parent, child):
        assert {parent.pid, child} <= {each.pid for each in descendants(os.getpid())}
        assert [each.pid for each in descendants(parent.pid)] == [child]
        [found] = [each for each in living_processes() if each.pid == child]
        assert (found.parent, found.session) == (parent.pid, os.getsid(0))


def test_who_has_a_session_of_its_own_is_left_alone() -> None:
    with parent_and_child("detached") as (parent, child):
        assert descendants(parent.pid) == []
        assert child in {each.pid for each in living_processes()}


def test_a_zombie_is_no_living_process() -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()
        # It may still be on its way; from here on it is a zombie.
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert process.pid not in {each.pid for each in living_processes()}


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps here")
def test_ps_tells_the_same() -> None:
    with parent_and_child() as (parent, child):
        everywhere = {each for each in living_processes() if each.pid in (parent.pid, child)}
        assert len(everywhere) == 2
        assert everywhere <= set(_processes._from_ps())


def test_a_signal_reaches_the_whole_tree() -> None:
    # The child says that it is there: for a moment before, dash lets no signal through to either.
    child = "print('in', flush=True); import time; time.sleep(3600)"
    with subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, child],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        signal_tree(process.pid, signal.SIGINT)
        # Its end of file comes when the sleeping one, which has it too, is gone.
        assert process.stdout.read() == b""
        assert process.wait(HANG) in (-signal.SIGINT, 128 + signal.SIGINT)
    signal_tree(process.pid, signal.SIGINT)  # nobody is there: nothing happens


def test_a_process_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "stat").write_text("12 (a) Z 1 (b)) S 7 12 5 0 -1", "utf-8")
    monkeypatch.setattr(_processes, "_PROC", tmp_path)
    assert _processes._from_proc() == [Process(12, parent=7, session=5)]


def test_what_ps_says_of_a_zombie_may_have_more_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = subprocess.CompletedProcess([], 0, "  12  7 Ss+\n  13  12 Z+\n  14  12 Z\n")
    monkeypatch.setattr(_processes.subprocess, "run", lambda *_, **__: listing)
    monkeypatch.setattr(_processes.os, "getsid", lambda _: 5)
    assert _processes._from_ps() == [Process(12, parent=7, session=5)]


def test_each_branch_is_followed_to_its_end() -> None:
    root, session = os.getpid(), os.getsid(0)
    parents = {11: root, 12: root, 13: root, 21: 11, 22: 12, 23: 13, 31: 21, 32: 22, 33: 23}
    tree = [Process(pid, parent, session) for pid, parent in parents.items()]
    strangers = [Process(41, 12, session + 1), Process(42, 9999, session)]
    assert set(_processes._below(root, [*tree, *strangers])) == set(tree)


def test_a_signal_reaches_who_is_started_while_the_others_are_stopped() -> None:
    """Each stops a moment after it was told to: until then it may have started another one."""
    living: list[Process] = []
    signals: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        signals.append((pid, number))
        if number == signal.SIGSTOP and pid < 14:
            living.append(Process(pid + 1, parent=pid, session=5))

    with (
        mock.patch.object(_processes.os, "kill", kill),
        mock.patch.object(_processes, "descendants", side_effect=lambda _: list(living)),
    ):
        signal_tree(11, signal.SIGTERM)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
        assert {pid for pid, each in signals if each == number} == {11, 12, 13, 14}


@pytest.mark.parametrize("error", [PermissionError, ProcessLookupError])
def test_who_can_t_be_signalled_keeps_it_from_nobody_else(error: type[OSError]) -> None:
    """As what sudo has started; or who has ended meanwhile."""
    signals: list[int] = []

    def kill(pid: int, number: int) -> None:
        if pid == 12:
            raise error
        signals.append(pid)

    with mock.patch.object(_processes.os, "kill", kill):
        _processes.send(signal.SIGTERM, [Process(pid, 11, 5) for pid in (12, 13, 14)])
    assert signals == [13, 14]


@pytest.mark.parametrize("leads", [True, False])
def test_what_would_be_left_behind_is_the_rest_of_a_session_that_is_ours(leads: bool) -> None:
    """There also who has lost the parent in between; in somebody else's, only our own children."""
    own = os.getpid()
    session = own if leads else own + 1000
    everybody = [
        Process(own, 1, session),
        Process(own + 1, own, session),
        Process(own + 2, 1, session),
        Process(own + 3, own, own + 3),
    ]
    with (
        mock.patch.object(_processes, "living_processes", return_value=everybody),
        mock.patch.object(_processes.os, "getsid", return_value=session),
    ):
        found = [each.pid - own for each in _processes.leftovers()]
    assert found == ([1, 2] if leads else [1])


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "3600"]) as process:
        yield process
        process.kill()


async def test_a_program_with_a_kernel_inside_keeps_its_children(
    sleeper: subprocess.Popen[bytes],
) -> None:
    async with served(CellsKernel()) as at:
        assert (await at.client.control("shutdown_request")).status == "ok"
    assert sleeper.poll() is None
