"""A promise is resolved once, from anywhere, and its waiter always wakes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Awaitable, Callable

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import Promise
from trio_subshells.actors._promise import BlockingPromise

HANG = 60


def in_time(main: Callable[[], Awaitable[None]]) -> None:
    """Run a loop in another thread, and wait for it no longer than that.

    For who is never woken, though there is a value, can't be cancelled either.
    """
    ended: list[outcome.Outcome[None]] = []
    thread = threading.Thread(
        target=lambda: ended.append(outcome.capture(trio.run, main)), daemon=True
    )
    thread.start()
    thread.join(HANG)
    assert ended, "it hangs"
    ended[0].unwrap()


async def test_a_value_wakes_the_waiter() -> None:
    promise: Promise[str] = Promise()

    async def resolve() -> None:
        await wait_all_tasks_blocked()
        assert promise.resolve(outcome.Value("yes"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolve)
        assert await promise.wait() == "yes"
    assert promise.resolved
    assert not promise.abandoned


async def test_an_error_is_raised_as_itself() -> None:
    promise: Promise[str] = Promise()
    error = ValueError("no")
    promise.resolve(outcome.Error(error))
    with pytest.raises(ValueError, match="no") as caught:
        await promise.wait()
    assert caught.value is error


async def test_the_first_resolution_wins() -> None:
    promise: Promise[int] = Promise()
    assert promise.resolve(outcome.Value(1))
    assert not promise.resolve(outcome.Value(2))
    assert not promise.resolve(outcome.Error(ValueError()))
    assert await promise.wait() == 1


def test_threads_that_race_to_resolve_have_one_winner() -> None:
    count = 8

    async def race() -> None:
        promise: Promise[int] = Promise()
        barrier = threading.Barrier(count)
        winners: list[int] = []

        def resolve(n: int) -> None:
            barrier.wait()
            if promise.resolve(outcome.Value(n)):
                winners.append(n)

        threads = [threading.Thread(target=resolve, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        value = await promise.wait()
        for thread in threads:
            thread.join()
        assert winners == [value]

    async def main() -> None:
        for _ in range(50):
            await race()

    in_time(main)


async def test_what_is_resolved_is_returned_even_to_a_cancelled_task() -> None:
    promise: Promise[int] = Promise()
    promise.resolve(outcome.Value(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await promise.wait() == 1
    assert not scope.cancelled_caught


async def test_waiting_for_what_is_resolved_lets_others_run() -> None:
    other_ran = trio.Event()

    async def other() -> None:
        other_ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(100):  # trio's order within one turn is random
            promise: Promise[int] = Promise()
            promise.resolve(outcome.Value(1))
            await promise.wait()
            if other_ran.is_set():
                break
        assert other_ran.is_set()


def test_a_value_that_comes_with_a_cancellation_is_not_lost() -> None:
    values: list[int] = []

    async def wait(promise: Promise[int], scope: trio.CancelScope) -> None:
        with scope:
            values.append(await promise.wait())

    async def main() -> None:
        for resolve_first in (True, False):
            promise: Promise[int] = Promise()
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, promise, scope)
                await wait_all_tasks_blocked()
                if resolve_first:
                    promise.resolve(outcome.Value(1))
                    scope.cancel()
                else:
                    # From another thread: the value is there, its wake-up has not run yet.
                    thread = threading.Thread(target=promise.resolve, args=(outcome.Value(2),))
                    thread.start()
                    thread.join()
                    scope.cancel()
            assert not scope.cancelled_caught

    in_time(main)
    assert values == [1, 2]


async def test_a_cancelled_wait_has_abandoned_the_promise() -> None:
    promise: Promise[int] = Promise()
    with trio.CancelScope() as scope:
        scope.cancel()
        await promise.wait()
    assert scope.cancelled_caught
    assert promise.abandoned
    promise.resolve(outcome.Value(1))  # nobody is woken, nothing breaks
    await wait_all_tasks_blocked()


def test_resolving_for_a_loop_that_has_ended_does_nothing() -> None:
    async def main() -> Promise[int]:
        return Promise()

    promise = trio.run(main)
    resolved: list[bool] = []
    thread = threading.Thread(target=lambda: resolved.append(promise.resolve(outcome.Value(1))))
    thread.start()
    thread.join()
    assert resolved == [True]


def test_a_blocking_promise_is_resolved_from_another_thread() -> None:
    promise: BlockingPromise[str] = BlockingPromise()
    thread = threading.Thread(target=promise.resolve, args=(outcome.Value("yes"),))
    thread.start()
    assert promise.wait(60)
    assert promise.result() == "yes"
    thread.join()
    assert promise.resolved
    assert not promise.abandoned
    assert not promise.resolve(outcome.Value("too late"))


def test_a_blocking_promise_raises_the_error() -> None:
    promise: BlockingPromise[str] = BlockingPromise()
    promise.resolve(outcome.Error(TimeoutError("the answer itself")))
    assert promise.wait(0)
    with pytest.raises(TimeoutError, match="the answer itself"):
        promise.result()


def test_a_blocking_wait_that_gives_up_has_abandoned_the_promise() -> None:
    promise: BlockingPromise[str] = BlockingPromise()
    assert not promise.wait(0)
    assert promise.abandoned


def test_an_answer_at_the_last_moment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the wait has timed out, before the waiter has said so."""
    promise: BlockingPromise[str] = BlockingPromise()

    def time_out(timeout: float) -> bool:
        promise.resolve(outcome.Value("yes"))
        return False

    monkeypatch.setattr(promise._resolved, "wait", time_out)
    assert promise.wait(0)
    assert promise.result() == "yes"


def test_a_keyboard_interrupt_raised_by_another_thread_ends_a_blocking_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promise: BlockingPromise[str] = BlockingPromise()
    waiting = threading.Event()
    interrupted: list[BaseException] = []

    really_wait = promise._resolved.wait

    def tell_and_wait(timeout: float) -> bool:
        waiting.set()
        return really_wait(timeout)

    monkeypatch.setattr(promise._resolved, "wait", tell_and_wait)

    def wait() -> None:
        try:
            promise.wait(60)
        except KeyboardInterrupt as interrupt:
            interrupted.append(interrupt)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
    )
    thread.join()
    assert len(interrupted) == 1
    assert promise.abandoned
