"""What the actors that serve clients have in common: their sockets, message types, error replies.

"Shell channel", "control handler" and "stdin channel" are `_shell`, `_control` and `_stdin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

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


class FramesSocket(Protocol):
    """What the channels need of a ROUTER; implemented by `trio_subshells.sockets.Socket`."""

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""

    def receive_nowait(self) -> list[bytes]:
        """The next message, or `trio.WouldBlock`."""

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """Send, or `trio.WouldBlock`."""


def error_content(ename: str, evalue: str, traceback: list[str] | None = None) -> dict[str, Any]:
    """The content of an error reply."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback or []}


def reply_type(request_type: str) -> str:
    """``execute_request`` → ``execute_reply``."""
    return f"{request_type.removesuffix('_request')}_reply"


def unknown_type(msg_type: str, channel: str) -> dict[str, Any]:
    """The answer to a message type that nobody here knows."""
    return error_content(
        "UnknownMessageType",
        f"this kernel doesn't know {msg_type!r} on its {channel} channel",
    )
