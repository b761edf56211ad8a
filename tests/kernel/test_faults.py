"""An actor of the kernel fails: see `trio_subshells.kernel._faults` for what is to happen then.

`test_at_each_await_point` kills each actor where it waits for the first time at each place. The
whole sweep, which does it each time that the actor waits there, takes about a minute::

    TRIO_SUBSHELLS_FAULTS=all pytest tests/kernel/test_faults.py -k each
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import ActorTerminated, Host, TaskHost, ThreadHost
from trio_subshells.kernel import SubshellState, _control, _shell, open_kernel
from trio_subshells.kernel._faults import ends_the_kernel, without_cancelled
from trio_subshells.sockets._ledger import start_lending
from trio_subshells.testing import Client
from trio_subshells.wire import ConnectionInfo

from .faults import Fault, Faults, TargetKernel, sabotage, survey
from .helpers import HANG, CellsKernel, Flag, Served, open_client, served, types

VICTIMS = ("io", "shell", "control", "stdin", "iopub", "nest", "main shell", "subshell")


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What fails here says so in the log, hundreds of times."""
    caplog.set_level(logging.CRITICAL, "trio_subshells")


# --------------------------------------------------------------------------------------- the sweep


@pytest.mark.parametrize(
    ("victim", "host"),
    [
        *((victim, ThreadHost()) for victim in VICTIMS),
        ("nest", TaskHost()),
        ("subshell", TaskHost()),
    ],
    ids=lambda each: each if isinstance(each, str) else each.kind,
)
async def test_at_each_await_point(victim: str, host: Host, quiet: None) -> None:
    passed = await survey(TargetKernel(host), victim)
    assert passed
    everything = os.environ.get("TRIO_SUBSHELLS_FAULTS") == "all"
    raised = 0
    for point, times in passed.items():
        for occurrence in range(1, times + 1 if everything else 2):
            faults = Faults(victim, point, occurrence)
            try:
                await sabotage(TargetKernel(host), faults)
            except BaseException as error:
                error.add_note(f"{victim} was killed at {point}, pass {occurrence} of {times}")
                raise
            raised += faults.raised
    assert raised >= len(passed) / 2  # where exactly it waits differs a little from run to run


# -------------------------------------------------------------------------------- what has failed


class Fails(Exception):
    """Something has failed."""


async def cancelled() -> trio.Cancelled:
    """One of trio's, which nobody else can make."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            caught = error
            raise
    return caught


async def test_a_failure_is_told_without_what_came_with_it() -> None:
    """It arrives in a group for each nursery that it has come through, with what was cancelled."""
    one, other, nothing = Fails("one"), Fails("other"), await cancelled()

    def group(*errors: BaseException) -> BaseException:
        return BaseExceptionGroup("of a nursery", errors)

    assert without_cancelled(one) is one
    assert without_cancelled(group(one)) is one
    assert without_cancelled(group(group(group(one)))) is one
    assert without_cancelled(group(nothing, group(nothing, group(one), nothing))) is one
    assert without_cancelled(nothing) is None
    assert without_cancelled(group(nothing, group(nothing))) is None
    both = without_cancelled(group(group(one, nothing), other))
    assert isinstance(both, ExceptionGroup)
    assert both.subgroup(Fails) is not None
    assert both.subgroup(trio.Cancelled) is None


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (Fails("of the text"), ["the kernel ends, as somebody has failed: Fails: of the text"]),
        (ExceptionGroup("", [Fails()]), ["the kernel ends, as somebody has failed: Fails"]),
        (ActorTerminated("an echo of another one's failure"), []),
    ],
    ids=["failure", "group", "echo"],
)
def test_a_failure_is_told_at_once_and_goes_on(
    error: Exception, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)) as raised, ends_the_kernel("somebody"):
        raise error
    assert raised.value is error
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.DEBUG] == lines


# ------------------------------------------------------------------------------ a subshell's death


class NurseryKernel(CellsKernel):
    """What its cells start in the background takes their subshell down if it fails."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.subshell_host = host  # type: ignore[misc]
        self.go = Flag()

        @self.cell
        async def forever(cell: ts.Cell) -> None:
            cell.stdout("here ")
            await trio.sleep_forever()

        @self.cell
        async def doomed(cell: ts.Cell) -> None:
            cell.state.start_soon(self.die)
            await trio.sleep_forever()

        @self.cell
        async def nothing(cell: ts.Cell) -> None:
            pass

        @self.cell
        async def late(cell: ts.Cell) -> None:
            cell.state.start_soon(self.die)

    async def die(self) -> None:
        await self.go.wait()
        raise ZeroDivisionError("in the background")

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            yield nursery


hosts = pytest.mark.parametrize("host", [ThreadHost(), TaskHost()], ids=["thread", "task"])


async def _list(client: Client) -> list[str]:
    content = (await client.control("list_subshell_request")).content
    ids = content["subshell_id"]
    assert isinstance(ids, list)
    return ids


async def _gone(at: Served, subshell_id: str) -> None:
    """Wait until a subshell that is dying is gone."""
    lives = await at.running.subshells()
    if subshell_id in lives:
        await lives[subshell_id]._life.ref.watch()
        while subshell_id in await at.running.subshells():
            await trio.lowlevel.checkpoint()


@hosts
async def test_a_subshell_dies(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    kernel = NurseryKernel(host)
    async with served(kernel) as at:
        client = at.client
        doomed, other = await client.create_subshell(), await client.create_subshell()
        elsewhere = [client.execute_soon("forever", subshell=place) for place in (None, other)]
        for each in elsewhere:
            await each.output("execute_input")
        ran = client.execute_soon("doomed", subshell=doomed)
        await ran.output("execute_input")
        queued = [client.execute_soon("nothing", subshell=doomed) for _ in range(3)]
        queued.append(client.request("complete_request", _COMPLETE, subshell=doomed))
        await client.request("kernel_info_request").done()  # they have been read before this
        kernel.go.set()

        reply = (await ran.done()).content
        assert reply["status"] == "error"
        assert reply["ename"] == "SubshellDied"
        assert doomed in reply["evalue"]
        assert "ZeroDivisionError: in the background" in reply["evalue"]
        assert any("in die" in line for line in reply["traceback"])
        shown = {key: reply[key] for key in ("ename", "evalue", "traceback")}
        assert ran.outputs[-1] == ("error", shown)
        for each in queued:
            assert (await each.done()).status == "aborted"
            assert types(each) == []

        await _gone(at, doomed)
        assert await _list(client) == [other]
        later = (await client.execute("nothing", subshell=doomed)).content
        assert later["ename"] == "UnknownSubshell"
        assert not any(each.replies for each in elsewhere)
        await client.control("interrupt_request")
        for each in elsewhere:
            assert (await each.done()).ename == "KeyboardInterrupt"
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 1
    assert told[0].exc_info is not None


async def test_a_subshell_whose_loop_crashes() -> None:
    """Trio ends it, then, as if somebody had cancelled it; but nobody has."""
    kernel = CellsKernel()

    @kernel.cell
    async def crash(cell: ts.Cell) -> None:
        async def fail() -> None:
            raise ZeroDivisionError("in a system task")

        trio.lowlevel.spawn_system_task(fail)
        await trio.sleep_forever()

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("crash", subshell=subshell_id)
        reply = (await cell.done()).content
        assert reply["ename"] == "SubshellDied"
        assert "its trio loop has crashed" in reply["evalue"]
        assert types(cell) == ["execute_input", "error"]
        await _gone(at, subshell_id)
        assert (await at.client.execute("")).status == "ok"


_COMPLETE = {"code": "a", "cursor_pos": 1}


@hosts
async def test_an_idle_subshell_dies(host: Host) -> None:
    kernel = NurseryKernel(host)
    async with served(kernel) as at:
        doomed = await at.client.create_subshell()
        assert (await at.client.execute("late", subshell=doomed)).status == "ok"
        handle = (await at.running.subshells())[doomed]
        kernel.go.set()
        await _gone(at, doomed)
        assert handle.state is SubshellState.DELETED
        assert await _list(at.client) == []
        assert (await at.client.execute("nothing")).status == "ok"


async def test_what_a_handle_asked_of_a_subshell_that_dies() -> None:
    kernel = NurseryKernel(ThreadHost())
    async with served(kernel) as at, trio.open_nursery() as nursery:
        subshell = await at.running.create_subshell()
        replies: dict[str, ts.ExecuteReply] = {}

        async def execute(code: str) -> None:
            replies[code] = await subshell.execute(code)

        nursery.start_soon(execute, "doomed")
        while subshell.state is not SubshellState.BUSY:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(execute, "nothing")
        await trio.testing.wait_all_tasks_blocked()
        kernel.go.set()
        nursery.cancel_scope.shield = False
        while len(replies) < 2:
            await trio.lowlevel.checkpoint()
    assert replies["doomed"].content["ename"] == "SubshellDied"
    assert replies["nothing"].status == "aborted"


async def test_the_main_shell_dies_and_the_kernel_ends() -> None:
    kernel = NurseryKernel(ThreadHost())
    async with _dying(kernel) as dying:
        client = dying.client
        other = await client.create_subshell()
        elsewhere = client.execute_soon("forever", subshell=other)
        await elsewhere.output("execute_input")
        ran = client.execute_soon("doomed")
        await ran.output("execute_input")
        queued = client.execute_soon("nothing")
        await client.request("kernel_info_request").done()
        kernel.go.set()
        reply = (await ran.done()).content
        assert reply["ename"] == "KernelDied"
        assert "ZeroDivisionError: in the background" in reply["evalue"]
        assert (await queued.done()).status == "aborted"
        assert (await elsewhere.done()).ename == "KernelDied"
    assert isinstance(dying.error, ZeroDivisionError)


# ------------------------------------------------------------------------ those that are restarted


class TalkingKernel(CellsKernel):
    """Asks, and prints."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Flag()

        @self.cell
        async def ask(cell: ts.Cell) -> None:
            cell.stdout(await cell.input("? "))

        @self.cell
        def ask_blocking(cell: ts.Cell) -> None:
            cell.stdout(cell.blocking_input("? "))

        @self.cell
        async def print_and_wait(cell: ts.Cell) -> None:
            cell.stdout("a line that ")
            await self.go.wait()

        @self.cell
        async def forever(cell: ts.Cell) -> None:
            await trio.sleep_forever()


@pytest.mark.parametrize("code", ["ask", "ask_blocking"])
async def test_stdin_fails_while_cells_ask(code: str, quiet: None) -> None:
    faults = Faults("stdin")
    with faults.installed():
        async with served(TalkingKernel()) as at:
            client = at.client
            places = [await client.create_subshell() for _ in range(2)]
            asking = [client.execute_soon(code, subshell=place) for place in places]
            prompts = [await client.prompt() for _ in asking]
            faults.arm()
            client.answer(prompts[0], "wakes it up")
            for each in asking:
                reply = (await each.done()).content
                assert reply["ename"] == "ConnectionError"
                assert "stdin channel has failed" in reply["evalue"]
            for place in places:
                asks = client.execute_soon(code, subshell=place)
                client.answer(await client.prompt(), "yes")
                assert (await asks.done()).status == "ok"
                assert asks.text() == "yes"


async def test_iopub_fails_before_it_has_flushed(quiet: None) -> None:
    kernel = TalkingKernel()
    faults = Faults("iopub")
    with faults.installed():
        async with served(kernel) as at:
            prints = at.client.execute_soon("print_and_wait")
            faults.arm()  # hit by the next thing that happens there: the timer, or its request
            await prints.output("stream", text="a line that ")
            assert faults.raised
            async with open_client(at.running.connection, "late"):
                pass  # it has been welcomed
            kernel.go.set()
            assert (await prints.done()).status == "ok"
            again = at.client.execute_soon("print_and_wait")
            await again.output("stream", text="a line that ")
            await again.done()


@pytest.mark.parametrize("victim", ["stdin", "iopub"])
async def test_one_failure_too_many_ends_the_kernel(victim: str, quiet: None) -> None:
    faults = Faults(victim)
    with faults.installed():
        async with _dying(TalkingKernel()) as dying:
            place = await dying.client.create_subshell()
            runs = dying.client.execute_soon("forever")
            await runs.output("execute_input")
            faults.arm(times=100)
            code = "ask" if victim == "stdin" else "print_and_wait"
            wakes = dying.client.execute_soon(code, subshell=place)
            assert (await runs.done()).ename == "KernelDied"
            assert (await wakes.done()).status == "error"
    assert dying.error is not None
    told = "".join(traceback.format_exception(dying.error))
    assert "Fault" in told
    assert f"actor kernel/io/{victim} failed 4 times within 5 s" in told


# ----------------------------------------------------------------------------- the end of a kernel


@attrs.define
class Dying:
    """A kernel that is expected to fail, and a client that outlives it."""

    client: Client
    running: ts.RunningKernel
    error: BaseException | None = None


@asynccontextmanager
async def _dying(kernel: ts.Kernel, **options: Any) -> AsyncIterator[Dying]:
    """Leaving the block waits for the kernel's end, and for that of its threads."""
    start_lending()  # pyzmq's thread, which stays
    threads = set(threading.enumerate())
    kernels: list[ts.RunningKernel] = []
    started, ended = trio.Event(), trio.Event()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                try:
                    async with open_kernel(kernel, ConnectionInfo.local(), **options) as running:
                        kernels.append(running)
                        started.set()
                        await trio.sleep_forever()
                except Exception as error:
                    dying.error = error
                finally:
                    ended.set()

            nursery.start_soon(run)
            await started.wait()
            async with open_client(kernels[0].connection) as client:
                dying = Dying(client, kernels[0])
                yield dying
                await ended.wait()
    assert set(threading.enumerate()) <= threads


class BusyKernel(CellsKernel):
    """Its cells end of what ends them, and of nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Flag()

        @self.cell
        async def forever(cell: ts.Cell) -> None:
            await trio.sleep_forever()

        @self.cell
        def compute(cell: ts.Cell) -> None:
            while True:
                pass

        @self.cell
        def stuck(cell: ts.Cell) -> None:
            self.go.block()


@pytest.mark.parametrize("victim", ["shell", "control", "nest"])
async def test_what_runs_is_ended_with_the_kernel(
    victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(victim)
    with faults.installed():
        async with _dying(BusyKernel()) as dying:
            client = dying.client
            places = [await client.create_subshell() for _ in range(3)]
            codes = ["forever", "compute", "forever"]
            cells = [
                client.execute_soon(code, subshell=place)
                for code, place in zip(codes, places, strict=True)
            ]
            for cell in cells:
                await cell.output("execute_input")
            queued = [client.execute_soon("forever", subshell=place) for place in places]
            await client.request("kernel_info_request").done()
            faults.arm()
            match victim:
                case "shell":
                    client.request("kernel_info_request")
                case "control":
                    client.control_soon("kernel_info_request")
                case "nest":
                    with pytest.raises(ActorTerminated, match="kernel/nest"):
                        await dying.running.create_subshell(host=TaskHost())
            for cell in cells:
                assert (await cell.done()).ename == "KernelDied"
            for each in queued:
                assert (await each.done()).status == "aborted"
    assert isinstance(dying.error, Fault)
    assert any("failure of the actor" in note for note in dying.error.__notes__)
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the kernel ends" in told.getMessage()
    assert "Fault" in told.getMessage()
    assert told.exc_info is None


async def test_what_is_to_end_the_kernel_fails(quiet: None) -> None:
    go = Flag()

    async def until() -> None:
        await go.wait()
        raise Fault("of the I/O thread")

    async with _dying(BusyKernel(), until=until) as dying:
        cells = [
            dying.client.execute_soon("compute", subshell=await dying.client.create_subshell()),
            dying.client.execute_soon("forever"),
        ]
        for cell in cells:
            await cell.output("execute_input")
        go.set()
        for cell in cells:
            assert (await cell.done()).ename == "KernelDied"
    assert isinstance(dying.error, Fault)


@pytest.mark.parametrize("victim", ["shell", "control"])
async def test_what_cant_be_ended_when_the_kernel_fails(
    victim: str, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_control, _shell):
        monkeypatch.setattr(module, "SHUTDOWN_TIMEOUT", 0.2)
    kernel, statuses = BusyKernel(), list[int]()

    async def on_unjoinable(status: int) -> None:
        statuses.append(status)
        kernel.go.set()

    faults = Faults(victim)
    with faults.installed():
        async with _dying(kernel, on_unjoinable=on_unjoinable) as dying:
            client = dying.client
            stuck = client.execute_soon("stuck", subshell=await client.create_subshell())
            await stuck.output("execute_input")
            faults.arm()
            client.request("kernel_info_request")
            client.control_soon("kernel_info_request")
            await stuck.reply()
    assert isinstance(dying.error, Fault)
    assert statuses == [1]
