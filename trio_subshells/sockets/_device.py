"""Native devices: iopub and heartbeat, carried by threads that run in C and never want the GIL.

Once started, a device moves messages even while Python code holds the GIL for minutes. Its sockets
are opened and bound by whoever opens the device, so that a bad address is an error there and then.
Then the device's thread has them alone, until it has ended; the thread's start and its join are the
fences that make this handover legal.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Unpack

import attrs
import trio
import zmq

from ._context import Context
from ._descriptors import check_room_for_threads
from ._options import SocketOptions, apply_options
from ._publisher import Publisher, finish_publisher, start_publisher
from ._socket import bind_raw
from ._subscribers import SubscriberLimits, open_subscribers

DEFAULT_SNDHWM = 100_000

LARGEST_SUBSCRIPTION = 4096
"""Bytes of what a client of an iopub device may send: subscriptions, and those are short. Each is
queued for every publisher."""

LARGEST_PING = 1 << 16
"""Bytes of a frame that is echoed by a heartbeat device."""

MOST_ECHOES = 1000
"""Echoes that may wait for one client; all others are dropped."""


@attrs.frozen
class IOPubDevice:
    """A running iopub device. See `open_iopub_device`.

    Attributes:
        url: where clients subscribe: the actual address.
        publisher_url: what `open_publisher` takes, in any thread of the same context.
        publisher: the publisher of the thread that opened the device. It was there before the
            first client, so that `Publisher.receive_subscription` misses none of them. Somebody
            has to receive them.
    """

    url: str
    publisher_url: str
    publisher: Publisher


@attrs.frozen
class HeartbeatDevice:
    """A running heartbeat device. See `open_heartbeat_device`.

    Attributes:
        url: where clients send their pings: the actual address.
    """

    url: str


class _DeviceThread:
    """A thread of our own, not one of trio's cached ones, that a trio task waits for the end of."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._run = run
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._error: BaseException | None = None
        # A daemon, so that a process whose loop has crashed can end without it.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ended.set)

    async def join(self) -> None:
        """Wait for the thread's end, shielded; raise what it raised."""
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        self._thread.join()
        if isinstance(self._error, zmq.ContextTerminated):
            raise trio.BrokenResourceError(f"its context ended under: {self._thread.name}")
        if self._error is not None:
            raise self._error


@contextmanager
def _raw_socket(
    context: Context, kind: zmq.SocketType, name: str, options: SocketOptions
) -> Iterator[zmq.Socket[bytes]]:
    """A socket for a device's thread: unlike a `Socket`, the context never closes it by itself."""
    raw, _ = context._open_raw(kind, name, options)
    try:
        yield raw
    finally:
        context._close_raw(raw, None)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


@asynccontextmanager
async def open_iopub_device(
    context: Context,
    url: str,
    *,
    limits: SubscriberLimits | None = None,
    on_loss: Callable[[int, str], None] | None = None,
    on_refusal: Callable[[str], None] | None = None,
    **options: Unpack[SocketOptions],
) -> AsyncIterator[IOPubDevice]:
    """A thread that carries what publishers publish to the clients that have subscribed to it.

    An XSUB, on inproc, takes from the publishers of all threads; an XPUB, at `url`, gives to the
    clients and tells the publishers of every subscription, as the welcome of JEP 65 needs it.

    A client that doesn't read is disconnected when too many bytes wait for it, as `limits` says; it
    also loses messages once ``sndhwm`` (100,000 unless given) of them wait for it. One that sends
    more than a subscription is disconnected, too (``maxmsgsize``, 4096 bytes).

    At the end, close the publishers first: everything they have published by then goes out to the
    clients, for as long as the XPUB lingers (``linger``, in ms, 1000 unless given). The thread is
    joined and every socket closed, also when the block is cancelled. That takes no longer than the
    thread needs to hand over what is queued; lingering goes on in the background.

    Args:
        context: that of the publishers.
        url: where to listen, as for `Socket.bind`.
        limits: how much may wait for clients; the defaults of `SubscriberLimits` if left out.
        on_loss: called, in this loop, with a number and a text, when clients that don't read have
            been disconnected, or messages weren't published.
        on_refusal: called, in this loop, with what is wrong with a connection that was refused; see
            `open_refusals`.
        options: of the XPUB (``curve_server=True``, ...).

    Raises:
        ValueError: not an address, or an option that could stop the device.
        zmq.ZMQError: it can't be bound, for instance ``EADDRINUSE``; names the address.
        OSError: no file descriptor is left (``EMFILE``, ``ENFILE``).
        trio.BrokenResourceError: at the end: the context had ended under the device.
    """
    if options.get("xpub_nodrop"):
        raise ValueError("xpub_nodrop would let one client that doesn't read stop the device")
    # VERBOSER tells of all who come, and also of all who go, of whom the XSUB passes on the last of
    # each topic. With mere VERBOSE its count would never come down again.
    xpub_options: SocketOptions = {
        "sndhwm": DEFAULT_SNDHWM,
        "maxmsgsize": LARGEST_SUBSCRIPTION,
        **options,
        "xpub_verboser": True,
    }
    publisher_url = f"inproc://iopub-{uuid.uuid4().hex}"
    control_url = f"{publisher_url}-control"
    with (
        _raw_socket(
            context, zmq.SocketType.XSUB, f"iopub XSUB of {url}", {"rcvhwm": 0, "linger": 0}
        ) as xsub,
        _raw_socket(context, zmq.SocketType.XPUB, f"iopub XPUB at {url}", xpub_options) as xpub,
        _raw_socket(context, zmq.SocketType.PAIR, f"iopub control of {url}", {}) as control,
        _raw_socket(context, zmq.SocketType.PAIR, f"iopub steering of {url}", {}) as steering,
    ):
        async with open_subscribers(
            context,
            xpub,
            limits or SubscriberLimits(),
            on_loss or _ignore,
            on_refusal or _ignore,
        ) as ledger:
            xsub.bind(publisher_url)
            xsub.send(b"\1")  # everything, for every publisher that will ever connect
            control.bind(control_url)
            steering.connect(control_url)
            with (
                context._ledger_at(publisher_url, ledger),
                start_publisher(context, publisher_url, notified=True) as publisher,
            ):
                xsub.get(zmq.EVENTS)  # lets it in: nobody else runs the XSUB yet
                await finish_publisher(publisher)
                # Only now may clients come. A subscription to a topic that somebody has subscribed
                # to before isn't repeated to a publisher that comes later, and so would get no
                # welcome.
                actual_url, file = bind_raw(xpub, url)

                def run() -> None:
                    zmq.proxy_steerable(xsub, xpub, None, control)
                    with suppress(zmq.Again):
                        while True:  # told to end, the proxy doesn't look for what is left
                            xpub.send_multipart(xsub.recv_multipart(zmq.NOBLOCK))

                try:
                    thread = _DeviceThread(f"iopub {actual_url}", run)
                except BaseException:  # the machine can't start another
                    if file is not None:
                        file.remove()
                    raise
                try:
                    yield IOPubDevice(actual_url, publisher_url, publisher)
                finally:
                    publisher.close()
                    with suppress(zmq.ContextTerminated):  # then the thread knows already
                        steering.send(b"TERMINATE", zmq.NOBLOCK)
                    if file is not None:
                        file.remove()
                    await thread.join()


@asynccontextmanager
async def open_heartbeat_device(
    url: str, **options: Unpack[SocketOptions]
) -> AsyncIterator[HeartbeatDevice]:
    """A thread that sends every message back to where it came from; to a REQ, it is a REP.

    A client that sends more than 64 kB (``maxmsgsize``) at a time is disconnected.

    It has a ZMQ context, and so an I/O thread, to itself: heavy traffic on other channels doesn't
    delay it. (And it ends by the end of that context: a proxy from a socket to itself can't be
    steered with every build of libzmq 4.3.5, see its ``proxy.cpp``.)

    At the end its threads are joined and its sockets closed, also when the block is cancelled.

    Args:
        url: where to listen, as for `Socket.bind`.
        options: of the ROUTER (``curve_server=True``, ...). Echoes under way at the end are dropped
            unless you give a ``linger``.

    Raises:
        ValueError: not an address, or an option that could stop the device.
        zmq.ZMQError: it can't be bound, for instance ``EADDRINUSE``; names the address.
        OSError: no file descriptor is left (``EMFILE``, ``ENFILE``).
    """
    if options.get("router_mandatory"):
        raise ValueError("router_mandatory would let one client that has gone stop the device")
    router_options: SocketOptions = {
        "linger": 0,
        "maxmsgsize": LARGEST_PING,
        "sndhwm": MOST_ECHOES,
        **options,
    }
    check_room_for_threads(1, f"the heartbeat at {url}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    try:
        apply_options(router, zmq.SocketType.ROUTER, router_options)
        actual_url, file = bind_raw(router, url)
    except BaseException:
        router.close()
        context.term()
        raise

    def run() -> None:
        try:
            zmq.proxy(router, router)
        except zmq.ContextTerminated:
            return  # how it is told to end
        finally:
            router.close()

    try:
        thread = _DeviceThread(f"heartbeat {actual_url}", run)
    except RuntimeError:  # the machine can't start another; on Ctrl-C it may have started, and runs
        if file is not None:
            file.remove()
        router.close()
        context.term()
        raise
    try:
        yield HeartbeatDevice(actual_url)
    finally:
        # It waits until the device's thread has closed the ROUTER, and so not in a trio task.
        end: _DeviceThread | None = None
        try:
            end = _DeviceThread(f"end of heartbeat {actual_url}", context.term)
        except RuntimeError:  # the machine can't start another: then this loop waits for a moment
            context.term()
        if file is not None:
            file.remove()
        try:
            await thread.join()
        finally:
            if end is not None:
                await end.join()
