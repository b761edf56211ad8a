"""The end of a kernel: it answers, ends whatever runs, exits with 0 and leaves nothing behind."""

from __future__ import annotations

import psutil
import pytest

from ._cells import ENDLESS
from ._client import Client, Kernel


@pytest.mark.parametrize("restart", [False, True])
def test_a_shutdown_is_answered_and_done(client: Client, kernel: Kernel, restart: bool) -> None:
    client.create_subshell()
    request = client.request("shutdown_request", {"restart": restart}, channel="control")
    assert request.ok() == {"status": "ok", "restart": restart}
    assert kernel.wait() == 0


@pytest.mark.parametrize(
    "in_main",
    [
        "loop",
        "await",
        "sleep",
        "input",
        "catches Exception",
        "catches BaseException",
        "catches BaseException, awaits",
        "shields itself",
        "finally with awaits",
        "a task in the background",
    ],
)
def test_a_shutdown_ends_a_busy_kernel(client: Client, kernel: Kernel, in_main: str) -> None:
    """Whatever runs in the main shell, and everything else at the same time in subshells."""
    cells = [client.execute(ENDLESS[in_main])]
    if in_main == "await":
        cells += [
            client.execute(code, subshell=client.create_subshell()) for code in ENDLESS.values()
        ]
    for cell in cells:
        cell.wait_published("stream", "in")
    children = psutil.Process(kernel.process.pid).children(recursive=True)
    request = client.request("shutdown_request", {"restart": False}, channel="control")
    assert request.reply() == {"status": "ok", "restart": False}
    assert kernel.wait() == 0
    for cell in cells:
        assert cell.finished()["status"] == "error"
    assert not [child for child in children if child.is_running()]


def test_running_and_queued_requests_are_answered_before_the_end(
    client: Client, kernel: Kernel
) -> None:
    subshell = client.create_subshell()
    requests = []
    for where in (None, subshell):
        cell = client.execute(
            "import trio; print('in'); await trio.sleep_forever()", subshell=where
        )
        cell.wait_published("stream", "in")
        requests += [cell, client.execute("'never'", subshell=where)]
    client.request("kernel_info_request").ok()  # all have passed the shell channel
    client.request("shutdown_request", {"restart": False}, channel="control").ok()
    for request in requests:
        assert request.finished()["status"] in {"error", "aborted"}
    assert kernel.wait() == 0


def test_a_shutdown_on_shell_still_works(client: Client, kernel: Kernel) -> None:
    # Deprecated since 5.4, but older clients send nothing else.
    request = client.request("shutdown_request", {"restart": False})
    assert request.reply()["status"] == "ok"
    assert kernel.wait() == 0


def test_a_restart_by_the_manager_gives_a_new_kernel_on_the_same_ports(
    client: Client, kernel: Kernel
) -> None:
    client.execute("x = 1").ok()
    [session] = {m.header["session"] for m in client.memory}
    old = kernel.process.pid
    kernel.manager.restart_kernel()
    assert kernel.process.pid != old
    later = kernel.connect()
    assert {m.header["session"] for m in later.memory} != {session}
    assert later.execute("'x' in globals()").result() == "False"
    assert later.list_subshells() == []
