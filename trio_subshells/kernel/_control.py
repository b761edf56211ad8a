"""The control handler: creates, deletes and lists subshells, interrupts, and shuts down.

It owns the control ROUTER and the lives of the subshells: it is their supervisor, so no subshell
outlives it. A request that may take long is served in a task of its own, so a slow delete delays
nobody.

Nothing of a kernel author's runs here, save the cancellers of rung 0 (see `_ladder`).
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from trio_util import AsyncValue, move_on_when

from ..actors import (
    Actor,
    ActorRef,
    ActorTerminated,
    Host,
    Letter,
    Mailbox,
    Stop,
    ThreadHost,
    TrioTransport,
    open_supervisor,
)
from ..wire import Envelope, MalformedMessage, Message, WireSession
from ._channels import ClientSocket, error_content, unknown_type
from ._errors import SubshellUnjoinable, UnknownSubshell, named, text_of
from ._faults import ends_the_kernel, without_cancelled
from ._ground import Ground
from ._guard import EndReason, SubshellGuards
from ._kernel import Kernel
from ._ladder import DELETE_TIMEOUT, LONGEST_PAUSE, SHUTDOWN_TIMEOUT, end_cell, end_cells
from ._life import SubshellLife
from ._limits import Room
from ._messages import (
    AbortPending,
    AddRoute,
    Adopt,
    Create,
    Delete,
    Describe,
    GiveUp,
    Interrupt,
    Leave,
    Meet,
    RemoveRoute,
    Shutdown,
    Spawn,
    WatchDeadline,
    checked_seconds,
)
from ._output import OutputPort
from ._pending import PendingRequest, PendingTable
from ._subshell import Subshell
from ._types import SubshellInfo

_log = logging.getLogger("trio_subshells.kernel")

MOST_IN_PROGRESS: Final = 1000
"""Requests that may be served here at the same time; one more is refused. But for a client that has
gone wild, those that take a while are deletes and creates, and there are not that many."""
LEFTOVERS_PAUSE: Final = 0.02
"""Seconds between the first attempts at what a deleted subshell's cells have left running."""

_NO_RETURN: Final = "it is in a call that has not returned, and goes on until that does"


def _ignore() -> None:
    """Nobody waits for it."""


class ControlHandler(Actor):
    """See the module's first lines.

    Args:
        kernel: the author's object, for the subshells to come.
        ground: for them, too.
        session: makes the replies.
        clients: the ROUTER.
        output: publishes busy and idle.
        kernel_info: the content of every ``kernel_info_reply``.
        on_shutdown: called when everything has been ended.
        on_unjoinable: called with an exit status if something can't be ended at a shutdown, or when
            the kernel has failed; it may exit the process.
    """

    def __init__(
        self,
        kernel: Kernel,
        ground: Ground,
        session: WireSession,
        clients: ClientSocket,
        output: OutputPort,
        kernel_info: dict[str, Any],
        on_shutdown: Callable[[], None],
        on_unjoinable: Callable[[int], Awaitable[None]],
    ) -> None:
        self._kernel = kernel
        self._ground = ground
        self._clients = clients
        self._output = output
        self._pending = PendingTable(session, clients, output)
        self._kernel_info = kernel_info
        self._on_shutdown = on_shutdown
        self._on_unjoinable = on_unjoinable
        self._lives: dict[str | None, SubshellLife] = {}
        self._adopted = trio.Event()
        self._unstarted = False
        self._room = Room(kernel.max_subshells, ground.check_room)
        self._starting = AsyncValue(0)  # how many subshells, which aren't in `_lives` yet
        self._shutting_down = False
        self._failed = False
        self._answered = trio.lowlevel.ParkingLot()  # who waits until requests are answered
        self._ended = trio.Event()

    async def run(self, mailbox: Mailbox) -> None:
        """Serve until cancelled; then end what runs."""
        # The kernel's few own actors ring through sockets of their own. Subshells may be hundreds:
        # with trio's bells they cost no more descriptors than their loops and publishers do.
        async with open_supervisor(transport=TrioTransport()) as self._supervisor:
            failure: BaseException | None = None
            try:
                with ends_the_kernel("the control handler"):
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        nursery.start_soon(self._receive_requests)
                        async for letter in mailbox:
                            if isinstance(letter.message, Meet):
                                # Not in a task: another letter's might run before it.
                                self._shell = letter.message.shell
                            else:
                                nursery.start_soon(self._handle, letter)
            except BaseException as error:
                failure = without_cancelled(error)
                raise
            finally:
                if not self._ended.is_set():
                    with trio.CancelScope(shield=True):
                        await self._end_after_failure(failure)
                self._answer_what_is_left()
                del failure  # its traceback holds this frame

    async def _handle(self, letter: Letter) -> None:
        """Serve what was asked from inside this process; what was only told may fail in the log."""
        try:
            with letter.answering():
                await self._serve_letter(letter)
        except Exception as error:
            _log.warning("%r has failed", letter.message, exc_info=error)

    async def _serve_letter(self, letter: Letter) -> None:
        match letter.message:
            case Adopt(life, wiring):
                self._wiring = wiring
                await self._take_in(life)
                self._adopted.set()
                if self._ended.is_set():  # the shutdown has not waited for it any longer
                    await self._end(life, EndReason.SHUTDOWN, SHUTDOWN_TIMEOUT)
                letter.reply()
            case Create(host):
                letter.reply(await self._create(host))
            case Delete(subshell_id, timeout):
                await self._delete(subshell_id, timeout)
                letter.reply()
            case Interrupt() as interrupt:
                await self._interrupt(interrupt)
                letter.reply()
            case WatchDeadline() as deadline:
                await self._end_in_time(deadline)
            case Shutdown(timeout, failed, unstarted):
                await self._shut_down(timeout, failed=failed, unstarted=unstarted)
                letter.reply()
            case Leave():
                self._on_shutdown()
            case Describe():
                letter.reply(dict(self._lives))

    # --------------------------------------------------------------------- requests of clients

    async def _receive_requests(self) -> None:
        """What may take long gets a task of its own; the rest is answered in its order."""
        to_create, created = trio.open_memory_channel[tuple[Envelope, PendingRequest]](math.inf)
        self._nursery.start_soon(self._create_in_order, created)
        while True:
            envelope = await self._clients.receive()
            msg_type = envelope.header.msg_type
            if len(self._pending) >= MOST_IN_PROGRESS and msg_type != "shutdown_request":
                self._refuse(envelope)
                continue
            pending = self._pending.enter(envelope)
            match msg_type:
                case "delete_subshell_request" | "interrupt_request" | "shutdown_request":
                    self._nursery.start_soon(self._serve, envelope, pending)
                case "create_subshell_request":
                    to_create.send_nowait((envelope, pending))
                case _:
                    await self._serve(envelope, pending)

    async def _create_in_order(
        self, to_create: trio.MemoryReceiveChannel[tuple[Envelope, PendingRequest]]
    ) -> None:
        """Start one after the other; but how long one's set-up takes is no business of the next."""
        async for envelope, pending in to_create:
            started = trio.Event()
            self._nursery.start_soon(self._serve, envelope, pending, started.set)
            await started.wait()

    async def _serve(
        self,
        envelope: Envelope,
        pending: PendingRequest,
        started: Callable[[], object] = _ignore,
    ) -> None:
        """Serve one request, between busy and idle; whatever goes wrong is its reply.

        Args:
            envelope: the request.
            pending: its place in the table.
            started: called when the subshell that it asks for has been started, or couldn't be.
        """
        if not pending.right.begin(self._output):  # the kernel ends, and it has been answered
            started()
            return
        self._output.status("busy", envelope.header)
        pending.right.begun()
        try:
            content = await self._reply_to(envelope.open(), started)
        except MalformedMessage as error:
            content = error_content("MalformedMessage", error.detail)
        except Exception as error:
            _log.info("a %s has failed", pending.msg_type, exc_info=error)
            content = error_content(type(error).__name__, text_of(error))
        started()
        self._pending.answer_begun(pending, content)
        self._answered.unpark_all()
        if pending.msg_type == "shutdown_request" and self._shutting_down:
            self._on_shutdown()

    def _answer_what_is_left(self, failure: BaseException | None = None, but: str = "") -> None:
        """The kernel ends, and with it what has been taken here and is not answered.

        Args:
            failure: what it ends of, if that was here.
            but: requests of this type are still going to be answered.
        """
        if self._shutting_down and not self._failed and failure is None:
            content = error_content(
                "KernelShutdown", "the kernel was shut down before this was done"
            )
        else:
            cause = "" if failure is None else f": the control handler has failed: {named(failure)}"
            content = error_content(
                "KernelDied", f"the kernel has ended before this was done{cause}"
            )
        for pending in self._pending:
            if pending.msg_type != but:
                self._pending.give_up(pending, content, content)

    def _refuse(self, envelope: Envelope) -> None:
        text = f"{len(self._pending)} requests are being served on the control channel already"
        self._pending.answer_here(envelope, error_content("TooManyRequests", text))

    async def _reply_to(self, request: Message, started: Callable[[], object]) -> dict[str, Any]:
        match request.header.msg_type:
            case "kernel_info_request":
                return self._kernel_info
            case "interrupt_request":
                subshell_id = request.field("subshell_id", str, None)
                await self._interrupt(Interrupt(subshell_id, everywhere=subshell_id is None))
                return {"status": "ok"}
            case "shutdown_request":
                restart = request.field("restart", bool, False)
                await self._shut_down(SHUTDOWN_TIMEOUT)
                return {"status": "ok", "restart": restart}
            case "create_subshell_request" if self._kernel.subshells:
                life = await self._create(None)
                started()
                try:
                    await life.wait_set_up()
                except RuntimeError:
                    await life.gone.wait()  # nothing of it is left when the client hears of it
                    raise
                return {"status": "ok", "subshell_id": life.info.id}
            case "delete_subshell_request" if self._kernel.subshells:
                timeout = checked_seconds(request.field("timeout", float, DELETE_TIMEOUT))
                await self._delete(request.field("subshell_id", str), timeout)
                return {"status": "ok"}
            case "list_subshell_request" if self._kernel.subshells:
                return self._list()
            case other:
                return unknown_type(other, "control")

    def _list(self) -> dict[str, Any]:
        children = {key: life for key, life in self._lives.items() if key is not None}
        content: dict[str, Any] = {"status": "ok", "subshell_id": list(children)}
        unjoinable = [key for key, life in children.items() if life.unjoinable]
        if unjoinable:
            content["unjoinable"] = unjoinable
        return content

    # --------------------------------------------------------------------------- create, delete

    async def _create(self, host: Host | None) -> SubshellLife:
        """Start a subshell; that it has been set up is waited for by whoever wants it.

        From here on it can be deleted, and a shutdown knows of it, whatever the author's code does.

        Raises:
            TooManySubshells: there is no room for it.
        """
        await self._adopted.wait()
        if self._shutting_down:
            raise RuntimeError("the kernel is shutting down")
        host = self._kernel.subshell_host if host is None else host
        subshell_id = str(uuid.uuid4())
        info = SubshellInfo(subshell_id)
        guards = SubshellGuards()
        make_raiser = (
            self._ground.make_raiser
            if isinstance(host, ThreadHost)
            else self._wiring.make_main_raiser
        )
        subshell = Subshell(self._kernel, info, self._wiring, guards, make_raiser)
        self._starting.value += 1
        try:
            with self._room.taken(len(self._lives) - 1):
                ref = await self._spawn(subshell, f"subshell {subshell_id}", host)
            if self._shutting_down:  # that has begun meanwhile, and has not seen this one
                ref.cancel()
                await ref.watch()
                raise RuntimeError("the kernel is shutting down")
        finally:
            self._starting.value -= 1
        life = SubshellLife(info, ref, guards)
        await self._take_in(life)
        return life

    async def _spawn(self, subshell: Subshell, name: str, host: Host) -> ActorRef:
        if isinstance(host, ThreadHost):
            return await self._supervisor.spawn(
                subshell, name=name, host=host, capacity=math.inf, on_failure=Stop()
            )
        ref: ActorRef = await self._wiring.nest.ask(Spawn(subshell, name, host), timeout=math.inf)
        return ref

    async def _take_in(self, life: SubshellLife) -> None:
        """There is a subshell: let the shell channel know, and watch over it."""
        self._lives[life.info.id] = life
        self._nursery.start_soon(self._forget_when_ended, life)
        await self._shell.ask(AddRoute(life.info.id, life.ref), timeout=math.inf)

    async def _forget_when_ended(self, life: SubshellLife) -> None:
        """However a subshell ends, also by itself: nothing stays unanswered, and its id is gone."""
        await life.ref.watch()
        await self._shell.ask(RemoveRoute(life.info.id), timeout=math.inf)
        await self._shell.ask(AbortPending(life.info.id), timeout=math.inf)
        del self._lives[life.info.id]
        life.gone.set()

    async def _delete(self, subshell_id: str, timeout: float) -> None:
        life = self._lives.get(subshell_id)
        if life is None:
            raise UnknownSubshell(f"there is no subshell {subshell_id!r}")
        if not await self._end(life, EndReason.DELETED, timeout):
            raise SubshellUnjoinable(
                f"subshell {subshell_id!r} has not ended within {timeout:g} s: the cell that it "
                "runs neither awaits nor computes in Python, so it is in a call that can't be "
                "interrupted. The subshell takes no requests any more, and is joined as soon as "
                "that call returns."
            )

    async def _end(self, life: SubshellLife, reason: EndReason, timeout: float) -> bool:
        """Cancel a subshell, and wait until it is joined; returns whether it is, in that time."""
        await self._begin_to_end([life], reason)
        with trio.move_on_after(timeout):
            await life.gone.wait()
        if life.gone.is_set():
            return True
        life.unjoinable = True
        error = _given_up(life.guards.closed or reason, life.info)
        await self._shell.ask(GiveUp(life.info.id, error), timeout=math.inf)
        return False

    async def _begin_to_end(self, lives: Iterable[SubshellLife], reason: EndReason) -> None:
        """Cancel subshells, all before any can have ended: a cell may wait for another one's."""
        new = [life for life in lives if life.guards.closed is None]
        for life in new:
            life.guards.close(reason)
        try:
            for life in new:
                await self._shell.ask(RemoveRoute(life.info.id), timeout=math.inf)
        finally:
            for life in new:
                life.ref.cancel()
                # Not here, as it goes on when this has given up. Who asks again only waits.
                self._nursery.start_soon(self._end_what_runs, life, reason)

    async def _end_what_runs(self, life: SubshellLife, reason: EndReason) -> None:
        """Climb the ladder until the subshell has gone.

        Nothing else starts, as the guards are closed; but what the author's code does when its
        subshell ends may take a while, too.
        """
        async with move_on_when(life.gone.wait):
            async with trio.open_nursery() as nursery:
                for guard in life.guards:
                    end = partial(end_cell, deadline=math.inf)
                    nursery.start_soon(end, guard, guard.generation, reason)
            pause = LEFTOVERS_PAUSE
            while True:  # what its cells have left computing keeps its loop from ending
                await trio.sleep(pause)
                pause = min(1.1 * pause, LONGEST_PAUSE)
                for guard in life.guards:
                    guard.strike_leftovers()

    # ---------------------------------------------------------------------- interrupt, deadlines

    async def _interrupt(self, interrupt: Interrupt) -> None:
        if interrupt.everywhere:
            lives = list(self._lives.values())
        elif interrupt.subshell_id in self._lives:
            lives = [self._lives[interrupt.subshell_id]]
        else:
            raise UnknownSubshell(f"there is no subshell {interrupt.subshell_id!r}")
        cells = [(life, guard) for life in lives for guard in life.guards]
        ended = await end_cells(
            [(guard, guard.generation) for _, guard in cells],
            EndReason.INTERRUPTED,
            deadline=interrupt.timeout,
        )
        stuck = {life.info.name for (life, _), done in zip(cells, ended, strict=True) if not done}
        if stuck:
            raise TimeoutError(
                f"what runs in {', '.join(sorted(stuck))} has not ended within "
                f"{interrupt.timeout:g} s: it is in a call that can't be interrupted"
            )

    async def _end_in_time(self, deadline: WatchDeadline) -> None:
        guard, generation = deadline.guard, deadline.generation
        ended = guard.watch(generation)
        if ended is None:
            return
        with trio.move_on_after(deadline.timeout):
            await ended.wait()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_in_time, deadline)
            await end_cell(guard, generation, EndReason.TIMED_OUT, deadline=math.inf)
            nursery.cancel_scope.cancel()

    async def _give_up_in_time(self, deadline: WatchDeadline) -> None:
        await trio.sleep(deadline.give_up_after)
        error = _given_up(EndReason.TIMED_OUT, deadline.subshell, deadline)
        give_up = GiveUp(deadline.subshell.id, error, deadline.key)
        if await self._shell.ask(give_up, timeout=math.inf):
            _log.warning("%s: %s", error["ename"], error["evalue"])

    # --------------------------------------------------------------------------------- shutdown

    async def _shut_down(
        self, timeout: float, *, failed: bool = False, unstarted: bool = False
    ) -> None:
        """End every subshell, the main shell last to be forgotten; again: wait for that.

        It isn't the task of whoever asks first: should that fail, the kernel still ends.
        """
        if unstarted:
            self._unstarted = True
            self._adopted.set()  # nobody is to wait for it any more
        if not self._shutting_down:
            self._shutting_down = True
            self._failed = failed
            self._nursery.start_soon(self._end_all, timeout)
        await self._ended.wait()

    async def _end_all(self, timeout: float) -> None:
        reason = EndReason.DIED if self._failed else EndReason.SHUTDOWN
        with trio.move_on_after(timeout):
            await self._adopted.wait()  # what was sent before that is to be answered, too
        joined = [self._adopted.is_set()]

        async def end(life: SubshellLife) -> None:
            joined.append(await self._end(life, reason, timeout))

        async def end_what_is_being_started() -> None:
            with trio.move_on_after(timeout) as late:
                await self._starting.wait_value(0)
            joined.append(not late.cancelled_caught)

        lives = list(self._lives.values())
        await self._begin_to_end(lives, reason)
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(end, life)
            if self._starting.value:  # none is begun with any more
                nursery.start_soon(end_what_is_being_started)
        if self._unstarted or not self._adopted.is_set():
            # The shell channel keeps what was asked of the main shell.
            await self._shell.ask(RemoveRoute(None), timeout=math.inf)
            await self._shell.ask(
                GiveUp(None, _given_up(reason, SubshellInfo(None))), timeout=math.inf
            )
        if all(joined):
            with trio.move_on_after(timeout):
                await self._await_answers()
        else:
            names = [life.info.name for life in self._lives.values()]
            if self._starting.value:
                names.append("a subshell that is being started")
            _log.error(
                "the kernel shuts down although these can't be ended: %s",
                ", ".join(names) or "main",
            )
            self._nursery.start_soon(self._on_unjoinable, int(self._failed))
        self._answer_what_is_left(but="shutdown_request")
        self._ended.set()

    async def _await_answers(self) -> None:
        """Everything has ended, and with it what is in progress: wait until that is answered.

        What comes meanwhile isn't waited for: somebody may go on asking for ever.
        """
        asked = [each for each in self._pending if each.msg_type != "shutdown_request"]
        while any(each in self._pending for each in asked):
            await self._answered.park()

    async def _end_after_failure(self, failure: BaseException | None) -> None:
        """The kernel ends, but not by a shutdown: an actor has failed, perhaps this one.

        The task that has been watching over the subshells is gone by now.
        """
        stuck: list[str] = []

        async def end(life: SubshellLife) -> None:
            with suppress(ActorTerminated):
                await self._shell.ask(RemoveRoute(life.info.id), timeout=math.inf)
            life.ref.cancel()
            with trio.move_on_after(SHUTDOWN_TIMEOUT) as deadline:
                async with move_on_when(life.ref.watch), trio.open_nursery() as nursery:
                    for guard in life.guards:
                        again = partial(end_cell, deadline=SHUTDOWN_TIMEOUT)
                        nursery.start_soon(again, guard, guard.generation, EndReason.DIED)
                    await trio.sleep_forever()
            last: AbortPending | GiveUp = AbortPending(life.info.id)
            if deadline.cancelled_caught:
                stuck.append(life.info.name)
                reason = life.guards.closed or EndReason.DIED
                last = GiveUp(life.info.id, _given_up(reason, life.info))
            with suppress(ActorTerminated):
                await self._shell.ask(last, timeout=math.inf)

        lives = list(self._lives.values())
        for life in lives:  # all, before any can have ended: a cell may wait for another one's
            if life.guards.closed is None:
                life.guards.close(EndReason.DIED)
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(end, life)
        self._answer_what_is_left(failure)
        if stuck:
            _log.error("the kernel has failed, and these can't be ended: %s", ", ".join(stuck))
            await self._on_unjoinable(1)


def _given_up(
    reason: EndReason, subshell: SubshellInfo, deadline: WatchDeadline | None = None
) -> dict[str, Any]:
    """What the reply says of a cell that can't be ended."""
    shell = "the main shell" if subshell.is_main else f"subshell {subshell.name}"
    match reason:
        case EndReason.TIMED_OUT if deadline is not None:
            ran = deadline.timeout + deadline.give_up_after
            evalue = (
                f"the cell's timeout was {deadline.timeout:g} s, and after {ran:g} s it could not "
                f"be ended: {_NO_RETURN}. Until then {shell} stays occupied, and refuses requests"
            )
        case EndReason.DELETED:
            evalue = (
                f"{shell} was deleted while it ran the cell, which can't be ended: {_NO_RETURN}. "
                "Then the subshell is joined"
            )
        case EndReason.SHUTDOWN:
            evalue = (
                "the kernel was shut down while it ran the cell, which can't be ended: "
                f"{_NO_RETURN}, or its process ends"
            )
        case _:
            evalue = (
                "the kernel has failed while it ran the cell, which can't be ended: "
                f"{_NO_RETURN}, or its process ends"
            )
    return error_content(reason.value, evalue, [f"{reason.value}: {evalue}"])
