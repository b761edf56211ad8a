"""Whole kernels in the simulator, and that the same tests hold for real ones."""

from __future__ import annotations

import time

import pytest
import trio

import trio_subshells as ts
from trio_subshells.testing import Random, explore, simulated_kernel


class WordsKernel(ts.Kernel):
    """Does what a few words mean, and says the others."""

    implementation = "words"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="words")
    subshells = True

    async def execute(self, cell: ts.Cell) -> None:
        match cell.code:
            case "await":
                await trio.sleep_forever()
            case "block":
                time.sleep(1e6)
            case "fail":
                raise ts.CellError("Failed", "as was wanted", [])
            case "ask":
                cell.stdout(await cell.input("who? "))
            case _:
                cell.stdout(cell.code)


async def session() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
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


def test_a_session() -> None:
    explore(session, schedules=30)


@pytest.mark.parametrize("word", ["await", "block"])
def test_a_busy_subshell_is_deleted(word: str) -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            subshell = await kernel.create_subshell()
            running = kernel.client.execute_soon(word, subshell=subshell)
            waiting = kernel.client.execute_soon("next", subshell=subshell)
            deleted = kernel.client.control_soon("delete_subshell_request", subshell_id=subshell)
            assert (await deleted.done()).status == "ok"
            reply = await running.done()
            assert reply.ename in {"SubshellDeleted", "UnknownSubshell", None}
            assert reply.status != "ok"
            assert (await waiting.done()).status in {"aborted", "error"}

    explore(body, schedules=40)


@pytest.mark.parametrize("word", ["await", "block"])
@pytest.mark.parametrize("in_subshell", [True, False])
def test_an_interrupt_ends_what_runs(word: str, in_subshell: bool) -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            running = kernel.client.execute_soon(word, subshell=subshell)
            await running.output("execute_input")
            assert (await kernel.interrupt()).status == "ok"
            assert (await running.done()).ename == "KeyboardInterrupt"
            assert (await kernel.client.execute("after", subshell=subshell)).status == "ok"

    explore(body, schedules=40)


@pytest.mark.parametrize("word", ["await", "block"])
def test_a_timeout_ends_what_runs(word: str) -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            running = kernel.client.execute_soon(word, timeout=3600)
            assert (await running.done()).ename == "CellTimeout"
            assert trio.current_time() >= 3600

    explore(body, schedules=20)


def test_two_cells_that_ask_get_their_own_answers() -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
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

    explore(body, schedules=40)


def test_a_client_that_vanishes_costs_the_others_nothing() -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel()) as kernel:
            async with kernel.connect("other") as other:
                other.execute_soon("said to nobody")
                other.vanish()
            assert (await kernel.client.execute("still")).status == "ok"

    explore(body, schedules=40)


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
