"""A kernel in a thread of its own, as in a process of its own: what its main shell blocks is that.

In a simulation it is a simulated thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial

import trio
from trio_util import move_on_when

from ..actors import ThreadHost
from ..kernel import RunningKernel
from ..kernel._open import one_as_itself

OpenKernel = Callable[[], AbstractAsyncContextManager[RunningKernel]]


class HostedKernel:
    """See `host_kernel`, which makes it.

    Attributes:
        running: the kernel, as its own process sees it.
        ended: set once the kernel has ended, and its thread has been joined.
    """

    running: RunningKernel

    def __init__(self, open_it: OpenKernel) -> None:
        self._open = open_it
        self._token = trio.lowlevel.current_trio_token()
        self.ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Be the kernel's thread, up to its end."""
        serve = partial(self._serve, partial(self._token.run_sync_soon, task_status.started))
        try:
            await ThreadHost().run(serve, name="kernel", attach=nullcontext)
        finally:
            self.ended.set()

    async def _serve(self, started: Callable[[], None]) -> None:
        """In the kernel's thread."""
        self._its_token = trio.lowlevel.current_trio_token()
        self._leave = trio.Event()
        async with self._open() as running:
            self.running = running
            started()
            async with move_on_when(running.wait_closed):
                await self._leave.wait()

    async def end(self) -> None:
        """Shut it down, if that has not been done, and wait for its end."""
        with suppress(trio.RunFinishedError):
            self._its_token.run_sync_soon(self._leave.set)
        await self.ended.wait()


@asynccontextmanager
async def host_kernel(open_it: OpenKernel) -> AsyncIterator[HostedKernel]:
    """Run a kernel in a thread, for the time of a block; leaving it shuts the kernel down.

    Leaving waits until everything has ended, also if the block is cancelled. If the kernel fails,
    the block is cancelled, and what it has failed with is raised.

    Args:
        open_it: called in that thread; what it returns is a kernel's whole life.
    """
    with one_as_itself():
        async with trio.open_nursery() as nursery:
            hosted = HostedKernel(open_it)
            await nursery.start(hosted.run)
            try:
                yield hosted
            finally:
                with trio.CancelScope(shield=True):
                    await hosted.end()
