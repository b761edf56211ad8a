"""Deleting subshells: what runs there ends, what waits is aborted, nothing comes afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from unittest import mock

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel._output import OutputPort
from trio_subshells.testing import explore_schedules, simulated_kernel
from trio_subshells.wire import Header

from .kernels import (
    Flag,
    WordsKernel,
    answered_before,
    call_into_c,
    check,
    compute,
    the_simulation,
)


class SlowToLeave(WordsKernel):
    """The end of its subshells takes a while; it notes each."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str | None] = []

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.5)
                self.left.append(info.id)


@explore_schedules(60)
async def test_a_delete_is_answered_last() -> None:
    words = SlowToLeave()
    async with simulated_kernel(words) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cells = [client.execute_soon(code, subshell=subshell) for code in ("say", "wait", "next")]
        # The second one comes while the first is under way, or finds nothing any more.
        deletes = [
            client.control_soon("delete_subshell_request", subshell_id=subshell) for _ in range(2)
        ]
        for delete in deletes:
            await delete.reply()
            assert words.left == [subshell]
            assert not any(subshell in name for name in kernel.threads)
            later = client.control_soon("list_subshell_request")
            assert (await later.reply()).content["subshell_id"] == []
        for cell in cells:
            if (await cell.done()).ename != "UnknownSubshell":
                assert answered_before(client, cell, deletes[0])
        assert {(await each.done()).ename for each in deletes} <= {None, "UnknownSubshell"}
        await check(kernel.client)


@explore_schedules(60)
async def test_whatever_runs_is_ended() -> None:
    """A cell that shields itself, one that catches what strikes it, and what one left behind."""
    words = SlowToLeave()

    @words.cell
    async def shields(cell: ts.Cell) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    @words.cell
    def leaves(cell: ts.Cell) -> None:
        async def left() -> None:
            compute()

        cell.state.start_soon(left)

    @words.cell
    def catches(cell: ts.Cell) -> None:
        for _ in range(3):
            with suppress(KeyboardInterrupt):
                compute()

    async with simulated_kernel(words) as kernel:
        subshells = {code: await kernel.create_subshell() for code in words.functions}
        cells = [
            kernel.client.execute_soon(code, subshell=subshell)
            for code, subshell in subshells.items()
            for code in ("say", code)
        ]
        deletes = [
            kernel.client.control_soon("delete_subshell_request", subshell_id=subshell)
            for subshell in subshells.values()
        ]
        for delete in deletes:
            assert (await delete.done()).status == "ok"
        for cell in cells:
            await cell.done()
        await check(kernel.client)


@explore_schedules(40)
async def test_a_comm_handler_that_shields_itself_is_ended() -> None:
    class Shields(WordsKernel):
        async def comm_open(self, comm: ts.CommMessage) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()

    async with simulated_kernel(Shields()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        content = {"comm_id": "1", "target_name": "t", "data": {}}
        comm = client.request("comm_open", content, subshell=subshell)
        await comm.output("status")
        delete = client.control_soon("delete_subshell_request", subshell_id=subshell)
        assert (await delete.done()).status == "ok"
        await check(client)


@explore_schedules(40)
async def test_a_handle_tells_the_whole_life_of_its_subshell() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.running.create_subshell()
        assert subshell.state is ts.SubshellState.IDLE
        stuck = client.execute_soon("stick 20", subshell=subshell.id)
        await stuck.output("execute_input")
        assert subshell.state is ts.SubshellState.BUSY
        delete = await client.control("delete_subshell_request", subshell_id=subshell.id, timeout=2)
        assert delete.status == "error"
        assert subshell.state is ts.SubshellState.UNJOINABLE
        while (await client.control("list_subshell_request")).content["subshell_id"]:  # noqa: ASYNC110
            await trio.sleep(1)
        assert subshell.state is ts.SubshellState.DELETED
        await check(client)


@explore_schedules(60)
async def test_what_is_stuck_is_given_up() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        stuck = client.execute_soon("stick 20", subshell=subshell)
        await stuck.output("execute_input")
        queued = client.execute_soon("next", subshell=subshell)
        delete = client.control_soon("delete_subshell_request", subshell_id=subshell, timeout=2)
        info = await client.control("kernel_info_request")
        assert info.status == "ok"
        assert not delete.replies
        assert (await delete.done()).ename == "SubshellUnjoinable"
        assert (await stuck.done()).ename == "SubshellDeleted"
        assert answered_before(client, stuck, delete)
        assert (await queued.done()).status in {"aborted", "error"}
        again = await kernel.delete_subshell(subshell, timeout=60)
        assert again.ename in {None, "UnknownSubshell"}
        assert await kernel.subshells() == []
        await check(kernel.client)


@explore_schedules(150)
async def test_it_is_answered_once_whenever_it_is_given_up() -> None:
    """Some of the cells are served, one may be about to, the others wait."""
    words = WordsKernel()

    @words.cell
    def sticks(cell: ts.Cell) -> None:
        call_into_c(1)
        compute()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cells = [client.execute_soon(code, subshell=subshell) for code in ("say", "sticks", "on")]
        await cells[0].busy()
        for timeout in (0, 1, 60):
            deleted = await kernel.delete_subshell(subshell, timeout=timeout)
        assert deleted.ename in {None, "UnknownSubshell"}
        assert await kernel.subshells() == []
        assert not any(subshell in name for name in kernel.threads)
        for cell in cells:
            await cell.done()
        await trio.sleep(1)  # all that was published has come
        await check(client)


@explore_schedules(250)
async def test_it_is_heard_in_order_though_it_ends_while_it_is_given_up() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cell = client.execute_soon("wait", subshell=subshell)
        await cell.output("execute_input")
        # What doesn't come by the same way may be here long before.
        kernel.faults.delay("*subshell* > iopub*", seconds=10)
        delete = client.control_soon("delete_subshell_request", subshell_id=subshell, timeout=0)
        for each in (cell, delete):
            assert (await each.done()).ename in {None, "SubshellDeleted", "SubshellUnjoinable"}
        await check(client)


@pytest.mark.parametrize("what", ["cell", "comm message"])
@explore_schedules(40)
async def test_it_is_busy_before_it_is_idle_though_it_is_given_up(what: str) -> None:
    """Its thread is held up as it says so."""
    held_up = Flag()
    say = OutputPort.status

    def say_late(port: OutputPort, state: str, parent: Header | None) -> bool:
        thread = the_simulation().thread
        if state == "busy" and thread is not None and subshell in thread.name:
            held_up.set()
            call_into_c(1)
        return say(port, state, parent)

    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        with mock.patch.object(OutputPort, "status", say_late):
            if what == "cell":
                client.execute_soon("say", subshell=subshell)
            else:
                client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell)
            await held_up.wait()
            await kernel.delete_subshell(subshell, timeout=0)
            await check(client)


@explore_schedules(40)
async def test_a_comm_message_is_heard_in_order_though_its_subshell_ends() -> None:
    begun = Flag()

    class Waiting(WordsKernel):
        async def comm_message(self, message: ts.CommMessage) -> None:
            begun.set()
            await trio.sleep_forever()

    async with simulated_kernel(Waiting()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell)
        # What doesn't come by the same way may be here long before.
        kernel.faults.delay("*subshell* > iopub*", seconds=10)
        await begun.wait()
        assert (await kernel.delete_subshell(subshell)).status == "ok"
        await check(client)


@explore_schedules(200)
async def test_what_is_aborted_while_it_is_given_up_is_answered_once() -> None:
    """Its subshell has just been told what there is to abort, and the shell channel aborts it."""
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        for code in ("fail", "next", "next"):
            client.execute_soon(code, subshell=subshell)
        delete = client.control_soon("delete_subshell_request", subshell_id=subshell, timeout=0)
        await delete.done()
        await check(client)
