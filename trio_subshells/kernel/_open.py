"""How a kernel starts and ends: `open_kernel`, the root of the tree of its actors, and `serve`.

The order of the start: the I/O thread with its sockets and actors, which answer from then on; the
nest; `Kernel.lifespan`; the main shell; and the control handler is told of that. The end is the
reverse of it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from pathlib import Path

import attrs
import trio
import zmq
from trio_util import move_on_when

from .._files import OwnFile
from ..actors import (
    ActorRef,
    ActorTerminated,
    Supervisor,
    TaskHost,
    ThreadHost,
    Transport,
    open_system,
)
from ..sockets import SocketOptions
from ..wire import (
    CHANNELS,
    Channel,
    ConnectionInfo,
    InvalidConnectionInfo,
    RegistrationInfo,
    WireSession,
    read_startup_file,
)
from ._faults import without_cancelled
from ._ground import Ground, open_zmq_ground
from ._guard import Raiser, SubshellGuards
from ._io import IOThread, ports_of
from ._kernel import Kernel
from ._ladder import SHUTDOWN_TIMEOUT
from ._life import SubshellLife
from ._limits import check_maximum
from ._messages import (
    Adopt,
    AreYouReady,
    IOParts,
    Shutdown,
    WhatIsThere,
)
from ._nest import Nest
from ._raisers import AsyncRaiser
from ._registration import REGISTRATION_TIMEOUT, connection_file, register
from ._running import RunningKernel
from ._subshell import Subshell
from ._types import SubshellInfo
from ._wiring import Wiring

_log = logging.getLogger("trio_subshells.kernel")


@asynccontextmanager
async def open_kernel(
    kernel: Kernel,
    connection: ConnectionInfo | None = None,
    *,
    make_raiser: Callable[[], Raiser] = AsyncRaiser,
    on_unjoinable: Callable[[int], Awaitable[None]] | None = None,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
    open_ground: Callable[[], AbstractContextManager[Ground]] = open_zmq_ground,
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
        on_unjoinable: called, in the I/O thread, if something can't be ended when a client shuts
            the kernel down, or when it has failed; it may exit the process, with the status given.
        until: called in the I/O thread; when it returns, the kernel is shut down as by a
            client.
        open_ground: what the kernel stands on; ZMQ by default.

    Raises:
        ValueError: `Kernel.max_subshells` is neither None nor a number of subshells.
        zmq.ZMQError: an address can't be bound; it says which.
        OSError: the process has too few file descriptors left.
        Exception: what `Kernel.lifespan`, the main shell's `Kernel.subshell` or the block raise: as
            itself if it is one, several in a group.
    """
    check_maximum(kernel.max_subshells)
    if connection is not None and connection.transport == "ipc":
        connection = _with_free_paths(connection)
    closed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    session = WireSession(
        connection.key if connection else b"",
        signature_scheme=connection.signature_scheme if connection else "hmac-sha256",
    )
    urls, options = _addresses(connection)
    with one_as_itself(), open_ground() as ground:
        async with _open_shielded_system(ground.transport) as system:
            with trio.CancelScope(shield=True):  # for a moment: then clients can ask already
                io = await system.spawn(
                    IOThread(
                        kernel,
                        ground,
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
                nest = await system.spawn(Nest(), name="nest", host=TaskHost())
            running = RunningKernel(system, parts, session, _actual(connection, parts.urls), closed)
            wiring = Wiring(
                session,
                ground,
                parts.publisher_url,
                parts.shell,
                parts.control,
                parts.stdin,
                parts.iopub,
                nest,
                running,
                make_raiser,
            )
            async with _answered_if_cancelled(running), kernel.lifespan(running):
                guards = SubshellGuards()
                main = await system.spawn(
                    Subshell(kernel, SubshellInfo(None), wiring, guards, make_raiser),
                    name="main shell",
                    capacity=math.inf,
                )
                await main.ask(AreYouReady(), timeout=math.inf)
                running._main = SubshellLife(SubshellInfo(None), main, guards)
                try:
                    # Shielded, as from here on cells run. It takes but a moment.
                    with trio.CancelScope(shield=True):
                        await parts.control.ask(Adopt(running._main, wiring), timeout=math.inf)
                    yield running
                finally:
                    await _shut_down(parts.control)


@asynccontextmanager
async def _answered_if_cancelled(running: RunningKernel) -> AsyncIterator[None]:
    """Shut down a kernel whose start is cancelled: clients may have asked already.

    A start that fails is a kernel that fails; that is told to them by others.
    """
    try:
        yield
    except BaseException as error:
        if running._main is None and without_cancelled(error) is None:
            await _shut_down(running._parts.control, unstarted=True)
        raise


@asynccontextmanager
async def _open_shielded_system(transport: Transport) -> AsyncIterator[Supervisor]:
    """A system whose actors go on, when the block is cancelled, until it is left.

    They are who ends in good order what the kernel runs: the ladder has to climb, replies have to
    be sent. So they live in a task with a shield around it, and the block lives outside of that.
    """
    leave = trio.Event()

    async def hold(task_status: trio.TaskStatus[Supervisor]) -> None:
        with trio.CancelScope(shield=True):
            async with open_system("kernel", transport=transport) as system:
                task_status.started(system)
                await leave.wait()

    async with trio.open_nursery() as nursery:
        # Shielded: otherwise trio leaves a task to itself, as soon as it has started, whose
        # `start` has been cancelled, and waits for its end. That would be for ever.
        with trio.CancelScope(shield=True):
            system: Supervisor = await nursery.start(hold)
        try:
            yield system
        finally:
            leave.set()


@contextmanager
def one_as_itself() -> Iterator[None]:
    """Take an exception that is alone in a group out of it: our nurseries are nobody's business."""
    alone: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        notes: list[str] = []
        errors = _leaves(group, notes)
        # That an actor we asked has failed is but an echo of what it failed with.
        sources = [error for error in errors if not isinstance(error, ActorTerminated)]
        if len(sources or errors) != 1:
            raise
        (alone,) = sources or errors
        for note in notes:
            alone.add_note(note)
    if alone is not None:
        raise alone from alone.__cause__


def _leaves(error: BaseException, notes: list[str]) -> list[BaseException]:
    """What is in a group, and in the groups therein, whose notes are collected."""
    if isinstance(error, BaseExceptionGroup):
        notes += getattr(error, "__notes__", [])
        return [leaf for each in error.exceptions for leaf in _leaves(each, notes)]
    return [error]


async def _shut_down(control: ActorRef, *, unstarted: bool = False) -> None:
    with trio.CancelScope(shield=True):
        try:
            await control.ask(Shutdown(SHUTDOWN_TIMEOUT, unstarted=unstarted), timeout=math.inf)
        except ActorTerminated:
            _log.debug("the kernel ended before it was shut down")


async def _wait_for_them(status: int) -> None:
    """What can't be ended is waited for: leaving `open_kernel` joins everything."""


def _addresses(connection: ConnectionInfo | None) -> tuple[dict[Channel, str], SocketOptions]:
    if connection is None:
        base = f"inproc://kernel-{uuid.uuid4().hex}"
        channels: tuple[Channel, ...] = ("shell", "iopub", "stdin", "control")
        return {channel: f"{base}-{channel}" for channel in channels}, {}
    options: SocketOptions = {}
    if connection.curve_secretkey is not None:
        _check_curve(connection, connection.curve_secretkey)
        options["curve_server"] = True
        options["curve_secretkey"] = connection.curve_secretkey
    elif connection.transport == "tcp":
        _log.info(
            "clients connect without encryption: other users of this machine can listen on iopub. "
            "Jupyter provides keys with transport_encryption='auto'; ipc is another way"
        )
    if ":" in connection.ip:
        options["ipv6"] = True
    return {channel: connection.url(channel) for channel in CHANNELS}, options


def _check_curve(connection: ConnectionInfo, secret: bytes) -> None:
    """Refuse keys that no client could connect with; libzmq would say nothing, or hardly anything.

    A client needs no key of its own to be let in: what it has to have is the public one, which is
    as secret as the file that it is in (JEP 145).
    """
    if not zmq.has("curve"):
        raise InvalidConnectionInfo(
            "the connection is to be encrypted (it has a curve_secretkey), and this libzmq "
            f"{zmq.zmq_version()} can't: install a pyzmq that was built with CURVE, as those of "
            "PyPI and conda-forge are, or start the kernel with transport_encryption='disabled'"
        )
    try:
        public = zmq.curve_public(secret)
    except zmq.ZMQError:
        raise InvalidConnectionInfo("curve_secretkey must be a CurveZMQ key in Z85") from None
    if public != connection.curve_publickey:
        raise InvalidConnectionInfo(
            "curve_publickey must be the one that belongs to curve_secretkey"
        )


def _with_free_paths(connection: ConnectionInfo) -> ConnectionInfo:
    """With ipc, a port is the end of a path: give each 0 a number that no file has yet."""
    ports = {f"{channel}_port": getattr(connection, f"{channel}_port") for channel in CHANNELS}
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
    connection: ConnectionInfo | RegistrationInfo | str | os.PathLike[str],
    *,
    task_status: trio.TaskStatus[RunningKernel] = trio.TASK_STATUS_IGNORED,
    make_raiser: Callable[[], Raiser] = AsyncRaiser,
    on_unjoinable: Callable[[int], Awaitable[None]] | None = None,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
    registration_timeout: float = REGISTRATION_TIMEOUT,
) -> None:
    """Serve a kernel to clients until one of them shuts it down; for ``nursery.start`` as well.

    Cancelled, the kernel is shut down as at the end of `open_kernel`.

    Args:
        kernel: the author's object.
        connection: a connection file or a registration file, or what would be in it. A file that
            isn't there is written, as a connection file with free ports and a new key, and removed
            at the end. With a registration file, the kernel chooses its ports, tells them, and
            writes a connection file for other clients where Jupyter keeps them.
        task_status: started with the `RunningKernel`, once clients can connect.
        make_raiser: see `open_kernel`.
        on_unjoinable: see `open_kernel`.
        until: see `open_kernel`.
        registration_timeout: seconds to wait until the registration is acknowledged.

    Raises:
        InvalidConnectionInfo: the file is neither of the two; it says what is wrong.
        RegistrationFailed: nobody acknowledged the registration.
        zmq.ZMQError: an address can't be bound; it says which.
    """
    info, path = _read_or_plan(connection, kernel.implementation)
    registration = info if isinstance(info, RegistrationInfo) else None
    async with open_kernel(
        kernel,
        info.connection() if isinstance(info, RegistrationInfo) else info,
        make_raiser=make_raiser,
        on_unjoinable=on_unjoinable,
        until=until,
    ) as running:
        assert running.connection is not None
        async with AsyncExitStack() as stack:
            if path is not None:
                stack.enter_context(_written(running.connection, path))
            if registration is not None:
                # If whoever started the kernel has gone, nobody will acknowledge it.
                async with move_on_when(running.wait_closed):
                    await register(registration, running.connection, timeout=registration_timeout)
                stack.enter_context(_written_for_others(running.connection, registration))
            task_status.started(running)
            await running.wait_closed()


def _read_or_plan(
    connection: ConnectionInfo | RegistrationInfo | str | os.PathLike[str], kernel_name: str
) -> tuple[ConnectionInfo | RegistrationInfo, Path | None]:
    """Where to listen, and the file that is to be written, if there is none yet."""
    if isinstance(connection, ConnectionInfo | RegistrationInfo):
        return connection, None
    if Path(connection).exists():
        return read_startup_file(connection), None
    return ConnectionInfo.local(kernel_name=kernel_name), Path(connection)


@contextmanager
def _written(connection: ConnectionInfo, path: Path) -> Iterator[None]:
    """Write a connection file; remove it at the end, if it is still this one."""
    connection.write_file(path)
    file = OwnFile.at(path)
    try:
        yield
    finally:
        file.remove()


@contextmanager
def _written_for_others(
    connection: ConnectionInfo, registration: RegistrationInfo
) -> Iterator[None]:
    """The connection file of a registered kernel, which serves its owner also without one."""
    path = connection_file(registration)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(_written(connection, path))
        except OSError as error:
            _log.warning(
                "other clients won't find this kernel: %s can't be written: %s", path, error
            )
        yield
