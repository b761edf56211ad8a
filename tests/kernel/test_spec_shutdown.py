"""A client shuts the kernel down before its main shell is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

import trio_subshells as ts
from trio_subshells.kernel import RunningKernel, serve
from trio_subshells.testing import Client
from trio_subshells.wire import ConnectionInfo

from .helpers import HANG, CellsKernel, Flag, open_client


class SlowKernel(CellsKernel):
    """It begins to live when it is told to. Its only cell never ends by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.connected = Flag()
        self.connection: ConnectionInfo | None = None
        self.go_on = Flag()

        @self.cell
        async def forever(cell: ts.Cell) -> None:
            await trio.sleep_forever()

    @asynccontextmanager
    async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
        self.connection = kernel.connection
        self.connected.set()
        await self.go_on.wait()
        yield


async def _run(
    kernel: SlowKernel,
    act: Callable[[Client], Awaitable[None]],
    on_unjoinable: Callable[[int], Awaitable[None]],
) -> None:
    """Serve, and let a client act that connects before the kernel has begun to live."""

    async def run() -> None:
        await serve(kernel, ConnectionInfo.local(), on_unjoinable=on_unjoinable)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await kernel.connected.wait()
            async with open_client(kernel.connection) as client:
                await act(client)


async def test_what_was_sent_before_is_answered() -> None:
    kernel = SlowKernel()
    forced = Flag()

    async def act(client: Client) -> None:
        requests = [client.execute_soon("forever") for _ in range(3)]
        shutdown = client.control_soon("shutdown_request")
        await shutdown.busy()
        kernel.go_on.set()
        assert (await shutdown.done()).status == "ok"
        for request in requests:
            content = (await request.done()).content
            assert content["status"] == "aborted" or content["ename"] == "KernelShutdown"

    async def on_unjoinable(status: int) -> None:
        forced.set()

    await _run(kernel, act, on_unjoinable)
    assert not forced.is_set()


async def test_a_kernel_that_doesn_t_begin_to_live_can_be_ended_by_force() -> None:
    kernel = SlowKernel()
    forced = Flag()

    async def act(client: Client) -> None:
        request = client.execute_soon("forever")
        shutdown = client.control_soon("shutdown_request")
        assert (await shutdown.done()).status == "ok"
        await forced.wait()
        # Here the process would end. It goes on as one that is embedded in another program does.
        kernel.go_on.set()
        content = (await request.done()).content
        assert content["status"] == "aborted" or content["ename"] == "KernelShutdown"

    async def on_unjoinable(status: int) -> None:
        forced.set()

    await _run(kernel, act, on_unjoinable)
