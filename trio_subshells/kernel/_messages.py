"""What the actors of a kernel say to each other. Everything here is immutable.

Who understands what::

    client ──frames──▶ shell channel ──Work──▶ subshell ──Answer──▶ shell channel ──frames──▶ client
    client ──frames──▶ control handler ──AddRoute, RemoveRoute, AbortPending,
                                  GiveUp──▶ shell channel
    subshell ──Prompt──▶ stdin channel
    subshell ──FlushLater──▶ iopub
    subshell ──Dropped, Returned, AreYouDone──▶ shell channel
    subshell handle ──Submit──▶ shell channel
    subshell handle ──Create, Delete, Interrupt──▶ control handler
    control handler ──Spawn──▶ nest
    open_kernel ──WhatIsThere──▶ I/O thread; ──Adopt, Shutdown──▶ control handler
    I/O thread ──Meet──▶ control handler
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ..actors import ActorRef, Host
from ..wire import Channel, Envelope, MalformedReason, Message
from ._ladder import INTERRUPT_TIMEOUT

if TYPE_CHECKING:
    from ._guard import CellGuard
    from ._life import SubshellLife
    from ._output import Outlet, OutputPort
    from ._pending import AnswerRight
    from ._subshell import Subshell
    from ._types import SubshellInfo
    from ._wiring import Wiring


def checked_seconds(timeout: float) -> float:
    """A timeout that can be one.

    Raises:
        ValueError: it isn't a number of seconds.
    """
    try:
        seconds = float(timeout)
    except OverflowError:  # an integer of hundreds of digits
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"timeout must be a number of seconds of at least 0, not {timeout!r:.50}")
    return seconds


# -------------------------------------------------------------------------- to the I/O thread


@attrs.frozen
class WhatIsThere:
    """Asked once, by whoever started the thread; answered with `IOParts`."""


@attrs.frozen
class IOParts:
    """What the I/O thread has set up.

    Attributes:
        urls: where each channel listens.
        publisher_url: where the iopub device takes messages.
        shell: the shell channel.
        control: the control handler.
        stdin: the stdin channel.
        iopub: the iopub actor.
        io_token: of this thread's loop.
    """

    urls: Mapping[Channel, str]
    publisher_url: str
    shell: ActorRef
    control: ActorRef
    stdin: ActorRef
    iopub: ActorRef
    io_token: trio.lowlevel.TrioToken


# ------------------------------------------------------------------------------ to a subshell


@attrs.frozen
class Work:
    """A request for a subshell.

    Attributes:
        key: the shell channel's own number for it.
        request: what was received, or made by a handle.
        outer: of the cell that executes it, if one does: what it publishes is that cell's.
        right: to answer it.
        internal: the answer goes to a handle in this process.
    """

    key: int
    request: Envelope | Message
    outer: Outlet | None
    right: AnswerRight
    internal: bool = False


@attrs.frozen
class AreYouReady:
    """Asked of a new subshell; answered once it can serve requests."""


@attrs.frozen
class ThatIsAll:
    """Told by the shell channel: what came before this had reached the kernel when it was asked."""


# ---------------------------------------------------------------------------- to shell channel


@attrs.frozen
class Answer:
    """A subshell has served a request.

    Attributes:
        key: of the `Work`.
        frames: the reply, for a client; None for a comm message, which gets none.
        content: the reply's content, for a handle in this process.
    """

    key: int
    frames: list[bytes] | None = None
    content: dict[str, Any] | None = None


@attrs.frozen
class Dropped:
    """Told by a subshell that has found a comm message to be malformed."""

    reason: MalformedReason
    detail: str


@attrs.frozen
class CountDrops:
    """Asked by whoever wants to know: the `DropCount` of each channel and reason."""


@attrs.frozen
class Submit:
    """Asked by a handle: serve this request; answered with the reply's content.

    Attributes:
        request: what to serve.
        outer: of the cell that asks, if it is one: what is published is that cell's.
    """

    request: Message
    outer: Outlet | None


@attrs.frozen
class AddRoute:
    """Asked by the control handler: from now on, requests for this subshell go there."""

    subshell_id: str | None
    subshell: ActorRef


@attrs.frozen
class RemoveRoute:
    """Asked by the control handler: requests for this subshell are errors from now on."""

    subshell_id: str | None


@attrs.frozen
class AbortPending:
    """Asked by the control handler: a subshell has ended, and what it has left is aborted."""

    subshell_id: str | None


@attrs.frozen
class GiveUp:
    """Asked by the control handler: answer for a subshell that is stuck in what can't be ended.

    Attributes:
        subshell_id: of the subshell.
        error: the content of the reply to what it is serving; what it has queued is aborted.
        key: of the `Work` that is given up, if the subshell is to go on when that returns; None:
            it is to end.
    """

    subshell_id: str | None
    error: dict[str, Any]
    key: int | None = None


@attrs.frozen
class Returned:
    """Told by a subshell: what was given up has returned after all. A `ThatIsAll` is the answer."""

    subshell_id: str | None
    key: int


@attrs.frozen
class AreYouDone:
    """Asked by a subshell that has ended: answered when nothing is said on its behalf any more.

    What is answered on its behalf is published through its port, which must stay open meanwhile.
    """


@attrs.frozen
class TakeWhatIsThere:
    """Told by a subshell before it aborts its queue: route what has reached the socket by now.

    Then a `ThatIsAll` follows it into the subshell's mailbox.
    """

    subshell_id: str | None


# -------------------------------------------------------------------------- to control handler


@attrs.frozen
class Adopt:
    """Asked once, at the start: here is the main shell, and what all subshells are given."""

    life: SubshellLife
    wiring: Wiring


@attrs.frozen
class Meet:
    """Told once, by the I/O thread: this is the shell channel, which was started later."""

    shell: ActorRef


@attrs.frozen
class Create:
    """Asked by a handle's maker: start a subshell; answered with its `SubshellLife`, at once.

    Attributes:
        host: where it is to live; None for the kernel's own choice.
    """

    host: Host | None = None


@attrs.frozen
class Delete:
    """Asked by a handle: delete a subshell; answered when it has been joined."""

    subshell_id: str
    timeout: float = attrs.field(converter=checked_seconds)


@attrs.frozen
class Interrupt:
    """Asked by a handle, or told by a signal: interrupt what runs.

    Attributes:
        subshell_id: in this subshell alone, if `everywhere` is false.
        everywhere: in every subshell, the main shell included.
    """

    subshell_id: str | None = None
    everywhere: bool = True
    timeout: float = attrs.field(default=INTERRUPT_TIMEOUT, converter=checked_seconds)


@attrs.frozen
class WatchDeadline:
    """Told by a subshell that has begun to execute a cell with a timeout.

    Attributes:
        subshell: which one.
        guard: of the cell.
        generation: of the cell.
        key: of its `Work`.
        timeout: seconds after which it is to be ended.
        give_up_after: seconds after that, in which it has to have ended, or else is given up.
    """

    subshell: SubshellInfo
    guard: CellGuard
    generation: int
    key: int
    timeout: float
    give_up_after: float


@attrs.frozen
class Shutdown:
    """Asked by the kernel's scope at its end, or by the shell channel: end everything.

    Attributes:
        timeout: seconds for that.
        failed: it is no client's wish: the kernel has failed.
        unstarted: there is no main shell, and there will be none.
    """

    timeout: float
    failed: bool = False
    unstarted: bool = False


@attrs.frozen
class Leave:
    """Told by the shell channel once it has answered a client's shutdown: the process may end."""


@attrs.frozen
class Describe:
    """Asked by whoever wants to see them: the `SubshellLife` of each subshell, by id."""


# ---------------------------------------------------------------------------------- to others


@attrs.frozen
class Spawn:
    """Asked of the nest in the main shell's loop: spawn this subshell from there."""

    subshell: Subshell
    name: str
    host: Host


@attrs.frozen
class Prompt:
    """Asked by a cell: get a line of text from the client; answered with the text."""

    idents: tuple[bytes, ...]
    outlet: Outlet
    text: str
    password: bool


@attrs.frozen
class AwaitSubscriber:
    """Asked of iopub by the shell channel: answered once somebody has subscribed."""


@attrs.frozen
class FlushLater:
    """Told by an output port: call its `time_is_up` when the gathering time is over."""

    output: OutputPort
