"""Comm messages: their order among the requests, and how their handlers are ended."""

from __future__ import annotations

import time

import trio

import trio_subshells as ts
from trio_subshells.testing import Client

from .helpers import CellsKernel, Flag, served


class CommKernel(CellsKernel):
    """Its comm messages carry a value, which it notes, or have it compute for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.computing = Flag()

    async def comm_message(self, message: ts.CommMessage) -> None:
        match message.data:
            case {"compute": True}:
                self.computing.set()
                while True:
                    time.monotonic()
            case {"value": value}:
                await trio.lowlevel.checkpoint()  # a handler may await, too
                self.events.append(value)


def _say(client: Client, data: dict[str, object], subshell_id: str | None = None) -> None:
    content = {"comm_id": "comm", "data": data}
    client.request("comm_msg", content, subshell=subshell_id)


async def test_a_comm_message_is_heard_before_the_cell_that_was_sent_after_it() -> None:
    """A slider is moved, then a cell that reads it is run: the cell reads the new value."""
    kernel = CommKernel()
    inside, go_on = Flag(), Flag()

    @kernel.cell
    def block(cell: ts.Cell) -> None:
        inside.set()
        go_on.block()

    @kernel.cell
    def read(cell: ts.Cell) -> None:
        kernel.events.append("read")

    async with served(kernel) as here:
        subshell_id = await here.client.create_subshell()
        expected = []
        for number in range(20):
            inside, go_on = Flag(), Flag()
            here.client.execute_soon("block", subshell=subshell_id)
            await inside.wait()
            _say(here.client, {"value": f"move {number}"}, subshell_id)
            reading = here.client.execute_soon("read", subshell=subshell_id)
            # Both have been passed on, as the shell channel answers in order.
            await here.client.request("kernel_info_request").done()
            go_on.set()
            await reading.done()
            expected += [f"move {number}", "read"]
        assert kernel.events == expected


async def test_a_comm_handler_that_computes_can_be_interrupted() -> None:
    kernel = CommKernel()
    async with served(kernel) as here:
        subshell_id = await here.client.create_subshell()
        _say(here.client, {"compute": True}, subshell_id)
        await kernel.computing.wait()
        assert (await here.client.control("interrupt_request")).status == "ok"
        assert (await here.client.execute("", subshell=subshell_id)).status == "ok"


async def test_a_subshell_whose_comm_handler_computes_can_be_deleted() -> None:
    """JupyterLab creates a subshell per comm target: handlers are all that runs in these."""
    kernel = CommKernel()
    async with served(kernel) as here:
        subshell_id = await here.client.create_subshell()
        _say(here.client, {"compute": True}, subshell_id)
        await kernel.computing.wait()
        deleted = here.client.control_soon("delete_subshell_request", subshell_id=subshell_id)
        assert (await deleted.done()).status == "ok"
