"""Interrupts by message: they end whatever runs, in every shell, and never what comes after."""

from __future__ import annotations

import pytest

from ._client import Client

ENDLESS = {
    "sleep": "import time; print('in'); time.sleep(3600)",
    "loop": "print('in')\nwhile True: pass",
    "await": "import trio; print('in'); await trio.sleep_forever()",
    "nursery": (
        "import trio\n"
        "async with trio.open_nursery() as nursery:\n"
        "    nursery.start_soon(trio.sleep_forever)\n"
        "    print('in')"
    ),
    "lock": "import threading; print('in'); threading.Event().wait()",
}
#: A thread that is not the main one can't be called back from these by any means that Python has.
UNREACHABLE_IN_A_THREAD = {"sleep", "lock"}


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS)
def test_an_interrupt_ends_a_cell_of_the_main_shell(client: Client, code: str) -> None:
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


@pytest.mark.parametrize("what", sorted(ENDLESS.keys() - UNREACHABLE_IN_A_THREAD))
def test_an_interrupt_ends_a_cell_of_a_subshell(client: Client, what: str) -> None:
    subshell = client.create_subshell()
    cell = client.execute(ENDLESS[what], subshell=subshell)
    cell.wait_published("stream", "in")
    client.request("interrupt_request", channel="control").ok()
    assert cell.error()["ename"] == "KeyboardInterrupt"
    assert client.execute("1 + 1", subshell=subshell).result() == "2"
    assert client.list_subshells() == [subshell]


def test_an_interrupt_is_for_the_whole_kernel(client: Client) -> None:
    one, other = client.create_subshells(2)
    cells = [
        client.execute(ENDLESS["sleep"]),
        client.execute(ENDLESS["loop"], subshell=one),
        client.execute(ENDLESS["await"], subshell=other),
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
