"""The processes that descend from this one: who is found, who is left alone, and that they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trio_subshells.kernel import _processes
from trio_subshells.kernel._processes import descendants, living_processes, signal_tree

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
