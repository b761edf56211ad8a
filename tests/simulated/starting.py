"""Kernels that a test starts step by step, with clients that come before everything is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

import trio

import trio_subshells as ts
from trio_subshells.kernel import open_kernel
from trio_subshells.testing._network import Network

from .kernels import Flag, WordsKernel


class SlowToStart(WordsKernel):
    """Its start takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.starting, self.started = Flag(), Flag()

    @asynccontextmanager
    async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
        self.starting.set()
        await self.started.wait()
        yield


class SlowInAGroup(SlowToStart):
    """As that; cancelled, it raises a group, as a nursery does."""

    @asynccontextmanager
    async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
        try:
            self.starting.set()
            await self.started.wait()
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("", [cancelled]) from None
        yield


class SlowMainShell(SlowToStart):
    """As that, but it is the set-up of its main shell that takes so long."""

    @asynccontextmanager
    async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        self.starting.set()
        await self.started.wait()
        yield


async def serve(
    words: WordsKernel,
    network: Network,
    scope: trio.CancelScope | None = None,
    *,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
    on_unjoinable: Callable[[int], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a kernel in the calling thread, until it is shut down, or cancelled."""
    with scope or nullcontext():
        async with open_kernel(
            words,
            make_raiser=network.make_raiser,
            until=until,
            on_unjoinable=on_unjoinable,
            open_ground=lambda: nullcontext(network),
        ) as running:
            task_status.started()
            await running.wait_closed()
