"""Interrupts by message: they end whatever runs, in every shell, and never what comes after."""

from __future__ import annotations

import pytest

from ._cells import GENTLE, STUBBORN
from ._client import Client

#: A thread that is not the main one can't be called back from this by any means that Python has.
LOCK = "import threading; print('in'); threading.Event().wait()"


def test_an_interrupt_ends_a_cell_of_the_main_shell(client: Client) -> None:
    for what, code in {**GENTLE, "lock": LOCK}.items():
        print("interrupting the main shell, whose cell is:", what)
        cell = client.execute(code)
        cell.wait_published("stream", "in")
        queued = client.execute("'never'")
        interrupt = client.request("interrupt_request", channel="control")
        assert interrupt.ok() == {"status": "ok"}
        error = cell.error()
        assert error["ename"] == "KeyboardInterrupt"
        assert cell.stream() == "in\n"
        assert cell.stream("stderr") == ""
        assert cell.output_types() == ["stream", "error"]
        assert queued.finished()["status"] == "aborted"
        assert client.execute("1 + 1").result() == "2"


def test_an_interrupt_ends_a_cell_of_a_subshell(client: Client) -> None:
    subshell = client.create_subshell()
    for what, code in GENTLE.items():
        print("interrupting a subshell, whose cell is:", what)
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "in")
        client.request("interrupt_request", channel="control").ok()
        assert cell.error()["ename"] == "KeyboardInterrupt"
        assert client.execute("1 + 1", subshell=subshell).result() == "2"
        assert client.list_subshells() == [subshell]


def test_an_interrupt_is_for_the_whole_kernel(client: Client) -> None:
    one, other = client.create_subshells(2)
    cells = [
        client.execute(GENTLE["sleep"]),
        client.execute(GENTLE["loop"], subshell=one),
        client.execute(GENTLE["await"], subshell=other),
    ]
    for cell in cells:
        cell.wait_published("stream", "in")
    client.request("interrupt_request", channel="control").ok()
    assert [cell.error()["ename"] for cell in cells] == ["KeyboardInterrupt"] * 3
    for subshell in (None, one, other):
        assert client.execute("1 + 1", subshell=subshell).result() == "2"


def test_an_interrupt_of_an_idle_kernel_hits_nothing(client: Client) -> None:
    shells = [None, client.create_subshell()]
    for _ in range(10):
        client.request("interrupt_request", channel="control").ok()
        for shell in shells:
            assert client.execute("sum(range(10_000))", subshell=shell).result() == "49995000"


def test_an_interrupt_never_lands_in_a_later_cell(client: Client) -> None:
    client.execute("victims = []").ok()
    later = (
        "try:\n"
        "    for _ in range(20_000): pass\n"
        "except KeyboardInterrupt:\n"
        "    victims.append('later')"
    )
    for shell in (None, client.create_subshell()):
        for _ in range(20):
            # Short enough to end by itself about when the interrupt arrives.
            client.execute("print('in')\nfor _ in range(20_000): pass", subshell=shell)
            interrupt = client.request("interrupt_request", channel="control")
            interrupt.ok()
            client.execute(later, subshell=shell).finished()
    assert client.evaluate("victims") == "[]"


def test_a_cell_may_catch_the_interrupt_and_go_on(client: Client) -> None:
    cell = client.execute(
        "import time\n"
        "try:\n"
        "    print('in')\n"
        "    time.sleep(3600)\n"
        "except KeyboardInterrupt:\n"
        "    print('caught')\n"
        "'went on'"
    )
    cell.wait_published("stream", "in")
    client.request("interrupt_request", channel="control").ok()
    assert cell.result() == "'went on'"
    assert "caught" in cell.stream()


@pytest.mark.parametrize("where", ["main shell", "subshell"])
def test_a_second_interrupt_takes_no_for_an_answer(client: Client, where: str) -> None:
    subshell = client.create_subshell() if where == "subshell" else None
    for what, code in STUBBORN.items():
        print("interrupting twice a cell that is:", what)
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "in")
        interrupts = [client.request("interrupt_request", channel="control") for _ in range(2)]
        assert cell.error()["ename"] == "KeyboardInterrupt"
        for interrupt in interrupts:
            interrupt.ok()
        assert client.execute("1 + 1", subshell=subshell).result() == "2"


@pytest.mark.parametrize("where", ["main shell", "subshell"])
def test_a_timeout_ends_a_cell(client: Client, where: str) -> None:
    subshell = client.create_subshell() if where == "subshell" else None
    for what in ("loop", "sleep", "await", *STUBBORN):
        print("a timeout of a cell that is:", what)
        content = {"code": (GENTLE | STUBBORN)[what], "allow_stdin": False}
        cell = client.request(
            "execute_request", content, subshell=subshell, metadata={"timeout": 0.1}
        )
        error = cell.error()
        assert error["ename"] == "CellTimeout"
        assert "0.1 s" in error["evalue"]
        assert client.execute("1 + 1", subshell=subshell).result() == "2"
