"""A kernel in its own process, and clients of it that remember everything they were told.

A :class:`Client` is the four sockets of a client, and a memory: every message that arrives on any
channel is checked for its structure and kept, in order of arrival. Questions ("what did this
request publish?", "has it been answered yet?") are asked of that memory, so a test never has to
know which of two unrelated messages comes first. Order is kept within one channel only: ZeroMQ
promises none between a reply (shell) and what is published (iopub).

Everything that waits, waits for a message. ``PATIENCE`` only ends a hang.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from socket import socket as plain_socket
from subprocess import TimeoutExpired
from typing import Any

import attrs
import psutil
import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from jupyter_kernel_test.msgspec_v5 import msg_structure_validator

#: Seconds until a wait counts as a hang. Far beyond what any answer takes on a busy machine.
PATIENCE = 60


@attrs.frozen
class Message:
    """One message as it arrived, with the channel it arrived on."""

    channel: str
    type: str
    content: dict[str, Any]
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def parent_id(self) -> str | None:
        return self.parent.get("msg_id")

    @property
    def state(self) -> str | None:
        """``busy``, ``idle`` or ``starting`` for a status message, else None."""
        return self.content["execution_state"] if self.type == "status" else None

    def __str__(self) -> str:
        parent = f" <- {self.parent['msg_type']} {self.parent_id}" if self.parent else ""
        return f"{self.channel:7} {self.type} {str(self.content)[:200]}{parent}"


@attrs.frozen
class Request:
    """A request that was sent, and the way to what came back for it."""

    client: Client = attrs.field(repr=False)
    id: str
    type: str
    channel: str
    header: dict[str, Any] = attrs.field(repr=False)

    def received(self, channel: str) -> list[Message]:
        """Return what has arrived for this request on a channel, without waiting."""
        self.client.drain()
        return [
            message
            for message in self.client.memory
            if message.parent_id == self.id and message.channel == channel
        ]

    @property
    def is_answered(self) -> bool:
        """Whether the reply has arrived."""
        return bool(self.received(self.channel))

    def reply(self) -> dict[str, Any]:
        """Wait for the reply; return its content."""
        return self.reply_message().content

    def reply_message(self) -> Message:
        """Wait for the reply, header and all."""
        return self.client.wait_for(
            lambda message: message.parent_id == self.id and message.channel == self.channel,
            f"the reply to {self}",
        )

    def ok(self) -> dict[str, Any]:
        """Wait for the reply, which must be ``ok``, and for idle; return the reply's content."""
        content = self.finished()
        if content.get("status") != "ok":
            raise AssertionError(f"{self} failed: {content}")
        return content

    def error(self) -> dict[str, Any]:
        """Wait for the reply, which must be an error with its three fields, and for idle."""
        content = self.finished()
        if content.get("status") != "error":
            raise AssertionError(f"{self} should have failed, but answered {content}")
        assert isinstance(content["ename"], str)
        assert isinstance(content["evalue"], str)
        assert all(isinstance(line, str) for line in content["traceback"])
        return content

    def finished(self) -> dict[str, Any]:
        """Wait for the reply and for idle; return the reply's content.

        There must be one reply, and one busy and one idle around everything that was published.
        """
        content = self.reply()
        published = self.published()
        states = [message.state for message in published if message.type == "status"]
        if states != ["busy", "idle"] or published[0].state != "busy":
            raise AssertionError(f"no clean busy and idle around {self}: {_listed(published)}")
        replies = self.received(self.channel)
        if len(replies) != 1:
            raise AssertionError(f"{self} was answered {len(replies)} times: {_listed(replies)}")
        return content

    def published(self) -> list[Message]:
        """Wait for idle; return all that was published for this request, up to that idle."""
        self.client.wait_for(
            lambda message: message.parent_id == self.id and message.state == "idle",
            f"idle after {self}",
        )
        return self.received("iopub")

    def wait_published(self, type_: str, contains: str = "") -> Message:
        """Wait until a message of this type, with this text in its content, is published."""
        return self.client.wait_for(
            lambda message: (
                message.parent_id == self.id
                and message.channel == "iopub"
                and message.type == type_
                and contains in str(message.content)
            ),
            f"{type_} {contains!r} from {self}",
        )

    def wait_input_request(self) -> Message:
        """Wait until the kernel asks for input on behalf of this request."""
        return self.client.wait_for(
            lambda message: message.parent_id == self.id and message.type == "input_request",
            f"an input_request from {self}",
        )

    def output_types(self) -> list[str]:
        """Wait for idle; return the types of what was published, status and input left out."""
        return [
            message.type
            for message in self.published()
            if message.type not in {"status", "execute_input"}
        ]

    def stream(self, name: str = "stdout") -> str:
        """Wait for idle; return all the text that was written to a stream."""
        return "".join(
            message.content["text"]
            for message in self.published()
            if message.type == "stream" and message.content["name"] == name
        )

    def result(self) -> str:
        """Wait for an ``ok`` and idle; return the plain text of the one result."""
        self.ok()
        [result] = [message for message in self.published() if message.type == "execute_result"]
        text = result.content["data"]["text/plain"]
        assert isinstance(text, str)
        return text


class Client:
    """One client with a session of its own. Kernels make them: :meth:`Kernel.connect`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.session = kernel.new_session()
        # Shell and stdin must have the same identity: the kernel asks for input where it was asked.
        identity = self.session.bsession
        self.sockets = {
            channel: kernel.socket(channel, identity=identity)
            for channel in ("shell", "control", "stdin", "iopub")
        }
        self.sockets["iopub"].subscribe(b"")
        self.memory: list[Message] = []
        self._poller = zmq.Poller()
        for socket in self.sockets.values():
            self._poller.register(socket, zmq.POLLIN)

    def wait_until_ready(self) -> None:
        """Wait until it is subscribed and has had an answer: nothing is lost from here on."""
        self.wait_for(lambda message: message.type == "iopub_welcome", "iopub_welcome")
        self.request("kernel_info_request", channel="control").ok()

    # Receiving

    def drain(self, timeout: float = 0) -> None:
        """Remember all that has arrived; wait for at most ``timeout`` seconds if nothing has."""
        while events := self._poller.poll(timeout * 1000):
            timeout = 0
            for channel, socket in self.sockets.items():
                if socket not in dict(events):
                    continue
                _, frames = self.session.feed_identities(socket.recv_multipart())
                raw = self.session.deserialize(frames)
                msg_structure_validator.validate(raw)
                self.memory.append(
                    Message(
                        channel=channel,
                        type=raw["header"]["msg_type"],
                        content=raw["content"],
                        header=raw["header"],
                        parent=raw["parent_header"],
                        metadata=raw["metadata"],
                    )
                )

    def wait_for(self, wanted: Callable[[Message], bool], description: str) -> Message:
        """Return the first message, remembered or still to come, that is wanted."""
        deadline = time.monotonic() + PATIENCE
        seen = 0
        while True:
            for message in self.memory[seen:]:
                if wanted(message):
                    return message
            seen = len(self.memory)
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"waited {PATIENCE} s for {description}; received: {_listed(self.memory)}"
                )
            self.drain(timeout=1)
            if seen == len(self.memory) and self.kernel.has_exited:
                raise AssertionError(
                    f"the kernel ended with code {self.kernel.process.poll()} before "
                    f"{description}; its log:\n{self.kernel.log.read_text()}"
                )

    # Sending

    def request(
        self,
        type_: str,
        content: dict[str, Any] | None = None,
        *,
        channel: str = "shell",
        subshell: str | None = None,
        header: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Request:
        """Send a request; ``subshell`` goes into its header, as today's clients do it."""
        message = self.session.msg(
            type_, content=content if content is not None else {}, metadata=metadata
        )
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        message["header"].update(header or {})
        self.session.send(self.sockets[channel], message)
        return Request(self, message["header"]["msg_id"], type_, channel, message["header"])

    def execute(
        self,
        code: str,
        *,
        subshell: str | None = None,
        **options: Any,
    ) -> Request:
        """Send an ``execute_request``; ``options`` are further fields of its content."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
        }
        return self.request("execute_request", content | options, subshell=subshell)

    def evaluate(self, expression: str, *, subshell: str | None = None) -> str:
        """Return the repr of an expression in the kernel."""
        cell = self.execute("", silent=True, user_expressions={"it": expression}, subshell=subshell)
        value = cell.ok()["user_expressions"]["it"]
        if value["status"] != "ok":
            raise AssertionError(f"{expression} failed: {value}")
        text = value["data"]["text/plain"]
        assert isinstance(text, str)
        return text

    def answer(self, question: Message | None, value: str) -> None:
        """Answer an input request, naming it as the parent, as JupyterLab does.

        Without a question the answer names none, as those of jupyter_client and its console.
        """
        parent = question.header if question is not None else None
        self.session.send(
            self.sockets["stdin"], "input_reply", content={"value": value}, parent=parent
        )

    # Subshells

    def create_subshell(self) -> str:
        """Create a subshell; return its id."""
        content = self.request("create_subshell_request", channel="control").ok()
        subshell = content["subshell_id"]
        assert isinstance(subshell, str)
        return subshell

    def create_subshells(self, count: int) -> list[str]:
        """Create several subshells; return their ids."""
        return [self.create_subshell() for _ in range(count)]

    def delete_subshell(self, subshell: str) -> Request:
        """Send the request that deletes a subshell."""
        return self.request("delete_subshell_request", {"subshell_id": subshell}, channel="control")

    def list_subshells(self) -> list[str]:
        """Return the ids of the subshells that exist."""
        content = self.request("list_subshell_request", channel="control").ok()
        subshells = content["subshell_id"]
        assert isinstance(subshells, list)
        return subshells


class Kernel:
    """A running kernel process. Open it with :func:`run_kernel`, which ends it."""

    def __init__(self, manager: KernelManager, context: zmq.Context[Any], log: Path) -> None:
        self.manager = manager
        self.context = context
        self.log = log
        self._sockets = ExitStack()

    @property
    def process(self) -> Any:
        """The :class:`subprocess.Popen` of the kernel."""
        return self.manager.provisioner.process

    @property
    def has_exited(self) -> bool:
        return self.process.poll() is not None

    def new_session(self) -> Session:
        """Return a session that signs with the kernel's key."""
        session = self.manager.session
        return Session(key=session.key, signature_scheme=session.signature_scheme)

    def connect(self) -> Client:
        """Return a new client whose subscription the kernel has confirmed."""
        client = Client(self)
        client.wait_until_ready()
        return client

    def socket(self, channel: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a bare socket connected to a channel: DEALER, REQ for ``hb``, SUB for ``iopub``.

        It returns when both sides have shaken hands: a question on ``stdin`` finds its way from the
        start. A SUB socket subscribes to nothing yet. It is closed with the kernel.
        """
        kind = {"iopub": zmq.SUB, "hb": zmq.REQ}.get(channel, zmq.DEALER)
        socket = self.context.socket(kind)
        self._sockets.callback(socket.close, linger=0)
        socket.rcvtimeo = PATIENCE * 1000
        if identity is not None:
            socket.identity = identity
        with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            socket.connect(self.url(channel))
            deadline = time.monotonic() + PATIENCE
            while not monitor.poll(1000):
                if self.has_exited or time.monotonic() > deadline:
                    state = "has ended" if self.has_exited else f"is silent for {PATIENCE} s"
                    raise AssertionError(
                        f"no {channel}, the kernel {state}; its log:\n{self.log.read_text()}"
                    )
            socket.disable_monitor()
        return socket

    def url(self, channel: str) -> str:
        """Return the address of a channel."""
        manager = self.manager
        return f"{manager.transport}://{manager.ip}:{getattr(manager, f'{channel}_port')}"

    def descriptors(self) -> int:
        """Return how many file descriptors (handles, on Windows) it has, except for connections.

        Those come when clients like: the manager's own takes several attempts at the start.
        """
        process = psutil.Process(self.process.pid)
        count = process.num_handles() if psutil.WINDOWS else process.num_fds()
        return int(count) - len(process.net_connections("tcp"))

    def wait_for_descriptors(self, most: int) -> None:
        """Wait until it has no more than that: libzmq closes sockets in its own good time."""
        deadline = time.monotonic() + PATIENCE
        while (count := self.descriptors()) > most:
            if time.monotonic() > deadline:
                raise AssertionError(f"{count} descriptors after {PATIENCE} s, instead of {most}")

    def wait(self) -> int:
        """Wait for the end of the process; return its exit code."""
        code = self.process.wait(PATIENCE)
        assert isinstance(code, int)
        return code

    def close(self) -> None:
        self._sockets.close()


CHANNELS = ("shell", "iopub", "stdin", "hb", "control")


def _candidates() -> Iterator[int]:
    """Ports of this worker's own, below those that systems give to connections, one after another.

    They begin anywhere, for the sake of another run of these tests on the same machine.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(10_000 + worker, 16_000, workers)
    return islice(cycle(ports), random.randrange(len(ports)), None)


_PORTS = _candidates()


def free_ports() -> dict[str, int]:
    """Return free ports for a kernel's channels, which nobody else is given before it binds them.

    What a system says is free, it may give to any connection a moment later.
    """
    ports: dict[str, int] = {}
    for channel in CHANNELS:
        for port in _PORTS:
            with plain_socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports[f"{channel}_port"] = port
                break
    return ports


@contextmanager
def run_kernel(name: str, log: Path, *, arguments: Sequence[str] = ()) -> Iterator[Kernel]:
    """Start a kernel by the name of its kernelspec; leave with it ended, politely or not.

    Its log is the output of the process; it is printed at the end, for pytest to show with a
    failure. Raises :class:`AssertionError` when the kernel did not end by itself, with exit code 0
    and without child processes, once it was asked to shut down.
    """
    context = zmq.Context()
    manager = KernelManager(kernel_name=name, context=context, cache_ports=False)
    for channel_port, port in free_ports().items():
        setattr(manager, channel_port, port)
    with log.open("wb") as output:
        manager.start_kernel(
            extra_arguments=list(arguments), stdout=output.fileno(), stderr=output.fileno()
        )
        kernel = Kernel(manager, context, log)
        try:
            yield kernel
            _shut_down(kernel)
        finally:
            if not kernel.has_exited:
                kernel.process.kill()
                kernel.process.wait()
            kernel.close()
            manager.cleanup_resources()
            context.destroy(linger=0)
            print(log.read_text(errors="replace"))


def _shut_down(kernel: Kernel) -> None:
    if not kernel.has_exited:
        children = psutil.Process(kernel.process.pid).children(recursive=True)
        kernel.manager.request_shutdown()
        try:
            code = kernel.wait()
        except TimeoutExpired:
            raise AssertionError(
                f"the kernel ignored its shutdown_request for {PATIENCE} s"
            ) from None
        assert code == 0, f"the kernel ended with code {code} after shutdown_request"
        assert not [child for child in children if child.is_running()], "child processes were left"


def _listed(messages: Sequence[Message]) -> str:
    return "".join(f"\n    {message}" for message in messages) or " nothing"
