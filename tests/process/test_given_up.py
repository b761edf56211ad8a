"""Cells that nothing can end, as they are in a call into C: their requests are answered in time."""

from __future__ import annotations

import time

import pytest

from ._cells import CALL
from ._client import PATIENCE, Client, Kernel, Request

IN_TIME = {"timeout": 0.2, "give_up_after": 0.3}


def _call(client: Client, subshell: str | None = None, **metadata: float) -> Request:
    content = {"code": CALL, "silent": False, "store_history": True, "allow_stdin": False}
    cell = client.request("execute_request", content, subshell=subshell, metadata=metadata)
    cell.wait_published("stream", "in")
    return cell


@pytest.mark.parametrize("where", ["main", "subshell"])
def test_a_timeout_answers_for_a_call_that_it_can_t_end(client: Client, where: str) -> None:
    subshell = None if where == "main" else client.create_subshell()
    other = client.create_subshell()
    cell = _call(client, subshell, **IN_TIME)
    queued = client.execute("never = 1", subshell=subshell)
    error = cell.error()
    assert error["ename"] == "CellTimeout"
    assert "timeout was 0.2 s" in error["evalue"]
    assert error["execution_count"] == 1
    assert cell.output_types() == ["stream", "error"]
    assert queued.finished()["status"] == "aborted"
    # What comes later is told at once that the shell is occupied, and all others work.
    assert client.execute("1", subshell=subshell).error()["ename"] == "ShellOccupied"
    complete = client.request("complete_request", {"code": "a", "cursor_pos": 1}, subshell=subshell)
    assert complete.error()["ename"] == "ShellOccupied"
    assert client.execute("'never' in globals()", subshell=other).result() == "False"
    client.request("kernel_info_request").ok()
    # Then the kernel is shut down, and ends in time: see the fixture.


def test_a_shell_that_was_occupied_works_again_when_the_call_returns(client: Client) -> None:
    client.execute("import threading; gate = threading.Event()").ok()
    subshell = client.create_subshell()
    content = {"code": "print('in')\ngate.wait()\nprint('late')", "silent": False}
    cell = client.request("execute_request", content, subshell=subshell, metadata=IN_TIME)
    assert cell.error()["ename"] == "CellTimeout"
    client.execute("gate.set()").ok()
    deadline = time.monotonic() + PATIENCE
    while (reply := client.execute("1 + 1", subshell=subshell).finished())["status"] != "ok":
        assert reply["ename"] == "ShellOccupied"
        assert time.monotonic() < deadline
    assert cell.finished() == cell.reply()  # of which nothing has been said since
    assert len([each for each in client.memory if each.parent_id == cell.id and each.state]) == 2


def test_a_delete_answers_for_a_call_that_it_can_t_end(client: Client) -> None:
    subshell = client.create_subshell()
    cell = _call(client, subshell)
    queued = client.execute("never = 1", subshell=subshell)
    client.request("kernel_info_request").ok()
    delete = client.request(
        "delete_subshell_request", {"subshell_id": subshell, "timeout": 0.5}, channel="control"
    )
    assert delete.error()["ename"] == "SubshellUnjoinable"
    assert cell.error()["ename"] == "SubshellDeleted"
    assert cell.output_types() == ["stream", "error"]
    assert queued.finished()["status"] == "aborted"
    listed = client.request("list_subshell_request", channel="control").ok()
    assert listed["unjoinable"] == [subshell]
    assert client.execute("'never' in globals()").result() == "False"


@pytest.mark.parametrize("where", ["main", "subshell"])
def test_a_shutdown_answers_for_a_call_that_it_can_t_end(
    client: Client, kernel: Kernel, where: str
) -> None:
    subshell = None if where == "main" else client.create_subshell()
    cell = _call(client, subshell)
    queued = client.execute("never = 1", subshell=subshell)
    client.request("kernel_info_request").ok()
    client.request("shutdown_request", {"restart": False}, channel="control").ok()
    assert kernel.wait() == 0
    # All of it has been delivered, although the process has left by force.
    assert cell.error()["ename"] == "KernelShutdown"
    assert cell.output_types() == ["stream", "error"]
    assert queued.finished()["status"] == "aborted"
