"""A subshell: serves the requests of one shell, the main shell's included, in order.

Three tasks, all in the subshell's own loop: one sorts what arrives, one serves requests, one serves
comm messages. The last two are apart so that a cell that awaits something which only a comm message
can bring about (a widget's value, say) gets it. But a request waits a while for the comm messages
that came before it: a cell that is run after a slider was moved reads the new value.

Each request and each comm message is served under a `CellGuard`, so that it can be interrupted.
There are two of these (`SubshellGuards`), as one of each may run at the same time. The subshell
is ended by cancelling its actor; what it was running then gets an error reply from here, what was
queued is answered by the shell channel. It may also die by itself, of what the author's
`Kernel.subshell` raises, say. Then, too, what it was running gets its error reply from here, as
soon as it is known what it has died of.

What can't be ended in time is answered by the shell channel (`_pending`). If it returns after all,
nothing more is said of it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import attrs
import trio

from ..actors import Actor, ActorTerminated, Letter, Mailbox
from ..wire import EncodeError, MalformedMessage, Message
from ._cell import Cell
from ._channels import COMM_TYPES, error_content, reply_type
from ._errors import named, text_of
from ._failures import failures
from ._faults import ends_the_kernel, without_cancelled
from ._guard import CellEnded, EndReason, Raiser, SubshellGuards, drive_tasks, protected
from ._kernel import Kernel
from ._messages import (
    Answer,
    AreYouDone,
    AreYouReady,
    Dropped,
    Returned,
    TakeWhatIsThere,
    ThatIsAll,
    WatchDeadline,
    Work,
)
from ._output import Outlet, OutputPort
from ._pending import Execution
from ._raisers import without_our_frames
from ._requests import look_up, read_comm, read_execute, read_timeout
from ._stdin import Prompter
from ._types import CellError, HistoryEntry, SubshellInfo
from ._wiring import Place, Wiring, place

_log = logging.getLogger("trio_subshells.kernel")

COMM_PATIENCE: Final = 1.0
"""Seconds that a request waits for the handlers of the comm messages before it: a handler that
awaits what never comes must not take the subshell away."""

LONGEST_HISTORY: Final = 10_000
"""Executed cells that a subshell remembers for the default `Kernel.history`."""


@attrs.define
class _Serving:
    """A request for which clients have seen ``busy``, and no ``idle`` yet."""

    work: Work
    cell: Cell | None = None
    stop_on_error: bool = False
    settled: bool = False  # the right to answer has been taken here


@attrs.frozen
class _Queued:
    """A request that waits, and how many comm messages have come before it in all."""

    work: Work
    comms_before: int


class Subshell(Actor):
    """See the module's first lines.

    Args:
        kernel: the author's object.
        info: which subshell this is.
        wiring: whom it talks to.
        guards: shared with whoever ends what it runs.
        make_raiser: called in the subshell's thread: how to interrupt it.
    """

    def __init__(
        self,
        kernel: Kernel,
        info: SubshellInfo,
        wiring: Wiring,
        guards: SubshellGuards,
        make_raiser: Callable[[], Raiser],
    ) -> None:
        self._kernel = kernel
        self._info = info
        self._wiring = wiring
        self._guards = guards
        self._guard = guards.requests
        self._comm_guard = guards.comms
        self._make_raiser = make_raiser
        self._backlog: deque[_Queued] = deque()
        self._requests_wait = trio.lowlevel.ParkingLot()
        self._comms: deque[Work] = deque()
        self._comms_wait = trio.lowlevel.ParkingLot()
        self._comms_taken = self._comms_served = 0
        self._serving: _Serving | None = None
        self._is_answered_for = False  # or was: something that was begun here
        self._all_is_there = trio.Event()
        self._count = 0
        self._executed: deque[HistoryEntry] = deque(maxlen=LONGEST_HISTORY)
        self._state: Any = None

    async def run(self, mailbox: Mailbox) -> None:
        """Serve until cancelled."""
        wiring = self._wiring
        self._raiser = self._make_raiser()
        place.set(Place(wiring.running, self._info))
        async with wiring.ground.open_publisher(wiring.publisher_url) as publisher:
            self._output = OutputPort(wiring.session, publisher, wiring.flush_later)
            try:
                with ends_the_kernel("the main shell") if self._info.is_main else nullcontext():
                    await self._live(mailbox)
            except BaseException as error:
                self._answer_last(error)
                if self._is_answered_for:
                    await self._await_answers()
                raise
            finally:
                self._output.close()

    async def _live(self, mailbox: Mailbox) -> None:
        """Serve within the author's `Kernel.subshell`; never returns."""
        served: BaseException | None = None
        try:
            async with self._kernel.subshell(self._info) as self._state:
                try:
                    with drive_tasks(self._guards):
                        await self._serve(mailbox)
                except BaseException as error:
                    served = error
                    raise
        except BaseException as error:
            served = None  # its traceback holds this frame: no cycle that keeps all there was
            if self._info.is_main or _is_harmless(error):
                raise
            # The author's code wants to end more than its subshell. That is not for it to decide.
            raise RuntimeError(f"Kernel.subshell() has raised {named(error)}") from error
        await trio.lowlevel.checkpoint_if_cancelled()
        raise RuntimeError(
            "Kernel.subshell() has ended its subshell: "
            "it has cancelled, or swallowed the end of, what runs inside of it"
        ) from served

    def _answer_last(self, error: BaseException) -> None:
        """The subshell has ended, or has died of an error: tell those who wait for what it ran."""
        cause = without_cancelled(error)
        if self._serving is not None:
            work = self._serving.work
            if self._settle(work):
                self._serving.settled = True
                if cause is None and not _loop_has_crashed():
                    content = self._ended_content(CellEnded(self._why_ended()), None, 0)
                else:
                    content = self._died_content(cause)
                self._publish_error(content)
                self._answer(work, content)
            if self._serving.settled:
                self._output.status("idle", work.request.header)

    def _settle(self, work: Work) -> bool:
        """Take the right to answer what has been begun here; false: it is answered without us."""
        settled = work.right.settle()
        if not settled:
            self._is_answered_for = True
        return settled

    async def _await_answers(self) -> None:
        """Who answers on this subshell's behalf may be about to say so, through its port."""
        with trio.CancelScope(shield=True), suppress(ActorTerminated):
            await self._wiring.shell.ask(AreYouDone(), timeout=math.inf)

    def _died_content(self, cause: BaseException | None) -> dict[str, Any]:
        ename = "KernelDied" if self._info.is_main else "SubshellDied"
        who = "the main shell" if self._info.is_main else f"subshell {self._info.name}"
        if cause is None:
            evalue, lines = f"{who} has died, as its trio loop has crashed; see the log", []
        else:
            evalue, lines = f"{who} has died of {named(cause)}", _error_of(cause)["traceback"]
        return error_content(ename, evalue, [*lines, f"{ename}: {evalue}"])

    async def _serve(self, mailbox: Mailbox) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_requests)
            nursery.start_soon(self._serve_comms)
            async for letter in mailbox:
                self._sort(letter)

    def _sort(self, letter: Letter) -> None:
        match letter.message:
            case Work() as work:
                if work.request.header.msg_type in COMM_TYPES:
                    self._comms_taken += 1
                    self._comms.append(work)
                    self._comms_wait.unpark()
                else:
                    self._backlog.append(_Queued(work, self._comms_taken))
                    self._requests_wait.unpark()
            case ThatIsAll():
                self._all_is_there.set()
            case AreYouReady():
                letter.reply()

    # ---------------------------------------------------------------------------- requests

    async def _serve_requests(self) -> None:
        while True:
            if not self._backlog:
                await self._requests_wait.park()
                continue
            queued = self._backlog[0]
            with trio.move_on_after(COMM_PATIENCE):
                while queued.comms_before > self._comms_served:
                    await self._requests_wait.park()
            await self._serve_one(self._backlog.popleft().work)
            await trio.lowlevel.checkpoint()

    async def _serve_one(self, work: Work) -> None:
        """Serve and answer, unless it has been answered on our behalf before or meanwhile."""
        if not work.right.begin(self._output):
            return
        header = work.request.header
        self._serving = serving = _Serving(work)
        with self._guard.cell(work.key):
            self._output.status("busy", header)
            work.right.begun()
            started = datetime.now(UTC).isoformat()
            content = await self._served(serving)  # if this raises, _answer_last does the rest
        if not self._settle(work):
            self._serving = None
            await self._ask_shell(Returned(self._info.id, work.key))
            return
        serving.settled = True
        to_abort: list[Work] = []
        self._publish_error(content)
        try:
            if serving.stop_on_error and content["status"] == "error":
                # What is sent once the error is known is sent in spite of it: so this must be
                # settled before the answer goes out.
                to_abort = await self._take_queued_executes()
        finally:
            self._answer(work, content, started)
            self._output.status("idle", header)
            self._serving = None
        for each in to_abort:
            self._abort(each)

    def _abort(self, work: Work) -> None:
        """Answer what won't be served."""
        if not work.right.begin(self._output):
            return
        self._output.status("busy", work.request.header)
        if self._settle(work):
            self._answer(work, {"status": "aborted"})
            self._output.status("idle", work.request.header)

    async def _served(self, serving: _Serving) -> dict[str, Any]:
        """Serve a request; returns the content of its reply."""
        work = serving.work
        try:
            message = work.request if isinstance(work.request, Message) else work.request.open()
            if message.header.msg_type == "execute_request":
                serving.stop_on_error = message.field("stop_on_error", bool, True)
                return await self._execute(serving, message)
            return await self._guard.run(
                lambda: look_up(self._kernel, self._info, self._state, self._executed, message),
                self._raiser,
            )
        except MalformedMessage as error:
            return error_content("MalformedMessage", error.detail)
        except CellEnded as ended:
            return self._ended_content(ended, None, 0)
        except BaseException as error:
            if _has_cancelled(error) and trio.current_effective_deadline() == -math.inf:
                # This subshell is ending. The checkpoint says so again, and says only that,
                # whatever else the code has raised together with it.
                if self._guard.closed is None:  # not by us: what it dies of will be known later
                    await trio.lowlevel.checkpoint()
                return self._ended_content(CellEnded(self._why_ended()), None, 0)
            failures.add(f"a {work.request.header.msg_type}", error)
            return _error_of(error)

    def _publish_error(self, content: dict[str, Any]) -> None:
        """Show the error of a cell, if it is one."""
        if content["status"] != "error":
            return
        if self._serving is not None and self._serving.cell is not None:
            shown = {key: content[key] for key in ("ename", "evalue", "traceback")}
            self._serving.cell.publish("error", shown)

    def _answer(self, work: Work, content: dict[str, Any], started: str | None = None) -> None:
        if work.request.header.msg_type == "execute_request":
            content.setdefault("execution_count", self._count)
        if work.internal:
            answer = Answer(work.key, content=content)
        else:
            try:
                frames = self._frames(work, content, started)
            except EncodeError as error:
                count = content.get("execution_count")
                content = error_content("EncodeError", f"the reply can't be sent: {error}")
                if count is not None:
                    content["execution_count"] = count
                frames = self._frames(work, content, started)
            answer = Answer(work.key, frames=frames)
        self._tell_shell(answer)

    def _tell_shell(self, message: object) -> None:
        try:
            self._wiring.shell.tell_nowait(message)
        except ActorTerminated:
            _log.debug("the shell channel has ended, and is not told of %r", type(message))

    async def _ask_shell(self, message: object) -> None:
        """Tell the shell channel something that it answers with `ThatIsAll`, and wait for that."""
        self._all_is_there = trio.Event()
        try:
            self._wiring.shell.tell_nowait(message)
        except ActorTerminated:
            return  # the kernel ends: then all that waits is aborted
        await self._all_is_there.wait()

    def _frames(self, work: Work, content: dict[str, Any], started: str | None) -> list[bytes]:
        return self._wiring.session.serialize(
            reply_type(work.request.header.msg_type),
            content,
            parent=work.request,
            # JupyterLab tells from it when a cell began, if a user wants to know that.
            metadata=None if started is None else {"started": started},
            idents=work.request.idents,
        )

    async def _take_queued_executes(self) -> list[Work]:
        """Take the executes out of the queue, those included that have just reached the socket."""
        await self._ask_shell(TakeWhatIsThere(self._info.id))
        taken: list[Work] = []
        kept: deque[_Queued] = deque()
        for queued in self._backlog:
            if queued.work.request.header.msg_type == "execute_request":
                taken.append(queued.work)
            else:
                kept.append(queued)
        self._backlog = kept
        return taken

    # ----------------------------------------------------------------------------- execute

    async def _execute(self, serving: _Serving, message: Message) -> dict[str, Any]:
        work = serving.work
        deadline = read_timeout(message)
        timeout = None if deadline is None else deadline[0]
        cell = serving.cell = self._make_cell(work, message)
        work.right.execution = Execution(
            self._count, cell._outlet, cell.silent, serving.stop_on_error
        )
        place.set(Place(self._wiring.running, self._info, cell))
        started = time.monotonic()
        try:
            expressions = await self._guard.run(
                lambda: self._run_cell(cell, work.key, deadline), self._raiser
            )
        except CellEnded as ended:
            content = self._ended_content(ended, timeout, time.monotonic() - started)
            if not ended.started:
                return content
        except BaseException as error:
            if _has_cancelled(error):
                raise  # this subshell is ending: _served knows
            content = _error_of(error)
        else:
            cell._outlet.port.flush()
            return {
                "status": "ok",
                "execution_count": self._count,
                "user_expressions": expressions,
                "payload": list(cell.payload),
            }
        finally:
            place.set(Place(self._wiring.running, self._info))
        return {
            **content,
            "execution_count": self._count,
            "user_expressions": {},
            "payload": list(cell.payload),
        }

    def _make_cell(self, work: Work, message: Message) -> Cell:
        """Make it, and count it if it is to be counted."""
        content = read_execute(message)
        if content["store_history"] and not content["silent"]:
            self._count += 1
            self._executed.append(HistoryEntry(0, self._count, content["code"]))
        if work.outer is None:
            outlet = Outlet(self._output, work.request.header)
        else:
            outlet = work.outer.inner()
        return Cell(
            content=content,
            metadata=message.metadata,
            execution_count=self._count,
            subshell=self._info,
            state=self._state,
            outlet=outlet,
            prompter=Prompter(self._wiring.stdin, message.idents, outlet),
            guard=self._guard,
        )

    async def _run_cell(
        self, cell: Cell, key: int, deadline: tuple[float, float] | None
    ) -> dict[str, Any]:
        cell.publish("execute_input", {"code": cell.code, "execution_count": self._count})
        with protected():
            await trio.lowlevel.checkpoint_if_cancelled()  # it may have been ended by now
            if deadline is not None:
                generation = self._guard.generation
                watch = WatchDeadline(self._info, self._guard, generation, key, *deadline)
                await self._wiring.control.tell(watch)
        await self._kernel.execute(cell)
        expressions: dict[str, Any] = {}
        for name, expression in cell.user_expressions.items():
            try:
                data = await self._kernel.evaluate(cell, expression)
            except Exception as error:
                expressions[name] = _error_of(error)
            else:
                expressions[name] = {"status": "ok", "data": data, "metadata": {}}
        return expressions

    def _why_ended(self) -> EndReason:
        return self._guard.closed or EndReason.DIED

    def _ended_content(
        self, ended: CellEnded, timeout: float | None, elapsed: float
    ) -> dict[str, Any]:
        if not ended.started:
            return {"status": "aborted"}
        match ended.reason:
            case EndReason.INTERRUPTED:
                evalue = "the cell was interrupted"
            case EndReason.TIMED_OUT:
                evalue = f"the cell was ended after {elapsed:.3f} s: its timeout was {timeout:g} s"
            case EndReason.DELETED:
                evalue = f"subshell {self._info.name} was deleted while it ran the cell"
            case EndReason.SHUTDOWN:
                evalue = "the kernel was shut down while it ran the cell"
            case EndReason.DIED:
                evalue = "the kernel has failed while it ran the cell"
        last_line = f"{ended.reason.value}: {evalue}"
        if ended.__cause__ is None:
            return error_content(ended.reason.value, evalue, [last_line])
        cause = _error_of(ended.__cause__)  # where it was, when it was ended
        if cause["ename"] == ended.reason.value:
            return cause
        return error_content(ended.reason.value, evalue, [*cause["traceback"], last_line])

    # -------------------------------------------------------------------------------- comms

    async def _serve_comms(self) -> None:
        while True:
            if not self._comms:
                await self._comms_wait.park()
                continue
            work = self._comms.popleft()
            if work.right.begin(self._output):
                await self._serve_comm(work)
            self._comms_served += 1
            self._requests_wait.unpark()
            await trio.lowlevel.checkpoint()

    async def _serve_comm(self, work: Work) -> None:
        header = work.request.header
        with self._comm_guard.cell(work.key):
            self._output.status("busy", header)
            work.right.begun()
            try:
                await self._comm_guard.run(partial(self._handle_comm, work), self._raiser)
            except MalformedMessage as error:
                self._tell_shell(Dropped(error.reason, str(error)))
            except CellEnded as ended:
                if ended.started:
                    _log.warning("a %s was ended: %s", header.msg_type, ended.reason.value)
            except BaseException as error:  # a handler's SystemExit is no reason to end, too
                if not _has_cancelled(error):  # else the checkpoint below says so again
                    failures.add(f"a {header.msg_type}", error)
        if self._settle(work):
            self._output.status("idle", header)
            self._tell_shell(Answer(work.key))

    async def _handle_comm(self, work: Work) -> None:
        message = work.request if isinstance(work.request, Message) else work.request.open()
        comm = read_comm(self._info, self._state, message)
        match message.header.msg_type:
            case "comm_open":
                await self._kernel.comm_open(comm)
            case "comm_msg":
                await self._kernel.comm_message(comm)
            case "comm_close":
                await self._kernel.comm_close(comm)


def _has_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_has_cancelled(each) for each in error.exceptions)
    return isinstance(error, trio.Cancelled)


def _loop_has_crashed() -> bool:
    """Whether trio itself ends this loop, as a system task has failed that a cell has started."""
    nurseries = trio.lowlevel.current_root_task().child_nurseries  # type: ignore[union-attr]
    return any(nursery.cancel_scope.cancel_called for nursery in nurseries)


def _is_harmless(error: BaseException) -> bool:
    """Whether it ends a subshell, and no more: a failure, a cancellation, or a user's Ctrl-C."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_harmless(each) for each in error.exceptions)
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    return isinstance(error, Exception | trio.Cancelled)


def _error_of(error: BaseException) -> dict[str, Any]:
    """What the error reply says of an exception that left a kernel author's code."""
    if isinstance(error, CellError):
        return error_content(error.ename, error.evalue, error.traceback)
    frames = without_our_frames(error.__traceback__, __package__)
    lines = traceback.format_exception(type(error), error, frames or error.__traceback__)
    text = "".join(lines).rstrip("\n")
    return error_content(type(error).__name__, text_of(error), text.split("\n"))
