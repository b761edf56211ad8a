"""Cells that fork or start programs: the output comes to its cell, the parent isn't disturbed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ._client import PATIENCE, Client

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SETUP = """
import multiprocessing, os, signal, subprocess, sys, trio, warnings
warnings.filterwarnings('ignore', '.*fork', DeprecationWarning)  # of forks beside threads
def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def work(number):
    print('work', number)
    return number * number
def fail():
    raise ValueError('no such number')
"""

#: What a forked child does, what is seen of it, and its exit code.
CHILDREN = {
    "print('child')": ("child\n", "", 0),
    "print('child'); os._exit(7)": ("child\n", "", 7),
    "print('child', end=''); sys.exit(3)": ("child", "", 3),
    "print('child'); 1/0": ("child\n", "ZeroDivisionError: division by zero\n", 1),
    "os.write(1, b'out'); os.write(2, b'err')": ("out", "err", 0),
    "os.execlp('echo', 'echo', 'child')": ("child\n", "", 0),
    "display('child')": ("'child'\n", "", 0),
    "await trio.sleep(0)": ("", "(trio.run_process).\n", 1),
    "print('child'); os.kill(os.getpid(), 9)": ("child\n", "", -9),
    "os.kill(os.getpid(), signal.SIGINT); signal.pause()": ("", "KeyboardInterrupt\n", 1),
    "inner = os.fork(); inner and wait(inner); print('child')": ("child\nchild\n", "", 0),
}

#: What starts processes, and what is seen of it; stderr after the bar.
PROGRAMS = {
    "print('a'); subprocess.run('echo b; echo c >&2', shell=True); print('d')": "a\nb\nd\n|c\n",
    "subprocess.run('echo a; echo b >&2', shell=True, stderr=subprocess.STDOUT)": "a\nb\n|",
    "print(subprocess.check_output(['echo', 'a']))": "b'a\\n'\n|",
    "subprocess.run(['echo', 'a'], stdout=subprocess.DEVNULL)": "|",
    "subprocess.run(['echo', 'a'], preexec_fn=os.setsid)": "a\n|",
    "print(os.system('echo a; echo b >&2; exit 3'))": "a\n768\n|b\n",
    "print(os.system('kill -9 $$'))": "9\n|",
    "!echo a": "a\r\n|",
    "x = !echo a\nprint(x)": "['a']\n|",
    "%%bash\necho a\necho b >&2": "a\n|b\n",
    "await trio.run_process(['echo', 'a'])": "a\n|",
    "p = multiprocessing.get_context('fork').Process(target=work, args=(3,))\n"
    "p.start(); p.join(); print(p.exitcode)": "work 3\n0\n|",
    "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
    "    print(pool.map(work, range(3)))": "work 0\nwork 1\nwork 2\n[0, 1, 4]\n|",
    "from concurrent.futures import ProcessPoolExecutor\n"
    "with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:\n"
    "    print(list(pool.map(work, range(2))))": "work 0\nwork 1\n[0, 1]\n|",
    "p = multiprocessing.get_context('spawn').Process(target=print, args=('a',))\n"
    "p.start(); p.join(); print(p.exitcode)": "a\n0\n|",
    # All its processes write where the kernel does.
    "with multiprocessing.get_context('forkserver').Pool(1) as pool:\n"
    "    print(pool.map(abs, [-1]))": "[1]\n|",
}


@pytest.fixture(params=["main shell", "subshell"])
def where(request: pytest.FixtureRequest, client: Client) -> str | None:
    client.execute(SETUP).ok()
    return client.create_subshell() if request.param == "subshell" else None


def test_a_forked_child_has_no_kernel(client: Client, where: str | None) -> None:
    for child, (out, err, code) in CHILDREN.items():
        cell = client.execute(
            f"pid = os.fork()\nif pid == 0:\n    {child}\nelse:\n    print(wait(pid))",
            subshell=where,
        )
        cell.ok()
        assert set(cell.output_types()) == {"stream"}, child
        assert cell.stream() == f"{out}{code}\n", child
        assert cell.stream("stderr").endswith(err), child
        assert err or not cell.stream("stderr"), child


@pytest.mark.parametrize("last", ["print('child' if pid == 0 else 'parent')", "pid and 'parent'"])
def test_a_forked_child_comes_to_the_end_of_the_cell(
    client: Client, where: str | None, last: str, tmp_path: Path
) -> None:
    # A last expression is compiled by itself, as its value is shown.
    ended = tmp_path / "ended"
    cell = client.execute(
        f"pid = os.fork()\nif pid: wait(pid)\nopen({str(ended)!r}, 'a').write('x')\n{last}",
        subshell=where,
    )
    cell.ok()
    assert ended.read_text() == "xx"
    if "print" in last:
        assert cell.stream() == "child\nparent\n"
    else:
        # What the child has displayed comes through its pipe, read by another thread.
        assert sorted(cell.output_types()) == ["execute_result", "stream"]
        assert cell.stream() == "0\n"


def test_what_programs_write_reaches_their_cell_in_its_order(
    client: Client, where: str | None
) -> None:
    for code, expected in PROGRAMS.items():
        cell = client.execute(f"{code}\nNone" if "%%" not in code else code, subshell=where)
        cell.ok()
        assert f"{cell.stream()}|{cell.stream('stderr')}" == expected, code
    bad = client.execute(
        "p = multiprocessing.get_context('fork').Process(target=fail)\n"
        "p.start(); p.join(); print(p.exitcode)",
        subshell=where,
    )
    bad.ok()
    assert bad.stream() == "1\n"
    assert bad.stream("stderr").endswith("ValueError: no such number\n")


def test_children_of_cells_that_run_at_once_write_to_their_own(client: Client) -> None:
    client.execute(SETUP + "import threading; barrier = threading.Barrier(3)").ok()
    cells = {}
    for name in ("a", "b", "c"):
        cells[name] = client.execute(
            "barrier.wait()\n"
            "for _ in range(10):\n"
            f"    subprocess.run(['echo', 'program {name}'])\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            f"        print('child {name}')\n"
            "        os._exit(0)\n"
            "    wait(pid)",
            subshell=client.create_subshell(),
        )
    for name, cell in cells.items():
        cell.ok()
        assert cell.stream() == f"program {name}\nchild {name}\n" * 10
        assert cell.stream("stderr") == ""


def test_what_runs_in_the_background_writes_to_the_cell_that_started_it(client: Client) -> None:
    client.execute(SETUP).ok()
    starts = client.execute(
        "p = subprocess.Popen('read line; echo $line', shell=True, stdin=subprocess.PIPE)"
    )
    starts.ok()
    later = client.execute("p.communicate(b'late\\n'); print('later')")
    later.ok()
    assert later.stream() == "later\n"
    starts.wait_published("stream", "late")


def test_a_cell_may_redirect_the_descriptors_itself(client: Client, tmp_path: Path) -> None:
    client.execute(SETUP).ok()
    file = tmp_path / "output"
    cell = client.execute(
        f"file = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "own = os.dup(1)\n"
        "os.dup2(file, 1)\n"
        "try:\n"
        "    subprocess.run(['echo', 'program'])\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.write(1, b'child\\n')\n"
        "        os._exit(0)\n"
        "    wait(pid)\n"
        "finally:\n"
        "    os.dup2(own, 1)"
    )
    cell.ok()
    assert cell.output_types() == []
    assert file.read_text() == "program\nchild\n"


def test_forks_leave_the_parent_as_it_was(client: Client) -> None:
    client.execute(SETUP).ok()
    client.execute(
        "import stat\n"
        "def pipes():\n"
        "    found = 0\n"
        "    for descriptor in range(1000):\n"
        "        try:\n"
        "            found += stat.S_ISFIFO(os.fstat(descriptor).st_mode)\n"
        "        except OSError:\n"
        "            continue\n"
        "    return found"
    ).ok()
    pipes = client.evaluate("pipes()")
    subshell = client.create_subshell()
    cell = client.execute(
        "for _ in range(30):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        raise SystemExit(print('child'))\n"
        "    wait(pid)",
        subshell=subshell,
    )
    main = [client.execute(f"print({number})") for number in range(30)]
    for number, each in enumerate(main):
        each.ok()
        assert each.stream() == f"{number}\n"
    cell.ok()
    assert cell.stream() == "child\n" * 30
    # The thread that reads the pipes closes them in its own good time.
    deadline = time.monotonic() + PATIENCE
    while client.evaluate("pipes()") != pipes:
        assert time.monotonic() < deadline
    asks = client.execute("input()")
    client.answer(asks.wait_input_request(), "answer")
    assert asks.result() == "'answer'"
    loops = client.execute("print('in')\nwhile True: pass", subshell=subshell)
    loops.wait_published("stream", "in")
    client.delete_subshell(subshell).ok()
    assert loops.error()["ename"] == "SubshellDeleted"
    assert client.list_subshells() == []
