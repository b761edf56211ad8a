"""Where a subshell's output goes: in order, from any thread, without ever blocking.

Everything that a subshell publishes passes one `OutputPort` and its one inproc publisher, so its
order is the order of the calls. The lock makes that so for the plain threads that a cell has
started, and for the timer that sends what a stream has buffered: it is the full fence that ZMQ asks
for when a socket changes threads, and the only place in this project where one does.

A line is sent at once if nothing was sent for a while; what follows soon after is gathered for
`GATHERING_TIME` and sent in one message, and so is a line's beginning. A cell that prints a hundred
thousand lines so costs some dozens of messages, and the first line is seen at once.

What has one parent goes through one port, whoever says it: the port of the shell that has said
``busy``. So a cell that another one executes elsewhere publishes through that one's (`Outlet`), and
who answers on behalf of a subshell does it through the subshell's. For two ports have no order:
what one publishes may overtake what another has published before it.

In a child process that a cell has forked, none of this is touched: the lock may be held for ever.
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs

from ..wire import Buffer, Header, WireSession
from ._fork import write_own
from ._types import Json

GATHERING_TIME: Final = 0.03
"""Seconds that a stream's text may wait for more to come."""
LARGEST_GATHERED: Final = 1 << 18
"""Characters of streams that are sent without waiting for more."""

_BELONGS_TO: Final = operator.itemgetter(0, 1)


class FramesPublisher(Protocol):
    """Sends frames to all clients; implemented by `trio_subshells.sockets.Publisher`."""

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send; never blocks."""


@attrs.frozen
class OutputStatistics:
    """A snapshot of what a subshell has published.

    Attributes:
        messages: sent so far.
        late: what came after the subshell's end, or of a cell that was given up, and was dropped.
    """

    messages: int
    late: int


class Outlet:
    """A cell's way into a port. Shut once the cell is given up: it may go on, and is not heard.

    Args:
        port: where it leads.
        parent: of all that is published through it.
        outer: of the cell that executes this one: what says nothing, says nothing by others.
    """

    __slots__ = ("_outer", "_shut", "parent", "port")

    def __init__(self, port: OutputPort, parent: Header, outer: Outlet | None = None) -> None:
        self.port = port
        self.parent = parent
        self._outer = outer
        self._shut = False

    def inner(self) -> Outlet:
        """For a cell that this one's executes elsewhere."""
        return Outlet(self.port, self.parent, self)

    @property
    def is_shut(self) -> bool:
        """Whether nothing gets through any more."""
        return self._shut or (self._outer is not None and self._outer.is_shut)

    def shut(self) -> None:
        """Let nothing through from now on. From any thread.

        What is being published meanwhile comes before whatever the port is told next.
        """
        self._shut = True

    def stream(self, name: str, text: str) -> None:
        """`OutputPort.stream`."""
        self.port.stream(name, text, self.parent, self)

    def publish(
        self,
        msg_type: str,
        content: Json,
        *,
        metadata: Json | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """`OutputPort.publish`."""
        self.port.publish(
            msg_type,
            content,
            parent=self.parent,
            metadata=metadata,
            buffers=buffers,
            outlet=self,
        )


class OutputPort:
    """See the module's first lines. Closed by whoever made it, in the thread of its publisher.

    Args:
        session: makes the messages.
        publisher: sends them.
        flush_later: called, from any thread, when there is text to be sent after `GATHERING_TIME`,
            or something to be told: somebody should call `time_is_up` then. Until that, it isn't
            called again.
    """

    def __init__(
        self,
        session: WireSession,
        publisher: FramesPublisher,
        flush_later: Callable[[OutputPort], None],
    ) -> None:
        self._session = session
        self._publisher = publisher
        self._flush_later = flush_later
        self._process = os.getpid()
        self._topic = f"kernel.{session.session_id}.".encode()
        # Reentrant, as a garbage collection in the middle of it may run code that prints.
        self._lock = threading.RLock()
        self._sending = False
        self._outbox: list[list[bytes]] = []
        self._closed = False
        # Each with its stream and its parent: what belongs together is put there in one step.
        self._text: list[tuple[str, Header | None, str]] = []
        self._length = 0
        self._timed = False  # somebody will call time_is_up
        self._sent_at = -1.0
        self._messages = 0
        self._late = 0
        self._untold = 0

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child, so that it publishes nothing."""
        return os.getpid() != self._process

    def publish(
        self,
        msg_type: str,
        content: Json,
        *,
        parent: Header | None,
        metadata: Json | None = None,
        buffers: Sequence[Buffer] = (),
        outlet: Outlet | None = None,
    ) -> bool:
        """Publish a message, after what has been published before; returns whether it was.

        Args:
            msg_type: its type.
            content: its content.
            parent: whose child it is.
            metadata: its metadata.
            buffers: binary data.
            outlet: that it comes from, if it does.

        Raises:
            trio_subshells.wire.EncodeError: the content can't be turned into JSON.
        """
        if self.is_inherited:
            return False
        frames = self._session.serialize(
            msg_type,
            content,
            parent=parent,
            metadata=metadata,
            buffers=buffers,
            idents=(self._topic + msg_type.encode(),),
        )
        with self._lock:
            if outlet is None or not outlet.is_shut:
                self._flush()
                return self._send(frames)
            timed = self._drop()
        if not timed:
            self._flush_later(self)
        return False

    def status(self, state: str, parent: Header | None) -> bool:
        """Publish ``busy`` or ``idle``; returns whether it was."""
        return self.publish("status", {"execution_state": state}, parent=parent)

    def stream(
        self, name: str, text: str, parent: Header | None, outlet: Outlet | None = None
    ) -> None:
        """Publish text on ``stdout`` or ``stderr``, together with what else is written soon.

        A forked child writes it to its own.
        """
        if self.is_inherited:
            write_own(name, text)
            return
        with self._lock:
            if outlet is not None and outlet.is_shut:
                timed = self._drop()
            else:
                self._text.append((name, parent, text))
                self._length += len(text)
                quiet = time.monotonic() - self._sent_at >= GATHERING_TIME
                if self._length >= LARGEST_GATHERED or (quiet and text.endswith("\n")):
                    self._flush()
                    return
                timed, self._timed = self._timed, True
        if not timed:
            self._flush_later(self)

    def _drop(self) -> bool:
        """Under the lock: count what isn't let through; returns whether a timer runs already."""
        self._late += 1
        self._untold += 1
        timed, self._timed = self._timed, True
        return timed

    def time_is_up(self) -> int:
        """`GATHERING_TIME` has passed since ``flush_later`` was called. From any thread.

        What the streams have gathered since then may be younger than that: it is sent, too. So one
        timer at a time is enough, however many short cells there are in that time.

        Returns how many outputs were dropped, since the last time, of cells that were given up.
        """
        if self.is_inherited:
            return 0
        with self._lock:
            self._timed = False
            self._flush()
            untold, self._untold = self._untold, 0
        return untold

    def flush(self) -> None:
        """Send what the streams have gathered. From any thread."""
        if self.is_inherited:
            return
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if not self._text:
            return
        gathered, self._text = self._text, []  # a garbage collection may print from here on
        self._length = 0
        self._sent_at = time.monotonic()
        for (name, parent), pieces in itertools.groupby(gathered, _BELONGS_TO):
            self._send(
                self._session.serialize(
                    "stream",
                    {"name": name, "text": "".join([text for _, _, text in pieces])},
                    parent=parent,
                    idents=(b"%sstream.%s" % (self._topic, name.encode()),),
                )
            )

    def _send(self, frames: list[bytes]) -> bool:
        """Under the lock. What comes in while a message is being sent is sent after it."""
        if self._closed:
            self._late += 1
            return False
        self._outbox.append(frames)
        if self._sending:
            return True
        self._sending = True
        try:
            while self._outbox:
                self._publisher.publish(self._outbox.pop(0))
                self._messages += 1
        finally:
            self._sending = False
        return True

    def close(self) -> None:
        """Send what is left. What comes later, from threads that a cell left behind, is dropped."""
        with self._lock:
            self._flush()
            self._closed = True

    def statistics(self) -> OutputStatistics:
        """A snapshot."""
        with self._lock:
            return OutputStatistics(self._messages, self._late)
