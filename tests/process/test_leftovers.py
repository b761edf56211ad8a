"""Processes and threads of cells: a shutdown ends them all, a delete what its cell waits for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ._client import PATIENCE, Client, Kernel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="children are not found there")

SETUP = """
import multiprocessing, os, signal, subprocess, sys, threading, time, trio, warnings
warnings.filterwarnings('ignore', '.*fork', DeprecationWarning)  # of forks beside threads
DEAF = [sys.executable, '-c',
    'import signal, sys, time\\n'
    'for each in sys.argv[1:]: signal.signal(int(each), signal.SIG_IGN)\\n'
    'print("deaf", flush=True)\\n'
    'time.sleep(3600)']
def child():
    print('in')
    time.sleep(3600)
"""

#: What cells leave behind. Nothing of it ends by itself.
LEFT_BEHIND = {
    "processes": """
children = [subprocess.Popen(['sleep', '3600']) for _ in range(3)]
shell = subprocess.Popen('sleep 3600; true', shell=True)
subprocess.run('sleep 3600 & sleep 3600 &', shell=True)  # their parent has ended
zombie = subprocess.Popen(['true'], stdout=subprocess.PIPE)
zombie.stdout.read()
os.fork() or time.sleep(3600)
""",
    "processes that don't obey": """
deaf = subprocess.Popen([*DEAF, '2', '15'], stdout=subprocess.PIPE)
deaf.stdout.readline()
""",
    "multiprocessing": """
for method in ('fork', 'spawn', 'forkserver'):
    context = multiprocessing.get_context(method)
    for daemon in (True, False):
        context.Process(target=time.sleep, args=(3600,), daemon=daemon).start()
    globals()[method] = context.Pool(1)
    globals()[method].apply(abs, (-1,))
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=100)
""",
    "a pool that doesn't obey": """
pool = multiprocessing.get_context('fork').Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_IGN))
pool.apply(abs, (-1,))
pool.apply_async(time.sleep, (3600,))
""",
    "threads": """
threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
threads = ThreadPoolExecutor(1)
threads.submit(time.sleep, 3600)
processes = ProcessPoolExecutor(1, multiprocessing.get_context('fork'))
processes.submit(time.sleep, 3600)
with trio.move_on_after(0):
    await trio.to_thread.run_sync(time.sleep, 3600, abandon_on_cancel=True)
""",
    "what is started at the end": """
import atexit
atexit.register(subprocess.Popen, ['sleep', '3600'])
""",
}

#: What a cell may be waiting for, in a call that nothing interrupts in a thread.
WAITS = [
    "subprocess.run('echo in; sleep 3600', shell=True)",
    "subprocess.Popen('echo in; exec sleep 3600', shell=True).communicate()",
    "os.system('echo in; sleep 3600; true')",
    "subprocess.run([*DEAF, '2', '15'])",
    "%%bash\necho in\nsleep 3600",
    "!echo in; sleep 3600",
    "await trio.run_process('echo in; exec sleep 3600', shell=True)",
    "await trio.to_thread.run_sync(lambda: subprocess.run('echo in; sleep 3600', shell=True))",
    "p = multiprocessing.get_context('fork').Process(target=child)\np.start(); p.join()",
]


def shut_down(client: Client, kernel: Kernel, *, restart: bool = False) -> list[psutil.Process]:
    """Shut a kernel down; return who of its children, or of its session, lives on."""
    session = kernel.process.pid
    children = descendants(kernel)
    request = client.request("shutdown_request", {"restart": restart}, channel="control")
    assert request.ok() == {"status": "ok", "restart": restart}
    assert kernel.wait() == 0
    return [each for each in {*children, *in_session(session)} if lives(each)]


def descendants(kernel: Kernel) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(kernel.process.pid).children(recursive=True)
    return found


def in_session(session: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == session:
                yield process


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("cell", "restart"),
    list(zip(LEFT_BEHIND, [False, True, True, False, False, False], strict=True)),
)
def test_a_shutdown_leaves_nothing_behind(
    client: Client, kernel: Kernel, cell: str, restart: bool
) -> None:
    client.execute(SETUP).ok()
    for subshell in (None, client.create_subshell()):
        client.execute(LEFT_BEHIND[cell], subshell=subshell).ok()
    assert shut_down(client, kernel, restart=restart) == []


def test_a_shutdown_by_force_leaves_nothing_behind(client: Client, kernel: Kernel) -> None:
    client.execute(SETUP + "import atexit; atexit.register(os.write, 1, b'last words')").ok()
    client.execute(LEFT_BEHIND["processes"]).ok()
    client.execute(LEFT_BEHIND["processes that don't obey"]).ok()
    get_stuck(client)
    assert shut_down(client, kernel) == []
    assert "can't be ended" in kernel.log.read_text()
    assert "last words" in kernel.log.read_text()


def test_a_shutdown_by_force_waits_for_no_handler(client: Client, kernel: Kernel) -> None:
    client.execute(SETUP + "import atexit; atexit.register(time.sleep, 3600)").ok()
    get_stuck(client)
    assert shut_down(client, kernel) == []


def get_stuck(client: Client) -> None:
    """Have a subshell in a call that nothing ends."""
    code = "gate = threading.Lock(); gate.acquire(); print('in'); gate.acquire()"
    stuck = client.execute(code, subshell=client.create_subshell())
    stuck.wait_published("stream", "in")


def test_what_is_detached_on_purpose_lives_on(client: Client, kernel: Kernel) -> None:
    client.execute(SETUP).ok()
    pid = int(
        client.execute(
            "subprocess.Popen(['sleep', '3600'], start_new_session=True).pid",
        ).result()
    )
    detached = psutil.Process(pid)
    try:
        assert shut_down(client, kernel) == [detached]
    finally:
        detached.kill()


def test_a_deleted_subshell_waits_for_no_process(client: Client, kernel: Kernel) -> None:
    client.execute(SETUP).ok()
    for code in WAITS:
        subshell = client.create_subshell()
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "deaf" if "DEAF" in code else "in")
        children = descendants(kernel)
        assert children, code
        assert client.delete_subshell(subshell).finished()["status"] == "ok", code
        assert cell.error()["ename"] == "SubshellDeleted", code
        assert client.list_subshells() == []
        assert not [child for child in children if lives(child)], code


def test_a_deleted_subshell_waits_for_no_captured_command(
    client: Client, kernel: Kernel, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    subshell = client.create_subshell()
    cell = client.execute(f"lines = !touch {begun}; sleep 3600", subshell=subshell)
    deadline = time.monotonic() + PATIENCE
    while not begun.exists():
        assert time.monotonic() < deadline
        client.drain(timeout=0.1)
    client.delete_subshell(subshell).ok()
    assert cell.error()["ename"] == "SubshellDeleted"
    assert not [child for child in descendants(kernel) if lives(child)]


@pytest.mark.parametrize("where", ["main shell", "subshell"])
@pytest.mark.parametrize("by", ["interrupt", "timeout"])
def test_an_interrupted_cell_waits_for_no_process(
    client: Client, kernel: Kernel, where: str, by: str
) -> None:
    client.execute(SETUP).ok()
    subshell = client.create_subshell() if where == "subshell" else None
    background = int(client.execute("subprocess.Popen(['sleep', '3600']).pid").result())
    code = "subprocess.run('echo in; sleep 3600', shell=True)"
    if by == "interrupt":
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "in")
        client.request("interrupt_request", channel="control").ok()
        assert cell.error()["ename"] == "KeyboardInterrupt"
    else:
        content = {"code": code, "silent": False}
        cell = client.request(
            "execute_request", content, subshell=subshell, metadata={"timeout": 0.2}
        )
        assert cell.error()["ename"] == "CellTimeout"
    # What nobody waits for isn't meant.
    assert [child.pid for child in descendants(kernel) if lives(child)] == [background]
    assert client.execute("1 + 1", subshell=subshell).result() == "2"


def test_what_runs_in_the_background_outlives_its_subshell(client: Client, kernel: Kernel) -> None:
    client.execute(SETUP).ok()
    subshell = client.create_subshell()
    client.execute(
        "p = subprocess.Popen(['sleep', '3600'])\n"
        # Another thread waits for it, which isn't the cell any more.
        "threading.Thread(target=p.wait, daemon=True).start()",
        subshell=subshell,
    ).ok()
    loops = client.execute("print('in')\nwhile True: pass", subshell=subshell)
    loops.wait_published("stream", "in")
    client.delete_subshell(subshell).ok()
    [child] = descendants(kernel)
    assert lives(child)
    assert shut_down(client, kernel) == []
