"""The kernel's I/O thread: everything that must answer whatever the user's code does.

One actor on a thread of its own, spawned by `open_kernel`. It opens the sockets that clients
connect to, and closes them at its end; it is the supervisor of the actors that serve them: the
shell channel, the control handler, stdin and iopub. None of them runs a kernel author's code (the
control handler calls cancellers, see `_ladder`), so this thread's loop is never blocked.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import Any, Final

import attrs
import trio

from ..actors import Actor, ActorRef, Mailbox, Restart, Supervisor, open_supervisor
from ..sockets import SocketOptions
from ..wire import CHANNELS, PROTOCOL_VERSION, Channel, WireSession
from ._channels import ClientSocket
from ._control import ControlHandler
from ._drops import DropReason, Drops
from ._failures import failures
from ._faults import ends_the_kernel
from ._ground import Ground, Router
from ._ground import IOPub as IOPubDevice
from ._iopub import IOPub
from ._kernel import Kernel
from ._ladder import SHUTDOWN_TIMEOUT
from ._messages import FlushLater, IOParts, Meet, Shutdown, WhatIsThere
from ._output import OutputPort
from ._shell import ShellChannel
from ._stdin import StdinChannel

CLOSE_DEAD_PEERS: SocketOptions = {"tcp_keepalive": 1, "tcp_keepalive_idle": 120}
"""The connection of a machine that has gone without a word ends, and with it what waits for it."""

MOST_UNREAD_REPLIES = 10_000
"""Replies that may wait for one client; for the large ones see `ClientSocket.send`, too."""

SUBSHELL_FEATURES: Final = (
    "kernel subshells",  # JEP 91
    "trio_subshells.interrupt_subshell",  # subshell_id in an interrupt_request's content
    "trio_subshells.delete_timeout",  # timeout in a delete_subshell_request's content
)

LINGER_MS = 1000
"""How long the last replies and outputs may take to leave the process."""


@attrs.frozen
class _Sockets:
    """What clients connect to. The heartbeat's device needs nobody, once it runs.

    Attributes:
        urls: where each channel listens.
        iopub: the device that every subshell publishes into.
        routers: of the channels that clients send requests and answers on.
    """

    urls: Mapping[Channel, str]
    iopub: IOPubDevice
    routers: Mapping[Channel, Router]


class IOThread(Actor):
    """See the module's first lines.

    Args:
        kernel: the author's object.
        ground: for the sockets.
        session: makes and verifies messages.
        urls: where each channel is to listen; the heartbeat may be left out.
        options: of all sockets that clients connect to.
        on_shutdown: called, in this thread, when a client has shut the kernel down.
        on_unjoinable: called, in this thread, with an exit status, if something can't be ended when
            the kernel ends.
        until: called in this thread; when it returns, the kernel is shut down.
    """

    def __init__(
        self,
        kernel: Kernel,
        ground: Ground,
        session: WireSession,
        urls: Mapping[Channel, str],
        options: SocketOptions,
        on_shutdown: Callable[[], None],
        on_unjoinable: Callable[[int], Awaitable[None]],
        until: Callable[[], Awaitable[None]],
    ) -> None:
        self._kernel = kernel
        self._ground = ground
        self._session = session
        self._urls = urls
        self._options = options
        self._on_shutdown = on_shutdown
        self._on_unjoinable = on_unjoinable
        self._until = until

    async def run(self, mailbox: Mailbox) -> None:
        """Set everything up, tell, and stay until cancelled."""
        async with AsyncExitStack() as stack:
            drops = Drops()
            sockets = await self._open_sockets(stack, drops)
            # Not on the stack: it would keep what they raise, and be kept by it.
            async with open_supervisor() as supervisor:
                parts = await self._spawn_actors(supervisor, sockets, drops)
                with ends_the_kernel("the I/O thread"):
                    await self._serve(mailbox, parts, sockets, drops)

    async def _serve(
        self, mailbox: Mailbox, parts: IOParts, sockets: _Sockets, drops: Drops
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drops.tell)
            nursery.start_soon(failures.tell)
            for channel, router in sockets.routers.items():
                nursery.start_soon(self._note_refusals, channel, router, drops)
            nursery.start_soon(self._end_with, parts.control)
            async for letter in mailbox:
                if isinstance(letter.message, WhatIsThere):
                    letter.reply(parts)

    async def _open_sockets(self, stack: AsyncExitStack, drops: Drops) -> _Sockets:
        """Bind everything that clients connect to; the stack closes it."""
        urls = dict(self._urls)

        options: SocketOptions = {**CLOSE_DEAD_PEERS, **self._options}

        def lose(count: int, what: str) -> None:
            drops.add("iopub", DropReason.NOT_READ, what, count)

        iopub = await stack.enter_async_context(
            self._ground.open_iopub(
                urls["iopub"],
                on_loss=lose,
                on_refusal=partial(drops.add, "iopub", DropReason.REFUSED),
                **options,
            )
        )
        urls["iopub"] = iopub.url
        if "hb" in urls:
            heartbeat = await stack.enter_async_context(
                self._ground.open_heartbeat(urls["hb"], **self._options)
            )
            urls["hb"] = heartbeat.url
        routers: dict[Channel, Router] = {}
        for channel in ("control", "stdin", "shell"):
            routers[channel] = stack.enter_context(self._open_router(channel))
            urls[channel] = routers[channel].bind(urls[channel])
        return _Sockets(urls, iopub, routers)

    async def _spawn_actors(
        self, supervisor: Supervisor, sockets: _Sockets, drops: Drops
    ) -> IOParts:
        """Start the actors that serve the sockets. Who is told of another one comes after it."""
        kernel, session = self._kernel, self._session
        urls, publisher = sockets.urls, sockets.iopub.publisher
        receiver = session.receiver(refuse_own=True)  # one for all: see there

        def clients(channel: Channel) -> ClientSocket:
            return ClientSocket(channel, sockets.routers[channel], receiver, drops)

        kernel_info = describe(kernel)
        iopub = await supervisor.spawn(
            IOPub(session, publisher, drops), name="iopub", capacity=1000, on_failure=Restart()
        )
        output = OutputPort(session, publisher, lambda port: iopub.tell_nowait(FlushLater(port)))
        stdin = await supervisor.spawn(
            StdinChannel(session, clients("stdin")),
            name="stdin",
            on_failure=Restart(),
        )
        control = await supervisor.spawn(
            ControlHandler(
                kernel,
                self._ground,
                session,
                clients("control"),
                output,
                kernel_info,
                self._on_shutdown,
                self._on_unjoinable,
            ),
            name="control",
            capacity=1000,
        )
        shell = await supervisor.spawn(
            ShellChannel(
                session,
                clients("shell"),
                drops,
                output,
                {
                    "kernel_info_request": kernel_info,
                    "connect_request": {"status": "ok", **ports_of(urls)},
                },
                kernel.subshells,
                control,
                iopub,
            ),
            name="shell",
            # Answers are as many as the requests that are pending, and those are bounded.
            capacity=math.inf,
        )
        await control.tell(Meet(shell))
        return IOParts(
            {channel: urls[channel] for channel in CHANNELS if channel in urls},
            sockets.iopub.publisher_url,
            shell,
            control,
            stdin,
            iopub,
            trio.lowlevel.current_trio_token(),
        )

    async def _end_with(self, control: ActorRef) -> None:
        await self._until()
        await control.ask(Shutdown(SHUTDOWN_TIMEOUT), timeout=math.inf)
        self._on_shutdown()

    async def _note_refusals(self, channel: Channel, router: Router, drops: Drops) -> None:
        with self._ground.open_refusals(router) as refusals:
            while True:
                drops.add(channel, DropReason.REFUSED, await refusals.receive())

    def _open_router(self, channel: Channel) -> AbstractContextManager[Router]:
        # A client that reconnects under its old identity is to get its replies.
        options: SocketOptions = {
            "linger": LINGER_MS,
            "router_handover": True,
            "sndhwm": MOST_UNREAD_REPLIES,
            "maxmsgsize": self._kernel.largest_frame,
            **CLOSE_DEAD_PEERS,
            **self._options,
        }
        return self._ground.open_router(channel, **options)


def describe(kernel: Kernel) -> dict[str, Any]:
    """The content of a ``kernel_info_reply``."""
    features = [*(SUBSHELL_FEATURES if kernel.subshells else ()), *kernel.supported_features]
    return {
        "status": "ok",
        "protocol_version": PROTOCOL_VERSION,
        "implementation": kernel.implementation,
        "implementation_version": kernel.implementation_version,
        "language_info": kernel.language_info.content(),
        "banner": kernel.banner,
        "help_links": [attrs.asdict(link) for link in kernel.help_links],
        "debugger": "debugger" in features,
        "supported_features": features,
    }


def ports_of(urls: Mapping[Channel, str]) -> dict[str, Any]:
    """The ports of a connection, as a connection file and a ``connect_reply`` name them."""
    tcp = {channel: url for channel, url in urls.items() if url.startswith("tcp:")}
    return {f"{channel}_port": int(url.rpartition(":")[2]) for channel, url in tcp.items()}
