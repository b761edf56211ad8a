"""``trio-subshells run NOTEBOOK``: a notebook, executed by nbclient, with its progress shown."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ._console import CommandError, duration, mark
from ._specs import NAME, OwnKernelSpecManager


async def run_notebook(
    console: Console,
    notebook: Path,
    output: Path,
    *,
    kernel_name: str,
    timeout: int | None,
    allow_errors: bool,
) -> None:
    """Execute a notebook, in its own directory, and write it with its outputs.

    What was executed is written in any case: after an error, a timeout, an interrupt too.

    Args:
        console: where to show progress.
        notebook: the notebook.
        output: the file to write; it may be the same.
        kernel_name: of the kernelspec.
        timeout: seconds for each cell; None for no limit.
        allow_errors: go on after a cell that fails.

    Raises:
        CommandError: it is no notebook, or a cell failed.
    """
    node = _read(notebook)
    _check_language(node, kernel_name)
    _check_output(output)
    specs = OwnKernelSpecManager()
    specs.check(kernel_name)
    manager = AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=specs)
    client = NotebookClient(
        node,
        km=manager,
        timeout=timeout,
        allow_errors=allow_errors,
        resources={"metadata": {"path": _directory(notebook)}},
    )
    try:
        await client.async_start_new_kernel()
        try:
            await client.async_start_new_kernel_client()
        except RuntimeError as error:
            raise CommandError(f"the kernel {kernel_name!r} doesn't start: {error}") from None
        try:
            await _execute(console, client)
        finally:
            _write(node, output)
            console.print(f"written to {escape(str(output))}", soft_wrap=True)
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if await manager.is_alive():
            await manager.shutdown_kernel()
        else:
            await manager.cleanup_resources()


async def _execute(console: Console, client: NotebookClient) -> None:
    """Execute the cells one by one. Nothing but their outputs is changed in the notebook."""
    assert client.kc is not None
    reply = await client.async_wait_for_reply(client.kc.kernel_info())
    if reply is not None:
        client.nb.metadata["language_info"] = reply["content"]["language_info"]
    skip = client.skip_cells_with_tag
    cells = [
        (index, cell)
        for index, cell in enumerate(client.nb.cells)
        if cell.cell_type == "code"
        and cell.source.strip()
        and skip not in cell.metadata.get("tags", [])
    ]
    began = time.perf_counter()
    failed = 0
    progress = Progress(
        TextColumn("{task.description}", style="note"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("", total=len(cells))
        for number, (index, cell) in enumerate(cells, 1):
            first_line = cell.source.strip().splitlines()[0]
            title = f"[{number}/{len(cells)}] {first_line}"
            progress.update(bar, description=escape(title[:40]))
            start = time.perf_counter()
            try:
                await _execute_cell(client, cell, index, number)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                raise _failure(console, title, cell, error, client.timeout) from None
            errors = [output for output in cell.outputs if output.output_type == "error"]
            failed += bool(errors)
            line = Text.assemble(
                Text.from_markup(mark(console, good=not errors)),
                f" {title}",
                (f"  {duration(time.perf_counter() - start)}", "note"),
            )
            console.print(line, no_wrap=True, overflow="ellipsis")
            progress.advance(bar)
    client.set_widgets_metadata()
    cells_text = f"{len(cells)} cell{'s' if len(cells) != 1 else ''}"
    failed_text = f", {failed} of them with an error" if failed else ""
    console.print(f"{cells_text} in {duration(time.perf_counter() - began)}{failed_text};", end=" ")


async def _execute_cell(client: NotebookClient, cell: Any, index: int, number: int) -> None:
    try:
        await client.async_execute_cell(cell, index, execution_count=number)
    except DeadKernelError:
        # nbclient knows one reason only why a task could be cancelled. Ours may have been Ctrl-C.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise


def _failure(
    console: Console, title: str, cell: Any, error: Exception, timeout: int | None
) -> CommandError:
    """Show the traceback of a cell that failed; return what ends the command."""
    if isinstance(error, CellExecutionError):
        for output in cell.outputs:
            if output.output_type == "error":
                console.print(Text.from_ansi("\n".join(output.traceback)))
        what = f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError):
        what = f"it was not done after {timeout} s"
    else:
        what = "the kernel has died"
    return CommandError(f"cell {title}\n{what}")


def _directory(notebook: Path) -> str:
    return str(notebook.absolute().parent)


def _check_output(output: Path) -> None:
    """Refuse, before hours of work, a file that can't be written after them."""
    if not output.parent.is_dir():
        raise CommandError(f"there is no directory {output.parent} to write to")
    if output.is_dir():
        raise CommandError(f"{output} is a directory; --output takes the file to write")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise CommandError(f"{output} can't be written; --output FILE chooses another place")


def _write(node: Any, output: Path) -> None:
    try:
        nbformat.write(node, output)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise CommandError(f"{output} can't be written: {error.strerror or error}") from error


def _read(notebook: Path) -> Any:
    try:
        text = notebook.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise CommandError(f"{notebook} can't be read: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, not JSON
        raise CommandError(f"{notebook} is no notebook: {error}") from None
    if not isinstance(content, dict) or "nbformat" not in content:
        raise CommandError(f"{notebook} is no notebook: it has JSON, but nothing called 'nbformat'")
    try:
        return nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    except (nbformat.ValidationError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CommandError(f"{notebook} is no notebook: {reason}") from None


def _check_language(node: Any, kernel_name: str) -> None:
    """Refuse to run, say, R in our own kernel, which would only complain about syntax."""
    metadata = node.metadata
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get(
        "language"
    )
    if kernel_name == NAME and language and language.lower() not in ("python", "ipython"):
        own = metadata.get("kernelspec", {}).get("name", "NAME")
        raise CommandError(
            f"the notebook is written in {language}, {NAME} runs Python; "
            f"name its kernel: --kernel {own}"
        )
