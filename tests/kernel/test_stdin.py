"""Prompts: every answer reaches the cell that asked."""

from __future__ import annotations

import pytest
import trio

import trio_subshells as ts

from .helpers import CellsKernel, Flag, open_client, served


class Asking(CellsKernel):
    """Its cells ask, in each of the ways there are, and write what they are answered."""

    def __init__(self) -> None:
        super().__init__()
        for function in (
            self.ask,
            self.ask_secretly,
            self.ask_blocking,
            self.ask_blocking_secretly,
            self.ask_twice,
        ):
            self.functions[function.__name__] = function

    async def ask(self, cell: ts.Cell) -> None:
        cell.stdout(await cell.input(f"{cell.subshell.name}?"))

    async def ask_secretly(self, cell: ts.Cell) -> None:
        cell.stdout(await cell.getpass("secret?"))

    def ask_blocking(self, cell: ts.Cell) -> None:
        cell.stdout(cell.blocking_input("blocking?"))

    def ask_blocking_secretly(self, cell: ts.Cell) -> None:
        cell.stdout(cell.blocking_input("secret?", password=True))

    async def ask_twice(self, cell: ts.Cell) -> None:
        async def one(prompt: str) -> None:
            cell.stdout(f"{prompt}{await cell.input(prompt)} ")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "a")
            nursery.start_soon(one, "b")


@pytest.mark.parametrize("parent", [True, False], ids=["with a parent", "without"])
@pytest.mark.parametrize(
    ("code", "prompt", "password"),
    [("ask", "main?", False), ("ask_secretly", "secret?", True)],
)
async def test_a_prompt_and_its_answer(
    code: str, prompt: str, password: bool, parent: bool
) -> None:
    async with served(Asking()) as at:
        exchange = at.client.execute_soon(code, allow_stdin=True)
        request = await at.client.prompt()
        assert request.header.msg_type == "input_request"
        assert request.content == {"prompt": prompt, "password": password}
        assert request.parent_header is not None
        assert request.parent_header.msg_id == exchange.id
        at.client.answer(request, "the answer", parent=parent)
        assert (await exchange.done()).status == "ok"
    assert exchange.text() == "the answer"


@pytest.mark.parametrize(
    ("code", "password"), [("ask_blocking", False), ("ask_blocking_secretly", True)]
)
async def test_code_that_cant_await_asks_too(code: str, password: bool) -> None:
    async with served(Asking()) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon(code, subshell=subshell_id)
        request = await at.client.prompt()
        assert request.content["password"] is password
        at.client.answer(request, "the answer", parent=False)
        assert (await exchange.done()).status == "ok"
    assert exchange.text() == "the answer"


async def test_what_was_written_before_the_prompt_is_sent_before_it() -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def write_and_ask(cell: ts.Cell) -> None:
        cell.stdout("a question:")  # without a newline: it would wait for more
        await cell.input()

    async with served(kernel) as at:
        exchange = at.client.execute_soon("write_and_ask")
        request = await at.client.prompt()
        written = await exchange.output("stream")
        assert written.content["text"] == "a question:"
        # They come by two sockets; but the kernel has said the one before the other.
        assert written.header.date <= request.header.date
        at.client.answer(request, "")
        await exchange.done()


async def test_prompts_of_two_subshells_at_once_answered_the_other_way_round() -> None:
    async with served(Asking()) as at:
        ids = [await at.client.create_subshell() for _ in range(2)]
        exchanges = {each: at.client.execute_soon("ask", subshell=each) for each in ids}
        requests = [await at.client.prompt() for _ in ids]
        for request in reversed(requests):
            asker = request.content["prompt"].removesuffix("?")
            at.client.answer(request, f"for {asker}")
        for subshell_id, exchange in exchanges.items():
            await exchange.done()
            assert exchange.text() == f"for {subshell_id}"


async def test_two_prompts_of_one_cell() -> None:
    async with served(Asking()) as at:
        exchange = at.client.execute_soon("ask_twice")
        requests = [await at.client.prompt() for _ in range(2)]
        for request in reversed(requests):
            at.client.answer(request, f"={request.content['prompt']}")
        assert (await exchange.done()).status == "ok"
    assert sorted(exchange.text().split()) == ["a=a", "b=b"]


async def test_answers_without_a_parent_go_by_order() -> None:
    async with served(Asking()) as at:
        ids = [await at.client.create_subshell() for _ in range(2)]
        exchanges = {each: at.client.execute_soon("ask", subshell=each) for each in ids}
        askers = [(await at.client.prompt()).content["prompt"].removesuffix("?") for _ in ids]
        for asker in askers:
            at.client.send_raw(
                "stdin", at.client.session.serialize("input_reply", {"value": f"for {asker}"})
            )
        for subshell_id, exchange in exchanges.items():
            await exchange.done()
            assert exchange.text() == f"for {subshell_id}"


async def test_the_client_that_sent_the_cell_is_the_one_that_is_asked() -> None:
    async with (
        served(Asking()) as at,
        open_client(at.running.connection, "another") as other,
    ):
        subshell_id = await at.client.create_subshell()
        mine = at.client.execute_soon("ask", subshell=subshell_id)
        my_prompt = await at.client.prompt()
        theirs = other.execute_soon("ask")
        their_prompt = await other.prompt()
        # An answer to somebody else's prompt, or to none, changes nothing.
        at.client.answer(at.client.session.message("input_request", {}), "wrong")
        other.answer(their_prompt, "theirs", parent=False)
        await theirs.done()
        at.client.answer(my_prompt, "mine", parent=False)
        await mine.done()
    assert mine.text() == "mine"
    assert theirs.text() == "theirs"


@pytest.mark.parametrize("code", ["ask", "ask_blocking"])
async def test_an_interrupt_withdraws_the_prompt(code: str) -> None:
    async with served(Asking()) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon(code, subshell=subshell_id)
        stale = await at.client.prompt()
        await at.client.control("interrupt_request")
        assert (await exchange.done()).ename == "KeyboardInterrupt"
        again = at.client.execute_soon(code, subshell=subshell_id)
        fresh = await at.client.prompt()
        at.client.answer(stale, "too late")
        at.client.answer(fresh, "in time")
        await again.done()
    assert again.text() == "in time"


async def test_an_answer_without_a_parent_passes_over_a_prompt_that_was_withdrawn() -> None:
    async with served(Asking()) as at:
        first, second = [await at.client.create_subshell() for _ in range(2)]
        withdrawn = at.client.execute_soon("ask", subshell=first)
        await at.client.prompt()
        exchange = at.client.execute_soon("ask", subshell=second)
        request = await at.client.prompt()
        await at.client.control("interrupt_request", subshell_id=first)
        assert (await withdrawn.done()).ename == "KeyboardInterrupt"
        at.client.answer(request, "the answer", parent=False)
        await exchange.done()
    assert exchange.text() == "the answer"


@pytest.mark.parametrize("code", ["ask", "ask_secretly", "ask_blocking", "ask_blocking_secretly"])
async def test_a_client_that_cant_answer_isnt_asked(code: str) -> None:
    async with served(Asking()) as at:
        subshell_id = await at.client.create_subshell()
        content = (await at.client.execute(code, allow_stdin=False, subshell=subshell_id)).content
        assert content["ename"] == "InputNotAllowed"
        with pytest.raises(trio.WouldBlock):
            at.client._prompts.receive_nowait()


async def test_what_is_no_answer_is_dropped() -> None:
    async with served(Asking()) as at:
        exchange = at.client.execute_soon("ask")
        request = await at.client.prompt()
        at.client.send_raw("stdin", [b"not a message"])
        for content in ({}, {"value": 5}, {"value": None}):
            reply = at.client.session.serialize("input_reply", content, parent=request.header)
            at.client.send_raw("stdin", reply)
        at.client.answer(request, "the answer")
        await exchange.done()
    assert exchange.text() == "the answer"


async def test_a_prompt_ends_with_its_subshell() -> None:
    kernel, asked = Asking(), Flag()
    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("ask_blocking", subshell=subshell_id)
        await at.client.prompt()
        asked.set()
        deleted = (
            await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        ).content
        assert deleted == {"status": "ok"}
        assert (await exchange.done()).ename == "SubshellDeleted"
