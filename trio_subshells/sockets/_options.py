"""Socket options by name: what `Context.socket(kind, **options)` takes, and how it is applied."""

from __future__ import annotations

import difflib
from typing import TypedDict

import zmq


class SocketOptions(TypedDict, total=False):
    """The options of a socket, under libzmq's names in lower case (see ``zmq_setsockopt``).

    All are set before the socket is bound or connected. Times are in milliseconds, queue lengths
    (``sndhwm``, ``rcvhwm``) in messages with 0 for no bound. What isn't listed here can be set with
    `Socket.set`.
    """

    backlog: int
    curve_publickey: bytes
    curve_secretkey: bytes
    curve_server: bool
    curve_serverkey: bytes
    handshake_ivl: int
    heartbeat_ivl: int
    heartbeat_timeout: int
    heartbeat_ttl: int
    identity: bytes
    immediate: bool
    ipv6: bool
    linger: int
    maxmsgsize: int
    probe_router: bool
    rcvbuf: int
    rcvhwm: int
    reconnect_ivl: int
    reconnect_ivl_max: int
    router_handover: bool
    router_mandatory: bool
    sndbuf: int
    sndhwm: int
    subscribe: bytes
    tcp_keepalive: int
    tcp_keepalive_idle: int
    unsubscribe: bytes
    xpub_nodrop: bool
    xpub_verbose: bool
    xpub_verboser: bool


NAMES = frozenset(SocketOptions.__annotations__)

DEFAULT_LINGER_MS = 1000
"""How long a closed socket goes on delivering, unless said otherwise: long enough for a peer that
reads, and bounded, so that the end of a context is bounded too."""


def check_linger(milliseconds: int) -> int:
    """Refuse ZMQ's "for ever" (-1): it can make the end of a context, and of a process, hang."""
    if milliseconds < 0:
        raise ValueError(
            f"linger is a time in milliseconds, 0 or more, not {milliseconds}: a socket that "
            "lingers for ever could keep its context from ever closing"
        )
    return milliseconds


def apply_options(raw: zmq.Socket[bytes], kind: zmq.SocketType, options: SocketOptions) -> None:
    """Set `options` on a raw socket that is not bound or connected yet.

    Raises:
        TypeError: an option that there is none of by that name, or a value of the wrong type.
        ValueError: an endless linger.
        zmq.ZMQError: a value that libzmq refuses.
    """
    # All that a subscriber sends is subscriptions: they aren't worth waiting for.
    raw.set(zmq.LINGER, 0 if kind in (zmq.SUB, zmq.XSUB) else DEFAULT_LINGER_MS)
    for name, value in options.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(
                f"no socket option is called {name!r}{hint}; "
                "use Socket.set(option, value) for an option that SocketOptions doesn't list"
            )
        if name == "linger":
            assert isinstance(value, int)
            check_linger(value)
        if not isinstance(value, (int, bytes)):
            raise TypeError(  # without the value: it may be a key
                f"socket option {name!r} takes an int, a bool or bytes, not {type(value).__name__}"
            )
        raw.set(zmq.SocketOption[name.upper()], int(value) if isinstance(value, int) else value)
