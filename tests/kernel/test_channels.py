"""What the actors that serve clients have in common."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from unittest import mock

import pytest
import trio

from trio_subshells.kernel import _channels
from trio_subshells.kernel._channels import LARGE_MESSAGE, ClientSocket, shown
from trio_subshells.kernel._drops import Drops
from trio_subshells.wire import Receiver, WireSession


class Frame(bytes):
    """A frame that tells when it is gone; bytes take no weak references."""

    when_gone: Callable[[], object]

    def __del__(self) -> None:
        self.when_gone()  # in whatever thread was the last to know it


class OneMessage:
    """A ROUTER on which one message arrives, and then no more."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames: list[bytes] | None = frames
        self.waiting = trio.Event()

    async def receive(self) -> list[bytes]:
        frames, self._frames = self._frames, None
        if frames is None:
            self.waiting.set()
            await trio.sleep_forever()
            raise AssertionError
        return frames

    def receive_nowait(self) -> list[bytes]:
        raise trio.WouldBlock

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        raise AssertionError


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Only what nobody refers to any more goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("length", [LARGE_MESSAGE, 1000], ids=["large", "small"])
@pytest.mark.parametrize(
    "head",
    [[], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"no signature", b"{}", b"{}", b"{}"]],
    ids=["no delimiter", "frames missing", "wrong signature"],
)
async def test_a_dropped_message_is_not_kept(
    without_collector: None, length: int, head: list[bytes]
) -> None:
    gone = trio.Event()
    frame = Frame(length)
    frame.when_gone = partial(trio.lowlevel.current_trio_token().run_sync_soon, gone.set)
    socket = OneMessage([b"client", *head, frame])
    del frame
    drops = Drops()
    clients = ClientSocket("shell", socket, WireSession(b"key").receiver(), drops)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.receive)
        with trio.fail_after(60):
            await socket.waiting.wait()
        assert [each.count for each in drops.counts()] == [1]
        with trio.fail_after(60):
            await gone.wait()
        nursery.cancel_scope.cancel()


def test_of_what_a_client_has_sent_the_beginning_is_shown() -> None:
    """For that is where it says what it is."""
    assert shown("x" * 60) == repr("x" * 60)
    assert shown("its beginning" + "\n" * 1000) == repr("its beginning" + "\n" * 47 + "...")


class Flood(OneMessage):
    """A ROUTER on which messages arrive faster than they can be taken."""

    def __init__(self, frames: list[bytes]) -> None:
        super().__init__(frames)
        self.taken = 0
        self._again = frames

    def receive_nowait(self) -> list[bytes]:
        self.taken += 1
        return self._again


@pytest.mark.parametrize("key", [b"", b"another key"], ids=["taken", "dropped"])
def test_who_sends_for_ever_does_not_keep_others_waiting_for_ever(key: bytes) -> None:
    message = WireSession(key).serialize("execute_request", {"code": ""})
    flood = Flood([b"client", *message])
    drops = Drops()
    receiver = WireSession(b"kernel's key" if key else b"").receiver(replay_memory=0)
    taken = list(ClientSocket("shell", flood, receiver, drops).receive_what_is_there(7))
    assert flood.taken == 7
    assert len(taken) + sum(each.count for each in drops.counts()) == 7


def test_few_large_replies_are_kept_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each of them was sent by itself; and others get theirs."""
    reply = bytes(20_000)
    monkeypatch.setattr(_channels, "MOST_UNREAD", 5 * len(reply))
    kept: list[Sequence[bytes]] = []
    router = mock.Mock(spec=["send_nowait"], send_nowait=kept.append)
    clients = ClientSocket("shell", router, mock.create_autospec(Receiver), drops := Drops())
    assert [clients.send([b"sleeps", reply]) for _ in range(8)] == [True] * 5 + [False] * 3
    assert clients.send([b"reads", reply])
    assert not clients.send([b"sleeps", reply])
    assert clients.send([b"sleeps", b"a small one"])
    assert len(kept) == 7
    assert [each.count for each in drops.counts()] == [4]
