"""Output: all of it, in order, between its cell's busy and idle."""

from __future__ import annotations

import trio

import trio_subshells as ts
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import WordsKernel, check


@explore_schedules(100)
async def test_output_is_in_order_and_between_busy_and_idle() -> None:
    words = WordsKernel()

    @words.cell
    async def print_and_fail(cell: ts.Cell) -> None:
        cell.stdout("one\n")
        cell.stdout("two\n")
        cell.display({"text/plain": "three"})
        cell.stdout("four")
        await trio.lowlevel.checkpoint()
        cell.stderr("five\n")
        raise ValueError("as was wanted")

    async with simulated_kernel(words) as kernel:
        cells = [kernel.client.execute_soon("print_and_fail", stop_on_error=False) for _ in "12"]
        for cell in cells:
            assert (await cell.done()).status == "error"
            published = [
                (message.header.msg_type, message.content.get("text"))
                for message in cell.published
                if message.header.msg_type not in {"status", "execute_input"}
            ]
            stdout = [each for each in published if each[0] == "stream"]
            assert "".join(text for _, text in stdout) == "one\ntwo\nfourfive\n"
            shown = published.index(("display_data", None))
            assert "".join(text for _, text in published[:shown]) == "one\ntwo\n"
            assert published[-1] == ("error", None)
        await check(kernel.client)


@explore_schedules(100)
async def test_each_cell_has_its_own_output() -> None:
    class Haunted(WordsKernel):
        """A cell leaves a task behind, which prints on."""

        def subshell(self, info: ts.SubshellInfo):
            return trio.open_nursery()

    words = Haunted()

    @words.cell
    async def leave_a_printer(cell: ts.Cell) -> None:
        async def print_on() -> None:
            for _ in range(4):
                cell.stdout("first ")
                await trio.sleep(0.01)

        cell.state.start_soon(print_on)

    @words.cell
    async def print_too(cell: ts.Cell) -> None:
        for _ in range(4):
            cell.stdout("second ")
            await trio.sleep(0.01)

    async with simulated_kernel(words) as kernel:
        first = kernel.client.execute_soon("leave_a_printer")
        second = kernel.client.execute_soon("print_too")
        assert (await first.done()).status == "ok"
        assert (await second.done()).status == "ok"
        assert second.text() == "second " * 4
        assert set(first.text().split()) <= {"first"}
