"""Clients that people use, each as its own program: jupyter console, nbclient, papermill."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from ._client import PATIENCE

if TYPE_CHECKING:
    import pexpect

#: What a small notebook does, and what its cells must show.
CELLS = [
    ("numbers = list(range(5))\nprint(sum(numbers))", "10\n"),
    ("import trio\nawait trio.sleep(0)\n'awaited'", "'awaited'"),
    ("from IPython.display import HTML\nHTML('<b>rich</b>')", "<b>rich</b>"),
    ("%%capture kept\nprint('captured')", None),
    ("kept.stdout", "'captured\\n'"),
]


def _write_notebook(path: Path, sources: list[str]) -> None:
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
    nbformat.write(notebook, path)


def _shown(cell: nbformat.NotebookNode) -> str | None:
    """Return what the one output of a cell shows, None without an output."""
    if not cell.outputs:
        return None
    [output] = cell.outputs
    if output.output_type == "stream":
        return str(output.text)
    return str(output.data.get("text/html", output.data["text/plain"]))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )


def test_nbclient_runs_a_notebook(tmp_path: Path) -> None:
    path = tmp_path / "notebook.ipynb"
    _write_notebook(path, [source for source, _ in CELLS])
    done = _run("-c", "from nbclient.cli import main; main()", "--inplace", str(path))
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(path, as_version=4).cells
    assert [_shown(cell) for cell in cells] == [shown for _, shown in CELLS]
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5]


def test_nbclient_stops_at_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notebook.ipynb"
    _write_notebook(path, ["print('first')", "1/0", "print('never')"])
    done = _run("-c", "from nbclient.cli import main; main()", "--inplace", str(path))
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr


def test_papermill_runs_a_notebook_with_parameters(tmp_path: Path) -> None:
    path, output = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    _write_notebook(path, ["count = 1", "print('x' * count)", "await trio.sleep(0); count"])
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.cells[2].source = "import trio\n" + notebook.cells[2].source
    nbformat.write(notebook, path)
    done = _run("-m", "papermill", str(path), str(output), "-p", "count", "7")
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(output, as_version=4).cells
    assert [_shown(cell) for cell in cells] == [None, None, "x" * 7 + "\n", "7"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals for pexpect")
def test_jupyter_console_talks_to_the_kernel() -> None:
    import pexpect

    with _console("--kernel", "trio-python") as (console, transcript):
        console.expect_exact("In [1]: ")
        console.sendline("6 * 7")
        console.expect(r"Out\[1\]: *42")
        console.expect_exact("In [2]: ")
        console.sendline("import trio; await trio.sleep(0); print('awa' + 'ited')")
        console.expect_exact("awaited")
        console.expect_exact("In [3]: ")
        console.sendline("name = input('your name? ')")
        console.expect_exact("your name? ")
        console.sendline("Ada")
        console.expect_exact("In [4]: ")
        console.sendline("name[::-1]")
        console.expect(r"Out\[4\]: *'adA'")
        console.expect_exact("In [5]: ")
        console.sendline("1/0")
        console.expect_exact("ZeroDivisionError")
        console.expect_exact("In [6]: ")
        console.sendline("import time; print('in' + ' it'); time.sleep(3600)")
        console.expect_exact("in it")
        console.sendintr()
        # Under load this has come to nothing once, and not in more than 400 tries since. The
        # console takes any idle of its session for its cell's, that of its kernel_info_request
        # too, and shows no output from then until the reply. Its user presses the keys again.
        if console.expect_exact(["KeyboardInterrupt", pexpect.TIMEOUT], timeout=PATIENCE / 2):
            console.sendintr()
            console.expect_exact("KeyboardInterrupt")
        console.expect_exact("In [7]: ")
        console.sendline("exit()")
        console.expect_exact("Shutting down kernel")
        console.expect(pexpect.EOF)
        console.wait()
    assert console.exitstatus == 0, transcript.getvalue()
    assert "jupyter_console" not in transcript.getvalue()  # in no traceback of the console's own


@contextmanager
def _console(*arguments: str) -> Iterator[tuple[pexpect.spawn[str], io.StringIO]]:
    """Run jupyter console in a pseudo-terminal; yield it, and all that it shows."""
    import pexpect

    console = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", "--simple-prompt", *arguments],
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(50, 200),
        env={**os.environ, "TERM": "dumb"},
    )
    transcript = io.StringIO()
    console.logfile_read = transcript
    try:
        yield console, transcript
    finally:
        console.close(force=True)
        print(transcript.getvalue())
