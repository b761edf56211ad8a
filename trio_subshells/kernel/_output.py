"""Where a subshell's output goes: in order, from any thread, without ever blocking.

Everything that a subshell publishes passes one `OutputPort` and its one inproc publisher, so its
order is the order of the calls. The lock makes that so for the plain threads that a cell has
started, and for the timer that sends what a stream has buffered: it is the full fence that ZMQ asks
for when a socket changes threads, and the only place in this project where one does.

A line is sent at once if nothing was sent for a while; what follows soon after is gathered for
`GATHERING_TIME` and sent in one message, and so is a line's beginning. A cell that prints a hundred
thousand lines so costs some dozens of messages, and the first line is seen at once.

In a child process that a cell has forked, none of this is touched: the lock may be held for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import attrs

from ..wire import Buffer, Header, WireSession
from ._fork import write_own
from ._types import Json

GATHERING_TIME: Final = 0.03
"""Seconds that a stream's text may wait for more to come."""
LARGEST_GATHERED: Final = 1 << 18
"""Characters of a stream that are sent without waiting for more."""


class FramesPublisher(Protocol):
    """Sends frames to all clients; implemented by `trio_subshells.sockets.Publisher`."""

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send; never blocks."""


@attrs.frozen
class OutputStatistics:
    """A snapshot of what a subshell has published.

    Attributes:
        messages: sent so far.
        late: messages that came after the subshell's end, and were dropped.
    """

    messages: int
    late: int


class OutputPort:
    """See the module's first lines. Closed by whoever made it, in the thread of its publisher.

    Args:
        session: makes the messages.
        publisher: sends them.
        flush_later: called, from any thread, when there is text to be sent after `GATHERING_TIME`:
            somebody should call `time_is_up` then. Until that, it isn't called again.
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
        self._text: list[str] = []
        self._length = 0
        self._timed = False  # somebody will call time_is_up
        self._stream = ""
        self._parent: Header | None = None
        self._sent_at = -1.0
        self._messages = 0
        self._late = 0

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
    ) -> None:
        """Publish a message, after what has been published before.

        Raises:
            trio_subshells.wire.EncodeError: the content can't be turned into JSON.
        """
        if self.is_inherited:
            return
        frames = self._session.serialize(
            msg_type,
            content,
            parent=parent,
            metadata=metadata,
            buffers=buffers,
            idents=(self._topic + msg_type.encode(),),
        )
        with self._lock:
            self._flush()
            self._send(frames)

    def status(self, state: str, parent: Header | None) -> None:
        """Publish ``busy`` or ``idle``."""
        self.publish("status", {"execution_state": state}, parent=parent)

    def stream(self, name: str, text: str, parent: Header | None) -> None:
        """Publish text on ``stdout`` or ``stderr``, together with what else is written soon.

        A forked child writes it to its own.
        """
        if self.is_inherited:
            write_own(name, text)
            return
        with self._lock:
            if self._text and (self._stream != name or self._parent is not parent):
                self._flush()
            self._text.append(text)
            self._length += len(text)
            self._stream, self._parent = name, parent
            quiet = time.monotonic() - self._sent_at >= GATHERING_TIME
            if self._length >= LARGEST_GATHERED or (quiet and text.endswith("\n")):
                self._flush()
                return
            timed, self._timed = self._timed, True
        if not timed:
            self._flush_later(self)

    def time_is_up(self) -> None:
        """`GATHERING_TIME` has passed since ``flush_later`` was called. From any thread.

        What the streams have gathered since then may be younger than that: it is sent, too. So one
        timer at a time is enough, however many short cells there are in that time.
        """
        if self.is_inherited:
            return
        with self._lock:
            self._timed = False
            self._flush()

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
        content: dict[str, Any] = {"name": self._stream, "text": "".join(gathered)}
        self._send(
            self._session.serialize(
                "stream",
                content,
                parent=self._parent,
                idents=(b"%sstream.%s" % (self._topic, self._stream.encode()),),
            )
        )

    def _send(self, frames: list[bytes]) -> None:
        """Under the lock. What comes in while a message is being sent is sent after it."""
        if self._closed:
            self._late += 1
            return
        self._outbox.append(frames)
        if self._sending:
            return
        self._sending = True
        try:
            while self._outbox:
                self._publisher.publish(self._outbox.pop(0))
                self._messages += 1
        finally:
            self._sending = False

    def close(self) -> None:
        """Send what is left. What comes later, from threads that a cell left behind, is dropped."""
        with self._lock:
            self._flush()
            self._closed = True

    def statistics(self) -> OutputStatistics:
        """A snapshot."""
        with self._lock:
            return OutputStatistics(self._messages, self._late)
