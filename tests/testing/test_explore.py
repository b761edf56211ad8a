"""Explorations: their figures, their failures, and what they keep from each other."""

from __future__ import annotations

import gc
import inspect
import itertools
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from trio_subshells.testing import (
    Deadlock,
    LeftBehind,
    NoProgress,
    Random,
    Replay,
    ScheduleFailed,
    UncontrolledNondeterminism,
    explore,
    explore_schedules,
)
from trio_subshells.testing._explore import Settings, settings
from trio_subshells.testing._schedules import Schedule
from trio_subshells.testing._simulation import Chooser

from . import bugs


@pytest.fixture(autouse=True)
def _without_the_plugin() -> Iterator[None]:
    """Explore as outside of pytest, whose plugin would say what to replay a failure with."""
    with set_from_outside(Settings()):
        yield


@contextmanager
def set_from_outside(outside: Settings) -> Iterator[None]:
    token = settings.set(outside)
    try:
        yield
    finally:
        settings.reset(token)


def test_the_figures() -> None:
    done = explore(bugs.healthy, schedules=50, seed=7)
    assert done.schedules == 50
    assert 45 <= done.traces <= 50
    assert done.steps > 50 * 40
    assert done.seconds > 0
    assert done.seed == 7
    assert not done.exhausted
    assert str(done).startswith("50 schedules (")


def test_no_two_seeds_share_a_schedule() -> None:
    seen: list[float] = []

    class Spy(Random):
        def chooser(self, rng: random.Random) -> Chooser:
            seen.append(rng.random())
            return super().chooser(rng)

    async def program() -> None: ...

    for seed in range(8):
        explore(program, schedules=20, strategy=Spy(), seed=seed)
    assert len(set(seen)) == 8 * 20


def test_schedules_and_seconds_are_both_bounds() -> None:
    assert explore(bugs.healthy).schedules == 200
    assert explore(bugs.healthy, seconds=0).schedules == 1
    assert explore(bugs.healthy, seconds=600, schedules=3).schedules == 3
    with pytest.raises(ValueError, match="at least 1"):
        explore(bugs.healthy, schedules=0)


def test_a_failure_tells_all_that_it_takes_to_see_it_again() -> None:
    with pytest.raises(ScheduleFailed) as raised:
        explore(bugs.lost_update, seed=5)
    failed = raised.value
    assert isinstance(failed.__cause__, AssertionError)
    assert failed.failure is failed.__cause__
    assert failed.seed == 5
    assert failed.number >= 2
    assert failed.strategy.startswith(("random", "PCT", "POS"))
    assert len(failed.schedule) == 1
    assert failed.replay == f"explore(lost_update, strategy=Replay('{failed.schedule}'))"
    assert failed.replay in str(failed)
    assert "AssertionError: two additions made 1" in str(failed)


def test_arguments_are_passed_on() -> None:
    seen = []

    async def program(*args: object) -> None:
        seen.append(args)

    explore(program, 1, "two", schedules=3)
    assert seen == [(1, "two")] * 3


async def test_it_is_refused_in_a_trio_loop() -> None:
    with pytest.raises(RuntimeError, match="@explore_schedules"):
        explore(bugs.healthy)


def test_an_exploration_inside_another_is_refused() -> None:
    async def program() -> None:
        explore(bugs.healthy)

    with pytest.raises(ScheduleFailed, match="trio loops of its own"):
        explore(program, schedules=1)


# ------------------------------------------------------------------------------- the decorator


@explore_schedules(20)
async def test_the_decorator_makes_a_test_that_pytest_runs() -> None:
    await bugs.healthy()


@explore_schedules
async def test_the_decorator_without_arguments() -> None:
    await trio.sleep(3600)


@pytest.fixture
def numbers() -> list[int]:
    return [1, 2, 3]


@pytest.mark.parametrize("number", [1, 2])
@explore_schedules(schedules=5, strategy=Random(), seed=1)
async def test_fixtures_and_parameters_come_through(numbers: list[int], number: int) -> None:
    assert numbers[number - 1] == number


class TestMethods:
    @explore_schedules(5)
    async def test_a_method(self, numbers: list[int]) -> None:
        await trio.lowlevel.checkpoint()
        assert type(self) is TestMethods
        assert numbers == [1, 2, 3]


def test_the_decorator_keeps_what_the_test_is() -> None:
    async def original(number: int) -> None:
        """What it is for."""

    for decorated in (explore_schedules(original), explore_schedules(5)(original)):
        assert decorated.__name__ == "original"
        assert decorated.__doc__ == "What it is for."
        assert inspect.signature(decorated) == inspect.signature(original)
        assert not inspect.iscoroutinefunction(decorated)
        assert decorated(3) is None


def test_the_decorator_fails_as_explore_does() -> None:
    with pytest.raises(ScheduleFailed, match="two additions") as raised:
        explore_schedules(100)(bugs.lost_update)()
    assert "explore(lost_update" in raised.value.replay


def test_the_decorator_refuses_what_it_cannot_explore() -> None:
    def not_async() -> None: ...

    async def generator():
        yield

    for wrong in (not_async, generator):
        with pytest.raises(TypeError, match="async function"):
            explore_schedules(wrong)  # type: ignore[call-overload]
    for wrong in ("500", 1.5, True):
        with pytest.raises(TypeError, match=r"explore_schedules\(500\)"):
            explore_schedules(wrong)  # type: ignore[call-overload]


# ------------------------------------------------------------------------- settings from outside


def test_settings_from_outside_come_before_those_of_the_code() -> None:
    with set_from_outside(Settings(schedules=4)):
        assert explore(bugs.healthy, schedules=50).schedules == 4
        assert explore(bugs.healthy, seconds=0).schedules == 4
    with set_from_outside(Settings(seconds=0)):
        assert explore(bugs.healthy, schedules=50).schedules == 1
    with set_from_outside(Settings(seed=9)):
        assert explore(bugs.healthy, schedules=2, seed=3).seed == 9


def test_a_replay_from_outside() -> None:
    with pytest.raises(ScheduleFailed) as raised:
        explore(bugs.lost_update)
    outside = Settings(replay=raised.value.schedule, command="pytest test_x.py::test_it --replay")
    with set_from_outside(outside), pytest.raises(ScheduleFailed) as again:
        explore_schedules(50)(bugs.lost_update)()
    assert again.value.number == 1
    assert again.value.strategy == "replay"
    assert again.value.replay == f"pytest test_x.py::test_it --replay '{again.value.schedule}'"
    with set_from_outside(Settings(replay=Schedule())):
        assert explore(bugs.lost_update).schedules == 1


# -------------------------------------------------------------------------- what a run can fail of


def test_no_end_is_a_failure() -> None:
    async def program() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(ScheduleFailed, match="no end after 1,000 steps"):
        explore(program, schedules=1, max_steps=1_000)


def test_time_that_passes_for_ever_is_no_progress() -> None:
    async def program() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for _ in itertools.count():
                await trio.sleep(1)

    with pytest.raises(ScheduleFailed) as raised:
        explore(program, schedules=1, max_steps=1_000)
    assert isinstance(raised.value.__cause__, NoProgress)


def test_a_check_that_fails_ends_the_schedule() -> None:
    account = {"from": 10, "to": 0}

    async def transfer() -> None:
        try:
            account["from"] -= 1
            await trio.lowlevel.checkpoint()
            account["to"] += 1
        finally:
            account.update({"from": 10, "to": 0})

    def check() -> None:
        assert sum(account.values()) == 10, "money is lost"

    with pytest.raises(ScheduleFailed, match="money is lost"):
        explore(transfer, schedules=1, checks=(check,))


def test_what_was_never_awaited_is_a_failure_of_its_run() -> None:
    turns = itertools.count()

    async def program() -> None:
        if next(turns) >= 3:
            trio.sleep(1)  # noqa: ASYNC105 - that's the point

    with pytest.raises(ScheduleFailed, match=r"coroutine 'sleep' was never awaited") as raised:
        explore(program, schedules=10)
    assert raised.value.number == 4
    assert isinstance(raised.value.__cause__, LeftBehind)


def test_what_was_never_closed_is_a_failure_of_its_run(tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()

    class Holder:
        pass

    async def in_a_cycle() -> None:
        holder = Holder()
        holder.me, holder.file = holder, file.open()  # only a collection finds it

    with pytest.raises(ScheduleFailed, match="unclosed file") as raised:
        explore(in_a_cycle, schedules=10)
    assert raised.value.number == 1


def test_an_exception_that_nobody_can_catch_is_a_failure_of_its_run() -> None:
    class Bad:
        def __del__(self) -> None:
            raise ValueError("bad end")

    async def program() -> None:
        Bad()

    with pytest.raises(ScheduleFailed, match="ValueError: bad end"):
        explore(program, schedules=10)


def test_other_warnings_are_what_they_were() -> None:
    async def program() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    with pytest.raises(ScheduleFailed) as raised:
        explore(program, schedules=1)
    assert isinstance(raised.value.__cause__, DeprecationWarning)
    with pytest.warns(DeprecationWarning, match="old"):
        explore(program, schedules=1)


@pytest.mark.parametrize("end", [pytest.skip, pytest.xfail])
def test_skip_and_xfail_are_no_failures_of_a_schedule(end) -> None:
    async def program() -> None:
        async with trio.open_nursery() as nursery:

            async def child() -> None:
                end("not here")

            nursery.start_soon(child)

    with pytest.raises((pytest.skip.Exception, pytest.xfail.Exception), match="not here"):
        explore(program)


def test_pytest_fail_is_a_failure() -> None:
    async def program() -> None:
        pytest.fail("as one does")

    with pytest.raises(ScheduleFailed, match="as one does"):
        explore(program)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_passed_on(ending) -> None:
    async def program() -> None:
        raise ending

    with pytest.raises(ending):
        explore(program)


def test_what_was_there_before_is_not_searched_for_garbage() -> None:
    """That would take longer than most schedules do."""
    there_before = [object()]
    searched: list[bool] = []

    async def program() -> None:
        searched.append(any(each is there_before for each in gc.get_objects()))

    explore(program, schedules=2)
    assert not any(searched)
    assert any(each is there_before for each in gc.get_objects())


def test_everything_is_given_back() -> None:
    gc.unfreeze()  # what Python itself may have frozen is not
    random.seed(1)
    state = random.getstate()
    before = gc.isenabled(), gc.get_freeze_count(), warnings.showwarning, list(warnings.filters)
    explore(bugs.healthy, schedules=20)
    with pytest.raises(ScheduleFailed) as raised:
        explore(bugs.abba)
    assert isinstance(raised.value.__cause__, Deadlock)
    after = gc.isenabled(), gc.get_freeze_count(), warnings.showwarning, list(warnings.filters)
    assert after == before
    assert random.getstate() == state


# ------------------------------------------------------------------------- uncontrolled decisions


def test_chance_is_the_same_in_each_run() -> None:
    seen = set()

    async def program() -> None:
        seen.add(random.random())

    explore(program, schedules=5)
    assert len(seen) == 1


def test_what_is_kept_from_run_to_run_is_reported_with_its_place() -> None:
    runs = itertools.count()

    async def program() -> None:
        async with trio.open_nursery() as nursery:

            async def child() -> None:
                await trio.lowlevel.checkpoint()
                if next(runs) == 0:
                    await trio.lowlevel.checkpoint()  # the extra one

            nursery.start_soon(child)
        raise ValueError("always")

    with pytest.raises(UncontrolledNondeterminism) as raised:
        explore(program, strategy=Random(0))
    text = str(raised.value)
    assert "is kept from run to run" in text
    assert "main/child went on from test_explore.py" in text
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_decision_of_the_code_itself_is_reported_with_its_place() -> None:
    coin = itertools.cycle([False, True, True])

    async def program() -> None:
        async with trio.open_nursery() as nursery:

            async def child() -> None:
                await trio.sleep(1)
                for _ in range(next(coin)):
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(child, name="flipper")
        raise ValueError("always")

    with pytest.raises(UncontrolledNondeterminism) as raised:
        explore(program, strategy=Random(0))
    text = str(raised.value)
    assert "The runs part ways in step" in text
    assert "main/flipper went on from test_explore.py" in text
    assert "in child" in text


def test_a_failure_that_comes_and_goes_is_reported() -> None:
    runs = itertools.count()

    async def program() -> None:
        if next(runs) == 0:
            raise ValueError("the first time")

    with pytest.raises(UncontrolledNondeterminism) as raised:
        explore(program)
    assert "The first run ended with ValueError: the first time" in str(raised.value)
    assert "with success" in str(raised.value)


def test_a_failing_schedule_is_shrunk_only_if_that_is_wanted() -> None:
    with pytest.raises(ScheduleFailed) as caught:
        explore(bugs.lost_update, shrink=False)
    assert caught.value.schedule is caught.value.found
    assert caught.value.report is None
    assert "replay it" in str(caught.value)


def test_no_attempt_to_shrink_goes_on_for_long() -> None:
    """Who goes on asking for what somebody does, who is made to wait, would ask for ever."""
    looks: list[int] = []

    async def program() -> None:
        ready = False
        looks.append(0)

        async def ask() -> None:
            while not ready:
                looks[-1] += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.lowlevel.checkpoint()
            ready = True
            assert looks[-1] != 2

    with pytest.raises(ScheduleFailed) as raised:
        explore(program, strategy=Random(0))
    assert len(raised.value.schedule) <= 3
    assert 1_000 < max(looks) < 5_000


def test_what_is_decorated_can_be_replayed_by_hand() -> None:
    test = explore_schedules(100)(bugs.lost_update)
    with pytest.raises(ScheduleFailed) as raised:
        test()
    replay = Replay(raised.value.schedule)
    with pytest.raises(ScheduleFailed) as again:
        explore(test, strategy=replay)  # as the report says
    assert again.value.number == 1
    assert type(again.value.failure) is type(raised.value.failure)
