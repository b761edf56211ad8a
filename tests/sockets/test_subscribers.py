"""Slow subscribers of the iopub device: what is held for them is bounded; others lose nothing."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import trio
import trio.testing
import zmq

from trio_subshells.sockets import (
    Context,
    Ledger,
    SubscriberLimits,
    _subscribers,
    open_context,
    open_iopub_device,
    open_publisher,
)
from trio_subshells.sockets._subscribers import (
    LOOKING_INTERVAL,
    Subscribers,
    _addresses_of,
    _background,
    _bytes_left,
    _can_be_sent_to,
    _Connection,
    _disconnect,
    open_subscribers,
)

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


# -- whom to disconnect ---------------------------------------------------------------------------

MOST, LESS = 1000, 999
FOUR_LOOKS = SubscriberLimits(patience=1, patience_seconds=4 * LOOKING_INTERVAL, most=MOST)


def watching(limits: SubscriberLimits = FOUR_LOOKS) -> Subscribers:
    return Subscribers(
        limits, Ledger(NEVER), lambda *loss: None, lambda reason: None, is_encrypted=False
    )


@pytest.mark.parametrize(
    ("lefts", "held", "lost_at"),
    [
        pytest.param([9] * 20, LESS, 5, id="takes nothing"),
        pytest.param([None] * 20, LESS, 4, id="nobody knows what it takes"),
        pytest.param([9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7], LESS, None, id="takes it slowly"),
        pytest.param([9, 9, 9, "room"] * 5, LESS, None, id="has room now and then"),
        pytest.param(range(20, 0, -1), LESS, None, id="takes something always"),
        pytest.param(range(20, 0, -1), MOST, 3, id="too slow for so much"),
        pytest.param([9, 8, "room"] * 5, MOST, None, id="fast enough for so much"),
    ],
)
def test_who_is_lost(
    lefts: Iterable[int | str | None], held: int, lost_at: int | None, monkeypatch
) -> None:
    """By what is seen at one look after the other."""
    subscribers, connection = watching(), _Connection(1, ("here", "there"))
    lost = []
    for left in lefts:
        monkeypatch.setattr(_subscribers, "_can_be_sent_to", lambda _, left=left: left == "room")
        monkeypatch.setattr(_subscribers, "_bytes_left", lambda _, left=left: left)
        subscribers._look(connection)
        lost.append(subscribers._is_lost(connection, held))
    assert lost.index(True) + 1 == lost_at if lost_at else not any(lost)


async def test_a_descriptor_stands_for_the_connection_that_has_it_now(monkeypatch) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(_subscribers, "_addresses_of", lambda _: ("here", next(numbers)))
    happened = [
        (zmq.EVENT_ACCEPTED, 7),
        (zmq.EVENT_ACCEPTED, 8),
        (zmq.EVENT_DISCONNECTED, 8),
        (zmq.EVENT_ACCEPTED, 9),
        (zmq.EVENT_CLOSED, 9),
        (zmq.EVENT_ACCEPTED, 9),
        (zmq.EVENT_ACCEPTED, 7),  # that the first one has gone is yet to be heard of
    ]
    frames = iter([[struct.pack("=HI", *each), b"tcp://there"] for each in happened])

    async def receive() -> list[bytes]:
        for each in frames:
            return each
        await trio.sleep_forever()
        raise AssertionError

    subscribers = watching()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribers.follow, mock.Mock(spec=["receive"], receive=receive))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = {key: each.addresses for key, each in subscribers._connections.items()}
    assert found == {7: ("here", 4), 9: ("here", 3)}


# -- what the system says of a descriptor ---------------------------------------------------------

systems = pytest.mark.skipif(sys.platform == "win32", reason="there, sockets have no descriptors")


def fill(connection: socket.socket) -> None:
    connection.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            connection.send(bytes(10_000))


@systems
def test_a_descriptor_that_is_no_connections_any_more_is_nobodys(
    count_descriptors: Callable[[], int],
) -> None:
    reads, writes = os.pipe()
    before = count_descriptors()
    assert _addresses_of(reads) is None
    assert not _disconnect(_Connection(reads, ("here", "there")))
    assert count_descriptors() == before
    for each in (reads, writes):
        os.close(each)
    assert _addresses_of(reads) is None
    assert not _disconnect(_Connection(reads, ("here", "there")))


@systems
def test_looking_at_a_connection_leaves_nothing_open(count_descriptors: Callable[[], int]) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        ours = stack.enter_context(listener.accept()[0])
        before = count_descriptors()
        addresses = _addresses_of(ours.fileno())
        assert addresses == (client.getpeername(), client.getsockname())
        assert ours.fileno() >= 0
        client.sendall(b"x")
        assert ours.recv(1) == b"x"
        assert _disconnect(_Connection(ours.fileno(), addresses))
        assert client.recv(1) == b""
        assert count_descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system doesn't tell")
def test_what_a_peer_has_taken_is_seen() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fill(ours)
        full = _bytes_left(ours.fileno())
        theirs.recv(30_000)
        less = _bytes_left(ours.fileno())
        assert full is not None
        assert less is not None
        assert 0 < less < full


@systems
def test_whether_there_is_room_is_seen_of_high_descriptors_too() -> None:
    """Of which a kernel with many subshells has many; select() can't be asked of them."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = 1500
    if limits[1] != resource.RLIM_INFINITY and limits[1] <= high:
        pytest.skip("there are not that many")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if limits[0] <= high:
            resource.setrlimit(resource.RLIMIT_NOFILE, (high + 1, limits[1]))
        try:
            os.dup2(ours.fileno(), high)
            try:
                assert _can_be_sent_to(ours.fileno())
                assert _can_be_sent_to(high)
                fill(ours)
                assert not _can_be_sent_to(ours.fileno())
                assert not _can_be_sent_to(high)
            finally:
                os.close(high)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- who looks ------------------------------------------------------------------------------------


async def test_who_looks_ends_with_the_block_whatever_that_ends_of() -> None:
    ended: list[str] = []

    async def look(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(name)

    with pytest.raises(ZeroDivisionError), trio.fail_after(HANG):
        async with _background(partial(look, "failed")):
            await trio.testing.wait_all_tasks_blocked()
            raise ZeroDivisionError
    assert ended == ["failed"]
    with trio.CancelScope() as scope:
        async with _background(partial(look, "cancelled")):
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert ended == ["failed", "cancelled"]


async def test_who_is_called_as_he_stops_looking_looks_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, enough = 0, trio.Event()

    async def watch(subscribers: Subscribers) -> None:
        nonlocal looked
        looked += 1
        if looked < 20:
            assert subscribers._ledger._alarm is not None
            subscribers._ledger._alarm()  # as a publisher does, in its thread
        else:
            enough.set()

    monkeypatch.setattr(Subscribers, "watch", watch)
    xpub, _ = context._open_raw(zmq.SocketType.XPUB, "xpub", {"linger": 0})
    try:
        with trio.fail_after(HANG):
            async with open_subscribers(
                context, xpub, PATIENT, lambda *loss: None, lambda reason: None
            ):
                await enough.wait()
    finally:
        context._close_raw(xpub, 0)


async def test_who_looks_may_be_the_first_to_see_the_end_of_the_context() -> None:
    async def look() -> None:
        raise trio.BrokenResourceError

    with trio.fail_after(HANG):
        async with _background(look, trio.sleep_forever):
            await trio.testing.wait_all_tasks_blocked()


def test_a_publisher_may_outlive_the_loop_that_looks(context: Context) -> None:
    ledgers: list[Ledger] = []

    async def main() -> None:
        xpub, _ = context._open_raw(zmq.SocketType.XPUB, "xpub", {"linger": 0})
        try:
            async with open_subscribers(
                context, xpub, PATIENT, lambda *loss: None, lambda reason: None
            ) as ledger:
                ledgers.append(ledger)
        finally:
            context._close_raw(xpub, 0)

    trio.run(main)
    loan = ledgers[0].lent([MEGABYTE], PATIENT.patience)
    assert ledgers[0].held == PATIENT.patience
    del loan
