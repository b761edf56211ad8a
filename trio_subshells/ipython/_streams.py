"""`sys.stdout` and `sys.stderr` while the kernel lives: what is written goes to its cell."""

from __future__ import annotations

import io
import os
from typing import TextIO

from ..kernel._fork import write_own
from ._activity import ActivityTracker


class CellStream(io.TextIOBase):
    """A text stream whose writes go to the cell on whose behalf they are made.

    Writing is synchronous, doesn't block, and may be done in any thread. What belongs to no cell
    goes where it would have gone without the kernel.

    In a forked child process it goes to that process's own descriptor, line by line: the child may
    end by `os._exit`, which flushes nothing.

    Args:
        name: ``stdout`` or ``stderr``.
        tracker: knows the cell.
        original: the stream that this one stands in for; it is not closed.
    """

    def __init__(self, name: str, tracker: ActivityTracker, original: TextIO | None) -> None:
        self._name = name
        self._tracker = tracker
        self._original = original
        self._process = os.getpid()
        self._line = ""  # of a forked child

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
        if os.getpid() != self._process:
            self._line += text
            if "\n" in text:
                self._write_line()
            return len(text)
        activity = self._tracker.current()
        if activity is not None and activity.cell is not None:
            activity.hear_children()
            activity.cell.stream(self._name, text)
        elif self._original is not None:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here; the cell sends what is written within hundredths of a second."""
        if os.getpid() != self._process:
            self._write_line()
            return
        if self._original is not None and self._tracker.cell() is None:
            self._original.flush()

    def _write_line(self) -> None:
        line, self._line = self._line, ""
        write_own(self._name, line)

    def close(self) -> None:
        """Do nothing: a program that closes its output must not silence the cells to come."""
