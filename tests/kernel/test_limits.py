"""As many subshells as there is room for; then an error that says what to do, and nothing left."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
import pytest
import trio
import zmq

import trio_subshells as ts
from trio_subshells.kernel import _ground, _limits
from trio_subshells.kernel._limits import (
    DESCRIPTORS,
    RESERVE,
    Room,
    raise_descriptor_limit,
    shortage,
)

from .helpers import CellsKernel, Flag, served

MANY = 20
"""So many that one descriptor each is more than what the kernel's own actors may open meanwhile:
they make the sockets of their bells when they first ring."""

needs_descriptors = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on descriptors that one could meet"
)


@pytest.fixture
def count_descriptors() -> Callable[[], int]:
    """How many file descriptors this process has open."""
    return psutil.Process().num_fds


@contextmanager
def only(left: int) -> Iterator[None]:
    """Within this block, the process can open so many more file descriptors, exactly."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open(os.devnull, os.O_RDONLY)
    taken = [highest]
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + left + 100, hard))
    try:
        try:
            while True:
                taken.append(os.dup(highest))
        except OSError:
            for _ in range(left):
                os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what libzmq's threads do in their own time, and tell nobody of."""
    while not condition():
        await trio.lowlevel.checkpoint()


class SmallKernel(CellsKernel):
    max_subshells = 2


# ------------------------------------------------------------------------------- what one costs


@needs_descriptors
async def test_a_subshell_costs_no_more_descriptors_than_it_says(
    count_descriptors: Callable[[], int],
) -> None:
    kernel = CellsKernel()

    @kernel.cell
    def speak(cell: ts.Cell) -> None:
        cell.stdout("begun, ")  # rings for the timer of the streams, too
        cell.stdout("done\n")

    async with served(kernel) as at:
        first = await at.client.create_subshell()
        await at.client.execute("speak", subshell=first)
        before = count_descriptors()
        created = [await at.client.create_subshell() for _ in range(MANY)]
        for subshell_id in created:
            await at.client.execute("speak", subshell=subshell_id)
        assert (count_descriptors() - before) // MANY <= DESCRIPTORS
        for subshell_id in created:
            await at.client.control("delete_subshell_request", subshell_id=subshell_id)
        await until(lambda: count_descriptors() - before < MANY)


# ---------------------------------------------------------------------------- the maximum


async def test_a_kernel_may_say_how_many_there_may_be() -> None:
    async with served(SmallKernel()) as at:
        first, second = [await at.client.create_subshell() for _ in range(2)]
        refused = (await at.client.control("create_subshell_request")).content
        assert refused["ename"] == "TooManySubshells"
        assert "may have 2 subshells" in refused["evalue"]
        assert "max_subshells" in refused["evalue"]
        with pytest.raises(ts.TooManySubshells, match="may have 2 subshells"):
            await at.running.create_subshell()
        listed = (await at.client.control("list_subshell_request")).content
        assert listed["subshell_id"] == [first, second]
        await at.client.control("delete_subshell_request", subshell_id=first)
        await at.client.create_subshell()


async def test_subshells_that_are_being_created_count() -> None:
    async with served(SmallKernel()) as at:
        outcomes: list[str] = []

        async def create() -> None:
            try:
                await at.running.create_subshell()
            except ts.TooManySubshells:
                outcomes.append("refused")
            else:
                outcomes.append("created")

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(create)
        assert sorted(outcomes) == ["created"] * 2 + ["refused"] * 3


async def test_one_that_is_unjoinable_counts_until_it_is_joined() -> None:
    kernel = SmallKernel()
    begun, gate = Flag(), Flag()

    @kernel.cell
    def hang(cell: ts.Cell) -> None:
        begun.set()
        gate.block()

    async with served(kernel) as at:
        stuck, _ = [await at.client.create_subshell() for _ in range(2)]
        at.client.execute_soon("hang", subshell=stuck)
        await begun.wait()
        delete = at.client.control_soon("delete_subshell_request", subshell_id=stuck, timeout=0.01)
        assert (await delete.done()).ename == "SubshellUnjoinable"
        refused = (await at.client.control("create_subshell_request")).content
        assert refused["ename"] == "TooManySubshells"
        gate.set()
        while (await at.client.control("list_subshell_request")).content.get("unjoinable"):
            pass
        await at.client.create_subshell()


async def test_zero_is_none_and_none_is_no_maximum() -> None:
    for maximum, created in ((0, False), (None, True)):
        kernel = CellsKernel()
        kernel.max_subshells = maximum
        async with served(kernel) as at:
            reply = (await at.client.control("create_subshell_request")).content
            assert (reply["status"] == "ok") is created


@pytest.mark.parametrize("maximum", [-1, 1.5, "3", True])
async def test_a_maximum_that_is_none_is_refused(maximum: Any) -> None:
    kernel = CellsKernel()
    kernel.max_subshells = maximum
    with pytest.raises(ValueError, match=f"max_subshells must be .* not {maximum!r}"):
        async with ts.open_kernel(kernel):
            pass  # pragma: no cover


# ------------------------------------------------------------------- when something runs out


@needs_descriptors
async def test_some_descriptors_are_kept_free_for_others() -> None:
    async with served(CellsKernel()) as at:
        with only(RESERVE + DESCRIPTORS - 1):
            refused = (await at.client.control("create_subshell_request")).content
            assert refused["ename"] == "TooManySubshells"
            assert "file descriptors" in refused["evalue"]
            assert "ulimit -n" in refused["evalue"]
            with pytest.raises(ts.TooManySubshells, match="ulimit -n"):
                await at.running.create_subshell()
        with only(RESERVE + DESCRIPTORS):
            first = await at.client.create_subshell()
            refused = (await at.client.control("create_subshell_request")).content
            assert refused["ename"] == "TooManySubshells"
            await at.client.control("delete_subshell_request", subshell_id=first)
            # The answer comes when its thread is joined; the publisher's is closed a moment later.
            while (await at.client.control("create_subshell_request")).status != "ok":
                pass


def test_each_of_those_that_start_at_once_takes_its_room() -> None:
    asked: list[int] = []
    room = Room(None, lambda count, purpose: asked.append(count))
    with room.taken(0), room.taken(0):
        pass
    with room.taken(2):
        pass
    assert [count - RESERVE for count in asked] == [DESCRIPTORS, 2 * DESCRIPTORS, DESCRIPTORS]


@pytest.mark.parametrize(
    ("number", "what"), [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "room for another subshell")]
)
def test_whoever_has_no_more_descriptors_it_is_a_shortage(number: int, what: str) -> None:
    """The process or the machine."""
    for error in (OSError(number, "it is full"), zmq.ZMQError(number)):
        told = shortage(error)
        assert told is not None
        assert what in str(told)


def test_too_little_address_space_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(_limits.mmap, "mmap", refuse)
    room = Room(None, lambda count, purpose: None)
    with pytest.raises(ts.TooManySubshells, match="ulimit -v"), room.taken(0):
        raise AssertionError("it was started all the same")


@needs_descriptors
# trio's loop, if it can't be made, leaves the sockets that it has to the garbage collection.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("left", range(DESCRIPTORS))
async def test_nothing_is_left_of_one_that_was_half_built(
    left: int, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    """Somebody has taken the descriptors in the moment after they were counted."""
    gc.collect()  # what an earlier test has left gives no descriptor back in the middle of this one
    async with served(CellsKernel()) as at:
        neighbour = await at.client.create_subshell()
        threads, before = set(threading.enumerate()), count_descriptors()
        with monkeypatch.context() as patch, only(left):
            patch.setattr(_ground, "check_descriptors", lambda count, purpose: None)
            for _ in range(MANY):
                refused = (await at.client.control("create_subshell_request")).content
                assert refused["ename"] == "TooManySubshells"
                assert "ulimit -n" in refused["evalue"]
                assert set(threading.enumerate()) <= threads
            with pytest.raises(ts.TooManySubshells, match="ulimit -n"):
                await at.running.create_subshell()
            assert (await at.client.execute("", subshell=neighbour)).status == "ok"
            listed = (await at.client.control("list_subshell_request")).content
            assert listed["subshell_id"] == [neighbour]
        gc.collect()
        await until(lambda: count_descriptors() - before < MANY)
        await at.client.create_subshell()


async def test_the_machine_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if "/subshell" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    async with served(CellsKernel()) as at:
        threads = set(threading.enumerate())
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            refused = (await at.client.control("create_subshell_request")).content
            assert refused["ename"] == "TooManySubshells"
            assert "thread" in refused["evalue"]
            assert "ulimit -u" in refused["evalue"]
            with pytest.raises(ts.TooManySubshells, match="thread"):
                await at.running.create_subshell()
        listed = (await at.client.control("list_subshell_request")).content
        assert listed["subshell_id"] == []
        assert set(threading.enumerate()) <= threads
        await at.client.create_subshell()


async def test_there_is_no_memory_for_what_a_subshell_has_of_its_own() -> None:
    class Hungry(CellsKernel):
        has_memory = False

        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo):
            if not info.is_main and not self.has_memory:
                raise MemoryError
            yield

    kernel = Hungry()
    async with served(kernel) as at:
        threads = set(threading.enumerate())
        refused = (await at.client.control("create_subshell_request")).content
        assert refused["ename"] == "TooManySubshells"
        assert "memory" in refused["evalue"]
        # Not a moment later: when the client hears of it, the thread is joined and the id is gone.
        assert set(threading.enumerate()) <= threads
        listed = (await at.client.control("list_subshell_request")).content
        assert listed["subshell_id"] == []
        kernel.has_memory = True
        await at.client.create_subshell()


async def test_an_error_of_the_authors_is_not_taken_for_a_shortage() -> None:
    class Broken(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo):
            if not info.is_main:
                raise RuntimeError("no database")
            yield

    async with served(Broken()) as at:
        refused = (await at.client.control("create_subshell_request")).content
        assert refused["ename"] == "RuntimeError"
        assert "no database" in refused["evalue"]


# ------------------------------------------------------------------- the process's own limit


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int]]]:
    """Pretend that the process has these limits, and that it may raise the soft one so far."""
    resource = pytest.importorskip("resource", reason="this platform has no such limits")

    def pretend(soft: int, hard: int, allowed: int) -> list[tuple[int, int]]:
        now = [(soft, hard)]

        def setrlimit(which: int, limit: tuple[int, int]) -> None:
            assert which == resource.RLIMIT_NOFILE
            if limit[0] > allowed:
                raise ValueError("current limit exceeds maximum limit")
            now.append(limit)

        monkeypatch.setattr(resource, "getrlimit", lambda which: now[-1])
        monkeypatch.setattr(resource, "setrlimit", setrlimit)
        return now

    return pretend


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised"),
    [
        pytest.param(1024, 20_000, 20_000, 20_000, id="to the hard one"),
        pytest.param(20_000, 20_000, 20_000, 20_000, id="it is there already"),
        pytest.param(1024, 1 << 30, 1 << 30, 1 << 20, id="a container's, which is absurd"),
        pytest.param(1 << 21, 1 << 30, 1 << 30, 1 << 21, id="never lowered"),
        pytest.param(256, -1, 245_760, 1 << 16, id="macOS"),
        pytest.param(256, -1, 10_240, 10_240, id="an older macOS"),
        pytest.param(256, -1, 256, 256, id="nothing is allowed"),
        pytest.param(-1, -1, 0, -1, id="no limit"),
    ],
)
def test_the_limit_on_descriptors_is_raised_as_far_as_it_goes(
    limits: Callable[..., list[tuple[int, int]]], soft: int, hard: int, allowed: int, raised: int
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard, raised = (
        resource.RLIM_INFINITY if each == -1 else each for each in (soft, hard, raised)
    )
    now = limits(soft, hard, allowed)
    raise_descriptor_limit()
    assert now[-1] == (raised, hard)


def test_where_there_are_no_such_limits_there_is_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it would fail
    raise_descriptor_limit()
