"""A kernel as a program: what its command line refuses, and how it says so."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import ClassVar

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import _main, open_kernel
from trio_subshells.kernel._guard import Raiser
from trio_subshells.wire import ConnectionInfo

from .helpers import HANG, CellsKernel, Flag


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str]:
    """Run the program; return its exit code or last words, and what it wrote to stderr."""
    with pytest.raises(SystemExit) as left:
        ts.main(CellsKernel, argv)
    return left.value.code, capsys.readouterr().err


def test_it_must_be_told_where_to_listen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernel.py", "--of-another-program"])
    code, said = refusal(capsys)
    assert code == 2
    assert "--of-another-program" not in said
    assert "-f" in said
    assert "install" in said


@pytest.mark.parametrize(
    "argv",
    [
        ("--no-such-option",),
        ("conquer",),
        ("-f",),
        ("install", "--user", "--sys-prefix"),
        ("-f", "missing.json", "--max-subshells", "-1"),
        ("-f", "missing.json", "--max-subshells", "some"),
    ],
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


@pytest.mark.parametrize("error", [LookupError("no database there"), OSError(24, "no room")])
def test_a_kernel_that_cant_be_made(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    ConnectionInfo.local().write_file(path)

    def make() -> ts.Kernel:
        raise error

    interval = sys.getswitchinterval()
    try:
        with pytest.raises(SystemExit) as left:
            ts.main(make, ["-f", str(path)])
    finally:
        sys.setswitchinterval(interval)
    assert str(left.value.code) == f"{_main._program()}: {error}"


@pytest.mark.parametrize("error_type", [ValueError, RuntimeError])
def test_what_an_actor_has_failed_of_is_no_refusal(error_type: type[Exception]) -> None:
    """It isn't for the user to mend, whatever the type of the error."""
    error = error_type("out of range")
    error.add_note("in actor kernel/io")

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        _main._exit(fail)
    assert f"the kernel has failed: {error_type.__name__}: out of range" in str(left.value.code)


def test_all_that_a_kernel_has_failed_of_is_named() -> None:
    def fail() -> None:
        raise ExceptionGroup("", [ZeroDivisionError("one"), RuntimeError("another")])

    with pytest.raises(SystemExit) as left:
        _main._exit(fail)
    assert "one" in str(left.value.code)
    assert "another" in str(left.value.code)


def test_a_package_is_called_what_it_was_started_as(monkeypatch: pytest.MonkeyPatch) -> None:
    main_module = types.ModuleType("__main__")
    main_module.__spec__ = ModuleSpec("my_kernel.__main__", None)
    monkeypatch.setitem(sys.modules, "__main__", main_module)
    monkeypatch.setattr(sys, "argv", ["/somewhere/my_kernel/__main__.py"])
    assert _main._program() == "python -m my_kernel"
    monkeypatch.setattr(sys, "argv", ["/somewhere/my_kernel.py"])
    assert _main._program() == "my_kernel.py"


def test_what_the_author_says_of_the_kernelspec_is_installed(tmp_path: Path) -> None:
    class Specified(CellsKernel):
        kernelspec: ClassVar = {"display_name": "My cells", "interrupt_mode": "signal"}

    with pytest.raises(SystemExit) as left:
        ts.main(Specified, ["install", "--prefix", str(tmp_path)])
    assert left.value.code == 0
    file = tmp_path / "share" / "jupyter" / "kernels" / "cells" / "kernel.json"
    spec = json.loads(file.read_text())
    assert (spec["display_name"], spec["interrupt_mode"]) == ("My cells", "signal")
    assert spec["language"] == "cells"


# ------------------------------------------------------------------------------------- serving

Serve = Callable[..., Awaitable[None]]


@pytest.fixture
def main_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int | str | None]]:
    """The program, with something else in the place of `serve`; returns what it exits with."""
    path = tmp_path / "connection.json"
    ConnectionInfo.local().write_file(path)
    interval = sys.getswitchinterval()

    def run(serve: Serve, *argv: str) -> int | str | None:
        monkeypatch.setattr(_main, "serve", serve)
        with pytest.raises(SystemExit) as left:
            ts.main(CellsKernel, ["-f", str(path), *argv])
        return left.value.code

    yield run
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("maximum", [0, 3])
def test_the_command_line_sets_a_maximum(
    maximum: int, main_with: Callable[..., int | str | None]
) -> None:
    async def serve(kernel: ts.Kernel, connection: object, **options: object) -> None:
        assert kernel.max_subshells == maximum

    assert main_with(serve, "--max-subshells", str(maximum)) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="an interrupt comes otherwise there")
def test_an_interrupt_ends_the_start_and_the_next_one_whatever_it_does(
    main_with: Callable[..., int | str | None],
) -> None:
    async def serve(kernel: ts.Kernel, connection: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)  # cancels the start, which goes on in spite of that
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    assert main_with(serve) == _main.INTERRUPTED


def test_what_interrupts_the_main_shell_is_told_from_the_users_interrupt(
    main_with: Callable[..., int | str | None],
) -> None:
    async def serve(
        kernel: ts.Kernel, connection: object, *, make_raiser: Callable[[], Raiser], **_: object
    ) -> None:
        raiser = make_raiser()
        with pytest.raises(KeyboardInterrupt):
            wait_to_be_hit(raiser)

    assert main_with(serve) == 0


def wait_to_be_hit(raiser: Raiser) -> None:
    raiser.strike()
    time.sleep(10)  # if the strike does not interrupt it, nothing else does
