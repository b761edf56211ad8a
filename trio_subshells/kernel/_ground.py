"""What a kernel stands on: its sockets, how its threads wake each other, how they are interrupted.

The actors of this package see no more of the outside than this. `ZMQGround` is the real one;
`trio_subshells.testing` has another, in which everything is simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Protocol, Unpack

import zmq

from ..actors import Transport
from ..sockets import (
    Context,
    InprocTransport,
    IOPubDevice,
    Publisher,
    Refusals,
    Socket,
    SocketOptions,
    open_context,
    open_heartbeat_device,
    open_iopub_device,
    open_publisher,
    open_refusals,
)
from ..sockets._descriptors import check_descriptors
from ..wire import Channel
from ._channels import FramesSocket
from ._guard import Raiser
from ._iopub import SubscriptionsPublisher
from ._output import FramesPublisher
from ._raisers import AsyncRaiser


class Router(FramesSocket, Protocol):
    """A ROUTER that clients connect to."""

    def bind(self, url: str) -> str:
        """Listen there; returns the actual address."""


class IOPub(Protocol):
    """What distributes to all clients what is published, as a native device does."""

    @property
    def url(self) -> str:
        """Where clients subscribe: the actual address."""

    @property
    def publisher_url(self) -> str:
        """What `Ground.open_publisher` takes, in any thread."""

    @property
    def publisher(self) -> SubscriptionsPublisher:
        """The publisher of the thread that opened it."""


class Heartbeat(Protocol):
    """What answers the heartbeats of clients."""

    @property
    def url(self) -> str:
        """Where: the actual address."""


class Refused(Protocol):
    """Who tells of the connections that were refused."""

    async def receive(self) -> str:
        """Wait for the next one; returns what was wrong with it."""


class Ground(Protocol):
    """See the module's first lines. Used from every thread of the kernel."""

    @property
    def transport(self) -> Transport:
        """How the threads of its actors wake each other."""

    def make_raiser(self) -> Raiser:
        """How the calling thread is interrupted, if it is a subshell's."""

    def check_room(self, needed: int, purpose: str) -> None:
        """Raise `OSError` if there aren't as many file descriptors left."""

    def open_router(
        self, channel: Channel, **options: Unpack[SocketOptions]
    ) -> AbstractContextManager[Router]:
        """A channel's ROUTER, for the calling thread."""

    def open_refusals(self, router: Router) -> AbstractContextManager[Refused]:
        """Who tells of the connections that a ROUTER of this thread refuses."""

    def open_iopub(
        self,
        url: str,
        *,
        on_loss: Callable[[int, str], None],
        on_refusal: Callable[[str], None],
        **options: Unpack[SocketOptions],
    ) -> AbstractAsyncContextManager[IOPub]:
        """What distributes output, with a publisher for the calling thread."""

    def open_heartbeat(
        self, url: str, **options: Unpack[SocketOptions]
    ) -> AbstractAsyncContextManager[Heartbeat]:
        """What answers heartbeats."""

    def open_publisher(self, publisher_url: str) -> AbstractAsyncContextManager[FramesPublisher]:
        """A publisher for the calling thread, which publishes through `open_iopub`."""


class ZMQGround:
    """The real ground: ZMQ sockets of one context."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._transport = InprocTransport(context)

    @property
    def transport(self) -> Transport:
        """Rings through inproc sockets."""
        return self._transport

    def make_raiser(self) -> Raiser:
        """Raises between two bytecodes."""
        return AsyncRaiser()

    def check_room(self, needed: int, purpose: str) -> None:
        """Ask the operating system."""
        check_descriptors(needed, purpose)

    def open_router(self, channel: Channel, **options: Unpack[SocketOptions]) -> Socket:
        """A ZMQ ROUTER."""
        return self._context.socket(zmq.ROUTER, name=channel, **options)

    def open_refusals(self, router: Router) -> AbstractContextManager[Refusals]:
        """A monitor of the ROUTER."""
        assert isinstance(router, Socket)
        return open_refusals(self._context, router)

    def open_iopub(
        self,
        url: str,
        *,
        on_loss: Callable[[int, str], None],
        on_refusal: Callable[[str], None],
        **options: Unpack[SocketOptions],
    ) -> AbstractAsyncContextManager[IOPubDevice]:
        """A native device."""
        return open_iopub_device(
            self._context, url, on_loss=on_loss, on_refusal=on_refusal, **options
        )

    def open_heartbeat(
        self, url: str, **options: Unpack[SocketOptions]
    ) -> AbstractAsyncContextManager[Heartbeat]:
        """A native device."""
        return open_heartbeat_device(url, **options)

    def open_publisher(self, publisher_url: str) -> AbstractAsyncContextManager[Publisher]:
        """An inproc socket to the device."""
        return open_publisher(self._context, publisher_url)


@contextmanager
def open_zmq_ground() -> Iterator[ZMQGround]:
    """The real ground, for one kernel; at the end, all its sockets have to be closed."""
    with open_context() as context:
        yield ZMQGround(context)
