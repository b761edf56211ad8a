"""What an error aborts: the executes that had been sent before it was known, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import trio

import trio_subshells as ts
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, answered_before, check


@explore_schedules(100)
async def test_what_had_come_is_aborted() -> None:
    words = WordsKernel()
    come = Flag()

    @words.cell
    async def fails(cell: ts.Cell) -> None:
        await come.wait()
        raise ts.CellError("Failed", "as was wanted", [])

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        cells = [client.execute_soon(code) for code in ("fails", "one", "other")]
        completion = client.request("complete_request", {"code": "", "cursor_pos": 0})
        await client.request("kernel_info_request").reply()  # which the shell channel answers
        come.set()
        assert (await cells[0].reply()).ename == "Failed"
        later = client.execute_soon("later")
        assert (await later.done()).status == "ok"
        assert [(await cell.done()).status for cell in cells[1:]] == ["aborted", "aborted"]
        assert (await completion.done()).status == "ok"
        assert words.executed == ["fails", "later"]
        await check(kernel.client)
        for each, following in pairwise([*cells, later]):
            assert answered_before(client, each, following)


@explore_schedules(100)
async def test_what_is_no_execute_is_served_though_it_came_before_an_error() -> None:
    """Whether it was still in the socket when the error was known, or in its subshell already."""
    words = WordsKernel()

    @words.cell
    async def fails(cell: ts.Cell) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        raise ts.CellError("Failed", "as was wanted", [])

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        for _ in range(3):
            cell = client.execute_soon("fails")
            others = [
                client.request("complete_request", {"code": "", "cursor_pos": 0}),
                client.request("kernel_info_request"),
                client.request("comm_info_request"),
                client.request("kernel_info_request"),
            ]
            assert (await cell.done()).ename == "Failed"
            for each in others:
                assert (await each.done()).status == "ok"
        await check(client)


@explore_schedules(40)
async def test_nothing_is_aborted_without_need() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cells = [
            client.execute_soon("fail", subshell=subshell, stop_on_error=False),
            client.execute_soon("one", subshell=subshell),
            client.execute_soon("fail"),
            client.execute_soon("other", subshell=subshell),
        ]
        statuses = [(await cell.done()).status for cell in cells]
        assert statuses == ["error", "ok", "error", "ok"]
        await check(kernel.client)
        await kernel.delete_subshell(subshell)
        await check(kernel.client)
