"""Simulated descriptors: who waits for one is woken, unless it has fallen silent again."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_subshells import actors
from trio_subshells.testing import Random, ScheduleFailed, explore
from trio_subshells.testing._descriptors import Descriptor, block_until_readable
from trio_subshells.testing._errors import RealInput
from trio_subshells.testing._simulation import Simulation


def current() -> Simulation:
    assert Simulation.current is not None
    return Simulation.current


def make_descriptor() -> Descriptor:
    return Descriptor(current(), "descriptor")


def test_who_waits_is_woken() -> None:
    async def waits() -> None:
        descriptor = make_descriptor()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, descriptor.number)
            await trio.testing.wait_all_tasks_blocked()
            descriptor.readable = True
        await trio.lowlevel.wait_readable(descriptor.number)  # for it still is

    explore(waits, schedules=20)


def test_what_falls_silent_again_may_wake_nobody() -> None:
    async def swallows() -> None:
        descriptor = make_descriptor()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, descriptor.number)
            await trio.testing.wait_all_tasks_blocked()
            descriptor.readable = True
            await trio.lowlevel.checkpoint()
            descriptor.readable = False

    with pytest.raises(ScheduleFailed, match="nothing can happen any more"):
        explore(swallows, schedules=50, strategy=Random())


def test_who_waits_can_be_cancelled_and_told_of_the_end() -> None:
    async def ends() -> None:
        descriptor = make_descriptor()
        with trio.move_on_after(1) as scope:
            await trio.lowlevel.wait_readable(descriptor.number)
        assert scope.cancelled_caught
        descriptor.readable = True  # nobody is there any more
        descriptor.readable = False
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(descriptor.number)

            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await trio.lowlevel.wait_readable(descriptor.number)
            trio.lowlevel.notify_closing(descriptor.number)
        descriptor.close()
        with pytest.raises(RealInput):
            await trio.lowlevel.wait_readable(descriptor.number)

    explore(ends, schedules=20)


def test_a_thread_can_be_blocked_until_one_is_readable() -> None:
    class Sleeper(actors.Actor):
        def __init__(self, descriptors: list[Descriptor]) -> None:
            self._descriptors = descriptors

        async def run(self, mailbox: actors.Mailbox) -> None:
            block_until_readable(current(), self._descriptors)
            assert any(each.readable for each in self._descriptors)
            block_until_readable(current(), self._descriptors)  # at once

    async def wakes() -> None:
        descriptors = [make_descriptor(), make_descriptor()]
        async with actors.open_system() as system:
            sleeper = Sleeper(descriptors)
            ref = await system.spawn(sleeper, name="sleeper", host=actors.ThreadHost())
            await trio.sleep(1)
            for each in descriptors:
                each.readable = True
            await ref.watch()

    explore(wakes, schedules=50)


def test_nothing_is_so_by_chance_by_default() -> None:
    seen = set()

    async def draws() -> None:
        seen.add(current().which("one", "other"))
        await trio.lowlevel.checkpoint()

    explore(draws, schedules=1)
    assert seen == {None}
    explore(draws, schedules=50, strategy=Random())
    assert seen == {None, "one", "other"}
