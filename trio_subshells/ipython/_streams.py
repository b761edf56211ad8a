"""`sys.stdout` and `sys.stderr` while the kernel lives: what is written goes to its cell."""

from __future__ import annotations

import io
from typing import TextIO

from ._activity import ActivityTracker


class CellStream(io.TextIOBase):
    """A text stream whose writes go to the cell on whose behalf they are made.

    Writing is synchronous, doesn't block, and may be done in any thread. What belongs to no cell
    goes where it would have gone without the kernel.

    Args:
        name: ``stdout`` or ``stderr``.
        tracker: knows the cell.
        original: the stream that this one stands in for; it is not closed.
    """

    def __init__(self, name: str, tracker: ActivityTracker, original: TextIO | None) -> None:
        self._name = name
        self._tracker = tracker
        self._original = original

    @property
    def name(self) -> str:
        """``<stdout>`` or ``<stderr>``, as of the streams that Python opens."""
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Text is sent as it is; JSON is UTF-8."""
        return "UTF-8"

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str, /) -> int:
        """Write `text` to its cell.

        Raises:
            TypeError: it isn't a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        cell = self._tracker.cell()
        if cell is not None:
            cell.stream(self._name, text)
        elif self._original is not None:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here; the cell sends what is written within hundredths of a second."""
        if self._original is not None and self._tracker.cell() is None:
            self._original.flush()

    def close(self) -> None:
        """Do nothing: a program that closes its output must not silence the cells to come."""
