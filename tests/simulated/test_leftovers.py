"""What cells leave running in the author's nursery ends with their subshell, and is no failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

import trio_subshells as ts
from trio_subshells.testing import check_protocol, explore, explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, check, compute
from .programs import ProgramKernel


@pytest.mark.parametrize("in_subshell", [True, False])
def test_what_awaits_is_cancelled(in_subshell: bool) -> None:
    async def body() -> None:
        async with simulated_kernel(ProgramKernel()) as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            assert (await kernel.client.execute("1: task", subshell=subshell)).status == "ok"
            # While the shell is in a call, who ends it loses patience.
            cell = kernel.client.execute_soon("2: call", subshell=subshell)
            await cell.output("execute_input")
            if subshell is not None:
                assert (await kernel.delete_subshell(subshell)).status == "ok"
            await kernel.shutdown()
            await cell.done()
            check_protocol(kernel.client)

    explore(body, schedules=60)


@pytest.mark.parametrize("in_subshell", [True, False])
@pytest.mark.parametrize("how", ["interrupt", "timeout"])
def test_what_computes_is_struck(how: str, in_subshell: bool) -> None:
    """Together with its cell. It isn't a part of that, and nobody's failure."""

    async def body() -> None:
        async with simulated_kernel(ProgramKernel()) as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            timeout = 1 if how == "timeout" else None
            cell = kernel.client.execute_soon("1: leave, await", subshell=subshell, timeout=timeout)
            await cell.output("execute_input")
            if how == "interrupt":
                await kernel.client.control("interrupt_request")
            assert (await cell.done()).status == "error"
            assert (await kernel.client.execute("2: nap", subshell=subshell)).status == "ok"
            await kernel.shutdown()
            check_protocol(kernel.client)

    explore(body, schedules=60)


class NurseryKernel(WordsKernel):
    """A subshell's state is a nursery, whose tasks outlive the cells that start them."""

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


@explore_schedules(40)
async def test_what_goes_on_computing_is_struck_until_it_ends() -> None:
    words = NurseryKernel()
    computing = Flag()

    async def task() -> None:
        await trio.sleep(1)
        computing.set()
        for _ in range(4):
            with suppress(KeyboardInterrupt):
                compute()

    @words.cell
    def leaves(cell: ts.Cell) -> None:
        cell.state.start_soon(task)

    async with simulated_kernel(words) as kernel:
        subshell = await kernel.create_subshell()
        assert (await kernel.client.execute("leaves", subshell=subshell)).status == "ok"
        await computing.wait()
        assert (await kernel.delete_subshell(subshell)).status == "ok"
        await check(kernel.client)
