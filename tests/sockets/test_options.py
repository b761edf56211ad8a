"""Socket options: set by name, or refused with the right name."""

from __future__ import annotations

import pytest
import zmq

from trio_subshells.sockets import Context


def test_options_are_set_by_name(context: Context) -> None:
    with context.socket(
        zmq.ROUTER, identity=b"me", linger=7, sndhwm=3, rcvhwm=4, router_handover=True
    ) as socket:
        assert socket.get(zmq.IDENTITY) == b"me"
        assert socket.get(zmq.LINGER) == 7
        assert socket.get(zmq.SNDHWM) == 3
        assert socket.get(zmq.RCVHWM) == 4


def test_every_listed_option_is_one_of_pyzmq() -> None:
    from trio_subshells.sockets._options import NAMES

    assert [name for name in NAMES if name.upper() not in zmq.SocketOption.__members__] == []


def test_an_unknown_option_is_refused_with_the_right_name(context: Context) -> None:
    with pytest.raises(TypeError, match=r"'sndhvm'.*did you mean 'sndhwm'"):
        context.socket(zmq.ROUTER, sndhvm=1)  # type: ignore[call-arg]
    assert context.statistics().sockets_open == ()


def test_a_value_of_the_wrong_type_is_refused(context: Context) -> None:
    with pytest.raises(TypeError, match="'identity' takes an int, a bool or bytes, not str"):
        context.socket(zmq.ROUTER, identity="me")  # type: ignore[arg-type]
    assert context.statistics().sockets_open == ()


@pytest.mark.parametrize("linger", [-1, -2])
def test_an_endless_linger_is_refused_wherever_it_is_said(context: Context, linger: int) -> None:
    words = f"linger is a time in milliseconds, 0 or more, not {linger}"
    with pytest.raises(ValueError, match=words):
        context.socket(zmq.ROUTER, linger=linger)
    with context.socket(zmq.ROUTER) as socket:
        with pytest.raises(ValueError, match=words):
            socket.set(zmq.LINGER, linger)
        with pytest.raises(ValueError, match=words):
            socket.close(linger)
        assert socket.get(zmq.LINGER) == 1000


def test_a_subscriber_does_not_linger(context: Context) -> None:
    """All that it sends is subscriptions, and who closes it wants none any more."""
    for kind in (zmq.SUB, zmq.XSUB):
        with context.socket(kind) as socket:
            assert socket.get(zmq.LINGER) == 0


@pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
async def test_curve_lets_in_who_knows_the_server(context: Context) -> None:
    server_public, server_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    with (
        context.socket(zmq.ROUTER, curve_server=True, curve_secretkey=server_secret) as server,
        context.socket(
            zmq.DEALER,
            curve_serverkey=server_public,
            curve_publickey=public,
            curve_secretkey=secret,
        ) as client,
    ):
        client.connect(server.bind("tcp://127.0.0.1:0"))
        await client.send([b"sealed"])
        assert (await server.receive())[1:] == [b"sealed"]
