"""Timeouts of cells: each ends its own cell, in time, and leaves nothing behind."""

from __future__ import annotations

import trio

import trio_subshells as ts
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import WordsKernel, check, tasks_of


@explore_schedules(60)
async def test_a_timeout_is_its_own_cells() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        cells = [
            client.execute_soon("say", timeout=0.5, stop_on_error=False),
            client.execute_soon("sleep 2"),
            client.execute_soon("sleep 0.4", timeout=0.5, stop_on_error=False),
            client.execute_soon("wait", timeout=2),
            client.execute_soon("say", timeout=100),
        ]
        replies = [await cell.done() for cell in cells]
        assert replies[1].status == "ok"
        assert replies[3].ename == "CellTimeout"
        await check(kernel.client)


@explore_schedules(100)
async def test_a_timeout_that_comes_too_late_ends_nothing() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        for _ in range(2):
            ending = client.execute_soon("sleep 1", timeout=1, stop_on_error=False)
            next_one = client.execute_soon("sleep 2")
            assert (await ending.done()).ename in {None, "CellTimeout"}
            assert (await next_one.done()).status == "ok"
        await check(client)


@explore_schedules(40)
async def test_a_timeout_ends_with_its_cell() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        await kernel.client.execute("say")
        await trio.sleep(10)
        before = tasks_of("kernel/io")
        for code in ("say", "fail", "sleep 1"):
            await kernel.client.execute_soon(code, timeout=3600).done()
        await kernel.client.execute_soon("block", timeout=1).done()
        await trio.sleep(10)
        left = tasks_of("kernel/io") - before
        assert not left
        await check(kernel.client)


@explore_schedules(60)
async def test_what_is_stuck_is_given_up() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        stuck = client.execute_soon("stick 60", timeout=2, stop_on_error=False)
        waiting = client.execute_soon("wait")
        assert (await stuck.done()).ename == "CellTimeout"
        assert trio.current_time() < 30
        assert (await waiting.done()).ename == "ShellOccupied"
        assert (await client.execute("say")).ename == "ShellOccupied"
        await trio.sleep(60)
        assert (await client.execute("say")).status == "ok"
        await check(kernel.client)


@explore_schedules(40)
async def test_a_cell_has_all_the_time_to_end_that_it_is_given_after_its_timeout() -> None:
    """However long that was: who returns in time isn't given up."""
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        late = client.execute_soon("stick 12", timeout=10, stop_on_error=False)
        next_one = client.execute_soon("say")
        assert (await late.done()).ename in {None, "CellTimeout"}
        assert (await next_one.done()).status == "ok"
        await check(client)


@explore_schedules(60, lag=0)
async def test_what_has_come_before_a_cell_is_given_up_is_aborted() -> None:
    """As it would be by a cell that fails; what comes later is told that the shell is occupied."""
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        requests = client._sockets["shell"]._line
        shell = kernel.running._parts.shell._queue
        told: list[int] = []
        take = requests._arrived

        def arrive(message: list[bytes]) -> None:
            told.append(shell.statistics().sent)
            take(message)

        metadata = {"timeout": 0.25, "give_up_after": 0.75}
        stuck = client.request("execute_request", {"code": "stick 60"}, metadata=metadata)
        await stuck.output("execute_input")
        before = shell.statistics().sent
        requests._arrived = arrive
        await trio.sleep_until(stuck.asked.time + 1)
        cell = client.execute_soon("say")
        assert (await stuck.done()).ename == "CellTimeout"
        answer = await cell.done()
        assert answer.status == "aborted" or (answer.ename, told) == ("ShellOccupied", [before + 1])
        assert (await client.execute("say")).ename == "ShellOccupied"
        await trio.sleep(60)
        await check(client)


@explore_schedules(60)
async def test_a_cell_with_a_timeout_spawns_a_subshell() -> None:
    words = WordsKernel()

    @words.cell
    async def spawns(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            assert (await subshell.execute("on", silent=True)).status == "ok"

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("spawns", timeout=1000)
        assert (await cell.done()).status == "ok"
        assert await kernel.subshells() == []
        await check(kernel.client)


@explore_schedules(60)
async def test_what_returns_as_it_is_given_up_is_answered_once() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        cells = [client.execute_soon("stick 7", timeout=2), client.execute_soon("say")]
        for cell in cells:
            await cell.done()
        late = await client.execute("say")
        while late.ename == "ShellOccupied":  # the call returns now, but that may be held up
            await trio.sleep(1)
            late = await client.execute("say")
        assert late.status == "ok"
        await check(client)
