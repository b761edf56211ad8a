"""Sockets in the file system: who may connect, whose file is replaced, whose is removed."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from trio_subshells.sockets import (
    Context,
    open_heartbeat_device,
    open_iopub_device,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not zmq.has("ipc"), reason="no sockets in the file system here"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A private directory with a short name, as pytest's own may be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="ipc") as path:
        yield Path(path)


async def test_the_file_is_the_users_alone_and_goes_with_the_socket(
    context: Context, directory: Path
) -> None:
    path = directory / "socket"
    before = os.umask(0)
    try:
        async with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
            url = server.bind(f"ipc://{path}")
            assert url == f"ipc://{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            client.connect(url)
            await client.send([b"question"])
            identity, _ = await server.receive()
            await server.send([identity, b"answer"])
            assert await client.receive() == [b"answer"]
    finally:
        os.umask(before)
    assert list(directory.iterdir()) == []


async def test_unbinding_removes_it(context: Context, directory: Path) -> None:
    with context.socket(zmq.ROUTER) as server:
        url = server.bind(f"ipc://{directory}/socket")
        server.unbind(url)
        assert list(directory.iterdir()) == []
        server.bind(url)
    assert list(directory.iterdir()) == []


async def test_the_devices_remove_theirs(context: Context, directory: Path) -> None:
    async with (
        open_iopub_device(context, f"ipc://{directory}/iopub") as iopub,
        open_heartbeat_device(f"ipc://{directory}/hb") as heartbeat,
    ):
        assert sorted(path.name for path in directory.iterdir()) == ["hb", "iopub"]
        async with context.socket(zmq.REQ) as client:
            client.connect(heartbeat.url)
            await client.send([b"ping"])
            assert await client.receive() == [b"ping"]
        async with context.socket(zmq.SUB, subscribe=b"") as subscriber:
            subscriber.connect(iopub.url)
            assert (await iopub.publisher.receive_subscription()).subscribed
            iopub.publisher.publish([b"news"])
            assert await subscriber.receive() == [b"news"]
    assert list(directory.iterdir()) == []


async def test_it_is_found_again_from_another_directory(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    with context.socket(zmq.ROUTER) as server:
        assert server.bind("ipc://socket") == "ipc://socket"
        monkeypatch.chdir("/")
    assert list(directory.iterdir()) == []


async def test_a_socket_that_nobody_listens_at_is_replaced(
    context: Context, directory: Path
) -> None:
    """It is what a kernel that was killed leaves, and its successor has the same address."""
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{path}")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    assert not path.exists()


async def test_a_socket_that_somebody_listens_at_is_not(context: Context, directory: Path) -> None:
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with (
            context.socket(zmq.ROUTER) as server,
            pytest.raises(zmq.ZMQError, match=f"{path}: somebody listens there already") as caught,
        ):
            server.bind(f"ipc://{path}")
        assert caught.value.errno == errno.EADDRINUSE
        assert path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(context: Context, directory: Path) -> None:
    path = directory / "socket"
    path.write_text("precious")
    with (
        context.socket(zmq.ROUTER) as server,
        pytest.raises(zmq.ZMQError, match=f"{path}: there is a file already, and it is no socket"),
    ):
        server.bind(f"ipc://{path}")
    assert path.read_text() == "precious"


async def test_what_took_its_place_is_left_alone(context: Context, directory: Path) -> None:
    path = directory / "socket"
    with context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{path}")
        path.rename(directory / "moved")
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_a_path_that_is_too_long_is_measured(context: Context, directory: Path) -> None:
    longest = zmq.IPC_PATH_MAX_LEN - len(os.fsencode(directory)) - 1
    with context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{directory}/{'a' * longest}")
        path = f"{directory}/{'é' * (longest // 2)}ab"
        words = f"{path}: the path has {len(path.encode())} bytes.*no more than "
        with pytest.raises(zmq.ZMQError, match=words) as caught:
            server.bind(f"ipc://{path}")
        assert caught.value.errno == errno.ENAMETOOLONG
    assert list(directory.iterdir()) == []


async def test_a_directory_that_isnt_there_is_named(context: Context, directory: Path) -> None:
    with (
        context.socket(zmq.ROUTER) as server,
        pytest.raises(zmq.ZMQError, match=f"can't listen at ipc://{directory}/no/socket: No such"),
    ):
        server.bind(f"ipc://{directory}/no/socket")


async def test_a_directory_that_is_open_to_all_is_warned_of(
    context: Context, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.chmod(0o1777)  # sticky, as /tmp: what is there can't be replaced by others
    with context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{directory}/one")
        assert caplog.messages == []
        directory.chmod(0o777)
        server.bind(f"ipc://{directory}/other")
    (said,) = caplog.messages
    assert f"chmod go-w {directory}" in said
