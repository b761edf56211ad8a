"""Failures of an author's code that nobody gets a reply about, or not with all of it: told once.

A handler of comm messages that fails, fails at each message. The first failure of its kind is
logged with its traceback; those that follow are counted, and summed up in one line after
`SUMMARY_INTERVAL`, and in one more at the end. Two are of a kind if the same thing has failed with
the same class of exception at the same line.

They happen in all threads, and logging is the whole process's, so this is, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import attrs
import trio

from ._errors import named

_log = logging.getLogger("trio_subshells.kernel")

SUMMARY_INTERVAL: Final = 10.0
"""Seconds between two lines about the same thing."""

MOST_KINDS: Final = 1000
"""Kinds that are remembered. Then the oldest is forgotten, and told in full when it comes again."""


@attrs.frozen
class _Kind:
    what: str
    error: str
    place: str


@attrs.define
class _Entry:
    untold: int = 0
    count: int = 1
    latest: str = ""


class Failures:
    """See the module's first lines. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[_Kind, _Entry] = {}  # the oldest first
        self._bells: list[Callable[[], object]] = []  # of those who `tell`

    def add(self, what: str, error: BaseException) -> None:
        """Log that `what` has failed, in full or not yet."""
        kind = _kind_of(what, error)
        latest = named(error)  # by the author's code: not under the lock
        with self._lock:
            entry = self._entries.get(kind)
            if entry is not None:
                entry.count += 1
                entry.untold += 1
                entry.latest = latest
                for ring in self._bells:
                    ring()
                return
            while len(self._entries) >= MOST_KINDS:
                self._entries.pop(next(iter(self._entries)))
            self._entries[kind] = _Entry()
        _log.error("%s has failed", what, exc_info=error)

    async def tell(self) -> None:
        """Log what has come together, now and then; until cancelled, and then the rest."""
        untold = trio.lowlevel.ParkingLot()
        bell = partial(_ring, trio.lowlevel.current_trio_token(), untold)
        with self._lock:
            self._bells.append(bell)
        try:
            while True:
                if not self._untold():
                    await untold.park()
                await trio.sleep(SUMMARY_INTERVAL)
                self._sum_up()
        finally:
            with self._lock:
                self._bells.remove(bell)
            self._sum_up()

    def forget(self) -> None:
        """Be as in a new process; for tests."""
        with self._lock:
            self._entries.clear()

    def _untold(self) -> list[tuple[_Kind, _Entry]]:
        return [(kind, entry) for kind, entry in list(self._entries.items()) if entry.untold]

    def _sum_up(self) -> None:
        with self._lock:
            untold = self._untold()
            lines = [(kind.what, entry.untold, entry.count, entry.latest) for kind, entry in untold]
            for _, entry in untold:
                entry.untold = 0
        for line in lines:
            _log.error(
                "%s has failed in the same way %d more time(s), %d in all; the last: %s", *line
            )


def _ring(token: trio.lowlevel.TrioToken, untold: trio.lowlevel.ParkingLot) -> None:
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(untold.unpark_all, idempotent=True)


def _kind_of(what: str, error: BaseException) -> _Kind:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else ""
    return _Kind(what, f"{type(error).__module__}.{type(error).__qualname__}", place)


failures: Final = Failures()
"""Those of this process."""
