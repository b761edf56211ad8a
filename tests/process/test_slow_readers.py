"""Clients that don't read, or go in the middle of it: others lose nothing, and memory is bounded.

The cells ask the kernel itself what it has dropped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import zmq

from trio_subshells.kernel._memory import Glibc, find_allocator

from ._client import PATIENCE, Client, Kernel

DROPPED = """
import json, trio_subshells
statistics = await trio_subshells.current_kernel().statistics()
json.dumps({f"{each.channel} {each.reason}": each.count for each in statistics.dropped})
"""

MEGABYTES = 200
LARGEST = 120
"""MB that the kernel may have grown by, while somebody doesn't read what is much more than that.
What it goes on holding for one is 34 MB at most on iopub, and 67 MB on shell."""

LEFT = 30 if isinstance(find_allocator(), Glibc) else LARGEST
"""MB that may be left when that client has gone, where an allocator can be told to give it back."""

MEGABYTES_ON_IOPUB = 600
LARGEST_ON_IOPUB = 400
"""Who doesn't read is disconnected at 268 MB at the latest; but what the allocator has had of the
system by then it may keep."""


def dropped(client: Client) -> dict[str, int]:
    result = client.execute(DROPPED).result()
    counts = json.loads(result.strip("'"))
    assert isinstance(counts, dict)
    return counts


@contextmanager
def memory_is_bounded(kernel: Kernel, client: Client, most: float = LARGEST) -> Iterator[None]:
    """Wait at the end until it is: libzmq lets go of memory in its own good time."""
    process = psutil.Process(kernel.process.pid)
    before = process.memory_info().rss
    yield
    deadline = time.monotonic() + PATIENCE
    while (grown := (process.memory_info().rss - before) / 1e6) > most:
        assert time.monotonic() < deadline, f"{grown:.0f} MB more"
        client.execute("1").ok()


def stuck(kernel: Kernel, channel: str) -> zmq.Socket[bytes]:
    """A socket of a client that won't read."""
    context = zmq.Context.instance()
    socket = context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
    socket.linger = 0
    socket.rcvhwm = 1
    socket.reconnect_ivl = -1  # once disconnected, it stays away
    if channel == "iopub":
        socket.subscribe(b"")
    with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
        socket.connect(kernel.url(channel))
        assert monitor.poll(60_000)
        socket.disable_monitor()
    return socket


def test_a_client_that_stops_reading_iopub(kernel: Kernel, client: Client) -> None:
    with stuck(kernel, "iopub"):
        client.execute("text = 'x' * 999_999 + '\\n'").ok()
        with memory_is_bounded(kernel, client, LARGEST_ON_IOPUB):
            for _ in range(MEGABYTES_ON_IOPUB // 20):
                printed = client.execute("for _ in range(20): print(text, end='')")
                printed.ok()
                assert len(printed.stream()) == 20_000_000
            while "iopub not_read" not in dropped(client):
                assert not kernel.has_exited
        late = kernel.connect()
        assert late.execute("print('heard')").stream() == "heard\n"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_client_that_stops_reading_replies(
    kernel: Kernel, client: Client, comes_back: bool
) -> None:
    session = kernel.new_session()
    client.execute("text = 'x' * 1_000_000").ok()
    with (
        memory_is_bounded(kernel, client, LEFT),  # when it has gone
        stuck(kernel, "shell") as lazy,
        memory_is_bounded(kernel, client),
    ):
        for _ in range(MEGABYTES):
            session.send(
                lazy,
                "execute_request",
                {"code": "", "user_expressions": {"a": "text"}, "silent": True},
            )
        session.send(lazy, "execute_request", {"code": "done = True"})
        while client.execute("'done' in globals()").result() != "True":
            assert not kernel.has_exited
        count = dropped(client)["shell not_read"]
        assert 50 < count < MEGABYTES
        if comes_back:
            replies = 0
            while lazy.poll(60_000):
                lazy.recv_multipart()
                replies += 1
                if replies == MEGABYTES + 1 - count:
                    break
            assert replies == MEGABYTES + 1 - count


def test_clients_that_go_in_the_middle_of_a_reply(kernel: Kernel, client: Client) -> None:
    session = kernel.new_session()
    client.execute("text = 'x' * 20_000_000").ok()
    with memory_is_bounded(kernel, client):
        for number in range(10):
            with stuck(kernel, "shell") as hasty:
                session.send(
                    hasty,
                    "execute_request",
                    {"code": "1", "user_expressions": {"a": "text"}},
                )
                if number % 2:
                    assert hasty.poll(60_000)
            client.execute("1").ok()
