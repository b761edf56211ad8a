"""Who subscribes to an iopub device, and the end of those who don't read what they subscribed to.

What a subscriber has yet to take, libzmq keeps. One that has stopped reading would have it keep
everything that is ever published. So the device's publishers enter what they send in one `Ledger`,
and when too much is held there, those who don't take it are disconnected: libzmq then lets go of
what waited for them. (To them it is as if the network had failed: they connect again by themselves,
and are welcomed.) The limits are in `SubscriberLimits`.

libzmq has no call that disconnects a peer. But it tells, on a monitor socket, the descriptor of
each connection that it accepts; and whose connection is shut down from outside is gone for libzmq,
too. The descriptor may be another's by the time it is used, so it is only ever acted upon if the
two addresses of its socket are those that it had when it was accepted.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio
import zmq

from ._context import Context
from ._ledger import Ledger, start_lending
from ._refusals import refusal_events, refusal_in_words
from ._socket import Socket

_log = logging.getLogger("trio_subshells.sockets")

if sys.platform == "linux":
    import fcntl
    import termios

_LINGER_NOT = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)

LOOKING_INTERVAL = 0.05
"""Seconds between two looks at the connections, while much is held."""


@attrs.frozen
class SubscriberLimits:
    """How much may be held for subscribers, in bytes, and what happens then.

    Attributes:
        patience: from so much on, who has taken nothing for `patience_seconds` is disconnected.
        patience_seconds: see there.
        most: from so much on, who is behind is disconnected, even if it takes something.
        ceiling: from so much on, messages of more than 4096 bytes aren't published, to anybody:
            for the case that nobody was found who is behind.
    """

    patience: int = 1 << 25
    patience_seconds: float = 2.0
    most: int = 1 << 28
    ceiling: int = 1 << 29


@attrs.define
class _Connection:
    """A subscriber's, as it is seen by looking at its descriptor now and then."""

    descriptor: int
    addresses: tuple[object, object]
    left: int | None = None  # bytes that it had yet to take at the last look
    looks_behind: int = 0  # without one in between at which it was not behind
    looks_stalled: int = 0  # without one in between at which it had taken something


class Subscribers:
    """Watches them. See the module's first lines.

    Args:
        limits: when to act.
        ledger: what is held.
        on_loss: called with a number of losses, and what they are in words.
        on_refusal: called with what is wrong with a connection that was refused.
        is_encrypted: whether CURVE is demanded of them.
    """

    def __init__(
        self,
        limits: SubscriberLimits,
        ledger: Ledger,
        on_loss: Callable[[int, str], None],
        on_refusal: Callable[[str], None],
        *,
        is_encrypted: bool,
    ) -> None:
        self._limits = limits
        self._ledger = ledger
        self._on_loss = on_loss
        self._on_refusal = on_refusal
        self._is_encrypted = is_encrypted
        self._refused = 0
        self._connections: dict[int, _Connection] = {}

    async def follow(self, monitor: Socket) -> None:
        """Keep the list of connections up to date, from the events of libzmq."""
        while True:
            frames = await monitor.receive()
            event, value = struct.unpack("=HI", frames[0])
            reason = refusal_in_words(event, value, is_encrypted=self._is_encrypted)
            if reason is not None:
                self._on_refusal(reason)
                continue
            self._connections.pop(value, None)
            if event == zmq.EVENT_ACCEPTED and (addresses := _addresses_of(value)) is not None:
                self._connections[value] = _Connection(value, addresses)

    async def watch(self) -> None:
        """Look at them for as long as too much is held; returns when it isn't any more."""
        for connection in self._connections.values():
            connection.looks_behind = connection.looks_stalled = 0
            connection.left = None
        while (held := self._ledger.held) >= self._limits.patience:
            for connection in list(self._connections.values()):
                self._look(connection)
                if self._is_lost(connection, held):
                    del self._connections[connection.descriptor]
                    if _disconnect(connection):
                        self._on_loss(
                            1,
                            "all that waited for a client that doesn't read; it is disconnected, "
                            f"as {held / 1e6:.0f} MB were waiting",
                        )
            self._tell_of_refused(held)
            await trio.sleep(LOOKING_INTERVAL)
        self._tell_of_refused(held)

    def _tell_of_refused(self, held: int) -> None:
        refused = self._ledger.refused
        if refused > self._refused:
            self._on_loss(
                refused - self._refused,
                f"an output that was too much: {held / 1e6:.0f} MB were waiting for slow clients",
            )
            self._refused = refused

    def _look(self, connection: _Connection) -> None:
        left = _bytes_left(connection.descriptor)
        if _can_be_sent_to(connection.descriptor):
            connection.looks_behind = connection.looks_stalled = 0
        else:
            connection.looks_behind += 1
            stalled = left is None or left == connection.left
            connection.looks_stalled = connection.looks_stalled + 1 if stalled else 0
        connection.left = left

    def _is_lost(self, connection: _Connection, held: int) -> bool:
        if connection.looks_stalled * LOOKING_INTERVAL >= self._limits.patience_seconds:
            return True
        return held >= self._limits.most and connection.looks_behind >= 3


def _addresses_of(descriptor: int) -> tuple[object, object] | None:
    """The two ends of a connection; None if the descriptor isn't one, or no longer."""
    try:
        connection = _borrowed(descriptor)
    except OSError:
        return None
    try:
        return connection.getsockname(), connection.getpeername()
    except OSError:
        return None
    finally:
        _return(connection)


def _borrowed(descriptor: int) -> socket.socket:
    """A socket object for a descriptor of libzmq's: a duplicate, where there can be one."""
    if sys.platform == "win32":
        return socket.socket(fileno=descriptor)
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # it isn't a socket's any more
        os.close(duplicate)
        raise


def _return(borrowed: socket.socket) -> None:
    if sys.platform == "win32":
        borrowed.detach()
    else:
        borrowed.close()


def _can_be_sent_to(descriptor: int) -> bool:
    """Whether a connection has room for more; also true of one that has ended."""
    try:
        if hasattr(select, "poll"):  # select() alone is for small descriptors only
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            return bool(poll.poll(0))
        return bool(select.select([], [descriptor], [], 0)[1])
    except (OSError, ValueError):
        return True


def _bytes_left(descriptor: int) -> int | None:
    """What the peer has yet to take of what the system has, where the system tells."""
    if sys.platform != "linux":
        return None
    try:
        left = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return None
    return int.from_bytes(left, sys.byteorder)


def _disconnect(connection: _Connection) -> bool:
    """Shut a connection down, so that libzmq closes it; returns whether it was still that one."""
    try:
        borrowed = _borrowed(connection.descriptor)
    except OSError:
        return False
    try:
        if (borrowed.getsockname(), borrowed.getpeername()) != connection.addresses:
            return False
        # Nothing of what it hasn't taken lingers on in the system, once libzmq closes it.
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        _return(borrowed)
    return True


@asynccontextmanager
async def open_subscribers(
    context: Context,
    xpub: zmq.Socket[bytes],
    limits: SubscriberLimits,
    on_loss: Callable[[int, str], None],
    on_refusal: Callable[[str], None],
) -> AsyncIterator[Ledger]:
    """Watch the subscribers of an XPUB that is about to be bound, and run by a device.

    At the end the XPUB must be the calling thread's again.

    Args:
        context: of the XPUB.
        xpub: it.
        limits: when to act.
        on_loss: see `Subscribers`.
        on_refusal: see `Subscribers`.

    Raises:
        OSError: no file descriptor is left (``EMFILE``, ``ENFILE``).
    """
    start_lending()
    token = trio.lowlevel.current_trio_token()
    alarm = trio.lowlevel.ParkingLot()

    def ring() -> None:
        """From any thread."""
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(alarm.unpark_all)

    ledger = Ledger(limits.ceiling, limits.patience, ring)
    is_encrypted = bool(xpub.get(zmq.CURVE_SERVER))
    subscribers = Subscribers(limits, ledger, on_loss, on_refusal, is_encrypted=is_encrypted)
    events = int(zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED)
    events |= refusal_events(is_encrypted=is_encrypted)

    async def watch() -> None:
        while True:
            await subscribers.watch()
            await alarm.park()  # what rings after the last look finds it here

    url = f"inproc://subscribers-{uuid.uuid4().hex}"
    # Without a bound: libzmq's own thread would wait for room.
    with context.socket(zmq.PAIR, name=f"monitor of {url}", rcvhwm=0, linger=0) as monitor:
        xpub.monitor(url, events)
        try:
            monitor.connect(url)
            async with _background(partial(subscribers.follow, monitor), watch):
                yield ledger
        finally:
            with suppress(zmq.ContextTerminated):
                xpub.disable_monitor()


@asynccontextmanager
async def _background(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run tasks beside a block, whose own exceptions a nursery would put into a group."""
    scope = trio.CancelScope()
    ended = trio.Event()

    async def run() -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(task)
        except* (trio.BrokenResourceError, trio.ClosedResourceError) as errors:
            # The context has ended. Those who use the device are told of that by themselves.
            _log.debug("nobody looks after the subscribers any more", exc_info=errors)
        finally:
            ended.set()

    trio.lowlevel.spawn_system_task(run)
    try:
        yield
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()
