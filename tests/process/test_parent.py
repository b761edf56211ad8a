"""The process that has started the kernel dies: the kernel notices, and ends with all it has."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ._cells import CALL, GENTLE
from ._client import PATIENCE, Kernel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the parent is a handle there")

#: Starts a kernel as Jupyter does, notes down its process id, and waits for it.
PARENT = """
import os, pathlib, subprocess, sys
os.environ["JPY_PARENT_PID"] = str(os.getpid())
child = subprocess.Popen(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
sys.exit(child.wait())
"""

#: What runs in the main shell, and what in a subshell.
BUSY: dict[str, tuple[str | None, str | None]] = {
    "idle": (None, None),
    "loop in main, sleep in a subshell": (GENTLE["loop"], GENTLE["sleep"]),
    "child process in main": ("import os; os.system('echo in; exec sleep 3600')", None),
    "call in a subshell": (None, CALL),
}


@pytest.mark.parametrize("busy", BUSY)
def test_a_kernel_ends_with_its_parent(
    start_kernel: Callable[..., Kernel], jupyter_environment: Path, tmp_path: Path, busy: str
) -> None:
    spec = jupyter_environment / "prefix" / "share" / "jupyter" / "kernels" / "adopted"
    spec.mkdir(exist_ok=True)
    kernel_command = [sys.executable, "-m", "trio_subshells", "-f", "{connection_file}"]
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "pid"), *kernel_command]
    content = {"argv": argv, "display_name": "", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(content))
    kernel = start_kernel("adopted")
    client = kernel.connect()
    for code, subshell in zip(BUSY[busy], (None, client.create_subshell()), strict=True):
        if code is not None:
            client.execute(code, subshell=subshell).wait_published("stream", "in")
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    family = [process, *process.children(recursive=True)]
    kernel.process.kill()
    kernel.process.wait()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    for each in alive:
        each.kill()
    assert not alive
