"""A memory channel between threads: `trio.abc` channels on the queue of `_queue`."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

import trio

from ._queue import Queue, QueueStatistics
from ._transport import Bell, Transport, TrioTransport

T = TypeVar("T")


def open_channel(
    capacity: float, *, transport: Transport | None = None
) -> tuple[CrossThreadSendChannel[T], CrossThreadReceiveChannel[T]]:
    """A bounded channel whose two ends may live in different threads.

    The receiving end belongs to the trio loop that calls this. The sending end is for any thread:
    `send` in whichever trio loop, `send_nowait` even without one.

    Args:
        capacity: how many values may wait, at least 1; `math.inf` for no bound.
        transport: how the receiver is woken; through trio alone by default. The sending threads
            should have entered its `attach()`.
    """
    transport = TrioTransport() if transport is None else transport
    queue: Queue[T] = Queue(capacity)  # first, as it may refuse the capacity
    bell = transport.open_bell()
    queue.attach(bell)
    return CrossThreadSendChannel(queue), CrossThreadReceiveChannel(queue, bell)


def _sender_closed() -> Exception:
    return trio.EndOfChannel("the sending end of this channel is closed")


def _receiver_closed() -> Exception:
    return trio.BrokenResourceError("the receiving end of this channel is closed")


class CrossThreadSendChannel(trio.abc.SendChannel[T], Generic[T]):
    """The sending end of `open_channel`."""

    def __init__(self, queue: Queue[T]) -> None:
        self._queue = queue
        self._closed = False

    def send_nowait(self, value: T) -> None:
        """Send from any thread, in a trio loop or not.

        Raises:
            trio.WouldBlock: the channel is full.
            trio.ClosedResourceError: you have closed this end.
            trio.BrokenResourceError: the receiving end is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("this end of the channel is closed")
        try:
            self._queue.put_nowait(value)
        except trio.EndOfChannel:  # another thread has just closed this end
            raise trio.ClosedResourceError("this end of the channel is closed") from None

    async def send(self, value: T) -> None:
        """Send, waiting while the channel is full. Cancelled, nothing has been sent.

        Raises:
            trio.ClosedResourceError: you have closed this end, or do so meanwhile.
            trio.BrokenResourceError: the receiving end is closed, or gets closed meanwhile.
        """
        if self._closed:
            raise trio.ClosedResourceError("this end of the channel is closed")
        try:
            await self._queue.put(value)
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this end of the channel is closed") from None

    def close(self) -> None:
        """Close this end, from any thread: the receiver gets what is queued, then the end."""
        self._closed = True
        self._queue.close(_sender_closed, discard=False)

    async def aclose(self) -> None:
        """Close this end. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> CrossThreadSendChannel[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def statistics(self) -> QueueStatistics:
        """A snapshot of the channel."""
        return self._queue.statistics()


class CrossThreadReceiveChannel(trio.abc.ReceiveChannel[T], Generic[T]):
    """The receiving end of `open_channel`, for the trio loop that made it."""

    def __init__(self, queue: Queue[T], bell: Bell) -> None:
        self._queue = queue
        self._bell: Bell | None = bell

    def receive_nowait(self) -> T:
        """The next value, if there is one.

        Raises:
            trio.WouldBlock: there is none.
            trio.EndOfChannel: there never will be: the sending end is closed.
            trio.ClosedResourceError: you have closed this end.
        """
        if self._bell is None:
            raise trio.ClosedResourceError("this end of the channel is closed")
        return self._queue.get_nowait()

    async def receive(self) -> T:
        """Wait for the next value. Cancelled, nothing has been taken.

        Raises:
            trio.EndOfChannel: there never will be one: the sending end is closed.
            trio.ClosedResourceError: you have closed this end, or do so meanwhile.
            trio.BusyResourceError: another task waits here already.
        """
        if self._bell is None:
            raise trio.ClosedResourceError("this end of the channel is closed")
        try:
            return await self._queue.get()
        except trio.BrokenResourceError:  # by another task of yours
            raise trio.ClosedResourceError("this end of the channel was closed") from None

    def close(self) -> None:
        """Close this end, in its own loop: what is queued is dropped, senders are refused."""
        if self._bell is not None:
            self._queue.close(_receiver_closed, discard=True)
            self._queue.detach()
            self._bell.close()
            self._bell = None

    async def aclose(self) -> None:
        """Close this end. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> CrossThreadReceiveChannel[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def statistics(self) -> QueueStatistics:
        """A snapshot of the channel."""
        return self._queue.statistics()
