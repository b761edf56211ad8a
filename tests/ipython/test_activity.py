"""Whose output it is: contexts, tasks and threads."""

from __future__ import annotations

import threading

import pytest
import trio


async def test_two_cells_at_once_keep_their_output_apart(living) -> None:
    barrier = threading.Barrier(2)
    living.kernel.shell.user_ns["barrier"] = barrier
    code = "for _ in range(20):\n    barrier.wait(60)\n    print({0!r})\n{0!r}"
    ran = {}

    async def run(name: str) -> None:
        async def body(shell) -> None:
            ran[name] = await shell.run(code.format(name))

        await living.elsewhere(name, body)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "a")
            nursery.start_soon(run, "b")
    for name, each in ran.items():
        assert each.error is None
        assert each.text() == f"{name}\n" * 20
        assert each.result == repr(name)


THREAD = """
import threading
thread = threading.Thread(target=print, args=("out",))
thread.start()
thread.join()
"""
THREAD_IN_A_THREAD = """
import threading
def outer():
    thread = threading.Thread(target=print, args=("out",))
    thread.start()
    thread.join()
thread = threading.Thread(target=outer)
thread.start()
thread.join()
"""
TASK = """
import trio
async def task():
    print("out")
async with trio.open_nursery() as nursery:
    nursery.start_soon(task)
"""
TO_THREAD = """
import trio
await trio.to_thread.run_sync(print, "out")
"""
ASYNCIO = """
import asyncio, trio
async def task():
    await asyncio.to_thread(print, "out")
await trio.to_thread.run_sync(asyncio.run, task())
"""


@pytest.mark.parametrize("code", [THREAD, THREAD_IN_A_THREAD, TASK, TO_THREAD, ASYNCIO])
async def test_what_a_cell_starts_writes_to_that_cell(living, code: str) -> None:
    async def body(shell):
        return await shell.run(code)

    await living.main.run("'the latest cell of the main shell'")
    ran = await living.elsewhere("sub", body)
    assert ran.error is None
    assert ran.text() == "out\n"


async def test_a_thread_that_outlives_its_cell_still_writes_to_it(living) -> None:
    go = threading.Event()
    living.kernel.shell.user_ns["go"] = go
    first = await living.main.run(
        "import threading\ndef later():\n    go.wait(60)\n    print('late')\n"
        "thread = threading.Thread(target=later)\nthread.start()"
    )
    second = await living.main.run("go.set()\nthread.join()")
    assert first.text() == "late\n"
    assert second.text() == ""


async def test_a_thread_that_nobody_knows_writes_to_the_main_shells_latest_cell(living) -> None:
    ran = await living.main.run(
        "import _thread, threading\ndone = threading.Event()\n"
        "def raw():\n    print('raw')\n    done.set()\n"
        "_thread.start_new_thread(raw, ())\ndone.wait(60)"
    )
    assert ran.text() == "raw\n"
