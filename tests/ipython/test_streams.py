"""`sys.stdout` and `sys.stderr`."""

from __future__ import annotations

import io
import sys

import pytest

from trio_subshells.ipython._activity import ActivityTracker
from trio_subshells.ipython._streams import CellStream


async def test_each_stream_goes_its_way(main) -> None:
    ran = await main.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert ran.text("stdout") == "out\n"
    assert ran.text("stderr") == "err\n"


async def test_a_stream_looks_like_a_text_stream(main) -> None:
    assert await main.value("__import__('sys').stdout.isatty()") is False
    assert await main.value("__import__('sys').stdout.encoding") == "UTF-8"
    assert await main.value("__import__('sys').stdout.name") == "<stdout>"
    assert await main.value("__import__('sys').stdout.writable()") is True
    ran = await main.run("sys.stdout.fileno()")
    assert ran.error is not None
    ran = await main.run("import sys\nsys.stdout.fileno()")
    assert ran.error is not None
    assert ran.error.ename == "UnsupportedOperation"
    ran = await main.run("sys.stdout.write(b'x')")
    assert ran.error is not None
    assert "must be str, not bytes" in ran.error.evalue


async def test_closing_a_stream_silences_nobody(main) -> None:
    ran = await main.run("import sys\nsys.stdout.close()\nprint('still there')")
    assert ran.text() == "still there\n"


async def test_a_silent_cell_prints_nothing(main) -> None:
    ran = await main.run("print('x')\n1", silent=True)
    assert ran.error is None
    assert ran.recorder.published == []


def test_what_belongs_to_no_cell_goes_where_it_always_went() -> None:
    original = io.StringIO()
    stream = CellStream("stdout", ActivityTracker(), original)
    print("x", file=stream)
    assert original.getvalue() == "x\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
async def test_a_forked_child_writes_to_its_cell(main, capfd) -> None:
    ran = await main.run(
        "import os, warnings\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')\n"
        "    child = os.fork()\n"
        "if child == 0:\n"
        "    print('from the child', flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)[1]"
    )
    assert ran.error is None
    assert ran.result == "0"
    assert ran.text() == "from the child\n"
    assert "from the child" not in capfd.readouterr().out
