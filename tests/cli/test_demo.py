"""``demo``: it works, and it doesn't claim what hasn't happened."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trio_subshells.cli._client import RequestFailed, run_asyncio, run_kernel
from trio_subshells.cli._console import THEME, CommandError
from trio_subshells.cli._demo import Demo, StepFailed, demo
from trio_subshells.cli._specs import NAME, OwnKernelSpecManager
from trio_subshells.kernel import install_kernelspec

from .conftest import PROGRAM, Run, ignored

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_demo_shows_its_five_steps(program: Run) -> None:
    done = program("demo")
    assert (done.code, done.stderr) == (0, "")
    assert re.findall(r"^\d", done.stdout, re.MULTILINE) == list("12345")
    assert done.stdout.count("✓") == 6  # the kernel is there, and five steps
    assert "✗" not in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    measured = done.stdout.partition("Measured")[2]
    assert len(re.findall(r"\d+ (?:s|ms)\b", measured)) >= 9


def test_a_kernel_without_subshells_fails_the_demo(program: Run, jupyter_directories: Path) -> None:
    script = jupyter_directories.parent / "single.py"
    text = (EXAMPLES / "echo_kernel.py").read_text()
    script.write_text(text.replace("subshells = True", "subshells = False"))
    install = [sys.executable, str(script), "install", "--prefix", str(jupyter_directories)]
    subprocess.run(install, check=True, capture_output=True)
    done = program("demo", "--kernel", "echo")
    assert done.code == 1
    assert "has no subshells" in done.stderr


def test_a_kernel_that_does_not_start_is_told_with_its_log(
    program: Run, jupyter_directories: Path
) -> None:
    dying = [sys.executable, "-c", "raise SystemExit('no [such] thing')", "{connection_file}"]
    spec = {"argv": dying, "display_name": "Dead", "language": "python"}
    install_kernelspec("dead", spec, prefix=jupyter_directories)
    done = program("demo", "--kernel", "dead")
    assert done.code == 1
    assert "exit code 1" in done.stderr
    assert "no [such] thing" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process there")
@pytest.mark.parametrize(
    ("number", "in_vain"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGTERM, (signal.SIGINT,))],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM in the background"],
)
def test_an_interrupted_demo_leaves_no_kernel(
    number: signal.Signals, in_vain: tuple[signal.Signals, ...]
) -> None:
    with ignored(*in_vain):
        process = subprocess.Popen(
            [*PROGRAM, "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"process (\d+)", line):
                break
        assert found
        kernel = int(found.group(1))
        os.kill(kernel, 0)  # it is there
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def run_step(step: str, *, sabotage: str) -> None:
    """Run one step of the demo in a kernel in which something has been broken before."""
    console = Console(file=io.StringIO(), theme=THEME)

    async def run() -> None:
        async with asyncio.timeout(120), run_kernel(NAME, OwnKernelSpecManager()) as kernel:
            await kernel.execute(sabotage).ok()
            await getattr(Demo(console, kernel, {}), step)()

    run_asyncio(run())


def test_it_notices_output_that_is_not_the_cells_own() -> None:
    doubled = "import builtins\ndef print(text): builtins.print(text); builtins.print(text)"
    with pytest.raises(StepFailed, match="the output of one cell"):
        run_step("four_at_once", sabotage=doubled)


def test_it_notices_subshells_that_take_turns() -> None:
    # what the barrier does at its deadline, without the time until then
    broken = (
        "import threading\n"
        "def wait(self, timeout): raise threading.BrokenBarrierError\n"
        "threading.Barrier.wait = wait"
    )
    with pytest.raises(RequestFailed, match="BrokenBarrierError"):
        run_step("four_at_once", sabotage=broken)


def test_it_notices_an_error_that_aborts_nothing() -> None:
    multiplying = (
        "import ast\n"
        "class Calm(ast.NodeTransformer):\n"
        "    def visit_Div(self, node): return ast.Mult()\n"
        "get_ipython().ast_transformers.append(Calm())"
    )
    with pytest.raises(StepFailed, match="the first queue ended"):
        run_step("one_queue_aborted", sabotage=multiplying)


def test_it_notices_a_thread_that_is_left() -> None:
    counting = (
        "import itertools, threading\n"
        "def enumerate(real=threading.enumerate, count=itertools.count(1)):\n"
        "    return real() + [threading.Thread(name='trio left') for _ in range(next(count))]\n"
        "threading.enumerate = enumerate"
    )
    with pytest.raises(StepFailed, match="1 more threads than before"):
        run_step("busy_deleted", sabotage=counting)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups there")
def test_it_notices_a_process_that_is_left(tmp_path: Path) -> None:
    spawning = (
        "import pathlib, subprocess, sys, trio\n"
        "from trio_subshells.kernel import _leftovers\n"
        "_leftovers._children = list  # which finds nobody to end\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))"
    )
    try:
        with pytest.raises(StepFailed, match="a child process of the kernel is left"):
            run_step("nothing_left", sabotage=spawning)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_step_that_fails_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Demo) -> None:
        raise StepFailed("this was not so")

    monkeypatch.setattr(Demo, "watched_cell", fail)
    console = Console(file=io.StringIO(), theme=THEME)
    with pytest.raises(CommandError, match="this was not so"):
        run_asyncio(demo(console, NAME))
