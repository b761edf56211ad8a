"""The ledger: what libzmq holds, from the moment of sending until the last peer has taken it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator

import pytest
import trio
import zmq

from trio_subshells.sockets import Context, Ledger, Socket, bytes_on_their_way
from trio_subshells.sockets._ledger import size_of

HANG = 60
FRAMES = [b"small", bytes(100_000)]


@pytest.fixture
def pair(context: Context) -> Iterator[tuple[Socket, Socket]]:
    with (
        context.socket(zmq.PUSH, sndhwm=0, linger=0) as push,
        context.socket(zmq.PULL, rcvhwm=1, linger=0) as pull,
    ):
        pull.connect(push.bind("tcp://127.0.0.1:0"))
        yield push, pull


async def until_held(ledger: Ledger, count: int) -> None:
    """libzmq's thread and pyzmq's have to do something first, and tell nobody when."""
    with trio.fail_after(HANG):
        while ledger.held != count:
            await trio.lowlevel.checkpoint()


async def test_what_is_not_taken_is_held(pair: tuple[Socket, Socket]) -> None:
    push, pull = pair
    ledger = Ledger(10_000_000)
    for number in range(1, 101):
        await push.send(ledger.lent(FRAMES, 100_005))
        assert ledger.held <= number * 100_005
    assert ledger.held > 0  # it doesn't fit into the system's buffers
    assert bytes_on_their_way() >= ledger.held
    for _ in range(100):
        assert await pull.receive() == FRAMES
    await until_held(ledger, 0)


async def test_what_was_never_sent_is_not_held() -> None:
    ledger = Ledger(10)
    lent = ledger.lent(FRAMES, 7)
    assert ledger.held == 7
    del lent
    await until_held(ledger, 0)


async def test_what_waits_for_a_peer_that_goes_is_let_go_of(pair: tuple[Socket, Socket]) -> None:
    push, pull = pair
    ledger = Ledger(10_000_000)
    for _ in range(100):
        await push.send(ledger.lent(FRAMES, 100_005))
    pull.close()
    push.close()
    await until_held(ledger, 0)


async def test_at_its_ceiling_it_refuses_what_is_large(pair: tuple[Socket, Socket]) -> None:
    ledger = Ledger(200_000)
    assert not ledger.refuses(1_000_000)  # nothing is there yet
    held = [ledger.lent(FRAMES, 100_000) for _ in range(2)]
    assert ledger.refuses(5000)
    assert not ledger.refuses(4096)
    assert ledger.refused == 1
    del held
    await until_held(ledger, 0)
    assert not ledger.refuses(5000)


async def test_the_alarm_rings_at_each_crossing() -> None:
    rung: list[None] = []
    ledger = Ledger(1000, 10, lambda: rung.append(None))
    first = ledger.lent(FRAMES, 9)
    assert rung == []
    more = [ledger.lent(FRAMES, 9) for _ in range(3)]
    assert len(rung) == 1
    del more
    await until_held(ledger, 9)
    more = [ledger.lent(FRAMES, 1)]
    assert len(rung) == 2
    del first, more


def test_who_sums_up_is_not_disturbed_by_who_opens_a_ledger() -> None:
    """In another thread, anywhere in the middle of it."""
    kept = [Ledger(0) for _ in range(100)]
    is_over = threading.Event()

    def open_many() -> None:
        for number in itertools.count():
            kept[number % 100] = Ledger(0)
            if is_over.is_set():
                return

    thread = threading.Thread(target=open_many)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(5000):
            assert bytes_on_their_way() >= 0
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        thread.join()


def test_a_frame_costs_however_little_is_in_it() -> None:
    assert size_of([b""] * 1000) == 1000 * size_of([b""]) > 0
    assert size_of([b"four", b""]) == 4 + size_of([b"", b""])


async def test_a_collection_in_the_middle_of_it_may_lend_and_give_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Making a frame may start a garbage collection, and that may run anybody's code."""
    ledger = Ledger(1000)
    real, kept, collected = zmq.Frame, [ledger.lent(FRAMES, 3)], []

    def collecting(*args: object, **kwargs: object) -> zmq.Frame:
        monkeypatch.setattr(zmq, "Frame", real)
        kept.clear()
        collected.append(ledger.lent(FRAMES, 5))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(zmq, "Frame", collecting)
    lent = ledger.lent(FRAMES, 7)
    assert len(collected) == 1
    await until_held(ledger, 12)
    del lent
