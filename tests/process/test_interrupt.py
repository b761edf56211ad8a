"""Interrupts by message: they end whatever runs, in every shell, and never what comes after."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trio_subshells.wire import ConnectionInfo

from ._cells import CALL, ENDLESS, GENTLE, STUBBORN
from ._client import Client, Kernel

#: A thread that is not the main one can't be called back from this by any means that Python has.
LOCK = "import threading; print('in'); threading.Event().wait()"

#: Here the signal of an interrupt comes when its thread has just looked whether there is one.
TOO_LATE = """
import signal, threading
send = signal.pthread_kill
def send_to_another(thread, number):
    signal.pthread_kill = send
    send(threading.get_ident(), number)
signal.pthread_kill = send_to_another
print("in")
threading.Event().wait()
"""


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


@pytest.mark.skipif(sys.platform == "win32", reason="signals are for the process there")
def test_an_interrupt_ends_a_call_that_begins_as_its_signal_comes(client: Client) -> None:
    cell = client.execute(TOO_LATE)
    cell.wait_published("stream", "in")
    client.request("interrupt_request", channel="control").ok()
    assert cell.error()["ename"] == "KeyboardInterrupt"
    assert client.evaluate("signal.pthread_kill is send") == "True"


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


@pytest.mark.parametrize("how", ["message", "signal"])
def test_an_interrupt_is_for_the_whole_kernel(client: Client, kernel: Kernel, how: str) -> None:
    if how == "signal" and sys.platform == "win32":
        pytest.skip("Windows has no SIGINT for one process")
    one, other = client.create_subshells(2)
    cells = [
        client.execute(GENTLE["sleep"]),
        client.execute(GENTLE["loop"], subshell=one),
        client.execute(GENTLE["await"], subshell=other),
    ]
    for cell in cells:
        cell.wait_published("stream", "in")
    if how == "signal":
        kernel.process.send_signal(signal.SIGINT)
    else:
        client.request("interrupt_request", channel="control").ok()
    assert [cell.error()["ename"] for cell in cells] == ["KeyboardInterrupt"] * 3
    for subshell in (None, one, other):
        assert client.execute("1 + 1", subshell=subshell).result() == "2"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process there")
def test_an_interrupt_ends_a_start_that_takes_long(tmp_path: Path) -> None:
    script, connection = tmp_path / "slow.py", tmp_path / "connection.json"
    script.write_text(
        """
from contextlib import asynccontextmanager

import trio
import trio_subshells as ts


class Slow(ts.Kernel):
    implementation = "slow"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="slow")

    @asynccontextmanager
    async def lifespan(self, kernel):
        print("starting", flush=True)
        await trio.sleep_forever()
        yield

    async def execute(self, cell):
        pass


ts.main(Slow)
"""
    )
    ConnectionInfo.local().write_file(connection)
    with subprocess.Popen(
        [sys.executable, str(script), "-f", str(connection)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "starting\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted before it had started" in said
    assert "Traceback" not in said


def test_an_interrupt_of_one_subshell_hits_no_other(client: Client) -> None:
    info = client.request("kernel_info_request", channel="control").ok()
    assert "trio_subshells.interrupt_subshell" in info["supported_features"]
    aim, other = client.create_subshells(2)
    shells = {None: "loop", other: "await", aim: "sleep"}
    cells = {
        subshell: client.execute(GENTLE[what], subshell=subshell)
        for subshell, what in shells.items()
    }
    for cell in cells.values():
        cell.wait_published("stream", "in")
    request = client.request("interrupt_request", {"subshell_id": aim}, channel="control")
    request.ok()
    assert cells[aim].error()["ename"] == "KeyboardInterrupt"
    assert client.execute("1 + 1", subshell=aim).result() == "2"
    assert not cells[None].is_answered
    assert not cells[other].is_answered
    client.request("interrupt_request", channel="control").ok()
    assert [cells[each].error()["ename"] for each in (None, other)] == ["KeyboardInterrupt"] * 2


def test_an_interrupt_that_has_no_effect_says_so(client: Client) -> None:
    cell = client.execute(CALL)
    cell.wait_published("stream", "in")
    interrupt = client.request("interrupt_request", channel="control")
    assert client.execute("1 + 1", subshell=client.create_subshell()).result() == "2"
    error = interrupt.error()
    assert error["ename"] == "TimeoutError"
    assert "main" in error["evalue"]
    assert not cell.is_answered


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


#: Each says when it has been interrupted, as far as it knows, and goes on.
REFUSING = {
    "catches BaseException": (
        "import time\n"
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(3600)\n"
        "    except BaseException:\n"
        "        print('caught')"
    ),
    "catches BaseException, awaits": (
        "import trio\n"
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        await trio.sleep(3600)\n"
        "    except BaseException:\n"
        "        print('caught')"
    ),
    "shields itself": STUBBORN["shields itself"],
}


@pytest.mark.parametrize("where", ["main shell", "subshell"])
def test_one_interrupt_may_be_refused(client: Client, where: str) -> None:
    subshell = client.create_subshell() if where == "subshell" else None
    for what, code in REFUSING.items():
        print("interrupting a cell that is:", what)
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "in")
        interrupt = client.request("interrupt_request", channel="control")
        if "caught" in code:
            cell.wait_published("stream", "caught")
        assert not cell.is_answered
        again = client.request("interrupt_request", channel="control")
        assert cell.error()["ename"] == "KeyboardInterrupt"
        for request in (interrupt, again):
            request.ok()


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
    for what, code in ENDLESS.items():
        print("a timeout of a cell that is:", what)
        content = {"code": code, "allow_stdin": True}
        cell = client.request(
            "execute_request", content, subshell=subshell, metadata={"timeout": 0.1}
        )
        error = cell.error()
        assert error["ename"] == "CellTimeout"
        assert "0.1 s" in error["evalue"]
        assert client.execute("1 + 1", subshell=subshell).result() == "2"
