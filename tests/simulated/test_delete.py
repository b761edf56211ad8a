"""Deleting subshells: what runs there ends, what waits is aborted, nothing comes afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

import trio_subshells as ts
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import WordsKernel, answered_before, call_into_c, check, compute


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
