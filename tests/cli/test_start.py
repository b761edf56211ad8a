"""``start``: the kernel, until a client shuts it down."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import find_connection_file, write_connection_file

from .conftest import PROGRAM, Run

pytestmark = pytest.mark.process


@contextmanager
def connected(file: str) -> Iterator[BlockingKernelClient]:
    client = BlockingKernelClient(connection_file=file)
    client.load_connection_file()
    client.start_channels(hb=False)  # it takes a kernel that is slow to start for a dead one
    try:
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()


def test_it_says_how_to_connect() -> None:
    with subprocess.Popen(
        [*PROGRAM, "start"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"jupyter console --existing (\S+)", line):
                break
        if found is None:
            _, complaint = process.communicate(timeout=60)
            pytest.fail(f"it ended without saying how to connect: {complaint}")
        # what `jupyter console --existing` does with that name
        file = find_connection_file(found.group(1))
        with connected(file) as client:
            reply = client.execute("6 * 7", user_expressions={"it": "6 * 7"}, reply=True)
            assert reply["content"]["user_expressions"]["it"]["data"]["text/plain"] == "42"
            client.shutdown(reply=True)
        _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, "")
    assert not Path(file).exists()


def test_it_serves_a_file_that_is_there(tmp_path: Path) -> None:
    file, _ = write_connection_file(str(tmp_path / "connection.json"))
    with subprocess.Popen([*PROGRAM, "start", "-f", file], stderr=subprocess.PIPE) as process:
        with connected(file) as client:
            assert client.kernel_info(reply=True)["content"]["status"] == "ok"
            client.shutdown(reply=True)
        _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, b"")
    assert Path(file).exists()


def test_a_place_where_no_connection_file_can_be_written(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "file" / "runtime"))
    done = command("start")
    assert done.code == 1
    assert "can't write a connection file" in done.stderr
    assert "JUPYTER_RUNTIME_DIR" in done.stderr


def test_a_file_that_is_no_connection_file(program: Run, tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    file.write_text("{}")
    done = program("start", "-f", file)
    assert done.code == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(file) in done.stderr
