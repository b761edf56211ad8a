"""The startup handshake (JEP 66), against a registration service of the test's own.

The service is a ROUTER of pyzmq's that makes and verifies its signatures by itself, as the
messaging specification ("Kernel startup handshake") describes it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import zmq
from trio.testing import MockClock

import trio_subshells as ts
from trio_subshells.kernel import RegistrationFailed, RunningKernel, _main, serve
from trio_subshells.kernel._registration import connection_file, register
from trio_subshells.wire import CHANNELS, ConnectionInfo, RegistrationInfo

from .helpers import HANG, CellsKernel, open_client

KEY = b"a0436f6c-1916-498b-8eb9-e81ab9368e84"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where connection files go."""
    path = tmp_path / "runtime"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(path))
    return path


class Service:
    """Where kernels register. Its methods block: call them in a thread."""

    def __init__(self, socket: zmq.Socket[bytes], port: int) -> None:
        self.socket = socket
        self.port = port

    def fields(self, **changes: Any) -> dict[str, Any]:
        """What is in the registration file for a kernel."""
        return {
            "kernel_id": "unique_kernel_id",
            "transport": "tcp",
            "registration_ip": "127.0.0.1",
            "registration_port": self.port,
            "signature_scheme": "hmac-sha256",
            "key": KEY.decode(),
            **changes,
        }

    def receive(self) -> tuple[bytes, dict[str, Any]]:
        """Wait for a kernel; return its identity and what it says."""
        frames: list[bytes] = []
        while len(frames) != 4:  # a kernel's client may knock at a port that was its kernel's
            frames = self.socket.recv_multipart()
        identity, delimiter, signature, content = frames
        assert delimiter == b"<IDS|MSG>"
        assert signature == hmac.new(KEY, content, hashlib.sha256).hexdigest().encode()
        said = json.loads(content)
        assert isinstance(said, dict)
        return identity, said

    def acknowledge(self, identity: bytes, *, key: bytes = KEY, content: bytes = b"ACK") -> None:
        signature = hmac.new(key, content, hashlib.sha256).hexdigest().encode()
        self.socket.send_multipart([identity, b"<IDS|MSG>", signature, content])


@contextmanager
def registration_service() -> Iterator[Service]:
    context = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.rcvtimeo = HANG * 1000
            yield Service(socket, socket.bind_to_random_port("tcp://127.0.0.1"))
    finally:
        context.term()


@pytest.fixture
def service() -> Iterator[Service]:
    with registration_service() as service:
        yield service


@pytest.fixture
def kernel() -> CellsKernel:
    kernel = CellsKernel()

    @kernel.cell
    def hello(cell: ts.Cell) -> None:
        cell.stdout("hello")

    return kernel


@asynccontextmanager
async def started(
    kernel: ts.Kernel, where: Any, service: Service
) -> AsyncIterator[tuple[Any, Any]]:
    """A kernel that is served and has been acknowledged, and what it told the service."""
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            told: list[dict[str, Any]] = []

            async def answer() -> None:
                identity, said = await trio.to_thread.run_sync(service.receive)
                told.append(said)
                service.acknowledge(identity)

            nursery.start_soon(answer)
            running: RunningKernel = await nursery.start(serve, kernel, where)
            yield running, told[0]
            nursery.cancel_scope.cancel()


async def test_a_kernel_tells_the_ports_that_it_chose(
    kernel: CellsKernel, service: Service, tmp_path: Path, runtime: Path
) -> None:
    path = tmp_path / "registration.json"
    path.write_text(json.dumps(service.fields()))
    path.chmod(0o600)
    async with started(kernel, path, service) as (running, told):
        assert told.pop("kernel_id") == "unique_kernel_id"
        assert sorted(told) == sorted(f"{name}_port" for name in CHANNELS)
        assert all(isinstance(port, str) for port in told.values())
        ports = {name: int(port) for name, port in told.items()}
        assert len({*ports.values(), service.port}) == 6
        # Nobody told the service more than these ports; it has the rest.
        connection = ConnectionInfo(key=KEY, **ports)
        async with open_client(connection) as client:
            exchange = client.execute_soon("hello")
            assert (await exchange.done()).status == "ok"
            assert exchange.text() == "hello"
        # Other clients find it too.
        (written,) = runtime.iterdir()
        assert written.name == "kernel-unique_kernel_id.json"
        assert ConnectionInfo.from_file(written) == connection == running.connection
    assert list(runtime.iterdir()) == []
    assert path.exists(), "it isn't the kernel's"


@pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
async def test_its_channels_may_be_encrypted(kernel: CellsKernel, service: Service) -> None:
    public, secret = zmq.curve_keypair()
    fields = service.fields(curve_publickey=public.decode(), curve_secretkey=secret.decode())
    async with (
        started(kernel, RegistrationInfo.from_dict(fields), service) as (running, _),
        open_client(running.connection) as client,
    ):
        assert running.connection.curve_publickey == public
        assert (await client.execute("hello")).status == "ok"


async def test_without_an_acknowledgement_it_ends(
    kernel: CellsKernel, service: Service, runtime: Path
) -> None:
    where = RegistrationInfo.from_dict(service.fields())
    with trio.fail_after(HANG), pytest.raises(RegistrationFailed) as caught:
        await serve(kernel, where, registration_timeout=0.2)
    words = str(caught.value)
    assert f"tcp://127.0.0.1:{service.port}" in words
    assert "within 0.2 s; there was no answer at all" in words
    assert service.receive()[1]["kernel_id"] == "unique_kernel_id", "it was told"
    assert not runtime.exists()


def test_a_program_says_so_in_a_line(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_main, "serve", partial(serve, registration_timeout=0.2))
    path = tmp_path / "registration.json"
    path.write_text(json.dumps(service.fields()))
    interval = sys.getswitchinterval()
    try:
        with pytest.raises(SystemExit) as left:
            ts.main(CellsKernel, ["-f", str(path)])
    finally:
        sys.setswitchinterval(interval)
    words = str(left.value.code)
    assert f"tcp://127.0.0.1:{service.port} has not acknowledged this kernel" in words
    assert "\n" not in words


async def test_an_answer_of_somebody_without_the_key_is_none(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    where = RegistrationInfo.from_dict(service.fields())

    def lie_then_answer() -> None:
        identity, _ = service.receive()
        service.socket.send_multipart([identity, b"ACK"])
        service.acknowledge(identity, key=b"a guess")
        service.socket.send_multipart([identity, b"<IDS|MSG>", b"", b"ACK"])
        service.acknowledge(identity, content=b'{"status": "ok"}')

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lie_then_answer)
            await register(where, ConnectionInfo(), timeout=HANG)
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    (said,) = [each for each in warnings if f"tcp://127.0.0.1:{service.port}" in each]
    assert "isn't signed" in said


async def test_who_only_lies_is_not_believed(
    service: Service, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = RegistrationInfo.from_dict(service.fields())
    heard = trio.Event()
    monkeypatch.setattr(logging.getLogger("trio_subshells.kernel"), "handle", lambda _: heard.set())

    def lie() -> None:
        identity, _ = service.receive()
        for _ in range(3):
            service.acknowledge(identity, key=b"a guess")

    async with trio.open_nursery() as nursery:

        async def let_time_pass() -> None:
            await trio.to_thread.run_sync(lie)
            await heard.wait()
            mock_clock.jump(11)

        nursery.start_soon(let_time_pass)
        with pytest.raises(RegistrationFailed, match=r"\d answers, none with a valid signature"):
            await register(where, ConnectionInfo(), timeout=10)


async def test_it_may_be_told_before_anybody_listens() -> None:
    """The service opens its socket late, or somebody restarts it."""
    with registration_service() as service:
        fields = service.fields()
    told = []
    finished: queue.Queue[None] = queue.Queue()

    def listen() -> None:
        context = zmq.Context()
        try:
            with context.socket(zmq.ROUTER) as socket:
                socket.linger = 0
                socket.rcvtimeo = HANG * 1000
                socket.bind(f"tcp://127.0.0.1:{fields['registration_port']}")
                late = Service(socket, fields["registration_port"])
                identity, said = late.receive()
                told.append(said)
                late.acknowledge(identity)
                # Until the kernel has it, nothing may be closed.
                finished.get()
        finally:
            context.term()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, listen)
            await register(
                RegistrationInfo.from_dict(fields), ConnectionInfo(hb_port=5), timeout=HANG
            )
            finished.put(None)
    assert told[0]["hb_port"] == "5"


async def test_a_kernel_whose_owner_has_gone_waits_for_no_acknowledgement(
    kernel: CellsKernel, service: Service
) -> None:
    where = RegistrationInfo.from_dict(service.fields())

    async def until() -> None:
        await trio.to_thread.run_sync(service.receive)  # it has told, and now nobody is there

    with trio.fail_after(HANG):
        await serve(kernel, where, until=until)


def test_the_connection_file_is_named_by_the_id_and_nothing_is_overwritten(runtime: Path) -> None:
    info = RegistrationInfo(registration_ip="127.0.0.1", registration_port=1, kernel_id="abc-1")
    assert connection_file(info) == runtime / "kernel-abc-1.json"
    runtime.mkdir()
    (runtime / "kernel-abc-1.json").write_text("the registration file, perhaps")
    other = connection_file(info)
    assert other.parent == runtime
    assert not other.exists()
    assert "abc-1" in other.name
    climbing = connection_file(attrs.evolve(info, kernel_id="../../etc/passwd"))
    assert climbing.parent == runtime
    assert connection_file(attrs.evolve(info, kernel_id="")).parent == runtime


async def test_a_connection_file_that_cant_be_written_is_no_misfortune(
    kernel: CellsKernel, service: Service, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.write_text("no directory")
    where = RegistrationInfo.from_dict(service.fields())
    async with (
        started(kernel, where, service) as (running, _),
        open_client(running.connection) as client,
    ):
        assert (await client.execute("hello")).status == "ok"
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    # Somebody else's client may knock at a port that was its kernel's: that is told, too.
    (said,) = [each for each in warnings if "other clients won't find this kernel" in each]
    assert str(runtime) in said
