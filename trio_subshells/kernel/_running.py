"""A running kernel, seen from its own process: `open_kernel`, `serve`, handles of subshells."""

from __future__ import annotations

import itertools
import logging
import math
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from ..actors import (
    Actor,
    ActorRef,
    ActorTerminated,
    Host,
    Mailbox,
    Stop,
    Supervisor,
    SystemStatistics,
    TaskHost,
    ThreadHost,
    open_supervisor,
    open_system,
)
from ..sockets import Context, InprocTransport, SocketOptions, open_context
from ..wire import Channel, ConnectionInfo, Header, WireSession
from ._control import DELETE_TIMEOUT, INTERRUPT_TIMEOUT
from ._errors import UnknownSubshell
from ._guard import Raiser, SubshellGuards, protected
from ._io import IOParts, IOThread, WhatIsThere, ports_of
from ._kernel import Kernel
from ._life import SubshellLife, SubshellState, SubshellStatistics
from ._messages import (
    Adopt,
    AreYouReady,
    Create,
    Delete,
    Describe,
    Interrupt,
    Shutdown,
    Spawn,
    Submit,
)
from ._raisers import AsyncRaiser
from ._shell import SHUTDOWN_TIMEOUT
from ._subshell import Subshell, Wiring, place
from ._types import ExecuteReply, SubshellInfo

_log = logging.getLogger("trio_subshells.kernel")


class _Nest(Actor):
    """Lives in the main shell's loop, and spawns the subshells that are to live there too."""

    async def run(self, mailbox: Mailbox) -> None:
        async with open_supervisor() as supervisor:
            async for letter in mailbox:
                match letter.message:
                    case Spawn(subshell, name):
                        with letter.answering():
                            letter.reply(
                                await supervisor.spawn(
                                    subshell, name=name, capacity=math.inf, on_failure=Stop()
                                )
                            )


@attrs.frozen
class KernelStatistics:
    """A snapshot of a kernel.

    Attributes:
        subshells: one entry each; the main shell is the first.
        actors: every actor of the kernel.
    """

    subshells: tuple[SubshellStatistics, ...]
    actors: SystemStatistics


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
            return await actor.ask(message, timeout=math.inf)

    async def wait_closed(self) -> None:
        """Wait until a client has shut the kernel down; only in the loop that opened it."""
        await self._closed.wait()

    async def statistics(self) -> KernelStatistics:
        """A snapshot."""
        subshells = (await self.subshells()).values()
        return KernelStatistics(
            tuple(subshell.statistics() for subshell in subshells), self._system.statistics()
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
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        stop_on_error: bool = True,
    ) -> ExecuteReply:
        """Execute a cell, after what is queued there already, and wait for its reply.

        Called from a cell, the output appears as that cell's. An error of the code is a reply, not
        an exception. Cancelled, the cell is not: `interrupt` the subshell, or leave its block.

        Args:
            code: what to execute.
            timeout: seconds after which the cell is ended; the reply is then an error,
                ``CellTimeout``.
            silent: publish nothing.
            store_history: let it count.
            user_expressions: what to evaluate afterwards, by name.
            stop_on_error: abort what is queued behind it, if it fails.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        request = self._kernel._session.message(
            "execute_request",
            {
                "code": code,
                "silent": silent,
                "store_history": store_history,
                "user_expressions": dict(user_expressions or {}),
                "allow_stdin": False,
                "stop_on_error": stop_on_error,
            },
            metadata={} if timeout is None else {"timeout": timeout},
            subshell_id=self.id,
        )
        content = await self._kernel._ask(
            self._kernel._parts.shell, Submit(request, _output_parent(request.header))
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


def _output_parent(header: Header) -> Header:
    """Whose child the output is: a cell's that executes code elsewhere, or the request's own."""
    here = place.get(None)
    return header if here is None or here.cell is None else here.cell.header


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


@asynccontextmanager
async def open_kernel(
    kernel: Kernel,
    connection: ConnectionInfo | None = None,
    *,
    make_raiser: Callable[[], Raiser] = AsyncRaiser,
    on_unjoinable: Callable[[], Awaitable[None]] | None = None,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> AsyncIterator[RunningKernel]:
    """Run a kernel in this process; its main shell is a task of the calling trio loop.

    Leaving the block shuts the kernel down: what runs is ended, what is queued is aborted, the last
    output is delivered, and every thread joined. If something can't be ended, leaving waits for it.
    A block that is cancelled is left like any other.

    Args:
        kernel: the author's object.
        connection: where clients connect; ports of 0 become free ones. None: there are no clients,
            only this process.
        make_raiser: how what computes in the main shell is interrupted.
        on_unjoinable: called, in the I/O thread, if a client shuts the kernel down and something
            can't be ended; it may exit the process.
        until: called in the I/O thread; when it returns, the kernel is shut down as by a
            client.

    Raises:
        zmq.ZMQError: an address can't be bound; it says which.
        Exception: what `Kernel.lifespan`, the main shell's `Kernel.subshell` or the block raise: as
            itself if it is one, several in a group.
    """
    if connection is not None and connection.transport == "ipc":
        connection = _with_free_paths(connection)
    closed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    session = WireSession(
        connection.key if connection else b"",
        signature_scheme=connection.signature_scheme if connection else "hmac-sha256",
    )
    urls, options = _addresses(connection)
    with _one_as_itself(), open_context() as context:
        async with _open_shielded_system(context) as system:
            io = await system.spawn(
                IOThread(
                    kernel,
                    context,
                    session,
                    urls,
                    options,
                    partial(token.run_sync_soon, closed.set),
                    on_unjoinable or _wait_for_them,
                    until,
                ),
                name="io",
                host=ThreadHost(),
            )
            parts: IOParts = await io.ask(WhatIsThere(), timeout=math.inf)
            nest = await system.spawn(_Nest(), name="nest", host=TaskHost())
            running = RunningKernel(system, parts, session, _actual(connection, parts.urls), closed)
            wiring = Wiring(
                session,
                context,
                parts.publisher_url,
                parts.shell,
                parts.control,
                parts.stdin,
                parts.iopub,
                nest,
                running,
            )
            async with kernel.lifespan(running):
                guards = SubshellGuards()
                main = await system.spawn(
                    Subshell(kernel, SubshellInfo(None), wiring, guards, make_raiser),
                    name="main shell",
                    capacity=math.inf,
                )
                await main.ask(AreYouReady(), timeout=math.inf)
                running._main = SubshellLife(SubshellInfo(None), main, guards)
                await parts.control.ask(Adopt(running._main, wiring), timeout=math.inf)
                try:
                    yield running
                finally:
                    await _shut_down(parts.control)


@asynccontextmanager
async def _open_shielded_system(context: Context) -> AsyncIterator[Supervisor]:
    """A system whose actors go on, when the block is cancelled, until it is left.

    They are who ends in good order what the kernel runs: the ladder has to climb, replies have to
    be sent. So they live in a task with a shield around it, and the block lives outside of that.
    """
    leave = trio.Event()

    async def hold(task_status: trio.TaskStatus[Supervisor]) -> None:
        with trio.CancelScope(shield=True):
            async with open_system("kernel", transport=InprocTransport(context)) as system:
                task_status.started(system)
                await leave.wait()

    async with trio.open_nursery() as nursery:
        system: Supervisor = await nursery.start(hold)
        try:
            yield system
        finally:
            leave.set()


@contextmanager
def _one_as_itself() -> Iterator[None]:
    """Take an exception that is alone in a group out of it: our nurseries are nobody's business."""
    alone: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        errors = _leaves(group)
        # That an actor we asked has failed is but an echo of what it failed with.
        sources = [error for error in errors if not isinstance(error, ActorTerminated)]
        if len(sources or errors) != 1:
            raise
        (alone,) = sources or errors
    if alone is not None:
        raise alone from alone.__cause__


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


async def _shut_down(control: ActorRef) -> None:
    with trio.CancelScope(shield=True):
        try:
            await control.ask(Shutdown(SHUTDOWN_TIMEOUT), timeout=math.inf)
        except ActorTerminated:
            _log.debug("the kernel ended before it was shut down")


async def _wait_for_them() -> None:
    """What can't be ended is waited for: leaving `open_kernel` joins everything."""


def _addresses(connection: ConnectionInfo | None) -> tuple[dict[Channel, str], SocketOptions]:
    if connection is None:
        base = f"inproc://kernel-{uuid.uuid4().hex}"
        channels: tuple[Channel, ...] = ("shell", "iopub", "stdin", "control")
        return {channel: f"{base}-{channel}" for channel in channels}, {}
    options: SocketOptions = {}
    if connection.curve_secretkey is not None:
        options["curve_server"] = True
        options["curve_secretkey"] = connection.curve_secretkey
    if ":" in connection.ip:
        options["ipv6"] = True
    return {channel: connection.url(channel) for channel in _CHANNELS}, options


_CHANNELS: tuple[Channel, ...] = ("shell", "iopub", "stdin", "control", "hb")


def _with_free_paths(connection: ConnectionInfo) -> ConnectionInfo:
    """With ipc, a port is the end of a path: give each 0 a number that no file has yet."""
    ports = {f"{channel}_port": getattr(connection, f"{channel}_port") for channel in _CHANNELS}
    numbers = itertools.count(1)
    for name, port in ports.items():
        if port == 0:
            ports[name] = next(
                number
                for number in numbers
                if number not in ports.values() and not Path(f"{connection.ip}-{number}").exists()
            )
    return attrs.evolve(connection, **ports)


def _actual(
    connection: ConnectionInfo | None, urls: Mapping[Channel, str]
) -> ConnectionInfo | None:
    """The connection with the ports that were really bound."""
    if connection is None or connection.transport != "tcp":
        return connection
    return attrs.evolve(connection, **ports_of(urls))


async def serve(
    kernel: Kernel,
    connection: ConnectionInfo | str | os.PathLike[str],
    *,
    task_status: trio.TaskStatus[RunningKernel] = trio.TASK_STATUS_IGNORED,
    make_raiser: Callable[[], Raiser] = AsyncRaiser,
    on_unjoinable: Callable[[], Awaitable[None]] | None = None,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> None:
    """Serve a kernel to clients until one of them shuts it down; for ``nursery.start`` as well.

    Cancelled, the kernel is shut down as at the end of `open_kernel`.

    Args:
        kernel: the author's object.
        connection: a connection file, or what would be in it. A file that isn't there is written,
            with free ports and a new key, and removed at the end.
        task_status: started with the `RunningKernel`, once clients can connect.
        make_raiser: see `open_kernel`.
        on_unjoinable: see `open_kernel`.
        until: see `open_kernel`.

    Raises:
        InvalidConnectionInfo: the file isn't a connection file; it says what is wrong.
        zmq.ZMQError: an address can't be bound; it says which.
    """
    info, path = _read_or_plan(connection, kernel.implementation)
    async with open_kernel(
        kernel,
        info,
        make_raiser=make_raiser,
        on_unjoinable=on_unjoinable,
        until=until,
    ) as running:
        try:
            if path is not None and running.connection is not None:
                running.connection.write_file(path)
            task_status.started(running)
            await running.wait_closed()
        finally:
            if path is not None:
                path.unlink(missing_ok=True)


def _read_or_plan(
    connection: ConnectionInfo | str | os.PathLike[str], kernel_name: str
) -> tuple[ConnectionInfo, Path | None]:
    """Where to listen, and the file that is to be written, if there is none yet."""
    if isinstance(connection, ConnectionInfo):
        return connection, None
    if Path(connection).exists():
        return ConnectionInfo.from_file(connection), None
    return ConnectionInfo.local(kernel_name=kernel_name), Path(connection)
