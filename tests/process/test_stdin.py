"""Input: asked of the right client, answered to the right cell, and ended by an interrupt."""

from __future__ import annotations

import pytest

from ._client import Client, Kernel

GETPASS = "import getpass; getpass.getpass"


@pytest.mark.parametrize(("call", "password"), [("input", False), (GETPASS, True)])
@pytest.mark.parametrize("where", ["main shell", "subshell"])
def test_a_cell_asks_for_input(client: Client, call: str, password: bool, where: str) -> None:
    subshell = client.create_subshell() if where == "subshell" else None
    cell = client.execute(f"{call}('your name? ')", subshell=subshell)
    question = cell.wait_input_request()
    assert question.content == {"prompt": "your name? ", "password": password}
    assert question.parent.get("subshell_id") == subshell
    client.answer(question, "Ada")
    assert cell.result() == "'Ada'"


def test_an_answer_may_come_without_a_parent(client: Client) -> None:
    # jupyter_client's own `input`, and with it jupyter console, sends none.
    for subshell in (None, client.create_subshell()):
        cell = client.execute("input()", subshell=subshell)
        cell.wait_input_request()
        client.answer(None, "orphan")
        assert cell.result() == "'orphan'"


def test_several_questions_of_one_cell(client: Client) -> None:
    cell = client.execute("[input(str(number)) for number in range(3)]")
    for number in range(3):
        question = client.wait_for(
            lambda m, number=number: (
                m.type == "input_request" and m.content["prompt"] == str(number)
            ),
            f"question {number}",
        )
        client.answer(question, f"answer {number}")
    assert cell.result() == "['answer 0', 'answer 1', 'answer 2']"


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "in reverse"])
def test_answers_of_subshells_that_ask_at_once_never_swap(client: Client, order: int) -> None:
    shells = [None, *client.create_subshells(3)]
    cells = [client.execute("input('who?')", subshell=subshell) for subshell in shells]
    questions = [cell.wait_input_request() for cell in cells]
    for number in range(len(shells))[::order]:
        client.answer(questions[number], f"answer {number}")
    assert [cell.result() for cell in cells] == [f"'answer {number}'" for number in range(4)]


def test_each_client_is_asked_for_its_own_cell(kernel: Kernel) -> None:
    clients = [kernel.connect(), kernel.connect()]
    cells = [client.execute("input()", subshell=client.create_subshell()) for client in clients]
    questions = [cell.wait_input_request() for cell in cells]
    for number in (1, 0):
        clients[number].answer(questions[number], f"client {number}")
    assert [cell.result() for cell in cells] == ["'client 0'", "'client 1'"]
    for client in clients:
        assert [m.type for m in client.memory if m.channel == "stdin"] == ["input_request"]


def test_a_client_that_allows_no_stdin_is_not_asked(client: Client) -> None:
    for subshell in (None, client.create_subshell()):
        cell = client.execute("input()", allow_stdin=False, subshell=subshell)
        assert cell.error()["ename"] == "StdinNotImplementedError"
    # The next question is the first that this client hears of.
    cell = client.execute("input('first')")
    assert cell.wait_input_request() == next(m for m in client.memory if m.channel == "stdin")
    client.answer(cell.wait_input_request(), "")
    cell.ok()


def test_an_answer_nobody_asked_for_is_not_kept(client: Client) -> None:
    cell = client.execute("input()")
    question = cell.wait_input_request()
    client.answer(question, "right")
    client.answer(question, "again")
    assert cell.result() == "'right'"
    later = client.execute("input()")
    client.answer(later.wait_input_request(), "for this one")
    assert later.result() == "'for this one'"


def test_an_interrupt_ends_a_question_and_its_late_answer_goes_nowhere(client: Client) -> None:
    subshell = client.create_subshell()
    for where in (None, subshell):
        cell = client.execute("input()", subshell=where)
        stale = cell.wait_input_request()
        client.request("interrupt_request", channel="control").ok()
        assert cell.error()["ename"] == "KeyboardInterrupt"
        later = client.execute("input()", subshell=where)
        fresh = later.wait_input_request()
        client.answer(stale, "too late")
        client.answer(fresh, "in time")
        assert later.result() == "'in time'"
