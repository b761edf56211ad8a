"""Interrupts: they end what they were meant for, whatever it does, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from unittest import mock

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel._guard import CellGuard, EndReason
from trio_subshells.kernel._ladder import INTERRUPT_TIMEOUT
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, check, compute


@explore_schedules(100)
async def test_what_comes_after_an_interrupt_is_not_its_concern() -> None:
    words = WordsKernel()

    @words.cell
    async def steps(cell: ts.Cell) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    @words.cell
    def catches(cell: ts.Cell) -> None:
        with suppress(KeyboardInterrupt):
            compute(10)

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        for code, after in (("steps", "sleep 2"), ("catches", "fail"), ("say", "block")):
            ending = client.execute_soon(code)
            interrupt = client.control_soon("interrupt_request")
            assert (await interrupt.reply()).status == "ok"
            await ending.reply()
            next_one = client.execute_soon(after, timeout=1000)
            wanted = {"sleep 2": None, "fail": "Failed", "block": "CellTimeout"}[after]
            assert (await next_one.done()).ename == wanted
        await check(client)


@pytest.mark.parametrize("msg_type", ["execute_request", "comm_open"])
@explore_schedules(150, preempt=["trio_subshells.kernel._subshell"])
async def test_who_is_told_of_a_cell_can_end_it(msg_type: str) -> None:
    """From its ``busy`` on, and not only once its code is running."""

    class Waits(WordsKernel):
        async def comm_open(self, comm: ts.CommMessage) -> None:
            await trio.sleep_forever()

    async with simulated_kernel(Waits()) as kernel:
        client = kernel.client
        if msg_type == "execute_request":
            waiting = client.execute_soon("wait")
        else:
            waiting = client.request("comm_open", {"comm_id": "1", "target_name": "t", "data": {}})
        await waiting.output("status")
        assert (await client.control_soon("interrupt_request").reply()).status == "ok"
        await waiting.idle()
        await check(client)


@explore_schedules(30)
async def test_a_cell_that_was_ended_before_it_was_begun_does_nothing() -> None:
    words = WordsKernel()
    begin = CellGuard.cell

    @contextmanager
    def begin_and_end(guard: CellGuard, what: object) -> Iterator[None]:
        with begin(guard, what):
            guard.begin_end(guard.generation, EndReason.INTERRUPTED)
            yield

    async with simulated_kernel(words) as kernel:
        with mock.patch.object(CellGuard, "cell", begin_and_end):
            cell = kernel.client.execute_soon("say")
            assert (await cell.done()).ename == "KeyboardInterrupt"
        assert words.executed == []
        assert [each for each, _ in cell.outputs] == ["execute_input", "error"]


@explore_schedules(100)
async def test_an_interrupt_ends_nothing_once_it_is_answered() -> None:
    words = WordsKernel()
    come = Flag()

    @words.cell
    async def queries(cell: ts.Cell) -> None:
        await come.wait()
        returned = threading.Event()
        with cell.on_cancel(returned.set):
            returned.wait()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        cells = [client.execute_soon(code, stop_on_error=False) for code in ("queries", "sleep 2")]
        await client.request("kernel_info_request").reply()  # both have come
        await cells[0].output("execute_input")
        come.set()
        interrupt = client.control_soon("interrupt_request")
        assert (await interrupt.done()).status == "ok"
        for cell in cells:
            if (await cell.done()).ename is not None:
                begun = await cell.output("execute_input")
                answered = interrupt.replies[0].header.msg_id
                assert client.sent[begun.header.msg_id] < client.sent[answered]
        await check(client)


@explore_schedules(60)
async def test_an_interrupt_is_answered_when_the_cell_has_ended() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        for code in ("wait", "block"):
            cell = client.execute_soon(code, subshell=subshell)
            await cell.output("execute_input")
            start = trio.current_time()
            assert (await kernel.interrupt()).status == "ok"
            assert (await cell.reply()).ename == "KeyboardInterrupt"
            assert trio.current_time() - start < 4
        await check(kernel.client)


@explore_schedules(60)
async def test_each_piece_of_a_cell_is_struck_once() -> None:
    """Those that have been struck may clean up; those that have not are struck, too."""
    words = WordsKernel()
    cleaned: list[str] = []

    async def piece(name: str) -> None:
        try:
            compute()
            raise AssertionError("nothing has ended it")
        finally:
            compute(0.5)
            cleaned.append(name)

    @words.cell
    async def computes(cell: ts.Cell) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(piece, "one")
                nursery.start_soon(piece, "other")
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(clean_up)

    async def clean_up() -> None:
        compute(0.5)
        await trio.sleep(0.5)
        cleaned.append("all")

    async with simulated_kernel(words) as kernel:
        for _ in range(2):
            cell = kernel.client.execute_soon("computes")
            await cell.output("execute_input")
            interrupt = kernel.client.control_soon("interrupt_request")
            assert (await cell.done()).ename == "KeyboardInterrupt"
            assert sorted(cleaned) == ["all", "one", "other"]
            cleaned.clear()
            await interrupt.done()  # in time or not: it takes 2 s
        assert trio.current_time() < 100
        await check(kernel.client)


@explore_schedules(60)
async def test_a_second_interrupt_lifts_shields() -> None:
    words = WordsKernel()

    @words.cell
    async def shields(cell: ts.Cell) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("shields")
        await cell.output("execute_input")
        assert (await kernel.interrupt()).ename == "TimeoutError"
        assert not cell.replies
        assert (await kernel.interrupt()).status == "ok"
        assert (await cell.done()).ename == "KeyboardInterrupt"
        assert trio.current_time() < 25
        await check(kernel.client)


@explore_schedules(60)
async def test_a_canceller_is_called_as_long_as_it_is_there() -> None:
    words = WordsKernel()

    class Quit(BaseException):
        pass

    @words.cell
    async def queries(cell: ts.Cell) -> None:
        def cancel(cancelled: Flag) -> None:
            cancelled.set()
            raise Quit("which is no reason to quit")

        with trio.CancelScope(shield=True):
            for _ in range(2):
                cancelled = Flag()
                with cell.on_cancel(partial(cancel, cancelled)):
                    await cancelled.wait()

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("queries")
        await cell.output("execute_input")
        assert (await kernel.interrupt()).status == "ok"
        await check(kernel.client)


@explore_schedules(60)
async def test_a_canceller_is_called_within_its_block() -> None:
    words = WordsKernel()
    answered = Flag()
    connected = [True]
    called: list[bool] = []

    @words.cell
    async def queries(cell: ts.Cell) -> None:
        with cell.on_cancel(lambda: called.append(connected[-1])):
            await answered.wait()
        connected.append(False)
        await trio.lowlevel.checkpoint()

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("queries")
        await cell.output("execute_input")
        interrupt = kernel.client.control_soon("interrupt_request")
        await interrupt.busy()
        answered.set()
        assert (await interrupt.done()).status == "ok"
        assert all(called)
        await check(kernel.client)


@explore_schedules(100)
async def test_an_interrupt_of_all_ends_who_waits_for_another_cell() -> None:
    """The inner cell may end first; its reply is no reason to go on."""
    words = WordsKernel()

    @words.cell
    async def spawns(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            await subshell.execute("inner", silent=True)
            cell.stdout("and on it goes")

    @words.cell
    async def asks(cell: ts.Cell) -> None:
        await ts.current_kernel().main.execute("inner", silent=True)
        cell.stdout("and on it goes")

    @words.cell
    async def inner(cell: ts.Cell) -> None:
        begun.set()
        await trio.sleep_forever()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        for code, where in (("spawns", None), ("asks", subshell)):
            begun = Flag()
            cell = client.execute_soon(code, subshell=where)
            await begun.wait()
            assert (await kernel.interrupt()).status == "ok"
            assert (await cell.done()).ename == "KeyboardInterrupt"
            assert cell.text() == ""
            assert await kernel.subshells() == [subshell]
        await check(client)


@explore_schedules(3)
async def test_more_signals_than_control_has_room_for_end_no_kernel() -> None:
    words = WordsKernel()
    begun = Flag()

    @words.cell
    def computes(cell: ts.Cell) -> None:
        begun.set()
        compute()

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("computes")
        await begun.wait()
        for _ in range(1_100):
            kernel.running.interrupt_soon()
        assert (await cell.done()).ename == "KeyboardInterrupt"
        while (reply := await kernel.client.execute("say")).ename == "KeyboardInterrupt":
            pass  # by one that hadn't been served yet
        assert reply.status == "ok"


@explore_schedules(100)
async def test_a_signal_that_comes_as_a_kernel_ends_does_nothing() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        assert (await kernel.shutdown()).status == "ok"
        for _ in range(50):
            kernel.running.interrupt_soon()
            await trio.lowlevel.checkpoint()
        await kernel.wait_closed()
        kernel.running.interrupt_soon()


@explore_schedules(40)
async def test_a_signal_in_vain_ends_no_kernel() -> None:
    """Nobody waits for an answer; that it has come to nothing is no failure of the kernel's."""
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        stuck = client.execute_soon("stick 20")
        await stuck.output("execute_input")
        kernel.running.interrupt_soon()
        await trio.sleep(INTERRUPT_TIMEOUT + 1)
        subshell = await kernel.create_subshell()
        assert (await client.execute("say", subshell=subshell)).status == "ok"
        await check(client)


@explore_schedules(40)
async def test_who_interrupts_in_vain_is_told_so_and_not_struck() -> None:
    """What the cell is to be struck by waits in its own thread, for the call that it is in."""
    async with simulated_kernel(WordsKernel()) as kernel:
        stuck = kernel.client.execute_soon("stick 20")
        await stuck.output("execute_input")
        begun = trio.current_time()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await kernel.running.interrupt(timeout=0.5)
        assert trio.current_time() < begun + INTERRUPT_TIMEOUT
        await check(kernel.client)
