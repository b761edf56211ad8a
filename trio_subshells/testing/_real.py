"""Real kernels under test: `real_kernel`, with real threads, ZMQ sockets, and processes.

The interface is that of `simulated_kernel`, so the same test runs on both. A kernel of the test's
own runs in a thread of the test's process (`RealKernel`); a program, in a process of its own
(`KernelProcess`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from os import PathLike
from typing import Any, Final, overload

import zmq

from ..kernel import Kernel, open_kernel
from ..sockets import Socket, SocketOptions, open_context
from ..wire import Channel, ConnectionInfo, WireSession
from ._client import Client
from ._hosted import HostedKernel, host_kernel
from ._kernels import KernelUnderTest
from ._launch import PATIENCE, START_TIMEOUT, LaunchedKernel, launch_kernel
from ._simulation import Simulation


@asynccontextmanager
async def open_client(
    connection: ConnectionInfo, name: str = "client", *, listens: bool = True
) -> AsyncIterator[Client]:
    """A client of a kernel at real sockets, for the time of a block.

    Args:
        connection: where the kernel listens.
        name: the client's identity, by which the kernel tells its clients apart.
        listens: whether it connects to iopub now; or else, when `Client.listen` is called.
    """
    # Like a simulated one, it never waits for room to send.
    options: SocketOptions = {"ipv6": ":" in connection.ip, "sndhwm": 0}
    if connection.curve_publickey is not None and connection.curve_secretkey is not None:
        options["curve_serverkey"] = connection.curve_publickey
        options["curve_publickey"] = connection.curve_publickey
        options["curve_secretkey"] = connection.curve_secretkey
    session = WireSession(
        connection.key, signature_scheme=connection.signature_scheme, username=name
    )
    with open_context() as context:

        def open_socket(channel: Channel) -> Socket:
            kind = zmq.SUB if channel == "iopub" else zmq.DEALER
            more: SocketOptions = (
                {"subscribe": b""} if channel == "iopub" else {"identity": name.encode()}
            )
            socket = context.socket(kind, name=f"{channel} of {name}", **(options | more))
            socket.connect(connection.url(channel))
            return socket

        async with Client(session, open_socket).connected(listens=False) as client:
            if listens:  # last: who is welcomed is connected to the other channels
                await client.listen()
            yield client


class RealKernel(KernelUnderTest):
    """A kernel in a thread of the test's process: made by `real_kernel`.

    Attributes:
        running: the kernel, as its own process sees it. Its methods may be called in the test.
        connection: where it listens.
    """

    def __init__(self, hosted: HostedKernel) -> None:
        assert hosted.running.connection is not None
        self._hosted = hosted
        self.running = hosted.running
        self.connection = hosted.running.connection

    def connect(self, name: str) -> AbstractAsyncContextManager[Client]:
        """Another client, for the time of an ``async with`` block."""
        return open_client(self.connection, name)

    async def wait_closed(self) -> None:
        """Wait until the kernel has ended, as a client has shut it down; its threads are joined."""
        await self._hosted.ended.wait()


class KernelProcess(KernelUnderTest):
    """A kernel in a process of its own: made by `real_kernel`.

    Attributes:
        connection: where it listens.
    """

    def __init__(self, launched: LaunchedKernel) -> None:
        self._launched = launched
        self.connection = launched.connection

    @property
    def pid(self) -> int:
        """Of the process. It leads a process group of its own, where there are groups."""
        return self._launched.process.pid

    @property
    def log(self) -> str:
        """What the process has written to its standard output and error so far."""
        return self._launched.log

    def connect(self, name: str) -> AbstractAsyncContextManager[Client]:
        """Another client, for the time of an ``async with`` block."""
        return open_client(self.connection, name)

    async def wait_closed(self) -> None:
        """Wait until the process has ended, as a client has shut the kernel down."""
        await self._launched.ended.wait()


@overload
def real_kernel(kernel: Kernel, /) -> AbstractAsyncContextManager[RealKernel]: ...


@overload
def real_kernel(
    program: str | Sequence[str],
    /,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | PathLike[str] | None = None,
    start_timeout: float = START_TIMEOUT,
    patience: float = PATIENCE,
) -> AbstractAsyncContextManager[KernelProcess]: ...


def real_kernel(
    what: Kernel | str | Sequence[str], /, **options: Any
) -> AbstractAsyncContextManager[RealKernel | KernelProcess]:
    """A kernel at real ZMQ sockets, with a client; in an ordinary trio loop.

    The same test runs with it as with `simulated_kernel`. ``async with real_kernel(MyKernel()) as
    kernel:`` runs the kernel in this process, in a thread of its own: what a cell blocks is that,
    not the test. With a program, it runs in a process of its own.

    Leaving the block shuts the kernel down, if that has not been done, and waits for its end, also
    if the block is cancelled. If something of a kernel in this process can't be ended, leaving
    waits for it; a process is killed. What the kernel fails with, if it does, is raised, and
    cancels the block.

    Args:
        what: the author's object; or a program that takes ``-f FILE``, as those do that call
            `trio_subshells.main`: a list with its arguments, in which ``{connection_file}`` is
            replaced, or ``-f FILE`` is added. Or the name of a kernelspec, where Jupyter looks. The
            program is started with a registration file, so that it chooses its ports itself.
        env: variables that the process has besides this one's.
        cwd: where the process runs.
        start_timeout: seconds until it has to listen.
        patience: seconds that it has to end, from when it is told to until it is killed.

    Raises:
        RuntimeError: this is a simulation.
        KernelDied: the program has ended by itself with an error, or had to be killed, or doesn't
            listen in time; the message has what it wrote.
        LookupError: there is no such kernelspec.
        OSError: the program can't be started.
        Exception: what the kernel has failed with.
    """
    if isinstance(what, Kernel):
        return _in_thread(what, **options)
    return _in_process(what, **options)


def _check_that_it_is_real() -> None:
    if Simulation.current is not None:
        raise RuntimeError(
            "real_kernel() needs real threads and sockets, and this is a simulation: explore() "
            "and @explore_schedules run simulated_kernel(); call real_kernel() in an ordinary "
            "trio loop"
        )


@asynccontextmanager
async def _in_thread(kernel: Kernel) -> AsyncIterator[RealKernel]:
    _check_that_it_is_real()
    async with host_kernel(partial(open_kernel, kernel, ConnectionInfo.local())) as hosted:
        under_test = RealKernel(hosted)
        async with under_test.connect(_FIRST) as under_test.client:
            yield under_test


@asynccontextmanager
async def _in_process(program: str | Sequence[str], **options: Any) -> AsyncIterator[KernelProcess]:
    _check_that_it_is_real()
    async with launch_kernel(program, **options) as launched:
        under_test = KernelProcess(launched)
        async with under_test.connect(_FIRST) as under_test.client:
            yield under_test


_FIRST: Final = "client"
