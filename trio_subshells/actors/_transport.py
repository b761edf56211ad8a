"""How a sleeping actor is woken from another thread: bells, and the transports that make them.

Messages between actors are passed by reference through a queue (see `_queue`). What has to cross
from one trio loop to another is only the news that there is something in it. That is a *bell*: the
sender rings, the owner's loop wakes. How a bell rings is the transport's business:

- `TrioTransport` (here) needs nothing but trio: it rings through `trio.lowlevel.TrioToken`.
- `trio_subshells.sockets.InprocTransport` rings through ZMQ inproc sockets, which take about two
  thirds of the time for a round trip between two trio loops, and cost descriptors.

An actor can't tell which one carries its messages.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import trio


class Bell(Protocol):
    """Wakes one task of the loop that owns it; rung from any thread."""

    def ring(self) -> None:
        """Wake the owner. Callable from any thread, never blocks.

        Rings that nobody waits for are remembered as one. A ring after `close`, or after the
        owner's loop has ended, does nothing.
        """

    async def wait(self) -> None:
        """Wait for a ring; only in the owner's loop, one task at a time. A checkpoint.

        Returns at once if the bell has rung since the last wait. A cancelled wait loses no ring.

        Raises:
            trio.ClosedResourceError: the bell is closed, or gets closed meanwhile.
        """

    def close(self) -> None:
        """Give back what the bell holds; only in the owner's loop."""


class Transport(Protocol):
    """Makes bells, and prepares the threads that ring them."""

    def open_bell(self) -> Bell:
        """Make a bell owned by the calling trio loop. Whoever opens it closes it."""

    def attach(self) -> AbstractContextManager[None]:
        """Prepare the calling thread for ringing: entered around the life of its trio loop."""


class TrioTransport:
    """Rings through the owner's `trio.lowlevel.TrioToken`: no descriptors, nothing but trio."""

    def open_bell(self) -> Bell:
        """Make a bell owned by the calling trio loop."""
        return TrioBell()

    def attach(self) -> AbstractContextManager[None]:
        """Nothing to prepare: a trio token can be used from any thread."""
        return nullcontext()


class TrioBell:
    """A bell on `trio.lowlevel.TrioToken.run_sync_soon`."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._waiter: trio.lowlevel.Task | None = None
        self._rung = False
        self._closed = False

    def ring(self) -> None:
        """Wake the owner: directly from its own thread, through its token from another."""
        if threading.get_ident() == self._thread:
            self._wake()
            return
        try:
            self._token.run_sync_soon(self._wake, idempotent=True)
        except trio.RunFinishedError:
            return  # the owner's loop has ended: nobody is left to wake

    def _wake(self) -> None:
        if self._waiter is None:
            self._rung = True
        else:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Wait for a ring."""
        if self._waiter is not None:
            raise trio.BusyResourceError("another task waits for this bell already")
        if self._closed:
            raise trio.ClosedResourceError("this bell is closed")
        if self._rung:
            await trio.lowlevel.checkpoint()
            self._rung = False
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._closed:
            raise trio.ClosedResourceError("this bell was closed while a task waited for it")

    def close(self) -> None:
        """Wake the waiter, if any, with `trio.ClosedResourceError`."""
        self._closed = True
        self._wake()
