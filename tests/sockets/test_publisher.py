"""Publishers: nothing published is lost, and no subscription goes unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing
import zmq

from trio_subshells.sockets import (
    Context,
    Ledger,
    SocketOptions,
    Subscription,
    open_iopub_device,
    open_publisher,
)
from trio_subshells.sockets import _publisher as module

HANG = 60


async def test_the_first_message_of_a_new_publisher_is_never_lost(context: Context) -> None:
    """500 of 500: each publisher is new, publishes one message at once, and is gone."""
    with context.socket(zmq.SUB, subscribe=b"", rcvhwm=0) as subscriber, trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            subscriber.connect(device.url)
            await device.publisher.receive_subscription()
            for number in range(500):
                async with open_publisher(context, device.publisher_url) as publisher:
                    publisher.publish([b"%d" % number])
            received = [await subscriber.receive() for _ in range(500)]
        # one pipe per publisher, so that the order between them is not given
        assert sorted(received) == sorted([b"%d" % number] for number in range(500))


async def test_publishers_of_many_threads(context: Context) -> None:
    threads, each = 8, 200

    async def publish(url: str, number: int) -> None:
        async with open_publisher(context, url) as publisher:
            for count in range(each):
                publisher.publish([b"%d" % number, b"%d" % count])

    with context.socket(zmq.SUB, subscribe=b"", rcvhwm=0) as subscriber, trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            subscriber.connect(device.url)
            await device.publisher.receive_subscription()
            workers = [
                threading.Thread(target=trio.run, args=(publish, device.publisher_url, number))
                for number in range(threads)
            ]
            for worker in workers:
                worker.start()
            received = [await subscriber.receive() for _ in range(threads * each)]
            for worker in workers:
                worker.join(HANG)
        for number in range(threads):  # the order within one is
            own = [count for thread, count in received if thread == b"%d" % number]
            assert own == [b"%d" % count for count in range(each)]


@pytest.mark.parametrize("options", [{}, {"xpub_verboser": False}], ids=["", "unwanted"])
async def test_every_subscriber_of_every_topic_is_noticed(
    context: Context, options: SocketOptions
) -> None:
    """Whether or not the one who has opened the device wants to hear of them all."""
    topics = [b"", b"a", b"", b"a", b"ab"]
    clients = []
    with trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0", **options) as device:
            for topic in topics:
                clients.append(client := context.socket(zmq.SUB, subscribe=topic))
                client.connect(device.url)
                seen = await device.publisher.receive_subscription()
                assert seen == Subscription(topic, subscribed=True)
                # what a welcome needs: it reaches the one that has just subscribed
                device.publisher.publish([topic, b"welcome"])
                assert await client.receive() == [topic, b"welcome"]
            for client in clients:
                client.close()
            # the last one of a topic; of b"" never, since the device itself stays subscribed
            gone = [await device.publisher.receive_subscription() for _ in range(2)]
            assert {seen.topic for seen in gone} == {b"a", b"ab"}
            assert not any(seen.subscribed for seen in gone)


async def test_a_later_notified_publisher_hears_of_each_topic_once(context: Context) -> None:
    with trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            with (
                context.socket(zmq.SUB, subscribe=b"a") as first,
                context.socket(zmq.SUB, subscribe=b"a") as second,
                context.socket(zmq.SUB, subscribe=b"b") as third,
            ):
                for client in (first, second):
                    client.connect(device.url)
                    await device.publisher.receive_subscription()
                async with open_publisher(
                    context, device.publisher_url, notified=True
                ) as publisher:
                    third.connect(device.url)
                    seen = [await publisher.receive_subscription() for _ in range(2)]
                    assert publisher.statistics().notified
        assert seen == [Subscription(b"a", subscribed=True), Subscription(b"b", subscribed=True)]


async def test_a_cancelled_wait_loses_no_subscription(context: Context) -> None:
    with trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            with context.socket(zmq.SUB) as client:
                client.connect(device.url)
                for number in range(50):
                    topic = b"%d" % number
                    seen = []

                    async def receive(scope: trio.CancelScope, seen: list[Subscription]) -> None:
                        with scope:
                            seen.append(await device.publisher.receive_subscription())

                    scope = trio.CancelScope()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(receive, scope, seen)
                        await trio.testing.wait_all_tasks_blocked()
                        client.set(zmq.SUBSCRIBE, topic)
                        if number % 2:
                            while not seen:
                                device.publisher.publish([b"nothing"])
                                await trio.lowlevel.checkpoint()
                        scope.cancel()
                    if not seen:
                        seen.append(await device.publisher.receive_subscription())
                    assert seen == [Subscription(topic, subscribed=True)]


async def test_only_a_notified_publisher_can_wait_for_subscriptions(context: Context) -> None:
    async with (
        open_iopub_device(context, "tcp://127.0.0.1:0") as device,
        open_publisher(context, device.publisher_url) as publisher,
    ):
        with pytest.raises(RuntimeError, match="notified=True"):
            await publisher.receive_subscription()


async def test_what_a_client_sends_upwards_is_not_taken_for_a_subscription(
    context: Context,
) -> None:
    with trio.fail_after(HANG):
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            with context.socket(zmq.XSUB) as odd:
                odd.connect(device.url)
                await odd.send([b"\2odd"])
                await odd.send([b""])
                await odd.send([b"several", b"frames"])
                await odd.send([b"\1topic"])
                seen = await device.publisher.receive_subscription()
                assert seen == Subscription(b"topic", subscribed=True)


async def test_notifications_that_nobody_reads_are_thrown_away(
    context: Context, monkeypatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_INTERVAL", 3)
    with trio.fail_after(HANG):
        async with (
            open_iopub_device(context, "tcp://127.0.0.1:0") as device,
            open_publisher(context, device.publisher_url) as publisher,
        ):
            with context.socket(zmq.SUB) as client:
                client.connect(device.url)
                for number in range(10):
                    client.set(zmq.SUBSCRIBE, b"%d" % number)
                    await device.publisher.receive_subscription()
                while not publisher._socket.get(zmq.EVENTS) & zmq.POLLIN:
                    await trio.lowlevel.checkpoint()  # the device tells one publisher after another
                for _ in range(3):
                    publisher.publish([b"x"])
            # The device's own subscription, and all but perhaps the last of the client's.
            assert publisher._socket.statistics().messages_received >= 10
            assert publisher.statistics().messages_published == 3


async def test_what_is_dropped_is_not_counted_as_held(context: Context) -> None:
    counted = []

    class Recording(Ledger):
        def lent(self, frames: Sequence[bytes], size: int) -> Sequence[bytes]:
            counted.append(size)
            return super().lent(frames, size)

    async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
        context._ledgers[device.publisher_url] = Recording(0)
        async with open_publisher(context, device.publisher_url) as publisher:
            for _ in range(10):
                publisher.publish([bytes(module.SHARE)])
            assert publisher.statistics().messages_dropped == 10
            publisher.publish([b"small"])
    assert counted == []


async def test_a_publisher_that_can_not_be_opened_leaves_nothing(context: Context) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        async with open_publisher(context, "nonsense"):
            pytest.fail("there is no such address")
    assert context.statistics().sockets_open == ()


async def test_publishing_is_no_checkpoint_and_ends_with_the_publisher(context: Context) -> None:
    async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
        async with open_publisher(context, device.publisher_url) as publisher:
            with trio.testing.assert_no_checkpoints():
                publisher.publish([b"x"])
            with pytest.raises(TypeError, match="list of frames"):
                publisher.publish(b"x")  # type: ignore[arg-type]
        with pytest.raises(trio.ClosedResourceError):
            publisher.publish([b"x"])


async def test_opening_one_for_a_device_that_is_not_there_can_be_cancelled(
    context: Context,
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def open_one() -> None:
                async with open_publisher(context, "inproc://nobody"):
                    pytest.fail("there is no such device")

            nursery.start_soon(open_one)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert context.statistics().sockets_open == ()
