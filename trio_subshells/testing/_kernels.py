"""Kernels under test: `simulated_kernel` and `real_kernel`, with one interface.

A test's body is written once and runs on both: in the simulator, where every interleaving can be
tried, and on real sockets and threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any

import outcome
import trio

from ..kernel import Kernel, RunningKernel, open_kernel
from ..kernel import _guard as guard
from ..kernel._failures import failures
from ..kernel._ground import Ground
from ..wire import Channel, WireSession
from ._client import Client, Reply
from ._network import MOST_UNREAD, Network
from ._simulation import SimulatedThread, Simulation


class KernelUnderTest(ABC):
    """A kernel that runs, and a client of it.

    Attributes:
        client: the first client. `connect` makes more of them.
    """

    client: Client

    @abstractmethod
    def connect(self, name: str) -> Any:
        """Another client, for the time of an ``async with`` block.

        Args:
            name: its identity, for people.
        """

    async def create_subshell(self) -> str:
        """Create a subshell, and return its id."""
        reply = await self.client.control("create_subshell_request")
        if reply.status != "ok":
            raise AssertionError(f"no subshell: {reply.content}")
        return str(reply.content["subshell_id"])

    async def delete_subshell(self, subshell: str, **content: Any) -> Reply:
        """Delete a subshell, and wait for the reply."""
        return await self.client.control("delete_subshell_request", subshell_id=subshell, **content)

    async def subshells(self) -> list[str]:
        """The ids of the subshells there are."""
        reply = await self.client.control("list_subshell_request")
        return list(reply.content["subshell_id"])

    async def interrupt(self, subshell: str | None = None) -> Reply:
        """Interrupt everything that runs; or one subshell."""
        content = {} if subshell is None else {"subshell_id": subshell}
        return await self.client.control("interrupt_request", **content)

    async def shutdown(self, *, restart: bool = False) -> Reply:
        """Shut the kernel down, and wait for the reply; leaving the block waits for its end."""
        return await self.client.control("shutdown_request", restart=restart)


class SimulatedKernel(KernelUnderTest):
    """A kernel in the simulator: made by `simulated_kernel`.

    Attributes:
        running: the kernel, as its own process sees it.
        network: between it and its clients.
    """

    def __init__(self, simulation: Simulation, network: Network, running: RunningKernel) -> None:
        self._simulation = simulation
        self.network = network
        self.running = running

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[Client]:
        """Another client, for the time of the block."""

        def open_socket(channel: Channel) -> Any:
            return self.network.connect(channel, name.encode())

        async with Client(WireSession(b"", username=name), open_socket).connected() as client:
            yield client

    @property
    def threads(self) -> list[str]:
        """The names of the kernel's threads."""
        return [each.name for each in self._simulation.threads if each.name != "main"]


@asynccontextmanager
async def simulated_kernel(
    kernel: Kernel, *, descriptors: float = float("inf"), most_unread: int = MOST_UNREAD
) -> AsyncIterator[SimulatedKernel]:
    """A kernel in the simulator, with a client; in `explore` only.

    Every actor of the kernel is the one that ships. The kernel has simulated threads: one for its
    main shell, as a process of its own would have, one for its I/O, and one for each subshell in a
    thread. The block, with the client, is in another.

    Leaving the block shuts the kernel down, if that has not been done, and waits for its end.

    Args:
        kernel: the author's object; make a new one for each run.
        descriptors: how many file descriptors there are for subshells.
        most_unread: how many messages may wait for a client that doesn't read.

    Raises:
        RuntimeError: this is not a simulation.
    """
    simulation = Simulation.current
    if simulation is None:
        raise RuntimeError(
            "simulated_kernel() works in a simulation only: call the test by explore(), or "
            "decorate it with @explore_schedules()"
        )
    network = Network(simulation, descriptors=descriptors, most_unread=most_unread)
    _keep_exposure(simulation)
    failures.forget()  # of earlier runs, whose kinds would not be new any more
    host = _Host(kernel, network)
    host.start(simulation)
    running = await host.started()
    if running is None:
        host.unwrap()
        raise RuntimeError("the kernel has ended before it was there")
    under_test = SimulatedKernel(simulation, network, running)
    try:
        async with under_test.connect("client") as under_test.client:
            yield under_test
    finally:
        with trio.CancelScope(shield=True):
            await host.end()
    host.unwrap()


class _Host:
    """The simulated process of a kernel: the thread of its main shell."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        self._kernel = kernel
        self._network = network
        self._token = trio.lowlevel.current_trio_token()
        self._started = trio.Event()
        self._ended = trio.Event()
        self._running: RunningKernel | None = None
        self._result: outcome.Outcome[object] | None = None
        self._leave: trio.Event | None = None
        self._its_token: trio.lowlevel.TrioToken | None = None
        self.thread: SimulatedThread | None = None

    def start(self, simulation: Simulation) -> None:
        self.thread = simulation.start_thread("kernel", self._run, self._end_of_thread)

    async def _run(self) -> None:
        self._leave = leave = trio.Event()
        self._its_token = trio.lowlevel.current_trio_token()
        async with open_kernel(
            self._kernel, make_raiser=self._network.make_raiser, open_ground=self._open_ground
        ) as running:
            self._running = running
            self._token.run_sync_soon(self._started.set)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_closed, running, nursery.cancel_scope)
                await leave.wait()
                nursery.cancel_scope.cancel()

    async def _wait_closed(self, running: RunningKernel, scope: trio.CancelScope) -> None:
        await running.wait_closed()
        scope.cancel()

    def _open_ground(self) -> AbstractContextManager[Ground]:
        return nullcontext(self._network)

    def _end_of_thread(self, result: outcome.Outcome[object]) -> None:
        self._result = result
        self._token.run_sync_soon(self._ended.set)
        self._token.run_sync_soon(self._started.set)

    async def started(self) -> RunningKernel | None:
        await self._started.wait()
        return self._running

    async def end(self) -> None:
        if self._its_token is not None and self._leave is not None:
            with suppress(trio.RunFinishedError):
                self._its_token.run_sync_soon(self._leave.set)
        await self._ended.wait()

    def unwrap(self) -> None:
        assert self._result is not None
        self._result.unwrap()


def _keep_exposure(simulation: Simulation) -> None:
    """What of a cell runs is known for each OS thread; here, for each simulated one."""
    here = guard._here
    simulation.kept.append(
        (lambda: here.exposure, lambda exposure: setattr(here, "exposure", exposure))
    )
