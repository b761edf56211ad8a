"""What a report tells of threads that are stopped in the midst of a step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from xml.etree import ElementTree as ET

import pytest
import trio

from trio_subshells import actors
from trio_subshells.actors import _queue
from trio_subshells.actors._queue import Queue
from trio_subshells.testing import Report, ScheduleFailed, explore
from trio_subshells.testing._explore import Settings, settings
from trio_subshells.testing._story import ARROW, WIDTH

from . import shared
from .shared import Counter, Once
from .test_preemption import in_threads


def preempted(body: Callable[[], Awaitable[object]], module: object) -> Report:
    """Explore until it fails with a thread that was stopped; told without writing files."""
    token = settings.set(Settings())
    try:
        with pytest.raises(ScheduleFailed) as raised:
            explore(body, preempt=[module], schedules=2_000)
    finally:
        settings.reset(token)
    assert any(each.preempts for each in raised.value.schedule.deviations)
    report = raised.value.report
    assert report is not None
    lines = report.text.splitlines()
    assert len(lines) <= 45
    assert all(len(line) <= WIDTH for line in lines if not line.startswith("Replay it:"))
    return report


def position(lines: list[str], *words: str, start: int = 0) -> int:
    """The number of the first line that has all these words."""
    for number, line in enumerate(lines[start:], start):
        if all(each in line for each in words):
            return number
    raise AssertionError(f"none of these has {words}:\n" + "\n".join(lines[start:]))


async def twice() -> None:
    once = Once()
    taken: list[bool] = []

    def take() -> None:
        if once.by_and():
            taken.append(True)

    await in_threads(take, take)
    assert len(taken) == 1


async def added() -> None:
    counter = Counter()
    await in_threads(counter.add_in_place, counter.add_in_place)
    assert counter.count == 2


def test_who_is_stopped_where_and_who_goes_on_is_said() -> None:
    report = preempted(twice, shared)
    lines = report.text.splitlines()
    here = position(lines, f"{ARROW} here thread-", " is stopped ", "shared.py:")
    words = " ".join(f"{lines[here]} {lines[here + 1]}".split())
    assert " on first, and thread-" in words
    assert " from there later" in words
    assert "a task runs until it awaits, or its thread is stopped, then another may go on" in (
        " ".join(lines)
    )
    checks = position(lines, "self.left > 0")
    acts = position(lines, "self.left = 0", start=here)
    goes_on = position(lines, "goes on from here", start=acts)
    assert checks < here < acts < goes_on
    drawn = [each.text or "" for each in ET.fromstring(report.svg).iter()]
    assert any(text.startswith("here thread-") and " is stopped " in text for text in drawn)
    assert " is stopped " in report.mermaid


def test_a_line_that_is_not_done_yet_is_said_to_be_begun() -> None:
    lines = preempted(added, shared).text.splitlines()
    here = position(lines, f"{ARROW} here ", " is stopped in the midst of shared.py:")
    assert "self.count += 1" in lines[here]
    assert "self.count = 1" not in "".join(lines[:here])
    position(lines, "self.count += 1", "goes on from here; self.count = 1", start=here)


class NoLock:
    """A lock that keeps nobody out."""

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


async def overfilled() -> None:
    queue = Queue[int](1)
    queue._lock = NoLock()  # type: ignore[assignment]

    def put() -> None:
        with contextlib.suppress(trio.WouldBlock):
            queue.put_nowait(1)

    await in_threads(put, put)
    assert len(queue._values) == 1


def test_what_our_own_code_did_around_the_stop_is_told() -> None:
    lines = preempted(overfilled, _queue).text.splitlines()
    here = position(lines, f"{ARROW} here thread-", " is stopped before it runs actors/_queue.py:")
    stopped = lines[here].split()[2]
    checks = position(lines, "if len(self._values) >= self.capacity:", "actors/_queue.py:")
    appends = position(lines, "self._values.append(value)", "actors/_queue.py:", start=here + 2)
    goes_on = position(lines, "goes on from here", "actors/_queue.py:", start=appends)
    assert checks < here < appends < goes_on
    assert lines[goes_on].split()[0] == stopped
    told = [line for line in lines if "actors/_queue.py:" in line]
    assert len(told) <= 20


def test_the_end_of_a_block_is_no_second_beginning() -> None:
    async def body() -> None:
        lock = threading.Lock()
        done: list[int] = []

        def both() -> None:
            with lock:
                done.append(len(done))

        async with actors.open_system() as system:
            ref = await system.spawn(Calling(both), name="calling")
            await ref.watch()
        raise ValueError("to be told")

    token = settings.set(Settings())
    try:
        with pytest.raises(ScheduleFailed) as raised:
            explore(body, schedules=1)
    finally:
        settings.reset(token)
    lines = str(raised.value).splitlines()
    begins, ends = position(lines, " with lock:"), position(lines, "end of with lock:")
    assert begins < position(lines, "done.append") < ends


class Calling(actors.Actor):
    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    async def run(self, mailbox: actors.Mailbox) -> None:
        self._function()
