"""A raw client of one kernel that costs as little as a Python client can.

Every request is serialised and signed before the clock starts, and no reply is parsed before the
clock stops, so that what is measured is the kernel and libzmq rather than the client. Hence
blocking sockets, and no ``jupyter_client.Session``.

The client verifies no signatures unless asked to: it talks to a process that it has started itself.
"""

from __future__ import annotations

import hmac
import json
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import zmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_DELIMITER = b"<IDS|MSG>"
_PROTOCOL = "5.4"

#: How often a wait looks whether the kernel still lives, in milliseconds.
_LOOK = 500


class ProbeFailed(Exception):
    """What was to be measured could not be; the message says why, for the report."""


@attrs.frozen
class Request:
    """A message that is ready to be sent, once."""

    msg_id: bytes
    frames: list[bytes]


@attrs.frozen
class Message:
    """A received message's frames, parsed only where somebody looks."""

    frames: list[bytes]
    start: int

    @classmethod
    def of(cls, frames: list[bytes]) -> Message:
        """Return the message in `frames`, which may begin with identities or a topic."""
        return cls(frames, frames.index(_DELIMITER))

    def answers(self, request: Request) -> bool:
        """Whether `request` is this message's parent."""
        return request.msg_id in self.parent

    @property
    def parent_id(self) -> bytes:
        """The id of the parent, empty if there is none."""
        return str(json.loads(self.parent).get("msg_id", "")).encode()

    @property
    def parent(self) -> bytes:
        """The parent header as received."""
        return self.frames[self.start + 3]

    @property
    def raw_content(self) -> bytes:
        """The content as received."""
        return self.frames[self.start + 5]

    @property
    def msg_type(self) -> str:
        """The type that the header states."""
        return str(json.loads(self.frames[self.start + 2])["msg_type"])

    @property
    def content(self) -> dict[str, Any]:
        """The content, parsed."""
        content = json.loads(self.raw_content)
        if not isinstance(content, dict):
            raise ProbeFailed(f"the content of a message is no object: {content!r:.100}")
        return content


class Client:
    """The shell, control, stdin and iopub channels of one kernel.

    `why_dead` returns the reason why the kernel will never answer, or ``None``. `store_history` is
    what every ``execute_request`` says. If the client encrypts, `keys` are its own CurveZMQ keys,
    public and secret, and the kernel's is in the connection. Every wait happens
    under `within`, and raises `ProbeFailed` when the kernel is dead or the time is over.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        why_dead: Callable[[], str | None],
        *,
        store_history: bool,
        keys: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._keys = keys
        self._store_history = store_history
        self._why_dead = why_dead
        self._deadline = 0.0
        self._seconds = 0.0
        self._session = uuid.uuid4().hex
        self._count = 0
        key = connection["key"]
        self._hmac = hmac.new(key.encode() if isinstance(key, str) else key, digestmod="sha256")
        self._context = zmq.Context()
        self.shell = self._connect(zmq.DEALER, connection, "shell_port")
        self.control = self._connect(zmq.DEALER, connection, "control_port")
        self.stdin = self._connect(zmq.DEALER, connection, "stdin_port")
        self.iopub = self._connect(zmq.SUB, connection, "iopub_port")
        self.iopub.subscribe(b"")

    def _connect(self, kind: int, connection: Mapping[str, Any], port: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = 0  # the client drops nothing: what is missing, the kernel has dropped
        socket.sndhwm = 0
        socket.rcvtimeo = _LOOK
        socket.sndtimeo = 20 * _LOOK  # for ever, if the kernel has refused the connection
        # The client is there before the kernel binds. With the default of 100 ms between two
        # attempts, a start-up time would be rounded up to the next of them.
        socket.reconnect_ivl = 2
        if kind == zmq.DEALER:
            # The kernel asks for input where it was asked: one identity for shell and stdin.
            socket.identity = self._session.encode()
        if self._keys is not None:
            socket.curve_publickey, socket.curve_secretkey = self._keys
            socket.curve_serverkey = connection["curve_publickey"].encode()
        socket.connect(f"{connection['transport']}://{connection['ip']}:{connection[port]}")
        return socket

    def close(self) -> None:
        """Close the sockets; closing twice is allowed."""
        self._context.destroy(linger=0)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give every wait in the block together `seconds`; an inner block never has more."""
        before = self._deadline, self._seconds
        deadline = time.monotonic() + seconds
        if not before[0] or deadline < before[0]:
            self._deadline, self._seconds = deadline, seconds
        try:
            yield
        finally:
            self._deadline, self._seconds = before

    def check(self) -> None:
        """Raise `ProbeFailed` if the kernel is dead or the time is over."""
        if reason := self._why_dead():
            raise ProbeFailed(reason)
        if time.monotonic() > self._deadline:
            raise ProbeFailed(f"no answer within {self._seconds:g} s")

    # Requests, made before the clock starts

    def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        subshell: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Request:
        """Return a signed request, for the `subshell` of that id or for the main shell."""
        self._count += 1
        msg_id = f"{self._session}_{self._count:08d}"
        header = {
            "msg_id": msg_id,
            "session": self._session,
            "username": "benchmark",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": msg_type,
            "version": _PROTOCOL,
        }
        if subshell is not None:
            header["subshell_id"] = subshell
        dicts: tuple[Mapping[str, Any], ...] = (header, {}, metadata or {}, content)
        parts = [json.dumps(each).encode() for each in dicts]
        return Request(msg_id.encode(), self.signed(parts))

    def signed(self, parts: Sequence[bytes]) -> list[bytes]:
        """Return the frames of a message that consists of `parts`, whatever these are."""
        signature = self._hmac.copy()
        for part in parts:
            signature.update(part)
        return [_DELIMITER, signature.hexdigest().encode("ascii"), *parts]

    def is_signed(self, frames: Sequence[bytes]) -> bool:
        """Whether what was received is a message that somebody with the key has signed."""
        if _DELIMITER not in frames:
            return False
        start = frames.index(_DELIMITER)
        return self.signed(frames[start + 2 : start + 6])[1] == frames[start + 1]

    def execute_request(
        self,
        code: str,
        subshell: str | None = None,
        *,
        allow_stdin: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Request:
        """Return an ``execute_request`` like the one a notebook sends for a cell."""
        content = {
            "code": code,
            "silent": False,
            "store_history": self._store_history,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": True,
        }
        return self.request("execute_request", content, subshell, metadata)

    # The hot path

    def receive(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        """Wait for the next message on `socket`; its frames are not looked at."""
        while True:
            try:
                return socket.recv_multipart()
            except zmq.Again:
                self.check()

    def receive_for(self, socket: zmq.Socket[bytes], *requests: Request) -> Message:
        """Wait for the next message whose parent is one of `requests`; others are dropped."""
        while True:
            message = Message.of(self.receive(socket))
            if any(message.answers(request) for request in requests):
                return message
            self.check()

    def round_trip(self, socket: zmq.Socket[bytes], request: Request) -> tuple[Message, float]:
        """Send `request`; return its reply and the seconds until it was there."""
        begin = time.perf_counter()
        socket.send_multipart(request.frames)
        while True:
            frames = self.receive(socket)
            end = time.perf_counter()
            message = Message.of(frames)
            if message.answers(request):
                return message, end - begin
            self.check()

    def wait_for_idle(self, request: Request) -> None:
        """Read iopub until `request` is idle."""
        while b'"idle"' not in self.receive_for(self.iopub, request).raw_content:
            pass

    def drain(self) -> None:
        """Drop what has come in on iopub."""
        while self.iopub.poll(0):
            self.iopub.recv_multipart()

    # Conveniences around what is measured

    def ask(
        self, socket: zmq.Socket[bytes], msg_type: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Send a request; return its reply's content, once it says ``ok``."""
        return self.checked(self.round_trip(socket, self.request(msg_type, content))[0])

    def execute(self, code: str, subshell: str | None = None) -> Message:
        """Execute `code`; return the reply, which says ``ok``."""
        reply, _ = self.round_trip(self.shell, self.execute_request(code, subshell))
        self.checked(reply)
        return reply

    def create_subshell(self) -> str:
        """Create a subshell; return its id."""
        return str(self.ask(self.control, "create_subshell_request", {})["subshell_id"])

    def delete_subshell(self, subshell: str) -> None:
        """Delete the subshell of that id."""
        self.ask(self.control, "delete_subshell_request", {"subshell_id": subshell})

    def checked(self, reply: Message) -> dict[str, Any]:
        """Return the content of `reply`, which has to say ``ok``."""
        content = reply.content
        if content.get("status") != "ok":
            what = f"{content.get('ename', '')}: {content.get('evalue', '')}"
            raise ProbeFailed(f"{reply.msg_type} says {content.get('status')!r}: {what:.200}")
        return content

    def first_reply(self) -> dict[str, Any]:
        """Return the content of the first ``kernel_info_reply`` on shell.

        One request is enough: libzmq keeps it until the kernel binds its socket.
        """
        return self.ask(self.shell, "kernel_info_request", {})

    def wait_for_iopub(self) -> None:
        """Return once iopub is known to be connected.

        A subscription that arrives late misses what was published before: ask until an idle comes.
        """
        while True:
            request = self.request("kernel_info_request", {})
            self.round_trip(self.shell, request)
            limit = time.monotonic() + 0.1
            while (left := limit - time.monotonic()) > 0:
                if not self.iopub.poll(int(left * 1000) + 1):
                    break
                message = Message.of(self.iopub.recv_multipart())
                if message.answers(request) and b'"idle"' in message.raw_content:
                    return
            self.check()
