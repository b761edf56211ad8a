"""The example kernels do what they say, as real processes with real clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from trio_subshells.cli._client import DrivenKernel, RequestFailed, run_asyncio, run_kernel

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parent.parent / "examples"
#: Never comes to an end by itself.
ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"


def drive(kernel: str, prefix: Path, program: Callable[[DrivenKernel], Awaitable[None]]) -> None:
    """Install an example by its own command line, start it, and run a program with it."""
    script = EXAMPLES / f"{kernel}_kernel.py"
    subprocess.run(
        [sys.executable, str(script), "install", "--prefix", str(prefix)],
        check=True,
        capture_output=True,
    )
    specs = KernelSpecManager(kernel_dirs=[str(prefix / "share" / "jupyter" / "kernels")])

    async def run() -> None:
        async with asyncio.timeout(120), run_kernel(kernel, specs) as running:
            await program(running)
            assert await running.shut_down() == 0
            assert running.log == ""

    run_asyncio(run())


async def table(kernel: DrivenKernel, code: str, subshell: str | None = None) -> str:
    """Execute a statement; return its one result as plain text."""
    request = kernel.execute(code, subshell=subshell)
    await request.ok()
    [data] = [content["data"] for type_, content in request.outputs if type_ == "execute_result"]
    return str(data["text/plain"])


def test_the_echo_kernel_is_small() -> None:
    lines = (EXAMPLES / "echo_kernel.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25


def test_echo(tmp_path: Path) -> None:
    async def program(kernel: DrivenKernel) -> None:
        assert kernel.info["implementation"] == "echo"
        assert "kernel subshells" in kernel.info["supported_features"]
        subshell = await kernel.create_subshell()
        for where in (None, subshell):
            said = kernel.execute("hello, \N{SNOWMAN}", subshell=where)
            assert (await said.ok())["execution_count"] == 1
            assert said.stdout == "hello, \N{SNOWMAN}"

    drive("echo", tmp_path, program)


def test_sql_answers_with_tables(tmp_path: Path) -> None:
    async def program(kernel: DrivenKernel) -> None:
        setup = kernel.execute(
            "create table pets (name text, legs int, photo blob);\n"
            "insert into pets values ('Rex; a dog', 4, x'00ff'), ('<Tweety>', 2, null);"
        )
        await setup.ok()
        assert setup.stdout == "2 row(s) changed\n"
        request = kernel.execute("select * from pets order by legs")
        await request.ok()
        [data] = [content["data"] for type_, content in request.outputs if "data" in content]
        assert data["text/plain"].splitlines() == [
            "name        legs  photo",
            "----------  ----  ---------",
            "<Tweety>    2     NULL",
            "Rex; a dog  4     <2 bytes>",
        ]
        assert "<td>&lt;Tweety&gt;</td><td>2</td>" in data["text/html"]
        with pytest.raises(RequestFailed, match="OperationalError: no such table: cats"):
            await kernel.execute("select * from cats").ok()

    drive("sql", tmp_path, program)


def test_sql_splits_statements_at_the_right_semicolons(tmp_path: Path) -> None:
    async def program(kernel: DrivenKernel) -> None:
        await kernel.execute(
            "create table t (x); create table log (y);\n"
            "create trigger logged after insert on t begin\n"
            "  insert into log values (new.x || ';'); -- not here; nor here\n"
            "end;\n"
            "insert into t values ('a;b')"
        ).ok()
        assert await table(kernel, "select y from log") == "y\n----\na;b;"

    drive("sql", tmp_path, program)


def test_sql_completes_names(tmp_path: Path) -> None:
    async def complete(kernel: DrivenKernel, code: str) -> tuple[list[str], str]:
        content: dict[str, Any] = {"code": code, "cursor_pos": len(code)}
        reply = await kernel.request("complete_request", content).ok()
        return reply["matches"], code[reply["cursor_start"] : reply["cursor_end"]]

    async def program(kernel: DrivenKernel) -> None:
        await kernel.execute(
            "create table orders (id, ordered_on); create view old as select 1"
        ).ok()
        assert await complete(kernel, "select * from or") == (["orders", "ordered_on"], "or")
        assert await complete(kernel, "select * from OL") == (["old"], "OL")
        assert await complete(kernel, "sel") == (["select"], "sel")
        for code, status in {
            "select 1;": "complete",
            "select 1": "incomplete",
            "select ';": "incomplete",
            "select 1\n": "complete",
        }.items():
            reply = await kernel.request("is_complete_request", {"code": code}).finished()
            assert (code, reply["status"]) == (code, status)

    drive("sql", tmp_path, program)


def test_sql_reads_while_another_subshell_is_in_a_long_query(tmp_path: Path) -> None:
    async def program(kernel: DrivenKernel) -> None:
        await kernel.execute("create table t (x); insert into t values (1)").ok()
        busy, other = await kernel.create_subshell(), await kernel.create_subshell()
        query = kernel.execute(ENDLESS, subshell=busy)
        queued = kernel.execute("select 1", subshell=busy)
        await query.wait_busy()
        # others read and write meanwhile
        assert await table(kernel, "select x from t", other) == "x\n-\n1"
        await kernel.execute("insert into t values (2)").ok()
        assert await table(kernel, "select sum(x) from t", other) == "sum(x)\n------\n3"
        assert query.state == "busy"
        # the delete ends the query, which nothing else would
        await kernel.delete_subshell(busy).ok()
        assert (await query.reply())["status"] == "error"
        assert (await queued.reply())["status"] == "aborted"
        assert await kernel.list_subshells() == [other]
        assert await table(kernel, "select count(*) from t", other) == "count(*)\n--------\n2"

    drive("sql", tmp_path, program)


def test_sql_interrupts_a_query_and_goes_on(tmp_path: Path) -> None:
    async def program(kernel: DrivenKernel) -> None:
        busy = await kernel.create_subshell()
        queries = [kernel.execute(ENDLESS), kernel.execute(ENDLESS, subshell=busy)]
        for query in queries:
            await query.wait_busy()
        assert await table(kernel, "select 1", await kernel.create_subshell()) == "1\n-\n1"
        await kernel.request("interrupt_request", channel="control").ok()
        for query in queries:
            assert (await query.finished())["status"] == "error"
        assert await table(kernel, "select 2") == "2\n-\n2"
        assert await table(kernel, "select 3", busy) == "3\n-\n3"

    drive("sql", tmp_path, program)


def test_the_sql_database_can_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_KERNEL_DATABASE", str(tmp_path / "kept.sqlite"))

    async def write(kernel: DrivenKernel) -> None:
        await kernel.execute("create table t (x); insert into t values (7)").ok()

    async def read(kernel: DrivenKernel) -> None:
        assert await table(kernel, "select x from t") == "x\n-\n7"

    drive("sql", tmp_path, write)
    drive("sql", tmp_path, read)
