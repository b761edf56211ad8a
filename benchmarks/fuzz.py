"""A fuzzer that drives a whole kernel over its real sockets, and knows what it is owed.

    python benchmarks/fuzz.py trio-python --messages 1000000 --seed 1

It sends well-formed requests, requests with something wrong inside, and what is no message at all
or not to be trusted, on all channels, mixed. It checks that

- every request that was rightly signed, whatever is wrong inside, gets exactly one reply of the
  right type, and exactly one busy and one idle;
- comm messages get busy and idle, and no reply;
- nothing else is answered;
- at the end everything still works, for a new client too;

and it shows the resident memory, the threads and the descriptors of the kernel as it goes. The exit
code says whether all was as it should be. A kernel is named as in ``compare.py``.
"""

from __future__ import annotations

import argparse
import hmac
import json
import random
import socket as sockets
import sys
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import psutil  # type: ignore[import-untyped]
import zmq
from _client import ProbeFailed
from _kernels import KernelNotFound, RunningKernel, find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DELIMITER = b"<IDS|MSG>"
SESSION = "fuzz"
CHANNELS = ("shell", "control", "stdin")

#: Requests that may be unanswered at the same time.
WINDOW = 300
#: Seconds without any answer until the kernel counts as hung.
LONG = 60.0
#: Messages of the beginning after which memory is taken as what a warm kernel needs.
WARM = 0.2
#: Subshells at the same time.
MOST_SUBSHELLS = 4

SHELL: dict[str, dict[str, Any]] = {
    "execute_request": {
        "code": "1",
        "silent": False,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    },
    "complete_request": {"code": "a", "cursor_pos": 1},
    "inspect_request": {"code": "a", "cursor_pos": 1, "detail_level": 0},
    "is_complete_request": {"code": "a"},
    "history_request": {
        "hist_access_type": "tail",
        "output": False,
        "raw": True,
        "n": 3,
        "session": 0,
        "start": 0,
        "stop": 1,
        "pattern": "*",
        "unique": False,
    },
    "comm_info_request": {"target_name": "t"},
    "kernel_info_request": {},
    "connect_request": {},
    "unknown_request": {"a": [1]},
}
COMMS: dict[str, dict[str, Any]] = {
    "comm_open": {"comm_id": "c", "target_name": "t", "data": {}},
    "comm_msg": {"comm_id": "c", "data": {"a": 1}},
    "comm_close": {"comm_id": "c", "data": {}},
}
CONTROL: dict[str, dict[str, Any]] = {
    "kernel_info_request": {},
    "list_subshell_request": {},
    "interrupt_request": {},
    "delete_subshell_request": {"subshell_id": "nobody", "timeout": 5},
    "debug_request": {"type": "request", "command": "debugInfo", "seq": 1, "arguments": {}},
    "usage_request": {},
    "unknown_request": {"a": [1]},
}
OF_KERNELS = ("execute_reply", "kernel_info_reply", "status", "stream", "input_request", "error")


@attrs.define
class Owed:
    """What a kernel has still to say about a message."""

    msg_type: str
    replies: int  # 0 or 1
    busy: int = 1
    idle: int = 1

    @property
    def done(self) -> bool:
        return not (self.replies or self.busy or self.idle)


@attrs.frozen
class Shot:
    """Frames to send on a channel, and what is owed for them, if anything."""

    kind: str
    channel: str
    frames: list[bytes]
    msg_id: str | None = None
    owed: Owed | None = None


class Gun:
    """Makes messages of all kinds, from a seed.

    Args:
        rng: where the choices come from.
        key: of the connection.
        subshells: the ids that exist, as far as is known.
    """

    def __init__(self, rng: random.Random, key: bytes, subshells: Sequence[str]) -> None:
        self._rng = rng
        self._hmac = hmac.new(key, digestmod="sha256")
        self._subshells = subshells
        self._numbers = iter(range(sys.maxsize))
        self._sent: deque[tuple[str, list[bytes]]] = deque(maxlen=100)
        self._kinds: dict[Callable[[], Shot], float] = {
            self._valid: 30,
            self._wrong_field: 25,
            self._unreadable: 12,
            self._comm: 6,
            self._create_or_delete: 0.2,
            self._of_a_kernel: 3,
            self._replayed: 5,
            self._bad_header: 8,
            self._forged: 6,
            self._mangled: 8,
            self._cut: 5,
            self._garbage: 4,
            self._on_stdin: 3,
            self._large: 0.05,
        }

    def shoot(self) -> Shot:
        """Return the next message."""
        make = self._rng.choices(list(self._kinds), list(self._kinds.values()))[0]
        shot = make()
        if shot.owed is not None:
            self._sent.append((shot.channel, shot.frames))
        return shot

    # ---------------------------------------------------------------- what is owed an answer

    def request(
        self,
        kind: str,
        channel: str,
        msg_type: str,
        content: Any,
        *,
        replies: int = 1,
        metadata: Any = None,
        subshell_id: str | None = None,
        raw: Mapping[int, bytes] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> Shot:
        """A message that is rightly signed; `raw` are frames to put in the place of others."""
        msg_id = f"fuzz{next(self._numbers)}"
        header = {"msg_id": msg_id, "msg_type": msg_type, "session": SESSION, "username": "u"}
        if subshell_id is not None:
            header["subshell_id"] = subshell_id
        parts = [_json(header), b"{}", _json(metadata or {}), _json(content)]
        for index, frame in (raw or {}).items():
            parts[index] = frame
        idents = [
            self._bytes(self._rng.randrange(8)) for _ in range(self._rng.choice((0, 0, 0, 2)))
        ]
        idents = [ident for ident in idents if ident != DELIMITER]
        frames = [*idents, DELIMITER, self._sign(parts), *parts, *buffers]
        return Shot(kind, channel, frames, msg_id, Owed(msg_type, replies))

    def _some_request(self) -> tuple[str, str, dict[str, Any]]:
        channel, requests = self._rng.choice(
            (("shell", SHELL), ("shell", SHELL), ("control", CONTROL))
        )
        msg_type = self._rng.choice(list(requests))
        return channel, msg_type, requests[msg_type]

    def _subshell(self, channel: str) -> str | None:
        if channel == "shell" and self._subshells and self._rng.random() < 0.3:
            return self._rng.choice(self._subshells)
        return None

    def _valid(self) -> Shot:
        channel, msg_type, content = self._some_request()
        return self.request(
            "valid", channel, msg_type, content, subshell_id=self._subshell(channel)
        )

    def _wrong_field(self) -> Shot:
        channel, msg_type, content = self._some_request()
        changed = dict(content)
        for _ in range(self._rng.choice((1, 1, 2, 5))):
            name = self._rng.choice([*content, "subshell_id", "timeout", "new"])
            if self._rng.random() < 0.1:
                changed.pop(name, None)
            else:
                changed[name] = self._value(3)
        if msg_type == "delete_subshell_request" and not isinstance(changed.get("timeout"), str):
            changed["timeout"] = min(1.0, self._rng.random())
        metadata = {"timeout": self._value(1)} if self._rng.random() < 0.1 else None
        return self.request("wrong field", channel, msg_type, changed, metadata=metadata)

    def _unreadable(self) -> Shot:
        channel, msg_type, content = self._some_request()
        where = self._rng.choice((1, 2, 3))
        frame = self._rng.choice(
            (
                b"",
                b"{",
                b"[]",
                b"nul",
                b"\xff\xfe",
                b'{"a":NaN}',
                b'{"a":"\\ud800"}',
                b'{"\xed\xa0\x80":1}',
                b"[" * self._rng.choice((10, 900, 1100, 50_000)),
                b'{"a":' * 900 + b"1" + b"}" * 900,
                b"9" * self._rng.choice((20, 400, 5000)),
                _json(self._value(4)),
                self._bytes(self._rng.randrange(40)),
            )
        )
        return self.request("unreadable", channel, msg_type, content, raw={where: frame})

    def _comm(self) -> Shot:
        msg_type = self._rng.choice(list(COMMS))
        content = dict(COMMS[msg_type])
        if self._rng.random() < 0.5:
            content[self._rng.choice(list(content))] = self._value(3)
        buffers = [self._bytes(self._rng.randrange(1000)) for _ in range(self._rng.randrange(3))]
        return self.request(
            "comm",
            "shell",
            msg_type,
            content,
            replies=0,
            buffers=buffers,
            subshell_id=self._subshell("shell"),
        )

    def _create_or_delete(self) -> Shot:
        if len(self._subshells) < MOST_SUBSHELLS:
            return self.request("create", "control", "create_subshell_request", {})
        content = {"subshell_id": self._rng.choice(self._subshells)}
        return self.request("delete", "control", "delete_subshell_request", content)

    def _large(self) -> Shot:
        size = self._rng.choice((1 << 16, 1 << 20, 1 << 22))
        if self._rng.random() < 0.5:
            return self._unsigned("large", [DELIMITER, b"", *[b" " * size] * 4])
        return self.request(
            "large", "shell", "comm_msg", COMMS["comm_msg"], replies=0, buffers=[bytes(size)]
        )

    # ----------------------------------------------------------------- what is owed nothing

    def _unsigned(self, kind: str, frames: list[bytes], channel: str | None = None) -> Shot:
        return Shot(kind, channel or self._rng.choice(CHANNELS), frames)

    def _of_a_kernel(self) -> Shot:
        channel = self._rng.choice(("shell", "control"))
        shot = self.request("of a kernel", channel, self._rng.choice(OF_KERNELS), {"status": "ok"})
        return self._unsigned(shot.kind, shot.frames, channel)

    def _replayed(self) -> Shot:
        if not self._sent:
            return self._garbage()
        channel, frames = self._rng.choice(self._sent)
        # Another channel is no way around it. But there it may come before the first one, which
        # then is the replay; so the channel stays the same.
        return self._unsigned("replayed", frames, channel)

    def _bad_header(self) -> Shot:
        header: Any = {"msg_id": "bad", "msg_type": "execute_request"}
        match self._rng.randrange(4):
            case 0:
                header = self._value(2) or [{}]
                if isinstance(header, dict):
                    header = [header]
            case 1:
                del header[self._rng.choice(list(header))]
            case 2:
                header[self._rng.choice(list(header))] = self._rng.choice(
                    (7, "", [], {}, None, True)
                )
            case 3:
                header["subshell_id"] = self._rng.choice((7, [], {}, True, 1.5))
        frame = self._rng.choice((_json(header), _json(header), _json(header)[:-2], b"\xff", b""))
        shot = self.request("bad header", "shell", "execute_request", {}, raw={0: frame})
        return self._unsigned(shot.kind, shot.frames)

    def _forged(self) -> Shot:
        channel, msg_type, content = self._some_request()
        frames = self.request("forged", channel, msg_type, content).frames
        at = frames.index(DELIMITER) + 1
        frames[at] = self._rng.choice((b"", b"0" * 64, frames[at].upper() + b"0", self._bytes(64)))
        return self._unsigned("forged", frames, channel)

    def _mangled(self) -> Shot:
        """A signed part changed after it was signed."""
        channel, msg_type, content = self._some_request()
        frames = self.request("mangled", channel, msg_type, content).frames
        at = self._rng.randrange(frames.index(DELIMITER) + 2, len(frames))
        frame = bytearray(frames[at])
        match self._rng.randrange(3):
            case 0:
                frame[self._rng.randrange(len(frame))] ^= 1 << self._rng.randrange(8)
            case 1:
                del frame[self._rng.randrange(len(frame)) :]
            case 2:
                frame += self._bytes(1 + self._rng.randrange(20))
        frames[at] = bytes(frame)
        return self._unsigned("mangled", frames, channel)

    def _cut(self) -> Shot:
        """Frames missing, or one too many before what is signed."""
        channel, msg_type, content = self._some_request()
        frames = self.request("cut", channel, msg_type, content).frames
        if self._rng.random() < 0.3:
            frames.insert(frames.index(DELIMITER) + 1, self._bytes(5))
        else:
            del frames[self._rng.randrange(frames.index(DELIMITER), len(frames))]
        return self._unsigned("cut", frames or [b""], channel)

    def _garbage(self) -> Shot:
        count = self._rng.choice((1, 2, 7, 7, 50))
        return self._unsigned(
            "garbage", [self._bytes(self._rng.randrange(60)) for _ in range(count)]
        )

    def _on_stdin(self) -> Shot:
        msg_type = self._rng.choice(("input_reply", "input_reply", "execute_request", "status"))
        content = {"value": self._rng.choice(("text", None, 7, [])), "status": "ok"}
        shot = self.request("stdin", "stdin", msg_type, content)
        return self._unsigned(shot.kind, shot.frames, "stdin")

    # ------------------------------------------------------------------------------- details

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        mac = self._hmac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()

    def _bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def _value(self, depth: int) -> Any:
        """Any JSON value."""
        rng = self._rng
        match rng.randrange(11 if depth else 9):
            case 0:
                return None
            case 1:
                return rng.random() < 0.5
            case 2:
                return rng.randrange(-3, 4)
            case 3:
                return rng.choice((2**31, -(2**63), 2**64, 10**300, -1))
            case 4:
                return rng.choice((0.5, -1e308, 1e-320, 0.0))
            case 5:
                return ""
            case 6 | 7:
                return "".join(rng.choices("ab\0\n\"'\\%{}é\u2028\U0001f600", k=rng.randrange(9)))
            case 8:
                return "x" * rng.choice((100, 5000))
            case 9:
                return [self._value(depth - 1) for _ in range(rng.randrange(4))]
            case _:
                names = ("", "a", "code", "subshell_id")
                return {rng.choice(names): self._value(depth - 1) for _ in range(rng.randrange(4))}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Wrong(Exception):
    """The kernel did what it must not; the message says what."""


class Range:
    """Sends, receives, and keeps the accounts.

    Args:
        connection: the content of the connection file.
        why_dead: why the kernel will never answer, or None.
        rng: where the choices come from.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        why_dead: Callable[[], str | None],
        rng: random.Random,
    ) -> None:
        self._why_dead = why_dead
        self._rng = rng
        self._connection = connection
        self._context = zmq.Context()
        self._sockets = {channel: self._connect(zmq.DEALER, channel) for channel in CHANNELS}
        self._sockets["iopub"] = self._connect(zmq.SUB, "iopub")
        self._sockets["iopub"].subscribe(b"")
        self._poller = zmq.Poller()
        for socket in self._sockets.values():
            self._poller.register(socket, zmq.POLLIN)
        self.subshells: list[str] = []
        self.gun = Gun(rng, str(connection["key"]).encode(), self.subshells)
        self.owed: dict[str, Owed] = {}
        self._finished: dict[str, None] = {}
        self.kinds: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._welcomed = False
        self._last = time.monotonic()
        while not self._welcomed:
            self._take(100)

    def _url(self, channel: str) -> str:
        connection = self._connection
        return f"{connection['transport']}://{connection['ip']}:{connection[channel + '_port']}"

    def _connect(self, kind: int, channel: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0
        socket.connect(self._url(channel))
        return socket

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, shot: Shot) -> None:
        """Send a message, once there are few enough unanswered ones."""
        while len(self.owed) >= WINDOW:
            self._take(1000)
        self.kinds[shot.kind] += 1
        if shot.owed is not None and shot.msg_id is not None:
            self.owed[shot.msg_id] = shot.owed
        self._sockets[shot.channel].send_multipart(shot.frames)

    def stranger(self) -> None:
        """Come to a port with something else, and go; now and then with a client's means."""
        channel = self._rng.choice((*CHANNELS, "iopub", "hb"))
        self.kinds["stranger"] += 1
        match self._rng.randrange(3):
            case 0:
                address = (self._connection["ip"], self._connection[f"{channel}_port"])
                said = self._rng.choice(
                    (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 63, self._rng.randbytes(200))
                )
                with sockets.create_connection(address) as stream:
                    stream.sendall(said)
            case 1:
                with self._connect(zmq.REQ, "hb") as heart:
                    heart.send(self._rng.randbytes(self._rng.choice((0, 4, 100, 100_000))))
                    heart.poll(50)
            case 2:
                with self._connect(zmq.XSUB, "iopub") as subscriber:
                    for _ in range(10):
                        subscriber.send(
                            self._rng.choice((b"\1", b"\0", b"")) + self._rng.randbytes(5)
                        )
                    subscriber.poll(5)

    def take_what_is_there(self) -> None:
        """Take the answers that have come."""
        while self._take(0):
            continue

    def finish(self) -> None:
        """Wait until nothing is owed any more."""
        while self.owed:
            self._take(1000)

    def _take(self, milliseconds: int) -> bool:
        ready = self._poller.poll(milliseconds)
        for socket, _ in ready:
            for _ in range(100):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._account(frames, socket is self._sockets["iopub"])
        now = time.monotonic()
        if ready:
            self._last = now
        elif reason := self._why_dead():
            raise Wrong(reason)
        elif now - self._last > LONG and (self.owed or not self._welcomed):
            some = ", ".join(f"{key} {owed}" for key, owed in list(self.owed.items())[:5])
            raise Wrong(f"nothing came for {LONG:g} s, with {len(self.owed)} owed: {some}")
        return bool(ready)

    def _account(self, frames: list[bytes], published: bool) -> None:
        start = frames.index(DELIMITER)
        header = msgspec.json.decode(frames[start + 2])
        parent = msgspec.json.decode(frames[start + 3])
        msg_type, msg_id = header["msg_type"], parent.get("msg_id")
        if msg_type == "iopub_welcome":
            self._welcomed = True
        if msg_id is None or (published and parent.get("session", SESSION) != SESSION):
            return  # it is for no message, or for one of another client
        content = msgspec.json.decode(frames[start + 5])
        state = content.get("execution_state")
        if published and msg_type != "status":
            return
        owed = self.owed.get(msg_id)
        if owed is None:
            again = "again" if msg_id in self._finished else "though nothing is owed"
            raise Wrong(f"{msg_type} {content!r:.100} for {parent!r:.200} {again}")
        if published:
            left = getattr(owed, state)
            setattr(owed, state, left - 1)
            if left != 1 or (state == "idle" and owed.busy):
                raise Wrong(f"{state} out of turn for {parent!r:.200}")
        else:
            owed.replies -= 1
            if owed.replies != 0:
                raise Wrong(f"a second reply, {content!r:.100}, for {parent!r:.200}")
            expected = owed.msg_type.removesuffix("_request") + "_reply"
            if msg_type != expected:
                raise Wrong(f"{msg_type} instead of {expected}")
            self._learn(msg_type, content, owed)
        if owed.done:
            del self.owed[msg_id]
            self._finished[msg_id] = None
            if len(self._finished) > 50_000:
                del self._finished[next(iter(self._finished))]

    def _learn(self, msg_type: str, content: Mapping[str, Any], owed: Owed) -> None:
        self.answers[f"{content.get('status')}"] += 1
        if content.get("status") != "ok":
            return
        if msg_type == "create_subshell_reply":
            self.subshells.append(content["subshell_id"])
        elif msg_type == "list_subshell_reply":
            self.subshells[:] = content["subshell_id"]


def run(kernel: RunningKernel, connection: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Fuzz a kernel; return whether all was as it should be."""
    rng = random.Random(options.seed)
    process = kernel.process
    kernel.client.iopub.unsubscribe(b"")  # it has a use only at the end
    gallery = Range(connection, kernel.why_dead, rng)
    warm = 0.0
    begin = time.monotonic()
    try:
        for number in range(options.messages):
            if rng.random() < 0.0005:
                gallery.stranger()
            gallery.send(gallery.gun.shoot())
            if number % 50 == 0:
                gallery.take_what_is_there()
            if (number + 1) % max(1, options.messages // 10) == 0:
                gallery.finish()
                memory = process.memory_info().rss / 1e6
                if not warm and number >= WARM * options.messages - 1:
                    warm = memory
                rate = (number + 1) / (time.monotonic() - begin)
                print(
                    f"{number + 1:>9,} messages  {rate:6,.0f}/s  {memory:6.1f} MB  "
                    f"{process.num_threads():3d} threads  {process.num_fds():4d} descriptors",
                    flush=True,
                )
        gallery.finish()
        check_alive(gallery, kernel, connection)
    except (Wrong, ProbeFailed, psutil.NoSuchProcess) as error:
        print(f"WRONG, with seed {options.seed}: {error}")
        return False
    finally:
        print("sent:    ", dict(gallery.kinds.most_common()))
        print("answered:", dict(gallery.answers.most_common()))
        gallery.close()
    print(f"all as it should be; memory since it was warm: {memory - warm:+.1f} MB")
    return True


def check_alive(gallery: Range, kernel: RunningKernel, connection: Mapping[str, Any]) -> None:
    """Everything works, for the client that has been there and for a new one."""
    for channel, msg_type, content in (
        ("shell", "execute_request", SHELL["execute_request"]),
        ("control", "kernel_info_request", {}),
    ):
        gallery.send(gallery.gun.request("last", channel, msg_type, content))
    gallery.finish()
    with kernel.client.within(LONG):
        kernel.client.execute("1")
        kernel.client.execute("1", kernel.client.create_subshell())
    newcomer = Range(connection, kernel.why_dead, random.Random(0))
    try:
        newcomer.send(newcomer.gun.request("last", "shell", "execute_request", {"code": "1"}))
        newcomer.finish()
    finally:
        newcomer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", help="as for compare.py")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        spec = find_kernel(options.kernel)
        with RunningKernel(spec, cell="1", store_history=False, timeout=LONG) as kernel:
            sys.exit(0 if run(kernel, kernel.connection, options) else 1)
    except (KernelNotFound, ProbeFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
