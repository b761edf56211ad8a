"""Subshells among themselves: one that dies, and what becomes of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import Host
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, check


@explore_schedules(60)
async def test_a_subshell_that_dies_answers_everything() -> None:
    dies = Flag()

    class Dying(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                if not info.is_main:
                    nursery.start_soon(self.die)
                yield
                nursery.cancel_scope.cancel()

        async def die(self) -> None:
            await dies.wait()
            raise ValueError("as was wanted")

    async with simulated_kernel(Dying()) as kernel:
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


@explore_schedules(2, max_steps=100_000)
async def test_however_much_is_aborted_at_a_time_all_of_it_is_answered() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        busy = client.execute_soon("block")
        await busy.output("execute_input")
        queued = [client.execute_soon("on") for _ in range(1100)]
        await client.request("kernel_info_request").reply()
        assert (await kernel.interrupt()).status == "ok"
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
