"""Running the command line: in this process where that is enough, as a program where it isn't."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from trio_subshells.cli import main


@attrs.frozen
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    """What is started in this block inherits that these signals are ignored."""
    before = [(each, signal.signal(each, signal.SIG_IGN)) for each in numbers]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)


@pytest.fixture(autouse=True)
def jupyter_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give Jupyter and IPython directories of their own; return a prefix that Jupyter looks in."""
    prefix = tmp_path / "prefix"
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    for kind in ("DATA", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path / kind.lower()))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return prefix


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["trio-subshells", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            if isinstance(leaving.code, str):  # what the interpreter does at the end of a program
                print(leaving.code, file=sys.stderr)
            code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        return Result(code, *capsys.readouterr())

    return run


PROGRAM = (sys.executable, "-W", "error", "-c", "from trio_subshells.cli import main; main()")


@pytest.fixture
def program() -> Run:
    """Run a command as a program, as the console script does."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> Result:
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            capture_output=True,
            encoding="utf-8",
            check=False,
            cwd=cwd,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
