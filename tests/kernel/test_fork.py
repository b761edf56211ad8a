"""A cell that forks, whatever its kernel: the child has no kernel, its parent isn't disturbed."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel._fork import _without_ours, write_own
from trio_subshells.kernel._guard import _here

from .helpers import HANG, CellsKernel, served, types

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # of forks beside threads
]


def fork() -> int:
    """Fork a child that doesn't hang for ever."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(HANG)
    return pid


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def says(cell: ts.Cell) -> None:
    cell.stdout("own out\n")
    cell.stderr("own err\n")


def publishes(cell: ts.Cell) -> None:
    cell.result({"text/plain": "never"})
    cell.display({"text/plain": "never"})
    cell.clear_output()


def exits(cell: ts.Cell) -> None:
    raise SystemExit(3)


def exits_with_words(cell: ts.Cell) -> None:
    raise SystemExit("last words")


def fails(cell: ts.Cell) -> None:
    raise ValueError("no such number")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise self


def fails_unspeakably(cell: ts.Cell) -> None:
    raise UnspeakableError


def asks(cell: ts.Cell) -> None:
    with pytest.raises(ts.InputNotAllowed, match="forked child"):
        cell.blocking_input("never")


def registers_a_canceller(cell: ts.Cell) -> None:
    with cell.on_cancel(lambda: None):
        pass


def has_a_broken_stdout(cell: ts.Cell) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError("whoever has read it has gone")

    sys.stdout = Broken()


def starts_a_thread(cell: ts.Cell) -> None:
    may_end = threading.Event()

    def late() -> None:
        may_end.wait()
        cell.stdout("late\n")

    threading.Thread(target=late, daemon=False).start()
    may_end.set()


CHILDREN: dict[Callable[[ts.Cell], None], tuple[int, str, str]] = {
    says: (0, "own out\n", "own err\n"),
    publishes: (0, "", ""),
    exits: (3, "", ""),
    exits_with_words: (1, "", "last words\n"),
    fails: (1, "", "ValueError: no such number\n"),
    fails_unspeakably: (1, "", "UnspeakableError"),
    asks: (0, "", ""),
    registers_a_canceller: (0, "", ""),
    has_a_broken_stdout: (0, "", ""),
    starts_a_thread: (0, "late\n", ""),
}


@pytest.mark.parametrize("child", CHILDREN, ids=lambda child: child.__name__)
async def test_a_child_ends_with_its_cell(
    child: Callable[[ts.Cell], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = CellsKernel()
    codes: list[int] = []

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        pid = fork()
        if pid == 0:
            child(cell)
            return
        codes.append(wait_for(pid))
        cell.stdout("parent\n")

    async with served(kernel) as at:
        for subshell in (None, await at.client.create_subshell()):
            capfd.readouterr()
            exchange = at.client.execute_soon("forks", subshell=subshell)
            assert (await exchange.done()).status == "ok"
            assert exchange.outputs[1:] == [("stream", {"name": "stdout", "text": "parent\n"})]
            code, out, err = CHILDREN[child]
            seen = capfd.readouterr()
            assert seen.out == out
            assert seen.err.endswith(err) if err.endswith("\n") else err in seen.err
            assert "_guard.py" not in seen.err  # the kernel's own frames tell nobody anything
            assert codes.pop() == code
        assert not at.client.strays or {each.header.msg_type for each in at.client.strays} == {
            "status"
        }


async def test_a_child_that_awaits_ends_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    kernel = CellsKernel()
    codes: list[int] = []

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        pid = fork()
        if pid == 0:
            await trio.lowlevel.checkpoint()
            cell.stdout("never")
        codes.append(wait_for(pid))

    async with served(kernel) as at:
        exchange = at.client.execute_soon("forks")
        assert (await exchange.done()).status == "ok"
        assert types(exchange) == ["execute_input"]
    assert codes == [1]
    seen = capfd.readouterr()
    assert seen.out == ""
    assert "can't await" in seen.err


def forking_tasks(codes: dict[str, int]) -> list[Callable[[], Awaitable[None]]]:
    """Tasks that fork, by what the child does; the parent notes with which code it has exited."""

    async def returns() -> None:
        pid = fork()
        if pid:
            codes["returns"] = wait_for(pid)

    async def fails() -> None:
        pid = fork()
        if pid == 0:
            raise ValueError("no such number")
        codes["fails"] = wait_for(pid)

    async def awaits() -> None:
        pid = fork()
        if pid == 0:
            await trio.lowlevel.checkpoint()
        codes["awaits"] = wait_for(pid)

    return [returns, fails, awaits]


async def test_a_child_of_a_task_that_a_cell_started_ends_with_that_task(
    capfd: pytest.CaptureFixture[str],
) -> None:
    kernel = CellsKernel()
    codes: dict[str, int] = {}

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        async with trio.open_nursery() as nursery:
            for task in forking_tasks(codes):
                nursery.start_soon(task)
        cell.stdout("parent\n")

    async with served(kernel) as at:
        for subshell in (None, await at.client.create_subshell()):
            codes.clear()
            exchange = at.client.execute_soon("forks", subshell=subshell)
            assert (await exchange.done()).status == "ok"
            assert exchange.text() == "parent\n"
            assert codes == {"returns": 0, "fails": 1, "awaits": 1}
    seen = capfd.readouterr()
    assert seen.out == ""
    assert seen.err.count("can't await") == seen.err.count("ValueError: no such number") == 2


async def test_a_child_of_a_task_that_no_cell_started_ends_with_that_task(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The author's own task beside the cells: the kernel doesn't step it, and sees less of it."""
    codes: dict[str, int] = {}

    class Background(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main:
                for task in forking_tasks(codes):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(task)
                async with trio.open_nursery() as nursery:
                    await nursery.start(cleans_up)
                    nursery.cancel_scope.cancel()
            yield

    async def cleans_up(task_status: trio.TaskStatus[None]) -> None:
        """That its nursery is cancelled already is no failure of the child's."""
        task_status.started()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            pid = fork()
            if pid == 0:
                return
            codes["cleans_up"] = wait_for(pid)
            raise

    async with served(Background()) as at:
        await at.client.create_subshell()
    assert codes == {"returns": 0, "fails": 1, "awaits": 1, "cleans_up": 0}
    assert "can't await" in capfd.readouterr().err


async def test_a_signal_for_a_child_does_not_wake_its_parent() -> None:
    kernel = CellsKernel()
    codes: list[int] = []

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        pid = fork()
        if pid == 0:
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        codes.append(wait_for(pid))

    async with served(kernel) as at:
        assert (await at.client.execute("forks")).status == "ok"
    assert codes == [0]


def test_what_a_child_writes_is_all_written_however_little_goes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append((descriptor, data[:3]))
        return len(data[:3])

    monkeypatch.setattr(os, "write", write)
    write_own("stderr", "last words")
    assert written == [(2, b"las"), (2, b"t w"), (2, b"ord"), (2, b"s")]


def test_a_module_that_is_called_like_the_kernels_is_still_the_users() -> None:
    """Of a child's traceback, only the frames down to the user's first are left out."""

    def traceback_through(*modules: str) -> TracebackType | None:
        def fail() -> None:
            raise ZeroDivisionError

        call: Callable[[], None] = fail
        for module in reversed(modules):
            namespace: dict[str, Any] = {"__name__": module, "call": call}
            exec("def calls():\n    call()", namespace)
            call = namespace["calls"]
        with pytest.raises(ZeroDivisionError) as raised:
            call()
        assert raised.value.__traceback__ is not None
        return raised.value.__traceback__.tb_next  # without this one

    def first_of(traceback: TracebackType | None) -> str:
        left = _without_ours(traceback)
        assert left is not None
        return str(left.tb_frame.f_globals["__name__"])

    ours = ("trio_subshells", "trio_subshells.kernel._guard")
    assert first_of(traceback_through(*ours, "users", *ours)) == "users"
    assert first_of(traceback_through(*ours, "trio_subshells_demo", "users")) == (
        "trio_subshells_demo"
    )


async def test_a_child_can_be_interrupted_by_itself() -> None:
    kernel = CellsKernel()
    codes: list[int] = []

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        pid = fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                os._exit(5)
        codes.append(wait_for(pid))

    async with served(kernel) as at:
        subshell = await at.client.create_subshell()
        # In the child the thread that has forked is the main thread, so signals reach it.
        assert (await at.client.execute("forks", subshell=subshell)).status == "ok"
    assert codes == [5]


async def test_a_fork_while_somebody_looks_whether_to_end_the_cell_finds_no_lock_held() -> None:
    kernel = CellsKernel()
    codes: list[int] = []
    held, let_go = threading.Event(), threading.Event()

    @kernel.cell
    async def forks(cell: ts.Cell) -> None:
        assert _here.exposure is not None
        guard = _here.exposure._guard

        def look() -> None:
            with guard.lock:
                held.set()
                let_go.wait(HANG)

        ladder = threading.Thread(target=look)
        ladder.start()
        held.wait()
        pid = fork()
        if pid == 0:
            signal.alarm(5)
            registers_a_canceller(cell)
            return
        let_go.set()
        ladder.join()
        codes.append(wait_for(pid))

    async with served(kernel) as at:
        assert (await at.client.execute("forks")).status == "ok"
    assert codes == [0]


async def test_a_fork_while_others_publish_finds_no_lock_held(
    capfd: pytest.CaptureFixture[str],
) -> None:
    kernel = CellsKernel()
    enough = threading.Event()

    @kernel.cell
    async def chatter(cell: ts.Cell) -> None:
        def talk() -> None:
            while not enough.is_set():
                cell.stdout("x\n")

        threads = [threading.Thread(target=talk) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):  # beside threads of this very cell, which hold its port's lock
            pid = fork()
            if pid == 0:
                cell.stdout("child\n")
                cell.display({"text/plain": "never"})
                return
            assert wait_for(pid) == 0
        enough.set()
        for thread in threads:
            thread.join()

    async with served(kernel) as at:
        exchange = at.client.execute_soon("chatter")
        assert (await exchange.done()).status == "ok"
        assert set(types(exchange)) == {"execute_input", "stream"}
        assert set(exchange.text().split()) == {"x"}
    assert capfd.readouterr().out == "child\n" * 20
