"""The shell channel: each request gets its answer, and each answer its client, whatever ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import trio

import trio_subshells as ts
from trio_subshells.actors import ActorTerminated
from trio_subshells.kernel import _channels, _shell
from trio_subshells.kernel._channels import ClientSocket
from trio_subshells.testing import Client, check_protocol, explore_schedules, simulated_kernel
from trio_subshells.testing._client import ClientSocket as SimulatedSocket
from trio_subshells.testing._network import Network
from trio_subshells.wire import Channel, WireSession

from .kernels import Flag, WordsKernel, check, early_client, the_simulation
from .programs import call_into_c
from .starting import SlowToStart, serve


class Mortal(WordsKernel):
    """Its subshells die when they are told to, or of a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.dies = Flag()

        @self.cell
        def fail_and_die(cell: ts.Cell) -> None:
            self.dies.set()
            raise ts.CellError("Failed", "as was wanted", [])

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            if not info.is_main:
                nursery.start_soon(self._die)
            yield
            nursery.cancel_scope.cancel()

    async def _die(self) -> None:
        await self.dies.wait()
        raise ValueError("as was wanted")


@explore_schedules(60)
async def test_a_subshell_that_dies_leaves_nothing_unanswered() -> None:
    words = Mortal()
    async with simulated_kernel(words) as kernel:
        subshell = await kernel.create_subshell()
        cell = kernel.client.execute_soon("say", subshell=subshell)
        words.dies.set()
        assert (await cell.done()).status in {"ok", "error", "aborted"}
        assert (await kernel.client.execute("still")).status == "ok"


@explore_schedules(60)
async def test_a_subshell_that_dies_of_a_cell_leaves_nothing_unanswered() -> None:
    async with simulated_kernel(Mortal()) as kernel:
        subshell = await kernel.create_subshell()
        cells = [
            kernel.client.execute_soon(code, subshell=subshell) for code in ("fail_and_die", "say")
        ]
        for cell in cells:
            assert (await cell.done()).status in {"ok", "error", "aborted"}
        assert (await kernel.client.execute("still")).status == "ok"


@explore_schedules(100)
async def test_what_has_come_before_an_error_is_aborted() -> None:
    words = WordsKernel()
    come = 0

    @words.cell
    def fail_now(cell: ts.Cell) -> None:
        nonlocal come
        come = 4 - len(under_way)
        raise ts.CellError("Failed", "as was wanted", [])

    async with simulated_kernel(words) as kernel:
        under_way = kernel.client._sockets["shell"]._line
        cells = [kernel.client.execute_soon(code) for code in ("fail_now", *["say"] * 3)]
        statuses = [(await cell.done()).status for cell in cells]
        assert statuses[:come] == ["error", *["aborted"] * (come - 1)]
        await check(kernel.client)


@explore_schedules(60)
async def test_what_has_come_before_each_error_is_aborted() -> None:
    """Not only before the first one."""
    words = WordsKernel()
    come = 0

    @words.cell
    def fail_now(cell: ts.Cell) -> None:
        nonlocal come
        come = 3 - len(under_way)
        raise ts.CellError("Failed", "as was wanted", [])

    async with simulated_kernel(words) as kernel:
        under_way = kernel.client._sockets["shell"]._line
        for _ in range(3):
            cells = [kernel.client.execute_soon(code) for code in ("fail_now", "say", "say")]
            statuses = [(await cell.done()).status for cell in cells]
            assert statuses[:come] == ["error", *["aborted"] * (come - 1)]
        await check(kernel.client)


@explore_schedules(60)
async def test_large_messages_keep_their_places() -> None:
    """One comes while the other is still being verified."""
    async with simulated_kernel(WordsKernel()) as kernel:
        large = "fail" + " " * (1 << 20)
        cells = [kernel.client.execute_soon(code) for code in ("fail", *[large] * 4)]
        for cell in cells:
            assert (await cell.done()).status in {"error", "aborted"}
        await check(kernel.client)


@explore_schedules(100, lag=0)
async def test_large_messages_that_have_come_before_an_error_are_aborted() -> None:
    """Each is verified in another thread, which takes a while; what is behind it waits for that."""
    words = WordsKernel()
    verify = ClientSocket._verify

    def verify_slowly(clients: ClientSocket, frames: list[bytes]) -> Any:
        call_into_c(1)
        return verify(clients, frames)

    @words.cell
    async def fail_soon(cell: ts.Cell) -> None:
        await trio.sleep(0.5)
        raise ts.CellError("Failed", "as was wanted", [])

    with (
        mock.patch.object(_channels, "LARGE_MESSAGE", 5000),
        mock.patch.object(ClientSocket, "_verify", verify_slowly),
    ):
        async with simulated_kernel(words) as kernel:
            large = "say" + " " * 5000
            cells = [kernel.client.execute_soon(code) for code in ("fail_soon", *[large] * 3)]
            statuses = [(await cell.done()).status for cell in cells]
            assert statuses == ["error", *["aborted"] * 3]
            await check(kernel.client)


@explore_schedules(100)
async def test_a_large_message_keeps_its_place() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        first = kernel.client.execute_soon("fail")
        large = kernel.client.execute_soon(f"say {'x' * (1 << 20)}")
        last = kernel.client.execute_soon("say")
        assert (await first.done()).status == "error"
        assert (await large.done()).status in {"ok", "aborted"}
        assert (await last.done()).status in {"ok", "aborted"}
        await check(kernel.client)


@explore_schedules(40)
async def test_what_is_answered_takes_no_room_any_more() -> None:
    """However it has been answered, and by whom."""
    words = WordsKernel()
    begun = Flag()

    @words.cell
    async def begins(cell: ts.Cell) -> None:
        begun.set()
        await trio.sleep_forever()

    with mock.patch.multiple(_shell, MOST_PENDING=8, MOST_PENDING_BYTES=8000):
        async with simulated_kernel(words) as kernel:
            client = kernel.client
            for _ in range(4):
                begun = Flag()
                cells = [client.execute_soon(code) for code in ("begins", "say", "say")]
                await begun.wait()
                moving = client.request("comm_msg", {"comm_id": "c", "data": {"x": "x" * 2000}})
                await kernel.interrupt()
                for cell in cells:
                    assert (await cell.done()).ename in {None, "KeyboardInterrupt"}
                await moving.idle()
            await check(client)


@explore_schedules(60)
async def test_who_comes_before_the_main_shell_is_served_by_it() -> None:
    words = SlowToStart()
    network = Network(the_simulation())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network)
        await words.starting.wait()
        async with early_client(network) as client:
            cell = client.execute_soon("say")
            await client.request("kernel_info_request").reply()  # now it has come
            words.started.set()
            assert (await cell.done()).status == "ok"
            await client.control("shutdown_request", restart=False)
            await check(client)


@explore_schedules(60)
async def test_the_first_cell_finds_a_kernel_that_is_complete() -> None:
    words = SlowToStart()

    @words.cell
    async def spawns(cell: ts.Cell) -> None:
        assert ts.current_kernel().main.id is None
        async with ts.spawn_subshell() as subshell:
            assert (await subshell.execute("on", silent=True)).status == "ok"

    network = Network(the_simulation())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network)
        await words.starting.wait()
        async with early_client(network) as client:
            cell = client.execute_soon("spawns")
            await client.request("kernel_info_request").reply()  # now it has come
            words.started.set()
            assert (await cell.done()).status == "ok"
            await client.control("shutdown_request", restart=False)
            await check(client)


@explore_schedules(100, lag=0)
async def test_the_first_cell_is_seen_however_late_its_client_listens() -> None:
    """And if it listens in time, there is nothing to be waited for."""
    network = Network(the_simulation())
    opened, leave = trio.Event(), trio.Event()

    def open_socket(channel: Channel) -> SimulatedSocket:
        if channel == "stdin":  # the last one
            opened.set()
        return network.connect(channel, b"early")

    client = Client(WireSession(b"", username="early"), open_socket)

    async def connect() -> None:
        async with client.connected():
            await leave.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve, WordsKernel(), network)
        nursery.start_soon(connect)
        await opened.wait()
        cell = client.execute_soon("say")
        assert (await cell.reply()).status == "ok"
        assert trio.current_time() < 0.5
        await client.control("shutdown_request", restart=False)
        await trio.sleep(1)  # whatever is on its way arrives
        check_protocol(client)
        leave.set()


@explore_schedules(60)
async def test_a_kernel_outlives_its_iopub_actor_from_the_start() -> None:
    network = Network(the_simulation())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, WordsKernel(), network)
        network._iopub.notify(None)  # what no socket ever tells of
        async with early_client(network) as client:
            assert (await client.execute_soon("say").reply()).status == "ok"
            await client.control_soon("shutdown_request", restart=False).reply()


@explore_schedules(60)
async def test_a_shell_channel_that_fails_leaves_nothing_unanswered() -> None:
    network = Network(the_simulation())
    running: list[ts.RunningKernel] = []
    refused: list[str] = []
    failures = []

    class Words(SlowToStart):
        @asynccontextmanager
        async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
            running.append(kernel)
            async with super().lifespan(kernel):
                yield

    words = Words()

    async def serve_until_it_fails() -> None:
        try:
            await serve(words, network)
        except TypeError as error:
            failures.append(error)

    async def go_on_asking() -> None:
        """By a handle, whose cells come from no socket."""
        while not refused:
            try:
                reply = await running[0].main.execute("say")
            except ActorTerminated:
                refused.append("terminated")
            else:
                if reply.status != "ok":
                    refused.append(reply.status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_it_fails)
        await words.starting.wait()
        words.started.set()
        async with early_client(network) as client:
            reply = await client.control("create_subshell_request")
            cells = [
                client.execute_soon(code, subshell=where)
                for where in (None, str(reply.content["subshell_id"]))
                for code in ("wait", "say")
            ]
            await cells[0].output("execute_input")
            await cells[2].output("execute_input")
            await client.request("kernel_info_request").reply()  # now all of them have come
            network.routers["shell"].inbox.put(None)  # what no socket ever gives
            nursery.start_soon(go_on_asking)
            for cell in cells:
                assert (await cell.done()).status in {"error", "aborted"}
    assert failures
    assert refused


@explore_schedules(60)
async def test_a_kernel_outlives_its_iopub_actor() -> None:
    """Which is restarted; what streams have gathered is sent all the same."""
    words = WordsKernel()

    @words.cell
    async def print_half_a_line(cell: ts.Cell) -> None:
        cell.stdout("half")
        await trio.sleep_forever()

    async with simulated_kernel(words) as kernel:
        cell = kernel.client.execute_soon("print_half_a_line")
        await cell.output("execute_input")
        kernel.network._iopub.notify(None)  # what no socket ever tells of
        await cell.output("stream")
        assert cell.text() == "half"
        assert (await kernel.interrupt()).status == "ok"
        await check(kernel.client)
