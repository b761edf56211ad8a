"""Strategies: each finds what it is there for, and no more."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from trio_subshells.testing import (
    PCT,
    POS,
    Deadlock,
    Portfolio,
    Random,
    Replay,
    Schedule,
    ScheduleFailed,
    Strategy,
    explore,
)
from trio_subshells.testing._strategies import Default

from . import bugs

Program = Callable[[], Awaitable[None]]


def failure(
    program: Program, strategy: Strategy | None, schedules: int = 500, **options: object
) -> BaseException:
    """What the exploration of a program finds; it is shrunk well, and replays."""
    with pytest.raises(ScheduleFailed) as raised:
        explore(program, strategy=strategy, schedules=schedules, **options)  # type: ignore[arg-type]
    found = raised.value
    assert len(found.schedule) <= 5, found
    with pytest.raises(ScheduleFailed) as again:
        explore(program, strategy=Replay(str(found.schedule)), **options)  # type: ignore[arg-type]
    assert type(again.value.__cause__) is type(found.__cause__)
    assert again.value.schedule == found.schedule
    assert found.__cause__ is not None
    return found.__cause__


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    return error


STRATEGIES: list[Strategy | None] = [None, Random(), PCT(2), PCT(3), PCT(4), POS()]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_all_find_a_lost_update(strategy: Strategy | None) -> None:
    assert "two additions made 1" in str(failure(bugs.lost_update, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_all_find_a_lost_wake_up(strategy: Strategy | None) -> None:
    assert isinstance(failure(bugs.lost_wakeup, strategy), Deadlock)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_all_find_two_locks_taken_in_different_orders(strategy: Strategy | None) -> None:
    error = failure(bugs.abba, strategy)
    assert isinstance(error, Deadlock)
    assert "main/take waits at" in str(error)
    assert "main/take#2 waits at" in str(error)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_all_find_a_timeout_that_comes_early(strategy: Strategy | None) -> None:
    assert str(leaf(failure(bugs.early_timeout, strategy))) == "no answer"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_no_timeout_comes_earlier_than_the_lag_allows(strategy: Strategy | None) -> None:
    explore(bugs.early_timeout, strategy=strategy, schedules=200, lag=0.25)
    explore(bugs.early_timeout, strategy=strategy, schedules=200, lag=0)


def test_time_never_passes_early_where_it_has_no_weight() -> None:
    explore(bugs.early_timeout, strategy=Random(time=0), schedules=200)


def test_a_long_random_schedule_is_shrunk_to_what_matters() -> None:
    with pytest.raises(ScheduleFailed) as raised:
        explore(bugs.hidden_lost_update, strategy=Random(0))
    assert len(raised.value.found) > 150
    assert len(raised.value.schedule) <= 5


def test_pct_finds_starvation_and_random_does_not() -> None:
    explore(bugs.starvation, strategy=Random(), schedules=300)
    explore(bugs.starvation, strategy=PCT(1), schedules=300)
    assert "begun, and nobody saw it done" in str(failure(bugs.starvation, PCT(2), 300))


def test_fairness_bounds_starvation() -> None:
    explore(bugs.starvation, strategy=PCT(2), schedules=300, fairness=20)


def test_a_bug_of_depth_three_takes_a_strategy_of_depth_three() -> None:
    explore(bugs.depth_three, strategy=PCT(1), schedules=500)
    explore(bugs.depth_three, strategy=PCT(2), schedules=500)
    error = failure(bugs.depth_three, PCT(3), 2_000)
    assert str(leaf(error)) == "both were in their windows"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_none_finds_fault_with_what_is_right(strategy: Strategy | None) -> None:
    assert explore(bugs.healthy, strategy=strategy, schedules=100).schedules == 100


def test_the_portfolio_begins_with_the_default_and_takes_turns() -> None:
    done = explore(bugs.healthy, schedules=17)
    assert done.strategies == {
        "default order": 1,
        "random": 4,
        "POS": 4,
        **{f"PCT, depth {depth}": 2 for depth in (1, 2, 3, 4)},
    }


def test_the_portfolio_drops_what_has_no_schedule_left() -> None:
    once = Replay(Schedule())
    done = explore(bugs.healthy, strategy=Portfolio([once, Random()]), schedules=10)
    assert done.strategies == {"default order": 1, "replay": 1, "random": 8}
    done = explore(bugs.healthy, strategy=Portfolio([once]), schedules=10)
    assert done.exhausted
    assert done.schedules == 2
    assert explore(bugs.healthy, strategy=Default(), schedules=10).schedules == 1


def test_a_strategy_may_be_used_again() -> None:
    for strategy in (*STRATEGIES[1:], Portfolio(), Replay("1:")):
        assert strategy is not None
        one = explore(bugs.healthy, strategy=strategy, schedules=20, seed=3)
        other = explore(bugs.healthy, strategy=strategy, schedules=20, seed=3)
        assert (one.schedules, one.steps, one.traces) == (
            other.schedules,
            other.steps,
            other.traces,
        )


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1"):
        PCT(0)
    with pytest.raises(ValueError, match="weight of time"):
        Random(time=2)
    with pytest.raises(ValueError, match="isn't a schedule"):
        Replay("rubbish")


def test_pct_draws_its_change_points_from_all_decisions() -> None:
    strategy = PCT(2)
    explore(bugs.starvation, strategy=strategy, schedules=1)
    seen = {
        point
        for seed in range(2000)
        for point in strategy.chooser(random.Random(seed)).points  # type: ignore[attr-defined]
    }
    assert min(seen) == 1
    assert max(seen) == strategy._length
    assert len(seen) == strategy._length
