"""JupyterLab's subshell console at work beside a long cell, and what else a notebook needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from jupyter_client.blocking.client import BlockingKernelClient

from .conftest import PATIENCE, Lab, wait_for_iopub

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

#: Counts until it is interrupted; nothing in it awaits.
LONG_CELL = """\
import time

progress = 0
print("the long cell has begun")
while True:
    progress += 1
    time.sleep(0.01)
"""


def test_a_subshell_console_reads_the_progress_of_a_long_cell(
    lab: Lab,
    page: Page,
    photograph: Callable[[str], None],
    connect: Callable[[], BlockingKernelClient],
) -> None:
    cells = _open_notebook(lab, page, [LONG_CELL])
    _run(page, cells[0])
    cells[0].locator(".jp-OutputArea-output", has_text="the long cell has begun").wait_for()
    _expect_prompt(cells[0], "[*]:")
    observer = connect()
    assert _list_subshells(observer) == []

    cells[0].click(button="right")
    page.locator(".lm-Menu-item", has_text="New Subshell Console for Notebook").click()
    console = page.locator(".jp-CodeConsole")
    editor = console.locator(".jp-CodeConsole-promptCell .cm-content")
    editor.wait_for()
    # The console shows its prompt before its subshell is there; nobody types as fast as a test.
    page.wait_for_function(
        "() => [...window.jupyterapp.shell.widgets('main')].some("
        "  widget => widget.console?.sessionContext.session?.kernel?.subshellId)"
    )
    assert len(_list_subshells(observer)) == 1

    editor.click()
    page.keyboard.type("print('progress is', progress)")
    page.keyboard.press("Shift+Enter")
    shown = console.locator(".jp-OutputArea-output", has_text=re.compile(r"progress is [1-9]"))
    shown.wait_for()
    _expect_prompt(cells[0], "[*]:")
    _expect_prompt(console.locator(".jp-CodeConsole-content .jp-CodeCell"), "[1]:")
    photograph("console")

    # The console is what was used last; its tab is named after the notebook, as that one's is.
    page.locator(".lm-TabBar-tab.jp-mod-current .lm-TabBar-tabCloseIcon").click()
    console.wait_for(state="detached")
    wait_for_iopub(observer, "status", parent="delete_subshell_request", execution_state="idle")
    assert _list_subshells(observer) == []
    _expect_prompt(cells[0], "[*]:")
    photograph("closed")

    page.locator(".jp-NotebookPanel-toolbar [data-command='notebook:interrupt-kernel']").click()
    cells[0].locator(".jp-OutputArea-output", has_text="KeyboardInterrupt").wait_for()
    _expect_prompt(cells[0], "[1]:")


def test_two_subshell_consoles_work_at_once(
    lab: Lab,
    page: Page,
    photograph: Callable[[str], None],
    connect: Callable[[], BlockingKernelClient],
) -> None:
    cells = _open_notebook(lab, page, ["import threading; barrier = threading.Barrier(2)"])
    _run(page, cells[0])
    _expect_prompt(cells[0], "[1]:")
    observer = connect()
    for number in (1, 2):
        cells[0].click(button="right")
        page.locator(".lm-Menu-item", has_text="New Subshell Console for Notebook").click()
        page.wait_for_function(
            "number => [...window.jupyterapp.shell.widgets('main')].filter("
            "  widget => widget.console?.sessionContext.session?.kernel?.subshellId"
            ").length == number",
            arg=number,
        )
    assert len(_list_subshells(observer)) == 2
    # Both wait for each other: they only get through if both run.
    for number in (1, 2):
        page.evaluate(
            """([number, code]) => {
                const consoles = [...window.jupyterapp.shell.widgets('main')].filter(
                    widget => widget.console);
                consoles[number - 1].console.inject(code);
            }""",
            [number, f"barrier.wait(60); print('console {number} got through')"],
        )
    for number in (1, 2):
        page.locator(
            ".jp-CodeConsole .jp-OutputArea-output", has_text=f"console {number} got through"
        ).wait_for(state="attached")
    photograph("two")


def test_a_notebook_shows_all_kinds_of_output_and_survives_a_restart(
    lab: Lab, page: Page, photograph: Callable[[str], None]
) -> None:
    cells = _open_notebook(
        lab,
        page,
        [
            "import trio\nawait trio.sleep(0)\nprint('out')\n'the result'",
            "from IPython.display import HTML\nHTML('<b id=\"rich\">rich</b>')",
            "1 / 0",
            "name = input('your name? ')\nprint('hello', name)",
            "'name' in globals()",
        ],
    )
    _run(page, cells[0])
    cells[0].locator(".jp-OutputArea-output", has_text="out").first.wait_for()
    cells[0].locator(".jp-OutputArea-executeResult", has_text="'the result'").wait_for()
    _run(page, cells[1])
    cells[1].locator("b#rich").wait_for()
    _run(page, cells[2])
    cells[2].locator(".jp-OutputArea-output", has_text="ZeroDivisionError").first.wait_for()
    _run(page, cells[3])
    answer = cells[3].locator(".jp-Stdin-input")
    answer.fill("Ada")
    answer.press("Enter")
    cells[3].locator(".jp-OutputArea-output", has_text="hello Ada").wait_for()
    _run(page, cells[4])
    cells[4].locator(".jp-OutputArea-executeResult", has_text="True").wait_for()
    _expect_prompt(cells[4], "[5]:")
    photograph("outputs")

    [before] = lab.running_kernels()
    page.locator(".jp-NotebookPanel-toolbar [data-command='notebook:restart-kernel']").click()
    page.locator(".jp-Dialog-button.jp-mod-accept", has_text="Restart").click()
    _wait_until_connected(page)
    _run(page, cells[4])
    cells[4].locator(".jp-OutputArea-executeResult", has_text="False").wait_for()
    _expect_prompt(cells[4], "[1]:")
    [after] = lab.running_kernels()
    assert (before["id"], before["name"]) == (after["id"], "trio-python")


# What a person does and sees


def _open_notebook(lab: Lab, page: Page, sources: list[str]) -> list[Locator]:
    """Open a new notebook with these cells; return the cells, once the kernel is idle."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata={
            "kernelspec": {
                "name": "trio-python",
                "display_name": "Python 3 (trio)",
                "language": "python",
            }
        },
    )
    nbformat.write(notebook, Path(lab.notebooks, "notebook.ipynb"))
    page.goto(lab.address_of("notebook.ipynb"))
    _wait_until_connected(page)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(len(sources) - 1).wait_for()
    return [cells.nth(number) for number in range(len(sources))]


def _wait_until_connected(page: Page) -> None:
    """Wait until JupyterLab has the kernel's kernel_info; what is run before that is not sent."""
    page.wait_for_function(
        """() => {
            const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
            return kernel?.supportsSubshells && kernel.status === 'idle';
        }"""
    )


def _run(page: Page, cell: Locator) -> None:
    cell.locator(".cm-content").first.click()
    page.keyboard.press("Control+Enter")


def _expect_prompt(cell: Locator, text: str) -> None:
    cell.locator(".jp-InputPrompt", has_text=re.compile(f"^{re.escape(text)}$")).first.wait_for()


# What the kernel says


def _list_subshells(client: BlockingKernelClient) -> list[str]:
    message = client.session.msg("list_subshell_request", content={})
    client.control_channel.send(message)
    while True:
        reply: dict[str, Any] = client.get_control_msg(timeout=PATIENCE)
        if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
            assert reply["content"]["status"] == "ok", reply
            subshells = reply["content"]["subshell_id"]
            assert isinstance(subshells, list)
            return subshells
