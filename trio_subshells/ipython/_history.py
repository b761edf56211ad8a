"""The history: IPython's database, written in the background, and each subshell's part in it.

IPython keeps one SQLite database per profile, in which a *session* is what one shell has executed.
Here each subshell is a session (JEP 91: "Each subshell has its own execution count and history").
IPython's own `HistoryManager` opens two connections and starts a thread, and it writes to the disk
for its session number before anything was executed: too much for subshells that come and go. So:

- `HistoryStore` is one per kernel. Who records only appends to a queue; one thread writes, and what
  comes within `DELAY` seconds it writes at once. The database is open only meanwhile: the kernel
  holds no descriptor for it. A kernel that is killed loses no more than that last moment.
- `SessionHistory` is one per subshell, with the interface of IPython's `HistoryManager`, which
  IPython's magics use (``%history``, ``%recall``, ``%save``...). It owns no thread and no
  descriptor. Its session gets its number when it is first written, or asked for.
"""

# IPython's functions have no annotations of their own.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import attrs
from IPython.core.history import HistoryAccessor, HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import LoggingConfigurable

DELAY = 0.5
"""Seconds that an entry may wait for others before it is written."""

_log = logging.getLogger(__name__)


def _now() -> str:
    return datetime.now(UTC).isoformat(" ")


@attrs.define(eq=False)
class SessionRow:
    """A row of the database's table ``sessions``."""

    number: int | None = None
    """None until it is in the database."""
    start: str = attrs.field(factory=_now)


@attrs.frozen
class _Input:
    row: SessionRow
    line: int
    source: str
    source_raw: str


@attrs.frozen
class _Output:
    row: SessionRow
    line: int
    text: str


@attrs.frozen
class _End:
    row: SessionRow
    lines: int
    time: str


class HistoryStore:
    """Writes history to IPython's database in a thread of its own, and reads it. Thread-safe.

    Used as a context manager: leaving it writes what is left and joins the thread. A database that
    can't be written is reported once, in the log, and tried again with the next entry; what the
    subshells remember themselves doesn't depend on it.

    Args:
        path: the database's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Bounded, for a database that can't be written for days.
        self._pending: deque[_Input | _Output | _End] = deque(maxlen=10_000)
        self._database = threading.RLock()
        self._something = threading.Event()
        self._stop = threading.Event()
        self._reported = False
        self._writer = threading.Thread(target=self._write_all, name="trio_subshells history")

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._something.set()
        self._writer.join()

    def put(self, entry: _Input | _Output | _End) -> None:
        """Have `entry` written soon. Neither waits nor touches the disk."""
        self._pending.append(entry)
        self._something.set()

    def flush(self) -> None:
        """Write what is waiting, now, in this thread."""
        with self._opened():
            pass

    def number(self, row: SessionRow) -> int:
        """The number of a session; it gets one if it has none yet. 0 if there is no database."""
        if row.number is None:
            with self._opened() as db:
                if db is not None and row.number is None:  # nothing of it was waiting
                    with db:
                        number = self._insert_session(db, row)
                    row.number = number
        return row.number or 0

    def select(self, sql: str, parameters: Iterable[Any]) -> list[Any]:
        """The rows that a query finds, what has just been recorded among them."""
        with self._opened() as db:
            return [] if db is None else list(db.execute(sql, tuple(parameters)))

    def _write_all(self) -> None:
        while not self._stop.is_set():
            self._something.wait()
            self._stop.wait(DELAY)
            self._something.clear()
            self._flush_pending()
        self._flush_pending()

    def _flush_pending(self) -> None:
        if self._pending:
            self.flush()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The database's connection, with all that was pending written; None if there is none."""
        with self._database:
            try:
                # IPython's own class creates the tables, and moves a corrupt file out of the way.
                accessor = HistoryAccessor(hist_file=str(self.path))
            except Exception as error:  # sqlite3.Error, where there is a sqlite3; OSError
                self._report(error)
                yield None
                return
            try:
                if not accessor.enabled:  # a Python without sqlite3
                    self._pending.clear()
                    yield None
                    return
                try:
                    self._write_pending(accessor.db)
                except Exception as error:
                    self._report(error)
                yield accessor.db
            finally:
                accessor.close()

    def _write_pending(self, db: Any) -> None:
        """Write it in one transaction: each waits for the disk, and sessions come and go faster."""
        entries = [self._pending.popleft() for _ in range(len(self._pending))]
        numbers: dict[SessionRow, int] = {}  # of new sessions; no one else's before they are there
        try:
            with db:
                for entry in entries:
                    self._write(db, entry, numbers)
        except BaseException:
            self._pending.extendleft(reversed(entries))
            raise
        for row, number in numbers.items():
            row.number = number

    def _write(
        self, db: Any, entry: _Input | _Output | _End, numbers: dict[SessionRow, int]
    ) -> None:
        number = entry.row.number or numbers.get(entry.row)
        if number is None and not isinstance(entry, _End):
            number = numbers[entry.row] = self._insert_session(db, entry.row)
        match entry:
            case _Input(_, line, source, source_raw):
                db.execute(
                    "INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?)",
                    (number, line, source, source_raw),
                )
            case _Output(_, line, text):
                db.execute(
                    "INSERT OR REPLACE INTO output_history VALUES (?, ?, ?)", (number, line, text)
                )
            case _End(_, lines, time):
                db.execute(
                    "UPDATE sessions SET end = ?, num_cmds = ? WHERE session = ?",
                    (time, lines, number),
                )

    @staticmethod
    def _insert_session(db: Any, row: SessionRow) -> int:
        cursor = db.execute("INSERT INTO sessions VALUES (NULL, ?, NULL, NULL, '')", (row.start,))
        return int(cursor.lastrowid)

    def _report(self, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            _log.warning("the history can't be written to %s: %s", self.path, error)


class _Rows(list[Any]):
    """What a query found, with as much of a cursor as IPython asks for."""

    def fetchone(self) -> Any:
        return self[0] if self else None


@attrs.frozen
class _Database:
    """As much of a connection as IPython's `HistoryAccessor` reads through."""

    store: HistoryStore

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> _Rows:
        return _Rows(self.store.select(sql, parameters))


class SessionHistory(HistoryManager):
    """The history of one subshell.

    It reads like IPython's `HistoryManager`, current session first. Item `n` of `input_hist_raw`
    and of `input_hist_parsed` is cell `n`. There is nothing to close; `end_session` notes the end.

    Args:
        shell: IPython's shell.
        store: where it is recorded.
        numbered: whether its inputs are put into the namespace by number too, as ``_i5``.
        dir_hist: the directories visited; one list, as the process is in one directory.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        store: HistoryStore,
        *,
        numbered: bool,
        dir_hist: list[Any] | None = None,
    ) -> None:
        # Not HistoryManager's own: that opens the database and starts a thread.
        LoggingConfigurable.__init__(self, shell=shell)
        self._store = store
        self._row = SessionRow()
        self._numbered = numbered
        self.outputs = defaultdict(list)
        if dir_hist is not None:
            self.dir_hist = dir_hist

    @property
    def db(self) -> _Database:
        """What IPython queries."""
        return _Database(self._store)

    @property
    def session_number(self) -> int:  # type: ignore[override]
        """The number of this session in the database."""
        return self._store.number(self._row)

    def writeout_cache(self, conn: Any = None) -> None:
        """Write what is waiting. What reads the database does that anyway."""
        self._store.flush()

    def store_inputs(self, line_num: int, source: str, source_raw: str | None = None) -> None:
        """Record what cell `line_num` executes."""
        source = source.rstrip("\n")
        source_raw = source if source_raw is None else source_raw.rstrip("\n")
        for inputs, text in (
            (self.input_hist_parsed, source),
            (self.input_hist_raw, source_raw),
        ):
            # A cell that isn't stored, an empty one for example, leaves a gap.
            inputs.extend([""] * (line_num + 1 - len(inputs)))
            inputs[line_num] = text
        if not self._exit_re.match(source_raw.strip()):  # annoying to find as the latest line
            self._store.put(_Input(self._row, line_num, source, source_raw))
        earlier = [*self.input_hist_raw[-2:-5:-1], "", "", ""]
        names = dict(zip(("_i", "_ii", "_iii"), earlier, strict=False))
        if self._numbered:
            names[f"_i{line_num}"] = source_raw
        self.shell.push(names, interactive=False)

    def store_output(self, line_num: int) -> None:
        """Record what came out of cell `line_num`, if the profile's configuration wants that."""
        if self.db_log_output and line_num in self.output_hist_reprs:
            self._store.put(_Output(self._row, line_num, self.output_hist_reprs[line_num]))

    def new_session(self, conn: Any = None) -> None:
        """Begin another session, as ``%reset`` does."""
        self._row = SessionRow()

    def end_session(self) -> None:
        """Note the time and the number of lines of this session, if anything was executed in it."""
        lines = len(self.input_hist_parsed) - 1
        if lines:
            self._store.put(_End(self._row, lines, _now()))

    def close(self) -> None:
        """Do nothing: the store is closed by who opened it."""
