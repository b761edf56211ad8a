"""``python -m trio_subshells``."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import attrs

from trio_subshells import ConnectionInfo

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


def test_what_the_user_can_mend_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "file").touch()
    for arguments, complaint in [
        (["-f", missing], f"{missing}: {os.strerror(errno.ENOENT)}"),
        (["-f", tmp_path / "text.json"], "text.json: it isn't a JSON file"),
        (["install", "--prefix", tmp_path / "file"], str(tmp_path / "file")),
        (["uninstall", "--prefix", tmp_path], "there is no kernelspec"),
    ]:
        done = run("-m", "trio_subshells", *map(str, arguments))
        assert done.returncode == 1
        assert done.stderr.startswith("python -m trio_subshells: ")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        attrs.evolve(ConnectionInfo.local(), shell_port=port).write_file(file)
        done = run("-m", "trio_subshells", "-f", str(file))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_without_arguments_it_says_who_starts_it() -> None:
    done = run("-m", "trio_subshells")
    assert done.returncode == 2
    assert "usage: python -m trio_subshells -f FILE" in done.stderr
    assert "install lets Jupyter know it" in done.stderr


def test_install_makes_a_kernelspec(tmp_path: Path) -> None:
    done = run("-m", "trio_subshells", "install", "--prefix", str(tmp_path))
    assert done.returncode == 0, done.stderr
    spec = json.loads((tmp_path / "share/jupyter/kernels/trio-python/kernel.json").read_text())
    assert spec["display_name"] == "Python 3 (trio)"
    assert spec["interrupt_mode"] == "message"
    assert spec["language"] == "python"
    assert spec["argv"] == [sys.executable, "-m", "trio_subshells", "-f", "{connection_file}"]
