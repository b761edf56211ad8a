"""Kernels under test: `simulated_kernel` and `real_kernel`, with one interface.

A test's body is written once and runs on both: in the simulator, where every interleaving can be
tried, and on real sockets and threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from ..kernel import Kernel, open_kernel
from ..kernel import _guard as guard
from ..kernel._failures import failures
from ..wire import Channel, WireSession
from ._client import Client, ClientSocket, Reply
from ._hosted import HostedKernel, host_kernel
from ._network import MOST_UNREAD, Network
from ._simulation import Simulation


class KernelUnderTest(ABC):
    """A kernel that runs, and a client of it.

    Attributes:
        client: the first client. `connect` makes more of them.
    """

    client: Client

    @abstractmethod
    def connect(self, name: str) -> AbstractAsyncContextManager[Client]:
        """Another client, for the time of an ``async with`` block.

        Args:
            name: its identity, by which the kernel tells its clients apart.
        """

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the kernel has ended, as a client has shut it down; its threads are joined."""

    async def create_subshell(self) -> str:
        """Create a subshell, and return its id."""
        return await self.client.create_subshell()

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
        """Shut the kernel down, and wait for the reply; `wait_closed` waits for its end."""
        return await self.client.control("shutdown_request", restart=restart)


class SimulatedKernel(KernelUnderTest):
    """A kernel in the simulator: made by `simulated_kernel`.

    Attributes:
        running: the kernel, as its own process sees it.
        network: between it and its clients.
    """

    def __init__(self, simulation: Simulation, network: Network, hosted: HostedKernel) -> None:
        self._simulation = simulation
        self._hosted = hosted
        self.running = hosted.running
        self.network = network

    def connect(self, name: str) -> AbstractAsyncContextManager[Client]:
        """Another client, for the time of an ``async with`` block."""

        def open_socket(channel: Channel) -> ClientSocket:
            return self.network.connect(channel, name.encode())

        return Client(WireSession(b"", username=name), open_socket).connected()

    async def wait_closed(self) -> None:
        """Wait until the kernel has ended, as a client has shut it down."""
        await self._hosted.ended.wait()

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

    Leaving the block shuts the kernel down, if that has not been done, and waits for its end. What
    the kernel fails with is raised, and cancels the block.

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
    opened = partial(
        open_kernel,
        kernel,
        make_raiser=network.make_raiser,
        open_ground=lambda: nullcontext(network),
    )
    async with host_kernel(opened) as hosted:
        under_test = SimulatedKernel(simulation, network, hosted)
        async with under_test.connect("client") as under_test.client:
            yield under_test


def _keep_exposure(simulation: Simulation) -> None:
    """What of a cell runs is known for each OS thread; here, for each simulated one."""
    here = guard._here
    simulation.kept.append(
        (lambda: here.exposure, lambda exposure: setattr(here, "exposure", exposure))
    )
