"""The bell of `TrioTransport`: no ring is lost, whoever rings and whenever."""

from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import Bell, TrioTransport


def in_plain_thread(function: object) -> None:
    """Call a function in a thread without a trio loop, and wait until it has returned."""
    assert callable(function)
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


async def has_not_rung(bell: Bell) -> None:
    """Make sure that the next wait for it is one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_ring_wakes_the_waiter() -> None:
    bell = TrioTransport().open_bell()
    woken: list[str] = []

    async def wait() -> None:
        await bell.wait()
        woken.append("woken")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert woken == []
        bell.ring()
    assert woken == ["woken"]
    await has_not_rung(bell)


async def test_a_ring_from_another_thread_wakes_the_waiter() -> None:
    bell = TrioTransport().open_bell()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait)
            await wait_all_tasks_blocked()
            in_plain_thread(bell.ring)


async def test_rings_that_nobody_waits_for_are_remembered_as_one() -> None:
    bell = TrioTransport().open_bell()
    in_plain_thread(bell.ring)
    await wait_all_tasks_blocked()  # until the ring has arrived
    bell.ring()
    bell.ring()
    with trio.fail_after(60):
        await bell.wait()
    await has_not_rung(bell)


async def test_a_cancelled_wait_loses_no_ring() -> None:
    bell = TrioTransport().open_bell()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait)
            await wait_all_tasks_blocked()
            scope.cancel()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait()
    assert scope.cancelled_caught
    with trio.fail_after(60):
        await bell.wait()


async def test_only_one_task_waits() -> None:
    bell = TrioTransport().open_bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await bell.wait()
        bell.ring()


async def test_closing_wakes_the_waiter_with_an_error() -> None:
    bell = TrioTransport().open_bell()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bell.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        bell.close()
    with pytest.raises(trio.ClosedResourceError):
        await bell.wait()
    bell.ring()  # does nothing, and doesn't mind


def test_a_ring_after_the_end_of_the_loop_does_nothing() -> None:
    async def main() -> Bell:
        return TrioTransport().open_bell()

    bell = trio.run(main)
    in_plain_thread(bell.ring)
    bell.ring()
