"""A kernel that fails: what its clients are told, its exit status, and the line on stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ._client import Kernel, run_kernel

SCRIPT = """
from contextlib import asynccontextmanager
import threading

import trio

import trio_subshells as ts


class FailingKernel(ts.Kernel):
    implementation = "failing"
    language_info = ts.LanguageInfo(name="failing")
    subshells = True

    @asynccontextmanager
    async def subshell(self, info):
        async with trio.open_nursery() as nursery:
            yield nursery

    async def execute(self, cell):
        cell.stdout("in\\n")
        if cell.code == "fail":
            cell.state.start_soon(self.fail)
        elif cell.code == "crash":  # what trio promises nothing for
            trio.lowlevel.spawn_system_task(self.fail)
        elif cell.code == "stuck":
            lock = threading.Lock()
            with lock, lock:
                pass
        await trio.sleep_forever()

    async def fail(self):
        raise ZeroDivisionError("by accident")


ts.main(FailingKernel)
"""


@pytest.fixture(scope="module")
def installed(jupyter_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    script = tmp_path_factory.mktemp("failing") / "failing_kernel.py"
    script.write_text(SCRIPT)
    prefix = jupyter_environment / "prefix"
    command = [sys.executable, str(script), "install", "--prefix", str(prefix)]
    subprocess.run(command, check=True, capture_output=True)
    return "failing"


def _said(kernel: Kernel, log: Path) -> list[str]:
    """What a kernel has said, once it has ended by itself, as kernels should that have failed."""
    assert kernel.wait() == 1
    said = log.read_text()
    assert "Traceback" not in said
    return said.splitlines()


@pytest.mark.parametrize("code", ["fail", "crash"])
def test_the_main_shell_fails(code: str, installed: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_kernel(installed, log) as kernel:
        client = kernel.connect()
        subshell = client.create_subshell()
        runs = client.execute("wait", subshell=subshell)
        runs.wait_published("stream", "in")
        fails = client.execute(code)
        for each in (runs, fails):
            # A loop that crashes cancels everything in it: that looks like a shutdown elsewhere.
            assert each.finished()["ename"] in ("KernelDied", "KernelShutdown")
        *_, last = _said(kernel, log)
    assert last.startswith("failing_kernel.py: the kernel has failed: ")
    if code == "fail":
        assert "ZeroDivisionError: by accident" in last


def test_it_fails_while_something_is_stuck(installed: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_kernel(installed, log) as kernel:
        client = kernel.connect()
        subshell = client.create_subshell()
        client.execute("stuck", subshell=subshell).wait_published("stream", "in")
        assert client.execute("fail").finished()["ename"] == "KernelDied"
        first, second = _said(kernel, log)
    assert "the kernel ends, as the main shell has failed: ZeroDivisionError: by acc" in first
    assert "can't be ended" in second
    assert subshell in second


@pytest.mark.parametrize("code", ["fail", "crash"])
def test_a_subshell_fails(code: str, installed: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_kernel(installed, log) as kernel:
        client = kernel.connect()
        runs = client.execute("wait")
        runs.wait_published("stream", "in")
        subshell = client.create_subshell()
        assert client.execute(code, subshell=subshell).finished()["ename"] == "SubshellDied"
        while subshell in client.list_subshells():
            pass  # it is being joined
        again = client.create_subshell()
        client.execute("wait", subshell=again).wait_published("stream", "in")
        assert not runs.is_answered
