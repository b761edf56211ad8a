"""Comm messages and requests: which one waits for the other, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

import trio_subshells as ts
from trio_subshells.testing import explore_schedules, simulated_kernel
from trio_subshells.testing._client import Client, Exchange

from .kernels import Flag, WordsKernel, check, compute


def comm(client: Client, **data: Any) -> Exchange:
    return client.request("comm_msg", {"comm_id": "c", "data": data})


@explore_schedules(60, lag=0.5)  # else the cells' patience may end first
async def test_a_cell_gets_what_a_comm_message_brings() -> None:
    moved = Flag()

    class Slider(WordsKernel):
        value = 0

        async def comm_message(self, message: ts.CommMessage) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            self.value = message.data["value"]
            if self.value == 3:
                moved.set()

    slider = Slider()

    @slider.cell
    async def read(cell: ts.Cell) -> None:
        cell.stdout(str(slider.value))

    @slider.cell
    async def follows(cell: ts.Cell) -> None:
        await moved.wait()

    async with simulated_kernel(slider) as kernel:
        client = kernel.client
        comm(client, value=2)
        cells = [client.execute_soon("read") for _ in range(3)]
        for cell in cells:
            await cell.done()
            assert cell.text() == "2"
        following = client.execute_soon("follows")
        await following.output("execute_input")
        comm(client, value=3)
        assert (await following.done()).status == "ok"
        await check(kernel.client)


@explore_schedules(40, lag=0.5)  # else the cell's patience may end first
async def test_a_cell_comes_after_all_comm_messages_before_it() -> None:
    """Which are handled in their order."""
    handled: list[int] = []

    class Noting(WordsKernel):
        async def comm_message(self, message: ts.CommMessage) -> None:
            await trio.lowlevel.checkpoint()
            handled.append(message.data["number"])

    noting = Noting()

    @noting.cell
    def read(cell: ts.Cell) -> None:
        cell.stdout(str(handled))

    async with simulated_kernel(noting) as kernel:
        client = kernel.client
        for number in range(3):
            comm(client, number=number)
        cell = client.execute_soon("read")
        assert (await cell.done()).status == "ok"
        assert cell.text() == "[0, 1, 2]"
        await check(client)


class WaitsForACell(WordsKernel):
    """Its handler of comm messages waits until the cell ``opens`` has run."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = Flag()
        self.cell(self.opens)

    async def comm_message(self, message: ts.CommMessage) -> None:
        await self._opened.wait()

    def opens(self, cell: ts.Cell) -> None:
        self._opened.set()


@explore_schedules(40)
async def test_a_handler_that_waits_for_a_cell_gets_it() -> None:
    async with simulated_kernel(WaitsForACell()) as kernel:
        comm(kernel.client)
        assert (await kernel.client.execute("opens")).status == "ok"
        await check(kernel.client)


@explore_schedules(40, lag=0)
async def test_a_cell_waits_for_no_comm_message_that_comes_after_it() -> None:
    async with simulated_kernel(WaitsForACell()) as kernel:
        client = kernel.client
        start = trio.current_time()
        cells = [client.execute_soon(code) for code in ("sleep 0.1", "opens")]
        comm(client)
        for cell in cells:
            assert (await cell.done()).status == "ok"
        assert trio.current_time() - start < 0.5
        await check(client)


@explore_schedules(40)
async def test_a_comm_message_is_interrupted_by_itself() -> None:
    begun = Flag()

    class Waiting(WordsKernel):
        async def comm_message(self, message: ts.CommMessage) -> None:
            if message.data:
                begun.set()
                await trio.sleep_forever()

    async with simulated_kernel(Waiting()) as kernel:
        client = kernel.client
        cell = client.execute_soon("wait")
        await cell.output("execute_input")
        await comm(client).idle()
        comm(client, waits=True)
        await begun.wait()
        assert not cell.replies
        assert (await kernel.interrupt()).status == "ok"
        assert (await cell.done()).ename == "KeyboardInterrupt"
        await check(kernel.client)


@explore_schedules(40, lag=0)
async def test_a_cell_waits_no_longer_than_it_must() -> None:
    class Slow(WordsKernel):
        async def comm_message(self, message: ts.CommMessage) -> None:
            await trio.sleep(0.1)

    async with simulated_kernel(Slow()) as kernel:
        start = trio.current_time()
        comm(kernel.client)
        assert (await kernel.client.execute("say")).status == "ok"
        assert trio.current_time() - start < 0.5
        await check(kernel.client)


@explore_schedules(40)
async def test_what_a_comm_message_leaves_computing_ends_with_its_subshell() -> None:
    begun = Flag()

    class Leaving(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[trio.Nursery]:
            async with trio.open_nursery() as nursery:
                yield nursery

        async def comm_message(self, message: ts.CommMessage) -> None:
            message.state.start_soon(self._left)

        async def _left(self) -> None:
            begun.set()
            compute()

    async with simulated_kernel(Leaving()) as kernel:
        subshell = await kernel.create_subshell()
        kernel.client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell)
        await begun.wait()
        assert (await kernel.delete_subshell(subshell)).status == "ok"
        await check(kernel.client)
