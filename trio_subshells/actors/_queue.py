"""The bounded queue between any number of sending threads and one receiving loop.

Theory. All state is in `Queue`, guarded by one lock that is held for a few bytecodes at a time and
never across a wait. Values pass by reference. The receiver sleeps on a *bell* (see `_transport`)
that belongs to its loop; a sender rings it only when the receiver has said that it is about to
sleep, so a burst of a thousand sends costs one ring.

The queue outlives the loop that receives from it: `attach` binds it to the bell of whichever loop
receives now (an actor that is restarted in a new thread keeps its mailbox), and while none does,
senders simply fill it up.

When it is full, a sender parks together with its value. The receiver that makes room moves the
value into the queue itself and then wakes the sender: that keeps strict first-in first-out order
among waiting senders, and makes a cancelled send all or nothing. The lock decides whether the
value was taken or withdrawn.

A sender can only be woken after it has parked: both kinds of wake-up (rescheduling in the same
loop, a callback through the token from another) run in the sender's loop, which is busy running
the sender until it parks.

A KeyboardInterrupt of trio's never lands between two steps of an operation, where it would lose a
value or a ring: the methods are protected from it, and it comes at the next checkpoint.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs
import outcome
import trio

from ._transport import Bell

T = TypeVar("T")


@attrs.frozen
class QueueStatistics:
    """A snapshot of a queue.

    Attributes:
        length: values waiting in the queue.
        capacity: how many may wait.
        senders_waiting: tasks that wait for room.
        sent: values accepted since the queue was made.
        rings: how often the receiver had to be woken.
    """

    length: int
    capacity: float
    senders_waiting: int
    sent: int
    rings: int


class _ParkedSender(Generic[T]):
    """A task that waits, in its own loop, for its value to be taken into a full queue."""

    def __init__(self, value: T) -> None:
        self.value = value
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._task = trio.lowlevel.current_task()

    def wake(self, result: outcome.Outcome[None]) -> None:
        if threading.get_ident() == self._thread:
            trio.lowlevel.reschedule(self._task, result)
            return
        try:
            self._token.run_sync_soon(trio.lowlevel.reschedule, self._task, result)
        except trio.RunFinishedError:
            return  # a loop that has ended has no task left to wake


class Queue(Generic[T]):
    """A bounded first-in first-out queue; many senders in any thread, one receiver.

    Args:
        capacity: how many values may wait, at least 1 (`math.inf`: no bound).
    """

    def __init__(self, capacity: float) -> None:
        if not capacity >= 1:  # catches NaN as well
            raise ValueError(f"capacity must be a number of at least 1, not {capacity!r}")
        self.capacity = capacity
        self._lock = threading.Lock()
        self._values: deque[T] = deque()
        self._parked: deque[_ParkedSender[T]] = deque()
        self._bell: Bell | None = None
        self._asleep = False
        self._closed: Callable[[], Exception] | None = None
        self._sent = 0
        self._rings = 0

    # ------------------------------------------------------------------ sending, from any thread

    @trio.lowlevel.enable_ki_protection
    def put_nowait(self, value: T) -> None:
        """Append a value; callable from any thread, in a trio loop or not.

        Raises:
            trio.WouldBlock: the queue is full.
            Exception: the queue is closed; which exception, `close` has said.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if len(self._values) >= self.capacity:
                raise trio.WouldBlock
            bell = self._append(value)
        if bell is not None:
            bell.ring()

    @trio.lowlevel.enable_ki_protection
    async def put(self, value: T) -> None:
        """Append a value, waiting while the queue is full. A checkpoint, and cancellation-safe:
        the value of a cancelled `put` has not been appended.

        Raises:
            Exception: the queue is closed or gets closed meanwhile; which exception, `close` says.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        sender: _ParkedSender[T] | None = None
        bell = None
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if len(self._values) < self.capacity:
                bell = self._append(value)
            else:
                sender = _ParkedSender(value)
                self._parked.append(sender)
        if sender is None:
            if bell is not None:
                bell.ring()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        parked = sender

        def abort(_: object) -> trio.lowlevel.Abort:
            with self._lock:
                try:
                    self._parked.remove(parked)
                except ValueError:  # taken, or refused, a moment ago: that wake-up is on its way
                    return trio.lowlevel.Abort.FAILED
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _append(self, value: T) -> Bell | None:
        """Append under the lock; the caller rings the bell that is returned, without the lock."""
        self._values.append(value)
        self._sent += 1
        if not self._asleep:
            return None
        self._asleep = False
        self._rings += 1
        return self._bell

    # --------------------------------------------------------- receiving, in the attached loop

    def attach(self, bell: Bell) -> None:
        """Let the calling loop, which owns `bell`, receive from now on."""
        with self._lock:
            self._bell = bell
            self._asleep = False

    def detach(self) -> Bell | None:
        """Nobody receives any more; returns the bell for its owner to close."""
        with self._lock:
            bell, self._bell = self._bell, None
            self._asleep = False
        return bell

    @trio.lowlevel.enable_ki_protection
    def get_nowait(self) -> T:
        """Take the oldest value.

        Raises:
            trio.WouldBlock: the queue is empty.
            Exception: it is empty and closed; which exception, `close` has said.
        """
        with self._lock:
            return self._take()

    @trio.lowlevel.enable_ki_protection
    async def get(self) -> T:
        """Take the oldest value, waiting for one. A checkpoint, and cancellation-safe: a cancelled
        `get` has taken nothing.

        Raises:
            Exception: the queue is empty and closed; which exception, `close` has said.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            with self._lock:
                is_there = bool(self._values) or self._closed is not None
                if is_there and waited:
                    return self._take()  # the last step: nothing can come between that and return
                self._asleep = not is_there
                bell = self._bell
            if is_there:
                await trio.lowlevel.cancel_shielded_checkpoint()
            elif bell is None:
                raise RuntimeError("no loop is attached to this queue: call attach() first")
            else:
                await bell.wait()
            waited = True

    def _take(self) -> T:
        if not self._values:
            if self._closed is not None:
                raise self._closed()
            raise trio.WouldBlock
        value = self._values.popleft()
        if self._parked:
            sender = self._parked.popleft()
            self._values.append(sender.value)
            self._sent += 1
            sender.wake(outcome.Value(None))
        return value

    # ------------------------------------------------------------------------- from any thread

    @trio.lowlevel.enable_ki_protection
    def close(self, error: Callable[[], Exception], *, discard: bool) -> list[T]:
        """Refuse further values; every sender, waiting or to come, gets a new `error()`.

        Args:
            error: makes the exception that says why.
            discard: take out what is still queued and return it (nobody will receive any more),
                instead of leaving it for the receiver, who gets `error()` after the last value.
        """
        with self._lock:
            if self._closed is None:
                self._closed = error
            left = list(self._values) if discard else []
            if discard:
                self._values.clear()
            parked = list(self._parked)
            self._parked.clear()
            bell = self._bell if self._asleep else None
            self._asleep = False
        for sender in parked:
            sender.wake(outcome.Error(error()))
        if bell is not None:
            bell.ring()
        return left

    def statistics(self) -> QueueStatistics:
        """A snapshot; callable from any thread."""
        with self._lock:
            return QueueStatistics(
                length=len(self._values),
                capacity=self.capacity,
                senders_waiting=len(self._parked),
                sent=self._sent,
                rings=self._rings,
            )
