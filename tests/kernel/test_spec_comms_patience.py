"""A comm handler that awaits what never comes doesn't take the subshell away."""

from __future__ import annotations

import trio

import trio_subshells as ts

from .helpers import CellsKernel, Flag, served


class StuckKernel(CellsKernel):
    """Its comm handler never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = Flag()

    async def comm_message(self, message: ts.CommMessage) -> None:
        self.stuck.set()
        await trio.sleep_forever()


async def test_a_cell_runs_behind_a_comm_handler_that_never_ends() -> None:
    kernel = StuckKernel()

    @kernel.cell
    def work(cell: ts.Cell) -> None:
        cell.stdout("done")

    async with served(kernel) as here:
        here.client.request("comm_msg", {"comm_id": "comm", "data": {}})
        await kernel.stuck.wait()
        with trio.fail_after(60):
            assert (await here.client.execute("work")).status == "ok"
