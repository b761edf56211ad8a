"""The shell channel: takes requests from clients to the subshells, and their answers back.

It owns the shell ROUTER, the routes (which subshell has which id), and the *pending table*: every
request that it has passed on and that is unanswered. So there is one place that knows what is owed,
and to whom: when a subshell ends, or can't be ended, what is left in the table is answered on its
behalf (`_pending` tells who may answer when several could).

It reads headers only; the rest of a request is read by the subshell it is for. It never runs a
kernel author's code and never waits for a subshell, so nothing that a cell does can hold it up. For
the same reason it answers ``kernel_info_request`` by itself: a client can connect to a busy kernel.

At the start it keeps what clients ask of the main shell until somebody listens on iopub. A client
connects its sockets before the kernel has bound them, ZMQ tries each again in its own time, and so
the first cell may be here 200 ms before the subscription that is to bring its output.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import attrs
import trio

from ..actors import Actor, ActorRef, ActorTerminated, AskTimeout, Letter, Mailbox
from ..wire import Envelope, MalformedMessage, Message, WireSession
from ._channels import (
    COMM_TYPES,
    REQUEST_TYPES,
    ClientSocket,
    error_content,
    shown,
    unknown_type,
)
from ._drops import DropReason, Drops
from ._faults import ends_the_kernel
from ._ladder import SHUTDOWN_TIMEOUT
from ._messages import (
    AbortPending,
    AddRoute,
    Answer,
    AreYouDone,
    AwaitSubscriber,
    CountDrops,
    Dropped,
    GiveUp,
    Leave,
    RemoveRoute,
    Returned,
    Shutdown,
    Submit,
    TakeWhatIsThere,
    ThatIsAll,
    Work,
)
from ._output import Outlet, OutputPort
from ._pending import PendingRequest, PendingTable, Stage

_log = logging.getLogger("trio_subshells.kernel")

MOST_PENDING: Final = 10_000
"""Requests and comm messages that may wait in one subshell; one more is refused."""

MOST_PENDING_BYTES: Final = 1 << 28
"""How large they may be together. However large it is, one that comes to nothing else is taken."""

MOST_AT_ONCE: Final = 1000
"""Messages that are taken from the socket without a look at anything else."""

SUBSCRIBER_PATIENCE: Final = 1.0
"""Seconds after the start in which a first subscriber to iopub is waited for: not every client has
an interest in output."""

LAST_ANSWERS: Final = SHUTDOWN_TIMEOUT + 1
"""Seconds that a kernel which ends by a failure has to end its cells, and to answer for them."""


@attrs.define
class _Queue:
    """What waits in one subshell, or is being served there."""

    pending: dict[int, PendingRequest] = attrs.field(factory=dict)
    size: int = 0  # in bytes
    occupied: _Occupied | None = None


@attrs.frozen
class _Occupied:
    """A cell that was given up, as it can't be ended, but that still occupies its shell."""

    key: int
    since: float  # by time.monotonic


class ShellChannel(Actor):
    """See the module's first lines.

    Args:
        session: makes the replies.
        clients: the ROUTER.
        drops: what was dropped on any channel, for who asks.
        output: publishes busy and idle around what is answered here.
        known: the replies that are always the same, by the type of the request.
        subshells: whether the kernel has subshells for clients. If not, what requests say of them
            is ignored (JEP 91, "Kernels not supporting subshells").
        control: who ends the kernel, for the ``shutdown_request`` of old clients.
        iopub: who knows whether somebody listens.
    """

    def __init__(
        self,
        session: WireSession,
        clients: ClientSocket,
        drops: Drops,
        output: OutputPort,
        known: Mapping[str, dict[str, Any]],
        subshells: bool,
        control: ActorRef,
        iopub: ActorRef,
    ) -> None:
        self._clients = clients
        self._drops = drops
        self._output = output
        self._known = known
        self._subshells = subshells
        self._control = control
        self._iopub = iopub
        self._table = PendingTable(session, clients, output)
        self._routes: dict[str | None, ActorRef] = {}
        self._queues: dict[str | None, _Queue] = {}
        self._early: list[Work] = []
        self._started = False  # the main shell is, or was, there
        self._heard = False  # somebody listens on iopub, or nobody is expected to

    async def run(self, mailbox: Mailbox) -> None:
        """Serve until cancelled; then answer what is owed."""
        failed = False
        try:
            with ends_the_kernel("the shell channel"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive_requests, nursery)
                    nursery.start_soon(self._await_subscriber)
                    async for letter in mailbox:
                        self._handle(letter, nursery)
        except Exception:
            failed = True
            raise
        finally:
            if failed or self._table:
                await self._answer_last(mailbox)

    async def _answer_last(self, mailbox: Mailbox) -> None:
        """The kernel is ending, but not by a shutdown: see `_faults`."""

        async def go_on() -> None:
            async for letter in mailbox:
                self._handle_last(letter)

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go_on)
                with trio.move_on_after(LAST_ANSWERS), suppress(ActorTerminated):
                    await self._control.ask(
                        Shutdown(SHUTDOWN_TIMEOUT, failed=True), timeout=math.inf
                    )
                self._routes.clear()
                self._started = True
                self._take_what_is_there(nursery)
                nursery.cancel_scope.cancel()
        with suppress(trio.WouldBlock):
            while True:
                self._handle_last(mailbox.receive_nowait())
        content = error_content("KernelDied", "the kernel has ended before this was answered")
        for pending in self._table:
            self._answer_left(pending, content)

    def _handle_last(self, letter: Letter) -> None:
        match letter.message:
            case Answer() as answer:
                self._answer(answer)
            case AbortPending(subshell_id):
                letter.reply(self._abort(subshell_id))
            case GiveUp() as give_up:
                letter.reply(self._give_up(give_up))
            case Returned(subshell_id) | TakeWhatIsThere(subshell_id):
                self._tell(subshell_id, ThatIsAll())
            case Submit():
                letter.reply(unknown_subshell(None))
            case _:
                letter.reply()

    def _handle(self, letter: Letter, nursery: trio.Nursery) -> None:
        match letter.message:
            case Answer() as answer:
                self._answer(answer)
            case Submit(request, outer):
                self._pass_on(request, outer, letter)
            case AddRoute(subshell_id, subshell):
                self._routes[subshell_id] = subshell
                if subshell_id is None:
                    self._started = True
                    self._hand_on_early()
                letter.reply()
            case RemoveRoute(subshell_id):
                self._routes.pop(subshell_id, None)
                if subshell_id is None:
                    self._started = True  # or it won't be any more
                letter.reply()
            case AbortPending(subshell_id):
                letter.reply(self._abort(subshell_id))
            case GiveUp() as give_up:
                if give_up.key is not None and self._clients.verifying is None:
                    self._take_what_is_there(nursery)  # what was sent before the error is known
                letter.reply(self._give_up(give_up))
            case Returned(subshell_id, key):
                self._have_back(subshell_id, key)
            case TakeWhatIsThere(subshell_id):
                if self._clients.verifying is None:
                    self._take_what_is_there(nursery)
                    self._tell(subshell_id, ThatIsAll())
                else:
                    nursery.start_soon(
                        self._take_after, self._clients.verifying, subshell_id, nursery
                    )
            case Dropped(reason, detail):
                self._clients.drop(reason, detail)
            case AreYouDone():
                letter.reply()
            case CountDrops():
                letter.reply(self._drops.counts())

    # ------------------------------------------------------------------------------- the start

    async def _await_subscriber(self) -> None:
        try:
            await self._iopub.ask(AwaitSubscriber(), timeout=SUBSCRIBER_PATIENCE)
        except (AskTimeout, ActorTerminated) as reason:
            _log.debug("serving requests though nobody listens on iopub: %s", reason)
        self._heard = True
        self._hand_on_early()

    def _is_early(self, work: Work) -> bool:
        return not (self._started and (self._heard or work.internal))

    def _hand_on_early(self) -> None:
        early, self._early = self._early, []
        for work in early:
            if self._is_early(work):
                self._early.append(work)
            else:
                self._tell(None, work)

    def _tell(self, subshell_id: str | None, message: object) -> None:
        """Tell a subshell, unless it is being ended: then it waits for nothing."""
        if subshell_id in self._routes:
            with suppress(ActorTerminated):  # it has died; the control handler will say so
                self._routes[subshell_id].tell_nowait(message)

    # --------------------------------------------------------------------- requests of clients

    async def _receive_requests(self, nursery: trio.Nursery) -> None:
        while True:
            self._take(await self._clients.receive(), nursery)

    async def _take_after(
        self, verifying: trio.Event | None, subshell_id: str | None, nursery: trio.Nursery
    ) -> None:
        """As `_take_what_is_there`, once the message that came before all that has been taken."""
        while verifying is not None:
            await verifying.wait()
            verifying = self._clients.verifying
        self._take_what_is_there(nursery)
        self._tell(subshell_id, ThatIsAll())

    def _take_what_is_there(self, nursery: trio.Nursery) -> None:
        for envelope in self._clients.receive_what_is_there(MOST_AT_ONCE):
            self._take(envelope, nursery)

    def _take(self, envelope: Envelope, nursery: trio.Nursery) -> None:
        msg_type = envelope.header.msg_type
        if msg_type in REQUEST_TYPES or msg_type in COMM_TYPES:
            self._pass_on(envelope, None, None)
        elif msg_type in self._known:
            self._serve_known(envelope)
        elif msg_type == "shutdown_request":
            nursery.start_soon(self._shut_down, envelope)
        else:
            self._table.answer_here(envelope, unknown_type(msg_type, "shell"))

    def _serve_known(self, request: Envelope) -> None:
        content = self._known[request.header.msg_type]
        try:
            subshell_id = self._subshell_named_in(request)
        except MalformedMessage as error:
            content = error_content("MalformedMessage", str(error))
        else:
            if subshell_id is not None and subshell_id not in self._routes:
                content = unknown_subshell(subshell_id)
        self._table.answer_here(request, content)

    def _pass_on(
        self, request: Envelope | Message, outer: Outlet | None, letter: Letter | None
    ) -> None:
        """Hand a request to its subshell; what can't be handed on is answered here."""

        def refuse(content: dict[str, Any]) -> None:
            self._table.answer_here(request, content, letter)

        try:
            subshell_id = self._subshell_named_in(request)
        except MalformedMessage as error:
            refuse(error_content("MalformedMessage", str(error)))
            return
        subshell = self._routes.get(subshell_id)
        if subshell is None and (subshell_id is not None or self._started):
            refuse(unknown_subshell(subshell_id))
            return
        queue = self._queues.setdefault(subshell_id, _Queue())
        is_comm = request.header.msg_type in COMM_TYPES
        if queue.occupied is not None and not is_comm:
            refuse(_shell_occupied(subshell_id, queue.occupied))
            return
        if len(queue.pending) >= MOST_PENDING or queue.size >= MOST_PENDING_BYTES:
            if is_comm:
                self._clients.drop(DropReason.TOO_MANY, _too_many(subshell_id, queue))
            refuse(error_content("TooManyRequests", _too_many(subshell_id, queue)))
            return
        pending = self._table.enter(request, subshell_id=subshell_id, letter=letter)
        queue.pending[pending.key] = pending
        queue.size += pending.size
        work = Work(pending.key, request, outer, pending.right, internal=letter is not None)
        if subshell_id is None and self._is_early(work):
            self._early.append(work)
            return
        assert subshell is not None
        try:
            subshell.tell_nowait(work)
        except ActorTerminated:
            self._dequeue(pending)
            self._table.answer_unbegun(pending, unknown_subshell(subshell_id))

    def _subshell_named_in(self, request: Envelope | Message) -> str | None:
        """Which subshell a request is for: its header says so, or its content (JEP 91).

        Raises:
            MalformedMessage: the content's ``subshell_id`` is neither a string nor null.
        """
        if isinstance(request, Envelope) and not self._subshells:
            return None
        if request.header.subshell_id is not None:
            return request.header.subshell_id
        if isinstance(request, Envelope):
            if not request.content_mentions(b'"subshell_id"'):
                return None
            request = request.open()
        return request.field("subshell_id", str, None)

    async def _shut_down(self, request: Envelope) -> None:
        """Serve the ``shutdown_request`` of a client older than protocol 5.4."""
        try:
            restart = request.open().field("restart", bool, False)
        except MalformedMessage as error:
            self._table.answer_here(request, error_content("MalformedMessage", error.detail))
            return
        pending = self._table.enter(request)
        pending.right.begin(self._output)
        self._output.status("busy", request.header)
        pending.right.begun()
        with suppress(ActorTerminated):  # then it has failed, and the kernel ends as well
            await self._control.ask(Shutdown(SHUTDOWN_TIMEOUT), timeout=math.inf)
            self._table.answer_begun(pending, {"status": "ok", "restart": restart})
            await self._control.tell(Leave())

    # ------------------------------------------------------------------------ answers to clients

    def _answer(self, answer: Answer) -> None:
        """Pass on what a subshell says; it had the right to, or it wouldn't have said it."""
        pending = self._table.strike_off(answer.key)
        if pending is None:
            return  # it has died before it came to that, and was answered for
        self._dequeue(pending)
        if pending.letter is not None:
            pending.letter.reply(answer.content)
        elif answer.frames is not None:
            self._clients.send(answer.frames)

    def _abort(self, subshell_id: str | None) -> int:
        """Answer all that a subshell has left, which has ended; returns how many requests."""
        queue = self._queues.pop(subshell_id, _Queue())
        for pending in queue.pending.values():
            self._answer_left(pending, aborted(pending))
        return len(queue.pending)

    def _answer_left(self, pending: PendingRequest, content: dict[str, Any]) -> None:
        """Answer what nobody else will, whatever has become of it."""
        self._answer_for(pending, content, content)
        if pending.right.settle():  # who was about to say busy is no more
            self._table.answer_begun(pending, content)
        elif self._table.strike_off(pending.key) is not None:  # who had the right is no more
            self._table.reply(pending.request, content, pending.letter)

    def _give_up(self, give_up: GiveUp) -> bool:
        """Answer for a subshell that is stuck; returns whether what it runs was answered so."""
        queue = self._queues.get(give_up.subshell_id, _Queue())
        if give_up.key is None:
            answered = [self._answer_for(each, give_up.error) for each in _all(queue)]
            return any(answered)
        pending = queue.pending.get(give_up.key)
        if pending is None or not self._answer_for(pending, give_up.error):
            return False  # it has just ended
        # The shell works again once the call returns; but nobody waits for that without knowing.
        queue.occupied = _Occupied(give_up.key, time.monotonic())
        occupied = _shell_occupied(give_up.subshell_id, queue.occupied)
        execution = pending.right.execution
        for each in _all(queue):
            if not each.is_comm:
                executes = each.msg_type == "execute_request"
                stop = executes and execution is not None and execution.stop_on_error
                self._answer_for(each, occupied, None if stop else occupied)
        return True

    def _answer_for(
        self,
        pending: PendingRequest,
        error: dict[str, Any],
        waiting: dict[str, Any] | None = None,
    ) -> bool:
        """Answer on behalf of a subshell; returns whether it was serving that, and not yet done.

        Args:
            pending: what is to be answered, unless the subshell is about to do it.
            error: what is said of it if it is being served.
            waiting: what is said of it if it waits; None for ``aborted``.
        """
        stage = self._table.give_up(pending, error, waiting or aborted(pending))
        if stage is not None:
            self._dequeue(pending)
        return stage is Stage.SERVED

    def _have_back(self, subshell_id: str | None, key: int) -> None:
        """The call of a cell that was given up has returned."""
        queue = self._queues.get(subshell_id)
        if queue is not None and queue.occupied is not None and queue.occupied.key == key:
            queue.occupied = None
        self._tell(subshell_id, ThatIsAll())

    def _dequeue(self, pending: PendingRequest) -> None:
        queue = self._queues.get(pending.subshell_id)
        if queue is not None and queue.pending.pop(pending.key, None) is not None:
            queue.size -= pending.size


def _all(queue: _Queue) -> list[PendingRequest]:
    return list(queue.pending.values())


def aborted(pending: PendingRequest) -> dict[str, Any]:
    """The answer to what will not be served."""
    content: dict[str, Any] = {"status": "aborted"}
    if pending.msg_type == "execute_request":
        content["execution_count"] = 0
    return content


def unknown_subshell(subshell_id: str | None) -> dict[str, Any]:
    """The answer to a request for a subshell that there is not, or no longer."""
    return error_content(
        "UnknownSubshell",
        "this kernel is shutting down"
        if subshell_id is None
        else f"there is no subshell {shown(subshell_id)}: it was never created, or has been "
        "deleted",
    )


def _too_many(subshell_id: str | None, queue: _Queue) -> str:
    return (
        f"{len(queue.pending)} messages of {queue.size / 1e6:.1f} MB wait in "
        f"{subshell_id or 'the main shell'} already"
    )


def _shell_occupied(subshell_id: str | None, occupied: _Occupied) -> dict[str, Any]:
    shell = "the main shell" if subshell_id is None else f"subshell {subshell_id}"
    return error_content(
        "ShellOccupied",
        f"{shell} is occupied by a cell that can't be ended: it was given up "
        f"{time.monotonic() - occupied.since:.1f} s ago, and is in a call that has not returned. "
        "Requests are served here again when it has; use another subshell, or restart the kernel",
    )
