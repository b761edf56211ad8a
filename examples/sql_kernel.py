"""A kernel for SQL, on the standard library's sqlite3; genuinely concurrent.

Each subshell has a connection of its own, in its own thread. sqlite3 leaves Python's lock while it
works, so a long query in one subshell and a quick one in another run at the same time. Deleting a
subshell, or interrupting it, really ends its query: ``cell.on_cancel(connection.interrupt)``.

``python sql_kernel.py install``, and Jupyter has *SQL (sqlite3)*. The database is the file that the
environment variable ``SQL_KERNEL_DATABASE`` names, otherwise a new one, gone with the kernel.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from html import escape
from pathlib import Path

import trio_subshells as ts

KEYWORDS = "alter create delete drop explain from insert select table update values where with"
MOST_ROWS = 1000


class SqlKernel(ts.Kernel):
    implementation = "sql"
    implementation_version = "1.0"
    banner = f"SQL on SQLite {sqlite3.sqlite_version}. Each subshell has its own connection."
    language_info = ts.LanguageInfo(
        name="sql", version=sqlite3.sqlite_version, mimetype="text/x-sql", file_extension=".sql"
    )
    kernelspec = {"display_name": "SQL (sqlite3)"}  # noqa: RUF012 - a ClassVar of the base class
    subshells = True

    @asynccontextmanager
    async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="sql-kernel-") as directory:
            own = Path(directory) / "database.sqlite"
            self.path = os.environ.get("SQL_KERNEL_DATABASE") or str(own)
            with closing(self.connect()) as db:
                db.execute("pragma journal_mode = wal")  # who reads doesn't wait for who writes
            yield

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[sqlite3.Connection]:
        with closing(self.connect()) as db:  # in the subshell's thread, around its whole life
            yield db

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None)  # each statement commits

    async def execute(self, cell: ts.Cell) -> None:
        db: sqlite3.Connection = cell.state
        with cell.on_cancel(db.interrupt):
            try:
                for statement in statements(cell.code):
                    cursor = db.execute(statement)
                    if cursor.description is None:
                        if cursor.rowcount >= 0:
                            cell.stdout(f"{cursor.rowcount} row(s) changed\n")
                        continue
                    columns = [column[0] for column in cursor.description]
                    rows = cursor.fetchmany(MOST_ROWS + 1)
                    if len(rows) > MOST_ROWS:
                        cell.stderr(f"only the first {MOST_ROWS} rows are shown\n")
                    shown = [[text(value) for value in row] for row in rows[:MOST_ROWS]]
                    cell.result(
                        {"text/plain": plain(columns, shown), "text/html": html(columns, shown)}
                    )
            except sqlite3.Error as error:
                name = type(error).__name__
                raise ts.CellError(name, str(error), [f"{name}: {error}"]) from None

    async def is_complete(self, request: ts.IsCompleteRequest) -> ts.Completeness:
        # As in SQLite's own shell a statement goes on until its semicolon, or until an empty line.
        code = request.code
        done = sqlite3.complete_statement(code) or code.endswith("\n") or not code.strip()
        return ts.Completeness("complete" if done else "incomplete")

    async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
        end = request.cursor_pos
        word = re.search(r"\w*$", request.code[:end])
        begun = word.group().lower() if word else ""
        db: sqlite3.Connection = request.state
        known = [*names(db), *KEYWORDS.split()]
        matches = [name for name in known if name.lower().startswith(begun)]
        return ts.Completion(matches, end - len(begun), end)


def statements(code: str) -> Iterator[str]:
    """Split at the semicolons that end a statement: not those in strings, comments, triggers."""
    statement = ""
    for part in re.split("(?<=;)", code):
        statement += part
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def names(db: sqlite3.Connection) -> list[str]:
    """The names of all tables and views, then of their columns."""
    tables = db.execute(
        "select name from sqlite_master where type in ('table', 'view') order by name"
    ).fetchall()
    columns = db.execute(
        "select distinct c.name from sqlite_master t join pragma_table_info(t.name) c "
        "where t.type in ('table', 'view') order by c.name"
    ).fetchall()
    return [name for (name,) in tables + columns]


def text(value: object) -> str:
    if value is None:
        return "NULL"
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def html(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


if __name__ == "__main__":
    ts.main(SqlKernel)
