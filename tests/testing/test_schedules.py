"""Schedules on paper: written, read, refused, replayed."""

from __future__ import annotations

import string

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_subshells.testing import (
    Deviation,
    InvalidSchedule,
    Replay,
    Schedule,
    ScheduleFailed,
    explore,
)
from trio_subshells.testing._schedules import Replayer
from trio_subshells.testing._simulation import Simulation

from .bugs import lost_update

schedules = st.builds(
    lambda numbers, names, time: Schedule(
        tuple(map(Deviation, sorted(numbers), names[: len(numbers)])), time
    ),
    st.sets(st.integers(0, 10**9), max_size=20),
    st.lists(st.text(min_size=1), min_size=20, max_size=20),
    st.booleans(),
)


@given(schedules)
def test_a_schedule_is_read_as_it_was_written(schedule: Schedule) -> None:
    text = str(schedule)
    assert Schedule.parse(text) == schedule
    assert Schedule.parse(f" {text}\n") == schedule
    assert "'" not in text
    assert text.isprintable()
    assert text.isascii()


def test_a_short_schedule_can_be_read_by_people() -> None:
    schedule = Schedule((Deviation(12, "main/reader#2"), Deviation(40, "time")), time=True)
    assert str(schedule) == "1t:12=main/reader#2,40=time"


def test_a_long_schedule_is_compressed() -> None:
    deviations = [Deviation(number, f"main/task#{number % 7}") for number in range(1000)]
    text = str(Schedule(tuple(deviations)))
    assert text.startswith("1z:")
    assert len(text) < 6000
    assert Schedule.parse(text).deviations == tuple(deviations)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with '1:'"),
        ("rubbish", "begins with '1:'"),
        ("2:1=main", "of this version"),
        ("1x:1=main", "of this version"),
        ("1:1", "NUMBER=NAME"),
        ("1:one=main", "'one=main'"),
        ("1:²=main", "'²=main'"),
        ("1:1=", "decision 1 has no turn"),
        ("1:1=a%ff", "isn't a schedule"),
        ("1:2=a,1=b", "ascending order"),
        ("1:1=a,1=b", "ascending order"),
        ("1z:", "damaged"),
        ("1z:AAAA", "damaged"),
        ("1z:ü", "damaged"),
    ],
)
def test_rubbish_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidSchedule, match=words):
        Schedule.parse(text)


def test_what_is_cut_off_is_noticed() -> None:
    text = str(Schedule(tuple(Deviation(number, f"task {number}") for number in range(200))))
    for length in range(len("1z:"), len(text)):
        with pytest.raises(InvalidSchedule):
            Schedule.parse(text[:length])


@given(st.text(string.printable), st.sampled_from(["1:", "1t:", "1z:"]))
def test_any_text_is_a_schedule_or_refused(text: str, head: str) -> None:
    try:
        schedule = Schedule.parse(head + text)
    except InvalidSchedule:
        return
    assert Schedule.parse(str(schedule)) == schedule


def test_a_deviation_whose_turn_is_not_there_is_skipped() -> None:
    schedule = Schedule.parse("1:0=nobody,1=main/nobody,100000=main/add")
    replayer = Replayer(schedule)
    simulation = Simulation(replayer)
    simulation.run(lost_update).unwrap()
    default = Simulation(Replayer(Schedule()))
    default.run(lost_update).unwrap()
    assert simulation.trace == default.trace
    assert simulation.deviations == []
    assert replayer.skipped == list(schedule.deviations[:2])


# ------------------------------------------------------------------------------------- holds


async def three() -> None:
    """Three tasks, and nothing wrong but that the first one must not come last."""
    order: list[str] = []

    async def step(name: str) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(step, name, name=name)
    assert order[-1] != "first"


def test_a_turn_that_is_held_waits_until_nothing_else_can_happen() -> None:
    with pytest.raises(ScheduleFailed) as raised:
        explore(three, strategy=Replay("1:0~main/first"))
    assert str(raised.value.schedule) == "1:0~main/first"


def test_a_turn_that_was_held_goes_on_when_it_is_chosen() -> None:
    explore(three, strategy=Replay("1:0~main/first,4=main/first"))


def test_holding_and_choosing_in_one_decision() -> None:
    text = "1:0~main/first,0~main/second,0=main/third,3~main/third"
    schedule = Schedule.parse(text)
    assert str(schedule) == text
    assert [each.holds for each in schedule.deviations] == [True, True, False, True]
    with pytest.raises(InvalidSchedule, match="ascending"):
        Schedule.parse("1:0=main/first,0~main/second")


def test_a_turn_that_is_not_the_default_is_not_held() -> None:
    explore(three, strategy=Replay("1:0~main/third"))
