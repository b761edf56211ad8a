"""What is free is given back to the system, when it is much; never for nothing."""

from __future__ import annotations

import ctypes
import sys
import threading

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_subshells.kernel import _memory
from trio_subshells.kernel._memory import WORTHWHILE, Holding, find_allocator, give_back_memory

MB = 1_000_000


@attrs.define
class FakeAllocator:
    """Has given back `given` bytes of those that are free."""

    used: int = 50 * MB
    free: int = 2 * MB
    given: int = 0
    trims: int = 0
    looks: int = 0
    fails: bool = False

    def look(self) -> Holding:
        self.looks += 1
        if self.fails:
            raise OSError("no descriptor")
        return Holding(self.used + self.free - self.given, self.free)

    def trim(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.trims += 1
        self.given = self.free

    def take(self, size: int) -> None:
        self.used += size
        self.free = max(0, self.free - size)
        self.given = min(self.given, self.free)

    def release(self, size: int) -> None:
        self.used -= size
        self.free += size


@pytest.fixture
async def allocator(nursery: trio.Nursery) -> FakeAllocator:
    fake = FakeAllocator()
    nursery.start_soon(give_back_memory, fake)
    await settled(fake)
    return fake


async def settled(fake: FakeAllocator) -> None:
    """Some looks later, on the clock that jumps."""
    goal = fake.looks + 5
    while fake.looks < goal:  # noqa: ASYNC110 -- that clock doesn't wait for a thread in between
        await trio.sleep(0.1)


async def test_what_is_free_is_given_back_once(
    allocator: FakeAllocator, autojump_clock: MockClock
) -> None:
    assert allocator.trims == 0
    for times in range(1, 4):
        allocator.take(70 * MB)
        await settled(allocator)
        assert allocator.trims == times - 1  # there is nothing to give back
        allocator.release(70 * MB)
        await settled(allocator)
        assert allocator.trims == times
        await settled(allocator)
        assert allocator.trims == times


async def test_what_is_taken_and_freed_between_two_looks_is_given_back(
    allocator: FakeAllocator, autojump_clock: MockClock
) -> None:
    """No more is free than before, as what was given back counts, too; but more is resident."""
    for times in range(1, 4):
        allocator.take(70 * MB)
        allocator.release(70 * MB)
        await settled(allocator)
        assert allocator.trims == times


async def test_little_is_not_worthwhile(
    allocator: FakeAllocator, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        allocator.take(WORTHWHILE - 2 * MB)
        allocator.release(WORTHWHILE - 2 * MB)
        await settled(allocator)
    assert allocator.trims == 0


async def test_what_is_little_for_a_large_process(
    allocator: FakeAllocator, autojump_clock: MockClock
) -> None:
    allocator.take(1000 * MB)
    await settled(allocator)
    allocator.release(50 * MB)
    await settled(allocator)
    assert allocator.trims == 0
    allocator.release(50 * MB)
    await settled(allocator)
    assert allocator.trims == 1


async def test_what_can_not_be_given_back_is_tried_once(
    allocator: FakeAllocator, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trim_nothing() -> None:
        allocator.trims += 1

    monkeypatch.setattr(FakeAllocator, "trim", lambda self: trim_nothing())
    allocator.take(70 * MB)
    allocator.release(70 * MB)
    for _ in range(5):
        await settled(allocator)
    assert allocator.trims == 1


async def test_without_descriptors_it_waits_for_better_times(
    allocator: FakeAllocator, autojump_clock: MockClock
) -> None:
    allocator.take(70 * MB)
    allocator.release(70 * MB)
    allocator.fails = True
    await settled(allocator)
    allocator.fails = False
    await settled(allocator)
    assert allocator.trims == 1


async def test_without_threads_it_waits_for_better_times(
    allocator: FakeAllocator, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as no_threads:
        no_threads.setattr(threading.Thread, "start", fail)
        allocator.take(70 * MB)
        allocator.release(70 * MB)
        await settled(allocator)
        assert allocator.trims == 0
    allocator.take(70 * MB)
    allocator.release(70 * MB)
    await settled(allocator)
    assert allocator.trims == 1


async def test_who_is_cancelled_waits_for_its_thread() -> None:
    released, ended = threading.Event(), trio.Event()
    begun, token = trio.Event(), trio.lowlevel.current_trio_token()

    class SlowAllocator(FakeAllocator):
        def trim(self) -> None:
            token.run_sync_soon(begun.set)
            assert released.wait(60)

    async def trim() -> None:
        await _memory._trim(SlowAllocator())
        ended.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trim)
            await begun.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                has_waited = not ended.is_set()
                released.set()
    assert has_waited
    assert ended.is_set()


async def test_other_allocators_are_left_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "find_allocator", lambda: None)
    with trio.move_on_after(100) as scope:
        await give_back_memory()
    assert scope.cancelled_caught


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
@pytest.mark.parametrize("error", [AttributeError("no mallinfo2"), FileNotFoundError("no /proc")])
def test_one_that_does_not_tell_what_there_is_is_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(self: _memory.Glibc) -> Holding:
        raise error

    monkeypatch.setattr(_memory.Glibc, "look", look)
    assert find_allocator() is None


@pytest.mark.skipif(not isinstance(find_allocator(), _memory.Glibc), reason="not glibc >= 2.33")
def test_that_of_the_process() -> None:
    allocator = find_allocator()
    assert allocator is not None
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    size, count = 60_000, 1000  # each less than what the system would be asked for
    blocks = [library.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    full = allocator.look()
    last = blocks.pop()  # above all others: glibc doesn't give them back by itself
    for block in blocks:
        library.free(block)
    freed = allocator.look()
    allocator.trim()
    given = allocator.look()
    library.free(last)
    assert freed.free - full.free > 0.9 * size * count
    assert freed.resident - given.resident > 0.9 * size * count


@pytest.mark.skipif(sys.platform == "linux", reason="Linux")
def test_elsewhere_there_is_none() -> None:
    assert find_allocator() is None
