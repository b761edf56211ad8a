"""``python -m trio_subshells``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

WITHOUT_IPYTHON = """
import importlib.machinery, runpy, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "IPython" else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
runpy.run_module("trio_subshells", run_name="__main__", alter_sys=True)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_without_ipython_it_says_what_to_install() -> None:
    done = run("-c", WITHOUT_IPYTHON, "-f", "connection.json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'trio-subshells[ipython]'" in done.stderr


def test_a_connection_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("-m", "trio_subshells", "-f", str(tmp_path / "none.json"))
    assert done.returncode == 1
    assert "none.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_install_makes_a_kernelspec(tmp_path: Path) -> None:
    done = run("-m", "trio_subshells", "install", "--prefix", str(tmp_path))
    assert done.returncode == 0, done.stderr
    spec = json.loads((tmp_path / "share/jupyter/kernels/trio-python/kernel.json").read_text())
    assert spec["display_name"] == "Python 3 (trio)"
    assert spec["interrupt_mode"] == "message"
    assert spec["language"] == "python"
    assert spec["argv"] == [sys.executable, "-m", "trio_subshells", "-f", "{connection_file}"]
