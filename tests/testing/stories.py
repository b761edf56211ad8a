"""Failures to tell: found, shrunk and recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.testing import Report, ScheduleFailed, explore, simulated_kernel
from trio_subshells.testing._explore import Settings, settings
from trio_subshells.testing._record import Recorder
from trio_subshells.testing._runs import Runs
from trio_subshells.testing._scenes import Scene, compose
from trio_subshells.testing._schedules import Replayer

Body = Callable[[], Awaitable[object]]


def failure_of(body: Body, *, schedules: int = 1_000) -> ScheduleFailed:
    """Explore until it fails, whatever pytest's options say, and without writing files."""
    token = settings.set(Settings())
    try:
        with pytest.raises(ScheduleFailed) as raised:
            explore(body, schedules=schedules)
    finally:
        settings.reset(token)
    assert getattr(raised.value, "__notes__", []) == []
    return raised.value


def report_of(body: Body) -> Report:
    """Explore until it fails, and tell that."""
    report = failure_of(body).report
    assert report is not None
    return report


def scene_of(body: Body, most: int = 24, *, details: bool = False) -> Scene:
    """Explore until it fails, and choose what to tell."""
    error = failure_of(body)
    runs = Runs(body, max_steps=10_000, fairness=None, lag=1.0, checks=())
    with runs, Recorder(details=details) as recorder:
        failure = runs.run(Replayer(error.schedule), recorder).failure
    assert failure is not None
    return compose(recorder, failure, most)


@attrs.frozen
class Set:
    value: str


class Cell(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        value = ""
        async for letter in mailbox:
            await trio.lowlevel.checkpoint()
            letter.reply(value)
            value = letter.message.value


async def overtaken() -> None:
    """Two clients of an actor; one takes for granted that it is the first."""
    async with actors.open_system() as system:
        cell = await system.spawn(Cell(), name="cell")

        async def hasty() -> None:
            assert await cell.ask(Set('<&> "one";'), timeout=10) == ""

        async def other() -> None:
            await cell.ask(Set("two"), timeout=10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hasty)
            nursery.start_soon(other)


class Echo(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            letter.reply(letter.message)


async def terminated() -> None:
    """An actor in a thread of its own, which is cancelled while somebody asks it."""
    async with actors.open_system() as system:
        echo = await system.spawn(Echo(), name="echo", host=actors.ThreadHost())

        async def client() -> None:
            assert await echo.ask("hello", timeout=10) == "hello"

        async def reaper() -> None:
            echo.cancel()
            await echo.watch()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(reaper)


class CountingKernel(ts.Kernel):
    implementation = "counting"
    implementation_version = "1"
    language_info = ts.LanguageInfo(name="numbers")
    subshells = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    async def execute(self, cell: ts.Cell) -> None:
        seen = self.total
        await trio.lowlevel.checkpoint()
        self.total = seen + int(cell.code)


async def miscounted() -> None:
    """A kernel whose shells share a number, which is not theirs to share."""
    kernel = CountingKernel()
    async with simulated_kernel(kernel) as under_test:
        subshell = await under_test.create_subshell()
        first = under_test.client.execute_soon("1", subshell=subshell)
        second = under_test.client.execute_soon("2")
        await first.done()
        await second.done()
        assert kernel.total == 3


class ReadingKernel(ts.Kernel):
    implementation = "reading"
    implementation_version = "1"
    language_info = ts.LanguageInfo(name="words")

    def __init__(self) -> None:
        super().__init__()
        self.reading = False

    async def execute(self, cell: ts.Cell) -> None:
        assert not self.reading, "somebody else reads"
        self.reading = True
        await trio.sleep(1)
        self.reading = False


async def interrupted() -> None:
    """A kernel that an interrupt leaves in the state in which it finds it."""
    async with simulated_kernel(ReadingKernel()) as under_test:
        cell = under_test.client.execute_soon("1")
        await cell.output("execute_input")
        await under_test.interrupt()
        assert (await cell.done()).ename == "KeyboardInterrupt"
        assert (await under_test.client.execute("2")).status == "ok"


async def crowded() -> None:
    """A lost update among more tasks than a picture has room for."""
    number = 0
    send, receive = trio.open_memory_channel[int](100)

    async def add() -> None:
        nonlocal number
        seen = number
        await send.send(seen)
        number = seen + 1

    async def read() -> None:
        await receive.receive()

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(read)
        for _ in range(9):
            nursery.start_soon(add)
    assert number == 9


async def long_winded() -> None:
    """A lost update, among much that doesn't matter."""
    number = 0

    async def add() -> None:
        nonlocal number
        read = number
        await trio.lowlevel.checkpoint()
        number = read + 1

    async def chatter() -> None:
        for _ in range(30):
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(chatter)
        await trio.sleep(0.015)
        nursery.start_soon(add)
        nursery.start_soon(add)
    assert number == 2
