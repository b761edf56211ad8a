"""Cells: what they publish, and how they let themselves be ended."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.testing import Exchange

from .helpers import CellFunction, CellsKernel, Flag, served, types


async def executed(cell: CellFunction, **content: Any) -> Exchange:
    """Execute a function as a cell, and return all that came of it."""
    kernel = CellsKernel()
    kernel.functions["cell"] = cell
    async with served(kernel) as at:
        exchange = at.client.execute_soon("cell", **content)
        await exchange.done()
    return exchange


async def test_every_way_to_publish() -> None:
    def cell(cell: ts.Cell) -> None:
        cell.stdout("out\n")
        cell.stderr("err\n")
        cell.display({"text/plain": "shown"}, metadata={"m": 1}, display_id="d", buffers=[b"x"])
        cell.update_display(
            {"text/plain": "changed"}, metadata={"m": 3}, display_id="d", buffers=[b"y"]
        )
        cell.display({"text/plain": "nameless"})
        cell.clear_output(wait=True)
        cell.result({"text/plain": "result"}, display_id="r")
        cell.publish("my_message", {"mine": 1}, metadata={"m": 2})

    exchange = await executed(cell)
    assert exchange.outputs[1:] == [
        ("stream", {"name": "stdout", "text": "out\n"}),
        ("stream", {"name": "stderr", "text": "err\n"}),
        (
            "display_data",
            {
                "data": {"text/plain": "shown"},
                "metadata": {"m": 1},
                "transient": {"display_id": "d"},
            },
        ),
        (
            "update_display_data",
            {
                "data": {"text/plain": "changed"},
                "metadata": {"m": 3},
                "transient": {"display_id": "d"},
            },
        ),
        (
            "display_data",
            {"data": {"text/plain": "nameless"}, "metadata": {}, "transient": {}},
        ),
        ("clear_output", {"wait": True}),
        (
            "execute_result",
            {
                "data": {"text/plain": "result"},
                "metadata": {},
                "execution_count": 1,
                "transient": {"display_id": "r"},
            },
        ),
        ("my_message", {"mine": 1}),
    ]
    display = await exchange.output("display_data")
    assert display.buffers == (b"x",)
    assert (await exchange.output("update_display_data")).buffers == (b"y",)
    assert (await exchange.output("my_message")).metadata == {"m": 2}


async def test_what_a_cell_is_told() -> None:
    seen: list[ts.Cell] = []
    exchange = await executed(seen.append, store_history=False, allow_stdin=False)
    (cell,) = seen
    assert cell.code == "cell"
    assert cell.header == exchange.message.header
    assert (cell.silent, cell.store_history, cell.allow_stdin) == (False, False, False)
    assert cell.subshell == ts.SubshellInfo(None)
    assert "cell" in repr(cell)
    await executed(seen.append, silent=True, store_history=True)
    assert (seen[1].silent, seen[1].store_history) == (True, False)  # as the protocol wants it


async def test_the_payload_goes_with_the_reply() -> None:
    exchange = await executed(lambda cell: cell.payload.append({"source": "page"}))
    assert exchange.replies[0].content["payload"] == [{"source": "page"}]


async def test_a_stream_is_stdout_or_stderr_and_takes_text() -> None:
    errors = []

    def cell(cell: ts.Cell) -> None:
        for name, text in (("stdlog", "x"), ("stdout", b"x")):
            try:
                cell.stream(name, text)  # type: ignore[arg-type]
            except (ValueError, TypeError) as error:
                errors.append(str(error))
        cell.stdout("")

    exchange = await executed(cell)
    assert types(exchange) == ["execute_input"]
    assert "'stdlog'" in errors[0]
    assert "bytes" in errors[1]


async def test_text_that_isnt_unicode_doesnt_stop_a_cell() -> None:
    exchange = await executed(lambda cell: cell.stdout("a\ud800b\n"))
    assert exchange.replies[0].content["status"] == "ok"
    assert exchange.text().startswith("a")


async def test_a_canceller_ends_a_call_that_nothing_else_can() -> None:
    kernel, started = CellsKernel(), Flag()

    @kernel.cell
    def query(cell: ts.Cell) -> None:
        stopped = Flag()
        with cell.on_cancel(stopped.set):
            started.set()
            stopped.block()
        raise OSError("the query was stopped")

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("query", subshell=subshell_id)
        await started.wait()
        deleted = (
            await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        ).content
        assert deleted == {"status": "ok"}
        content = (await exchange.done()).content
        assert content["ename"] == "SubshellDeleted"
        assert "the query was stopped" in "".join(content["traceback"])


async def test_a_canceller_is_not_called_when_what_it_ends_has_failed() -> None:
    kernel = CellsKernel()
    called: list[None] = []

    @kernel.cell
    async def query(cell: ts.Cell) -> None:
        try:
            with cell.on_cancel(lambda: called.append(None)):
                raise OSError("there is no such table")
        except OSError:
            cell.stdout("and on it goes\n")
            await trio.sleep_forever()

    async with served(kernel) as at:
        exchange = at.client.execute_soon("query")
        await exchange.output("stream")
        await at.client.control("interrupt_request")
        assert (await exchange.done()).ename == "KeyboardInterrupt"
    assert not called


async def test_an_interrupt_in_a_loop_that_prints_strikes_between_prints() -> None:
    """The loop spends most of its time in our code, where nothing may strike."""
    kernel = CellsKernel()

    @kernel.cell
    def print_on(cell: ts.Cell) -> None:
        while True:
            cell.stdout("x\n")

    async with served(kernel) as at:
        for _ in range(5):
            subshell_id = await at.client.create_subshell()
            exchange = at.client.execute_soon("print_on", subshell=subshell_id)
            await exchange.output("stream")
            await at.client.control("interrupt_request", subshell_id=subshell_id)
            assert (await exchange.done()).ename == "KeyboardInterrupt"
            again = at.client.execute_soon("", subshell=subshell_id)
            assert (await again.done()).status == "ok"


async def test_a_cell_may_clean_up_after_an_interrupt() -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def with_cleanup(cell: ts.Cell) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cell.stdout("cleaned up\n")
            raise

    async with served(kernel) as at:
        exchange = at.client.execute_soon("with_cleanup")
        await exchange.output("execute_input")
        await at.client.control("interrupt_request")
        assert (await exchange.done()).ename == "KeyboardInterrupt"
        assert exchange.text() == "cleaned up\n"


async def test_a_cell_that_needs_no_end_any_more_is_ok() -> None:
    """It catches what ends it, and has its result all the same."""
    kernel = CellsKernel()

    @kernel.cell
    async def stubborn(cell: ts.Cell) -> None:
        with trio.CancelScope(shield=True):
            cell.stdout("shielded\n")
            await done.wait()

    done = Flag()
    async with served(kernel) as at:
        exchange = at.client.execute_soon("stubborn")
        await exchange.output("stream")
        interrupt = at.client.control_soon("interrupt_request")
        await interrupt.busy()
        done.set()
        assert (await interrupt.done()).status == "ok"
        assert (await exchange.done()).status in {"ok", "error"}
        assert (await at.client.execute("")).status == "ok"


async def test_tasks_of_a_cell_end_with_it() -> None:
    kernel, ended = CellsKernel(), Flag()

    @kernel.cell
    async def with_tasks(cell: ts.Cell) -> None:
        async def work() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)

    async with served(kernel) as at:
        exchange = at.client.execute_soon("with_tasks")
        await exchange.output("execute_input")
        await at.client.control("interrupt_request")
        content = (await exchange.done()).content
        assert content["ename"] == "KeyboardInterrupt"
        assert ended.is_set()


def test_a_cell_is_made_by_the_kernel_alone() -> None:
    with pytest.raises(TypeError):
        ts.Cell()  # type: ignore[call-arg]
