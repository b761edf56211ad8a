"""A cell that asks for input, and doesn't wait for it any more."""

from __future__ import annotations

import pytest
import trio

import trio_subshells as ts
from trio_subshells.testing import check_protocol, explore, simulated_kernel

from .programs import ProgramKernel


class ImpatientKernel(ProgramKernel):
    """Its cells ask, and have no patience."""

    async def execute(self, cell: ts.Cell) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cell.input, "? ")
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def test_nobody_is_asked_for_a_cell_that_has_been_answered() -> None:
    async def body() -> None:
        async with simulated_kernel(ImpatientKernel()) as kernel:
            await kernel.client.execute("who?")
            await trio.sleep(1)
            check_protocol(kernel.client)

    explore(body, schedules=60)


@pytest.mark.parametrize("word", ["ask", "input"])
def test_nobody_is_asked_for_a_cell_that_was_interrupted(word: str) -> None:
    async def body() -> None:
        async with simulated_kernel(ProgramKernel()) as kernel:
            cell = kernel.client.execute_soon(f"1: {word}")
            await cell.output("execute_input")
            await kernel.interrupt()
            assert (await cell.done()).ename == "KeyboardInterrupt"
            await kernel.shutdown()
            check_protocol(kernel.client)

    explore(body, schedules=50)
