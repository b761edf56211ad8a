"""The control channel: subshells that come and go, interrupts, and the end of the kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import Host, TaskHost
from trio_subshells.testing import check_protocol

from .helpers import CellsKernel, Flag, served


class Busy(CellsKernel):
    """Has a cell for each way of being busy."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Flag()
        self.functions.update(
            wait=self.wait, spin=self.spin, block=self.block, blocked_cleanup=self.blocked_cleanup
        )

    async def wait(self, cell: ts.Cell) -> None:
        await trio.sleep_forever()

    def spin(self, cell: ts.Cell) -> None:
        while True:
            pass

    def block(self, cell: ts.Cell) -> None:
        self.go.block()

    async def blocked_cleanup(self, cell: ts.Cell) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.go.block()


class BusyOnTasks(Busy):
    subshell_host: Host = TaskHost()  # type: ignore[misc]


# --------------------------------------------------------------------------------- create, list


async def test_create_list_delete() -> None:
    async with served(CellsKernel()) as at:
        ids = [await at.client.create_subshell() for _ in range(3)]
        assert len(set(ids)) == 3
        listed = (await at.client.control("list_subshell_request")).content
        assert listed == {"status": "ok", "subshell_id": ids}
        deleted = (await at.client.control("delete_subshell_request", subshell_id=ids[1])).content
        assert deleted == {"status": "ok"}
        listed = (await at.client.control("list_subshell_request")).content
        assert listed["subshell_id"] == [ids[0], ids[2]]
        again = (await at.client.control("delete_subshell_request", subshell_id=ids[1])).content
        assert again["ename"] == "UnknownSubshell"
        assert ids[1] in again["evalue"]


async def test_a_kernel_without_subshells_knows_nothing_of_them() -> None:
    class Plain(CellsKernel):
        subshells = False

    async with served(Plain()) as at:
        info = (await at.client.request("kernel_info_request").done()).content
        assert info["supported_features"] == []
        for verb in ("create", "delete", "list"):
            reply = (await at.client.control(f"{verb}_subshell_request", subshell_id="x")).content
            assert reply["ename"] == "UnknownMessageType"


async def test_each_subshell_has_its_state_which_is_left_before_the_reply() -> None:
    lives: list[str] = []

    class Stateful(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[Any]:
            lives.append(f"begin {info.name}")
            try:
                yield f"state of {info.name}"
            finally:
                lives.append(f"end {info.name}")

    kernel = Stateful()

    @kernel.cell
    def show(cell: ts.Cell) -> None:
        cell.stdout(cell.state)

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("show", subshell=subshell_id)
        await exchange.done()
        assert exchange.text() == f"state of {subshell_id}"
        await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        assert lives == ["begin main", f"begin {subshell_id}", f"end {subshell_id}"]
    assert lives[-1] == "end main"


async def test_a_subshell_that_cant_be_set_up_is_an_error_and_leaves_nothing() -> None:
    class Failing(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main:
                raise ValueError("no more room")
            yield

    async with served(Failing()) as at:
        reply = (await at.client.control("create_subshell_request")).content
        assert reply["status"] == "error"
        assert "no more room" in reply["evalue"]
        with pytest.raises(RuntimeError, match="no more room"):
            await at.running.create_subshell()
        assert list(await at.running.subshells()) == [None]
        assert (await at.client.execute("")).status == "ok"


async def test_a_subshell_that_is_long_in_setting_up_keeps_no_other_from_it() -> None:
    is_there, go_on = Flag(), Flag()

    class Slow(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main and not is_there.is_set():
                is_there.set()
                await go_on.wait()
            yield

    async with served(Slow()) as at:
        slow = at.client.control_soon("create_subshell_request")
        await is_there.wait()  # two that are started may come here in any order
        await at.client.create_subshell()
        assert slow.replies == []
        go_on.set()
        assert (await slow.done()).status == "ok"


async def test_a_subshell_that_fails_when_it_ends_is_gone_all_the_same() -> None:
    class FailingAtTheEnd(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            try:
                yield
            finally:
                if not info.is_main:
                    raise ValueError("can't be closed")

    async with served(FailingAtTheEnd()) as at:
        subshell_id = await at.client.create_subshell()
        reply = (
            await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        ).content
        assert reply == {"status": "ok"}
        assert list(await at.running.subshells()) == [None]


# ------------------------------------------------------------------------- delete, with work in it


# A cell that computes on a task would let the test's own loop stand still.
@pytest.mark.parametrize(
    ("kernel_class", "code"), [(Busy, "wait"), (Busy, "spin"), (BusyOnTasks, "wait")]
)
async def test_a_busy_subshell_is_deleted_and_everything_answered(
    kernel_class: type[Busy], code: str
) -> None:
    async with served(kernel_class()) as at:
        doomed, neighbour = [await at.client.create_subshell() for _ in range(2)]
        undisturbed = at.client.execute_soon("wait", subshell=neighbour)
        await undisturbed.output("execute_input")
        running = at.client.execute_soon(code, subshell=doomed)
        await running.output("execute_input")
        queued = [at.client.execute_soon(code, subshell=doomed) for _ in range(5)]
        queued.append(at.client.request("is_complete_request", {"code": ""}, subshell=doomed))
        await at.client.request("kernel_info_request").done()  # so those have arrived
        reply = (await at.client.control("delete_subshell_request", subshell_id=doomed)).content
        assert reply == {"status": "ok"}
        content = (await running.done()).content
        assert content["ename"] == "SubshellDeleted"
        assert content["execution_count"] == 1
        for each in queued:
            assert (await each.done()).status == "aborted"
        late = (await at.client.execute("", subshell=doomed)).content
        assert late["ename"] == "UnknownSubshell"
        assert not undisturbed.replies


async def test_a_subshell_in_a_call_that_doesnt_return_is_reported_and_joined_later() -> None:
    kernel = Busy()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        stuck = at.client.execute_soon("block", subshell=subshell.id)
        await stuck.output("execute_input")
        queued = at.client.execute_soon("", subshell=subshell.id)
        await at.client.request("kernel_info_request").done()
        reply = (
            await at.client.control("delete_subshell_request", subshell_id=subshell.id, timeout=0.1)
        ).content
        assert reply["ename"] == "SubshellUnjoinable"
        assert str(subshell.id) in reply["evalue"]
        # What waited is answered, and the kernel tells where the thread is that is left.
        assert (await queued.done()).status == "aborted"
        assert subshell.state is ts.SubshellState.UNJOINABLE
        listed = (await at.client.control("list_subshell_request")).content
        assert listed["unjoinable"] == listed["subshell_id"] == [subshell.id]
        refused = (await at.client.execute("", subshell=subshell.id)).content
        assert refused["ename"] == "UnknownSubshell"
        assert (await at.client.execute("")).status == "ok"
        again = at.client.control_soon("delete_subshell_request", subshell_id=subshell.id)
        await again.busy()
        kernel.go.set()
        assert (await again.done()).content == {"status": "ok"}
        assert (await stuck.done()).status in {"ok", "error"}
        assert subshell.state is ts.SubshellState.DELETED


async def test_code_that_blocks_when_it_is_cancelled_delays_its_own_delete_only() -> None:
    kernel = Busy()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("blocked_cleanup", subshell=subshell_id)
        await cell.output("execute_input")
        delete = at.client.control_soon("delete_subshell_request", subshell_id=subshell_id)
        await delete.busy()
        other = await at.client.create_subshell()
        await at.client.execute("", subshell=other)
        await at.client.control("delete_subshell_request", subshell_id=other)
        assert not delete.replies
        kernel.go.set()
        assert (await delete.done()).content == {"status": "ok"}
        assert (await cell.done()).ename == "SubshellDeleted"


async def test_two_deletes_of_one_subshell() -> None:
    kernel = Busy()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("blocked_cleanup", subshell=subshell_id)
        await cell.output("execute_input")
        deletes = [
            at.client.control_soon("delete_subshell_request", subshell_id=subshell_id)
            for _ in range(2)
        ]
        for each in deletes:
            await each.busy()
        kernel.go.set()
        assert [(await each.done()).content for each in deletes] == [{"status": "ok"}] * 2


async def test_many_come_and_go_at_once() -> None:
    async with served(CellsKernel()) as at:
        created = [at.client.control_soon("create_subshell_request") for _ in range(20)]
        ids = [(await each.done()).content["subshell_id"] for each in created]
        executed = [at.client.execute_soon("", subshell=each) for each in ids for _ in range(3)]
        deleted = [
            at.client.control_soon("delete_subshell_request", subshell_id=each) for each in ids
        ]
        for each in deleted:
            assert (await each.done()).content == {"status": "ok"}
        for each in executed:
            content = (await each.done()).content
            assert content["status"] in {"ok", "aborted", "error"}
            if content["status"] == "error":
                assert content["ename"] in {"UnknownSubshell", "SubshellDeleted"}
        assert list(await at.running.subshells()) == [None]


async def test_a_timeout_is_a_number_of_seconds() -> None:
    async with served(CellsKernel()) as at:
        subshell_id = await at.client.create_subshell()
        for wrong in ("1", True, [1]):
            reply = (
                await at.client.control(
                    "delete_subshell_request", subshell_id=subshell_id, timeout=wrong
                )
            ).content
            assert reply["ename"] == "MalformedMessage"
            assert "'timeout'" in reply["evalue"]
        assert subshell_id in await at.running.subshells()
        for wrong in (-1, float("nan"), 10**400):
            with pytest.raises(ValueError, match="timeout"):
                await at.running.delete_subshell(subshell_id, timeout=wrong)
        for wrong in (-1, 10**400):
            reply = (
                await at.client.control(
                    "delete_subshell_request", subshell_id=subshell_id, timeout=wrong
                )
            ).content
            assert reply["status"] == "error"
            assert "timeout" in reply["evalue"]
        assert subshell_id in await at.running.subshells()
        await at.running.delete_subshell(subshell_id, timeout=float("inf"))


# -------------------------------------------------------------------------------------- interrupt


async def test_an_interrupt_of_all_ends_what_runs_everywhere() -> None:
    async with served(Busy()) as at:
        ids = [None, await at.client.create_subshell(), await at.client.create_subshell()]
        cells = [
            at.client.execute_soon("wait" if each is None else "spin", subshell=each)
            for each in ids
        ]
        for each in cells:
            await each.output("execute_input")
        assert (await at.client.control("interrupt_request")).content == {"status": "ok"}
        for each in cells:
            assert (await each.done()).ename == "KeyboardInterrupt"


async def test_an_interrupt_of_one_leaves_the_others_alone() -> None:
    async with served(Busy()) as at:
        one, other = [await at.client.create_subshell() for _ in range(2)]
        hit = at.client.execute_soon("spin", subshell=one)
        spared = at.client.execute_soon("wait", subshell=other)
        await hit.output("execute_input")
        await spared.output("execute_input")
        await at.client.control("interrupt_request", subshell_id=one)
        assert (await hit.done()).ename == "KeyboardInterrupt"
        assert not spared.replies
        unknown = (await at.client.control("interrupt_request", subshell_id="nobody")).content
        assert unknown["ename"] == "UnknownSubshell"


async def test_an_interrupt_when_nothing_runs_does_nothing() -> None:
    async with served(Busy()) as at:
        assert (await at.client.control("interrupt_request")).content == {"status": "ok"}
        assert (await at.client.execute("")).status == "ok"


async def test_an_interrupt_aborts_what_is_queued_behind() -> None:
    async with served(Busy()) as at:
        cell = at.client.execute_soon("wait")
        queued = at.client.execute_soon("")
        await cell.output("execute_input")
        await at.client.control("interrupt_request")
        assert (await cell.done()).ename == "KeyboardInterrupt"
        assert (await queued.done()).status == "aborted"


async def test_an_interrupt_that_has_no_effect_says_so() -> None:
    kernel = Busy()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        cell = at.client.execute_soon("block", subshell=subshell.id)
        await cell.output("execute_input")
        with pytest.raises(TimeoutError, match=str(subshell.id)):
            await subshell.interrupt(timeout=0.1)
        kernel.go.set()
        await cell.done()


async def test_a_signals_interrupt_is_left_to_the_kernel() -> None:
    async with served(Busy()) as at:
        cell = at.client.execute_soon("wait")
        await cell.output("execute_input")
        at.running.interrupt_soon()
        assert (await cell.done()).ename == "KeyboardInterrupt"
    at.running.interrupt_soon()  # Ctrl-C once more, at the very end, is no error


# --------------------------------------------------------------------------------------- shutdown


async def test_a_shutdown_ends_everything_and_is_answered() -> None:
    async with served(Busy()) as at:
        subshell_id = await at.client.create_subshell()
        cells = [
            at.client.execute_soon("wait"),
            at.client.execute_soon("spin", subshell=subshell_id),
        ]
        for each in cells:
            await each.output("execute_input")
        queued = at.client.execute_soon("", subshell=subshell_id)
        await at.client.request("kernel_info_request").done()
        reply = (await at.client.control("shutdown_request", restart=True)).content
        assert reply == {"status": "ok", "restart": True}
        for each in cells:
            assert (await each.done()).ename == "KernelShutdown"
        assert (await queued.done()).status == "aborted"
        await at.running.wait_closed()
        late = (await at.client.execute("")).content
        assert late["ename"] == "UnknownSubshell"
        assert "shutting down" in late["evalue"]
        late = (await at.client.control("create_subshell_request")).content
        assert "shutting down" in late["evalue"]


async def test_a_shutdown_doesnt_hang_on_what_cant_be_ended() -> None:
    kernel, told = Busy(), Flag()

    async def give_up(status: int) -> None:
        told.set()

    async with served(kernel, on_unjoinable=give_up) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("block", subshell=subshell_id)
        await cell.output("execute_input")
        reply = (await at.client.control("shutdown_request")).content
        assert reply["status"] == "ok"
        await at.running.wait_closed()
        await told.wait()
        kernel.go.set()  # leaving the block waits for it


async def test_two_shutdowns() -> None:
    async with served(Busy()) as at:
        replies = [at.client.control_soon("shutdown_request") for _ in range(2)]
        for each in replies:
            assert (await each.done()).status == "ok"


async def test_a_shutdown_while_a_delete_is_still_going_on() -> None:
    kernel = Busy()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("blocked_cleanup", subshell=subshell_id)
        await cell.output("execute_input")
        delete = at.client.control_soon("delete_subshell_request", subshell_id=subshell_id)
        await delete.busy()
        shutdown = at.client.control_soon("shutdown_request")
        await shutdown.busy()
        kernel.go.set()
        assert (await delete.done()).content == {"status": "ok"}
        assert (await shutdown.done()).status == "ok"
        assert (await cell.done()).ename == "SubshellDeleted"


async def test_a_shutdown_ends_a_subshell_that_is_being_set_up() -> None:
    begun = Flag()

    class Slow(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main:
                begun.set()
                await trio.sleep_forever()
            yield

    async with served(Slow()) as at:
        create = at.client.control_soon("create_subshell_request")
        await begun.wait()
        assert (await at.client.control("shutdown_request")).status == "ok"
        assert (await create.done()).status == "error"


async def test_a_shutdown_that_comes_while_a_subshell_is_started() -> None:
    """Its place (a thread, say) takes time to be had; it is ended as soon as it is there."""
    waiting, go = Flag(), Flag()

    class SlowHost:
        kind = "slow"

        async def run(self, body: Callable[[], Awaitable[None]], **options: Any) -> None:
            waiting.set()
            await go.wait()
            await body()

    class Slow(CellsKernel):
        subshell_host = SlowHost()

    async with served(Slow()) as at:
        create = at.client.control_soon("create_subshell_request")
        await waiting.wait()
        shutdown = at.client.control_soon("shutdown_request")
        await shutdown.busy()
        assert not shutdown.replies
        go.set()
        reply = (await create.done()).content
        assert reply["status"] == "error"
        assert "shutting down" in reply["evalue"]
        assert (await shutdown.done()).status == "ok"


async def test_a_shutdown_doesnt_hang_on_what_cant_be_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting, told, go = Flag(), Flag(), Flag()

    class StuckHost:
        kind = "stuck"

        async def run(self, body: Callable[[], Awaitable[None]], **options: Any) -> None:
            waiting.set()
            await go.wait()
            await body()

    class Stuck(CellsKernel):
        subshell_host = StuckHost()

    async def give_up(status: int) -> None:
        told.set()

    async with served(Stuck(), on_unjoinable=give_up) as at:
        creates = [at.client.control_soon("create_subshell_request") for _ in range(2)]
        await waiting.wait()
        assert (await at.client.control("shutdown_request")).status == "ok"
        assert "a subshell that is being started" in caplog.text
        await told.wait()
        go.set()
        for create in creates:
            assert (await create.done()).status == "error"
        check_protocol(at.client)
