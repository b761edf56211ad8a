"""Actors on trio: mailboxes, hosts, supervision. Useful to any trio program, without Jupyter.

An actor is one async function with a mailbox, run in one place: a task of its parent's loop, or a
thread with a loop of its own. Either way it is a task of its parent: leaving the scope it was
spawned in cancels it, waits for it, and joins its thread.
"""

from __future__ import annotations

from ._actor import Actor, ActorRef, ActorState, ActorStatistics, Ended
from ._channel import CrossThreadReceiveChannel, CrossThreadSendChannel, open_channel
from ._errors import ActorError, ActorTerminated, AskTimeout
from ._hosts import Host, TaskHost, ThreadHost
from ._mailbox import Letter, Mailbox
from ._promise import Promise
from ._queue import QueueStatistics
from ._supervision import (
    Escalate,
    FailurePolicy,
    Restart,
    Stop,
    Supervisor,
    SystemStatistics,
    open_supervisor,
    open_system,
)
from ._transport import Bell, Transport, TrioTransport

__all__ = [
    "Actor",
    "ActorError",
    "ActorRef",
    "ActorState",
    "ActorStatistics",
    "ActorTerminated",
    "AskTimeout",
    "Bell",
    "CrossThreadReceiveChannel",
    "CrossThreadSendChannel",
    "Ended",
    "Escalate",
    "FailurePolicy",
    "Host",
    "Letter",
    "Mailbox",
    "Promise",
    "QueueStatistics",
    "Restart",
    "Stop",
    "Supervisor",
    "SystemStatistics",
    "TaskHost",
    "ThreadHost",
    "Transport",
    "TrioTransport",
    "open_channel",
    "open_supervisor",
    "open_system",
]
