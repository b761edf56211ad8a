"""The shell channel: where a request goes, and that each is answered, busy main shell or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import RunningKernel, _shell, open_kernel
from trio_subshells.kernel._io import SUBSHELL_FEATURES
from trio_subshells.testing import Client
from trio_subshells.wire import PROTOCOL_VERSION, ConnectionInfo

from .helpers import HANG, CellsKernel, Flag, open_client, served


@pytest.fixture
def kernel() -> CellsKernel:
    kernel = CellsKernel()

    @kernel.cell
    def where(cell: ts.Cell) -> None:
        cell.stdout(cell.subshell.name)

    return kernel


async def test_routes_by_header_and_by_content(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        one, two = [await at.client.create_subshell() for _ in range(2)]

        async def where(header: str | None, **content: Any) -> str:
            exchange = at.client.request(
                "execute_request", {"code": "where", **content}, subshell=header
            )
            assert (await exchange.done()).status == "ok"
            return exchange.text()

        assert await where(None) == "main"
        assert await where(one) == one
        assert await where(None, subshell_id=one) == one
        assert await where(None, subshell_id=None) == "main"
        assert await where(one, subshell_id=two) == one  # the header has the say


@pytest.mark.parametrize("in_header", [True, False])
async def test_an_unknown_subshell_is_an_error(kernel: CellsKernel, in_header: bool) -> None:
    async with served(kernel) as at:
        for msg_type, content in (
            ("execute_request", {"code": "where"}),
            ("is_complete_request", {"code": "where"}),
        ):
            exchange = at.client.request(
                msg_type,
                {**content, **({} if in_header else {"subshell_id": "nobody"})},
                subshell="nobody" if in_header else None,
            )
            reply = (await exchange.done()).content
            assert reply["ename"] == "UnknownSubshell"
            assert "'nobody'" in reply["evalue"]
        comm = at.client.request("comm_msg", {"comm_id": "c"}, subshell="nobody")
        await comm.idle()
        assert comm.replies == []


async def test_a_subshell_id_that_is_none_is_an_error(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        reply = (await at.client.execute("where", subshell=None, **{"subshell_id ": 1})).content
        assert reply["status"] == "ok"  # another field, with a name that is like it
        exchange = at.client.request("execute_request", {"code": "where", "subshell_id": 7})
        assert "'subshell_id'" in (await exchange.done()).evalue


async def test_unknown_types_are_errors_on_shell_and_control(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        for channel in ("shell", "control"):
            exchange = at.client.request("sing_request", channel=channel)  # type: ignore[arg-type]
            reply = (await exchange.done()).content
            assert reply["ename"] == "UnknownMessageType"
            assert "'sing_request'" in reply["evalue"]
            assert channel in reply["evalue"]


async def test_what_is_not_a_message_is_dropped(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        for channel in ("shell", "control", "stdin"):
            forged = at.client.session.serialize("execute_request", {"code": "where"})
            forged[1] = b"0" * 64
            replayed = at.client.session.serialize("no_such_type", {})
            for frames in ([b""], [b"<IDS|MSG>"], forged, replayed, replayed):
                at.client.send_raw(channel, frames)  # type: ignore[arg-type]
        assert (await at.client.execute("where")).status == "ok"
        assert (await at.client.control("list_subshell_request")).status == "ok"


async def test_what_is_wrong_inside_a_message_is_its_error(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        session = at.client.session
        message = session.message("execute_request", {"code": "where"})
        frames = session.serialize_message(message)
        frames[5] = b"[1, 2]"
        frames[1] = session._signer.sign(frames[2:6])
        reply = (await at.client.send(message, frames=frames).done()).content
        assert reply["ename"] == "MalformedMessage"
        assert "content" in reply["evalue"]


# -------------------------------------------------------------------------------- while it is busy


@asynccontextmanager
async def blocked_main_shell(kernel: CellsKernel) -> AsyncIterator[tuple[RunningKernel, Client]]:
    """A kernel whose main shell computes, so that its loop stands still, and a client of it.

    The main shell is in another thread, with its `open_kernel`, than the client.
    """
    started, go, leave = Flag(), Flag(), Flag()
    kernel.functions["block"] = lambda cell: (started.set(), go.block())[0]
    running: list[RunningKernel] = []
    ready = Flag()

    async def run_kernel() -> None:
        async with served(kernel) as at:
            running.append(at.running)
            ready.set()
            await leave.wait()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trio.run, run_kernel)
            await ready.wait()
            async with open_client(running[0].connection) as client:
                cell = client.execute_soon("block")
                await started.wait()
                try:
                    yield running[0], client
                finally:
                    go.set()
                    assert (await cell.done()).status == "ok"
                    leave.set()


async def test_a_client_can_connect_to_a_busy_kernel(kernel: CellsKernel) -> None:
    async with blocked_main_shell(kernel) as (running, client):
        assert client.welcomed.is_set()
        async with open_client(running.connection, "late") as late:
            for channel in ("shell", "control"):
                info = late.request("kernel_info_request", channel=channel)  # type: ignore[arg-type]
                assert (await info.done()).content["implementation"] == "cells"
            connect = (await late.request("connect_request").done()).content
            assert running.connection is not None
            assert connect["shell_port"] == running.connection.shell_port


async def test_subshells_live_while_the_main_shell_is_busy(kernel: CellsKernel) -> None:
    async with blocked_main_shell(kernel) as (_, client):
        subshell_id = await client.create_subshell()
        exchange = client.execute_soon("where", subshell=subshell_id)
        assert (await exchange.done()).status == "ok"
        assert exchange.text() == subshell_id
        listed = (await client.control("list_subshell_request")).content
        assert listed["subshell_id"] == [subshell_id]
        deleted = (await client.control("delete_subshell_request", subshell_id=subshell_id)).content
        assert deleted == {"status": "ok"}


async def test_what_comes_before_the_main_shell_is_there_is_served_in_order() -> None:
    """Clients connect while the author's code still sets itself up."""
    begun, go = Flag(), Flag()

    class SlowStart(CellsKernel):
        @asynccontextmanager
        async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
            connections.append(kernel.connection)
            begun.set()
            await go.wait()
            yield

    kernel, connections = SlowStart(), []  # type: ignore[var-annotated]
    done = trio.Event()

    async def run() -> None:
        async with served(kernel):
            await done.wait()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await begun.wait()
            async with open_client(connections[0], "early") as client:
                exchanges = [client.execute_soon("") for _ in range(20)]
                created = client.control_soon("create_subshell_request")
                info = (await client.request("kernel_info_request").done()).content
                assert info["status"] == "ok"
                assert not any(each.replies for each in [*exchanges, created])
                go.set()
                counts = [(await each.done()).content["execution_count"] for each in exchanges]
                assert counts == list(range(1, 21))
                assert (await created.done()).status == "ok"
                done.set()


async def test_kernel_info(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        info = (await at.client.request("kernel_info_request").done()).content
        assert info == {
            "status": "ok",
            "protocol_version": PROTOCOL_VERSION,
            "implementation": "cells",
            "implementation_version": "1.0",
            "language_info": {
                "name": "cells",
                "version": "",
                "mimetype": "text/plain",
                "file_extension": ".txt",
            },
            "banner": "Cells",
            "help_links": [],
            "debugger": False,
            "supported_features": list(SUBSHELL_FEATURES),
        }
        assert (await at.client.control("kernel_info_request")).content == info


async def test_a_flood_is_refused_beyond_its_bound(
    kernel: CellsKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shell, "MOST_PENDING", 10)
    go = Flag()

    @kernel.cell
    async def wait(cell: ts.Cell) -> None:
        await go.wait()

    async with served(kernel) as at:
        accepted = [at.client.execute_soon("wait") for _ in range(10)]
        refused = at.client.execute_soon("where")
        assert (await refused.done()).ename == "TooManyRequests"
        subshell_id = await at.client.create_subshell()
        elsewhere = at.client.execute_soon("where", subshell=subshell_id)
        assert (await elsewhere.done()).status == "ok"
        go.set()
        for each in accepted:
            assert (await each.done()).status == "ok"
        assert (await at.client.execute("where")).status == "ok"


async def test_an_old_client_shuts_the_kernel_down_on_the_shell_channel(
    kernel: CellsKernel,
) -> None:
    async with served(kernel) as at:
        exchange = at.client.request("shutdown_request", {"restart": True})
        assert (await exchange.done()).content == {"status": "ok", "restart": True}
        await at.running.wait_closed()


async def test_every_subscriber_is_welcomed(kernel: CellsKernel) -> None:
    async with served(kernel) as at:
        for number in range(3):
            async with open_client(at.running.connection, f"{number}") as client:
                await client.welcomed.wait()
                # From the welcome on, a subscriber misses nothing.
                assert (await client.execute("where")).status == "ok"


async def test_what_is_asked_before_anybody_listens_loses_no_output(
    kernel: CellsKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client's iopub socket may connect long after its shell socket: ZMQ tries each by itself.
    monkeypatch.setattr(_shell, "SUBSCRIBER_PATIENCE", HANG)
    with trio.fail_after(HANG):
        async with (
            open_kernel(kernel, ConnectionInfo.local()) as running,
            open_client(running.connection, listens=False) as client,
        ):
            early = [client.execute_soon("where") for _ in range(3)]
            # It is told who the kernel is nevertheless, and this process needs no listener.
            await client.request("kernel_info_request").reply()
            assert (await running.main.execute("where")).status == "ok"
            assert not any(exchange.replies for exchange in early)
            await client.listen()
            for count, exchange in enumerate(early, start=2):
                reply = (await exchange.done()).content
                assert (reply["status"], reply["execution_count"]) == ("ok", count)
                assert exchange.text() == "main"


async def test_a_client_that_never_listens_is_served(
    kernel: CellsKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shell, "SUBSCRIBER_PATIENCE", 0.001)
    with trio.fail_after(HANG):
        async with (
            open_kernel(kernel, ConnectionInfo.local()) as running,
            open_client(running.connection, listens=False) as client,
        ):
            assert (await client.execute_soon("where").reply()).content["status"] == "ok"


async def test_what_waits_for_a_listener_is_aborted_with_the_kernel(
    kernel: CellsKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shell, "SUBSCRIBER_PATIENCE", HANG)
    with trio.fail_after(HANG):
        async with (
            open_kernel(kernel, ConnectionInfo.local()) as running,
            open_client(running.connection, listens=False) as client,
        ):
            early = client.execute_soon("where")
            await client.request("kernel_info_request").reply()  # behind it on the same socket
            shutdown = client.control_soon("shutdown_request", restart=False)
            assert (await early.reply()).content["status"] == "aborted"
            assert (await shutdown.reply()).content["status"] == "ok"
