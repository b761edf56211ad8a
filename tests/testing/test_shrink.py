"""Shrinking: what is needed stays, what is not goes, and it ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import outcome
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_subshells.testing import Deviation, Random, Schedule, ScheduleFailed, explore
from trio_subshells.testing._schedules import Order, OrderFollower, OrderRecorder, Replayer
from trio_subshells.testing._shrink import shrink
from trio_subshells.testing._simulation import Simulation

from .bugs import lost_update


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


def switches(blocks: tuple[tuple[str, int], ...]) -> Schedule:
    return Schedule(tuple(Deviation(number, name) for number, (name, _) in enumerate(blocks)))


def test_blocks_of_a_task_are_merged_where_no_deviation_can_go() -> None:
    """It fails as long as a's last step comes before b's last, whatever else is between."""

    def steps(order: Order) -> str:
        return "".join(name * count for name, count in order.blocks)

    alternating = Order(tuple((name, 1) for name in "abcabcabc"), time=False)
    current = alternating

    def attempt(schedule: Schedule | Order) -> Schedule | None:
        nonlocal current
        if isinstance(schedule, Schedule):
            return None  # no deviation can be spared
        merged = [(name, len(list(group))) for name, group in itertools.groupby(steps(schedule))]
        order = Order(tuple(merged), time=False)
        made = steps(order)
        if sorted(made) != sorted("aaabbbccc") or made.rindex("a") > made.rindex("b"):
            return None
        current = order
        return switches(order.blocks)

    shrunk = shrink(switches(alternating.blocks), attempt, lambda _: current, seconds=60)
    assert len(shrunk) == 3
    assert steps(current).index("bbb") > steps(current).index("aaa")


def test_an_order_is_followed_as_far_as_possible() -> None:
    recorder = OrderRecorder()
    Simulation(Replayer(Schedule.parse("1:1=main/add#2")), recorder=recorder).run(lost_update)
    order = Order(tuple(recorder.blocks), time=False)
    follower = OrderFollower(order)
    simulation = Simulation(follower, recorder=follower)
    assert isinstance(simulation.run(lost_update), outcome.Error)
    assert simulation.deviations == [Deviation(1, "main/add#2")]
    follower = OrderFollower(Order((("nobody", 3), *order.blocks, ("main", 5)), time=False))
    assert isinstance(Simulation(follower, recorder=follower).run(lost_update), outcome.Error)


def test_what_fails_with_as_many_deviations_is_no_progress() -> None:
    schedule = made_of([1, 2])
    assert shrink(schedule, lambda _: made_of([5, 6])) == schedule


def test_a_long_delay_is_one_deviation() -> None:
    async def program() -> None:
        steps = 0
        late = False

        async def chat() -> None:
            nonlocal steps
            for _ in range(30):
                await trio.lowlevel.checkpoint()
                steps += 1

        async def come() -> None:
            nonlocal late
            await trio.lowlevel.checkpoint()
            late = steps > 20

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, name="who comes")
            for _ in range(6):
                nursery.start_soon(chat)
        assert not late

    with pytest.raises(ScheduleFailed) as raised:
        explore(program, schedules=2_000, strategy=Random())
    assert len(raised.value.found) > 20
    (deviation,) = raised.value.schedule.deviations
    assert deviation.holds
    assert deviation.choice.endswith("who comes")
