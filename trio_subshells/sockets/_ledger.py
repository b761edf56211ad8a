"""How many bytes libzmq holds: what was sent, and has not left this process or been dropped yet.

libzmq bounds its queues by messages (``sndhwm``), and messages may be of any size. It can't be
asked how many bytes they have. But it says when it is done with a frame that it was lent rather
than given a copy of; and by counting these, a `Ledger` knows what all peers together, or the one
peer that it is kept for, have yet to take.

(pyzmq has a thread that lets go of what was lent, with a ZMQ context of its own: three threads and
seven descriptors in all. It would start with the first such frame, whenever that is, and if there
were no descriptor left by then, libzmq would abort the process. Hence `start_lending`.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import cast

import zmq
from zmq.utils.garbage import gc as pyzmqs_thread

from ._descriptors import check_room_for_threads

SMALL = 4096
"""Bytes of a message that is sent whatever is held: a kernel's busy and idle have less."""

OVERHEAD = 100
"""Bytes that libzmq needs for a frame besides what is in it, roughly."""

# pyzmq's thread must not be started by two at the same time. This lock, and that of each ledger, is
# reentrant: a garbage collection in the middle may run code that prints, or give something back.
_lending = threading.RLock()

_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def bytes_on_their_way() -> int:
    """What all ledgers of this process hold; from any thread."""
    with _lending:
        ledgers = list(_ledgers)
    return sum(ledger.held for ledger in ledgers)


def start_lending() -> None:
    """Let pyzmq start its thread now, if it doesn't run already.

    Raises:
        OSError: no room (``EMFILE``, ``ENFILE``); the message says which limit to raise.
    """
    with _lending:
        if not pyzmqs_thread.is_alive():
            check_room_for_threads(1, "the thread that lets go of what was sent")
            zmq.Frame(b"lent", copy=False)


class Ledger:
    """Counts; from any thread.

    Args:
        ceiling: bytes. Once so many are held, nothing that is large is to be sent.
        alarm_at: a number of bytes.
        alarm: called when so many are held, in the thread that sends what comes to it; and again
            after they have become less than that.
    """

    def __init__(
        self, ceiling: float, alarm_at: int = 0, alarm: Callable[[], None] | None = None
    ) -> None:
        self._ceiling = ceiling
        self._alarm_at = alarm_at
        self._alarm = alarm
        self._lock = threading.RLock()
        self._held = 0
        self.refused = 0
        """How many messages were not sent, as too much was held."""
        with _lending:
            _ledgers.add(self)

    def refuses(self, size: int) -> bool:
        """Whether a message of this size is not to be sent now; it is counted then."""
        if size <= SMALL or self._held < self._ceiling:
            return False
        with self._lock:
            self.refused += 1
        return True

    @property
    def held(self) -> int:
        """Bytes that are held at this moment; those that were sent without being counted apart."""
        return self._held

    def lent(self, frames: Sequence[bytes], size: int) -> Sequence[bytes]:
        """Return a message to send once in the place of `frames`; while it is held, `size` counts.

        It counts from now on. If it isn't sent, throw it away.
        """
        loan = _Loan(frames[-1])
        loan.ledger, loan.size = self, size
        with _lending:
            last = zmq.Frame(loan, copy=False)
        with self._lock:
            before, self._held = self._held, self._held + size
        if self._alarm is not None and before < self._alarm_at <= before + size:
            self._alarm()
        return [*frames[:-1], cast("bytes", last)]

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size


class _Loan(bytes):
    """The bytes of a frame that is lent; when it is given back, nobody has it any more."""

    ledger: Ledger | None = None
    size = 0

    def __del__(self) -> None:
        if self.ledger is not None:
            self.ledger._give_back(self.size)


def size_of(frames: Sequence[bytes]) -> int:
    """What a message costs libzmq, roughly."""
    return sum(map(len, frames)) + OVERHEAD * len(frames)
