"""The simulated ground of kernels by itself."""

from __future__ import annotations

import time

import pytest
import trio

from trio_subshells.testing import Random, explore
from trio_subshells.testing._network import Inbox, Line, Network
from trio_subshells.testing._simulation import Simulation


def opened(name: str = "there > here") -> tuple[Line, Inbox]:
    simulation = Simulation.current
    assert simulation is not None
    inbox = Inbox(simulation, name)
    return Line(Network(simulation), name, inbox.put), inbox


def test_messages_arrive_in_their_order_and_wake_who_waits() -> None:
    async def body() -> None:
        line, inbox = opened()
        for number in range(5):
            line.send(number)
        assert [await inbox.receive() for _ in range(5)] == list(range(5))
        with pytest.raises(trio.WouldBlock):
            inbox.receive_nowait()

    explore(body, schedules=20)


def test_who_is_cancelled_while_he_waits_has_taken_nothing() -> None:
    async def body() -> None:
        line, inbox = opened()
        received = []
        with trio.move_on_after(1):
            received.append(await inbox.receive())
        line.send("late")
        received.append(await inbox.receive())
        assert received == ["late"]

    explore(body, schedules=5)


def test_who_waits_for_a_socket_that_is_closed_is_told() -> None:
    async def body() -> None:
        _, inbox = opened()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await inbox.receive()

            await trio.lowlevel.checkpoint()
            inbox.close()
        with pytest.raises(trio.ClosedResourceError):
            inbox.receive_nowait()

    explore(body, schedules=20)


def test_one_that_another_task_has_taken_meanwhile_is_waited_for_in_vain() -> None:
    async def body() -> None:
        line, inbox = opened()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                assert await inbox.receive() in {"first", "second"}

            @nursery.start_soon
            async def look() -> None:
                try:
                    inbox.receive_nowait()
                except trio.WouldBlock:
                    return

            line.send("first")
            line.send("second")

    explore(body, schedules=50)


def test_what_is_read_at_once_is_read_in_its_order_and_not_in_the_middle_of_a_step() -> None:
    async def body() -> None:
        line, inbox = opened()
        read: list[int] = []
        everything = trio.Event()

        def reader(number: int) -> None:
            read.append(number)
            if number == 5:
                everything.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.read, reader)
            for number in range(6):
                line.send(number)
                before = list(read)
                time.sleep(1)  # blocks this thread; what arrives meanwhile waits
                assert read == before
                await trio.lowlevel.checkpoint()
            await everything.wait()
            assert read == list(range(6))
            nursery.cancel_scope.cancel()
        line.send(6)
        await trio.sleep(1)
        assert len(inbox) == 1

    explore(body, schedules=50, strategy=Random(0))


def test_what_a_reader_raises_is_the_runs_failure() -> None:
    def read(message: object) -> None:
        raise ValueError(message)

    async def body() -> None:
        line, inbox = opened()
        line.send("rubbish")
        await inbox.read(read)

    with pytest.raises(Exception, match="rubbish") as info:
        explore(body, schedules=1)
    assert isinstance(info.value.__cause__, ValueError)
