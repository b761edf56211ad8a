"""Running cells: await, errors, interrupts, magics."""

from __future__ import annotations

import ast
import gc
import pickle
import re
import sys
import threading

import pytest
import trio

from trio_subshells.ipython import _shell


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


async def test_a_value_is_the_cells_result(main) -> None:
    ran = await main.run("x = 20\nx + 1")
    assert ran.result == "21"
    assert ran.all("execute_result")[0]["execution_count"] == 1


@pytest.mark.parametrize("code", ["x = 3", "None", "5;", "5; # not shown", ""])
async def test_no_result(main, code: str) -> None:
    ran = await main.run(code)
    assert ran.error is None
    assert ran.result is None


async def test_a_semicolon_elsewhere_silences_nothing(main) -> None:
    assert (await main.run("'a;'")).result == "'a;'"
    assert (await main.run("a = 1; a")).result == "1"


async def test_cells_await_in_trio(main) -> None:
    ran = await main.run(
        "import trio\nawait trio.sleep(0)\nawait trio.to_thread.run_sync(int, '3')"
    )
    assert ran.result == "3"


async def test_autoawait_tells_and_keeps_trio(main) -> None:
    assert "on`, and set to use `trio`" in (await main.run("%autoawait")).text()
    ran = await main.run("%autoawait asyncio")
    assert ran.error is not None
    assert "always await in trio" in ran.error.evalue
    await main.run("import trio\n%autoawait off")
    ran = await main.run("await trio.sleep(0)")
    assert ran.error is not None
    assert ran.error.ename == "SyntaxError"
    await main.run("%autoawait trio")
    assert (await main.run("await trio.sleep(0)")).error is None


@pytest.mark.parametrize("code", ["await asyncio.sleep(1)", "await asyncio.sleep(0)"])
async def test_asyncio_in_a_cell_is_told_from_trio(main, code: str) -> None:
    ran = await main.run(f"import asyncio\n{code}")
    assert ran.error is not None
    assert "trio.to_thread.run_sync(asyncio.run" in ran.traceback
    assert (await main.run("1")).result == "1"


async def test_an_error_has_ipythons_traceback_without_our_frames(main) -> None:
    ran = await main.run("def f():\n    return 1 / 0\nf()")
    assert ran.error is not None
    assert ran.error.ename == "ZeroDivisionError"
    assert ran.error.evalue == "division by zero"
    text = plain(ran.traceback)
    assert "Cell In[1], line 3" in text
    assert "----> 2     return 1 / 0" in text
    assert "trio_subshells" not in text
    assert "hidden" not in text
    assert ran.all("error") == []  # to publish it is the runtime's part


async def test_what_came_before_an_error_is_kept(main) -> None:
    await main.run("x = 1\n1 / 0\nx = 2")
    assert await main.value("x") == 1


async def test_xmode(main) -> None:
    await main.run("%xmode Minimal")
    ran = await main.run("1 / 0")
    assert plain(ran.traceback).strip() == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("code", ["def f(:", "return 3", "x = 1\nif x:\nx", "a = 1 2"])
async def test_code_that_cannot_be_compiled_runs_not_at_all(main, code: str) -> None:
    ran = await main.run("before = 1\n" + code)
    assert ran.error is not None
    assert ran.error.ename in ("SyntaxError", "IndentationError")
    assert ran.error.traceback
    assert "before" not in main.kernel.shell.user_ns


async def test_a_syntax_error_at_run_time_shows_who_caused_it(main) -> None:
    ran = await main.run("exec('1 +')")
    assert ran.error is not None
    assert ran.error.ename == "SyntaxError"
    assert "Cell In[1], line 1" in plain(ran.traceback)
    assert "trio_subshells" not in ran.traceback


async def test_exception_groups_are_shown_whole(main) -> None:
    ran = await main.run(
        "import trio\nasync def fail(): raise KeyError('deep')\n"
        "async with trio.open_nursery() as n:\n    n.start_soon(fail)"
    )
    assert ran.error is not None
    assert ran.error.ename == "ExceptionGroup"
    assert "KeyError: 'deep'" in ran.traceback
    assert "Cell In[1], line 3" in ran.traceback
    assert "trio_subshells" not in ran.traceback


async def test_a_wrongly_used_magic_is_one_line(main) -> None:
    ran = await main.run("%nosuchmagic")
    assert ran.error is not None
    assert ran.error.ename == "UsageError"
    assert ran.error.traceback == ["UsageError: Line magic function `%nosuchmagic` not found."]


async def test_system_exit_is_an_error(main) -> None:
    ran = await main.run("import sys\nsys.exit(3)")
    assert ran.error is not None
    assert (ran.error.ename, ran.error.evalue) == ("SystemExit", "3")


async def test_exit_asks_the_frontend(main) -> None:
    for code in ("exit", "exit()", "quit"):
        ran = await main.run(code)
        assert ran.error is None
        assert ran.payload == [{"source": "ask_exit", "keepkernel": False}]
    ran = await main.run("exit(keep_kernel=True)")
    assert ran.payload == [{"source": "ask_exit", "keepkernel": True}]


async def test_the_debuggers_quit_ends_the_cell(main) -> None:
    ran = await main.run("import bdb\nraise bdb.BdbQuit")
    assert ran.error is not None
    assert ran.error.ename == "BdbQuit"


async def test_an_error_in_a_repr_ends_the_cell(main) -> None:
    ran = await main.run("class A:\n    def __repr__(self): return 1 / 0\nA()")
    assert ran.error is not None
    assert ran.error.ename == "ZeroDivisionError"
    assert ran.result is None
    assert ran.all("error") == []


async def test_an_error_that_is_only_shown_is_output(main) -> None:
    ran = await main.run("get_ipython().run_cell('1 / 0')\nprint('after')")
    assert ran.error is None
    assert [each["ename"] for each in ran.all("error")] == ["ZeroDivisionError"]
    assert ran.text() == "after\n"


async def test_a_cell_in_a_cell(main) -> None:
    ran = await main.run("get_ipython().run_cell('inner = 5');")
    assert ran.error is None
    assert await main.value("inner") == 5
    ran = await main.run(
        "import trio\ncode = 'await trio.sleep(0)\\ninner = 6'\n"
        "await get_ipython().run_cell_async(code, transformed_cell=code);"
    )
    assert ran.error is None
    assert await main.value("inner") == 6
    ran = await main.run("get_ipython().run_cell('await trio.sleep(0)');")
    assert "run_cell_async" in ran.all("error")[0]["evalue"]


NURSERY = """
async with trio.open_nursery() as n:
    n.start_soon(trio.sleep_forever)
    scope.cancel()
"""


@pytest.mark.parametrize(
    "code",
    [
        "scope.cancel()\nawait trio.sleep_forever()",
        NURSERY,
        "scope.cancel()\ntry:\n    await trio.sleep_forever()\nfinally:\n    print('cleaned up')",
    ],
    ids=["plain", "nursery", "finally"],
)
async def test_a_cancellation_passes(main, code: str) -> None:
    with trio.CancelScope() as scope:
        main.kernel.shell.user_ns.update(scope=scope, trio=trio)
        await main.run(code)
        raise AssertionError("the cell went on")
    assert scope.cancelled_caught
    assert "error" not in {kind for kind, _, _ in main.recorder.published}
    assert (await main.run("'next'")).result == "'next'"


async def test_a_cancellation_that_the_cell_makes_itself_is_its_own_business(main) -> None:
    ran = await main.run(
        "import trio\nwith trio.move_on_after(0) as scope:\n    await trio.sleep_forever()\n"
        "scope.cancelled_caught"
    )
    assert ran.result == "True"


async def test_events_come_also_after_a_cancellation(main) -> None:
    seen = []
    events = main.kernel.shell.events
    events.register("post_run_cell", lambda result: seen.append(result.error_in_exec))
    with trio.CancelScope() as scope:
        main.kernel.shell.user_ns.update(scope=scope, trio=trio)
        await main.run("scope.cancel()\nawait trio.sleep_forever()")
    assert isinstance(seen[0], trio.Cancelled)
    await main.run("1")
    assert seen[1:] == [None]


async def test_a_keyboard_interrupt_is_an_ordinary_error(main) -> None:
    ran = await main.run("x = 1\nraise KeyboardInterrupt")
    assert ran.error is not None
    assert ran.error.ename == "KeyboardInterrupt"
    assert "line 2" in plain(ran.traceback)


async def test_future_imports_hold_for_later_cells_and_may_follow_a_magic(main) -> None:
    ran = await main.run(
        "%xmode Plain\nfrom __future__ import annotations\ndef f(x: nothing): ...\n"
        "f.__annotations__"
    )
    assert ran.result == "{'x': 'nothing'}"
    ran = await main.run("def g(x: nothing): ...\ng.__annotations__")
    assert ran.result == "{'x': 'nothing'}"


@pytest.mark.parametrize(
    ("interactivity", "results"),
    [
        ("all", ["1", "2"]),
        ("last", ["2"]),
        ("last_expr", ["2"]),
        ("none", []),
    ],
)
async def test_which_statements_are_shown(main, interactivity: str, results: list[str]) -> None:
    main.kernel.shell.ast_node_interactivity = interactivity
    ran = await main.run("1\n2")
    assert [each["data"]["text/plain"] for each in ran.all("execute_result")] == results


@pytest.mark.parametrize("code", ["x = 7", "x: int = 7", "x = 0\nx += 7", "x = 7\nx"])
async def test_assignments_are_shown_if_that_is_wanted(main, code: str) -> None:
    main.kernel.shell.ast_node_interactivity = "last_expr_or_assign"
    assert (await main.run(code)).result == "7"


async def test_what_cells_define_can_be_pickled(main) -> None:
    ran = await main.run(
        "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A, A.__module__"
    )
    assert ran.result == "(True, '__main__')"
    assert pickle.loads(pickle.dumps(sys.modules["__main__"].A)) is sys.modules["__main__"].A


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
async def test_programs_write_to_the_cell(main) -> None:
    assert (await main.run("!echo one")).text().split() == ["one"]
    assert (await main.run("%%bash\necho two")).text() == "two\n"
    assert (await main.run("x = !echo three\nx[0]")).result == "'three'"


async def test_magics_that_measure_and_capture(main) -> None:
    assert "Wall time" in (await main.run("%time 1")).text()
    ran = await main.run("%%capture got\nprint('kept')\ndisplay('shown')")
    assert ran.text() == ""
    assert ran.all("display_data") == []
    assert (await main.run("got.stdout")).result == "'kept\\n'"
    assert (await main.run("print('heard')")).text() == "heard\n"


async def test_display(main) -> None:
    ran = await main.run(
        "from IPython.display import HTML, clear_output\n"
        "shown = display(HTML('<b>x</b>'), display_id='d')\nshown.update(HTML('<b>y</b>'))\n"
        "clear_output(wait=True)"
    )
    (shown,) = ran.all("display_data")
    assert shown["data"]["text/html"] == "<b>x</b>"
    assert shown["transient"] == {"display_id": "d"}
    (updated,) = ran.all("update_display_data")
    assert updated["data"]["text/html"] == "<b>y</b>"
    assert [each["wait"] for each in ran.all("clear_output")] == [True]


async def test_an_update_needs_to_know_of_what(main) -> None:
    ran = await main.run(
        "from IPython.display import publish_display_data\n"
        "publish_display_data({'text/plain': 'x'}, update=True)"
    )
    assert ran.error is not None
    assert "display_id" in ran.error.evalue


async def test_matplotlib_draws_inline(main) -> None:
    pytest.importorskip("matplotlib")
    ran = await main.run("%matplotlib inline\nimport matplotlib.pyplot as p\np.plot([1, 2]);")
    assert ran.error is None
    assert "image/png" in ran.all("display_data")[0]["data"]


async def test_a_gui_loop_is_refused_in_words(main) -> None:
    ran = await main.run("get_ipython().enable_gui('qt')")
    assert ran.error is not None
    assert ran.error.ename == "UsageError"
    assert "'qt'" in ran.error.evalue


class Garbage:
    """Runs code when it is collected."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        for _ in range(50):
            pass


def test_several_threads_parse_at_once() -> None:
    """CPython 3.11 counts the depth of all their trees in one place."""
    code = "\n".join(f"x = [a{number} + (1, 2), {{3: f(4)}}]" for number in range(20))
    over, threshold, interval = threading.Event(), gc.get_threshold(), sys.getswitchinterval()

    def parse(compiler: _shell.CachingCompiler) -> None:
        for _ in range(10):
            Garbage()
        compiler.ast_parse(code)

    def parse_all_the_time() -> None:
        while not over.is_set():
            parse(_shell._Compiler())

    thread = threading.Thread(target=parse_all_the_time)
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    thread.start()
    try:
        for _ in range(300):
            parse(_shell._Compiler())
    finally:
        over.set()
        thread.join()
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)


def test_what_cannot_be_parsed_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def ast_parse(compiler: object, source: str) -> ast.AST:
        tried.append(source)
        raise SystemError("AST constructor recursion depth mismatch (before=75, after=72)")

    monkeypatch.setattr(_shell.CachingCompiler, "ast_parse", ast_parse)
    with pytest.raises(SystemError, match="mismatch"):
        _shell._Compiler().ast_parse("x")
    assert len(tried) == _shell.ATTEMPTS_TO_PARSE + 1
