"""``run NOTEBOOK`` on real kernels."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from .conftest import PROGRAM, Run, ignored

pytestmark = pytest.mark.process


def write(path: Path, *sources: str, **metadata: Any) -> Path:
    cells = [new_markdown_cell("# A notebook"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path


def outputs(path: Path) -> list[list[dict[str, Any]]]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_written_beside_the_notebook(program: Run, tmp_path: Path) -> None:
    notebook = write(
        tmp_path / "work.ipynb",
        "import os, trio\nprint(os.path.basename(os.getcwd()))",
        "await trio.sleep(0)\n6 * 7",
        "",
        kernelspec={"name": "elsewhere", "display_name": "Other", "language": "python"},
    )
    before = notebook.read_bytes()
    done = program("run", notebook)
    assert (done.code, done.stderr) == (0, "")
    assert "2 cells" in done.stdout
    assert "\x1b" not in done.stdout
    executed = tmp_path / "work.executed.ipynb"
    assert str(executed) in done.stdout
    [printed], [result], empty = outputs(executed)
    assert printed["text"] == f"{tmp_path.name}\n"
    assert result["data"]["text/plain"] == "42"
    assert empty == []
    metadata = nbformat.read(executed, as_version=4).metadata
    assert metadata.language_info.name == "python"
    assert metadata.kernelspec.name == "elsewhere"
    assert notebook.read_bytes() == before


def test_inplace_and_output_choose_the_file(program: Run, tmp_path: Path) -> None:
    notebook = write(tmp_path / "work.ipynb", "print('once')")
    assert program("run", notebook, "--output", tmp_path / "out.ipynb").code == 0
    assert outputs(notebook) == [[]]
    assert outputs(tmp_path / "out.ipynb")[0][0]["text"] == "once\n"
    assert program("run", notebook, "--inplace").code == 0
    assert outputs(notebook)[0][0]["text"] == "once\n"
    assert sorted(path.name for path in tmp_path.glob("*.ipynb")) == ["out.ipynb", "work.ipynb"]


def test_a_cell_that_fails(program: Run, tmp_path: Path) -> None:
    notebook = write(tmp_path / "work.ipynb", "'first'", "{}['no such key']", "print('never')")
    done = program("run", notebook)
    assert done.code == 1
    assert "[2/3] {}['no such key']" in done.stderr
    assert "KeyError" in done.stderr
    assert "Traceback (most recent call last)" in done.stdout
    first, failed, never = outputs(tmp_path / "work.executed.ipynb")
    assert first[0]["data"]["text/plain"] == "'first'"
    assert failed[0]["ename"] == "KeyError"
    assert never == []


def test_errors_may_be_allowed(program: Run, tmp_path: Path) -> None:
    notebook = write(tmp_path / "work.ipynb", "1 / 0", "print('after all')")
    done = program("run", notebook, "--allow-errors")
    assert done.code == 0
    assert "1 of them with an error" in done.stdout
    failed, after = outputs(tmp_path / "work.executed.ipynb")
    assert failed[0]["ename"] == "ZeroDivisionError"
    assert after[0]["text"] == "after all\n"


def test_a_timeout_ends_the_run(program: Run, tmp_path: Path) -> None:
    notebook = write(tmp_path / "work.ipynb", "print('done')", "while True: pass")
    done = program("run", notebook, "--timeout", "1")
    assert done.code == 1
    assert "not done after 1 s" in done.stderr
    assert outputs(tmp_path / "work.executed.ipynb")[0][0]["text"] == "done\n"


def test_a_kernel_that_dies_is_told(program: Run, tmp_path: Path) -> None:
    notebook = write(tmp_path / "work.ipynb", "import os; os._exit(3)")
    done = program("run", notebook)
    assert done.code == 1
    assert "the kernel has died" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process there")
def test_ctrl_c_writes_what_was_executed_and_leaves_no_kernel(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        notebook = write(
            tmp_path / "work.ipynb",
            "print('done')",
            "import os, socket\n"
            f"with socket.create_connection(('127.0.0.1', {port})) as connection:\n"
            "    connection.sendall(str(os.getpid()).encode())\n"
            "while True: pass",
        )
        process = subprocess.Popen([*PROGRAM, "run", str(notebook)], stderr=subprocess.PIPE)
        with process:
            try:
                with server.accept()[0] as connection, connection.makefile() as words:
                    kernel = int(words.read())
            finally:
                process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in said
    assert b"Traceback" not in said
    assert outputs(tmp_path / "work.executed.ipynb")[0][0]["text"] == "done\n"
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no hangup")
def test_what_nohup_has_ignored_is_ignored(program: Run, tmp_path: Path) -> None:
    notebook = write(
        tmp_path / "work.ipynb",
        "import os, signal; os.kill(os.getppid(), signal.SIGHUP)",
        "print('goes on')",
    )
    with ignored(signal.SIGHUP):
        done = program("run", notebook)
    assert done.code == 0
    assert outputs(tmp_path / "work.executed.ipynb")[1][0]["text"] == "goes on\n"


# What is refused before a kernel is started


def test_what_is_no_notebook(command: Run, tmp_path: Path) -> None:
    (tmp_path / "text.ipynb").write_text("no JSON")
    (tmp_path / "list.ipynb").write_text("[]")
    (tmp_path / "bytes.ipynb").write_bytes(b"\xff")
    (tmp_path / "future.ipynb").write_text('{"nbformat": 99, "nbformat_minor": 0, "cells": []}')
    for path, complaint in [
        (tmp_path / "none.ipynb", "can't be read"),
        (tmp_path, "is a directory"),
        (tmp_path / "text.ipynb", "is no notebook"),
        (tmp_path / "list.ipynb", "is no notebook"),
        (tmp_path / "bytes.ipynb", "is no notebook"),
        (tmp_path / "future.ipynb", "is no notebook"),
    ]:
        done = command("run", path)
        assert (done.code, complaint in done.stderr) == (1, True), done
    assert list(tmp_path.glob("*.executed.ipynb")) == []


def test_a_notebook_in_another_language(command: Run, tmp_path: Path) -> None:
    kernelspec = {"name": "ir", "display_name": "R", "language": "R"}
    notebook = write(tmp_path / "work.ipynb", "x <- 1", kernelspec=kernelspec)
    done = command("run", notebook)
    assert done.code == 1
    assert "--kernel ir" in done.stderr


@pytest.mark.parametrize("name", ["nope", "[/nope]"])  # as Rich's markup, the latter is an error
def test_a_kernel_that_does_not_exist(command: Run, tmp_path: Path, name: str) -> None:
    for arguments in (["run", write(tmp_path / "work.ipynb", "1")], ["demo"]):
        done = command(*arguments, "--kernel", name)
        assert done.code == 1
        assert f"there is no kernelspec '{name}'" in done.stderr
        assert "trio-python" in done.stderr


def test_a_kernel_whose_program_is_gone(
    command: Run, tmp_path: Path, jupyter_directories: Path
) -> None:
    spec = {"argv": ["/gone/python", "{connection_file}"], "display_name": "", "language": ""}
    kernel = jupyter_directories / "share" / "jupyter" / "kernels" / "old"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec))
    for arguments in (["run", write(tmp_path / "work.ipynb", "1")], ["demo"]):
        done = command(*arguments, "--kernel", "old")
        assert done.code == 1
        assert "runs /gone/python, which isn't there" in done.stderr


def test_an_output_that_cannot_be_written(command: Run, tmp_path: Path) -> None:
    output = tmp_path / "output.ipynb"
    output.touch()
    output.chmod(0o400)
    if os.access(output, os.W_OK):
        pytest.skip("nothing is forbidden to the superuser")
    done = command("run", write(tmp_path / "work.ipynb", "1"), "--output", output)
    assert done.code == 1
    assert f"{output} can't be written" in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--inplace", "--output", "x"], "choose --output or --inplace"),
        (["--timeout", "0"], "more than 0"),
        (["--output", "nowhere/x.ipynb"], "there is no directory nowhere"),
        (["--output", "."], ". is a directory"),
    ],
)
def test_options_that_make_no_sense(
    command: Run, tmp_path: Path, options: list[str], complaint: str
) -> None:
    done = command("run", write(tmp_path / "work.ipynb", "1"), *options)
    assert done.code == 1
    assert complaint in done.stderr
