"""Shrinking: what is needed stays, what is not goes, and it ends."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from trio_subshells.testing import Deviation, Schedule
from trio_subshells.testing._shrink import shrink


def made_of(numbers: list[int]) -> Schedule:
    return Schedule(tuple(Deviation(number, f"task {number}") for number in numbers))


def fails_with(needed: set[str]) -> Callable[[Schedule], Schedule | None]:
    def attempt(schedule: Schedule) -> Schedule | None:
        return schedule if needed <= {each.choice for each in schedule.deviations} else None

    return attempt


@given(st.sets(st.integers(0, 60)), st.data())
def test_what_is_not_needed_goes(numbers: set[int], data: st.DataObject) -> None:
    ordered = sorted(numbers)
    needed = (
        {f"task {each}" for each in data.draw(st.sets(st.sampled_from(ordered)))}
        if ordered
        else set()
    )
    shrunk = shrink(made_of(ordered), fails_with(needed), seconds=60)
    assert {each.choice for each in shrunk.deviations} == needed


def test_it_takes_few_attempts() -> None:
    attempts = 0

    def attempt(schedule: Schedule) -> Schedule | None:
        nonlocal attempts
        attempts += 1
        return fails_with({"task 300"})(schedule)

    assert len(shrink(made_of(list(range(512))), attempt, seconds=60)) == 1
    assert attempts <= 40


def test_later_deviations_may_move() -> None:
    def attempt(schedule: Schedule) -> Schedule | None:
        """Each deviation before the one that matters makes its decision one later."""
        wanted = [each for each in schedule.deviations if each.choice == "task 20"]
        before = [each for each in schedule.deviations if each.choice != "task 20"]
        fails = wanted and wanted[0].decision == 17 + len(before)
        return schedule if fails else None

    assert [each.decision for each in shrink(made_of([3, 7, 9, 20]), attempt).deviations] == [17]


def test_it_is_bounded() -> None:
    attempts = 0

    def attempt(schedule: Schedule) -> Schedule | None:
        nonlocal attempts
        attempts += 1
        return None

    schedule = made_of(list(range(100)))
    assert shrink(schedule, attempt, runs=10, seconds=60) == schedule
    assert attempts == 10
    assert shrink(schedule, attempt, seconds=0) == schedule
    assert attempts == 10


def test_what_fails_with_as_many_deviations_is_no_progress() -> None:
    schedule = made_of([1, 2])
    assert shrink(schedule, lambda _: made_of([5, 6])) == schedule
