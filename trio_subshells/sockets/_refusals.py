"""Connections that ZMQ refuses: who has no CURVE, or another's key, is told of here.

Nothing that such a client sends is ever received, and libzmq is silent about it. But it tells, on a
monitor socket, that a handshake has failed, and of what.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zmq

from ._context import Context
from ._socket import Socket


def refusal_events(*, is_encrypted: bool) -> int:
    """Return the events of a monitor that tell of refused connections.

    With CURVE, those count that end in the middle of the handshake, too: a client without CURVE may
    find out before we do. Without CURVE they don't, as anybody may look whether a port is open.
    """
    events = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    if is_encrypted:
        events |= int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    return events


def refusal_in_words(event: int, error: int, *, is_encrypted: bool) -> str | None:
    """Return what is wrong with a connection, if the event tells of a refused one."""
    if not event & refusal_events(is_encrypted=is_encrypted):
        return None
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return "its connection ended before the handshake did: a client without CURVE, or a scan"
    if error == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        if is_encrypted:
            return "its sender doesn't use CURVE, which this connection demands"
        return "its sender uses CURVE, and this connection isn't encrypted"
    if is_encrypted:
        return "its sender hasn't got the CURVE key of this connection"
    return f"its sender doesn't keep to ZMQ's protocol (error {error:#x})"


class Refusals:
    """The connections that a socket refuses, one after the other. See `open_refusals`."""

    def __init__(self, monitor: Socket, *, is_encrypted: bool) -> None:
        self._monitor = monitor
        self._is_encrypted = is_encrypted

    async def receive(self) -> str:
        """Wait for the next one; return what is wrong with it, in words.

        A client that is refused tries again and again, so there may be many.
        """
        while True:
            event, value = struct.unpack("=HI", (await self._monitor.receive())[0])
            reason = refusal_in_words(event, value, is_encrypted=self._is_encrypted)
            if reason is not None:
                return reason


@contextmanager
def open_refusals(context: Context, socket: Socket) -> Iterator[Refusals]:
    """Watch a socket for connections that it refuses, in the thread that it belongs to.

    With CURVE, connections count that end in the middle of the handshake; without it they don't.

    Args:
        context: the socket's. It has two sockets more meanwhile.
        socket: it must outlive the block. It can have one such watch at a time.
    """
    is_encrypted = bool(socket.get(zmq.CURVE_SERVER))
    url = f"inproc://refusals-{uuid.uuid4().hex}"
    # Without a bound: libzmq's own thread would wait for room.
    with context.socket(zmq.PAIR, name=f"refusals of {socket.name}", rcvhwm=0, linger=0) as monitor:
        socket._zmq.monitor(url, refusal_events(is_encrypted=is_encrypted))
        try:
            monitor.connect(url)
            yield Refusals(monitor, is_encrypted=is_encrypted)
        finally:
            with suppress(zmq.ContextTerminated):
                socket._zmq.disable_monitor()
