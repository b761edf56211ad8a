"""What is dropped is counted, told once at once, and then summed up."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from trio_subshells.kernel import DropCount, DropReason
from trio_subshells.kernel._drops import LONGEST_INTERVAL, SUMMARY_INTERVAL, Drops
from trio_subshells.wire import MalformedReason

BAD, UNREAD = MalformedReason.BAD_SIGNATURE, DropReason.NOT_READ


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The lines that were logged so far."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Lines()
    logger = logging.getLogger("trio_subshells.kernel")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_the_first_of_each_is_told_at_once(log: list[str]) -> None:
    drops = Drops()
    for detail in ("first", "second", "third"):
        drops.add("shell", BAD, detail)
    drops.add("control", BAD, "elsewhere")
    drops.add("shell", UNREAD, "for another reason")
    assert log == [
        "dropped a message on the shell channel: first",
        "dropped a message on the control channel: elsewhere",
        "dropped a message on the shell channel: for another reason",
    ]


def test_everything_is_counted() -> None:
    drops = Drops()
    assert drops.counts() == ()
    for _ in range(1000):
        drops.add("shell", BAD, "")
    drops.add("stdin", UNREAD, "")
    assert drops.counts() == (DropCount("shell", BAD, 1000), DropCount("stdin", UNREAD, 1))


async def test_a_flood_is_a_line_for_each_interval(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    drops = Drops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.tell)
        for number in range(3 * int(SUMMARY_INTERVAL)):  # a hundred each second
            for _ in range(100):
                drops.add("shell", BAD, f"in second {number}")
            await trio.sleep(1)
        await trio.sleep(10 * SUMMARY_INTERVAL)  # quiet again
        assert log[0] == "dropped a message on the shell channel: in second 0"
        sums = [line for line in log[1:] if "bad_signature" in line]
        assert sums == log[1:]
        assert 2 <= len(sums) <= 3
        assert sum(int(line.split()[1]) for line in sums) == drops.counts()[0].count - 1
        assert "3000 in all" in sums[-1]
        assert sums[-1].endswith("in second 29")
        told = len(log)
        await trio.sleep(10 * SUMMARY_INTERVAL)
        assert len(log) == told
        nursery.cancel_scope.cancel()
    assert len(log) == told


async def test_who_knocks_for_days_is_told_of_ever_more_rarely(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    """A client that has not heard that its kernel has ended, say: another one has its port now."""
    drops = Drops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.tell)
        for hours in (48, 1):
            before = len(log)
            for _ in range(hours * 360):
                drops.add("shell", BAD, "")
                await trio.sleep(10)
            assert len(log) - before < 10 + hours
            told = sum(1 if line.endswith("channel: ") else int(line.split()[1]) for line in log)
            assert drops.counts()[0].count - told <= LONGEST_INTERVAL / 10
            await trio.sleep(2 * LONGEST_INTERVAL)  # then it is quiet
            before = len(log)
            drops.add("shell", BAD, "again")
            await trio.sleep(2 * SUMMARY_INTERVAL)
            assert len(log) == before + 1
            await trio.sleep(2 * LONGEST_INTERVAL)
        nursery.cancel_scope.cancel()


async def test_what_was_not_told_is_told_at_the_end(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    drops = Drops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.tell)
        for _ in range(5):
            drops.add("shell", BAD, "detail")
        await trio.testing.wait_all_tasks_blocked()
        assert len(log) == 1
        nursery.cancel_scope.cancel()
    assert log[1:] == [
        "dropped 4 more message(s) on the shell channel (bad_signature), 5 in all; the last: detail"
    ]


async def test_what_was_dropped_several_at_a_time_is_told_to_the_last(log: list[str]) -> None:
    """A client that was disconnected, say, has lost all that waited for it."""
    drops = Drops()
    drops.add("iopub", UNREAD, "detail", 5)
    assert log == ["dropped a message on the iopub channel: detail"]
    drops._sum_up()
    assert log[1:] == [
        "dropped 4 more message(s) on the iopub channel (not_read), 5 in all; the last: detail"
    ]


async def test_each_channel_is_summed_up_whatever_is_to_be_said_of_the_others(
    log: list[str],
) -> None:
    drops = Drops()
    for channel, times in (("shell", 1), ("control", 3), ("stdin", 1), ("iopub", 2)):
        for _ in range(times):
            drops.add(channel, BAD, "")
    told = len(log)
    drops._sum_up()
    assert [line.partition(" (bad")[0] for line in log[told:]] == [
        "dropped 2 more message(s) on the control channel",
        "dropped 1 more message(s) on the iopub channel",
    ]


async def test_after_a_quiet_while_it_is_told_as_soon_as_at_first(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    """Quiet for longer than the pause that it has come to, however short that still is."""
    drops = Drops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.tell)
        for _ in range(10 * int(SUMMARY_INTERVAL)):
            drops.add("shell", BAD, "")
            await trio.sleep(1)
        await trio.sleep(40 * SUMMARY_INTERVAL)
        told = len(log)
        drops.add("shell", BAD, "again")
        await trio.sleep(1.5 * SUMMARY_INTERVAL)
        assert len(log) == told + 1
        nursery.cancel_scope.cancel()


async def test_nothing_wakes_up_while_nothing_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    drops = Drops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.tell)
        drops.add("shell", BAD, "one, told at once")
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().seconds_to_next_deadline
        assert before == float("inf")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("written", ["a\nERROR fake: line", "\x1b[2J", "\ud800", "x" * 10_000])
def test_what_others_wrote_stays_on_a_short_line(log: list[str], written: str) -> None:
    Drops().add("shell", BAD, written)
    [line] = log
    assert line.isprintable()
    assert len(line) < 500
