"""SIGTERM: the kernel ends as by a shutdown_request."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from ._cells import CALL, ENDLESS
from ._client import PATIENCE, Client, Kernel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")

FORK = (
    "import multiprocessing, os, time, warnings\n"
    "warnings.filterwarnings('ignore', '.*fork', DeprecationWarning)\n"
    "context = multiprocessing.get_context('fork')\n"
)


def _terminate(kernel: Kernel) -> None:
    kernel.process.send_signal(signal.SIGTERM)


def test_everything_is_answered_and_the_kernel_exits_with_0(client: Client, kernel: Kernel) -> None:
    places = [None, *client.create_subshells(3)]
    codes = [ENDLESS[each] for each in ("sleep", "await", "loop", "catches BaseException")]
    cells = [client.execute(code, subshell=at) for code, at in zip(codes, places, strict=True)]
    for cell in cells:
        cell.wait_published("stream", "in")
    queued = [client.execute("never = 1", subshell=place) for place in places]
    client.request("kernel_info_request").ok()
    _terminate(kernel)
    assert kernel.wait() == 0
    for cell in cells:
        assert cell.error()["ename"] == "KernelShutdown"
    for each in queued:
        assert each.finished()["status"] == "aborted"
    assert "SIGTERM" in kernel.log.read_text()


@pytest.mark.parametrize("where", ["main", "subshell"])
def test_a_call_that_never_returns_doesn_t_keep_the_kernel(
    client: Client, kernel: Kernel, where: str
) -> None:
    cell = client.execute(CALL, subshell=None if where == "main" else client.create_subshell())
    cell.wait_published("stream", "in")
    _terminate(kernel)
    assert kernel.wait() == 0
    assert cell.error()["ename"] == "KernelShutdown"


def test_a_second_one_ends_it_at_once(client: Client, kernel: Kernel, tmp_path: Path) -> None:
    """And runs nothing that is registered for the end, which may take as long as it likes."""
    path = tmp_path / "run at the end"
    client.execute(
        f"import atexit, pathlib; atexit.register(pathlib.Path({str(path)!r}).touch)"
    ).ok()
    client.execute(CALL).wait_published("stream", "in")
    subshell = client.create_subshell()
    _terminate(kernel)
    deadline = time.monotonic() + PATIENCE
    while "ename" not in client.execute("1", subshell=subshell).finished():
        assert time.monotonic() < deadline  # it has not begun to end
    while not kernel.has_exited:
        _terminate(kernel)  # one that is sent twice within some milliseconds is taken for one
        with suppress(TimeoutExpired):
            kernel.process.wait(0.2)
    assert kernel.wait() == 128 + signal.SIGTERM
    assert not path.exists()


def test_the_handler_of_a_cell_takes_its_place(client: Client, kernel: Kernel) -> None:
    client.execute(
        "import signal, trio\n"
        "came = trio.Event()\n"
        "before = signal.signal(signal.SIGTERM, lambda *args: came.set())"
    ).ok()
    cell = client.execute("print('in'); await came.wait()")
    cell.wait_published("stream", "in")
    _terminate(kernel)
    cell.ok()
    client.request("kernel_info_request", channel="control").ok()
    # And it can be given back its own.
    client.execute("signal.signal(signal.SIGTERM, before)").ok()
    _terminate(kernel)
    assert kernel.wait() == 0


def test_what_ends_a_forked_child_doesn_t_end_the_kernel(client: Client) -> None:
    for subshell in (None, client.create_subshell()):
        codes = client.execute(
            FORK + "codes = set()\n"
            "for _ in range(20):\n"
            "    process = context.Process(target=time.sleep, args=(3600,))\n"
            "    process.start()\n"
            "    process.terminate()\n"
            "    process.join()\n"
            "    codes.add(process.exitcode)\n"
            "codes",
            subshell=subshell,
        )
        assert codes.result() == str({-signal.SIGTERM})
    client.request("kernel_info_request", channel="control").ok()
    assert client.execute("1 + 1").result() == "2"
