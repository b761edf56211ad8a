"""Small classics: programs that are wrong in some orders, and one that is right in all."""

from __future__ import annotations

import trio

from trio_subshells import actors


async def lost_update() -> None:
    """Two tasks add to a number that they keep across a checkpoint. Depth 2: one switch."""
    number = 0

    async def add() -> None:
        nonlocal number
        read = number
        await trio.lowlevel.checkpoint()
        number = read + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        nursery.start_soon(add)
    assert number == 2, f"two additions made {number}"


async def hidden_lost_update() -> None:
    """The same in the middle of much else."""
    number = 0

    async def add() -> None:
        nonlocal number
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        read = number
        await trio.lowlevel.checkpoint()
        number = read + 1
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    async def chatter() -> None:
        send, receive = trio.open_memory_channel[int](1)
        for message in range(15):
            await send.send(message)
            await receive.receive()

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(chatter)
        nursery.start_soon(add)
        nursery.start_soon(add)
    assert number == 2, f"two additions made {number}"


async def lost_wakeup() -> None:
    """A waiter looks, and waits for an event that was replaced in between: a deadlock."""
    ready = False
    event = trio.Event()

    async def wait() -> None:
        if not ready:
            await trio.lowlevel.checkpoint()
            await event.wait()

    async def wake() -> None:
        nonlocal event, ready
        await trio.lowlevel.checkpoint()
        ready = True
        event.set()
        event = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wake)


async def abba() -> None:
    """Two tasks take two locks in different orders."""
    first, second = trio.Lock(), trio.Lock()

    async def take(one: trio.Lock, other: trio.Lock) -> None:
        async with one, other:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, first, second)
        nursery.start_soon(take, second, first)


async def early_timeout() -> None:
    """A timeout that is taken for impossible, because the answer is on its way."""
    send, receive = trio.open_memory_channel[str](0)

    async def answer() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(10):
            await send.send("answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with trio.move_on_after(0.5):
            assert await receive.receive() == "answer"
            return
        raise AssertionError("no answer")


async def starvation() -> None:
    """Wrong only if one task, having begun, has no turn until others have made 60 steps."""
    begun = done = False

    async def slow() -> None:
        nonlocal begun, done
        begun = True
        await trio.lowlevel.checkpoint()
        done = True

    async def busy() -> None:
        began_before = begun
        for _ in range(30):
            await trio.lowlevel.checkpoint()
        if began_before or begun:
            finished.append(done)

    finished: list[bool] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        nursery.start_soon(busy)
        nursery.start_soon(busy)
    assert finished != [False, False], "begun, and nobody saw it done"


async def depth_three() -> None:
    """Wrong only if one task stops in its first window and the other, then, in its last."""
    stage = 0

    async def first() -> None:
        nonlocal stage
        stage = 1
        await trio.lowlevel.checkpoint()
        assert stage != 2, "both were in their windows"
        stage = 0
        for _ in range(4):
            await trio.lowlevel.checkpoint()

    async def second() -> None:
        nonlocal stage
        for _ in range(4):
            await trio.lowlevel.checkpoint()
        if stage == 1:
            stage = 2
            await trio.lowlevel.checkpoint()
            stage = 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        nursery.start_soon(second)


async def channels() -> None:
    """Tasks that send and receive, in pairs. Nothing is wrong with it."""

    async def send(channel: trio.MemorySendChannel[int]) -> None:
        async with channel:
            for number in range(3):
                await channel.send(number)

    async def receive(channel: trio.MemoryReceiveChannel[int]) -> None:
        assert [number async for number in channel] == [0, 1, 2]

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            sending, receiving = trio.open_memory_channel[int](0)
            nursery.start_soon(send, sending)
            nursery.start_soon(receive, receiving)


class _Counter(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        total = 0
        async for letter in mailbox:
            if letter.wants_reply:
                letter.reply(total)
            else:
                total += letter.message  # type: ignore[operator]


async def healthy() -> None:
    """Actors, channels, timeouts that are equal, cancellations: all is well."""
    async with actors.open_system() as system:
        here = await system.spawn(_Counter(), name="here")
        there = await system.spawn(_Counter(), name="there", host=actors.ThreadHost())
        send, receive = trio.open_memory_channel[int](1)

        async def tell(counter: actors.ActorRef) -> None:
            for _ in range(3):
                await counter.tell(1)

        async def sleep() -> None:
            with trio.move_on_after(5):
                await trio.sleep(10)
            await send.send(1)

        async with trio.open_nursery() as nursery:
            for counter in (here, there):
                nursery.start_soon(tell, counter)
                nursery.start_soon(tell, counter)
            for _ in range(3):
                nursery.start_soon(sleep)
            for _ in range(3):
                assert await receive.receive() == 1
            for _ in range(5):
                nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.cancel()
        for counter in (here, there):
            assert await counter.ask(None, timeout=60) <= 6
