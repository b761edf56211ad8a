"""A kernel as a program: what its command line refuses, and how it says so."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import open_kernel
from trio_subshells.wire import ConnectionInfo

from .helpers import HANG, CellsKernel, Flag


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str]:
    """Run the program; return its exit code or last words, and what it wrote to stderr."""
    with pytest.raises(SystemExit) as left:
        ts.main(CellsKernel, argv)
    return left.value.code, capsys.readouterr().err


def test_it_must_be_told_where_to_listen(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refusal(capsys)
    assert code == 2
    assert "-f" in said
    assert "install" in said


@pytest.mark.parametrize(
    "argv", [("--no-such-option",), ("conquer",), ("-f",), ("install", "--user", "--sys-prefix")]
)
def test_arguments_that_are_none(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refusal(capsys, *argv)
    assert code == 2
    assert "usage:" in said


def test_a_connection_file_that_isnt_there(tmp_path: Path) -> None:
    path = tmp_path / "missing.json"
    with pytest.raises(SystemExit) as left:
        ts.main(CellsKernel, ["-f", str(path)])
    assert str(path) in str(left.value.code)
    assert "\n" not in str(left.value.code)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shell_port": "x"}', "\0"])
def test_a_connection_file_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as left:
        ts.main(CellsKernel, ["-f", str(path)])
    assert "broken.json" in str(left.value.code)
    assert "\n" not in str(left.value.code)


def test_an_address_in_use(tmp_path: Path) -> None:
    """The program runs in the main thread, and the kernel that is there before it in another."""
    path = tmp_path / "taken.json"
    before = sys.getswitchinterval(), signal.getsignal(signal.SIGINT)
    serving, leave = threading.Event(), Flag()

    async def serve_there() -> None:
        async with open_kernel(CellsKernel(), ConnectionInfo.local()) as running:
            assert running.connection is not None
            running.connection.write_file(path)
            serving.set()
            await leave.wait()

    there = threading.Thread(target=trio.run, args=(serve_there,))
    there.start()
    try:
        assert serving.wait(HANG)
        with pytest.raises(SystemExit) as left:
            ts.main(CellsKernel, ["-f", str(path)])
    finally:
        leave.set()
        there.join()
        sys.setswitchinterval(before[0])
    assert "tcp://" in str(left.value.code)
    assert "\n" not in str(left.value.code)
    assert signal.getsignal(signal.SIGINT) is before[1]


def test_a_kernel_that_cant_be_made(tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    ConnectionInfo.local().write_file(path)

    def make() -> ts.Kernel:
        raise LookupError("no database there")

    interval = sys.getswitchinterval()
    try:
        with pytest.raises(SystemExit) as left:
            ts.main(make, ["-f", str(path)])
    finally:
        sys.setswitchinterval(interval)
    assert "no database there" in str(left.value.code)
