"""Several requests under way at once, on several sockets, and when each one's reply came.

What `_client` measures is one round trip after the other. Here a slow request is watched while
others go back and forth: that is how one sees whether anybody had to wait for it.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import attrs
import zmq
from _client import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from _client import Client, Request


class Pending:
    """A request that was sent: its reply, once it is there, and when that came."""

    def __init__(self, request: Request, on_reply: Callable[[], None] | None) -> None:
        self.request = request
        self.on_reply = on_reply
        self.reply: Message | None = None
        self.sent = time.perf_counter()
        self.received = 0.0

    @property
    def seconds(self) -> float:
        """From the request to its reply; to now as long as there is none."""
        return (self.received if self.reply is not None else time.perf_counter()) - self.sent


@attrs.frozen(order=True)
class Latency:
    """What a request took, or what it has taken so far if it isn't `answered`."""

    seconds: float
    answered: bool = True


class Desk:
    """Sends requests and collects their replies; the only reader of the sockets it is told of."""

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}
        self._poller = zmq.Poller()
        self._sockets: set[zmq.Socket[bytes]] = set()

    def send(
        self,
        socket: zmq.Socket[bytes],
        request: Request,
        on_reply: Callable[[], None] | None = None,
    ) -> Pending:
        """Send a request; `on_reply` is called when its reply is there."""
        pending = self.expect(socket, request, on_reply)
        socket.send_multipart(request.frames)
        return pending

    def expect(
        self,
        socket: zmq.Socket[bytes],
        request: Request,
        on_reply: Callable[[], None] | None = None,
    ) -> Pending:
        """Wait for the reply to a request that was sent before: its time counts from now on."""
        if socket not in self._sockets:
            self._sockets.add(socket)
            self._poller.register(socket, zmq.POLLIN)
        pending = self._pending[request.msg_id] = Pending(request, on_reply)
        return pending

    def run_until(self, satisfied: Callable[[], bool], seconds: float) -> bool:
        """Receive until `satisfied` or until the time is over; return whether it was the first."""
        limit = time.monotonic() + seconds
        while not satisfied():
            left = limit - time.monotonic()
            if left <= 0:
                return False
            for socket, _ in self._poller.poll(int(left * 1000) + 1):
                frames = socket.recv_multipart()
                received = time.perf_counter()
                message = Message.of(frames)
                pending = self._pending.pop(message.parent_id, None)
                if pending is None:
                    continue
                pending.reply, pending.received = message, received
                if pending.on_reply is not None:
                    pending.on_reply()
        return True

    def wait(self, *pending: Pending, seconds: float) -> bool:
        """Receive until all of these are answered or the time is over; return whether they are."""
        return self.run_until(lambda: all(each.reply is not None for each in pending), seconds)


class Pulse:
    """One request after the other on one socket, each as soon as the one before is answered."""

    def __init__(
        self, desk: Desk, client: Client, socket: zmq.Socket[bytes], make: Callable[[], Request]
    ) -> None:
        self._desk = desk
        self._client = client
        self._socket = socket
        self._make = make
        self._beats: list[Pending] = []
        self._beating = False

    def start(self) -> None:
        """Begin to send."""
        self._beating = True
        self._beat()

    def stop(self, patience: float) -> bool:
        """Send no more, wait for the last reply; return whether it came in time."""
        self._beating = False
        return self._desk.wait(self._beats[-1], seconds=patience)

    def latencies(self, begin: float, end: float) -> list[Latency]:
        """Return the latency of each request that was under way between two moments."""
        return [
            Latency(beat.seconds, beat.reply is not None)
            for beat in self._beats
            if beat.sent < end and (beat.reply is None or beat.received > begin)
        ]

    def answered(self, begin: float, end: float) -> int:
        """Return how many replies came between two moments."""
        return sum(beat.reply is not None and begin < beat.received < end for beat in self._beats)

    def _beat(self) -> None:
        if self._beating:
            self._beats.append(self._desk.send(self._socket, self._make(), self._beat))


def ratio(disturbed: list[Latency], undisturbed: list[Latency]) -> float:
    """Return how many times the median of some latencies is that of others."""
    return _median(disturbed) / _median(undisturbed)


def _median(latencies: list[Latency]) -> float:
    return statistics.median(each.seconds for each in latencies)
