"""The context: room for thousands of sockets, and an end that never hangs.

``zmq_ctx_term`` waits until every socket of the context is closed, for ever if need be, and says
nothing. Here every socket is registered, under a name and with the thread that opened it, so that
the end of a context is bounded in time, and what was forgotten is named.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Unpack

import attrs
import zmq

from ._descriptors import check_room_for_threads
from ._ledger import Ledger
from ._options import DEFAULT_LINGER_MS, SocketOptions, apply_options

if TYPE_CHECKING:
    from ._socket import Socket

# How long the end of a context waits for other threads to close their sockets. They have been
# woken by then, and a closed socket has been told for how long it may linger.
GRACE_SECONDS = 5.0


class SocketsLeftOpenError(RuntimeError):
    """A context was left while sockets of it were still open; the message names them.

    Attributes:
        names: what was open, in the order of opening.
    """

    def __init__(self, names: tuple[str, ...], *, given_up: bool) -> None:
        self.names = names
        super().__init__(
            f"{len(names)} socket(s) were still open at the end of their context: "
            f"{', '.join(names)}; close each in the thread that opened it, before the context"
            + ("; a daemon thread waits on until the last one is closed" if given_up else "")
        )


@attrs.frozen
class ContextStatistics:
    """A snapshot of a `Context`.

    Attributes:
        sockets_open: the names of the open sockets, in the order of opening.
        max_sockets: how many there may be at once.
    """

    sockets_open: tuple[str, ...]
    max_sockets: int


@attrs.frozen(eq=False)
class _Entry:
    name: str
    thread: int
    owner: Socket | None


class Context:
    """Makes ZMQ sockets, from any thread, and knows which are open. See `open_context`."""

    def __init__(self, *, max_sockets: int = 65_535, io_threads: int = 1) -> None:
        if max_sockets < 1:
            raise ValueError(f"max_sockets is a number of sockets, 1 or more, not {max_sockets}")
        if io_threads < 1:
            raise ValueError(f"io_threads is a number of threads, 1 or more, not {io_threads}")
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads)
        self._io_threads = io_threads
        self._started = False  # libzmq's threads run
        self._max_sockets = min(max_sockets, self._zmq.get(zmq.SOCKET_LIMIT))
        self._zmq.set(zmq.MAX_SOCKETS, self._max_sockets)
        # Guards what follows; never held during anything that waits.
        self._lock = threading.Lock()
        self._closed = False
        self._entries: dict[zmq.Socket[bytes], _Entry] = {}  # in the order of opening
        self._ledgers: dict[str, Ledger] = {}  # of the iopub devices, by where one publishes
        self._lingering_until = 0.0  # time.monotonic()
        self._numbers = itertools.count(1)

    def socket(
        self, kind: int, *, name: str | None = None, **options: Unpack[SocketOptions]
    ) -> Socket:
        """Open a socket, for the calling thread.

        Args:
            kind: `zmq.ROUTER`, `zmq.DEALER`, ... except `zmq.STREAM` and the draft kinds.
            name: what errors and `statistics` call it; by default its kind and a number.
            options: libzmq's, in lower case: see `SocketOptions`. A closed socket, unless
                it is a subscriber, lingers for one second (``linger=1000``) if you don't say
                otherwise.

        Raises:
            RuntimeError: the context is closed.
            OSError: no room (``EMFILE``, ``ENFILE``); the message says which limit to raise.
            TypeError: an unknown option, or a value of the wrong type.
        """
        from ._socket import Socket  # it needs this module

        return Socket(self, zmq.SocketType(kind), name, options)

    def statistics(self) -> ContextStatistics:
        """A snapshot; from any thread."""
        return ContextStatistics(self._open_names(), self._max_sockets)

    def _open_names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(entry.name for entry in self._entries.values())

    def _open_raw(
        self,
        kind: zmq.SocketType,
        name: str | None,
        options: SocketOptions,
        owner: Socket | None = None,
    ) -> tuple[zmq.Socket[bytes], str]:
        """Open and register a pyzmq socket; `_close_raw` is its only right end."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this context is closed: it makes no more sockets")
            name = name or f"{kind.name}-{next(self._numbers)}"
            if not self._started:
                check_room_for_threads(self._io_threads, f"the socket {name!r}")
            try:
                # Not Context.socket(): pyzmq's own set of sockets isn't for several threads.
                raw: zmq.Socket[bytes] = zmq.Socket(self._zmq, kind)
            except zmq.ZMQError as error:
                if error.errno != errno.EMFILE:
                    raise
                raise OSError(
                    errno.EMFILE,
                    f"no room for the socket {name!r}: {len(self._entries)} are open of at most "
                    f"{self._max_sockets} in this context (open_context(max_sockets=...)), or the "
                    "process has no file descriptor left (ulimit -n)",
                ) from error
            self._started = True
            self._entries[raw] = _Entry(name, threading.get_ident(), owner)
        try:
            apply_options(raw, kind, options)
        except BaseException:
            self._close_raw(raw, 0)
            raise
        return raw, name

    def _close_raw(self, raw: zmq.Socket[bytes], linger_ms: int | None) -> None:
        """Close and forget a socket of `_open_raw`, in the thread that uses it."""
        if linger_ms is None:
            try:
                linger_ms = int(raw.get(zmq.LINGER))
            except zmq.ContextTerminated:
                linger_ms = DEFAULT_LINGER_MS
        raw.close(linger_ms)
        with self._lock:
            self._entries.pop(raw, None)
            self._lingering_until = max(self._lingering_until, time.monotonic() + linger_ms / 1000)

    @contextmanager
    def _ledger_at(self, publisher_url: str, ledger: Ledger) -> Iterator[None]:
        """Where publishers to an iopub device find its ledger, for as long as it runs."""
        self._ledgers[publisher_url] = ledger
        try:
            yield
        finally:
            del self._ledgers[publisher_url]

    def close(self) -> None:
        """End the context; see `open_context` for how. Closing it again does nothing.

        Raises:
            SocketsLeftOpenError: sockets were open.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            entries = list(self._entries.values())
        for entry in entries:
            if entry.thread == threading.get_ident() and entry.owner is not None:
                entry.owner.close(0)
        # From here on, whoever uses a socket of this context in another thread is told that it has
        # ended. The waiting is left to a thread, since libzmq's own can't be given a bound.
        term = threading.Thread(target=self._zmq.term, name="end of a zmq context", daemon=True)
        term.start()
        term.join(max(0.0, self._lingering_until - time.monotonic()) + GRACE_SECONDS)
        if term.is_alive():
            raise SocketsLeftOpenError(self._open_names(), given_up=True)
        if entries:
            raise SocketsLeftOpenError(tuple(entry.name for entry in entries), given_up=False)


@contextmanager
def open_context(*, max_sockets: int = 65_535, io_threads: int = 1) -> Iterator[Context]:
    """A ZMQ context, for as long as the block lasts. It may be shared by threads; sockets can't.

    Open it around `trio.run`, or at least around everything that opens sockets. At its end, sockets
    that this thread left open are closed; tasks and threads that wait on others get
    `trio.BrokenResourceError` and have five seconds to close them. Either way it is an error, which
    names them. What was sent on closed sockets is delivered first, within their linger. It blocks
    for that long, and never for longer.

    Args:
        max_sockets: how many sockets there may be at once; no more than libzmq allows (65,535).
        io_threads: how many threads of libzmq carry the traffic. One is good for about a gigabyte
            a second.

    Raises:
        SocketsLeftOpenError: sockets were open at the end. If the block itself fails, its own
            exception is raised, with this as a note.
    """
    context = Context(max_sockets=max_sockets, io_threads=io_threads)
    try:
        yield context
    except BaseException as error:
        try:
            context.close()
        except SocketsLeftOpenError as left_open:
            error.add_note(str(left_open))
        raise
    context.close()
