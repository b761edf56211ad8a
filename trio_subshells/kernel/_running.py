"""A running kernel, seen from its own process: `RunningKernel`, and handles of its subshells.

These own nothing: each call is a message to the shell channel or to the control handler. `_open` is
who starts and ends what they stand for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from ..actors import (
    ActorRef,
    ActorTerminated,
    Host,
    Supervisor,
    SystemStatistics,
)
from ..wire import ConnectionInfo, WireSession
from ._drops import DropCount
from ._errors import UnknownSubshell
from ._guard import checkpoint_if_ending, protected
from ._ladder import DELETE_TIMEOUT, GIVE_UP_AFTER, INTERRUPT_TIMEOUT
from ._life import SubshellLife, SubshellState, SubshellStatistics
from ._messages import (
    CountDrops,
    Create,
    Delete,
    Describe,
    Interrupt,
    IOParts,
    Submit,
)
from ._types import ExecuteReply
from ._wiring import place

_log = logging.getLogger("trio_subshells.kernel")


@attrs.frozen
class KernelStatistics:
    """A snapshot of a kernel.

    Attributes:
        subshells: one entry each; the main shell is the first.
        actors: every actor of the kernel.
        dropped: what messages were dropped, and why; nothing of what never was.
    """

    subshells: tuple[SubshellStatistics, ...]
    actors: SystemStatistics
    dropped: tuple[DropCount, ...]


class RunningKernel:
    """A kernel that runs in this process: made by `open_kernel`, found by `current_kernel`.

    Its methods may be called in any trio loop of the process: in that of whoever opened the kernel,
    or in a subshell's.
    """

    def __init__(
        self,
        system: Supervisor,
        parts: IOParts,
        session: WireSession,
        connection: ConnectionInfo | None,
        closed: trio.Event,
    ) -> None:
        self._system = system
        self._parts = parts
        self._session = session
        self._closed = closed
        self._main: SubshellLife | None = None  # open_kernel sets it, after Kernel.lifespan
        self.connection = connection
        """Where clients connect, with the ports that are really used; None if they can't."""

    # ------------------------------------------------------------------------- subshells

    @property
    def main(self) -> SubshellHandle:
        """The main shell. It can't be deleted, only interrupted.

        Raises:
            RuntimeError: it isn't there yet, as `Kernel.lifespan` has not yielded.
        """
        return SubshellHandle(self, self._main_life())

    def _main_life(self) -> SubshellLife:
        if self._main is None:
            raise RuntimeError(
                "the kernel has no shells before Kernel.lifespan has yielded: use them after that"
            )
        return self._main

    @asynccontextmanager
    async def spawn_subshell(self, *, host: Host | None = None) -> AsyncIterator[SubshellHandle]:
        """A subshell for the time of a block: leaving it cancels what runs there and joins it.

        Leaving waits until the subshell has ended, however long that takes, also if the block is
        cancelled. A subshell that a client has deleted meanwhile is no error.

        Args:
            host: where it lives; by default where the kernel's subshells live.
        """
        subshell = await self.create_subshell(host=host)
        try:
            yield subshell
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await subshell.delete(timeout=math.inf)
                except UnknownSubshell:
                    _log.debug("subshell %s was deleted inside its block", subshell.id)

    async def create_subshell(self, *, host: Host | None = None) -> SubshellHandle:
        """Create a subshell whose life no block owns; it ends with `delete`, or with the kernel.

        Cancelled, there is no new subshell.

        Args:
            host: where it lives; by default where the kernel's subshells live.

        Raises:
            TooManySubshells: there is no room for it; the message says what has run out.
            RuntimeError: it can't be set up; the message says why.
        """
        self._main_life()  # or else this would wait for what waits for Kernel.lifespan
        with trio.CancelScope(shield=True):  # for a moment: a subshell must not be forgotten
            life: SubshellLife = await self._ask(self._parts.control, Create(host))
        subshell = SubshellHandle(self, life)
        try:
            with protected():
                await life.wait_set_up()
        except BaseException:
            with trio.CancelScope(shield=True), suppress(UnknownSubshell):
                await subshell.delete(timeout=math.inf)
            raise
        return subshell

    async def delete_subshell(self, subshell_id: str, *, timeout: float = DELETE_TIMEOUT) -> None:
        """Delete a subshell: what runs is cancelled, what is queued aborted; then it is joined.

        Args:
            subshell_id: which one.
            timeout: seconds until it is given up.

        Raises:
            UnknownSubshell: there is none of that id.
            SubshellUnjoinable: it has not ended in time; it will be joined as soon as it does.
        """
        await self._ask(self._parts.control, Delete(subshell_id, timeout))

    async def subshells(self) -> Mapping[str | None, SubshellHandle]:
        """Every subshell there is, by id, whoever created it; None is the main shell."""
        lives: dict[str | None, SubshellLife] = await self._ask(self._parts.control, Describe())
        return {key: SubshellHandle(self, life) for key, life in lives.items()}

    async def interrupt(self, *, timeout: float = INTERRUPT_TIMEOUT) -> None:
        """Interrupt what runs, in every subshell, and wait until it has ended.

        Raises:
            TimeoutError: something has not ended within `timeout` seconds.
        """
        await self._ask(self._parts.control, Interrupt(timeout=timeout))

    def interrupt_soon(self) -> None:
        """Have everything interrupted, without waiting; from any thread, and any signal handler."""
        # The kernel may be about to end, or have ended: then nothing runs.
        with suppress(trio.RunFinishedError):
            self._parts.io_token.run_sync_soon(self._tell_interrupt)

    def _tell_interrupt(self) -> None:
        """In the I/O thread's loop, which an exception from here would end."""
        with suppress(ActorTerminated, trio.WouldBlock):
            self._parts.control.tell_nowait(Interrupt())

    # ------------------------------------------------------------------------- everything

    async def _ask(self, actor: ActorRef, message: object) -> Any:
        # An interrupt cancels a cell that asks our actors, and doesn't strike in their queues.
        with protected():
            answer = await actor.ask(message, timeout=math.inf)
            await checkpoint_if_ending()
            return answer

    async def wait_closed(self) -> None:
        """Wait until a client, or a signal, has shut the kernel down; in the loop that opened it.

        What ran has ended then, but for what can't be ended, and what was asked was answered.
        """
        await self._closed.wait()

    async def statistics(self) -> KernelStatistics:
        """A snapshot."""
        subshells = (await self.subshells()).values()
        dropped: tuple[DropCount, ...] = await self._ask(self._parts.shell, CountDrops())
        return KernelStatistics(
            tuple(subshell.statistics() for subshell in subshells),
            self._system.statistics(),
            dropped,
        )

    def tree(self) -> str:
        """Which actor lives where, and in which state; a line each, for people."""
        return self._system.tree()


class SubshellHandle:
    """A subshell of this process's kernel, usable in any trio loop; it keeps nothing alive."""

    def __init__(self, kernel: RunningKernel, life: SubshellLife) -> None:
        self._kernel = kernel
        self._life = life
        self.id = life.info.id
        """Its id, as clients know it; None is the main shell."""

    async def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        give_up_after: float = GIVE_UP_AFTER,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        stop_on_error: bool = True,
    ) -> ExecuteReply:
        """Execute a cell, after what is queued there already, and wait for its reply.

        Called from a cell, the output appears as that cell's. An error of the code is a reply, not
        an exception. Cancelled, the cell is not: `interrupt` the subshell, or leave its block. A
        reply that has come by then is returned all the same; but if the calling cell is to end as
        well, it is cancelled here.

        Args:
            code: what to execute.
            timeout: seconds after which the cell is ended; the reply is then an error,
                ``CellTimeout``.
            give_up_after: seconds after that, in which it has to have ended. If it can't be, as it
                is in a call into C, the reply is that error without it; until the call returns, the
                replies to whatever else is asked here are errors, ``ShellOccupied``.
            silent: publish nothing; called from a silent cell, it is silent in any case.
            store_history: let it count, unless it is silent.
            user_expressions: what to evaluate afterwards, by name.
            stop_on_error: abort what is queued behind it, if it fails.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if not give_up_after > 0:
            raise ValueError(
                f"give_up_after must be a positive number of seconds, not {give_up_after!r}"
            )
        here = place.get(None)
        outer = None if here is None else here.cell
        request = self._kernel._session.message(
            "execute_request",
            {
                "code": code,
                "silent": silent or (outer is not None and outer.silent),
                "store_history": store_history,
                "user_expressions": dict(user_expressions or {}),
                "allow_stdin": False,
                "stop_on_error": stop_on_error,
            },
            metadata=(
                {} if timeout is None else {"timeout": timeout, "give_up_after": give_up_after}
            ),
            subshell_id=self.id,
        )
        content = await self._kernel._ask(
            self._kernel._parts.shell,
            Submit(request, None if outer is None else outer._outlet),
        )
        return ExecuteReply(content["status"], content)

    async def interrupt(self, *, timeout: float = INTERRUPT_TIMEOUT) -> None:
        """Interrupt what runs here, and wait until it has ended. Nothing runs: nothing happens.

        Raises:
            UnknownSubshell: it has been deleted.
            TimeoutError: it has not ended within `timeout` seconds.
        """
        await self._kernel._ask(
            self._kernel._parts.control, Interrupt(self.id, everywhere=False, timeout=timeout)
        )

    async def delete(self, *, timeout: float = DELETE_TIMEOUT) -> None:
        """Delete it, see `RunningKernel.delete_subshell`."""
        if self.id is None:
            raise ValueError("the main shell can't be deleted: shut the kernel down instead")
        await self._kernel.delete_subshell(self.id, timeout=timeout)

    @property
    def state(self) -> SubshellState:
        """What it is doing at this moment; from any thread."""
        return self._life.state

    def statistics(self) -> SubshellStatistics:
        """A snapshot; from any thread."""
        return self._life.statistics()

    def __repr__(self) -> str:
        return f"<SubshellHandle {self._life.info.name} {self.state.value}>"


def current_kernel() -> RunningKernel:
    """The kernel that the calling code runs in: a cell, or a method of a `Kernel`.

    Raises:
        RuntimeError: it doesn't run in one.
    """
    here = place.get(None)
    if here is None:
        raise RuntimeError(
            "no kernel runs this code; outside of one, use the object that open_kernel() gives"
        )
    return here.running


@asynccontextmanager
async def spawn_subshell(*, host: Host | None = None) -> AsyncIterator[SubshellHandle]:
    """`RunningKernel.spawn_subshell` of the kernel that the calling code runs in.

    Raises:
        RuntimeError: it doesn't run in one.
    """
    async with current_kernel().spawn_subshell(host=host) as subshell:
        yield subshell
