"""Kernels under test: `simulated_kernel` and `real_kernel`, with one interface.

A test's body is written once and runs on both: in the simulator, where every interleaving can be
tried, and on real sockets and threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import trio
import trio.testing

from ..kernel import Kernel, RunningKernel, open_kernel
from ..kernel import _guard as guard
from ..kernel._failures import failures
from ..wire import Channel, WireSession
from ._checks import KernelChecks
from ._client import Client, ClientSocket, Reply
from ._faults import FIRST_CLIENT, Faults, RandomFaults
from ._hosted import HostedKernel, host_kernel
from ._network import MOST_UNREAD, Met, Network
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
        failure: the injected fault that has ended it, if one has; known when its block was left.
    """

    def __init__(self, simulation: Simulation, network: Network, hosted: HostedKernel) -> None:
        self._simulation = simulation
        self._hosted = hosted
        self.running = hosted.running
        self.network = network
        self.failure: BaseException | None = None

    @property
    def faults(self) -> Faults:
        """What can go wrong, on demand."""
        faults = self._simulation.faults
        if faults is None:
            faults = Faults()
            faults.attach(self.network)
        return faults

    @property
    def died(self) -> set[str | None]:
        """The ids of subshells that a fault may have ended; None for the main shell.

        For `check_protocol`, which can't know.
        """
        faults = self._simulation.faults
        return set() if faults is None else faults.dead_subshells()

    def connect(self, name: str) -> AbstractAsyncContextManager[Client]:
        """Another client, for the time of an ``async with`` block."""
        return self._connected(name)

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[Client]:
        network = self.network

        def open_socket(channel: Channel) -> ClientSocket:
            return network.connect(channel, name.encode())

        client = Client(WireSession(b"", username=name), open_socket)
        with trio.CancelScope() as scope:
            async with client.connected():
                met = Met(client, scope, trio.lowlevel.current_trio_token())
                with self.network.met_by(met):
                    yield client

    async def wait_closed(self) -> None:
        """Wait until the kernel has ended, as a client has shut it down."""
        await self._hosted.ended.wait()

    @property
    def threads(self) -> list[str]:
        """The names of the kernel's threads."""
        return [each.name for each in self._simulation.threads if each.name != "main"]


@asynccontextmanager
async def simulated_kernel(
    kernel: Kernel,
    *,
    descriptors: float = math.inf,
    most_unread: int = MOST_UNREAD,
    faults: RandomFaults | None = None,
    patience: float = math.inf,
) -> AsyncIterator[SimulatedKernel]:
    """A kernel in the simulator, with a client; in `explore` only.

    Every actor of the kernel is the one that ships. The kernel has simulated threads: one for its
    main shell, as a process of its own would have, one for its I/O, and one for each subshell in a
    thread. The block, with the client, is in another.

    Leaving the block shuts the kernel down, if that has not been done, and waits for its end. What
    the kernel fails with is raised, and cancels the block. Then it is looked at what it owes, see
    below. Faults that last end when the block is left.

    That a fault of `Faults` ends the kernel is no failure; `SimulatedKernel.failure` tells of it,
    and the block goes on. If the fault came by chance, the block is cancelled when all that was
    under way has arrived: what it then still waits for would never come.

    Args:
        kernel: the author's object; make a new one for each run.
        descriptors: how many file descriptors there are for subshells in threads.
        most_unread: how many messages may wait for a client that doesn't read.
        faults: which may come by chance, while the client is connected; by default, none does.
            On demand, they are the methods of `SimulatedKernel.faults`.
        patience: how many virtual seconds the client may have to wait for an answer.

    Raises:
        RuntimeError: this is not a simulation.
        UnansweredRequest: the kernel has taken a request of the first client, and at its end there
            is no reply, or no idle; or the client has lost its patience.
        LostMessage: everything that was asked is done, nothing goes on, and an actor still has a
            letter that it doesn't take.
    """
    simulation = Simulation.current
    if simulation is None:
        raise RuntimeError(
            "simulated_kernel() works in a simulation only: call the test by explore(), or "
            "decorate it with @explore_schedules()"
        )
    network = Network(simulation, descriptors=descriptors, most_unread=most_unread)
    _keep_exposure(simulation)
    if faults is not None:
        Faults(faults)
    if simulation.faults is not None:
        simulation.faults.attach(network)
    failures.forget()  # of earlier runs, whose kinds would not be new any more
    opened = partial(
        open_kernel,
        kernel,
        make_raiser=network.make_raiser,
        open_ground=lambda: nullcontext(network),
    )
    checks = KernelChecks(simulation, network, patience)
    life = _Life(network, checks)
    async with host_kernel(partial(life.lead, opened)) as hosted:
        under_test = SimulatedKernel(simulation, network, hosted)
        try:
            async with under_test.connect(FIRST_CLIENT) as under_test.client:
                checks.begin(under_test.client)
                life.begin(network.met[FIRST_CLIENT].scope)
                yield under_test
                life.end()
                with trio.CancelScope(shield=True):
                    await hosted.end()
                    await life.settle()
        finally:
            life.end()
    if simulation.faults is not None:
        simulation.faults.end_chance()
        simulation.faults.check_names()
    under_test.failure = life.failure
    checks.check_answers()


class _Life:
    """What goes wrong in a kernel's life, and what has to be looked at after it.

    Attributes:
        failure: the injected fault that has ended the kernel, if one has.
    """

    def __init__(self, network: Network, checks: KernelChecks) -> None:
        self._network = network
        self._checks = checks
        self._token = trio.lowlevel.current_trio_token()
        self._scope: trio.CancelScope | None = None
        self.failure: BaseException | None = None

    @property
    def _faults(self) -> Faults | None:
        return self._network.simulation.faults

    @asynccontextmanager
    async def lead(
        self, opened: Callable[[], AbstractAsyncContextManager[RunningKernel]]
    ) -> AsyncIterator[RunningKernel]:
        """The kernel's whole life, in its thread: one that an injected fault ends is no failure."""
        started = False
        try:
            async with opened() as running:
                started = True
                yield running
        except BaseException as error:
            if not started or self._faults is None or not self._faults.explains(error):
                raise
            self.failure = error
            if self._faults.come_by_chance:
                self._token.run_sync_soon(
                    partial(trio.lowlevel.spawn_system_task, self._end_block, name="end of kernel")
                )

    async def _end_block(self) -> None:
        await self.settle()
        if self._scope is not None:
            self._scope.cancel()

    def begin(self, block: trio.CancelScope) -> None:
        """The client is connected; `block` is around what it does."""
        self._scope = block
        if self._faults is not None:
            self._faults.begin_chance()

    def end(self) -> None:
        """The kernel is about to be shut down."""
        self._scope = None
        self._checks.end()
        if self._faults is not None:
            self._faults.pass_over()

    async def settle(self) -> None:
        """Wait until all that the kernel has sent has arrived, and look at it."""
        if self._faults is not None:
            self._faults.end_chance()
            self._faults.pass_over()
        await trio.testing.wait_all_tasks_blocked()
        self._checks.settle()


def _keep_exposure(simulation: Simulation) -> None:
    """What of a cell runs is known for each OS thread; here, for each simulated one."""
    here = guard._here

    def take() -> guard.Exposure | None:
        exposure, here.exposure = here.exposure, None
        return exposure

    simulation.kept.append((take, lambda exposure: setattr(here, "exposure", exposure)))
