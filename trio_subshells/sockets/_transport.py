"""Bells on inproc sockets: how an actor in one trio loop is woken by a thread.

What crosses between actors is passed by reference through a queue (`trio_subshells.actors`); the
bell only says that there is something in it. The owner's loop reads a PULL socket directly, without
a pump task in between. Each thread that rings has a PUSH socket of its own per bell, made at its
first ring: no socket is ever touched by two threads. That saves the step through a task of the
owner's loop that ``TrioToken.run_sync_soon`` takes. The gain is modest: the best rounds between two
idle loops took 34 µs there and back, against 38 through the token, and on a machine with other work
to do the two are often hard to tell apart.

At most one ring is under way per bell, and the token in `InprocBell._armed` stands for the right to
send it. Taking it (``deque.pop``) and giving it back (``deque.append``) are each atomic, with the
GIL and without. The owner gives it back *after* taking the ring and *before* it looks at its queue.
So a ringer that finds no token has put its item where the owner is still going to look.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import zmq

from ._context import Context


class InprocTransport:
    """Makes bells, and prepares the threads that ring them: a `trio_subshells.actors.Transport`.

    Costs one descriptor per bell, and one per bell and thread that has rung it, until the bell is
    closed and that thread rings another, or detaches.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._here = threading.local()

    def open_bell(self) -> InprocBell:
        """Make a bell owned by the calling trio loop. Whoever opens it closes it."""
        return InprocBell(self, self._context)

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Let the calling thread ring through sockets of its own; at the end they are closed.

        Enter it around the thread's trio loop. A thread that isn't attached can ring too, through
        the owner's `trio.lowlevel.TrioToken`. Attaching again inside does nothing.
        """
        if self._ringer() is not None:
            yield
            return
        self._here.ringer = ringer = _Ringer(self._context)
        try:
            yield
        finally:
            del self._here.ringer
            ringer.close()

    def _ringer(self) -> _Ringer | None:
        """The calling thread's ringing sockets, if it is attached."""
        ringer: _Ringer | None = getattr(self._here, "ringer", None)
        return ringer


class _Ringer:
    """One attached thread's PUSH sockets, by bell. Only `forget` is for other threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pushes: dict[InprocBell, zmq.Socket[bytes]] = {}
        self._closed_bells: deque[InprocBell] = deque()

    def ring(self, bell: InprocBell) -> None:
        while self._closed_bells:
            self._close_push(self._closed_bells.popleft())
        push = self._pushes.get(bell)
        if push is None:
            push, _ = self._context._open_raw(
                zmq.SocketType.PUSH, f"ringer of {bell.url}", {"sndhwm": 0, "linger": 0}
            )
            try:
                push.connect(bell.url)
            except BaseException:
                self._context._close_raw(push, 0)
                raise
            self._pushes[bell] = push
            bell._add_ringer(self)
        push.send(b"", zmq.NOBLOCK)

    def forget(self, bell: InprocBell) -> None:
        """Have this thread close its socket for a closed bell, when it next rings another."""
        self._closed_bells.append(bell)

    def close(self) -> None:
        for bell in list(self._pushes):
            self._close_push(bell)

    def _close_push(self, bell: InprocBell) -> None:
        push = self._pushes.pop(bell, None)
        if push is not None:
            bell._remove_ringer(self)
            self._context._close_raw(push, 0)


class InprocBell:
    """Wakes one task of the loop that opened it; rung from any thread. See `InprocTransport`."""

    def __init__(self, transport: InprocTransport, context: Context) -> None:
        self._transport = transport
        self._context = context
        self._token = trio.lowlevel.current_trio_token()
        self.url = f"inproc://bell-{uuid.uuid4().hex}"
        self._pull, _ = context._open_raw(zmq.SocketType.PULL, self.url, {"rcvhwm": 0, "linger": 0})
        self._pull.bind(self.url)
        self._descriptor = int(self._pull.get(zmq.FD))
        self._armed: deque[None] = deque([None], maxlen=1)
        self._rung_here = False
        self._waiting = False
        # Guards what follows, which several threads change.
        self._lock = threading.Lock()
        self._ringers: dict[_Ringer, None] = {}
        self._closed = False

    def ring(self) -> None:
        """Wake the owner. Callable from any thread, never blocks.

        Rings that nobody waits for are remembered as one. A ring after `close`, or after the
        owner's loop has ended, does nothing.
        """
        try:
            try:
                self._armed.pop()
            except IndexError:
                return  # a ring is under way already, or the bell is closed
            ringer = self._transport._ringer()
            if ringer is None:
                self._ring_by_token()
            else:
                ringer.ring(self)
        except (zmq.Again, zmq.ContextTerminated):
            return  # the bell was closed meanwhile, or its context
        except (OSError, RuntimeError):
            self._ring_by_token()  # there is no room for a socket; the owner's loop needs none
        except BaseException:
            # An interrupt, planted in this thread, must not take the ring with it: the token may be
            # gone already, and nobody would ever ring again.
            self._ring_by_token()
            raise

    def _ring_by_token(self) -> None:
        try:
            self._token.run_sync_soon(self._ring_here, idempotent=True)
        except trio.RunFinishedError:
            return  # the owner's loop has ended: nobody is left to wake

    def _ring_here(self) -> None:
        if not self._closed:
            self._rung_here = True
            if self._waiting:
                trio.lowlevel.notify_closing(self._descriptor)  # have it look again

    async def wait(self) -> None:
        """Wait for a ring; only in the owner's loop, one task at a time. A checkpoint.

        Returns at once if the bell has rung since the last wait. A cancelled wait loses no ring.

        Raises:
            trio.ClosedResourceError: the bell is closed, or gets closed meanwhile.
            trio.BrokenResourceError: the context has ended.
            trio.BusyResourceError: another task waits already.
        """
        if self._waiting:
            raise trio.BusyResourceError("another task waits for this bell already")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._take():
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        self._waiting = True
        try:
            while not self._take():
                try:
                    await trio.lowlevel.wait_readable(self._descriptor)
                except trio.ClosedResourceError:
                    continue  # notify_closing, by _ring_here() or close()
        finally:
            self._waiting = False

    def _take(self) -> bool:
        """Take the ring, if it has rung, and let the next one come."""
        if self._closed:
            raise trio.ClosedResourceError("this bell is closed")
        rung, self._rung_here = self._rung_here, False
        try:
            # EVENTS rather than a receive that fails: an exception and a release of the GIL less.
            # It likewise processes everything, so that the descriptor tells of what comes next.
            if int(self._pull.get(zmq.EVENTS)) & zmq.POLLIN:
                self._pull.recv(zmq.NOBLOCK)
                rung = True
        except zmq.ContextTerminated:
            raise trio.BrokenResourceError("the context of this bell has ended") from None
        if rung:
            self._armed.append(None)
        return rung

    def close(self) -> None:
        """Give back what the bell holds; only in the owner's loop. Again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ringers = list(self._ringers)
        self._armed.clear()
        if self._waiting:
            trio.lowlevel.notify_closing(self._descriptor)
        self._context._close_raw(self._pull, 0)
        for ringer in ringers:
            ringer.forget(self)

    def _add_ringer(self, ringer: _Ringer) -> None:
        with self._lock:
            self._ringers[ringer] = None
            closed = self._closed
        if closed:
            ringer.forget(self)

    def _remove_ringer(self, ringer: _Ringer) -> None:
        with self._lock:
            self._ringers.pop(ringer, None)
