"""Output: all of it, in order, between its cell's busy and idle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from unittest import mock

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import _output
from trio_subshells.kernel._guard import CellGuard
from trio_subshells.kernel._output import Outlet, OutputPort
from trio_subshells.kernel._stdin import Prompter
from trio_subshells.testing import explore_schedules, simulated_kernel
from trio_subshells.wire import WireSession

from .kernels import Flag, WordsKernel, call_into_c, check
from .lines import before_a_line
from .threads import in_threads, run_cell


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


@explore_schedules(60)
async def test_what_has_begun_is_seen_though_the_kernel_is_flooded() -> None:
    """Nobody can be told that the beginning of a line is to be sent in a while."""
    words = WordsKernel()

    @words.cell
    async def begins(cell: ts.Cell) -> None:
        cell.stdout("begun")
        await trio.sleep_forever()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        kernel.faults.fill_mailbox("iopub")
        cells = [
            client.execute_soon("begins", subshell=subshell)
            for subshell in (None, await kernel.create_subshell())
        ]
        for cell in cells:
            await cell.output("stream")
            assert cell.text() == "begun"
        assert (await kernel.interrupt()).status == "ok"
        for cell in cells:
            assert (await cell.done()).ename == "KeyboardInterrupt"  # it was still waiting
        await check(client)


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


@explore_schedules(100)
async def test_what_a_cell_executes_elsewhere_is_its_output_too() -> None:
    """Two shells publish it, and clients hear it in the order in which it was said."""
    words = WordsKernel()

    @words.cell
    async def elsewhere(cell: ts.Cell) -> None:
        cell.stdout("before ")
        async with ts.spawn_subshell() as subshell:
            await subshell.execute("inner")
            cell.stdout(" between ")
            await subshell.execute("inner")
        cell.stdout(" after")

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("elsewhere")
        assert (await cell.done()).status == "ok"
        assert cell.text() == "before inner between inner after"
        await trio.sleep(1)  # whatever comes after idle has come
        await check(kernel.client)


@explore_schedules(20)
async def test_what_a_completion_executes_elsewhere_is_not_the_last_cells() -> None:
    class Completing(WordsKernel):
        async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
            async with ts.spawn_subshell() as subshell:
                assert (await subshell.execute("say")).status == "ok"
            return ts.Completion((), 0, 0)

    async with simulated_kernel(Completing()) as kernel:
        client = kernel.client
        cell = client.execute_soon("cell")
        completion = client.request("complete_request", {"code": "", "cursor_pos": 0})
        assert (await completion.done()).status == "ok"
        await trio.sleep(1)  # whatever comes after idle has come
        assert cell.text() == "cell"
        await check(client)


@explore_schedules(100)
async def test_a_cell_that_was_given_up_says_nothing_more() -> None:
    """Neither by itself, nor by what it executes elsewhere, nor by what it has left behind."""

    class Haunted(WordsKernel):
        def subshell(self, info: ts.SubshellInfo):
            return trio.open_nursery()

    words = Haunted()
    inner_goes_on, returned = Flag(), Flag()
    refused: list[str] = []

    @words.cell
    async def inner(cell: ts.Cell) -> None:
        inner_goes_on.set()
        await trio.sleep(10)
        cell.stdout("late\n")

    @words.cell
    async def sticks(cell: ts.Cell) -> None:
        async def ask() -> None:
            await returned.wait()
            try:
                await cell.input("late? ")
            except ts.InputNotAllowed as error:
                refused.append(str(error))

        Context().run(cell.state.start_soon, ask)  # it is no piece of the cell, to be struck
        async with trio.open_nursery() as nursery, ts.spawn_subshell() as subshell:
            nursery.start_soon(subshell.execute, "inner")
            await inner_goes_on.wait()
            call_into_c(20)
            returned.set()
            cell.stdout("late\n")
            cell.display({"text/plain": "late"})

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        stuck = client.execute_soon("sticks", timeout=1, stop_on_error=False)
        assert (await stuck.done()).ename == "CellTimeout"
        await trio.sleep(60)
        assert (await client.execute("say")).status == "ok"
        assert len(refused) == returned.is_set()
        await check(client)


@explore_schedules(100)
async def test_what_is_executed_elsewhere_and_given_up_says_nothing_more() -> None:
    """But the cell that has executed it goes on."""
    words = WordsKernel()

    @words.cell
    def sticks(cell: ts.Cell) -> None:
        cell.stdout("begun ")
        call_into_c(20)
        cell.stdout("late ")

    @words.cell
    async def elsewhere(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            assert (await subshell.execute("sticks", timeout=1)).ename == "CellTimeout"
            cell.stdout("given up ")
            await trio.sleep(60)
            assert (await subshell.execute("again")).status == "ok"

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("elsewhere")
        assert (await cell.done()).status == "ok"
        assert cell.text() == "begun given up again"
        await check(kernel.client)


@explore_schedules(300, preempt=[_output])
async def test_idle_is_the_last_that_is_heard_of_who_was_given_up() -> None:
    said: list[str] = []

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            said.append(json.loads(frames[-1]).get("execution_state", "output"))

    session = WireSession(b"")
    port = OutputPort(session, Publisher(), lambda port: None)
    outlet = Outlet(port, session.header("execute_request"))

    async def goes_on() -> None:
        for _ in range(2):
            outlet.publish("display_data", {})
            outlet.stream("stdout", "a line\n")
            await trio.lowlevel.checkpoint()

    async def gives_up() -> None:
        outlet.shut()
        port.status("idle", outlet.parent)

    await in_threads(goes_on=goes_on, gives_up=gives_up)
    port.flush()
    assert said[-1] == "idle"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@explore_schedules(150)
async def test_what_a_garbage_collection_prints_is_sent_too(stream: str) -> None:
    """It may run a finalizer that prints, before any line of the port's own code."""
    session = WireSession(b"")
    cell, other = session.header("execute_request"), session.header("execute_request")
    sent: dict[tuple[str, str], str] = {}
    collected: list[str] = []

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            content = json.loads(frames[-1])
            to = content.get("name", "stdout"), json.loads(frames[-3])["msg_id"]
            text = content.get("text") or f"({content['execution_state']})"
            sent[to] = sent.get(to, "") + text

    port = OutputPort(session, Publisher(), lambda port: None)

    def collect() -> None:
        collected.append("a finalizer")
        port.stream(stream, "a finalizer", other)

    with before_a_line(_output, 90, "a finalizer prints", collect):
        port.stream("stdout", "one", cell)
        port.flush()
        port.stream("stdout", "two\n", cell)
        port.stream("stdout", "three", cell)
        port.status("idle", cell)
        port.stream("stdout", "four", cell)
    port.flush()
    assert sent.pop((stream, other.msg_id), "") == "".join(collected)
    assert sent == {("stdout", cell.msg_id): "onetwo\nthree(idle)four"}


class RaisesHere:
    """Interrupts its own thread, at once."""

    missed = False

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        raise error

    def strike_on(self) -> None:
        """It has struck."""

    def withdraw(self) -> None:
        """It has been raised already."""


@explore_schedules(150)
async def test_an_interrupt_tears_no_output_apart() -> None:
    """What is written is sent, all or nothing of it; and so is what comes later."""
    sent: list[str] = []
    timers: list[OutputPort] = []
    guard, session = CellGuard(), WireSession(b"")

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            content = json.loads(frames[-1])
            sent.append(content.get("text") or content["data"]["text/plain"])

    port = OutputPort(session, Publisher(), timers.append)
    request = session.message("execute_request", {"code": "print"})
    cell = ts.Cell(
        content=request.content,
        metadata={},
        execution_count=1,
        subshell=ts.SubshellInfo(None),
        state=None,
        outlet=Outlet(port, request.header),
        prompter=mock.create_autospec(Prompter),
        guard=guard,
    )

    async def prints() -> None:
        with before_a_line(_output, 100, "an interrupt", partial(guard.strike, 1)):
            cell.stdout("a")
            cell.display({"text/plain": "b"})
            cell.stderr("c\n")
            cell.stdout("d\n")

    with suppress(KeyboardInterrupt):
        await run_cell(guard, prints, RaisesHere())
    port.stream("stdout", "later", request.header)
    for timer in timers:
        timer.time_is_up()
    assert "".join(sent) in {f"{said}later" for said in ("a", "ab", "abc\n", "abc\nd\n")}


@explore_schedules(20)
async def test_a_silent_cell_is_silent_about_what_it_executes_elsewhere() -> None:
    words = WordsKernel()

    @words.cell
    async def asks(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            await subshell.execute("say")

    async with simulated_kernel(words) as kernel:
        quiet = kernel.client.execute_soon("asks", silent=True)
        loud = kernel.client.execute_soon("asks")
        assert (await quiet.done()).status == "ok"
        assert (await loud.done()).status == "ok"
        assert set(quiet.types) == {"status"}
        assert loud.text() == "say"
        await check(kernel.client)
