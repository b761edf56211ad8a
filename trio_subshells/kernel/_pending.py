"""What clients are owed: requests that were taken and are not answered, and who answers each.

One request gets one reply and one ``idle``, though several may come to give them: the subshell that
has served it; its channel, on the subshell's behalf, if what it runs can't be ended in time; or if
it has ended and left something. So the right to answer is a thing that is there once, in the
`AnswerRight` that goes with each request, and only who has taken it says anything::

    WAITING ──begin──▶ BEGINNING ──begun──▶ SERVED ──settle──▶ SETTLED
       │                   └───────────────settle───────────────▶ ▲
       └──────────────────────give_up─────────┴───────────────────┘

The subshell begins and settles. Its channel gives up on its behalf, in another thread, at any
moment; but not while the subshell is about to say ``busy``: for these few lines it is in no code
but ours, and goes on to find out by itself that it is to end. What was begun through the subshell's
`OutputPort` is ended through it, whoever does that: so ``idle`` comes last.

The channel that has taken a request keeps it in its `PendingTable` until it is answered, and
answers what is left there at its end. What a subshell has left when it has been joined is answered
whatever its state, as nobody else is there any more.
"""

from __future__ import annotations

import enum
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import attrs

from ..actors import Letter
from ..wire import Envelope, Message, WireSession
from ._channels import COMM_TYPES, ClientSocket, reply_type
from ._output import Outlet, OutputPort


class Stage(enum.Enum):
    """How far a request has come."""

    WAITING = enum.auto()
    BEGINNING = enum.auto()
    SERVED = enum.auto()
    SETTLED = enum.auto()


@attrs.frozen
class Execution:
    """What others have to know of a cell that is being executed, to answer for it.

    Attributes:
        count: its number.
        outlet: what it publishes through.
        silent: nothing is published of it.
        stop_on_error: what is queued behind it is aborted if it fails.
    """

    count: int
    outlet: Outlet
    silent: bool
    stop_on_error: bool


class AnswerRight:
    """The right to answer one request, see the module's first lines. Shared by two threads.

    Attributes:
        execution: of an ``execute_request`` that is being served; written by its subshell.
        output: through which clients are told, or about to be, that it is being served.
    """

    __slots__ = ("_lock", "_stage", "execution", "output")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stage = Stage.WAITING
        self.execution: Execution | None = None
        self.output: OutputPort | None = None

    def begin(self, output: OutputPort) -> bool:
        """The caller is about to serve it; false: it has been answered already.

        Args:
            output: through which it is going to say so.
        """
        with self._lock:
            if self._stage is Stage.SETTLED:
                return False
            self._stage = Stage.BEGINNING
            self.output = output
            return True

    def begun(self) -> None:
        """Clients have been told that it is being served."""
        with self._lock:
            if self._stage is Stage.BEGINNING:
                self._stage = Stage.SERVED

    def settle(self) -> bool:
        """Take the right to answer what one has served; false: somebody else has it."""
        with self._lock:
            if self._stage is Stage.SETTLED:
                return False
            self._stage = Stage.SETTLED
            return True

    def give_up(self) -> Stage | None:
        """Take the right to answer on behalf of whoever serves it.

        Returns the stage that it was in; None: it is answered, or about to be, without that.
        """
        with self._lock:
            before = self._stage
            if before is Stage.SETTLED or before is Stage.BEGINNING:
                return None
            self._stage = Stage.SETTLED
            return before


@attrs.frozen(eq=False)
class PendingRequest:
    """A request, or a comm message, that was taken and not answered.

    Attributes:
        key: its number in the table.
        request: what was received, or made by a handle.
        subshell_id: of the subshell that it is for, if it is for one.
        letter: who asked, if it was a handle in this process.
        size: in bytes.
        right: to answer it.
    """

    key: int
    request: Envelope | Message
    subshell_id: str | None = None
    letter: Letter | None = None
    size: int = 0
    right: AnswerRight = attrs.field(factory=AnswerRight)

    @property
    def msg_type(self) -> str:
        """Its type."""
        return self.request.header.msg_type

    @property
    def is_comm(self) -> bool:
        """Whether it is a comm message, which has no reply."""
        return self.msg_type in COMM_TYPES


class PendingTable:
    """What one channel has taken and not answered. Touched by the channel's actor only.

    Args:
        session: makes the replies.
        clients: sends them.
        output: publishes busy and idle around what is answered here.
    """

    def __init__(self, session: WireSession, clients: ClientSocket, output: OutputPort) -> None:
        self._session = session
        self._clients = clients
        self._output = output
        self._keys = itertools.count(1)
        self._pending: dict[int, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[PendingRequest]:
        """What is in it now; it may change meanwhile."""
        return iter(list(self._pending.values()))

    def __contains__(self, pending: PendingRequest) -> bool:
        return pending.key in self._pending

    def enter(
        self,
        request: Envelope | Message,
        *,
        subshell_id: str | None = None,
        letter: Letter | None = None,
    ) -> PendingRequest:
        """An answer is owed from now on."""
        pending = PendingRequest(
            next(self._keys),
            request,
            subshell_id,
            letter,
            request.size if isinstance(request, Envelope) else 0,
        )
        self._pending[pending.key] = pending
        return pending

    def strike_off(self, key: int) -> PendingRequest | None:
        """It is being answered; None: it has been."""
        return self._pending.pop(key, None)

    def reply(
        self,
        request: Envelope | Message,
        content: dict[str, Any],
        letter: Letter | None = None,
    ) -> None:
        """Send a reply; to whom it may concern in this process, if anybody there has asked."""
        if letter is not None:
            letter.reply(content)
        elif request.header.msg_type not in COMM_TYPES:
            self._clients.send(
                self._session.serialize(
                    reply_type(request.header.msg_type),
                    content,
                    parent=request,
                    idents=request.idents,
                )
            )

    def answer_here(
        self,
        request: Envelope | Message,
        content: dict[str, Any],
        letter: Letter | None = None,
    ) -> None:
        """Answer at once, between busy and idle, what nobody has begun to serve."""
        if letter is None:
            self._output.status("busy", request.header)
        self.reply(request, content, letter)
        if letter is None:
            self._output.status("idle", request.header)

    def give_up(
        self, pending: PendingRequest, served: dict[str, Any], waiting: dict[str, Any]
    ) -> Stage | None:
        """Answer on behalf of whoever should have; returns how far it had come.

        None: nothing has been done, as it has just been answered, or is about to be.

        Args:
            pending: what is to be answered.
            served: what is said of it if it is being served.
            waiting: what is said of it if nobody has begun to.
        """
        stage = pending.right.give_up()
        if stage is Stage.WAITING:
            self.answer_unbegun(pending, waiting)
        elif stage is not None:
            self.answer_begun(pending, served)
        return stage

    def answer_unbegun(self, pending: PendingRequest, content: dict[str, Any]) -> None:
        """The same for what is in the table."""
        if self.strike_off(pending.key) is not None:
            self.answer_here(pending.request, content, pending.letter)

    def answer_begun(self, pending: PendingRequest, content: dict[str, Any]) -> None:
        """Answer for whoever has said ``busy``, and won't say anything any more.

        The error of a cell is published, too, as it would be by the cell's subshell; after that,
        nothing more is published of the cell, whatever it does.
        """
        if self.strike_off(pending.key) is None:
            return
        execution = pending.right.execution
        if execution is not None:
            content = {
                **content,
                "execution_count": execution.count,
                "user_expressions": {},
                "payload": [],
            }
            if content["status"] == "error" and not execution.silent:
                shown = {key: content[key] for key in ("ename", "evalue", "traceback")}
                execution.outlet.publish("error", shown)
            execution.outlet.shut()
        self.reply(pending.request, content, pending.letter)
        header, output = pending.request.header, pending.right.output
        if output is None or not output.status("idle", header):  # its port went with it
            self._output.status("idle", header)
