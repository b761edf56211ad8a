"""The channel between threads keeps to the rules of `trio.abc`'s channels."""

from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import (
    Bell,
    CrossThreadReceiveChannel,
    CrossThreadSendChannel,
    TrioTransport,
    open_channel,
)

Ends = tuple[CrossThreadSendChannel[object], CrossThreadReceiveChannel[object]]


def channel(capacity: float) -> Ends:
    return open_channel(capacity)


async def test_from_a_plain_thread() -> None:
    send, receive = channel(10)

    def produce() -> None:
        with send:
            for n in range(3):
                send.send_nowait(n)

    thread = threading.Thread(target=produce)
    thread.start()
    with trio.fail_after(60):
        assert [value async for value in receive] == [0, 1, 2]
    thread.join()


async def test_from_another_loop_with_backpressure() -> None:
    send, receive = channel(1)

    async def produce() -> None:
        async with send:
            for n in range(100):
                await send.send(n)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trio.run, produce)
            assert [value async for value in receive] == list(range(100))


async def test_a_full_channel() -> None:
    send, receive = channel(1)
    send.send_nowait("a")
    with pytest.raises(trio.WouldBlock):
        send.send_nowait("b")
    assert send.statistics() == receive.statistics()
    assert receive.statistics().length == 1
    assert receive.receive_nowait() == "a"
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_after_the_sender_is_closed() -> None:
    send, receive = channel(2)
    send.send_nowait("last")
    await send.aclose()
    send.close()  # once more is fine
    with pytest.raises(trio.ClosedResourceError):
        send.send_nowait("x")
    with pytest.raises(trio.ClosedResourceError):
        await send.send("x")
    assert await receive.receive() == "last"
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()
    with pytest.raises(trio.EndOfChannel):
        receive.receive_nowait()


async def test_after_the_receiver_is_closed() -> None:
    send, receive = channel(2)
    send.send_nowait("dropped")
    await receive.aclose()
    receive.close()  # once more is fine
    with pytest.raises(trio.BrokenResourceError):
        send.send_nowait("x")
    with pytest.raises(trio.BrokenResourceError):
        await send.send("x")
    with pytest.raises(trio.ClosedResourceError):
        await receive.receive()
    with pytest.raises(trio.ClosedResourceError):
        receive.receive_nowait()
    send.close()
    with pytest.raises(trio.ClosedResourceError):  # your own doing comes first
        send.send_nowait("x")
    with pytest.raises(trio.ClosedResourceError):
        await send.send("x")


async def test_closing_an_end_ends_its_own_waiting_send_as_closed() -> None:
    send, _ = channel(1)
    send.send_nowait("a")

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await send.send("b")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        send.close()


async def test_closing_the_receiver_ends_a_waiting_send_as_broken() -> None:
    send, receive = channel(1)
    send.send_nowait("a")

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await send.send("b")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        receive.close()


@pytest.mark.parametrize(
    ("end", "error"), [("sender", trio.EndOfChannel), ("receiver", trio.ClosedResourceError)]
)
async def test_closing_either_end_wakes_the_receiver(end: str, error: type[Exception]) -> None:
    send, receive = channel(1)

    async def wait() -> None:
        with pytest.raises(error):
            await receive.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        (send if end == "sender" else receive).close()


async def test_a_second_receiver_is_refused() -> None:
    send, receive = channel(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await receive.receive()
        send.send_nowait("x")


async def test_a_cancelled_receive_takes_nothing() -> None:
    send, receive = channel(1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive.receive)
            await wait_all_tasks_blocked()
            scope.cancel()
    send.send_nowait("x")
    assert await receive.receive() == "x"


async def test_the_transport_is_the_callers_choice() -> None:
    class Counting(TrioTransport):
        bells = 0

        def open_bell(self) -> Bell:
            self.bells += 1
            return super().open_bell()

    transport = Counting()
    ends: Ends = open_channel(1, transport=transport)
    send, receive = ends
    send.close()
    receive.close()
    assert transport.bells == 1


async def test_a_bad_capacity_leaves_no_bell() -> None:
    """Nobody would be there to close it."""

    class Refusing(TrioTransport):
        def open_bell(self) -> Bell:
            pytest.fail("who would close it?")

    with pytest.raises(ValueError, match="capacity"):
        open_channel(0, transport=Refusing())
