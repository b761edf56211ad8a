"""Connections that a socket refuses are told of, with the reason; others aren't."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
import trio
import trio.testing
import zmq

from trio_subshells.sockets import Context, SocketOptions, SocketsLeftOpenError, open_refusals

pytestmark = pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")


def server_options() -> tuple[SocketOptions, bytes]:
    """Those of a ROUTER with CURVE, and its public key."""
    public, secret = zmq.curve_keypair()
    return {"curve_server": True, "curve_secretkey": secret}, public


def client_options(server_key: bytes) -> SocketOptions:
    public, secret = zmq.curve_keypair()
    return {
        "linger": 0,
        "curve_publickey": public,
        "curve_secretkey": secret,
        "curve_serverkey": server_key,
    }


async def greet(url: str, mechanism: bytes) -> trio.SocketStream:
    """Connect, and say what a ZMTP 3.0 client says first (RFC 23); unlike libzmq, stay then."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    signature = b"\xff" + bytes(8) + b"\x7f"
    await stream.send_all(signature + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32))
    return stream


async def test_another_key_is_refused_and_the_right_one_isnt(context: Context) -> None:
    options, public = server_options()
    strange, _ = zmq.curve_keypair()
    with trio.fail_after(60), context.socket(zmq.ROUTER, **options) as server:
        url = server.bind("tcp://127.0.0.1:0")
        with open_refusals(context, server) as refusals:
            with context.socket(zmq.DEALER, **client_options(strange)) as client:
                client.connect(url)
                for _ in range(3):  # it tries again
                    reason = await refusals.receive()
                    assert reason == "its sender hasn't got the CURVE key of this connection"
            with context.socket(zmq.DEALER, **client_options(public)) as client:
                client.connect(url)
                await client.send([b"question"])
                assert (await server.receive())[1:] == [b"question"]


async def test_a_client_without_curve_is_refused(context: Context) -> None:
    options, _ = server_options()
    with trio.fail_after(60), context.socket(zmq.ROUTER, **options) as server:
        url = server.bind("tcp://127.0.0.1:0")
        with open_refusals(context, server) as refusals:
            async with await greet(url, b"NULL"):
                assert "doesn't use CURVE" in await refusals.receive()
            async with await greet(url, b""):
                assert "doesn't use CURVE" in await refusals.receive()
            await (await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))).aclose()
            assert "ended before the handshake did" in await refusals.receive()


async def test_curve_where_there_is_none_is_refused(context: Context) -> None:
    with trio.fail_after(60), context.socket(zmq.ROUTER) as server:
        url = server.bind("tcp://127.0.0.1:0")
        with open_refusals(context, server) as refusals:
            # Somebody looks whether the port is open: nobody's business.
            await (await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))).aclose()
            async with await greet(url, b"CURVE"):
                reason = await refusals.receive()
                assert reason == "its sender uses CURVE, and this connection isn't encrypted"


async def test_a_watch_leaves_nothing(context: Context) -> None:
    with context.socket(zmq.ROUTER) as server:
        server.bind("tcp://127.0.0.1:0")
        before = context.statistics()
        for _ in range(3):
            with open_refusals(context, server):
                assert context.statistics() != before
            assert context.statistics() == before


async def test_a_watch_that_fails_holds_up_nobody(context: Context) -> None:
    """libzmq, left to tell what nobody reads, would wait until somebody does."""
    options, public = server_options()
    with trio.fail_after(60), context.socket(zmq.ROUTER, **options) as server:
        url = server.bind("tcp://127.0.0.1:0")
        with pytest.raises(KeyError), open_refusals(context, server):
            raise KeyError
        for _ in range(5):  # the first may go to a socket that isn't quite closed
            async with await greet(url, b"NULL") as stream:
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass  # until it is refused
        with context.socket(zmq.DEALER, **client_options(public)) as client:
            client.connect(url)
            await client.send([b"question"])
            assert (await server.receive())[1:] == [b"question"]


def test_a_watch_is_told_of_the_end_of_its_context_as_any_other_is() -> None:
    context = Context()
    waiting = threading.Event()
    errors: list[BaseException] = []

    async def watch() -> None:
        trio.lowlevel.spawn_system_task(tell_when_blocked)
        with context.socket(zmq.ROUTER) as server:
            try:
                with open_refusals(context, server):
                    await server.receive()
            except (trio.BrokenResourceError, zmq.ZMQError) as error:
                errors.append(error)

    async def tell_when_blocked() -> None:
        await trio.testing.wait_all_tasks_blocked()
        waiting.set()

    thread = threading.Thread(target=trio.run, args=(watch,))
    thread.start()
    assert waiting.wait(60)
    with pytest.raises(SocketsLeftOpenError):
        context.close()
    thread.join(60)
    assert [type(error) for error in errors] == [trio.BrokenResourceError]
