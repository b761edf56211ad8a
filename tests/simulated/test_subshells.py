"""Subshells among themselves: one that dies, and what becomes of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import Host
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, answered_before, check


class Dying(WordsKernel):
    """Its subshells die when they are told to."""

    def __init__(self, dies: Flag) -> None:
        super().__init__()
        self._dies = dies

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            if not info.is_main:
                nursery.start_soon(self.die)
            yield
            nursery.cancel_scope.cancel()

    async def die(self) -> None:
        await self._dies.wait()
        raise ValueError("as was wanted")


@explore_schedules(60)
async def test_a_subshell_that_dies_answers_everything() -> None:
    dies = Flag()
    async with simulated_kernel(Dying(dies)) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        running, queued = [client.execute_soon(code, subshell=subshell) for code in ("wait", "on")]
        elsewhere = client.execute_soon("sleep 5")
        await client.request("kernel_info_request").reply()
        await running.output("execute_input")
        dies.set()
        assert (await running.done()).ename == "SubshellDied"
        assert (await queued.done()).status == "aborted"
        assert (await client.execute("late", subshell=subshell)).ename == "UnknownSubshell"
        assert (await elsewhere.done()).status == "ok"
        await check(client)


@explore_schedules(40)
async def test_what_a_cell_raises_as_its_subshell_dies_is_not_its_answer() -> None:
    """Together with that it has been cancelled."""
    dies, begun = Flag(), Flag()
    words = Dying(dies)

    @words.cell
    async def fails_at_its_end(cell: ts.Cell) -> None:
        async def fails() -> None:
            try:
                begun.set()
                await trio.sleep_forever()
            finally:
                raise KeyError("at its end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(trio.sleep_forever)

    async with simulated_kernel(words) as kernel:
        subshell = await kernel.create_subshell()
        cell = kernel.client.execute_soon("fails_at_its_end", subshell=subshell)
        await begun.wait()
        dies.set()
        reply = (await cell.done()).content
        assert reply["ename"] == "SubshellDied"
        assert "ValueError: as was wanted" in reply["evalue"]
        await check(kernel.client)


@explore_schedules(100)
async def test_what_is_no_more_owes_nothing() -> None:
    """Whoever is told that there is no such subshell."""
    dies = Flag()
    async with simulated_kernel(Dying(dies)) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cells = [client.execute_soon(code, subshell=subshell) for code in ("wait", *["on"] * 3)]
        await client.request("kernel_info_request").reply()
        await cells[0].output("execute_input")
        dies.set()
        await cells[0].done()
        deleting = client.control_soon("delete_subshell_request", subshell_id=subshell)
        assert (await deleting.reply()).ename in {None, "UnknownSubshell"}
        await check(client)
        assert all(answered_before(client, cell, deleting) for cell in cells)


@pytest.mark.parametrize("host", [ts.TaskHost(), ts.ThreadHost()], ids=["task", "thread"])
@explore_schedules(5)
async def test_however_much_waits_for_a_subshell_all_of_it_is_answered(host: Host) -> None:
    class Hosted(WordsKernel):
        subshell_host = host

    async with simulated_kernel(Hosted()) as kernel:
        client = kernel.client
        for subshell in (None, await kernel.create_subshell()):
            busy = client.execute_soon("block", subshell=subshell)
            await busy.output("execute_input")
            queued = [client.execute_soon("on", subshell=subshell) for _ in range(80)]
            await client.request("kernel_info_request").reply()
            assert (await kernel.interrupt(subshell)).status == "ok"
            for cell in queued:
                await cell.done()
        await check(client)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["main", "subshell"])
@explore_schedules(2, max_steps=100_000)
async def test_however_much_is_aborted_at_a_time_all_of_it_is_answered(elsewhere: bool) -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell() if elsewhere else None
        busy = client.execute_soon("block", subshell=subshell)
        await busy.output("execute_input")
        queued = [client.execute_soon("on", subshell=subshell) for _ in range(1100)]
        await client.request("kernel_info_request").reply()
        assert (await kernel.interrupt(subshell)).status == "ok"
        for cell in queued:
            await cell.done()
        await check(client)


@explore_schedules(100)
async def test_a_reply_that_has_come_is_not_lost_to_a_cancellation() -> None:
    """A subshell replies in order: when the second reply is there, so is the first."""
    words = WordsKernel()
    begun = Flag()
    replies: list[str] = []

    @words.cell
    async def first(cell: ts.Cell) -> None:
        begun.set()
        await trio.sleep(1)

    @words.cell
    async def both(cell: ts.Cell) -> None:
        async def ask_first() -> None:
            with scope:
                replies.append((await subshell.execute("first")).status)

        scope = trio.CancelScope()
        async with ts.spawn_subshell() as subshell, trio.open_nursery() as nursery:
            nursery.start_soon(ask_first)
            await begun.wait()
            await subshell.execute("second")
            scope.cancel()

    async with simulated_kernel(words) as kernel:
        assert (await kernel.client.execute("both")).status == "ok"
        assert replies == ["ok"]
        await check(kernel.client)
