"""Kernels in processes: encrypted ones, registered ones, and what they tell of their keys."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

from trio_subshells.wire import ConnectionInfo, WireSession

from ._client import PATIENCE, free_ports
from .conftest import EXAMPLES

needs_curve = pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
needs_ipc = pytest.mark.skipif(
    sys.platform == "win32" or not zmq.has("ipc"), reason="no sockets in the file system here"
)

# ------------------------------------------------------------------ jupyter_client's own manager


@needs_curve
@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=needs_ipc)])
@pytest.mark.parametrize("name", ["echo", "trio-python"])
def test_jupyter_client_demands_encryption_and_gets_it(name: str, transport: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ipc") as directory:
        manager = KernelManager(
            kernel_name=name,
            transport=transport,
            transport_encryption="required",
            connection_file=f"{directory}/kernel.json",
        )
        manager.start_kernel()
        try:
            assert manager.curve_publickey is not None
            client = manager.client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=PATIENCE)
                # Its first ping may have been sent before anybody listened, and is given up then.
                deadline = time.monotonic() + PATIENCE
                while not client.hb_channel.is_beating():
                    assert time.monotonic() < deadline, "no heartbeat"
                    client.kernel_info(reply=True, timeout=PATIENCE)
                outputs = []
                client.execute_interactive("'1'", timeout=PATIENCE, output_hook=outputs.append)
                assert {each["msg_type"] for each in outputs} & {"execute_result", "stream"}
            finally:
                client.stop_channels()
            assert not hears_anything(manager), "a client without keys"
            manager.request_shutdown()
            assert manager.provisioner.process.wait(PATIENCE) == 0
            left = [path.name for path in Path(directory).iterdir()]
            assert left == ["kernel.json"], "the sockets are gone, before the manager looks"
        finally:
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def hears_anything(manager: KernelManager) -> bool:
    """Whether a client without CURVE is let in on iopub."""
    context = zmq.Context()
    events = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    try:
        with context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.subscribe(b"")
            with socket.get_monitor_socket(events) as monitor:
                socket.connect(manager._make_url("iopub"))
                refused = monitor.poll(PATIENCE * 1000)
                socket.disable_monitor()
            return not refused or socket.poll(0) != 0
    finally:
        context.term()


# --------------------------------------------------------------------------- a registered kernel


def test_a_kernel_that_is_started_with_a_registration_file(tmp_path: Path) -> None:
    """The launcher knows no port before the kernel tells; then jupyter_client's client connects."""
    key = secrets.token_hex(16)
    path = tmp_path / "registration.json"
    context = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as service:
            service.linger = 0
            service.rcvtimeo = PATIENCE * 1000
            fields = {
                "kernel_id": "one",
                "transport": "tcp",
                "registration_ip": "127.0.0.1",
                "registration_port": service.bind_to_random_port("tcp://127.0.0.1"),
                "signature_scheme": "hmac-sha256",
                "key": key,
            }
            path.touch(mode=0o600)
            path.write_text(json.dumps(fields))
            with started("-f", str(path)) as process:
                identity, _, signature, content = service.recv_multipart()
                assert signature.decode() == sign(key, content)
                told = json.loads(content)
                assert told.pop("kernel_id") == "one"
                acknowledgement = sign(key, b"ACK").encode()
                service.send_multipart([identity, b"<IDS|MSG>", acknowledgement, b"ACK"])
                client = BlockingKernelClient(
                    ip="127.0.0.1",
                    session=Session(key=key.encode()),
                    **{name: int(port) for name, port in told.items()},
                )
                client.start_channels(hb=False)  # it takes a kernel that is slow for a dead one
                try:
                    client.wait_for_ready(timeout=PATIENCE)
                    reply = client.kernel_info(reply=True, timeout=PATIENCE)
                    assert reply["content"]["protocol_version"] == "5.6"
                    client.shutdown(reply=True, timeout=PATIENCE)
                finally:
                    client.stop_channels()
                assert process.wait(PATIENCE) == 0
    finally:
        context.term()


@needs_ipc
def test_a_kernel_that_is_ended_by_force_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered, and over ipc, as then it makes files of all kinds."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    key = secrets.token_hex(16)
    path = tmp_path / "registration.json"
    context = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="ipc") as directory:
        try:
            with context.socket(zmq.ROUTER) as service:
                service.linger = 0
                service.rcvtimeo = PATIENCE * 1000
                service.bind(f"ipc://{directory}/k-99")
                fields = {
                    "kernel_id": "one",
                    "transport": "ipc",
                    "registration_ip": f"{directory}/k",
                    "registration_port": 99,
                    "signature_scheme": "hmac-sha256",
                    "key": key,
                }
                path.touch(mode=0o600)
                path.write_text(json.dumps(fields))
                with started("-f", str(path), program=["-m", "trio_subshells"]) as process:
                    identity, *_ = service.recv_multipart()
                    acknowledgement = sign(key, b"ACK").encode()
                    service.send_multipart([identity, b"<IDS|MSG>", acknowledgement, b"ACK"])
                    shut_down_with_a_call_that_never_returns(f"{directory}/k", key)
                    assert process.wait(PATIENCE) == 0
        finally:
            context.term()
        assert [each.name for each in Path(directory).iterdir()] == ["k-99"], (
            "it isn't the kernel's"
        )
    assert list((tmp_path / "runtime").iterdir()) == []


def shut_down_with_a_call_that_never_returns(path: str, key: str) -> None:
    channels = ("shell", "iopub", "stdin", "control", "hb")
    ports = {f"{channel}_port": n for n, channel in enumerate(channels, 1)}
    client = BlockingKernelClient(
        transport="ipc", ip=path, session=Session(key=key.encode()), **ports
    )
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=PATIENCE)
        client.control_channel.send(client.session.msg("create_subshell_request", {}))
        created = client.get_control_msg(timeout=PATIENCE)["content"]
        code = "import ctypes; print('here', flush=True); ctypes.CDLL(None).sleep(1000)"
        cell = client.session.msg("execute_request", {"code": code, "silent": False})
        cell["header"]["subshell_id"] = created["subshell_id"]
        client.shell_channel.send(cell)
        while client.get_iopub_msg(timeout=PATIENCE)["msg_type"] != "stream":
            pass
        client.shutdown()
    finally:
        client.stop_channels()


def sign(key: str, content: bytes) -> str:
    return hmac.new(key.encode(), content, hashlib.sha256).hexdigest()


@contextmanager
def started(
    *argv: str, program: Sequence[str] = (str(EXAMPLES / "echo_kernel.py"),), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A kernel's program, by default the example, with a command line; ended with the block."""
    process = subprocess.Popen([sys.executable, *program, *argv], text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------- what it tells of keys


@needs_curve
def test_no_key_in_what_a_kernel_prints_or_what_the_system_tells(tmp_path: Path) -> None:
    """All that its process prints at --debug, with failures provoked on every channel."""
    public, secret = zmq.curve_keypair()
    key = secrets.token_hex(32)
    info = ConnectionInfo(
        key=key.encode(), curve_publickey=public, curve_secretkey=secret, **free_ports()
    )
    path = tmp_path / "kernel.json"
    info.write_file(path)
    if sys.platform != "win32":
        path.chmod(0o644)  # it warns of that, and may not say what is in it
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        started("-f", str(path), "--debug", stdout=output, stderr=output) as process,
    ):
        client = BlockingKernelClient(connection_file=str(path))
        client.load_connection_file()
        client.start_channels(hb=False)  # it takes a kernel that is slow for a dead one
        try:
            client.wait_for_ready(timeout=PATIENCE)
            system = psutil.Process(process.pid)
            shown = [" ".join(system.cmdline()), json.dumps(system.environ()), system.name()]
            for frames in failures(info):
                client.shell_channel.socket.send_multipart(frames)
                client.control_channel.socket.send_multipart(frames)
                client.stdin_channel.socket.send_multipart(frames)
            client.kernel_info(reply=True, timeout=PATIENCE)  # so all of the above has been read
            client.shutdown(reply=True, timeout=PATIENCE)
        finally:
            client.stop_channels()
        assert process.wait(PATIENCE) == 0
    said = log.read_text()
    assert "dropped" in said, "the failures were noticed"
    if sys.platform != "win32":
        assert "chmod 600" in said
    for text in (said, *shown):
        assert key not in text
        assert secret.decode() not in text
        assert public.decode() not in text


def failures(info: ConnectionInfo) -> list[list[bytes]]:
    """Messages of all kinds that are wrong."""
    right, wrong = WireSession(info.key), WireSession(b"another key")
    replayed = right.serialize("kernel_info_request", {})
    return [
        [b"garbage"],
        [b"<IDS|MSG>", b"too", b"short"],
        wrong.serialize("shutdown_request", {}),
        WireSession(b"").serialize("shutdown_request", {}),
        replayed,
        replayed,
        right.serialize("execute_request", {"code": 7}),
        right.serialize("execute_request", {"code": "x"}, subshell_id="nobody"),
        right.serialize("no_such_request", {}),
        right.serialize("delete_subshell_request", {"subshell_id": "nobody"}),
        right.serialize("input_reply", {}),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"shell_port": "x"},
        {"signature_scheme": "hmac-rot13"},
        {"signature_scheme": "rot13"},
        {"curve_publickey": "{public}", "curve_secretkey": "too-short-secret"},
        {
            "curve_publickey": "{public}",
            "curve_secretkey": "~~~~~~~~~~~~~~~~~~secret~~~~~~~~~~~~~~~~",
        },
        {"curve_secretkey": "{secret}"},
        {"transport": "carrier pigeon"},
        {"ip": "no address"},
        {"registration_port": "x"},
        None,
    ],
)
def test_no_key_in_why_it_cant_start(change: dict[str, Any] | None, tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair() if zmq.has("curve") else (b"p" * 40, b"s" * 40)
    fields = json.loads(json.dumps(ConnectionInfo.local().to_dict()))
    for name, value in (change or {}).items():
        text = value.replace("{public}", public.decode()).replace("{secret}", secret.decode())
        fields[name] = text
    path = tmp_path / "kernel.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(fields) if change is not None else json.dumps(fields)[:-1])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "echo_kernel.py"), "-f", str(path), "--debug"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.splitlines()[-1].startswith("echo_kernel.py: ")
    for each in ("key", "curve_publickey", "curve_secretkey"):
        if each in fields:
            assert str(fields[each]) not in said
