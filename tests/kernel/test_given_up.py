"""What can't be ended is answered all the same: once, in time, and by whoever has the right to."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import DropCount, DropReason, _control, serve
from trio_subshells.testing import Client, Exchange
from trio_subshells.wire import ConnectionInfo

from .helpers import HANG, CellsKernel, Flag, open_client, served, types


class Stuck(CellsKernel):
    """Has cells that nothing ends but what they wait for, as a call into C that doesn't return."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Flag()
        self.returned = Flag()
        self.comms = Flag()
        self.functions.update(block=self.block, hello=self.hello, nap=self.nap)

    def block(self, cell: ts.Cell) -> None:
        try:
            self.go.block()
            cell.stdout("late")
        finally:
            self.returned.set()

    def nap(self, cell: ts.Cell) -> None:
        threading.Event().wait(cell.metadata["nap"])

    def hello(self, cell: ts.Cell) -> None:
        cell.stdout("hello")

    async def comm_message(self, message: ts.CommMessage) -> None:
        self.comms.set()


TIMEOUT = {"timeout": 0.05, "give_up_after": 0.1}


async def _stuck(client: Client, subshell_id: str, **metadata: float) -> Exchange:
    cell = client.request(
        "execute_request", {"code": "block"}, subshell=subshell_id, metadata=metadata
    )
    await cell.output("execute_input")
    return cell


async def _nothing_more(client: Client, *exchanges: Exchange) -> None:
    """All that the kernel has sent by now has arrived: nothing was said twice."""
    for channel in ("shell", "control"):
        await client.request("kernel_info_request", channel=channel).done()
    for exchange in exchanges:
        await exchange.done()
        assert types(exchange).count("error") == 1


async def _works_again(client: Client, subshell_id: str) -> None:
    """Try until it is free: that the call has returned is announced by no message."""
    while (reply := (await client.execute("hello", subshell=subshell_id)).content)[
        "status"
    ] != "ok":
        assert reply["ename"] == "ShellOccupied"


# -------------------------------------------------------------------------------------- delete


async def test_the_cell_of_a_subshell_that_can_t_be_joined_is_answered() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        assert subshell.id is not None
        await at.client.execute("hello", subshell=subshell.id)
        cell = await _stuck(at.client, subshell.id)
        asked = at.client.request("history_request", subshell=subshell.id)
        queued = at.client.execute_soon("hello", subshell=subshell.id)
        await at.client.request("kernel_info_request").done()
        delete = at.client.control_soon(
            "delete_subshell_request", subshell_id=subshell.id, timeout=0.1
        )
        content = (await cell.done()).content
        assert content["ename"] == "SubshellDeleted"
        assert "can't be ended" in content["evalue"]
        assert content["execution_count"] == 2
        assert types(cell) == ["execute_input", "error"]
        assert (await queued.done()).status == (await asked.done()).status == "aborted"
        assert (await delete.done()).ename == "SubshellUnjoinable"
        assert subshell.state is ts.SubshellState.UNJOINABLE
        kernel.go.set()
        await at.client.control("delete_subshell_request", subshell_id=subshell.id)
        await _nothing_more(at.client, cell)
        assert subshell.state is ts.SubshellState.DELETED


async def test_a_handle_gets_the_answer_too() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        replies: list[ts.ExecuteReply] = []

        async def execute() -> None:
            replies.append(await subshell.execute("block", timeout=0.05, give_up_after=0.1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
        assert replies[0].ename == "CellTimeout"
        assert (await subshell.execute("hello")).ename == "ShellOccupied"
        kernel.go.set()
        await subshell.delete()


async def test_a_silent_cell_is_given_up_silently() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.request(
            "execute_request",
            {"code": "block", "silent": True},
            subshell=subshell_id,
            metadata=TIMEOUT,
        )
        assert (await cell.done()).ename == "CellTimeout"
        assert cell.outputs == []
        kernel.go.set()


async def test_a_comm_handler_that_can_t_be_ended_is_idle_at_last() -> None:
    kernel = Stuck()

    class StuckComms(Stuck):
        async def comm_message(self, message: ts.CommMessage) -> None:
            self.comms.set()
            self.go.block()

    kernel = StuckComms()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        comm = at.client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell_id)
        await kernel.comms.wait()
        await at.client.control("delete_subshell_request", subshell_id=subshell_id, timeout=0.1)
        await comm.idle()
        kernel.go.set()
        await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        await at.client.request("kernel_info_request").done()
        assert [each.content["execution_state"] for each in comm.published] == ["busy", "idle"]


async def test_a_subshell_that_was_given_no_time_is_ended_and_joined_all_the_same() -> None:
    """Its cell computes: the ladder goes on when the delete has been answered."""
    kernel = Stuck()
    spins = Flag()

    @kernel.cell
    def spin(cell: ts.Cell) -> None:
        spins.set()
        while True:
            pass

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("spin", subshell=subshell_id)
        await spins.wait()
        await at.client.control("delete_subshell_request", subshell_id=subshell_id, timeout=0)
        assert (await cell.done()).ename == "SubshellDeleted"
        while (await at.client.control("list_subshell_request")).content["subshell_id"]:
            pass


# ------------------------------------------------------------------------------------- timeouts


async def test_a_cell_that_its_timeout_can_t_end_is_answered() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = await _stuck(at.client, subshell_id, **TIMEOUT)
        queued = [at.client.execute_soon("hello", subshell=subshell_id) for _ in range(3)]
        asked = at.client.request("history_request", subshell=subshell_id)
        content = (await cell.done()).content
        assert content["ename"] == "CellTimeout"
        assert "timeout was 0.05 s, and after 0.15 s it could not be ended" in content["evalue"]
        assert subshell_id in content["evalue"]
        assert content["execution_count"] == 1
        assert types(cell) == ["execute_input", "error"]
        for each in queued:
            assert (await each.done()).status == "aborted"
        assert (await asked.done()).ename == "ShellOccupied"
        # Nobody waits for what may never return, without knowing it.
        later = (await at.client.execute("hello", subshell=subshell_id)).content
        assert later["ename"] == "ShellOccupied"
        assert subshell_id in later["evalue"]
        assert (await at.client.execute("hello")).status == "ok"
        # But what says something, rather than to ask, is kept.
        at.client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell_id)
        kernel.go.set()
        await kernel.comms.wait()
        await _works_again(at.client, subshell_id)
        await _nothing_more(at.client, cell)


async def test_what_a_cell_says_after_it_was_given_up_is_dropped_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Stuck()
    show, shown = Flag(), Flag()
    threads: list[threading.Thread] = []

    @kernel.cell
    def start(cell: ts.Cell) -> None:
        def work() -> None:
            show.block()
            for number in range(100):
                cell.display({"text/plain": f"{number}"})
                cell.stdout(f"{number}\n")
            shown.set()

        threads.append(threading.Thread(target=work))
        threads[0].start()
        kernel.go.block()

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.request(
            "execute_request", {"code": "start"}, subshell=subshell_id, metadata=TIMEOUT
        )
        assert (await cell.done()).ename == "CellTimeout"
        show.set()
        await shown.wait()
        dropped: list[DropCount] = []
        while sum(each.count for each in dropped) < 200:
            dropped = list((await at.running.statistics()).dropped)
        assert dropped == [DropCount("iopub", DropReason.GIVEN_UP, 200)]
        kernel.go.set()
        await _works_again(at.client, subshell_id)
        assert types(cell) == ["execute_input", "error"]
    threads[0].join()
    told = [each.message for each in caplog.records if "that was given up" in each.message]
    assert 1 <= len(told) <= 2  # the first, and those that came later in one more line


async def test_what_does_not_stop_on_error_isn_t_aborted_but_refused() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.request(
            "execute_request",
            {"code": "block", "stop_on_error": False},
            subshell=subshell_id,
            metadata=TIMEOUT,
        )
        queued = at.client.execute_soon("hello", subshell=subshell_id)
        assert (await cell.done()).ename == "CellTimeout"
        assert (await queued.done()).ename == "ShellOccupied"
        kernel.go.set()
        await _works_again(at.client, subshell_id)


async def test_a_shell_that_is_occupied_is_deleted_and_nothing_is_said_twice() -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = await _stuck(at.client, subshell_id, **TIMEOUT)
        assert (await cell.done()).ename == "CellTimeout"
        delete = at.client.control_soon(
            "delete_subshell_request", subshell_id=subshell_id, timeout=0.1
        )
        assert (await delete.done()).ename == "SubshellUnjoinable"
        kernel.go.set()
        await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        await _nothing_more(at.client, cell)


@pytest.mark.parametrize("wrong", [0, -1, True, "5"])
async def test_a_wrong_give_up_after_is_an_error(wrong: object) -> None:
    async with served(Stuck()) as at:
        cell = at.client.request(
            "execute_request",
            {"code": "hello"},
            metadata={"timeout": 1, "give_up_after": wrong},
        )
        content = (await cell.done()).content
        assert content["ename"] == "MalformedMessage"
        assert "give_up_after" in content["evalue"]


async def test_what_ends_at_the_moment_when_it_is_given_up_is_answered_once() -> None:
    async with served(Stuck()) as at:
        naps = {await at.client.create_subshell(): 0.03 for _ in range(4)}
        for _ in range(25):
            cells = {
                subshell_id: at.client.request(
                    "execute_request",
                    {"code": "nap"},
                    subshell=subshell_id,
                    metadata={"nap": nap, "timeout": 0.01, "give_up_after": 0.02},
                )
                for subshell_id, nap in naps.items()
            }
            behind = [at.client.execute_soon("hello", subshell=each) for each in naps]
            await at.client.request("kernel_info_request").done()
            for subshell_id, cell in cells.items():
                # The next one is to end nearer to that moment, wherever this machine has it.
                given_up = "could not be ended" in (await cell.done()).content.get("evalue", "")
                naps[subshell_id] += -0.001 if given_up else 0.001
            for follower in behind:
                await follower.done()
            for subshell_id in naps:
                await _works_again(at.client, subshell_id)
            for channel in ("shell", "control"):
                await at.client.request("kernel_info_request", channel=channel).done()
            for exchange in [*cells.values(), *behind]:
                content = (await exchange.done()).content
                assert types(exchange).count("error") == (content["status"] == "error")


# ------------------------------------------------------------------------------------ interrupts


async def test_an_interrupt_that_has_no_effect_says_so_and_the_cell_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        assert subshell.id is not None
        cell = await _stuck(at.client, subshell.id)
        with pytest.raises(TimeoutError, match="can't be interrupted"):
            await subshell.interrupt(timeout=0.1)
        assert not cell.replies
        kernel.go.set()
        await cell.done()


# -------------------------------------------------------------------------------------- the end


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_control, "SHUTDOWN_TIMEOUT", 0.2)


async def test_what_a_shutdown_can_t_end_is_answered_before_the_shutdown_is(
    hurried: None,
) -> None:
    kernel, left = Stuck(), Flag()

    async def leave(status: int) -> None:
        assert status == 0
        left.set()

    async with served(kernel, on_unjoinable=leave) as at:
        subshell_id = await at.client.create_subshell()
        cell = await _stuck(at.client, subshell_id)
        queued = at.client.execute_soon("hello", subshell=subshell_id)
        delete = at.client.control_soon(
            "delete_subshell_request", subshell_id=subshell_id, timeout=1000
        )
        await delete.busy()
        assert (await at.client.control("shutdown_request")).status == "ok"
        assert (await cell.done()).ename == "SubshellDeleted"  # that came first
        assert (await queued.done()).status == "aborted"
        assert (await delete.done()).ename == "KernelShutdown"
        await left.wait()
        kernel.go.set()


async def test_what_a_shutdown_can_t_end_says_that_it_was_that(hurried: None) -> None:
    kernel = Stuck()
    async with served(kernel) as at:
        cell = await _stuck(at.client, await at.client.create_subshell())
        shutdown = at.client.control_soon("shutdown_request")
        await shutdown.done()
        assert (await cell.done()).ename == "KernelShutdown"
        # They come by two sockets; but the kernel has said the one before the other.
        assert cell.replies[0].header.date <= shutdown.replies[0].header.date
        kernel.go.set()


async def test_what_was_asked_before_the_kernel_began_to_live_is_answered_too(
    hurried: None,
) -> None:
    begun, go_on, left = Flag(), Flag(), Flag()
    connections: list[ConnectionInfo | None] = []

    class Unborn(Stuck):
        @asynccontextmanager
        async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
            connections.append(kernel.connection)
            begun.set()
            await go_on.wait()
            yield

    async def leave(status: int) -> None:
        left.set()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(serve, Unborn(), ConnectionInfo.local(), on_unjoinable=leave)
            )
            await begun.wait()
            async with open_client(connections[0]) as client:
                cell = client.execute_soon("hello")
                assert (await client.control("shutdown_request")).status == "ok"
                assert (await cell.done()).status == "aborted"
                await left.wait()
                go_on.set()


@asynccontextmanager
async def _dying(kernel: ts.Kernel, error: list[BaseException]) -> AsyncIterator[Client]:
    """A client of a kernel that is going to fail."""
    connected = Flag()
    connections: list[ConnectionInfo | None] = []

    class Status(trio.TaskStatus[ts.RunningKernel]):
        def started(self, value: ts.RunningKernel | None = None) -> None:
            assert value is not None
            connections.append(value.connection)
            connected.set()

    async def run() -> None:
        try:
            await serve(kernel, ConnectionInfo.local(), task_status=Status())
        except Exception as raised:
            error.append(raised)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await connected.wait()
            async with open_client(connections[0]) as client:
                yield client


async def test_control_requests_are_answered_when_the_control_handler_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fault(Exception):
        pass

    def die(self: _control.ControlHandler, envelope: object) -> None:
        raise Fault("as it has too much to do")

    monkeypatch.setattr(_control, "MOST_IN_PROGRESS", 3)
    monkeypatch.setattr(_control.ControlHandler, "_refuse", die)
    errors: list[BaseException] = []
    kernel = Slow()
    async with _dying(kernel, errors) as client:
        creates = [client.control_soon("create_subshell_request") for _ in range(3)]
        await kernel.setting_up.wait()
        client.control_soon("kernel_info_request")  # one too many
        for each in creates:
            reply = (await each.done()).content
            assert reply["ename"] == "KernelDied"
            assert "Fault: as it has too much to do" in reply["evalue"]
    assert [type(each) for each in errors] == [Fault]


class Slow(CellsKernel):
    """Its subshells are never set up."""

    def __init__(self) -> None:
        super().__init__()
        self.setting_up = Flag()

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        if not info.is_main:
            self.setting_up.set()
            await trio.sleep_forever()
        yield
