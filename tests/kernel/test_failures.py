"""What of an author's code fails again and again is told once in full, and then counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trio_subshells as ts
from trio_subshells.kernel import _io, _subshell
from trio_subshells.kernel._failures import MOST_KINDS, SUMMARY_INTERVAL, Failures
from trio_subshells.testing import Deadlock, ScheduleFailed, explore

from .helpers import CellsKernel, served


def fail(error: BaseException) -> BaseException:
    """The same line fails each time."""
    try:
        raise error
    except type(error) as raised:
        return raised


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What was logged so far."""
    records: list[logging.LogRecord] = []

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Records()
    logger = logging.getLogger("trio_subshells.kernel")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def told_in_full(log: list[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in log if each.exc_info]


def summed_up(log: list[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in log if not each.exc_info]


def test_the_first_of_each_kind_is_told_in_full(log: list[logging.LogRecord]) -> None:
    failures = Failures()
    for number in range(3):
        failures.add("a comm_msg", fail(ValueError(number)))
    failures.add("a comm_open", fail(ValueError(0)))
    failures.add("a comm_msg", fail(KeyError(0)))
    try:
        raise ValueError("at another line")
    except ValueError as error:
        failures.add("a comm_msg", error)
    failures.add("a comm_msg", ValueError("never raised"))
    assert told_in_full(log) == [
        "a comm_msg has failed",
        "a comm_open has failed",
        "a comm_msg has failed",
        "a comm_msg has failed",
        "a comm_msg has failed",
    ]
    assert len(log) == 5


def test_what_fails_at_another_line_is_another_kind_however_deep_that_is(
    log: list[logging.LogRecord],
) -> None:
    def handler(which: int) -> None:
        parse(which)

    def parse(which: int) -> None:
        if which == 0:
            raise ValueError("at one line")
        raise ValueError("at another")

    failures = Failures()
    for which in (0, 1, 0, 1):
        try:
            handler(which)
        except ValueError as error:
            failures.add("a comm_msg", error)
    told = [str(each.exc_info[1]) for each in log if each.exc_info]
    assert told == ["at one line", "at another"]
    failures._sum_up()
    assert [line.count("1 more time(s), 2 in all") for line in summed_up(log)] == [1, 1]


async def test_those_that_follow_are_a_line_for_each_interval(
    log: list[logging.LogRecord], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    failures = Failures()
    nursery.start_soon(failures.tell)
    for number in range(30):
        for _ in range(100):
            failures.add("a comm_msg", fail(ValueError(f"in second {number}")))
        await trio.sleep(SUMMARY_INTERVAL / 10)
    await trio.sleep(10 * SUMMARY_INTERVAL)
    assert len(told_in_full(log)) == 1
    lines = summed_up(log)
    assert 3 <= len(lines) <= 4
    assert lines[-1].endswith("3000 in all; the last: ValueError: in second 29")


async def test_what_was_not_told_is_told_at_the_end(
    log: list[logging.LogRecord], autojump_clock: MockClock
) -> None:
    failures = Failures()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failures.tell)
        for _ in range(5):
            failures.add("a comm_msg", fail(ValueError("detail")))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    (line,) = summed_up(log)
    assert line.startswith("a comm_msg has failed in the same way 4 more time(s), 5 in all; ")
    assert line.endswith("the last: ValueError: detail")


def test_only_so_many_kinds_are_remembered(log: list[logging.LogRecord]) -> None:
    failures = Failures()
    for number in range(MOST_KINDS + 1):
        failures.add(f"thing {number}", fail(ValueError()))
    failures.add("thing 1", fail(ValueError()))
    assert len(log) == MOST_KINDS + 1
    failures.add("thing 0", fail(ValueError()))
    assert len(log) == MOST_KINDS + 2


class UnspeakableError(Exception):
    """Its text is code of the author's, which may do anything."""

    def __init__(self, speak: Callable[[], str]) -> None:
        super().__init__()
        self._speak = speak

    def __str__(self) -> str:
        return self._speak()


@pytest.mark.parametrize("worse", [ValueError, SystemExit, KeyboardInterrupt])
def test_the_text_of_a_failure_may_fail(
    log: list[logging.LogRecord], worse: type[BaseException]
) -> None:
    def speak() -> str:
        raise worse

    failures = Failures()
    for _ in range(2):
        failures.add("a comm_msg", fail(UnspeakableError(speak)))
    failures._sum_up()
    assert len(told_in_full(log)) == 1
    (line,) = summed_up(log)
    assert f"its text can't be had: {worse.__name__}" in line


def test_the_text_of_a_failure_may_wait_for_another_one(log: list[logging.LogRecord]) -> None:
    failures = Failures()

    def speak() -> str:
        other = threading.Thread(
            target=failures.add, args=("a comm_open", fail(ValueError())), daemon=True
        )
        other.start()
        other.join(30)
        return "has waited" if not other.is_alive() else "has waited in vain"

    for _ in range(2):
        failures.add("a comm_msg", fail(UnspeakableError(speak)))
    failures._sum_up()
    assert not any("in vain" in line for line in summed_up(log))
    assert len(told_in_full(log)) == 2


def test_threads_fail_together(log: list[logging.LogRecord]) -> None:
    failures = Failures()
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        for _ in range(100):
            failures.add("a comm_msg", fail(ValueError()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures._sum_up()
    assert len(told_in_full(log)) == 1
    (line,) = summed_up(log)
    assert "799 more time(s), 800 in all" in line


class FailingKernel(CellsKernel):
    async def comm_message(self, message: ts.CommMessage) -> None:
        raise ZeroDivisionError("by accident")


async def test_a_handler_that_fails_at_every_message(
    log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Failures()
    for module in (_io, _subshell):
        monkeypatch.setattr(module, "failures", fresh)
    kernel = FailingKernel()

    @kernel.cell
    def after(cell: ts.Cell) -> None:
        """It is served after all that came before it."""

    async with served(kernel) as here:
        for _ in range(50):
            here.client.request("comm_msg", {"comm_id": "a", "data": {}})
        await here.client.execute("after")
    assert told_in_full(log) == ["a comm_msg has failed"]
    assert "50 in all; the last: ZeroDivisionError: by accident" in summed_up(log)[-1]


def test_nothing_is_done_while_nothing_fails() -> None:
    with pytest.raises(ScheduleFailed) as failed:
        explore(Failures().tell, schedules=1)
    assert isinstance(failed.value.failure, Deadlock)
