"""The history: each subshell's own, and IPython's database."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
import trio

from trio_subshells.ipython._history import HistoryStore, SessionRow, _End, _Input
from trio_subshells.kernel import HistoryRequest


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ends of transactions so far, of all databases."""
    seen: list[str] = []
    connect = sqlite3.connect

    def traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(
            lambda statement: seen.append(statement) if statement == "COMMIT" else None
        )
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return seen


def request(shell, access: str, **rest) -> HistoryRequest:
    return HistoryRequest(shell.info, shell.state, {}, access=access, **rest)


async def lines(shell, access: str, **rest) -> list[str]:
    found = await shell.kernel.history(request(shell, access, **rest), ())
    return [entry.input for entry in found]


def stored(ipython_directory: Path, sql: str = "SELECT source_raw FROM history") -> list[tuple]:
    with sqlite3.connect(ipython_directory / "profile_default" / "history.sqlite") as db:
        rows = db.execute(sql).fetchall()
    db.close()
    return rows


async def test_range_tail_and_search(main) -> None:
    for code in ("a = 1", "%time 2", "b = 3"):
        await main.run(code)
    assert await lines(main, "range") == ["a = 1", "%time 2", "b = 3"]
    assert await lines(main, "range", start=2, stop=3) == ["%time 2"]
    assert await lines(main, "range", start=2, stop=3, raw=False) == [
        "get_ipython().run_line_magic('time', '2')"
    ]
    assert await lines(main, "tail", n=2) == ["%time 2", "b = 3"]
    assert await lines(main, "search", pattern="* = *") == ["a = 1", "b = 3"]
    assert await lines(main, "search", pattern="* = *", n=1) == ["b = 3"]
    await main.run("a = 1")
    assert sorted(await lines(main, "search", pattern="a*")) == ["a = 1", "a = 1"]
    assert await lines(main, "search", pattern="a*", unique=True) == ["a = 1"]


async def test_sessions_have_their_numbers(living) -> None:
    async def body(shell):
        await shell.run("'sub'")
        return await numbers(shell, "range"), await numbers(shell, "tail", n=1)

    async def numbers(shell, access: str, **rest) -> set[int]:
        found = await shell.kernel.history(request(shell, access, **rest), ())
        return {entry.session for entry in found}

    await living.main.run("'main'")
    (number,) = await numbers(living.main, "range")
    assert await numbers(living.main, "tail", n=1) == {number}
    assert await numbers(living.main, "range", session=number) == {number}
    assert await living.elsewhere("sub", body) == ({number + 1}, {number + 1})


async def test_outputs_on_demand(main) -> None:
    await main.run("'r'")
    await main.run("x = 1")
    found = await main.kernel.history(request(main, "range", output=True), ())
    assert [(entry.line, entry.input, entry.output) for entry in found] == [
        (1, "'r'", "'r'"),
        (2, "x = 1", None),
    ]


async def test_each_subshell_has_its_own(living) -> None:
    async def body(shell):
        await shell.run("'in the subshell'")
        return (
            await lines(shell, "range"),
            await lines(shell, "tail", n=1),
            (await shell.run("%history")).text(),
        )

    await living.main.run("'in the main shell'")
    in_range, in_tail, magic = await living.elsewhere("sub", body)
    assert in_range == in_tail == ["'in the subshell'"]
    assert magic == "'in the subshell'\n%history\n"
    assert await lines(living.main, "range") == ["'in the main shell'"]


async def test_it_is_in_the_database_when_the_kernel_is_gone(
    open_living, ipython_directory: Path
) -> None:
    async def body(shell):
        await shell.run("'sub'")

    async with open_living() as living:
        await living.main.run("'main'")
        await living.main.run("exit")
        await living.elsewhere("sub", body)
    assert stored(ipython_directory) == [("'main'",), ("'sub'",)]
    sessions = stored(
        ipython_directory, "SELECT num_cmds, end IS NULL FROM sessions ORDER BY session"
    )
    assert sessions == [(2, 0), (1, 0)]
    async with open_living() as living:
        await living.main.run("'second life'")
        assert await lines(living.main, "tail", n=3) == ["'main'", "'sub'", "'second life'"]
        assert await lines(living.main, "range", session=-1) == ["'sub'"]
        assert await lines(living.main, "range", session=1) == ["'main'"]


async def test_it_is_written_while_the_kernel_lives(
    main, ipython_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = main.kernel.shell.history_store
    written = trio.Event()
    token = trio.lowlevel.current_trio_token()
    flush = store.flush

    def flushed() -> None:
        flush()
        token.run_sync_soon(written.set)

    monkeypatch.setattr(store, "flush", flushed)
    await main.run("'soon'")
    with trio.fail_after(60):
        await written.wait()
    assert stored(ipython_directory) == [("'soon'",)]


async def test_a_subshell_that_executes_nothing_is_no_session(
    open_living, ipython_directory: Path
) -> None:
    async def body(shell):
        """Do nothing."""

    async with open_living() as living:
        await living.main.run("1")
        await living.elsewhere("sub", body)
    assert len(stored(ipython_directory, "SELECT * FROM sessions")) == 1


async def test_a_database_that_cannot_be_written_is_reported_once(
    open_living, ipython_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_living() as living:
        store = living.kernel.shell.history_store
        store.path = ipython_directory / "no such directory" / "history.sqlite"
        with caplog.at_level(logging.WARNING, "trio_subshells.ipython"):
            await living.main.run("'kept in memory'")
            assert await lines(living.main, "tail", n=1) == []
            store.flush()
        ours = [each for each in caplog.records if each.name.startswith("trio_subshells")]
        assert len(ours) == 1
        assert str(store.path) in ours[0].getMessage()
        assert await lines(living.main, "range") == ["'kept in memory'"]
        # What could not be written is written as soon as it can be.
        store.path = ipython_directory / "profile_default" / "history.sqlite"
        assert await lines(living.main, "tail", n=1) == ["'kept in memory'"]


async def test_what_waits_is_one_transaction(tmp_path: Path, commits: list[str]) -> None:
    """A session each that had a wait for the disk each, came faster than they were written."""
    store = HistoryStore(tmp_path / "history.sqlite")
    rows = [SessionRow() for _ in range(50)]
    for row in rows:
        store.put(_Input(row, 1, "pass", "pass"))
        store.put(_End(row, 7, "2026-01-01"))
    del commits[:]
    store.flush()
    assert commits == ["COMMIT"]
    assert [row.number for row in rows] == list(range(1, 51))
    assert store.select("SELECT session, num_cmds FROM sessions", ()) == [
        (number, 7) for number in range(1, 51)
    ]


async def test_a_transaction_that_fails_leaves_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = HistoryStore(tmp_path / "history.sqlite")
    first, second = SessionRow(), SessionRow()
    write = store._write

    def fail(db, entry, numbers) -> None:
        if entry.row is second:
            raise sqlite3.OperationalError("the disk is full")
        write(db, entry, numbers)

    monkeypatch.setattr(store, "_write", fail)
    for row in (first, second):
        store.put(_Input(row, 1, "pass", "pass"))
    store.flush()
    assert "the disk is full" in caplog.text
    assert (first.number, second.number) == (None, None)
    monkeypatch.setattr(store, "_write", write)
    assert store.number(second) == 2
    assert first.number == 1
    assert store.select("SELECT session, line FROM history ORDER BY session", ()) == [
        (1, 1),
        (2, 1),
    ]


async def test_magics_that_use_it(main, tmp_path: Path) -> None:
    await main.run("x = 1")
    await main.run("%macro m 1")
    await main.run("x = 5")
    await main.run("m")
    assert await main.value("x") == 1
    file = tmp_path / "saved.py"
    await main.run(f"%save {file} 1")
    assert "x = 1" in file.read_text()
    (payload,) = (await main.run("%recall 1")).payload
    assert payload["text"] == "x = 1"
    assert "1: x = 1" in (await main.run("%history -n 1")).text()
    assert "x = 1" in (await main.run("%history -g x = 1")).text()
