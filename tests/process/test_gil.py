"""A call into C that holds the GIL stops the whole kernel: when it is over, all is as it was."""

from __future__ import annotations

import pytest

from ._client import Client, Kernel, Request

#: Takes half a second or so: the power's time grows with the exponent's length.
CODE = """
import time
def power(bits):
    start = time.perf_counter()
    pow(7, 1 << bits, 3 ** 2000)
    return time.perf_counter() - start
bits = int(3000 * 0.5 / min(power(3000) for _ in range(3)))
"""
HOLDS = "print('in', flush=True); power(bits); 'over'"


@pytest.fixture(params=["main shell", "subshell"])
def where(request: pytest.FixtureRequest, client: Client) -> str | None:
    client.execute(CODE).ok()
    return client.create_subshell() if request.param == "subshell" else None


def holding(client: Client, where: str | None, **metadata: float) -> Request:
    content = {"code": HOLDS, "silent": False, "store_history": True}
    cell = client.request("execute_request", content, subshell=where, metadata=metadata)
    cell.wait_published("stream", "in")
    return cell


def works(client: Client, *subshells: str | None) -> None:
    client.request("kernel_info_request", channel="control").ok()
    for subshell in (None, *subshells):
        assert client.execute("1 + 1", subshell=subshell).result() == "2"


def test_a_delete_comes_after_it(client: Client) -> None:
    client.execute(CODE).ok()
    doomed, neighbour = client.create_subshells(2)
    cell = holding(client, doomed)
    client.delete_subshell(doomed).ok()
    reply = cell.finished()
    assert reply["status"] == "ok" or reply["ename"] == "SubshellDeleted"
    assert client.list_subshells() == [neighbour]
    works(client, neighbour)


def test_an_interrupt_comes_after_it(client: Client, where: str | None) -> None:
    cell = holding(client, where)
    client.request("interrupt_request", channel="control").ok()
    reply = cell.finished()
    assert reply["status"] == "ok" or reply["ename"] == "KeyboardInterrupt"
    works(client, where)


def test_a_timeout_comes_after_it(client: Client, where: str | None) -> None:
    reply = holding(client, where, timeout=0.1).finished()
    assert reply["status"] == "ok" or reply["ename"] == "CellTimeout"
    works(client, where)


def test_a_shutdown_comes_after_it(client: Client, kernel: Kernel, where: str | None) -> None:
    cell = holding(client, where)
    request = client.request("shutdown_request", {"restart": False}, channel="control")
    assert request.ok() == {"status": "ok", "restart": False}
    assert kernel.wait() == 0
    reply = cell.finished()
    assert reply["status"] == "ok" or reply["ename"] == "KernelShutdown"
