"""The native devices: what they carry, and that they leave nothing behind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import trio
import trio.testing
import zmq

from trio_subshells.sockets import (
    Context,
    SocketsLeftOpenError,
    open_heartbeat_device,
    open_iopub_device,
    open_publisher,
)
from trio_subshells.sockets._device import _DeviceThread

HANG = 60

PINGS = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.REQ) as heart:
    heart.rcvtimeo = 60_000
    heart.linger = 0
    heart.connect(sys.argv[1])
    for number in range(100):
        heart.send(b"%d" % number)
        assert heart.recv() == b"%d" % number
"""


@pytest.mark.usefixtures("no_thread_left")
async def test_a_heartbeat_is_echoed_to_any_kind_of_client(context: Context) -> None:
    with trio.fail_after(HANG):
        async with open_heartbeat_device("tcp://127.0.0.1:0") as device:
            for kind in (zmq.REQ, zmq.DEALER):
                with context.socket(kind) as client:
                    client.connect(device.url)
                    for ping in ([b"ping"], [b""], [b"two", b"frames"]):
                        await client.send(ping)
                        assert await client.receive() == ping


@pytest.mark.skipif(sys.platform == "win32", reason="waitpid is how the GIL is held here")
async def test_a_heartbeat_is_echoed_while_the_gil_is_held() -> None:
    """Another process pings while this one is in a C call that doesn't let go of the GIL.

    The call is waitpid for that very process: it ends when all echoes are there. If one echo
    needed the GIL, the other process would time out and fail.
    """
    wait_with_gil = ctypes.PyDLL(None, use_errno=True).waitpid
    async with open_heartbeat_device("tcp://127.0.0.1:0") as device:
        process = os.posix_spawn(  # noqa: ASYNC221 - that this loop is blocked is the point
            sys.executable, [sys.executable, "-c", PINGS, device.url], dict(os.environ)
        )
        status = ctypes.c_int()
        assert wait_with_gil(process, ctypes.byref(status), 0) == process
        assert os.waitstatus_to_exitcode(status.value) == 0


async def test_a_heartbeat_is_echoed_while_its_own_loop_is_blocked() -> None:
    """The same on every platform, for a loop blocked by a call that does let go of the GIL."""
    async with open_heartbeat_device("tcp://127.0.0.1:0") as device:
        subprocess.run(  # noqa: ASYNC221 - the same
            [sys.executable, "-c", PINGS, device.url], check=True, timeout=HANG
        )


@pytest.mark.usefixtures("no_thread_left")
async def test_iopub_goes_to_all_who_subscribed(context: Context) -> None:
    with trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            with (
                context.socket(zmq.SUB, subscribe=b"") as everything,
                context.socket(zmq.SUB, subscribe=b"b") as only_b,
            ):
                for client in (everything, only_b):
                    client.connect(device.url)
                    await device.publisher.receive_subscription()
                device.publisher.publish([b"a", b"1"])
                device.publisher.publish([b"b", b"2"])
                assert await everything.receive() == [b"a", b"1"]
                assert await everything.receive() == [b"b", b"2"]
                assert await only_b.receive() == [b"b", b"2"]


async def test_the_last_outputs_go_out(context: Context) -> None:
    """Published right before the end, read after it."""
    count = 5000
    with context.socket(zmq.SUB, subscribe=b"", rcvhwm=0) as client, trio.fail_after(HANG):
        async with open_iopub_device(
            context, "tcp://127.0.0.1:0", linger=HANG * 1000, sndhwm=0
        ) as device:
            client.connect(device.url)
            await device.publisher.receive_subscription()
            async with open_publisher(context, device.publisher_url) as other:
                for number in range(count):
                    (other if number % 2 else device.publisher).publish([b"%d" % number])
        received = [(await client.receive())[0] for _ in range(count)]
    assert sorted(received, key=int) == [b"%d" % number for number in range(count)]


async def test_what_is_queued_when_the_device_is_told_to_end_goes_out(
    context: Context, monkeypatch
) -> None:
    """The proxy ends as soon as it is told to; here it hasn't looked at its queue at all."""

    def proxy(xsub: zmq.Socket, xpub: zmq.Socket, capture: None, control: zmq.Socket) -> None:
        xsub.send(xpub.recv())  # the client's subscription
        assert control.recv() == b"TERMINATE"

    monkeypatch.setattr(zmq, "proxy_steerable", proxy)
    with context.socket(zmq.SUB, subscribe=b"") as client, trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            client.connect(device.url)
            await device.publisher.receive_subscription()
            for number in range(100):
                device.publisher.publish([b"%d" % number])
        assert [(await client.receive())[0] for _ in range(100)] == [b"%d" % n for n in range(100)]


async def test_a_client_that_does_not_read_delays_nobody(context: Context) -> None:
    with trio.fail_after(HANG):
        async with open_iopub_device(
            context, "tcp://127.0.0.1:0", sndhwm=10, linger=0, sndbuf=4096
        ) as device:
            with (
                context.socket(zmq.SUB, subscribe=b"x", rcvhwm=1, rcvbuf=4096) as lazy,
                context.socket(zmq.SUB, subscribe=b"y", rcvhwm=0) as eager,
            ):
                for client in (lazy, eager):
                    client.connect(device.url)
                    await device.publisher.receive_subscription()
                for _ in range(1000):
                    device.publisher.publish([b"x" * 10_000])
                device.publisher.publish([b"y"])
                assert await eager.receive() == [b"y"]


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("url", ["tcp://127.0.0.1:{port}", "tcp://256.0.0.1:0", "nonsense"])
async def test_an_address_that_cannot_be_is_an_error_in_the_caller(
    context: Context, count_descriptors, url: str
) -> None:
    with context.socket(zmq.ROUTER) as other:
        port = other.bind("tcp://127.0.0.1:0").rpartition(":")[2]
        url = url.format(port=port)
        before = count_descriptors()
        with pytest.raises((zmq.ZMQError, ValueError), match=url):
            async with open_heartbeat_device(url):
                pytest.fail("bound to nothing")
        with pytest.raises((zmq.ZMQError, ValueError), match=url):
            async with open_iopub_device(context, url):
                pytest.fail("bound to nothing")
        assert len(context.statistics().sockets_open) == 1
        await give_back(count_descriptors, before)


async def give_back(count_descriptors, before: int) -> None:
    """Wait until libzmq, in a thread of its own, has closed what isn't needed any more."""
    with trio.fail_after(HANG):
        while count_descriptors() > before:
            await trio.lowlevel.checkpoint()


def start_no_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As when the user may have no more of them; here, none whose name begins like that."""
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)


@pytest.mark.skipif(sys.platform == "win32", reason="no ipc")
@pytest.mark.usefixtures("no_thread_left")
async def test_a_heartbeat_ends_though_no_thread_can_be_started_for_that(
    monkeypatch, tmp_path, count_descriptors
) -> None:
    before = count_descriptors()
    async with open_heartbeat_device(f"ipc://{tmp_path}/heartbeat"):
        start_no_thread(monkeypatch, "end of heartbeat")
    assert list(tmp_path.iterdir()) == []
    assert count_descriptors() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no ipc")
@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("kind", ["heartbeat", "iopub"])
async def test_a_device_that_can_not_get_its_thread_leaves_nothing(
    context: Context, monkeypatch, tmp_path, count_descriptors, kind: str
) -> None:
    url = f"ipc://{tmp_path}/{kind}"
    with context.socket(zmq.PAIR):  # the context's own threads and descriptors are there now
        before = count_descriptors()
        start_no_thread(monkeypatch, kind)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            async with (
                open_heartbeat_device(url)
                if kind == "heartbeat"
                else open_iopub_device(context, url)
            ):
                pytest.fail("nobody carries anything")
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []
        assert len(context.statistics().sockets_open) == 1
        await give_back(count_descriptors, before)


@pytest.mark.usefixtures("no_thread_left")
async def test_leaving_gives_threads_and_descriptors_back(
    context: Context, count_descriptors
) -> None:
    with context.socket(zmq.PAIR):  # the context's own threads and descriptors are there now
        before = count_descriptors()
        for _ in range(10):
            async with (
                open_iopub_device(context, "tcp://127.0.0.1:0") as device,
                open_heartbeat_device("tcp://127.0.0.1:0") as heart,
            ):
                names = {thread.name for thread in threading.enumerate()}
                assert {f"iopub {device.url}", f"heartbeat {heart.url}"} <= names
        await give_back(count_descriptors, before)


@pytest.mark.usefixtures("no_thread_left")
async def test_a_cancelled_block_is_left_cleanly(context: Context) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.CancelScope() as scope:
        async with (
            open_iopub_device(context, "tcp://127.0.0.1:0"),
            open_heartbeat_device("tcp://127.0.0.1:0"),
        ):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert context.statistics().sockets_open == ()


@pytest.mark.usefixtures("no_thread_left")
async def test_the_block_s_own_exception_comes_out(context: Context) -> None:
    with pytest.raises(KeyError):
        async with (
            open_iopub_device(context, "tcp://127.0.0.1:0"),
            open_heartbeat_device("tcp://127.0.0.1:0"),
        ):
            raise KeyError


@pytest.mark.usefixtures("no_thread_left")
async def test_a_context_that_ends_too_early_is_reported(monkeypatch) -> None:
    from trio_subshells.sockets import _context

    monkeypatch.setattr(_context, "GRACE_SECONDS", 0.01)
    early = Context()

    async def end_it_under_a_device() -> None:
        async with open_iopub_device(early, "tcp://127.0.0.1:0"):
            with pytest.raises(SocketsLeftOpenError, match="iopub XPUB at tcp"):
                early.close()

    with pytest.raises(trio.BrokenResourceError, match="context ended under: iopub"):
        await end_it_under_a_device()
    for thread in threading.enumerate():  # now that all is closed, it ends after all
        if thread.name == "end of a zmq context":
            thread.join(HANG)
            assert not thread.is_alive()


@pytest.mark.usefixtures("no_thread_left")
async def test_a_heartbeat_that_has_failed_is_joined_with_its_end(monkeypatch) -> None:
    joined: list[str] = []
    join = _DeviceThread.join

    async def recorded(thread: _DeviceThread) -> None:
        joined.append(thread._thread.name)
        await join(thread)

    def fail(*sockets: object) -> None:
        raise KeyError("no proxy")

    monkeypatch.setattr(_DeviceThread, "join", recorded)
    monkeypatch.setattr(zmq, "proxy", fail)
    with pytest.raises(KeyError, match="no proxy"):
        async with open_heartbeat_device("tcp://127.0.0.1:0") as device:
            pass
    assert joined == [f"heartbeat {device.url}", f"end of heartbeat {device.url}"]


async def test_options_that_would_stop_a_device_are_refused(context: Context) -> None:
    with pytest.raises(ValueError, match="xpub_nodrop"):
        async with open_iopub_device(context, "tcp://127.0.0.1:0", xpub_nodrop=True):
            pytest.fail("a client that doesn't read could stop it")
    with pytest.raises(ValueError, match="router_mandatory"):
        async with open_heartbeat_device("tcp://127.0.0.1:0", router_mandatory=True):
            pytest.fail("a client that has gone could stop it")


@pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
async def test_both_can_be_curve_servers(context: Context) -> None:
    server_public, server_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    server = {"curve_server": True, "curve_secretkey": server_secret}
    client = {
        "curve_serverkey": server_public,
        "curve_publickey": public,
        "curve_secretkey": secret,
    }
    with trio.fail_after(HANG):
        async with (
            open_iopub_device(context, "tcp://127.0.0.1:0", **server) as iopub,
            open_heartbeat_device("tcp://127.0.0.1:0", **server) as heart,
        ):
            with (
                context.socket(zmq.SUB, subscribe=b"", **client) as subscriber,
                context.socket(zmq.REQ, **client) as pinger,
            ):
                subscriber.connect(iopub.url)
                await iopub.publisher.receive_subscription()
                iopub.publisher.publish([b"sealed"])
                assert await subscriber.receive() == [b"sealed"]
                pinger.connect(heart.url)
                await pinger.send([b"ping"])
                assert await pinger.receive() == [b"ping"]
