"""What is thrown away, counted and told: a flood of rubbish must not become a flood of log lines.

Every message that a kernel drops, on whatever channel and for whatever reason, is entered here. The
first of each channel and reason is logged at once, in words; those that follow are summed up in one
line after `SUMMARY_INTERVAL`, and in one more at the end. As long as it goes on, each line is twice
as long in coming as the one before: somebody may knock for days at a port that was another
kernel's. The counts are in `KernelStatistics`.

The state is one entry for each channel and reason, and of both there are only so many.
"""

from __future__ import annotations

import enum
import logging
from typing import Final

import attrs
import trio

from ..wire import MalformedReason

_log = logging.getLogger("trio_subshells.kernel")

SUMMARY_INTERVAL: Final = 10.0
"""Seconds between the first two lines about the same thing."""

LONGEST_INTERVAL: Final = 3600.0
"""Seconds that may come between two later ones."""

_LONGEST: Final = 300
"""Characters of what others have sent that go into a line."""


class DropReason(enum.StrEnum):
    """Why a message was dropped that isn't malformed in itself."""

    NOT_A_REQUEST = "not_a_request"
    """It is of a type that only kernels send, or that belongs on another channel."""
    NOBODY_WAITS = "nobody_waits"
    """An answer to a question that nobody has asked, or that was withdrawn."""
    TOO_MANY = "too_many"
    """A comm message for a subshell in which too much waits already."""
    REFUSED = "refused"
    """Whatever a connection that ZMQ refused was to bring: it is without CURVE, or has another
    kernel's key. Each time that it tries counts."""
    NOT_READ = "not_read"
    """Something for a client that doesn't read what it is sent. On iopub: everything that waited
    for such a client, which counts as one, or an output that came when too much was waiting."""
    GIVEN_UP = "given_up"
    """Output of a cell that could not be ended, and was given up: it came after the cell's idle."""


@attrs.frozen
class DropCount:
    """How many messages were dropped.

    Attributes:
        channel: where they came from, or were to go: ``"shell"``, ``"control"``, ``"stdin"``,
            ``"iopub"``.
        reason: why: a `trio_subshells.wire.MalformedReason` or a `DropReason`.
        count: how many.
    """

    channel: str
    reason: MalformedReason | DropReason
    count: int


@attrs.define
class _Entry:
    count: int = 0
    told: int = 0  # of them, in the log
    latest: str = ""


class Drops:
    """See the module's first lines. Belongs to the I/O thread, as all who enter something do."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, MalformedReason | DropReason], _Entry] = {}
        self._untold = trio.lowlevel.ParkingLot()

    def add(
        self, channel: str, reason: MalformedReason | DropReason, detail: str, count: int = 1
    ) -> None:
        """Count a message that is dropped.

        Args:
            channel: its channel.
            reason: the kind of reason.
            detail: the reason in words, for the log.
            count: how many there are of that kind.
        """
        entry = self._entries.setdefault((channel, reason), _Entry())
        entry.count += count
        if entry.told == 0:
            entry.told = 1
            _log.warning("dropped a message on the %s channel: %s", channel, _tamed(detail))
        entry.latest = detail
        if entry.told < entry.count:
            self._untold.unpark_all()

    async def tell(self) -> None:
        """Log what has come together, now and then; until cancelled, and then the rest."""
        pause, summed_up = SUMMARY_INTERVAL, trio.current_time()
        try:
            while True:
                if all(entry.told == entry.count for entry in self._entries.values()):
                    await self._untold.park()
                if trio.current_time() >= summed_up + pause:  # it was quiet meanwhile
                    pause = SUMMARY_INTERVAL
                await trio.sleep(pause)
                self._sum_up()
                pause, summed_up = min(2 * pause, LONGEST_INTERVAL), trio.current_time()
        finally:
            self._sum_up()

    def _sum_up(self) -> None:
        for (channel, reason), entry in self._entries.items():
            if entry.told == entry.count:
                continue
            _log.warning(
                "dropped %d more message(s) on the %s channel (%s), %d in all; the last: %s",
                entry.count - entry.told,
                channel,
                reason,
                entry.count,
                _tamed(entry.latest),
            )
            entry.told = entry.count

    def counts(self) -> tuple[DropCount, ...]:
        """A snapshot."""
        return tuple(DropCount(*key, entry.count) for key, entry in self._entries.items())


def _tamed(text: str) -> str:
    """On one line, without control characters, and not too long: much of it others have written."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in cut
    )
