"""Exhaustive exploration: all orders, no order twice, and none that matters left out."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import trio

from trio_subshells import actors
from trio_subshells.testing import (
    Deadlock,
    Exhaustive,
    Portfolio,
    Random,
    ScheduleFailed,
    UncontrolledNondeterminism,
    explore,
)
from trio_subshells.testing._footprints import Tracker, conflict, footprints
from trio_subshells.testing._runs import Runs
from trio_subshells.testing._schedules import Replayer, Schedule

from . import bugs


async def independent_tasks(tasks: int, checkpoints: int) -> None:
    async def task() -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(task)


@pytest.mark.parametrize("reduction", [True, False])
@pytest.mark.parametrize(("tasks", "checkpoints"), [(1, 5), (2, 1), (2, 4), (3, 1), (3, 2)])
def test_each_order_is_run_once(tasks: int, checkpoints: int, reduction: bool) -> None:
    """What isn't known to commute is run in as many orders as there are."""
    steps = checkpoints + 1
    orders = math.factorial(tasks * steps) // math.factorial(steps) ** tasks
    strategy = Exhaustive(reduction=reduction)
    done = explore(independent_tasks, tasks, checkpoints, strategy=strategy, schedules=10_000)
    assert done.schedules == done.traces == orders
    assert done.exhausted


@pytest.mark.parametrize(("preemptions", "expected"), [(0, 2), (1, 4), (2, 6)])
def test_preemptions_are_bounded(preemptions: int, expected: int) -> None:
    """Of two tasks with two steps each: AABB, one switch more (ABBA), two more (ABAB)."""
    done = explore(independent_tasks, 2, 1, strategy=Exhaustive(preemptions))
    assert done.schedules == done.traces == expected
    assert done.exhausted


def test_bounds_come_one_after_the_other() -> None:
    """A bug that takes one preemption is found before any schedule with two is run."""
    all_with_one = explore(independent_tasks, 3, 2, strategy=Exhaustive(1)).schedules

    async def one_preemption() -> None:
        order: list[int] = []

        async def task(number: int) -> None:
            for _ in range(2):
                order.append(number)
                await trio.lowlevel.checkpoint()
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(task, number)
        switches = sum(a != b for a, b in itertools.pairwise(order))
        assert switches < 4, "two preemptions"

    with pytest.raises(ScheduleFailed, match="two preemptions") as raised:
        explore(one_preemption, strategy=Exhaustive(3), schedules=10_000)
    assert raised.value.number == all_with_one + 1


@pytest.mark.parametrize("strategy", [Exhaustive(), Exhaustive(1), Exhaustive(reduction=False)])
@pytest.mark.parametrize("program", [bugs.lost_update, bugs.lost_wakeup, bugs.abba])
def test_bugs_are_found(strategy: Exhaustive, program: Any) -> None:
    with pytest.raises(ScheduleFailed) as raised:
        explore(program, strategy=strategy, schedules=10_000)
    expected = AssertionError if program is bugs.lost_update else Deadlock
    assert isinstance(raised.value.__cause__, expected)
    assert len(raised.value.schedule) <= 2


def test_no_bug_is_found_within_too_small_a_bound() -> None:
    assert explore(bugs.lost_update, strategy=Exhaustive(0)).exhausted
    assert explore(bugs.depth_three, strategy=Exhaustive(1), schedules=10_000).exhausted
    with pytest.raises(ScheduleFailed):
        explore(bugs.depth_three, strategy=Exhaustive(2), schedules=10_000)


def test_time_is_a_candidate_if_it_is_wanted() -> None:
    assert explore(bugs.early_timeout, strategy=Exhaustive(1), schedules=10_000).exhausted
    with pytest.raises(ScheduleFailed):
        explore(bugs.early_timeout, strategy=Exhaustive(1, time=True), schedules=10_000)


class _Server(actors.Actor):
    def __init__(self, seen: list[object]) -> None:
        self.seen = seen

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            self.seen.append(letter.message)
            letter.reply(len(self.seen))


class _Client(actors.Actor):
    def __init__(self, name: str, plan: str, servers: list[actors.ActorRef]) -> None:
        self.name = name
        self.plan = plan
        self.servers = servers
        self.results: list[object] = []

    async def run(self, mailbox: actors.Mailbox) -> None:
        await trio.sleep(1)  # all of them begin together
        for how, where in self.plan.split():
            server = self.servers[int(where)]
            if how == "t":
                await server.tell(self.name)
            elif how == "n":
                try:
                    server.tell_nowait(self.name)
                except trio.WouldBlock:
                    self.results.append("full")
            elif how == "w":
                with trio.move_on_after(0):
                    self.results.append(await server.ask(self.name, timeout=1))
            else:
                self.results.append(await server.ask(self.name, timeout=math.inf))


async def clients_and_servers(
    outcomes: set[str], plans: tuple[str, ...], capacity: float, host: actors.Host
) -> None:
    """Clients follow their plans: tell (t), tell_nowait (n) or ask (a) server 0 or 1."""
    seen: list[list[object]] = [[], []]
    async with actors.open_system() as system:
        servers = [
            await system.spawn(
                _Server(seen[number]), name=f"s{number}", host=host, capacity=capacity
            )
            for number in range(2)
        ]
        clients = [_Client(f"c{number}", plan, servers) for number, plan in enumerate(plans)]
        for client in clients:
            await system.spawn(client, name=client.name)
        await trio.sleep(2)
    outcomes.add(repr((seen, [client.results for client in clients])))


@pytest.mark.parametrize(
    ("plans", "capacity", "at_most"),
    [
        (("t1", "a1 a1"), 1, 0.5),
        (("t1 t1", "a1"), 1, 0.5),
        (("n1", "t1"), 1, 1),
        (("n0 a1", "n0 n0"), 1, 0.5),
        (("t1", "t0"), 64, 0.05),
        (("a0", "n0"), 1, 1),
        (("a0", "a1"), 1, 0.05),
        (("w0", "t0"), 1, 1),
    ],
)
def test_the_reduction_leaves_out_nothing_that_matters(
    plans: tuple[str, ...], capacity: float, at_most: float
) -> None:
    """Every outcome of all schedules is one of the reduced ones, which are fewer."""
    results = []
    for reduction in (True, False):
        outcomes: set[str] = set()
        done = explore(
            clients_and_servers,
            *(outcomes, plans, capacity, actors.TaskHost()),
            strategy=Exhaustive(reduction=reduction),
            seconds=120,
        )
        assert done.exhausted
        results.append((done.schedules, outcomes))
    (fewer, reduced), (all_of_them, complete) = results
    assert reduced == complete
    assert fewer <= at_most * all_of_them


def test_the_reduction_knows_threads() -> None:
    program = functools.partial(clients_and_servers, set(), ("t0", "t1"), 64, actors.ThreadHost())
    tracker = Tracker()
    with Runs(program, max_steps=10_000, fairness=None, lag=0, checks=()) as runs, footprints():
        assert runs.run(Replayer(Schedule()), tracker).failure is None
    actor = "actor system/s0"
    known = [event for event in tracker.events if event.touched and actor in event.touched]
    assert {event.name for event in known} == {"system/s0 (warden)", "system/s0"}
    for event in tracker.events:
        if event.name == "system/s1" and event.touched is not None:
            assert not any(conflict(event.touched, each.touched) for each in known)


def test_the_methods_are_given_back() -> None:
    before = actors.Promise.__dict__["resolve"], trio.Event.__dict__["set"]
    explore(independent_tasks, 2, 1, strategy=Portfolio([Exhaustive(), Random()]))
    assert (actors.Promise.__dict__["resolve"], trio.Event.__dict__["set"]) == before


@pytest.mark.parametrize("strategy", [Exhaustive(), Exhaustive(2)])
def test_a_program_that_decides_by_itself_is_reported(strategy: Exhaustive) -> None:
    coin = itertools.cycle([1, 1, 3, 5, 0])

    async def program() -> None:
        await independent_tasks(3, next(coin))

    with pytest.raises(UncontrolledNondeterminism, match="other things were possible"):
        explore(program, strategy=strategy)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Exhaustive(-1)
    with pytest.raises(ValueError, match="without time"):
        Exhaustive(time=True, reduction=True)
    with pytest.raises(ValueError, match="reduction works on all schedules"):
        Exhaustive(2, reduction=True)
