"""The code in README.md and docs/ is run, so that it can't rot.

A page is run the way a notebook is: its ```` ```python ```` blocks are cells that share one
namespace and run in the order of the page. A block may use ``await``, ``async with`` and
``async for`` at its top level; it then has a ``trio.run`` of its own. What a block prints is
compared with the ```` ```output ```` block right behind it, if there is one (``...`` stands for any
text; ``python docs/reports.py`` renews the reports of failing schedules). A block marked
```` ```python notest ```` is compiled but not run: for fragments, and for code that would need a
whole Jupyter around it.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import sys
import types
from pathlib import Path

import attrs
import pytest
import trio
from markdown_it import MarkdownIt

from trio_subshells.testing._explore import Settings, settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if page.exists() and "_build" not in page.parts
)
CHECKER = doctest.OutputChecker()


@attrs.frozen
class Block:
    """One fenced block: its language, the words after it, its text, the line its text starts on."""

    language: str
    flags: frozenset[str]
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    found = []
    for token in MarkdownIt("commonmark").parse(markdown):
        if token.type == "fence" and token.info.strip():
            language, *flags = token.info.split()
            assert token.map is not None
            found.append(Block(language, frozenset(flags), token.content, token.map[0] + 2))
    return found


def compiled(block: Block, filename: str) -> types.CodeType:
    """Compile a block so that a traceback points into the page."""
    tree = ast.parse(block.text, filename)
    ast.increment_lineno(tree, block.line - 1)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: types.CodeType = compile(tree, filename, "exec", flags=flags, dont_inherit=True)
    return code


def run(code: types.CodeType, namespace: dict[str, object]) -> str:
    """Run a compiled block, in a ``trio.run`` of its own if it awaits; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, namespace)
        if inspect.iscoroutine(result):

            async def body() -> None:
                with trio.fail_after(60):
                    await result

            trio.run(body)
    return printed.getvalue()


def run_page(markdown: str, filename: str, module: types.ModuleType) -> int:
    """Run the Python blocks of a page in `module`'s namespace; return how many ran."""
    ran = 0
    printed: str | None = None
    for block in blocks(markdown):
        where = f"{filename}:{block.line - 1}"
        if block.language == "python":
            unknown = block.flags - {"notest"}
            assert not unknown, f"{where}: {unknown} says nothing about a block; `notest` does"
            code = compiled(block, filename)
            printed = None
            if "notest" not in block.flags:
                printed = run(code, vars(module))
                ran += 1
        elif block.language == "output":
            assert printed is not None, f"{where}: there is no block before it that was run"
            options = doctest.ELLIPSIS
            if not CHECKER.check_output(block.text, printed, options):
                example = doctest.Example("", block.text)
                pytest.fail(f"{where}: {CHECKER.output_difference(example, printed, options)}")
            printed = None
    return ran


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where attrs looks up
    monkeypatch.chdir(tmp_path)  # what a page writes is gone with the test
    # A reader doesn't run it under pytest, whose plugin has a say in what a failure looks like.
    token = settings.set(Settings())
    try:
        run_page(page.read_text(encoding="utf-8"), str(page), module)
    finally:
        settings.reset(token)


# The runner itself: a page that lies must fail.


def page_of(*lines: str) -> str:
    return "\n".join(["# A page", "", *lines, ""])


def test_blocks_share_a_namespace_and_may_await() -> None:
    page = page_of(
        *["```python", "import trio", "x = 1", "```", ""],
        *["```python", "await trio.lowlevel.checkpoint()", "print(x + 1)", "```", ""],
        *["```output", "2", "```"],
    )
    assert run_page(page, "page.md", types.ModuleType("page")) == 2


def test_a_wrong_output_fails() -> None:
    page = page_of("```python", "print('one')", "```", "", "```output", "two", "```")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:7: Expected:\n +two\n"):
        run_page(page, "page.md", types.ModuleType("page"))


def test_an_error_points_into_the_page() -> None:
    page = page_of("```python", "x = 1", "1 / 0", "```")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page, "page.md", types.ModuleType("page"))
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == ("page.md", 5)


def test_a_block_that_is_not_run_must_still_compile() -> None:
    page = page_of("```python notest", "raise SystemExit", "```")
    assert run_page(page, "page.md", types.ModuleType("page")) == 0
    with pytest.raises(SyntaxError):
        run_page(page.replace("SystemExit", "("), "page.md", types.ModuleType("page"))
