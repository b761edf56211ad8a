"""The kernel: its life, its answers, and its cells in the real runtime."""

from __future__ import annotations

import gc
import importlib.metadata
import re
import threading

import psutil
import pytest
import trio

from trio_subshells import open_kernel
from trio_subshells.ipython import IPythonKernel
from trio_subshells.kernel import (
    CellError,
    CompleteRequest,
    InspectRequest,
    IsCompleteRequest,
    SubshellInfo,
)


def test_it_says_what_it_is() -> None:
    kernel = IPythonKernel()
    assert kernel.implementation == "trio-python"
    assert kernel.implementation_version == importlib.metadata.version("trio-subshells")
    assert kernel.language_info.name == "python"
    assert kernel.language_info.file_extension == ".py"
    assert kernel.subshells
    assert kernel.kernelspec["display_name"] == "Python 3 (trio)"
    assert kernel.kernelspec["interrupt_mode"] == "message"


def test_a_namespace_must_be_a_dict() -> None:
    with pytest.raises(TypeError, match=r"globals\(\)"):
        IPythonKernel(namespace=["no"])


def test_there_is_no_shell_without_life() -> None:
    with pytest.raises(RuntimeError, match="only while it is served"):
        _ = IPythonKernel().shell


async def test_one_lives_at_a_time(living) -> None:
    with pytest.raises(RuntimeError, match="lives in this process already"):
        async with IPythonKernel().lifespan(None):
            raise AssertionError("it lives")
    assert (await living.main.run("1")).result == "1"


async def test_a_given_namespace_is_used_and_given_back(open_living) -> None:
    lent = {"__name__": "lent", "value": 4, "_": "gettext", "exit": "mine"}
    async with open_living(lent) as living:
        ran = await living.main.run("value += 1\nvalue, __name__")
        assert ran.result == "(5, 'lent')"
        await living.main.run("new = 'kept'\nIn = 'assigned'")
        assert lent["_"] == "gettext"
        assert callable(lent["get_ipython"])
    lent.pop("__builtins__")
    assert lent == {
        "__name__": "lent",
        "value": 5,
        "_": "gettext",
        "exit": "mine",
        "new": "kept",
        "In": "assigned",
    }


async def test_the_globals_of_a_module_are_used_as_that_modules(open_living) -> None:
    async with open_living(globals()) as living:
        living.main.kernel.shell.user_ns["marker_of_this_test"] = 1
        assert await living.main.value("marker_of_this_test") == 1
        ran = await living.main.run("import sys\nsys.modules[__name__].marker_of_this_test")
        assert ran.result == "1"
        assert living.kernel.shell.user_global_ns is globals()
    del globals()["marker_of_this_test"]
    assert "get_ipython" not in globals()


async def test_a_subshell_costs_no_thread_and_no_descriptor(living, threads) -> None:
    async def counted() -> tuple[int, int]:
        gc.collect()
        process = psutil.Process()
        handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        return len(threads()), handles

    before = await counted()
    async with living.kernel.subshell(SubshellInfo("a")), living.kernel.subshell(SubshellInfo("b")):
        assert await counted() == before
    living.kernel.shell.history_store.flush()
    assert await counted() == before


async def test_complete(main) -> None:
    await main.run("class Thing:\n    some_attribute = 1\nthing = Thing()")
    code = "1 + thing.some_"
    found = await main.kernel.complete(
        CompleteRequest(main.info, main.state, {}, code, cursor_pos=len(code))
    )
    assert "some_attribute" in found.matches
    assert code[found.cursor_start : found.cursor_end] == "some_"
    types = found.metadata["_jupyter_types_experimental"]
    assert [each["text"] for each in types] == list(found.matches)
    code = "%tim"
    found = await main.kernel.complete(CompleteRequest(main.info, main.state, {}, code, len(code)))
    assert {"%time", "%timeit"} <= set(found.matches)
    code = "nothing_like_that_exists."
    found = await main.kernel.complete(CompleteRequest(main.info, main.state, {}, code, len(code)))
    assert (found.matches, found.cursor_start, found.cursor_end) == ((), len(code), len(code))


async def test_completing_in_many_threads(living) -> None:
    await living.main.run("first_name = second_name = 1")

    async def complete(name: str) -> None:
        async def body(shell) -> None:
            for _ in range(5):
                found = await shell.kernel.complete(
                    CompleteRequest(shell.info, shell.state, {}, f"{name}_", len(name) + 1)
                )
                assert f"{name}_name" in found.matches

        await living.elsewhere(name, body)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(complete, "first")
            nursery.start_soon(complete, "second")


async def test_inspect(main) -> None:
    await main.run("def f(x):\n    'What f does.'\n    return x")

    async def inspect(code: str, detail_level: int = 0):
        return await main.kernel.inspect(
            InspectRequest(main.info, main.state, {}, code, len(code), detail_level)
        )

    seen = await inspect("f")
    assert seen.found
    assert "What f does." in seen.data["text/plain"]
    assert "text/html" not in seen.data
    assert "return" in (await inspect("f", 1)).data["text/plain"]
    assert not (await inspect("no_such_name")).found


@pytest.mark.parametrize(
    ("code", "status", "indent"),
    [
        ("x = 1", "complete", ""),
        ("await thing()", "complete", ""),
        ("%time 1", "complete", ""),
        ("for x in y:", "incomplete", "    "),
        ("(1 +", "incomplete", ""),
        ("x = = 1", "invalid", ""),
    ],
)
async def test_is_complete(main, code: str, status: str, indent: str) -> None:
    answer = await main.kernel.is_complete(IsCompleteRequest(main.info, main.state, {}, code))
    assert (answer.status, answer.indent) == (status, indent)


async def test_evaluate(main) -> None:
    cell = (await main.run("x = 5")).cell
    assert await main.kernel.evaluate(cell, "x + 1") == {"text/plain": "6"}
    with pytest.raises(CellError, match="division by zero") as caught:
        await main.kernel.evaluate(cell, "x / 0")
    assert caught.value.ename == "ZeroDivisionError"
    assert "trio_subshells" not in "".join(caught.value.traceback)


# --------------------------------------------------------------------------- in the real runtime


async def test_a_subshell_reads_what_the_main_shell_is_doing() -> None:
    with trio.fail_after(60):
        async with open_kernel(IPythonKernel()) as kernel, trio.open_nursery() as nursery:
            await kernel.main.execute(
                "import threading\ngo, here = threading.Event(), threading.Event()"
            )
            nursery.start_soon(
                kernel.main.execute,
                "progress = 7\nhere.set()\nawait trio.to_thread.run_sync(go.wait)",
            )
            async with kernel.spawn_subshell() as subshell:
                reply = await subshell.execute(
                    "here.wait(60)\nimport threading",
                    user_expressions={
                        "progress": "progress",
                        "main": "threading.current_thread() is threading.main_thread()",
                    },
                )
                seen = reply.content["user_expressions"]
                assert seen["progress"]["data"]["text/plain"] == "7"
                assert seen["main"]["data"]["text/plain"] == "False"
                assert reply.content["execution_count"] == 1
                await subshell.execute("go.set()")


NURSERY = "async with trio.open_nursery() as n:\n    n.start_soon(trio.sleep_forever)"


@pytest.mark.parametrize(
    "code",
    ["await trio.sleep_forever()", "while True: pass", NURSERY],
    ids=["awaits", "computes", "nursery"],
)
async def test_a_busy_subshell_is_deleted(code: str) -> None:
    with trio.fail_after(60):
        async with open_kernel(IPythonKernel()) as kernel:
            await kernel.main.execute("import threading, trio\nhere = threading.Event()")
            replies = []
            async with trio.open_nursery() as nursery, kernel.spawn_subshell() as subshell:

                async def run() -> None:
                    replies.append(await subshell.execute(f"here.set()\n{code}"))

                nursery.start_soon(run)
                reply = await kernel.main.execute("await trio.to_thread.run_sync(here.wait)")
                assert reply.status == "ok"
            assert replies[0].status == "error"
            reply = await kernel.main.execute("1", user_expressions={"n": "1 + 1"})
            assert reply.content["user_expressions"]["n"]["data"]["text/plain"] == "2"


async def test_an_interrupted_cell_has_a_traceback_if_it_computed() -> None:
    with trio.fail_after(60):
        async with open_kernel(IPythonKernel()) as kernel, trio.open_nursery() as nursery:
            await kernel.main.execute("import threading, trio\nhere = threading.Event()")
            async with kernel.spawn_subshell() as subshell:
                replies = []

                async def run() -> None:
                    code = "here.set()\nwhile True: pass"
                    replies.append(await subshell.execute(code, stop_on_error=False))
                    done.set()

                done = trio.Event()
                nursery.start_soon(run)
                await kernel.main.execute("await trio.to_thread.run_sync(here.wait)")
                await subshell.interrupt()
                await done.wait()
                assert replies[0].ename == "KeyboardInterrupt"
                shown = "\n".join(replies[0].content["traceback"])
                # IPython's own, which begins with the cell.
                assert "Cell In[1], line 2" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
                assert (await subshell.execute("1")).status == "ok"


async def test_nothing_is_left_over(threads) -> None:
    before = threads()
    with trio.fail_after(60):
        async with open_kernel(IPythonKernel()) as kernel:
            await kernel.main.execute("print('x')")
            inside = threads()
            async with kernel.spawn_subshell() as subshell:
                await subshell.execute("print('y')\n1 / 0")
                assert len(threads()) == len(inside) + 1
            assert threads() == inside
    assert threads() == before
    assert threading.main_thread() in before
