"""The model of libzmq does what libzmq does: the same calls, on both, with the same results.

A canary for each release of libzmq: if one of these fails with a new one, the model,
`trio_subshells.testing._libzmq`, has to follow, and what is said about the descriptor in
`trio_subshells.sockets._socket` is to be read again.
"""

from __future__ import annotations

import itertools
import random
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import attrs
import pytest
import zmq

from trio_subshells.testing import _libzmq

HANG = 60  # seconds: nothing here takes a thousandth of that
MILLISECOND = 0.005  # libzmq's own, for sure


@attrs.define
class PlainDescriptor:
    """A flag."""

    number: int = -1
    readable: bool = False

    def close(self) -> None:
        self.readable = False


class Alone:
    """One thread, and libzmq's own, which work when the test lets them: `settle`."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()

    def descriptor(self, name: str) -> PlainDescriptor:
        return PlainDescriptor()

    def pause(self) -> None:
        """There is nobody else."""

    def later(self, name: str, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def is_too_soon(self, name: str) -> bool:
        return False

    def settle(self) -> None:
        while self.jobs:
            self.jobs.popleft()()

    def wait(self, descriptors: Sequence[Any]) -> None:
        self.settle()
        assert any(each.readable for each in descriptors), "a deadlock"


class Modelled:
    """Sockets of the model."""

    def __init__(self) -> None:
        self._alone = Alone()
        self._context = _libzmq.Context(_libzmq.World(self._alone))

    def socket(self, kind: int) -> Any:
        return _libzmq.Socket(self._context, kind)

    def send(self, socket: Any, frames: Sequence[bytes]) -> None:
        socket.send_multipart(frames, zmq.NOBLOCK)

    def has_edge(self, socket: Any) -> bool:
        self._alone.settle()
        return bool(socket._descriptor.readable)

    def end(self) -> None:
        self._context.term()

    def begin_end(self) -> None:
        self._context._terminating = True
        for socket in self._context.sockets:
            socket.post(socket.stop)


class Real:
    """Sockets of libzmq, whose sends always look at the mailbox."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sent: dict[Any, float] = {}
        self._ending: threading.Thread | None = None

    def socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.linger = 0
        return socket

    def send(self, socket: Any, frames: Sequence[bytes]) -> None:
        for frame in frames[:-1]:
            self._send(socket, frame, zmq.NOBLOCK | zmq.SNDMORE)
        self._send(socket, frames[-1], zmq.NOBLOCK)

    def _send(self, socket: Any, frame: bytes, flags: int) -> None:
        # Not a wait for something: the time in which libzmq doesn't look is what is left out.
        time.sleep(max(0.0, self._sent.get(socket, 0.0) + MILLISECOND - time.monotonic()))
        try:
            socket.send(frame, flags)
        finally:
            self._sent[socket] = time.monotonic()

    def has_edge(self, socket: Any) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(socket.fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))

    def begin_end(self) -> None:
        self._ending = threading.Thread(target=self._context.term)
        self._ending.start()

    def end(self) -> None:
        if self._ending is None:
            self._context.term()
        else:
            self._ending.join()


Library = Modelled | Real


@pytest.fixture(params=[Modelled, Real])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    library = request.param()
    yield library
    library.end()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for libzmq's own threads."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < HANG
        time.sleep(0)


def outcome_of(call: Callable[[], object]) -> object:
    """What a call returns, or its error's number."""
    try:
        return call()
    except zmq.ZMQError as error:
        return f"errno {error.errno}"


@attrs.frozen
class Ends:
    """A pair of connected sockets, and what they may send."""

    bound: zmq.SocketType
    connecting: zmq.SocketType
    bound_sends: tuple[tuple[bytes, ...], ...]
    connecting_sends: tuple[tuple[bytes, ...], ...]
    options: dict[zmq.SocketOption, int] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return f"{self.bound.name}-{self.connecting.name}"

    def open(self, library: Library, url: str, mark: int, first: str) -> list[Any]:
        sockets = [library.socket(self.bound), library.socket(self.connecting)]
        for socket in sockets:
            socket.set(zmq.SNDHWM, mark)
            socket.set(zmq.RCVHWM, mark)
        sockets[1].set(zmq.IDENTITY, b"peer")
        for option, value in self.options.items():
            sockets[0].set(option, value)
        if first == "bound":
            sockets[0].bind(url)
            sockets[1].connect(sockets[0].get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
        else:
            sockets[1].connect(url)
            sockets[0].bind(url)
        return sockets


ORDINARY = ((b"one",), (b"two", b"frames"))
TO_PEER = ((b"peer", b"x"), (b"peer", b"", b"y"), (b"nobody", b"z"), (b"peer",))
SUBSCRIBING = ((b"\1a",), (b"\0a",), (b"\1",), (b"\0",), (b"word",))
PUBLISHING = ((b"a", b"1"), (b"ab",), (b"b",), (b"c", b"2", b"3"))

PAIRS = [
    Ends(zmq.DEALER, zmq.DEALER, ORDINARY, ORDINARY),
    Ends(zmq.PAIR, zmq.PAIR, ORDINARY, ORDINARY),
    Ends(zmq.PULL, zmq.PUSH, ORDINARY, ORDINARY),
    Ends(zmq.ROUTER, zmq.DEALER, TO_PEER, ORDINARY),
    Ends(zmq.ROUTER, zmq.DEALER, TO_PEER, ORDINARY, {zmq.ROUTER_MANDATORY: 1}),
    Ends(zmq.XSUB, zmq.XPUB, SUBSCRIBING, PUBLISHING),
    Ends(zmq.XPUB, zmq.XSUB, PUBLISHING, SUBSCRIBING, {zmq.XPUB_VERBOSE: 1}),
    Ends(zmq.XPUB, zmq.XSUB, PUBLISHING, SUBSCRIBING, {zmq.XPUB_VERBOSER: 1}),
    Ends(zmq.XPUB, zmq.XSUB, PUBLISHING, SUBSCRIBING, {zmq.XPUB_NODROP: 1}),
]


def make_step(ends: Ends, chance: random.Random) -> tuple[str, int, object]:
    who = chance.randrange(2)
    what = chance.choice(["send", "send", "send", "receive", "receive", "events"])
    sends = (ends.bound_sends, ends.connecting_sends)[who]
    return what, who, chance.choice(sends) if what == "send" else None


def take(library: Library, sockets: list[Any], step: tuple[str, int, Any]) -> object:
    what, who, frames = step
    socket = sockets[who]
    match what:
        case "send":
            return outcome_of(lambda: library.send(socket, frames))
        case "receive":
            return outcome_of(lambda: socket.recv_multipart(zmq.NOBLOCK))
        case _:
            return int(socket.get(zmq.EVENTS))


@pytest.mark.parametrize("first", ["bound", "connected"])
@pytest.mark.parametrize("mark", [0, 1, 3])
@pytest.mark.parametrize("ends", PAIRS, ids=str)
def test_the_same_calls_give_the_same(ends: Ends, mark: int, first: str) -> None:
    """Over inproc: each result, and each socket's descriptor after each call."""
    both: list[Library] = [Modelled(), Real()]
    chance = random.Random(f"{ends} {ends.options} {mark} {first}")
    with ExitStack() as stack:
        for library in both:
            stack.callback(library.end)
        for number in range(2):
            url = f"inproc://{number}"
            opened = [ends.open(library, url, mark, first) for library in both]
            with ExitStack() as sockets:
                for socket in itertools.chain(*opened):
                    sockets.callback(socket.close)
                so_far: list[object] = []
                for _ in range(20):
                    step = make_step(ends, chance)
                    results = [
                        (
                            take(library, pair, step),
                            [library.has_edge(socket) for socket in pair],
                        )
                        for library, pair in zip(both, opened, strict=True)
                    ]
                    so_far.append((*step, results[1]))
                    assert results[0] == results[1], so_far


@pytest.mark.parametrize("transport", ["tcp://127.0.0.1:0", "ipc://*"])
@pytest.mark.parametrize("ends", PAIRS, ids=str)
def test_over_the_network_it_takes_a_while(ends: Ends, transport: str, library: Library) -> None:
    """What is sent arrives, whole and in order, and the descriptor tells of it."""
    left, right = ends.open(library, transport, 0, "bound")
    with closing(left), closing(right):
        if zmq.XPUB in (ends.bound, ends.connecting):
            subscriber, publisher = sorted((left, right), key=lambda each: -each.get(zmq.TYPE))
            library.send(subscriber, [b"\1"])
            # The subscriber lets a new publisher in when it is used.
            assert receive(library, publisher, lambda: subscriber.get(zmq.EVENTS)) == [b"\1"]
            sender, receiver, sent = publisher, subscriber, PUBLISHING
        else:
            sender, receiver, sent = right, left, ORDINARY
        for frames in sent:
            library.send(sender, frames)
        for frames in sent:
            found = receive(library, receiver)
            assert found[found[0] == b"peer" :] == list(frames)


def receive(
    library: Library, socket: Any, meanwhile: Callable[[], object] = lambda: None
) -> list[bytes]:
    """As it is to be done: try, and wait for the descriptor only after that has failed."""

    def has_edge() -> bool:
        meanwhile()
        return library.has_edge(socket)

    while True:
        try:
            frames: list[bytes] = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            eventually(has_edge)
        else:
            return frames


def pair(library: Library, kinds: Sequence[int] = (zmq.DEALER, zmq.DEALER), mark: int = 0) -> Any:
    """Two connected sockets, whose mailboxes are empty."""
    sockets = [library.socket(kind) for kind in kinds]
    for socket in sockets:
        socket.set(zmq.SNDHWM, mark)
        socket.set(zmq.RCVHWM, mark)
    sockets[1].set(zmq.IDENTITY, b"peer")
    sockets[0].bind("inproc://pair")
    sockets[1].connect("inproc://pair")
    for socket in sockets:
        socket.get(zmq.EVENTS)
    return sockets


def test_a_send_swallows_the_edge_of_a_message(library: Library) -> None:
    left, right = pair(library)
    with closing(left), closing(right):
        library.send(left, [b"message"])
        assert library.has_edge(right)
        library.send(right, [b"another"])
        assert not library.has_edge(right)
        assert right.get(zmq.EVENTS) & zmq.POLLIN
        assert right.recv(zmq.NOBLOCK) == b"message"


@pytest.mark.parametrize("operation", ["events", "failing receive", "bind", "connect"])
def test_so_does_any_other_operation(library: Library, operation: str) -> None:
    left, right = pair(library, mark=1)
    third = library.socket(zmq.DEALER)
    third.bind("inproc://third")
    with closing(left), closing(right), closing(third):
        for _ in range(2):
            library.send(left, [b"message"])  # it is full
        right.recv(zmq.NOBLOCK)
        assert library.has_edge(left)  # there is room
        match operation:
            case "events":
                left.get(zmq.EVENTS)
            case "failing receive":
                assert outcome_of(lambda: left.recv(zmq.NOBLOCK)) == f"errno {zmq.EAGAIN}"
            case "bind":
                left.bind("inproc://another")
            case "connect":
                left.connect("inproc://third")
        assert not library.has_edge(left)


def test_a_receive_that_finds_a_message_does_not_look(library: Library) -> None:
    left, right = pair(library)
    with closing(left), closing(right):
        library.send(left, [b"1"])
        library.send(left, [b"2"])
        right.get(zmq.EVENTS)
        right.bind("inproc://right")
        left.connect("inproc://right")
        assert library.has_edge(right)
        assert right.recv(zmq.NOBLOCK) == b"1"
        assert library.has_edge(right)


def test_only_the_first_message_has_an_edge(library: Library) -> None:
    left, right = pair(library)
    with closing(left), closing(right):
        library.send(left, [b"1"])
        right.get(zmq.EVENTS)
        assert not library.has_edge(right)
        library.send(left, [b"2"])  # it hasn't found its pipe empty meanwhile
        assert not library.has_edge(right)
        assert right.recv(zmq.NOBLOCK) == b"1"
        library.send(left, [b"3"])
        assert not library.has_edge(right)
        assert right.recv(zmq.NOBLOCK) == b"2"
        assert right.recv(zmq.NOBLOCK) == b"3"
        assert outcome_of(lambda: right.recv(zmq.NOBLOCK)) == f"errno {zmq.EAGAIN}"
        library.send(left, [b"4"])
        assert library.has_edge(right)


def test_a_publisher_drops_what_it_sends_before_it_has_seen_a_subscription(
    library: Library,
) -> None:
    xsub, xpub = library.socket(zmq.XSUB), library.socket(zmq.XPUB)
    with closing(xsub), closing(xpub):
        xsub.bind("inproc://device")
        library.send(xsub, [b"\1"])
        xpub.connect("inproc://device")
        library.send(xpub, [b"lost"])
        assert not library.has_edge(xpub)
        assert library.has_edge(xsub)  # the publisher; nobody has let it in yet
        assert not xsub.get(zmq.EVENTS) & zmq.POLLIN
        assert library.has_edge(xpub)
        assert xpub.recv(zmq.NOBLOCK) == b"\1"
        library.send(xpub, [b"first"])
        assert xsub.recv(zmq.NOBLOCK) == b"first"


def test_a_subscriber_gets_what_it_has_subscribed_to(library: Library) -> None:
    xpub, sub = pair(library, (zmq.XPUB, zmq.SUB))
    with closing(xpub), closing(sub):
        sub.set(zmq.SUBSCRIBE, b"a")
        assert xpub.recv(zmq.NOBLOCK) == b"\1a"
        sub.set(zmq.UNSUBSCRIBE, b"a")
        sub.set(zmq.SUBSCRIBE, b"b")
        library.send(xpub, [b"b", b"first"])  # looks, too
        library.send(xpub, [b"a", b"second"])
        library.send(xpub, [b"bc", b"third"])
        assert sub.recv_multipart(zmq.NOBLOCK) == [b"b", b"first"]
        assert sub.recv_multipart(zmq.NOBLOCK) == [b"bc", b"third"]
        assert outcome_of(lambda: sub.recv(zmq.NOBLOCK)) == f"errno {zmq.EAGAIN}"


def test_half_of_what_a_full_peer_holds_must_be_read_before_there_is_room(
    library: Library,
) -> None:
    left, right = pair(library, mark=2)
    with closing(left), closing(right):
        for _ in range(4):
            library.send(left, [b"message"])
        assert outcome_of(lambda: library.send(left, [b"more"])) == f"errno {zmq.EAGAIN}"
        right.recv(zmq.NOBLOCK)
        assert not left.get(zmq.EVENTS) & zmq.POLLOUT
        right.recv(zmq.NOBLOCK)
        assert library.has_edge(left)
        assert left.get(zmq.EVENTS) & zmq.POLLOUT


def test_pollout_of_a_router_is_of_any_peer(library: Library) -> None:
    router, slow = pair(library, (zmq.ROUTER, zmq.DEALER), mark=1)
    router.set(zmq.ROUTER_MANDATORY, 1)
    idle = library.socket(zmq.DEALER)
    with closing(router), closing(slow), closing(idle):
        idle.connect("inproc://pair")
        for _ in range(2):
            library.send(router, [b"peer", b"x"])
        full = outcome_of(lambda: library.send(router, [b"peer", b"x"]))
        assert full == f"errno {zmq.EAGAIN}"
        assert router.get(zmq.EVENTS) & zmq.POLLOUT
        gone = outcome_of(lambda: library.send(router, [b"nobody", b"x"]))
        assert gone == f"errno {zmq.EHOSTUNREACH}"


def test_what_was_sent_before_closing_arrives(library: Library) -> None:
    left, right = pair(library)
    with closing(right):
        library.send(left, [b"1"])
        library.send(left, [b"2", b"3"])
        left.close(0)
        assert right.recv(zmq.NOBLOCK) == b"1"
        assert right.recv_multipart(zmq.NOBLOCK) == [b"2", b"3"]
        assert outcome_of(lambda: right.recv(zmq.NOBLOCK)) == f"errno {zmq.EAGAIN}"
        # Its end is an edge, and afterwards there is nobody to send to.
        eventually(lambda: library.has_edge(right) + right.get(zmq.EVENTS) == 0)
        assert outcome_of(lambda: library.send(right, [b"x"])) == f"errno {zmq.EAGAIN}"


def test_a_router_drops_what_is_for_a_peer_that_has_gone(library: Library) -> None:
    router, dealer = pair(library, (zmq.ROUTER, zmq.DEALER))
    with closing(router):
        dealer.close(0)
        eventually(lambda: library.has_edge(router))
        library.send(router, [b"peer", b"x"])
        router.set(zmq.ROUTER_MANDATORY, 1)
        gone = outcome_of(lambda: library.send(router, [b"peer", b"x"]))
        assert gone == f"errno {zmq.EHOSTUNREACH}"


def test_the_end_of_the_context_is_an_edge_for_all(library: Library) -> None:
    left, right = pair(library)
    with closing(left), closing(right):
        library.begin_end()
        for socket in (left, right):
            eventually(lambda socket=socket: library.has_edge(socket))
            for call in (
                lambda socket=socket: library.send(socket, [b"x"]),
                lambda socket=socket: socket.recv(zmq.NOBLOCK),
                lambda socket=socket: socket.get(zmq.EVENTS),
                lambda socket=socket: socket.bind("inproc://late"),
            ):
                assert outcome_of(call) == f"errno {zmq.ETERM}"


def test_within_a_millisecond_a_send_does_not_look_again() -> None:
    """The real one: what the model makes a decision of."""
    real = Real()
    left, right = pair(real)
    with closing(left), closing(right):
        seen = set()
        for _ in range(10_000):
            right.send(b"looks, and so the next one needn't", zmq.NOBLOCK)
            left.send(b"message", zmq.NOBLOCK)
            right.send(b"x", zmq.NOBLOCK)
            seen.add(real.has_edge(right))
            for socket in (left, right):
                while socket.get(zmq.EVENTS) & zmq.POLLIN:
                    socket.recv(zmq.NOBLOCK)
            if True in seen:
                break
        assert True in seen
    real.end()
