"""Memory that nobody uses any more is given back to the system.

glibc keeps what is freed for the next who needs some, and gives back only what happens to lie at
the end of an arena. So a kernel that once held 70 MB of replies for a client which didn't read
would have these 70 MB for ever. Here somebody looks now and then whether much is free, and tells
glibc to let go of it (``malloc_trim``).

Other allocators do that by themselves, or have no such call; there it does nothing. Nor does it
for what Python keeps of its own small objects.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

_log = logging.getLogger("trio_subshells.kernel")

INTERVAL: Final = 0.5
"""Seconds between two looks."""

MOST_OF_THE_TIME: Final = 0.02
"""What share of the time the looks may take: they take long where a heap is in many pieces."""

WORTHWHILE: Final = 1 << 23
"""Bytes. Fewer aren't worth the trouble..."""

WORTHWHILE_SHARE: Final = 1 / 16
"""...nor is a smaller part of what the process has."""


@attrs.frozen
class Holding:
    """What the process has, in bytes.

    Attributes:
        resident: of physical memory.
        free: of that, and of what was given back, what the allocator would give to the next.
    """

    resident: int
    free: int


class Allocator(Protocol):
    """What is asked of one; for the tests, too."""

    def look(self) -> Holding:
        """What there is now."""

    def trim(self) -> None:
        """Give back what is free; takes a millisecond for 10 MB. From any thread."""


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class Glibc:
    """That of the GNU C library, from version 2.33 on.

    Raises:
        AttributeError, OSError: it is another one.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._mallinfo = library.mallinfo2
        self._mallinfo.restype = _Mallinfo
        self._trim = library.malloc_trim
        self._trim.argtypes = (ctypes.c_size_t,)
        self._statm = Path("/proc/self/statm")
        self._page = int(library.getpagesize())
        self.look()

    def look(self) -> Holding:
        resident = int(self._statm.read_bytes().split()[1]) * self._page
        return Holding(resident, int(self._mallinfo().fordblks))

    def trim(self) -> None:
        self._trim(0)


def find_allocator() -> Allocator | None:
    """The process's allocator, if it is one that has to be told."""
    if sys.platform != "linux":
        return None
    try:
        return Glibc()
    except (AttributeError, OSError) as error:
        _log.debug("what is free can't be given back to the system: %s", error)
        return None


async def give_back_memory(allocator: Allocator | None = None) -> None:
    """Give back what is free, whenever that is much; until cancelled.

    Args:
        allocator: whose it is; that of the process by default.
    """
    allocator = allocator or find_allocator()
    if allocator is None:
        await trio.sleep_forever()
        return
    lowest = _look(allocator) or Holding(0, 0)  # since it was given back
    pause = INTERVAL
    while True:
        await trio.sleep(pause)
        begin = time.perf_counter()
        now = _look(allocator)
        if now is None:
            continue
        lowest = Holding(min(lowest.resident, now.resident), min(lowest.free, now.free))
        if _is_worthwhile(lowest, now) and await _trim(allocator):
            lowest = _look(allocator) or now
        pause = max(INTERVAL, (time.perf_counter() - begin) / MOST_OF_THE_TIME)


def _look(allocator: Allocator) -> Holding | None:
    try:
        return allocator.look()
    except OSError as error:  # no file descriptor is left for that
        _log.debug("nobody knows how much memory is free: %s", error)
        return None


def _is_worthwhile(lowest: Holding, now: Holding) -> bool:
    """Whether much is free that the system could have.

    What was given back still counts as free. So it is only worthwhile if more is free than there
    was at some time since, or if more is resident.
    """
    much = max(WORTHWHILE, now.resident * WORTHWHILE_SHARE)
    grown = max(now.free - lowest.free, now.resident - lowest.resident)
    return now.free >= much and grown >= much


async def _trim(allocator: Allocator) -> bool:
    """Do it in another thread, which doesn't stay: it is rarely needed. Returns whether it did."""
    done, token = trio.Event(), trio.lowlevel.current_trio_token()

    def run() -> None:
        allocator.trim()
        token.run_sync_soon(done.set)

    thread = threading.Thread(target=run, name="gives memory back")
    try:
        thread.start()
    except RuntimeError as error:
        _log.debug("there can't be a thread to give memory back: %s", error)
        return False
    with trio.CancelScope(shield=True):
        await done.wait()
    thread.join()
    return True
