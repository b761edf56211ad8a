"""The project's own sockets in a simulation: simulated there, and nowhere else."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import trio
import zmq

from trio_subshells import actors
from trio_subshells.sockets import (
    Context,
    SocketsLeftOpenError,
    open_context,
    open_heartbeat_device,
    open_iopub_device,
)
from trio_subshells.testing import _libzmq, explore


async def exchange(context: Context) -> bool:
    """Send and receive; returns whether the sockets are simulated."""
    with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.connect(pull.bind("tcp://127.0.0.1:0"))
        await push.send([b"a", b"message"])
        assert await pull.receive() == [b"a", b"message"]
        return isinstance(pull._zmq, _libzmq.Socket)


def test_sockets_are_simulated_in_a_simulation_only() -> None:

    async def in_a_context() -> bool:
        with open_context() as context:
            return await exchange(context)

    async def simulated() -> None:
        assert await in_a_context()
        assert not pool.submit(trio.run, in_a_context).result()

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(trio.run, in_a_context).result()
        explore(simulated, schedules=3)
    assert not trio.run(in_a_context)


def test_what_a_thread_leaves_open_ends_the_wait_for_the_context() -> None:
    """The five seconds that it is given are virtual ones."""

    class Forgetful(actors.Actor):
        def __init__(self, context: Context) -> None:
            self._context = context

        async def run(self, mailbox: actors.Mailbox) -> None:
            socket = self._context.socket(zmq.PULL, name="forgotten")
            await trio.sleep(3600)
            socket.close()

    async def leaves() -> None:
        async with actors.open_system() as system:
            try:
                with open_context() as context:
                    forgetful = Forgetful(context)
                    ref = await system.spawn(forgetful, name="f", host=actors.ThreadHost())
                    while not context.statistics().sockets_open:  # noqa: ASYNC110
                        await trio.sleep(1)
            except SocketsLeftOpenError as error:
                told.append((error.names, time.monotonic() < 60))
            await ref.watch()
            assert trio.current_time() >= 3600
            await trio.sleep(60)  # the thread that waits for the context has its end, too

    told: list[object] = []
    explore(leaves, schedules=20)
    assert told == [(("forgotten",), True)] * 20


def test_devices_run_in_simulated_threads() -> None:
    async def pings() -> None:
        async with open_heartbeat_device("tcp://127.0.0.1:0") as heartbeat:
            with open_context() as context, context.socket(zmq.DEALER) as client:
                client.connect(heartbeat.url)
                await client.send([b"ping"])
                assert await client.receive() == [b"ping"]

    async def publishes() -> None:
        with open_context() as context:
            async with open_iopub_device(context, "ipc://*") as device:
                with context.socket(zmq.SUB, subscribe=b"a") as client:
                    client.connect(device.url)
                    await device.publisher.receive_subscription()
                    device.publisher.publish([b"b", b"for others"])
                    device.publisher.publish([b"a", b"for this one"])
                    assert await client.receive() == [b"a", b"for this one"]

    before = set(threading.enumerate())
    explore(pings, schedules=50)
    explore(publishes, schedules=50)
    assert set(threading.enumerate()) <= before
