"""Whole kernels in the simulator, and the same scenarios with real ones."""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

import trio_subshells as ts
from trio_subshells.testing import (
    Client,
    KernelUnderTest,
    Random,
    check_protocol,
    explore,
    real_kernel,
    simulated_kernel,
)
from trio_subshells.wire import WireSession

from .words import WordsKernel

HANG = 60

OpenKernel = Callable[[], AbstractAsyncContextManager[KernelUnderTest]]
Scenario = Callable[[OpenKernel], Awaitable[None]]
Run = Callable[[Scenario], None]


def simulated(scenario: Scenario) -> None:
    explore(scenario, lambda: simulated_kernel(WordsKernel(nap=1e6)), schedules=30)


def in_a_thread(scenario: Scenario) -> None:
    trio.run(in_time, scenario, lambda: real_kernel(WordsKernel()))


def in_a_process(scenario: Scenario) -> None:
    program = [sys.executable, str(Path(__file__).with_name("words.py"))]
    trio.run(in_time, scenario, lambda: real_kernel(program))


async def in_time(scenario: Scenario, open_kernel: OpenKernel) -> None:
    with trio.fail_after(HANG):
        await scenario(open_kernel)


@pytest.fixture(params=[simulated, in_a_thread, in_a_process], ids=lambda each: each.__name__)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario, which is written once, in the simulator and for real."""
    run: Run = request.param
    return run


def test_a_session(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            subshell = await kernel.create_subshell()
            for number in range(4):
                where = subshell if number % 2 else None
                exchange = kernel.client.execute_soon(f"{number}", subshell=where)
                assert (await exchange.done()).status == "ok"
                assert exchange.text() == f"{number}"
                assert exchange.types == ["status", "execute_input", "stream", "status"]
            assert await kernel.subshells() == [subshell]
            assert (await kernel.delete_subshell(subshell)).status == "ok"
            assert await kernel.subshells() == []
            reply = await kernel.client.execute("late", subshell=subshell)
            assert reply.ename == "UnknownSubshell"
            assert (await kernel.shutdown()).status == "ok"
            await kernel.wait_closed()
            check_protocol(kernel.client)

    run(scenario)


def test_who_listens_late_is_not_asked_what_it_has_missed() -> None:
    """It may hear of the end of what it has asked before, and not of the beginning."""
    states: set[tuple[str, ...]] = set()

    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            network = kernel.network
            late = Client(
                WireSession(b"", username="late"), lambda channel: network.connect(channel, b"late")
            )
            async with late.connected(listens=False):
                before = late.request("kernel_info_request")
                await before.reply()
                await late.listen()
                exchange = late.execute_soon("hello")
                assert (await exchange.done()).status == "ok"
                states.add(tuple(before.states))
                check_protocol(late)

    explore(body, schedules=200)
    assert states == {(), ("idle",), ("busy", "idle")}


def test_a_session_is_gone_when_it_is_over() -> None:
    """Collecting what is not, thousands of objects, would take long, after each schedule."""
    # An exception that has gone through an `asynccontextmanager` is in a cycle from 3.12 on: the
    # frame of the generator outlives it, and knows the frame that threw it in, and all around that.
    most = 300 if sys.version_info < (3, 12) else 3000
    collected: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            collected.append(info["collected"])

    async def scenario() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            subshell = await kernel.create_subshell()
            for shell in (None, subshell):
                assert (await kernel.client.execute("x", subshell=shell)).status == "ok"

    gc.disable()  # only the collections that exploring asks for are counted
    gc.callbacks.append(count)
    try:
        explore(scenario, schedules=5)
    finally:
        gc.callbacks.remove(count)
        gc.enable()
    assert len(collected) == 5 + 1  # and at the end, which counts for the last one, too
    assert max(collected[1:5]) < most


@pytest.mark.parametrize("word", ["await", "block"])
def test_a_busy_subshell_is_deleted(run: Run, word: str) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            subshell = await kernel.create_subshell()
            running = kernel.client.execute_soon(word, subshell=subshell)
            waiting = kernel.client.execute_soon("next", subshell=subshell)
            deleted = kernel.client.control_soon("delete_subshell_request", subshell_id=subshell)
            assert (await deleted.done()).status == "ok"
            reply = await running.done()
            assert reply.ename in {"SubshellDeleted", "UnknownSubshell", None}
            assert reply.status != "ok"
            assert (await waiting.done()).status in {"aborted", "error"}
            check_protocol(kernel.client)

    run(scenario)


@pytest.mark.parametrize("word", ["await", "block"])
@pytest.mark.parametrize("in_subshell", [True, False])
def test_an_interrupt_ends_what_runs(run: Run, word: str, in_subshell: bool) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            running = kernel.client.execute_soon(word, subshell=subshell)
            await running.output("execute_input")
            assert (await kernel.interrupt()).status == "ok"
            assert (await running.done()).ename == "KeyboardInterrupt"
            assert (await kernel.client.execute("after", subshell=subshell)).status == "ok"
            check_protocol(kernel.client)

    run(scenario)


def test_a_failure_aborts_what_waits(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            failing, waiting = (kernel.client.execute_soon(word) for word in ("fail", "next"))
            reply = await failing.done()
            assert (reply.ename, reply.evalue) == ("Failed", "as was wanted")
            assert (await waiting.done()).status in {"aborted", "ok"}  # it may have come later
            assert (await kernel.client.execute("after")).status == "ok"
            check_protocol(kernel.client)

    run(scenario)


def test_two_cells_that_ask_get_their_own_answers(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            subshell = await kernel.create_subshell()
            asking = {
                each.id: each
                for each in (
                    kernel.client.execute_soon("ask", allow_stdin=True),
                    kernel.client.execute_soon("ask", allow_stdin=True, subshell=subshell),
                )
            }
            for _ in range(2):
                prompt = await kernel.client.prompt()
                assert prompt.parent_header is not None
                kernel.client.answer(prompt, f"you, {prompt.parent_header.msg_id}")
            for each in asking.values():
                assert (await each.done()).status == "ok"
                assert each.text() == f"you, {each.id}"
            check_protocol(kernel.client)

    run(scenario)


def test_clients_hear_of_each_other(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel, kernel.connect("other") as other:
            exchange = kernel.client.execute_soon("hello")
            assert (await exchange.done()).status == "ok"
            assert (await other.execute("mine")).status == "ok"
            theirs = [each.header.msg_type for each in other.strays if each.parent_header]
            assert theirs.count("stream") == 1
            assert not other.second_replies
            check_protocol(kernel.client, other)

    run(scenario)


def test_a_client_that_vanishes_costs_the_others_nothing(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        async with open_kernel() as kernel:
            async with kernel.connect("other") as other:
                other.execute_soon("said to nobody")
                other.vanish()
            assert (await kernel.client.execute("still")).status == "ok"
            check_protocol(kernel.client)

    run(scenario)


def test_an_error_of_the_block_is_raised_as_itself(run: Run) -> None:
    async def scenario(open_kernel: OpenKernel) -> None:
        with pytest.raises(LookupError, match="the block's own"):
            async with open_kernel() as kernel, kernel.connect("other"):
                kernel.client.execute_soon("await")
                raise LookupError("the block's own")

    run(scenario)


# ------------------------------------------------------------------- what only the simulator has


@pytest.mark.parametrize("word", ["await", "block"])
def test_a_timeout_ends_what_runs(word: str) -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel(nap=1e6)) as kernel:
            running = kernel.client.execute_soon(word, timeout=3600)
            assert (await running.done()).ename == "CellTimeout"
            assert trio.current_time() >= 3600

    explore(body, schedules=20)


def test_descriptors_run_out() -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel(), descriptors=0) as kernel:
            refused = await kernel.client.control("create_subshell_request")
            assert refused.ename == "TooManySubshells"
            assert (await kernel.client.execute("still")).status == "ok"

    explore(body, schedules=10)


def test_every_thread_of_the_kernel_is_joined() -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            await kernel.create_subshell()
            assert len(kernel.threads) == 3

    explore(body, schedules=20)


def test_it_needs_a_simulation() -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="explore"):
            async with simulated_kernel(WordsKernel()):
                raise AssertionError("it can't get here")

    trio.run(body)


def test_a_failure_of_the_kernel_is_the_runs() -> None:
    class Failing(WordsKernel):
        async def execute(self, cell: ts.Cell) -> None:
            raise SystemExit("no")

    async def body() -> None:
        async with simulated_kernel(Failing()) as kernel:
            assert (await kernel.client.execute("x")).ename == "SystemExit"

    explore(body, schedules=5, strategy=Random())
