"""Slow subscribers of the iopub device: what is held for them is bounded; others lose nothing."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import zmq

from trio_subshells.sockets import (
    Context,
    SubscriberLimits,
    open_context,
    open_iopub_device,
    open_publisher,
)
from trio_subshells.sockets._subscribers import _addresses_of, _Connection, _disconnect

HANG = 60
MEGABYTE = bytes(1_000_000)
NEVER = 1 << 60
PATIENT = SubscriberLimits(patience=1 << 22, patience_seconds=0.2, most=NEVER, ceiling=NEVER)
STRICT = SubscriberLimits(patience=1 << 22, patience_seconds=1e9, most=1 << 23, ceiling=NEVER)


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if request.param == "ipc":
        if sys.platform == "win32":
            pytest.skip("no ipc")
        return f"ipc://{tmp_path}/iopub"
    return "tcp://127.0.0.1:0"


@pytest.mark.parametrize("url", ["tcp", "ipc"], indirect=True)
@pytest.mark.parametrize("limits", [PATIENT, STRICT], ids=["patient", "strict"])
async def test_who_does_not_read_is_disconnected(
    context: Context, limits: SubscriberLimits, url: str
) -> None:
    """And nobody else; nobody else loses anything."""
    lost: list[tuple[int, str]] = []
    found = trio.Event()

    def on_loss(count: int, what: str) -> None:
        lost.append((count, what))
        found.set()

    with ExitStack() as stack:
        clients = stack.enter_context(open_context())
        lazy, eager = [
            stack.enter_context(clients.socket(zmq.SUB, subscribe=b"", rcvhwm=hwm, linger=0))
            for hwm in (1, 0)
        ]
        stack.enter_context(trio.fail_after(HANG))
        async with open_iopub_device(context, url, limits=limits, on_loss=on_loss) as device:
            for client in (lazy, eager):
                # Disconnected, it stays away: else it would come back and be lost again.
                client.set(zmq.RECONNECT_IVL, -1)
                client.connect(device.url)
                await device.publisher.receive_subscription()
            async with open_publisher(context, device.publisher_url) as publisher:
                for number in range(30):
                    publisher.publish([b"%d" % number, MEGABYTE])
                    assert (await eager.receive())[0] == b"%d" % number
                await found.wait()
                assert publisher.statistics().messages_dropped == 0
                publisher.publish([b"last"])
                assert await eager.receive() == [b"last"]
            assert len(lost) == 1
            assert lost[0][0] == 1
            assert "disconnected" in lost[0][1]


@pytest.mark.skipif(sys.platform == "win32", reason="there, sockets have no descriptors")
def test_a_descriptor_that_is_a_strangers_by_now_is_left_alone() -> None:
    """The connection that it stood for has ended, and that is yet to be heard of."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def connect() -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            return stack.enter_context(listener.accept()[0]), client

        (lazy, _), (stranger, strangers_client) = connect(), connect()
        addresses = _addresses_of(lazy.fileno())
        assert addresses is not None
        os.dup2(stranger.fileno(), lazy.fileno())
        assert not _disconnect(_Connection(lazy.fileno(), addresses))
        stranger.sendall(b"it goes on")
        assert strangers_client.recv(10) == b"it goes on"


async def test_with_nobody_to_disconnect_what_is_large_is_not_published(context: Context) -> None:
    """A subscriber in the same process has no connection that could be shut down."""
    limits = SubscriberLimits(patience=1 << 20, patience_seconds=0.1, most=1 << 21, ceiling=1 << 22)
    lost: list[int] = []
    told = trio.Event()

    def on_loss(count: int, what: str) -> None:
        lost.append(count)
        told.set()

    with trio.fail_after(HANG):
        async with open_iopub_device(
            context, "inproc://iopub", limits=limits, on_loss=on_loss
        ) as device:
            with context.socket(zmq.SUB, subscribe=b"", rcvhwm=0) as lazy:
                lazy.connect(device.url)
                await device.publisher.receive_subscription()
                for _ in range(20):
                    device.publisher.publish([b"x", MEGABYTE])
                device.publisher.publish([b"small"])
                dropped = device.publisher.statistics().messages_dropped
                assert 10 <= dropped <= 16
                await told.wait()
                taken = [await lazy.receive() for _ in range(20 - dropped + 1)]
                assert taken[-1] == [b"small"]
            assert sum(lost) == dropped


async def test_a_burst_for_clients_who_read_is_all_theirs(context: Context) -> None:
    """More than the limits at once: whoever takes it gets it, whoever is behind for a moment."""
    limits = SubscriberLimits(patience=1 << 20, patience_seconds=30, most=NEVER, ceiling=NEVER)
    lost: list[str] = []
    with ExitStack() as stack:
        other = stack.enter_context(open_context())
        clients = [
            stack.enter_context(other.socket(zmq.SUB, subscribe=b"", rcvhwm=0)) for _ in range(3)
        ]
        stack.enter_context(trio.fail_after(HANG))
        async with open_iopub_device(
            context,
            "tcp://127.0.0.1:0",
            limits=limits,
            on_loss=lambda count, what: lost.append(what),
        ) as device:
            for client in clients:
                client.connect(device.url)
                await device.publisher.receive_subscription()
            for number in range(100):
                device.publisher.publish([b"%d" % number, MEGABYTE])
            for client in clients:
                for number in range(100):
                    assert (await client.receive())[0] == b"%d" % number
    assert lost == []


async def test_a_burst_of_small_messages_counts_too(context: Context) -> None:
    lost = trio.Event()
    with ExitStack() as stack:
        other = stack.enter_context(open_context())
        lazy = stack.enter_context(other.socket(zmq.SUB, subscribe=b"", rcvhwm=1, linger=0))
        stack.enter_context(trio.fail_after(HANG))
        async with open_iopub_device(
            context, "tcp://127.0.0.1:0", limits=PATIENT, on_loss=lambda count, what: lost.set()
        ) as device:
            lazy.set(zmq.RECONNECT_IVL, -1)
            lazy.connect(device.url)
            await device.publisher.receive_subscription()
            for _ in range(20_000):
                device.publisher.publish([b"x", bytes(500)])
            await lost.wait()


async def test_its_end_does_not_wait_for_who_does_not_read(context: Context) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(open_context())
        lazy = stack.enter_context(other.socket(zmq.SUB, subscribe=b"", rcvhwm=1, linger=0))
        stack.enter_context(trio.fail_after(HANG))
        async with open_iopub_device(
            context, "tcp://127.0.0.1:0", limits=PATIENT, linger=0
        ) as device:
            lazy.connect(device.url)
            await device.publisher.receive_subscription()
            for _ in range(50):
                device.publisher.publish([b"x", MEGABYTE])
