"""Errors that are hard to show are shown, and the next cell runs."""

from __future__ import annotations

import pytest

CELLS = {
    "out of memory": ("raise MemoryError", "MemoryError", ""),
    "endless recursion": ("def f(): f()\nf()", "RecursionError", "maximum recursion"),
    "a repr that recurs": (
        "class A:\n  def __repr__(self): return repr(self)\nA()",
        "RecursionError",
        "maximum recursion",
    ),
    "no text": (
        "class E(Exception):\n  def __str__(self): raise ZeroDivisionError\nraise E",
        "E",
        "ZeroDivisionError",
    ),
    "no text at all": (
        "class E(Exception):\n  def __str__(self): raise SystemExit\n  __repr__ = __str__\nraise E",
        "E",
        "SystemExit",
    ),
    "causes in a circle": (
        "a, b = ValueError('a'), KeyError('b')\na.__cause__, b.__cause__ = b, a\nraise a",
        "ValueError",
        "a",
    ),
    "contexts in a circle": (
        "a, b = ValueError('a'), KeyError('b')\na.__context__, b.__context__ = b, a\nraise a",
        "ValueError",
        "a",
    ),
    "a group of what ends programs": (
        "raise BaseExceptionGroup('all', [SystemExit(), KeyboardInterrupt()])",
        "BaseExceptionGroup",
        "all",
    ),
    "half a character": ("raise ValueError('\\ud800')", "ValueError", ""),
}


@pytest.mark.parametrize("name", CELLS)
async def test_it_is_shown(main, name: str) -> None:
    code, ename, text = CELLS[name]
    ran = await main.run(code)
    assert ran.error is not None
    assert ran.error.ename == ename
    assert text in ran.error.evalue
    assert ran.traceback
    assert (await main.run("20 + 1")).result == "21"
