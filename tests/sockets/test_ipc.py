"""Sockets in the file system: who may connect, whose file is replaced, whose is removed."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
import zmq

from trio_subshells.sockets import (
    Context,
    SocketsLeftOpenError,
    _context,
    open_heartbeat_device,
    open_iopub_device,
)
from trio_subshells.sockets._ipc import listening

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


async def test_the_file_is_the_users_alone_before_anybody_can_connect(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    class Watched(socket.socket):
        def listen(self, *backlog: int) -> None:
            modes.append(stat.S_IMODE((directory / "socket").stat().st_mode))
            super().listen(*backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        with context.socket(zmq.ROUTER) as server:
            server.bind(f"ipc://{directory}/socket")
    finally:
        os.umask(before)
    assert modes == [0o600]


async def test_unbinding_removes_it(context: Context, directory: Path) -> None:
    with context.socket(zmq.ROUTER) as server:
        url = server.bind(f"ipc://{directory}/socket")
        server.unbind(url)
        assert list(directory.iterdir()) == []
        server.bind(url)
    assert list(directory.iterdir()) == []


async def test_one_socket_listens_at_several_addresses(context: Context, directory: Path) -> None:
    """What the file's listener was, the next address's isn't."""
    async with context.socket(zmq.ROUTER) as server:
        urls = [
            server.bind(url)
            for url in (f"ipc://{directory}/a", "tcp://127.0.0.1:0", f"ipc://{directory}/b")
        ]
        for url in urls:
            async with context.socket(zmq.DEALER) as client:
                client.connect(url)
                await client.send([url.encode()])
                with trio.fail_after(60):
                    assert (await server.receive())[1] == url.encode()


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


def test_a_socket_that_somebody_is_too_busy_to_accept_at_is_not(
    context: Context, directory: Path
) -> None:
    """To ask by connecting would have to wait, and nobody knows for how long."""
    path = directory / "socket"
    refusals: list[str] = []

    def bind() -> None:
        with context.socket(zmq.ROUTER) as server:
            try:
                server.bind(f"ipc://{path}")
            except zmq.ZMQError as error:
                refusals.append(str(error))

    with ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(path))
        other.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        thread = threading.Thread(target=bind)
        stack.callback(thread.join)  # when the other one is closed, at the latest
        stack.callback(other.close)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert "somebody listens there already" in refusals[0]
        assert path.exists()


async def test_a_socket_that_we_may_not_ask_at_is_left_alone(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another user's, who may well listen; in a test, root may connect to any."""

    class Refused(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as other, context.socket(zmq.ROUTER) as server:
        other.bind(str(path))
        monkeypatch.setattr(socket, "socket", Refused)
        with pytest.raises(zmq.ZMQError, match=f"{path}: {os.strerror(errno.EACCES)}"):
            server.bind(f"ipc://{path}")
    assert path.exists()


@pytest.mark.parametrize("error", [OSError, zmq.ZMQError, KeyboardInterrupt])
async def test_what_can_not_be_used_after_all_leaves_nothing(
    directory: Path, count_descriptors: Callable[[], int], error: type[BaseException]
) -> None:
    """As when libzmq refuses to take the socket, or Ctrl-C strikes before it has."""
    before = count_descriptors()
    with pytest.raises((error, zmq.ZMQError)), listening(f"ipc://{directory}/socket") as made:
        raise error
    assert count_descriptors() == before
    assert list(directory.iterdir()) == []
    del made


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such addresses")
async def test_an_abstract_address_is_no_file(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    with context.socket(zmq.ROUTER) as server, zmq.Context() as other:
        url = server.bind(f"ipc://@{directory}")
        assert list(directory.iterdir()) == []
        with other.socket(zmq.DEALER) as client:
            client.linger = 0
            client.connect(url)
            client.send(b"question")
            with trio.fail_after(60):
                assert (await server.receive())[1:] == [b"question"]


async def test_a_device_removes_its_file_though_its_context_has_ended(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_context, "GRACE_SECONDS", 0.01)
    early = Context()

    async def end_it_under_a_device() -> None:
        async with open_iopub_device(early, f"ipc://{directory}/iopub"):
            with pytest.raises(SocketsLeftOpenError):
                early.close()

    with pytest.raises(trio.BrokenResourceError):
        await end_it_under_a_device()
    assert list(directory.iterdir()) == []


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


@pytest.mark.parametrize("mode", [0o777, 0o775], ids=["all", "a group"])
async def test_a_directory_that_is_open_to_others_is_warned_of(
    context: Context, directory: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    directory.chmod(0o1777)  # sticky, as /tmp: what is there can't be replaced by others
    with context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{directory}/one")
        assert caplog.messages == []
        directory.chmod(mode)
        server.bind(f"ipc://{directory}/other")
    (said,) = caplog.messages
    assert f"chmod go-w {directory}" in said
