"""A ZMQ socket for trio, correct under libzmq's edge-triggered descriptor.

The theory, which the code below leans on:

- A socket's one descriptor (``ZMQ_FD``) does not say "there is a message". It says "there are
  commands in the socket's mailbox": a message came, room was made for one, a peer went. *Every*
  operation on the socket may process those commands, whatever it is itself about, and the
  descriptor is silent again afterwards. So a send can swallow the edge that announced a message,
  and a receive the one that announced room.
- Hence the first rule: whoever has operated on the socket looks whether somebody else waits on it,
  and if ``ZMQ_EVENTS`` has what that task waits for, wakes it. That is `Socket._look`.
- That look is itself an operation, and may swallow the edge that whoever looks is about to wait
  for. Hence the second rule: if a try has failed, and the look after it finds that it could be done
  now, it is tried again.
- A receive that fails with ``EAGAIN`` leaves no command unprocessed, so waiting for the descriptor
  right afterwards misses nothing. A failing *send* may leave some (libzmq looks at its mailbox once
  in a millisecond then), but in that case the descriptor is still readable: we only look again too
  early. To not spin meanwhile, a sender that the descriptor has woken reads ``ZMQ_EVENTS``, which
  processes everything.
- trio lets one task wait for a descriptor. There can be two of us, one per direction: a receiver
  (a second one is refused) and the sender at the head of the queue. The first to come holds the
  descriptor, the other is parked. A holder that is woken tries, and looks for the parked one by the
  first rule; when it is done, for whatever reason, it wakes the parked one, which tries again and
  then takes the descriptor over. Hence the third rule: nobody sleeps, parked, while nobody holds
  the descriptor.
- A receiver is woken for a message only. For if it were woken because there may be room, it would
  look, and wake the sender, which would look, and so on for ever: ``POLLOUT`` of a ROUTER is set as
  long as any peer has room, not the one that the message is for. So a sender of a ROUTER can't obey
  the second rule either. While somebody else waits on it, too, it tries again now and then instead.
- A holder is woken from inside the loop by `trio.lowlevel.notify_closing`. It costs nothing on the
  hot path; a cancel scope around each wait, the alternative, would be paid for by every message.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import attrs
import trio
import zmq

from .._files import OwnFile
from ._context import Context
from ._descriptors import check_descriptors
from ._ipc import is_ours_to_make, listening
from ._options import SocketOptions, check_linger

P = ParamSpec("P")
T = TypeVar("T")

_RECEIVE = int(zmq.POLLIN)
_SEND = int(zmq.POLLOUT)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)

_NOW_AND_THEN = 0.02  # seconds


@attrs.frozen
class SocketStatistics:
    """A snapshot of a `Socket`.

    Attributes:
        name: what errors call it.
        kind: ``"ROUTER"``, ``"DEALER"``, ...
        bound: the addresses it is bound to, as `Socket.bind` returned them.
        connected: the addresses it is connected to.
        messages_sent: how many messages libzmq has taken.
        messages_received: how many messages have been received.
        tasks_waiting_send: how many tasks wait in `Socket.send`.
        tasks_waiting_receive: 1 if a task waits in `Socket.receive`, else 0.
    """

    name: str
    kind: str
    bound: tuple[str, ...]
    connected: tuple[str, ...]
    messages_sent: int
    messages_received: int
    tasks_waiting_send: int
    tasks_waiting_receive: int


class Socket(trio.abc.SendChannel[Sequence[bytes]], trio.abc.ReceiveChannel[list[bytes]]):
    """A ZMQ socket whose messages, lists of frames, are sent and received by trio tasks.

    Made by `Context.socket`; belongs to the thread that made it. Close it there, before its
    context: ``with`` and ``async with`` both do. One task may receive while others send.

    Every method raises `trio.ClosedResourceError` once the socket is closed, and
    `trio.BrokenResourceError` once its context is.
    """

    def __init__(
        self, context: Context, kind: zmq.SocketType, name: str | None, options: SocketOptions
    ) -> None:
        self._context = context
        self._kind = kind
        self._zmq, self.name = context._open_raw(kind, name, options, self)
        # pyzmq's C function, without the Python method around it: see _try_send.
        self._send_frame = super(zmq.Socket, self._zmq).send
        self._descriptor = int(self._zmq.get(zmq.FD))
        self._closed = False
        self._bound: list[str] = []
        self._files: dict[str, OwnFile] = {}  # of the addresses that are paths
        self._connected: list[str] = []
        self._sent = 0
        self._received = 0
        # Who waits, see above. The queue of senders is the lock's.
        self._receiving = False
        self._sending = trio.StrictFIFOLock()
        self._holder: int | None = None  # _RECEIVE or _SEND
        self._parked = trio.lowlevel.ParkingLot()  # of the other one
        self._parked_for = 0

    def __repr__(self) -> str:
        return f"<Socket {self.name} ({self._kind.name}){' closed' if self._closed else ''}>"

    # -- addresses and options ------------------------------------------------------------------

    def bind(self, url: str) -> str:
        """Bind to an address, and return the actual one.

        The file of an ipc socket is this user's alone, and is removed when the socket is closed. It
        takes the place of one that nobody listens at any more; of nothing else.

        Args:
            url: ``tcp://127.0.0.1:0`` (any free port), ``ipc:///a/path`` or ``ipc://*``,
                ``inproc://a-name``.

        Raises:
            ValueError: not an address.
            OSError: no file descriptor is left (``EMFILE``, ``ENFILE``).
            zmq.ZMQError: it can't be bound, for instance ``EADDRINUSE``; names the address.
        """
        actual, file = self._call(bind_raw, self._zmq, url)
        self._bound.append(actual)
        if file is not None:
            self._files[actual] = file
        return actual

    def unbind(self, url: str) -> None:
        """Stop listening at an address that `bind` returned."""
        check_url(url)
        self._call(self._zmq.unbind, url)
        self._bound.remove(url)
        if url in self._files:
            self._files.pop(url).remove()

    def connect(self, url: str) -> None:
        """Connect to an address; at once if somebody is there, or as soon as they are.

        Raises:
            ValueError: not an address.
            zmq.ZMQError: an address that can't be; names it.
        """
        check_url(url)
        self._call(self._zmq.connect, url)
        self._connected.append(url)

    def disconnect(self, url: str) -> None:
        """Undo `connect`; every one, if there were several to that address."""
        check_url(url)
        self._call(self._zmq.disconnect, url)
        self._connected = [each for each in self._connected if each != url]

    def set(self, option: int, value: int | bytes) -> None:
        """Set any socket option (``zmq.SUBSCRIBE``, ...). Most only matter before bind or connect.

        Raises:
            ValueError: an endless ``zmq.LINGER``.
            zmq.ZMQError: no such option, or not with that value, for this kind of socket.
        """
        self._check_open()
        if option == zmq.LINGER and isinstance(value, int):
            check_linger(value)
        self._call(self._zmq.set, option, value)

    def get(self, option: int) -> int | bytes:
        """The value of a socket option.

        Raises:
            zmq.ZMQError: there is none such for this kind of socket.
        """
        self._check_open()
        value: int | bytes = self._call(self._zmq.get, option)
        return value

    # -- sending --------------------------------------------------------------------------------

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send a message if there is room for it.

        Not a checkpoint. All or nothing, even if a signal's or another thread's exception
        strikes in the middle of it.

        Raises:
            trio.WouldBlock: no room, or tasks wait for some in `send` already.
            TypeError, ValueError: not a message; nothing has been sent.
            zmq.ZMQError: libzmq refuses it: ``EHOSTUNREACH`` (a ROUTER with ``router_mandatory``
                has no such peer), ``EFSM`` (a REQ or REP whose turn it isn't).
        """
        self._check_open()
        check_frames(frames)
        if self._sending.locked() or not self._try_send(frames):
            raise trio.WouldBlock

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a message, waiting for room. Cancelled, nothing of it has been sent.

        Messages go in the order of the calls: one that waits (for a slow peer of a ROUTER with
        ``router_mandatory``, say) holds up those after it.

        Raises:
            TypeError, ValueError: not a message; nothing has been sent.
            zmq.ZMQError: as `send_nowait`.
        """
        self._check_open()
        check_frames(frames)
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._sending.locked() and self._try_send(frames):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        async with self._sending:
            try:
                while not self._try_send(frames):
                    if self._receiving and self._kind is zmq.SocketType.ROUTER:
                        with trio.move_on_after(_NOW_AND_THEN):
                            await self._wait(_SEND)
                    else:
                        await self._wait(_SEND)
            finally:
                self._hand_over()

    def _try_send(self, frames: Sequence[bytes]) -> bool:
        """Send all of a message and return True, or nothing and return False."""
        self._check_open()
        while True:
            try:
                sent = self._send_now(frames)
            finally:
                events = self._look()
            if sent or not events & _SEND or self._kind is zmq.SocketType.ROUTER:
                return sent

    def _send_now(self, frames: Sequence[bytes]) -> bool:
        last = len(frames) - 1
        left = iter(tuple(frames))
        flags = [_MORE] * last + [_LAST]
        try:
            # The loop over the frames runs in C, where no exception can be planted between two of
            # them: half a message would become part of the next one.
            deque(map(self._send_frame, left, flags), maxlen=0)
        except zmq.Again:
            if operator.length_hint(left) < last:
                # The peer went in the middle of the message. libzmq has dropped the beginning, and
                # would drop the rest too, but only up to a last frame: give it one, so that it
                # isn't the end of the next message that is dropped.
                rest = list(left)
                if rest:
                    deque(map(self._send_frame, rest, flags[-len(rest) :]), maxlen=0)
            return False
        except zmq.ContextTerminated:
            raise self._broken() from None
        else:
            self._sent += 1
            return True

    # -- receiving ------------------------------------------------------------------------------

    def receive_nowait(self) -> list[bytes]:
        """Receive a message if there is one. Not a checkpoint.

        Raises:
            trio.WouldBlock: there is none.
        """
        frames = self._try_receive()
        if frames is None:
            raise trio.WouldBlock
        return frames

    async def receive(self) -> list[bytes]:
        """Wait for a message. Cancelled, it has taken none.

        Raises:
            trio.BusyResourceError: another task is receiving already.
        """
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError(f"another task is receiving from the socket {self.name!r}")
        self._receiving = True
        try:
            # Before the first try, not after it: what has been taken must not be held back while
            # another task's receive_nowait() takes what came later.
            await trio.lowlevel.checkpoint()
            while (frames := self._try_receive()) is None:
                await self._wait(_RECEIVE)
            return frames
        finally:
            self._receiving = False
            self._hand_over()

    def _try_receive(self) -> list[bytes] | None:
        """Receive a message; None: there is none."""
        self._check_open()
        while True:
            try:
                frames = self._receive_now()
            finally:
                events = self._look()
            if frames is not None or not events & _RECEIVE:
                return frames

    def _receive_now(self) -> list[bytes] | None:
        try:
            frames = self._zmq.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ContextTerminated:
            raise self._broken() from None
        self._received += 1
        return frames

    # -- waiting --------------------------------------------------------------------------------

    async def _wait(self, direction: int) -> None:
        """Sleep until it makes sense to try `direction` again, straight after a try that failed."""
        if self._holder is not None:
            self._parked_for = direction
            await self._parked.park()
            return
        self._holder = direction
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
        except trio.ClosedResourceError:
            return  # notify_closing: by _look(), or by close(), which the next try will find out
        finally:
            self._holder = None
        if direction == _SEND and not self._closed:
            self._events()  # see above: a failing send alone might leave the descriptor readable

    def _hand_over(self) -> None:
        """Let the parked task take the descriptor over, by one who waits no longer."""
        if self._holder is None:
            self._parked.unpark_all()

    def _look(self) -> int:
        """Wake the tasks whose edge the operation just done may have swallowed.

        Returns what can be done now; 0 if nobody waits, for then nothing was swallowed.
        """
        if self._holder is None and not self._parked:
            return 0
        events = self._events()
        if self._holder is not None and events & self._holder:
            trio.lowlevel.notify_closing(self._descriptor)
        if self._parked and events & self._parked_for:
            self._parked.unpark_all()
        return events

    def _events(self) -> int:
        """Process everything in the socket's mailbox; what can be done now."""
        try:
            events = self._zmq.get(zmq.EVENTS)
        except zmq.ContextTerminated:
            return _RECEIVE | _SEND  # whoever waits shall try, and find out
        assert isinstance(events, int)
        return events

    # -- the end --------------------------------------------------------------------------------

    def close(self, linger_ms: int | None = None) -> None:
        """Close the socket. Tasks that wait on it get `trio.ClosedResourceError`.

        What has been sent goes on being delivered in the background for as long as the socket
        lingers; the end of the context waits for that. Closing again does nothing.

        Args:
            linger_ms: for how long, in milliseconds; by default the socket's ``linger`` option.
        """
        if linger_ms is not None:
            check_linger(linger_ms)
        if self._closed:
            return
        self._closed = True
        if self._holder is not None:
            trio.lowlevel.notify_closing(self._descriptor)
        self._parked.unpark_all()
        self._context._close_raw(self._zmq, linger_ms)
        for file in self._files.values():
            file.remove()

    async def aclose(self) -> None:
        """Close the socket as `close` does. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def statistics(self) -> SocketStatistics:
        """A snapshot."""
        lock = self._sending.statistics()
        return SocketStatistics(
            name=self.name,
            kind=self._kind.name,
            bound=tuple(self._bound),
            connected=tuple(self._connected),
            messages_sent=self._sent,
            messages_received=self._received,
            tasks_waiting_send=lock.locked + lock.tasks_waiting,
            tasks_waiting_receive=int(self._receiving),
        )

    # -- details --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the socket {self.name!r} is closed")

    def _broken(self) -> trio.BrokenResourceError:
        return trio.BrokenResourceError(f"the context of the socket {self.name!r} has ended")

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """An operation that is neither a send nor a receive, but may swallow edges like those."""
        self._check_open()
        try:
            return function(*args, **kwargs)
        except zmq.ContextTerminated:
            raise self._broken() from None
        finally:
            self._look()


def check_url(url: str) -> None:
    """Refuse what can't be an address; libzmq would only say "Invalid argument"."""
    if not isinstance(url, str) or "://" not in url:
        raise ValueError(
            f"{url!r} is not a ZMQ address, such as 'tcp://127.0.0.1:0', 'ipc:///a/path' or "
            "'inproc://a-name'"
        )


def bind_raw(raw: zmq.Socket[bytes], url: str) -> tuple[str, OwnFile | None]:
    """Bind a pyzmq socket; return the actual address, without wildcards, and the file if it is one.

    Whoever closes the socket removes the file.

    Raises:
        ValueError: not an address.
        OSError: no file descriptor is left (``EMFILE``, ``ENFILE``).
        zmq.ZMQError: it can't be bound.
    """
    check_url(url)
    if url.startswith("tcp:"):
        # libzmq first asks the system for its network interfaces, in case one is called like that,
        # and aborts the process if there is no descriptor to ask with. Another one is to listen.
        check_descriptors(2, f"listening at {url}")
    if is_ours_to_make(url):
        with listening(url) as (listener, file):
            raw.set(zmq.USE_FD, listener.fileno())
            raw.bind(url)
            listener.detach()  # it is libzmq's now
        raw.set(zmq.USE_FD, -1)
    else:
        file = None
        raw.bind(url)
    actual = raw.get(zmq.LAST_ENDPOINT)
    assert isinstance(actual, bytes)
    return actual.rstrip(b"\0").decode(), file


def check_frames(frames: Sequence[bytes]) -> None:
    """Refuse what isn't a message before any of it is sent."""
    if isinstance(frames, (bytes, bytearray, memoryview, str)):
        raise TypeError(
            f"a message is a list of frames, not one {type(frames).__name__}: "
            "send([frame]), not send(frame)"
        )
    if not frames:
        raise ValueError("a message has at least one frame, for instance [b'']")
    for index, frame in enumerate(frames):
        if not isinstance(frame, (bytes, bytearray, memoryview, zmq.Frame)):
            raise TypeError(
                f"frame {index} of the message is a {type(frame).__name__}; frames are bytes"
            )
