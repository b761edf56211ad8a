"""Asking the client: each cell gets the answer to its own question."""

from __future__ import annotations

import trio_subshells as ts
from trio_subshells.testing import check_protocol, explore_schedules, simulated_kernel
from trio_subshells.testing._client import Client, Exchange

from .kernels import WordsKernel, check


class Asking(WordsKernel):
    """Its cells ask, and print the answer: in the one way and in the other."""

    def __init__(self) -> None:
        super().__init__()

        @self.cell
        async def ask(cell: ts.Cell) -> None:
            cell.stdout(await cell.input("who? "))

        @self.cell
        def ask_blocking(cell: ts.Cell) -> None:
            cell.stdout(cell.blocking_input("who? "))


@explore_schedules(60)
async def test_each_cell_gets_its_own_answer() -> None:
    async with simulated_kernel(Asking()) as kernel:
        cells = [
            kernel.client.execute_soon(code, subshell=subshell, allow_stdin=True)
            for code, subshell in (
                ("ask", None),
                ("ask_blocking", await kernel.create_subshell()),
                ("ask", await kernel.create_subshell()),
            )
        ]
        prompts = [await kernel.client.prompt() for _ in cells]
        for prompt in reversed(prompts):
            assert prompt.parent_header is not None
            kernel.client.answer(prompt, prompt.parent_header.msg_id)
        for cell in cells:
            assert (await cell.done()).status == "ok"
            assert cell.text() == cell.id
        await check(kernel.client)


@explore_schedules(40)
async def test_what_is_printed_before_a_prompt_comes_before_it() -> None:
    words = Asking()

    @words.cell
    async def say_and_ask(cell: ts.Cell) -> None:
        cell.stdout("Who are you? ")
        await cell.input()
        cell.stdout("And you? ")
        cell.blocking_input()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        cell = client.execute_soon("say_and_ask", allow_stdin=True)
        prompts = []
        for _ in range(2):
            prompts.append(await client.prompt())
            client.answer(prompts[-1], "me")
        assert (await cell.done()).status == "ok"
        said = [each for each in cell.published if each.header.msg_type == "stream"]
        for text, prompt in zip(said, prompts, strict=True):
            assert client.sent[text.header.msg_id] < client.sent[prompt.header.msg_id]
        await check(client)


@explore_schedules(60)
async def test_a_prompt_that_was_interrupted_gets_no_answer() -> None:
    async with simulated_kernel(Asking()) as kernel:
        client = kernel.client
        for code in ("ask", "ask_blocking"):
            first = client.execute_soon(code, allow_stdin=True)
            await client.prompt()
            assert (await kernel.interrupt()).status == "ok"
            assert (await first.done()).ename == "KeyboardInterrupt"
        second = client.execute_soon("ask", allow_stdin=True)
        client.answer(await client.prompt(), "second", parent=False)
        assert (await second.done()).status == "ok"
        assert second.text() == "second"
        await check(client)


@explore_schedules(60)
async def test_answers_that_name_no_prompt_are_for_who_was_first_to_ask() -> None:
    async with simulated_kernel(Asking()) as kernel:
        client = kernel.client
        asking = {}
        for code, subshell in (("ask", None), ("ask_blocking", await kernel.create_subshell())):
            cell = client.execute_soon(code, subshell=subshell, allow_stdin=True)
            asking[cell] = await client.prompt()
        for cell, prompt in asking.items():
            client.answer(prompt, cell.id, parent=False)
        for cell in asking:
            assert (await cell.done()).status == "ok"
            assert cell.text() == cell.id
        await check(client)


@explore_schedules(60)
async def test_an_answer_is_for_who_still_asks() -> None:
    """Though the client doesn't say whom it answers, and others were asked for before."""
    async with simulated_kernel(Asking()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        first = client.execute_soon("ask", subshell=subshell, allow_stdin=True)
        await client.prompt()
        second = client.execute_soon("ask", allow_stdin=True)
        prompt = await client.prompt()
        await kernel.delete_subshell(subshell)
        assert (await first.done()).ename == "SubshellDeleted"
        client.answer(prompt, "second", parent=False)
        assert (await second.done()).status == "ok"
        assert second.text() == "second"
        await check(client)


@explore_schedules(60)
async def test_an_answer_is_for_who_was_asked_by_the_same_client() -> None:
    """Though it names no prompt, and another client was asked before."""
    async with simulated_kernel(Asking()) as kernel, kernel.connect("other") as other:
        asked: dict[Client, Exchange] = {}
        for client, subshell in ((kernel.client, await kernel.create_subshell()), (other, None)):
            asked[client] = client.execute_soon("ask", subshell=subshell, allow_stdin=True)
            prompt = await client.prompt()
        for client in (other, kernel.client):
            client.answer(prompt, client.name, parent=False)
            assert (await asked[client].done()).status == "ok"
        for client, cell in asked.items():
            assert cell.text() == client.name
        check_protocol(*asked)


@explore_schedules(20)
async def test_who_asks_when_too_many_ask_is_told_so() -> None:
    async with simulated_kernel(Asking()) as kernel:
        kernel.faults.fill_mailbox("stdin")
        for subshell in (None, await kernel.create_subshell()):
            cell = kernel.client.execute_soon("ask_blocking", subshell=subshell, allow_stdin=True)
            assert (await cell.done()).ename == "ConnectionError"
        await check(kernel.client)
