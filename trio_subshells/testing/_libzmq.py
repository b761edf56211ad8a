"""A model of libzmq, as far as programs can tell that several threads are at work in it.

What is modelled, as libzmq 4.3 does it (`tests/testing/test_libzmq.py` compares the two, call by
call):

- A socket has a mailbox of *commands* from other threads: "your pipe has something to read", "has
  room again", "is about to end", "here is a new pipe", "the context ends". Its descriptor is
  readable while there are some. Sends, failing receives, binds, connects and ``ZMQ_EVENTS`` process
  them all, whatever they are about. A receive that finds a message looks only each hundredth time;
  a send not again within a millisecond, and how long that is, is decided by the schedule.
- A command that there is something to read is sent only if the reader has found the pipe empty
  before; one that there is room, when the reader has taken half of what the pipe may hold.
- High-water marks, the round robin over peers, the routing of a ROUTER, the subscriptions that an
  XSUB sends to each publisher once it has taken notice of it, atomic messages of several frames.
- Over ``tcp`` and ``ipc`` an I/O thread makes the connection and carries each message, some time
  later. Over ``inproc``, a message is in the other socket's pipe at once.
- A closed socket is taken apart by the reaper thread, some time later. What was sent before arrives
  (over ``tcp`` and ``ipc`` only if it lingers). The end of a context waits for all that.

Not modelled: reconnecting, monitors, encryption, sizes of messages and of the system's buffers,
REQ, REP, PUB and the draft kinds; what other options ask for than those that are named here.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol, Self, TypeAlias, cast

import zmq

Command: TypeAlias = Callable[[], None]

_ID: Final = "routing id"
_DELIMITER: Final = "delimiter"
_LOOK_EACH: Final = 100  # receives, if there is always a message


class SignalledDescriptor(Protocol):
    """A descriptor that this module makes readable."""

    number: int
    readable: bool

    def close(self) -> None:
        """It isn't needed any more."""


class Surroundings(Protocol):
    """What the model wants of the threads and descriptors around it."""

    def descriptor(self, name: str) -> SignalledDescriptor:
        """Make a descriptor, which isn't readable."""

    def pause(self) -> None:
        """The calling thread is about to do what others can see."""

    def later(self, name: str, job: Command) -> None:
        """Have one of libzmq's own threads do something."""

    def is_too_soon(self, name: str) -> bool:
        """Whether a socket has last looked at its mailbox within this millisecond."""

    def wait(self, descriptors: Sequence[SignalledDescriptor]) -> None:
        """Block the calling thread until one of them is readable."""


class Frame(NamedTuple):
    """A frame in a pipe.

    Attributes:
        data: what was sent.
        more: whether it is followed by another of the same message.
        kind: what else it is than a message's.
    """

    data: bytes
    more: bool = False
    kind: str | None = None


class _Stream:
    """One direction of a pipe: frames, which its reader sees once the writer has flushed them."""

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self._unflushed: list[Frame] = []
        self._asleep = False

    def write(self, frame: Frame) -> None:
        self._unflushed.append(frame)

    def flush(self) -> bool:
        """Show the reader all whole messages; whether it has to be told."""
        whole = len(self._unflushed)
        while whole and self._unflushed[whole - 1].more:
            whole -= 1
        if not whole:
            return False
        self.frames.extend(self._unflushed[:whole])
        del self._unflushed[:whole]
        asleep, self._asleep = self._asleep, False
        return asleep

    def roll_back(self) -> None:
        """Take back the beginning of a message."""
        while self._unflushed and self._unflushed[-1].more:
            self._unflushed.pop()

    def has_frame(self) -> bool:
        """Whether there is something to read; if not, the writer will tell when there is."""
        if not self.frames:
            self._asleep = True
        return bool(self.frames)


class _Owner:
    """Whose pipes have an end here: a socket, or a connection's end in the I/O thread."""

    def post(self, command: Command) -> None:
        """Have `command` run in the thread of this owner."""
        raise NotImplementedError

    def read_activated(self, pipe: Pipe) -> None:
        """There is something to read, after there was nothing."""

    def write_activated(self, pipe: Pipe) -> None:
        """There is room, after there was none."""

    def terminated(self, pipe: Pipe) -> None:
        """The pipe has ended: forget it."""


class Pipe:
    """One of the two ends of a pipe.

    Args:
        owner: whose end it is.
        incoming: what is read here.
        outgoing: what is written here.
        incoming_mark: how many messages may be on their way to here; 0: any number.
        outgoing_mark: how many may be on their way from here.
    """

    peer: Pipe

    def __init__(
        self,
        owner: _Owner,
        incoming: _Stream,
        outgoing: _Stream,
        incoming_mark: int,
        outgoing_mark: int,
    ) -> None:
        self.owner = owner
        self.identity = b""
        self.incoming = incoming
        self.outgoing: _Stream | None = outgoing
        self._can_read = self._can_write = True
        self.set_marks(incoming_mark, outgoing_mark)
        self._read = self._written = self._read_by_peer = 0
        self.state = "active"
        self.delay = True

    def set_marks(self, incoming: int, outgoing: int) -> None:
        self._low = (incoming + 1) // 2
        self._high = outgoing

    # -- reading

    def _is_readable(self) -> bool:
        return self._can_read and self.state in {"active", "waits for delimiter"}

    def check_read(self) -> bool:
        """Whether there is something to read; if not, the owner will be told when there is."""
        if not self._is_readable():
            return False
        if not self.incoming.has_frame():
            self._can_read = False
            return False
        if self.incoming.frames[0].kind == _DELIMITER:
            self.incoming.frames.popleft()
            self._delimiter()
            return False
        return True

    def read(self) -> Frame | None:
        if not self.check_read():
            return None
        frame = self.incoming.frames.popleft()
        if not frame.more and frame.kind is None:
            self._read += 1
        if self._low and self._read % self._low == 0:
            read, peer = self._read, self.peer
            peer.owner.post(lambda: peer.activate_write(read))
        return frame

    def activate_read(self) -> None:
        if not self._can_read and self.state in {"active", "waits for delimiter"}:
            self._can_read = True
            self.owner.read_activated(self)

    # -- writing

    def has_room(self) -> bool:
        return not self._high or self._written - self._read_by_peer < self._high

    def check_write(self) -> bool:
        """Whether there is room; if not, the owner will be told when there is."""
        if not self._can_write or self.state != "active":
            return False
        self._can_write = self.has_room()
        return self._can_write

    def write(self, frame: Frame) -> bool:
        if not self.check_write():
            return False
        assert self.outgoing is not None
        self.outgoing.write(frame)
        if not frame.more and frame.kind is None:
            self._written += 1
        return True

    def flush(self) -> None:
        if self.outgoing is not None and self.outgoing.flush():
            self.peer.owner.post(self.peer.activate_read)

    def roll_back(self) -> None:
        if self.outgoing is not None:
            self.outgoing.roll_back()

    def activate_write(self, read: int) -> None:
        self._read_by_peer = read
        if not self._can_write and self.state == "active":
            self._can_write = True
            self.owner.write_activated(self)

    # -- the end: either side asks for it, the other agrees once it has read what there is

    def terminate(self, *, delay: bool = False) -> None:
        """Begin the end. With `delay`, not before all has been read."""
        self.delay = delay
        if self.state in {"active", "delimiter read"}:
            self.peer.owner.post(self.peer.asked_to_end)
            self.state = "asked"
        elif self.state == "waits for delimiter":
            if delay:
                return
            self._agree()
        else:
            return
        self._can_write = False
        if self.outgoing is not None:
            self.outgoing.roll_back()
            self.outgoing.write(Frame(b"", kind=_DELIMITER))
            self.flush()

    def asked_to_end(self) -> None:
        if self.state == "active" and self.delay:
            self.state = "waits for delimiter"
        elif self.state == "asked":
            self.state = "both asked"
            self.outgoing = None
            self.peer.owner.post(self.peer.agreed)
        else:
            self._agree()

    def _delimiter(self) -> None:
        if self.state == "active":
            self.state = "delimiter read"
        else:
            self._agree()

    def _agree(self) -> None:
        self.roll_back()
        self.state = "agreed"
        self.outgoing = None
        self.peer.owner.post(self.peer.agreed)

    def agreed(self) -> None:
        if self.state == "asked":
            self.outgoing = None
            self.peer.owner.post(self.peer.agreed)
        self.state = "ended"
        self.owner.terminated(self)


def make_pipe(first: _Owner, second: _Owner, to_first: int, to_second: int) -> tuple[Pipe, Pipe]:
    """Both ends of a new pipe.

    Args:
        first: the owner of one end.
        second: the owner of the other.
        to_first: how many messages may be on their way to `first`; 0: any number.
        to_second: how many to `second`.
    """
    streams = _Stream(), _Stream()
    one = Pipe(first, streams[0], streams[1], to_first, to_second)
    other = Pipe(second, streams[1], streams[0], to_second, to_first)
    one.peer, other.peer = other, one
    return one, other


class _Ring:
    """Pipes that take turns: the active ones, and then those that were found empty, or full."""

    def __init__(self) -> None:
        self.pipes: list[Pipe] = []
        self.active = 0
        self.current = 0
        self.more = False

    def attach(self, pipe: Pipe) -> None:
        self.pipes.append(pipe)
        self.activated(pipe)

    def activated(self, pipe: Pipe) -> None:
        self._swap(self.pipes.index(pipe), self.active)
        self.active += 1

    def remove(self, pipe: Pipe) -> None:
        index = self.pipes.index(pipe)
        if index < self.active:
            self._deactivate(index)
        self.pipes.remove(pipe)

    def next(self) -> None:
        self.current = (self.current + 1) % self.active

    def _deactivate(self, index: int) -> None:
        self.active -= 1
        self._swap(index, self.active)
        if self.current == self.active:
            self.current = 0

    def _swap(self, one: int, other: int) -> None:
        self.pipes[one], self.pipes[other] = self.pipes[other], self.pipes[one]

    def find(self, fits: Callable[[Pipe], bool]) -> Pipe | None:
        """The next pipe that `fits`; those that don't are put aside until they are activated."""
        while self.active:
            pipe = self.pipes[self.current]
            if fits(pipe):
                return pipe
            self._deactivate(self.current)
        return None


class _Receiving:
    """How kinds that receive do it: from each peer in turn."""

    def __init__(self) -> None:
        self._ring = _Ring()

    def attach(self, pipe: Pipe) -> None:
        self._ring.attach(pipe)

    def activated(self, pipe: Pipe) -> None:
        self._ring.activated(pipe)

    def remove(self, pipe: Pipe) -> None:
        self._ring.remove(pipe)

    def receive(self) -> tuple[Frame, Pipe] | None:
        pipe = self._ring.find(Pipe.check_read)
        if pipe is None:
            return None
        frame = pipe.read()
        assert frame is not None
        self._ring.more = frame.more
        if not frame.more:
            self._ring.next()
        return frame, pipe

    def has_in(self) -> bool:
        return self._ring.more or self._ring.find(Pipe.check_read) is not None


class _Sending:
    """How DEALER and PUSH send: to each peer in turn."""

    def __init__(self) -> None:
        self._ring = _Ring()
        self._dropping = False

    def attach(self, pipe: Pipe) -> None:
        self._ring.attach(pipe)

    def activated(self, pipe: Pipe) -> None:
        self._ring.activated(pipe)

    def remove(self, pipe: Pipe) -> None:
        ring = self._ring
        if ring.more and ring.pipes.index(pipe) == ring.current:
            self._dropping = True  # the rest of the message
        ring.remove(pipe)

    def send(self, frame: Frame) -> None:
        ring = self._ring
        if self._dropping:
            ring.more = self._dropping = frame.more
            return
        if ring.more:
            pipe = ring.pipes[ring.current]
            if not pipe.write(frame):
                pipe.roll_back()
                self._dropping = frame.more
                ring.more = False
                raise zmq.Again
        else:
            found = ring.find(Pipe.check_write)
            if found is None:
                raise zmq.Again
            pipe = found
            pipe.write(frame)
        ring.more = frame.more
        if not frame.more:
            pipe.flush()
            ring.next()

    def has_out(self) -> bool:
        return self._ring.more or self._ring.find(Pipe.check_write) is not None


class _Distributing:
    """How XPUB and XSUB send: to all of some peers, but for those that have no room."""

    def __init__(self) -> None:
        self.pipes: list[Pipe] = []
        self._full: set[Pipe] = set()
        self._matching: list[Pipe] = []
        self._more = False

    def attach(self, pipe: Pipe) -> None:
        self.pipes.append(pipe)
        if self._more:
            self._full.add(pipe)  # not the rest of a message only

    def activated(self, pipe: Pipe) -> None:
        self._full.discard(pipe)

    def remove(self, pipe: Pipe) -> None:
        self.pipes.remove(pipe)
        self._full.discard(pipe)
        if pipe in self._matching:
            self._matching.remove(pipe)

    def send(self, frame: Frame, match: Callable[[Pipe], bool], *, lossy: bool) -> None:
        if not self._more:
            self._matching = [each for each in self.pipes if each not in self._full and match(each)]
        if not lossy and not all(each.has_room() for each in self._matching):
            raise zmq.Again
        for pipe in list(self._matching):
            if not pipe.write(frame):
                self._matching.remove(pipe)
                self._full.add(pipe)
            elif not frame.more:
                pipe.flush()
        self._more = frame.more


class Context:
    """What `zmq.Context` is, in the model.

    Args:
        world: where it is.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.sockets: list[Socket] = []
        self._terminating = False
        self._ended = world.surroundings.descriptor("context")

    def get(self, option: int) -> int:
        """Only the limit is known."""
        if option == zmq.SOCKET_LIMIT:
            return 65_535
        raise NotImplementedError(f"the option {option!r} of a context isn't modelled")

    def set(self, option: int, value: int) -> None:
        """There is room enough for all, so nothing happens."""

    def socket(self, kind: int) -> Socket:
        """Open a socket."""
        return Socket(self, kind)

    def term(self) -> None:
        """Tell all sockets, and wait until the last one is closed."""
        self.world.surroundings.pause()
        self._terminating = True
        for socket in self.sockets:
            socket.post(socket.stop)
        self.check_ended()
        self.world.surroundings.wait([self._ended])
        self._ended.close()

    def check_ended(self) -> None:
        """Let `term` go on, if it may."""
        if self._terminating and not self.sockets:
            self._ended.readable = True


class World:
    """All contexts, and what is bound.

    Args:
        surroundings: the threads and descriptors around them.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.bound: dict[tuple[Context | None, str], Socket] = {}
        self.pending: dict[tuple[Context | None, str], list[Command]] = {}
        self.numbers = itertools.count(1)
        self.routing_ids = itertools.count(1)
        self._ports = itertools.count(49_152)

    def actual(self, url: str) -> str:
        """An address without wildcards."""
        scheme, _, place = url.partition("://")
        if scheme == "tcp" and place.rpartition(":")[2] in {"0", "*"}:
            return f"tcp://{place.rpartition(':')[0]}:{next(self._ports)}"
        if scheme == "ipc" and place == "*":
            return f"ipc:///simulated/{next(self._ports)}"
        return url

    def bind(self, key: tuple[Context | None, str], socket: Socket) -> None:
        """Listen; who has waited for that is connected."""
        if key in self.bound:
            raise zmq.ZMQError(errno.EADDRINUSE)
        self.bound[key] = socket
        for connect in self.pending.pop(key, []):
            connect()

    def unbind(self, socket: Socket, url: str | None = None) -> None:
        """Don't listen any more: nowhere, if no address is given."""
        for key in [key for key, each in self.bound.items() if each is socket]:
            if url is None or key[1] == url:
                del self.bound[key]


class Base(_Owner):
    """What pyzmq has in C of its Socket; see `Socket`."""

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False) -> None:
        """Send a frame."""
        self._about_to()
        self._check_alive()
        self._process_commands(throttled=True)
        data = data.bytes if isinstance(data, zmq.Frame) else bytes(data)
        while True:
            try:
                self._send(Frame(data, bool(flags & zmq.SNDMORE)))
            except zmq.Again:
                if flags & zmq.NOBLOCK:
                    raise
                self._wait_for_commands()
            else:
                return

    def _wait_for_commands(self) -> None:
        raise NotImplementedError

    def _about_to(self) -> None:
        raise NotImplementedError

    def _check_alive(self) -> None:
        raise NotImplementedError

    def _process_commands(self, *, throttled: bool = False) -> None:
        raise NotImplementedError

    def _send(self, frame: Frame) -> None:
        raise NotImplementedError


class Socket(Base):
    """What `zmq.Socket` is, in the model: that of kinds that neither send nor receive.

    Args:
        context: where it belongs.
        kind: ROUTER, DEALER, PUSH, PULL, PAIR, XPUB, XSUB or SUB.
    """

    kinds: ClassVar[dict[int, type[Socket]]] = {}
    wants_routing_id: ClassVar = False

    def __new__(cls, context: Context, kind: int) -> Self:
        """An object of the class for that kind."""
        found = cls.kinds.get(kind)
        if found is None:
            raise NotImplementedError(f"{zmq.SocketType(kind).name} sockets aren't modelled")
        return cast("Self", object.__new__(found))

    def __init__(self, context: Context, kind: int) -> None:
        if context._terminating:
            raise zmq.ContextTerminated
        self._context = context
        self._world = context.world
        self._surroundings = context.world.surroundings
        self._kind = kind
        self.name = f"{zmq.SocketType(kind).name}-{next(self._world.numbers)}"
        self._options: dict[int, Any] = {
            zmq.SNDHWM: 1000,
            zmq.RCVHWM: 1000,
            zmq.LINGER: -1,
            zmq.IDENTITY: b"",
            zmq.LAST_ENDPOINT: b"",
            zmq.TYPE: kind,
        }
        self._commands: deque[Command] = deque()
        self._descriptor = self._surroundings.descriptor(self.name)
        self._pipes: dict[Pipe, str] = {}
        self._ends: list[_End] = []
        self._received = 0
        self._more = False
        self._has_sent = False
        self._stopped = False
        self._reaped = False
        self.closed = False
        context.sockets.append(self)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<simulated {self.name}>"

    # -- what each kind does its own way

    def _attach(self, pipe: Pipe) -> None:
        raise NotImplementedError

    def _receive(self) -> Frame | None:
        raise zmq.ZMQError(errno.ENOTSUP)

    def _send(self, frame: Frame) -> None:
        raise zmq.ZMQError(errno.ENOTSUP)

    def _has_in(self) -> bool:
        return False

    def _has_out(self) -> bool:
        return False

    # -- commands

    def post(self, command: Command) -> None:
        """Put a command into the mailbox, and make the descriptor readable."""
        self._commands.append(command)
        if self._reaped:
            self._surroundings.later(f"{self.name} ends", self._run_commands)
        else:
            self._descriptor.readable = True

    def stop(self) -> None:
        """The command that says that the context ends."""
        self._stopped = True

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()
        if not self._reaped:
            self._descriptor.readable = False

    def _process_commands(self, *, throttled: bool = False) -> None:
        if throttled:
            has_sent, self._has_sent = self._has_sent, True
            if self._commands and has_sent and self._surroundings.is_too_soon(self.name):
                return
        self._run_commands()
        self._check_alive()

    def _wait_for_commands(self) -> None:
        self._surroundings.wait([self._descriptor])
        self._process_commands()

    def _about_to(self) -> None:
        """Another thread may come first, if it can see what is about to be done."""
        self._surroundings.pause()

    def _check_alive(self) -> None:
        if self.closed:
            raise zmq.ZMQError(errno.ENOTSOCK)
        if self._stopped:
            raise zmq.ContextTerminated

    # -- the calls of pyzmq

    def send_multipart(self, frames: Sequence[Any], flags: int = 0) -> None:
        """Send all frames of a message."""
        for frame in frames[:-1]:
            self.send(frame, flags | zmq.SNDMORE)
        self.send(frames[-1], flags)

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> bytes:
        """Receive a frame."""
        self._about_to()
        self._check_alive()
        self._received += 1
        if self._received == _LOOK_EACH:
            self._process_commands()
            self._received = 0
        frame = self._receive()
        if frame is None:
            self._process_commands()
            self._received = 0
            while (frame := self._receive()) is None:
                if flags & zmq.NOBLOCK:
                    raise zmq.Again
                self._wait_for_commands()
        self._more = frame.more
        return frame.data

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        """Receive all frames of a message."""
        frames = [self.recv(flags)]
        while self._more:
            frames.append(self.recv(flags))
        return frames

    def get(self, option: int) -> Any:
        """The value of an option."""
        if option == zmq.EVENTS:
            self._about_to()
        self._check_alive()
        if option == zmq.FD:
            return self._descriptor.number
        if option == zmq.RCVMORE:
            return int(self._more)
        if option == zmq.EVENTS:
            self._process_commands()
            events = int(zmq.POLLOUT) if self._has_out() else 0
            return events | zmq.POLLIN if self._has_in() else events
        return self._options.get(option, 0)

    def set(self, option: int, value: Any) -> None:
        """Set an option."""
        self._check_alive()
        self._options[option] = value

    def bind(self, url: str) -> None:
        """Listen at an address."""
        self._about_to()
        self._check_alive()
        self._process_commands()
        url = self._world.actual(url)
        self._world.bind(self._key(url), self)
        self._options[zmq.LAST_ENDPOINT] = url.encode()

    def unbind(self, url: str) -> None:
        """Don't listen any more."""
        self._about_to()
        self._check_alive()
        self._process_commands()
        self._world.unbind(self, url)

    def connect(self, url: str) -> None:
        """Connect to an address, where perhaps nobody listens yet."""
        self._about_to()
        self._check_alive()
        self._process_commands()
        if url.startswith("inproc:"):
            self._connect_here(url)
        else:
            self._add_pipe(_Link(self, url).pipe, url)
        self._options[zmq.LAST_ENDPOINT] = url.encode()

    def disconnect(self, url: str) -> None:
        """Undo `connect`."""
        self._about_to()
        self._check_alive()
        self._process_commands()
        for pipe in [pipe for pipe, at in self._pipes.items() if at == url]:
            pipe.terminate()

    def close(self, linger: int | None = None) -> None:
        """Give the socket to the reaper."""
        if self.closed:
            return
        self._about_to()
        self.closed = True
        if linger is None:
            linger = self._options[zmq.LINGER]
        self._surroundings.later(f"{self.name} is closed", lambda: self._reap(linger))

    def monitor(self, url: str | None, events: int = 0) -> None:
        """Nothing is told."""

    def disable_monitor(self) -> None:
        """Nothing was told."""

    # -- connections

    def _key(self, url: str) -> tuple[Context | None, str]:
        return self._context if url.startswith("inproc:") else None, url

    def _mark(self, option: int) -> int:
        return int(self._options[option])

    def _add_pipe(self, pipe: Pipe, url: str = "") -> None:
        self._pipes[pipe] = url
        if self._reaped:
            pipe.terminate()
        self._attach(pipe)

    def _connect_here(self, url: str) -> None:
        """Over inproc: the two sockets share a pipe."""
        key = self._key(url)
        peer = self._world.bound.get(key)
        if peer is None:
            here, there = make_pipe(self, self, self._mark(zmq.RCVHWM), self._mark(zmq.SNDHWM))
            self._write_routing_id(here)
            there.delay = False  # nobody reads it
            self._world.pending.setdefault(key, []).append(lambda: self._meet(key, here, there))
            self._add_pipe(here, url)
            return
        here, there = make_pipe(
            self,
            peer,
            _sum(self._mark(zmq.RCVHWM), peer._mark(zmq.SNDHWM)),
            _sum(self._mark(zmq.SNDHWM), peer._mark(zmq.RCVHWM)),
        )
        if peer.wants_routing_id:
            self._write_routing_id(here)
        if self.wants_routing_id:
            peer._write_routing_id(there)
        peer.post(lambda: peer._add_pipe(there))
        self._add_pipe(here, url)

    def _meet(self, key: tuple[Context | None, str], here: Pipe, there: Pipe) -> None:
        """The address that this socket is connected to has been bound."""
        if here.state != "active":
            return
        peer = self._world.bound[key]
        there.owner, there.delay = peer, True
        to_here = _sum(self._mark(zmq.RCVHWM), peer._mark(zmq.SNDHWM))
        to_there = _sum(self._mark(zmq.SNDHWM), peer._mark(zmq.RCVHWM))
        here.set_marks(to_here, to_there)
        there.set_marks(to_there, to_here)
        if not peer.wants_routing_id:
            there.read()
        peer._add_pipe(there)
        self.post(lambda: None)  # it is told that it isn't alone any more
        if self.wants_routing_id:
            peer._write_routing_id(there)

    def _write_routing_id(self, pipe: Pipe) -> None:
        pipe.write(Frame(self._options[zmq.IDENTITY], kind=_ID))
        pipe.flush()

    # -- the end

    def _reap(self, linger: int) -> None:
        self._reaped = True
        self._descriptor.close()
        self._world.unbind(self)
        for end in self._ends:
            end.lingers = linger != 0
        self._run_commands()
        for pipe in list(self._pipes):
            pipe.terminate()
        self._check_gone()

    def terminated(self, pipe: Pipe) -> None:
        """A pipe has ended."""
        if pipe not in self._pipes:
            return  # the other end of one for which nobody has come
        del self._pipes[pipe]
        self._forget(pipe)
        self._check_gone()

    def _forget(self, pipe: Pipe) -> None:
        raise NotImplementedError

    def _check_gone(self) -> None:
        if self._reaped and not self._pipes and self in self._context.sockets:
            self._context.sockets.remove(self)
            self._context.check_ended()


def _sum(one: int, other: int) -> int:
    """The high-water mark of a pipe that two sockets share; 0 is none."""
    return one + other if one and other else 0


class _Link:
    """A connection over the network: what two I/O threads carry from one socket to the other.

    Args:
        socket: the one that connects.
        url: where to.
    """

    def __init__(self, socket: Socket, url: str) -> None:
        self._socket = socket
        self._url = url
        self._end = _End(socket, f"{socket.name} > {url}")
        self.pipe = self._end.make_pipe()
        self._try_to_meet()

    def _try_to_meet(self) -> None:
        world, key = self._socket._world, self._socket._key(self._url)
        if key in world.bound:
            world.surroundings.later(f"{self._socket.name} connects", self._meet)
        else:
            world.pending.setdefault(key, []).append(self._try_to_meet)

    def _meet(self) -> None:
        here = self._socket
        there = here._world.bound.get(here._key(self._url))
        if self._end.pipe.state != "active":
            return
        if there is None:
            self._try_to_meet()
            return
        first, second = self._end, _End(there, f"{there.name} > {here.name}")
        first.name = f"{here.name} > {there.name}"
        pipe = second.make_pipe()
        first.other, second.other = second, first
        if here.wants_routing_id:
            there._write_routing_id(first.pipe)
        if there.wants_routing_id:
            here._write_routing_id(second.pipe)
        there.post(lambda: there._add_pipe(pipe))
        first.look()
        second.look()


class _End(_Owner):
    """The end of a pipe that an I/O thread owns.

    Args:
        socket: who has the other.
        name: for people.
    """

    pipe: Pipe

    def __init__(self, socket: Socket, name: str) -> None:
        self._socket = socket
        self.name = name
        self.other: _End | None = None
        self.lingers = True
        self._works = False
        socket._ends.append(self)

    def make_pipe(self) -> Pipe:
        """Make the pipe; returns the socket's end of it."""
        mark_in, mark_out = self._socket._mark(zmq.RCVHWM), self._socket._mark(zmq.SNDHWM)
        pipe, self.pipe = make_pipe(self._socket, self, mark_in, mark_out)
        return pipe

    def post(self, command: Command) -> None:
        """The I/O thread is never busy with anything else."""
        command()
        self.look()

    def write_activated(self, pipe: Pipe) -> None:
        """The other side may go on."""
        if self.other is not None:
            self.other.look()

    def look(self) -> None:
        """Carry a message, some time later, if there is one and room for it."""
        pipe, other = self.pipe, self.other
        if pipe.state == "waits for delimiter" and (other is None or not self.lingers):
            pipe.terminate()
        if other is None or self._works:
            return
        if pipe.check_read():
            if other.pipe.check_write():
                self._works = True
                self._socket._surroundings.later(self.name, self._carry)
        elif pipe.state == "agreed":
            other.pipe.terminate()

    def _carry(self) -> None:
        self._works = False
        assert self.other is not None
        while (frame := self.pipe.read()) is not None:
            self.other.pipe.write(frame)
            if not frame.more:
                break
        self.other.pipe.flush()
        self.look()

    def terminated(self, pipe: Pipe) -> None:
        """The socket has asked for the end, or agreed to it."""
        if self.other is not None:
            self.other.pipe.terminate()


class _Receiver(Socket):
    """A kind that receives from each peer in turn."""

    def __init__(self, context: Context, kind: int) -> None:
        super().__init__(context, kind)
        self._incoming = _Receiving()

    def _attach(self, pipe: Pipe) -> None:
        self._incoming.attach(pipe)

    def read_activated(self, pipe: Pipe) -> None:
        self._incoming.activated(pipe)

    def _forget(self, pipe: Pipe) -> None:
        self._incoming.remove(pipe)

    def _receive(self) -> Frame | None:
        found = self._incoming.receive()
        return found and found[0]

    def _has_in(self) -> bool:
        return self._incoming.has_in()


class _Sender(Socket):
    """A kind that sends to each peer in turn."""

    def __init__(self, context: Context, kind: int) -> None:
        super().__init__(context, kind)
        self._outgoing = _Sending()

    def _attach(self, pipe: Pipe) -> None:
        self._outgoing.attach(pipe)

    def write_activated(self, pipe: Pipe) -> None:
        self._outgoing.activated(pipe)

    def _forget(self, pipe: Pipe) -> None:
        self._outgoing.remove(pipe)

    def _send(self, frame: Frame) -> None:
        self._outgoing.send(frame)

    def _has_out(self) -> bool:
        return self._outgoing.has_out()


class _Pull(_Receiver):
    """PULL."""


class _Push(_Sender):
    """PUSH."""

    def _attach(self, pipe: Pipe) -> None:
        pipe.delay = False  # nobody would read the delimiter
        super()._attach(pipe)


class _Dealer(_Sender, _Receiver):
    """DEALER."""

    def _attach(self, pipe: Pipe) -> None:
        self._incoming.attach(pipe)
        self._outgoing.attach(pipe)

    def _forget(self, pipe: Pipe) -> None:
        self._incoming.remove(pipe)
        self._outgoing.remove(pipe)


class _Pair(Socket):
    """PAIR: the first to come is the peer."""

    _pipe: Pipe | None = None

    def _attach(self, pipe: Pipe) -> None:
        if self._pipe is None:
            self._pipe = pipe
        else:
            pipe.terminate()

    def _forget(self, pipe: Pipe) -> None:
        if pipe is self._pipe:
            self._pipe = None

    def _receive(self) -> Frame | None:
        return None if self._pipe is None else self._pipe.read()

    def _send(self, frame: Frame) -> None:
        if self._pipe is None or not self._pipe.write(frame):
            raise zmq.Again
        if not frame.more:
            self._pipe.flush()

    def _has_in(self) -> bool:
        return self._pipe is not None and self._pipe.check_read()

    def _has_out(self) -> bool:
        return self._pipe is not None and self._pipe.check_write()


class _Router(_Receiver):
    """ROUTER."""

    wants_routing_id = True

    def __init__(self, context: Context, kind: int) -> None:
        super().__init__(context, kind)
        self._routes: dict[bytes, Pipe] = {}
        self._nameless: set[Pipe] = set()
        self._current: Pipe | None = None
        self._sending = False
        self._receiving = False
        self._ready: deque[Frame] = deque()

    def _attach(self, pipe: Pipe) -> None:
        if self._identify(pipe):
            self._incoming.attach(pipe)
        else:
            self._nameless.add(pipe)

    def _identify(self, pipe: Pipe) -> bool:
        frame = pipe.read()
        if frame is None:
            return False
        identity = frame.data
        if not identity:
            identity = self._new_identity()
        elif identity in self._routes:
            if not self._options.get(zmq.ROUTER_HANDOVER):
                return False
            old = self._routes.pop(identity)
            old.identity = self._new_identity()
            self._routes[old.identity] = old
            old.terminate(delay=True)
        pipe.identity = identity
        self._routes[identity] = pipe
        return True

    def _new_identity(self) -> bytes:
        return b"\0" + next(self._world.routing_ids).to_bytes(4, "big")

    def read_activated(self, pipe: Pipe) -> None:
        if pipe not in self._nameless:
            super().read_activated(pipe)
        elif self._identify(pipe):
            self._nameless.remove(pipe)
            self._incoming.attach(pipe)

    def _forget(self, pipe: Pipe) -> None:
        if pipe in self._nameless:
            self._nameless.remove(pipe)
            return
        del self._routes[pipe.identity]
        super()._forget(pipe)
        pipe.roll_back()
        if pipe is self._current:
            self._current = None

    def _send(self, frame: Frame) -> None:
        if not self._sending:
            if frame.more:
                self._sending = True
                try:
                    self._current = self._route(frame.data)
                except zmq.ZMQError:
                    self._sending = False
                    raise
            return
        self._sending = frame.more
        pipe = self._current
        if pipe is None:
            return
        if not pipe.write(frame):
            pipe.roll_back()
            self._current = None
        elif not frame.more:
            pipe.flush()
            self._current = None

    def _route(self, identity: bytes) -> Pipe | None:
        """Who is meant; None: nobody, and the message is dropped."""
        pipe = self._routes.get(identity)
        if pipe is not None and pipe.check_write():
            return pipe
        if self._options.get(zmq.ROUTER_MANDATORY):
            if pipe is not None and not pipe.has_room():
                raise zmq.Again
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        return None

    def _fetch(self) -> bool:
        """Have a frame ready, if there is one."""
        while not self._ready:
            found = self._incoming.receive()
            if found is None:
                return False
            frame, pipe = found
            if frame.kind == _ID:
                continue
            if not self._receiving:
                self._ready.append(Frame(pipe.identity, more=True))
            self._ready.append(frame)
            self._receiving = frame.more
        return True

    def _receive(self) -> Frame | None:
        return self._ready.popleft() if self._fetch() else None

    def _has_in(self) -> bool:
        return self._fetch()

    def _has_out(self) -> bool:
        if not self._options.get(zmq.ROUTER_MANDATORY):
            return True
        return any(pipe.has_room() for pipe in self._routes.values())


class _XSub(_Receiver):
    """XSUB."""

    filters: ClassVar = False

    def __init__(self, context: Context, kind: int) -> None:
        super().__init__(context, kind)
        self._distribution = _Distributing()
        self._topics: dict[bytes, int] = {}
        self._ready: Frame | None = None

    def _attach(self, pipe: Pipe) -> None:
        super()._attach(pipe)
        self._distribution.attach(pipe)
        for topic in sorted(self._topics):
            pipe.write(Frame(b"\1" + topic))
        pipe.flush()

    def write_activated(self, pipe: Pipe) -> None:
        self._distribution.activated(pipe)

    def _forget(self, pipe: Pipe) -> None:
        super()._forget(pipe)
        self._distribution.remove(pipe)

    def _send(self, frame: Frame) -> None:
        topic = frame.data[1:]
        if frame.data[:1] == b"\1":
            self._topics[topic] = self._topics.get(topic, 0) + 1
        elif frame.data[:1] == b"\0":
            count = self._topics.pop(topic, 0)
            if count > 1:
                self._topics[topic] = count - 1
            if count != 1:
                return
        self._distribution.send(frame, lambda pipe: True, lossy=True)

    def _has_out(self) -> bool:
        return True

    def _receive(self) -> Frame | None:
        frame, self._ready = self._ready, None
        while frame is None:
            within = self._incoming._ring.more
            found = self._incoming.receive()
            if found is None:
                return None
            if within or not self.filters or any(map(found[0].data.startswith, self._topics)):
                frame = found[0]
            else:
                while found is not None and found[0].more:
                    found = self._incoming.receive()
        return frame

    def _has_in(self) -> bool:
        self._ready = self._receive()
        return self._ready is not None


class _Sub(_XSub):
    """SUB: unlike an XSUB, it looks whether it has subscribed to what comes."""

    filters = True

    def set(self, option: int, value: Any) -> None:
        """Set an option; the subscriptions are such."""
        if option in {zmq.SUBSCRIBE, zmq.UNSUBSCRIBE}:
            self._check_alive()
            super()._send(Frame((b"\1" if option == zmq.SUBSCRIBE else b"\0") + value))
        else:
            super().set(option, value)

    def _send(self, frame: Frame) -> None:
        raise zmq.ZMQError(errno.ENOTSUP)

    def _has_out(self) -> bool:
        return False


class _XPub(Socket):
    """XPUB."""

    def __init__(self, context: Context, kind: int) -> None:
        super().__init__(context, kind)
        self._distribution = _Distributing()
        self._subscribers: dict[bytes, set[Pipe]] = {}
        self._notices: deque[Frame] = deque()

    def _attach(self, pipe: Pipe) -> None:
        self._distribution.attach(pipe)
        self.read_activated(pipe)

    def read_activated(self, pipe: Pipe) -> None:
        while (frame := pipe.read()) is not None:
            if frame.kind is not None:
                continue
            topic = frame.data[1:]
            if frame.data[:1] == b"\1":
                subscribers = self._subscribers.setdefault(topic, set())
                if not subscribers or self._option(zmq.XPUB_VERBOSE, zmq.XPUB_VERBOSER):
                    self._notices.append(Frame(frame.data))
                subscribers.add(pipe)
            elif frame.data[:1] == b"\0":
                if self._leave(topic, pipe) or self._option(zmq.XPUB_VERBOSER):
                    self._notices.append(Frame(frame.data))
            else:
                self._notices.append(frame)

    def _option(self, *options: int) -> bool:
        return any(self._options.get(option) for option in options)

    def _leave(self, topic: bytes, pipe: Pipe) -> bool:
        """Whether nobody is left who has subscribed to that."""
        subscribers = self._subscribers.get(topic, set())
        subscribers.discard(pipe)
        if not subscribers:
            self._subscribers.pop(topic, None)
        return not subscribers

    def write_activated(self, pipe: Pipe) -> None:
        self._distribution.activated(pipe)

    def _forget(self, pipe: Pipe) -> None:
        for topic in sorted(self._subscribers):
            if pipe in self._subscribers[topic] and (
                self._leave(topic, pipe) or self._option(zmq.XPUB_VERBOSER)
            ):
                self._notices.append(Frame(b"\0" + topic))
        self._distribution.remove(pipe)

    def _send(self, frame: Frame) -> None:
        topics = [topic for topic in self._subscribers if frame.data.startswith(topic)]
        self._distribution.send(
            frame,
            lambda pipe: any(pipe in self._subscribers[topic] for topic in topics),
            lossy=not self._option(zmq.XPUB_NODROP),
        )

    def _receive(self) -> Frame | None:
        return self._notices.popleft() if self._notices else None

    def _has_in(self) -> bool:
        return bool(self._notices)

    def _has_out(self) -> bool:
        return True


Socket.kinds.update(
    {
        zmq.DEALER: _Dealer,
        zmq.PAIR: _Pair,
        zmq.PULL: _Pull,
        zmq.PUSH: _Push,
        zmq.ROUTER: _Router,
        zmq.SUB: _Sub,
        zmq.XPUB: _XPub,
        zmq.XSUB: _XSub,
    }
)


def proxy_steerable(frontend: Socket, backend: Socket, control: Socket | None = None) -> None:
    """Carry messages both ways until the context ends, or `control` is told ``TERMINATE``."""
    sockets = [each for each in (control, frontend, backend) if each is not None]
    ways = [(frontend, backend), (backend, frontend)][: 1 if frontend is backend else 2]
    while True:
        ready = [each for each in sockets if each.get(zmq.EVENTS) & zmq.POLLIN]
        if control in ready:
            assert control is not None
            if control.recv_multipart(zmq.NOBLOCK) == [b"TERMINATE"]:
                return
        idle = True
        for source, target in ways:
            if source in ready and target.get(zmq.EVENTS) & zmq.POLLOUT:
                target.send_multipart(source.recv_multipart(zmq.NOBLOCK), zmq.NOBLOCK)
                idle = False
        if idle:
            frontend._surroundings.wait([each._descriptor for each in sockets])
