"""A thread's way into the iopub device: an inproc XPUB that has seen who it publishes to.

A PUB socket that starts sending at once loses messages: until the subscription of the other side
has arrived, it has no subscriber, and drops. An XPUB can wait for that subscription. The device's
XSUB subscribes to everything, once, so a publisher that has seen it loses nothing, ever.

Through the same sockets the subscriptions of the clients come up to the publishers. One of them can
answer each with an ``iopub_welcome`` (JEP 65); the others throw them away now and then.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import attrs
import trio
import zmq

from ._context import Context
from ._ledger import Ledger, size_of
from ._socket import Socket, check_frames

# How many messages a publisher sends before it throws away the notifications that nobody reads.
DRAIN_INTERVAL = 256

# Bytes that a publisher sends until it enters them in the ledger: then that costs next to nothing.
SHARE = 1 << 18

# How many notifications may wait for the one who reads them.
MOST_NOTIFICATIONS = 100_000


@attrs.frozen
class Subscription:
    """A client of the device has subscribed to a topic, or the last one has left it.

    Attributes:
        topic: the prefix that a message's first frame must have; ``b""`` for all messages.
        subscribed: whether it came or went.
    """

    topic: bytes
    subscribed: bool


_EVERYTHING = Subscription(topic=b"", subscribed=True)


@attrs.frozen
class PublisherStatistics:
    """A snapshot of a `Publisher`.

    Attributes:
        messages_published: how many messages went to the device.
        messages_dropped: how many didn't, as too much was waiting for slow clients.
        notified: whether it keeps notifications for `Publisher.receive_subscription`.
    """

    messages_published: int
    messages_dropped: int
    notified: bool


class Publisher:
    """Publishes through an iopub device, in the thread that opened it. See `open_publisher`."""

    def __init__(self, socket: Socket, ledger: Ledger, *, notified: bool) -> None:
        self._socket = socket
        self._ledger = ledger
        self._unentered = 0
        self._notified = notified
        self._published = 0
        self._dropped = 0

    def publish(self, frames: Sequence[bytes]) -> None:
        """Publish a message to every client that has subscribed to a prefix of its first frame.

        Never blocks: what the device hasn't taken yet is queued. (The device, in turn, disconnects
        a client that is too slow, see `SubscriberLimits`; only if none is found to be, and too much
        is held, what is larger than 4096 bytes is dropped here.) All or nothing, even if an
        interrupt strikes in the middle of it; not a checkpoint.

        Raises:
            trio.ClosedResourceError: the publisher is closed.
            trio.BrokenResourceError: its context has ended.
            TypeError, ValueError: not a message.
        """
        check_frames(frames)
        size = size_of(frames)
        if self._ledger.refuses(size):
            self._dropped += 1
            return
        self._unentered += size
        if self._unentered >= SHARE:
            frames = self._ledger.lent(frames, self._unentered)
            self._unentered = 0
        self._socket.send_nowait(frames)
        self._published += 1
        if self._published % DRAIN_INTERVAL == 0 and not self._notified:
            self._drain()

    async def receive_subscription(self) -> Subscription:
        """Wait for a client to subscribe or leave, in a publisher with ``notified=True``.

        Each subscriber of each topic is notified of, also a second one of the same. Of those who
        leave, only the last one of a topic. Cancelled, no notification is lost.

        Raises:
            RuntimeError: this publisher isn't notified.
            trio.BusyResourceError: another task is waiting already.
            trio.ClosedResourceError: the publisher is closed, or gets closed meanwhile.
            trio.BrokenResourceError: its context has ended.
        """
        if not self._notified:
            raise RuntimeError("open this publisher with notified=True to hear of subscriptions")
        while True:
            subscription = _parse(await self._socket.receive())
            if subscription is not None:
                return subscription

    def _drain(self) -> None:
        with suppress(trio.WouldBlock):
            while True:
                self._socket.receive_nowait()

    def statistics(self) -> PublisherStatistics:
        """A snapshot."""
        return PublisherStatistics(self._published, self._dropped, self._notified)

    def close(self) -> None:
        """Close it. What has been published is still delivered. Again does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _parse(frames: list[bytes]) -> Subscription | None:
    """What a message from below says, or None: a client may send anything up through the device."""
    if len(frames) == 1 and frames[0][:1] in (b"\0", b"\1"):
        return Subscription(topic=frames[0][1:], subscribed=frames[0][:1] == b"\1")
    return None


def start_publisher(context: Context, publisher_url: str, *, notified: bool) -> Publisher:
    """Connect a publisher. `finish_publisher` has to be awaited before it may publish."""
    socket = context.socket(
        zmq.XPUB,
        name=f"publisher to {publisher_url}",
        sndhwm=0,
        # Who doesn't read the notifications needs only those that one drain leaves behind.
        # (If somebody subscribes faster than that, some get no welcome.)
        rcvhwm=MOST_NOTIFICATIONS if notified else 1000,
        linger=0,
        xpub_verbose=notified,
    )
    try:
        socket.connect(publisher_url)
    except BaseException:
        socket.close()
        raise
    # Who waits for a device that isn't there yet, doesn't count.
    ledger = context._ledgers.get(publisher_url) or Ledger(math.inf)
    return Publisher(socket, ledger, notified=notified)


async def finish_publisher(publisher: Publisher) -> None:
    """Wait until a publisher has seen the device's subscription to everything.

    That is the first one: libzmq tells who connects of shorter topics before longer ones.
    """
    while _parse(await publisher._socket.receive()) != _EVERYTHING:
        pass


@asynccontextmanager
async def open_publisher(
    context: Context, publisher_url: str, *, notified: bool = False
) -> AsyncIterator[Publisher]:
    """A publisher into an iopub device of any thread, for the calling thread.

    Waits until it has seen the device, so that not even the first message is lost. At the end it
    is closed, and everything published until then is still delivered.

    Args:
        context: the device's.
        publisher_url: `IOPubDevice.publisher_url`.
        notified: whether to keep the notifications for `Publisher.receive_subscription`; then
            somebody has to receive them. Of those who subscribed before, it hears of one per
            topic; only the device's own publisher, `IOPubDevice.publisher`, hears of all.
    """
    with start_publisher(context, publisher_url, notified=notified) as publisher:
        await finish_publisher(publisher)
        yield publisher
