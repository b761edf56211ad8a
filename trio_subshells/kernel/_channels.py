"""What the actors that serve clients have in common: their sockets, message types, error replies.

"Shell channel", "control handler" and "stdin channel" are `_shell`, `_control` and `_stdin`. Each
has a `ClientSocket`, behind which there are only messages of those who have the connection's key,
and only such as a client sends on that channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import trio

from ..sockets import Ledger
from ..wire import Channel, Envelope, MalformedMessage, MalformedReason, Receiver
from ._drops import DropReason, Drops

COMM_TYPES: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Messages of clients that have no answer."""

REQUEST_TYPES: Final = frozenset(
    {
        "execute_request",
        "complete_request",
        "inspect_request",
        "is_complete_request",
        "history_request",
        "comm_info_request",
    }
)
"""Requests that a subshell serves."""


OTHERS_TYPES: Final = frozenset(
    {
        "status",
        "stream",
        "display_data",
        "update_display_data",
        "execute_input",
        "execute_result",
        "error",
        "clear_output",
        "debug_event",
        "iopub_welcome",
        "input_request",
    }
)
"""Messages that only a kernel sends, besides its replies."""

LARGE_MESSAGE: Final = 1 << 20
"""Bytes. The signature of a larger one is verified in another thread: that of 100 MB takes 60 to
300 ms, in which the other channels would stand still."""


LARGE_REPLY: Final = 1 << 14
"""Bytes. Larger ones are counted, for each client."""

MOST_UNREAD: Final = 1 << 26
"""Bytes of large replies that may wait for one client; there may be one that comes to more."""

_UNREAD: Final = "it is for a client that doesn't read"


class FramesSocket(Protocol):
    """What the channels need of a ROUTER; implemented by `trio_subshells.sockets.Socket`."""

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""

    def receive_nowait(self) -> list[bytes]:
        """The next message, or `trio.WouldBlock`."""

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send, or `trio.WouldBlock`."""


class ClientSocket:
    """A ROUTER as the actor that owns it sees it; what it drops is counted.

    Args:
        channel: which one it is.
        socket: the ROUTER. It outlives this.
        receiver: verifies what arrives.
        drops: where what is dropped is counted.
    """

    def __init__(
        self, channel: Channel, socket: FramesSocket, receiver: Receiver, drops: Drops
    ) -> None:
        self._channel = channel
        self._socket = socket
        self._receiver = receiver
        self._drops = drops
        self._unread: dict[bytes, Ledger] = {}  # of clients that have large replies to take
        self.verifying: trio.Event | None = None
        """There while a large message is being verified; set once `receive` has returned it."""

    async def receive(self) -> Envelope:
        """Wait for the next message. A checkpoint, also between two that are dropped.

        Cancelled, it may have taken one.
        """
        while True:
            try:
                # No variable holds the frames: a large message that was dropped would wait in it
                # for the next one.
                return self._checked(await self._verified(await self._socket.receive()))
            except MalformedMessage as error:
                self.drop(error.reason, str(error))
            except _NotForHere as error:
                self.drop(DropReason.NOT_A_REQUEST, str(error))

    async def _verified(self, frames: list[bytes]) -> Envelope:
        if sum(map(len, frames)) < LARGE_MESSAGE:
            return self._receiver.receive(frames)
        done = self.verifying = trio.Event()
        try:
            verified = await trio.to_thread.run_sync(self._verify, frames)
        finally:
            self.verifying = None
            done.set()  # wakes nobody before the caller has dealt with the message
        if isinstance(verified, Envelope):
            return verified
        raise MalformedMessage(*verified)

    def _verify(self, frames: list[bytes]) -> Envelope | tuple[Any, ...]:
        """Verify in another thread; an error's arguments are returned instead of its being raised.

        On its way out of that thread it would get into its own traceback, and the frames with it: a
        cycle, whose megabytes stay until the garbage collector happens to pass by.
        """
        try:
            return self._receiver.receive(frames)
        except MalformedMessage as error:
            return error.args

    def receive_what_is_there(self, most: int) -> Iterator[Envelope]:
        """The messages that have arrived. Not while one is being verified: that came before them.

        Args:
            most: how many may be taken at once, those included that are dropped: a client that
                sends faster than they are taken must not keep everybody else waiting.
        """
        assert self.verifying is None
        for _ in range(most):
            try:
                frames = self._socket.receive_nowait()
            except trio.WouldBlock:
                return
            try:
                envelope = self._checked(self._receiver.receive(frames))
            except MalformedMessage as error:
                self.drop(error.reason, str(error))
            except _NotForHere as error:
                self.drop(DropReason.NOT_A_REQUEST, str(error))
            else:
                yield envelope

    def _checked(self, envelope: Envelope) -> Envelope:
        """Refuse what nobody waits for an answer to."""
        msg_type = envelope.header.msg_type
        if self._channel == "stdin":
            if msg_type != "input_reply":
                raise _NotForHere(f"a client sends input_reply here, not {shown(msg_type)}")
        elif msg_type == "input_reply":
            raise _NotForHere("an input_reply belongs on the stdin channel")
        elif msg_type in OTHERS_TYPES or msg_type.endswith("_reply"):
            raise _NotForHere(f"only a kernel sends {shown(msg_type)}")
        elif self._channel == "control" and msg_type in COMM_TYPES:
            raise _NotForHere(f"a {msg_type} belongs on the shell channel")
        return envelope

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send to the client that the first frame names; if it doesn't read, drop and count it.

        It doesn't, if ZMQ's queue for it is full, or if what is large in there comes to
        `MOST_UNREAD` bytes. Returns whether it was sent.
        """
        size = sum(map(len, frames))
        if size > LARGE_REPLY:
            self._unread = {ident: each for ident, each in self._unread.items() if each.held}
            ledger = self._unread.setdefault(frames[0], Ledger(MOST_UNREAD))
            if ledger.refuses(size):
                self.drop(DropReason.NOT_READ, _UNREAD)
                return False
            frames = ledger.lent(frames, size)
        try:
            self._socket.send_nowait(frames)
        except trio.WouldBlock:
            self.drop(DropReason.NOT_READ, _UNREAD)
            return False
        return True

    def drop(self, reason: MalformedReason | DropReason, detail: str) -> None:
        """Count a message of this channel that has been dropped."""
        self._drops.add(self._channel, reason, detail)


class _NotForHere(Exception):
    """A message of a type that has no business on a channel; says why."""


def error_content(ename: str, evalue: str, traceback: list[str] | None = None) -> dict[str, Any]:
    """The content of an error reply."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback or []}


def shown(text: str) -> str:
    """What a client has sent, quoted for an error message, and not too long."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def reply_type(request_type: str) -> str:
    """``execute_request`` → ``execute_reply``."""
    return f"{request_type.removesuffix('_request')}_reply"


def unknown_type(msg_type: str, channel: str) -> dict[str, Any]:
    """The answer to a message type that nobody here knows."""
    return error_content(
        "UnknownMessageType",
        f"this kernel doesn't know {shown(msg_type)} on its {channel} channel",
    )
