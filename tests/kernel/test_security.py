"""Who can connect to a kernel, and who can't: CURVE on all five channels, and ipc."""

from __future__ import annotations

import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import zmq
from zmq.utils.monitor import recv_monitor_message

import trio_subshells as ts
from trio_subshells.kernel import open_kernel
from trio_subshells.kernel._drops import DropReason
from trio_subshells.kernel._open import _addresses
from trio_subshells.wire import (
    CHANNELS,
    Channel,
    ConnectionInfo,
    InvalidConnectionInfo,
    MalformedReason,
    WireSession,
)

from .helpers import HANG, CellsKernel, local_connection, served

KINDS: dict[Channel, int] = {
    "shell": zmq.DEALER,
    "control": zmq.DEALER,
    "stdin": zmq.DEALER,
    "iopub": zmq.SUB,
    "hb": zmq.REQ,
}
HANDSHAKES = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: True,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: False,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: False,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: False,
}

needs_curve = pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
needs_ipc = pytest.mark.skipif(
    sys.platform == "win32" or not zmq.has("ipc"), reason="no sockets in the file system here"
)


@pytest.fixture
def kernel() -> CellsKernel:
    kernel = CellsKernel()

    @kernel.cell
    def hello(cell: ts.Cell) -> None:
        cell.stdout("hello to those who may hear it")

    @kernel.cell
    async def ask(cell: ts.Cell) -> None:
        cell.stdout(await cell.input("who? "))

    return kernel


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of its own with a short name: the path of a socket can't be long."""
    with tempfile.TemporaryDirectory(prefix="ipc") as path:
        yield Path(path)


def encrypted(**changes: Any) -> ConnectionInfo:
    """A new connection with keys for CURVE, as jupyter_client provides them."""
    public, secret = zmq.curve_keypair()
    keys = {"curve_publickey": public, "curve_secretkey": secret}
    return attrs.evolve(local_connection(), **keys, **changes)


@asynccontextmanager
async def opened(connection: ConnectionInfo) -> AsyncIterator[ConnectionInfo]:
    """A kernel without a client of ours; yields where it listens."""
    with trio.fail_after(HANG):
        async with open_kernel(CellsKernel(), connection) as running:
            assert running.connection is not None
            yield running.connection


def shakes_hands(kind: int, url: str, options: dict[str, bytes]) -> bool:
    """Connect; return whether the other side lets it in. It blocks."""
    context = zmq.Context()
    try:
        with context.socket(kind) as socket:
            socket.linger = 0
            for name, value in options.items():
                socket.set(zmq.SocketOption[name.upper()], value)
            with socket.get_monitor_socket(sum(HANDSHAKES)) as monitor:
                socket.connect(url)
                monitor.rcvtimeo = HANG * 1000
                event = recv_monitor_message(monitor)["event"]
                socket.disable_monitor()
    finally:
        context.term()
    return HANDSHAKES[event]


async def is_let_in(connection: ConnectionInfo, channel: Channel, **options: bytes) -> bool:
    connect = partial(shakes_hands, KINDS[channel], connection.url(channel), options)
    return await trio.to_thread.run_sync(connect)


def keys_of_a_client() -> dict[str, bytes]:
    public, secret = zmq.curve_keypair()
    return {"curve_publickey": public, "curve_secretkey": secret}


# ------------------------------------------------------------------------------------ CURVE


@needs_curve
@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=needs_ipc)])
async def test_only_who_has_the_public_key_is_let_in(transport: str, directory: Path) -> None:
    """On each of the five channels; JEP 145: a client's own keys may be any."""
    asked = encrypted()
    if transport == "ipc":
        asked = attrs.evolve(asked, transport="ipc", ip=str(directory / "k"))
    public, secret = asked.curve_publickey, asked.curve_secretkey
    assert public is not None
    assert secret is not None
    stranger, _ = zmq.curve_keypair()
    async with opened(asked) as connection:
        for channel in CHANNELS:
            enters = partial(is_let_in, connection, channel)
            assert not await enters(), f"{channel}: a client without CURVE"
            assert not await enters(**keys_of_a_client(), curve_serverkey=stranger), (
                f"{channel}: a client that has another kernel's key"
            )
            assert await enters(**keys_of_a_client(), curve_serverkey=public), channel
            # This is what jupyter_client does, but for the heartbeat.
            assert await enters(
                curve_publickey=public, curve_secretkey=secret, curve_serverkey=public
            ), channel


@needs_curve
async def test_every_channel_works_encrypted(kernel: CellsKernel) -> None:
    async with served(kernel, encrypted()) as at:
        exchange = at.client.execute_soon("hello")
        assert (await exchange.done()).status == "ok"
        assert exchange.text() == "hello to those who may hear it"
        assert (await at.client.control("kernel_info_request")).status == "ok"
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("ask", allow_stdin=True, subshell=subshell_id)
        at.client.answer(await at.client.prompt(), "me")
        assert (await exchange.done()).status == "ok"
        assert exchange.text() == "me"
        assert at.running.connection is not None
        assert await trio.to_thread.run_sync(echoes, at.running.connection)


def echoes(connection: ConnectionInfo) -> bool:
    """Send a heartbeat as jupyter_client does: with keys that are made for it. It blocks."""
    context = zmq.Context()
    try:
        with context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.rcvtimeo = HANG * 1000
            for name, value in keys_of_a_client().items():
                socket.set(zmq.SocketOption[name.upper()], value)
            assert connection.curve_publickey is not None
            socket.curve_serverkey = connection.curve_publickey
            socket.connect(connection.url("hb"))
            socket.send(b"ping")
            return socket.recv() == b"ping"
    finally:
        context.term()


@needs_curve
async def test_a_stranger_costs_the_others_nothing(kernel: CellsKernel) -> None:
    """It keeps trying, as libzmq does, with messages that would be right; it gets no answer."""
    async with served(kernel, encrypted()) as at:
        connection = at.running.connection
        assert connection is not None
        stranger, _ = zmq.curve_keypair()
        session = WireSession(connection.key)
        context = zmq.Context()
        sockets = []
        try:
            for serverkey in (None, stranger):
                for channel in ("shell", "control", "iopub"):
                    socket = context.socket(KINDS[channel])
                    sockets.append(socket)
                    socket.linger = 0
                    if serverkey is not None:
                        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                        socket.curve_serverkey = serverkey
                    socket.connect(connection.url(channel))
                    if channel == "iopub":
                        socket.subscribe(b"")
                    else:
                        content = {"code": "hello", "restart": False}
                        socket.send_multipart(session.serialize("execute_request", content))
                        socket.send_multipart(session.serialize("shutdown_request", content))
            for count in range(1, 21):
                exchange = at.client.execute_soon("hello")
                assert (await exchange.done()).content["execution_count"] == count
                assert exchange.text() == "hello to those who may hear it"
            assert [socket.poll(0) for socket in sockets] == [0] * len(sockets)
            assert not any(each.parent_header for each in at.client.strays), "done for a stranger"
        finally:
            context.destroy(linger=0)


@pytest.mark.parametrize("is_encrypted", [False, pytest.param(True, marks=needs_curve)])
async def test_what_is_said_cant_be_read_on_the_way(
    is_encrypted: bool, kernel: CellsKernel, nursery: trio.Nursery
) -> None:
    """Between client and kernel sits somebody who records; without CURVE it reads everything."""
    recorded = bytearray()
    asked = encrypted() if is_encrypted else ConnectionInfo.local()
    async with served(kernel, asked) as at:
        connection = at.running.connection
        assert connection is not None

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for data in source:
                recorded.extend(data)
                await sink.send_all(data)

        async def relay(client: trio.SocketStream) -> None:
            assert connection is not None
            there = await trio.open_tcp_stream(connection.ip, connection.iopub_port)
            async with there, trio.open_nursery() as pumps:
                pumps.start_soon(pump, client, there)
                pumps.start_soon(pump, there, client)

        listeners = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        context = zmq.Context()
        try:
            with context.socket(zmq.SUB) as socket:
                socket.linger = 0
                socket.rcvtimeo = HANG * 1000
                if connection.curve_publickey is not None:
                    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                    socket.curve_serverkey = connection.curve_publickey
                socket.subscribe(b"")
                socket.connect(f"tcp://127.0.0.1:{port}")
                frames = await trio.to_thread.run_sync(socket.recv_multipart)
                assert b"iopub_welcome" in b"".join(frames)
                exchange = at.client.execute_soon("hello")
                await exchange.done()
                while b"hello to those" not in b"".join(frames):
                    frames = await trio.to_thread.run_sync(socket.recv_multipart)
        finally:
            context.term()
        assert (b"hello to those" in recorded) is not is_encrypted
        nursery.cancel_scope.cancel()


@needs_curve
@pytest.mark.parametrize("has_keys", [False, True])
async def test_a_stranger_is_logged_once_and_counted(
    has_keys: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With keys it tries again every tenth of a second; the log must not fill up with that."""
    watched: tuple[Channel, ...] = ("shell", "control", "stdin", "iopub")
    options: dict[str, bytes] = {}
    if has_keys:
        public, _ = zmq.curve_keypair()
        options = {**keys_of_a_client(), "curve_serverkey": public}
    with trio.fail_after(HANG):
        async with open_kernel(CellsKernel(), encrypted()) as running:
            assert running.connection is not None
            for _ in range(3):
                for channel in watched:
                    assert not await is_let_in(running.connection, channel, **options)
            counts: dict[str, int] = {}
            while sum(counts.values()) < 12:
                dropped = (await running.statistics()).dropped
                assert {each.reason for each in dropped} <= {DropReason.REFUSED}
                counts = {each.channel: each.count for each in dropped}
            assert sorted(counts) == sorted(watched)
            for channel in counts:
                first = next(each for each in caplog.messages if f"{channel} channel" in each)
                assert "CURVE" in first
            assert len(caplog.messages) < 12


async def test_what_a_kernel_publishes_cant_be_sent_back_to_it(kernel: CellsKernel) -> None:
    """It is signed with the key that clients sign with, and without CURVE anybody can hear it."""

    @kernel.cell
    def publish(cell: ts.Cell) -> None:
        cell.publish("comm_open", {"comm_id": "c", "target_name": "t", "data": {}})

    async with served(kernel) as at:
        connection = at.running.connection
        assert connection is not None
        context = zmq.Context()
        try:
            with context.socket(zmq.SUB) as ear, context.socket(zmq.DEALER) as mouth:
                ear.linger = mouth.linger = 0
                ear.rcvtimeo = HANG * 1000
                ear.subscribe(b"")
                ear.connect(connection.url("iopub"))
                mouth.connect(connection.url("shell"))
                await trio.to_thread.run_sync(ear.recv_multipart)  # it is welcome
                assert (await at.client.execute("publish")).status == "ok"
                frames: list[bytes] = []
                while b'"comm_open"' not in b"".join(frames):
                    frames = await trio.to_thread.run_sync(ear.recv_multipart)
                mouth.send_multipart(frames)
                mouth.send_multipart(WireSession(connection.key).serialize("kernel_info_request"))
                await trio.to_thread.run_sync(mouth.poll, HANG * 1000)  # so it has read the other
        finally:
            context.term()
        dropped = (await at.running.statistics()).dropped
        assert [(each.channel, each.reason, each.count) for each in dropped] == [
            ("shell", MalformedReason.REFLECTED, 1)
        ]


@needs_curve
def test_an_encrypted_connection_may_be_one_of_ipv6() -> None:
    _, options = _addresses(attrs.evolve(encrypted(), ip="::1"))
    assert options["ipv6"]
    assert options["curve_server"]


@needs_curve
async def test_keys_that_dont_belong_together_are_refused() -> None:
    one, other = encrypted(), encrypted()
    asked = attrs.evolve(one, curve_publickey=other.curve_publickey)
    with pytest.raises(InvalidConnectionInfo, match="belongs to curve_secretkey") as caught:
        async with opened(asked):
            raise AssertionError("nobody could connect to it")
    assert asked.curve_secretkey is not None
    assert asked.curve_secretkey.decode() not in str(caught.value)
    asked = attrs.evolve(one, curve_secretkey=b"~" * 40)
    with pytest.raises(InvalidConnectionInfo, match=r"curve_secretkey must be .* in Z85"):
        async with opened(asked):
            raise AssertionError("nobody could connect to it")


async def test_a_libzmq_without_curve_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = attrs.evolve(
        ConnectionInfo.local(), curve_publickey=b"p" * 40, curve_secretkey=b"s" * 40
    )
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    with pytest.raises(InvalidConnectionInfo, match=r"built with CURVE.*transport_encryption"):
        async with opened(asked):
            raise AssertionError("it isn't encrypted")


# -------------------------------------------------------------------------------------- ipc


@needs_ipc
@pytest.mark.parametrize("is_encrypted", [False, pytest.param(True, marks=needs_curve)])
async def test_ipc_on_all_channels(
    is_encrypted: bool, kernel: CellsKernel, directory: Path
) -> None:
    asked = encrypted() if is_encrypted else ConnectionInfo.local()
    asked = attrs.evolve(asked, transport="ipc", ip=str(directory / "kernel-ipc"))
    async with served(kernel, asked) as at:
        files = sorted(directory.iterdir())
        assert [path.name for path in files] == [f"kernel-ipc-{n}" for n in range(1, 6)]
        assert all(stat.S_ISSOCK(path.stat().st_mode) for path in files)
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        exchange = at.client.execute_soon("ask", allow_stdin=True)
        at.client.answer(await at.client.prompt(), "me")
        assert (await exchange.done()).status == "ok"
        assert exchange.text() == "me"
        assert (await at.client.control("kernel_info_request")).status == "ok"
        if is_encrypted:
            assert at.running.connection is not None
            assert await trio.to_thread.run_sync(echoes, at.running.connection)
        (directory / "kernel-ipc-6").touch()
    assert [path.name for path in directory.iterdir()] == ["kernel-ipc-6"], "only its own are gone"


@needs_ipc
async def test_a_kernel_takes_the_addresses_of_one_that_was_killed(directory: Path) -> None:
    """What a restart does: the sockets of the last process are still there."""
    ports = {f"{channel}_port": n for n, channel in enumerate(CHANNELS, 1)}
    asked = attrs.evolve(ConnectionInfo.local(), transport="ipc", ip=str(directory / "k"), **ports)
    async with opened(asked):
        with pytest.raises(zmq.ZMQError, match="somebody listens there already"):
            async with opened(asked):
                raise AssertionError("two kernels at one address")
        assert len(list(directory.iterdir())) == 5
        copies = {path: path.with_suffix(".moved") for path in directory.iterdir()}
        for path, copy in copies.items():
            path.rename(copy)
    for path, copy in copies.items():
        copy.rename(path)  # sockets, and nobody listens
    async with opened(asked) as connection:
        assert connection == asked
    assert list(directory.iterdir()) == []


@needs_ipc
async def test_an_ipc_path_that_is_too_long_is_named(directory: Path) -> None:
    path = directory / ("x" * 120)
    asked = attrs.evolve(ConnectionInfo.local(), transport="ipc", ip=str(path))
    with pytest.raises(zmq.ZMQError, match=rf"{path}-\d: the path has {len(str(path)) + 2} bytes"):
        async with opened(asked):
            raise AssertionError("it was bound")
    assert list(directory.iterdir()) == []
