"""The same seed is the same schedule: in each repeat, in any process, under any hash seed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_subshells import actors
from trio_subshells.actors import ActorTerminated
from trio_subshells.testing import PCT, POS, Portfolio, Random, Strategy, simulated_kernel
from trio_subshells.testing._preemption import Preemption
from trio_subshells.testing._runs import Runs
from trio_subshells.testing._schedules import Replayer, Schedule

from . import bugs
from .words import WordsKernel

ROOT = Path(__file__).parents[2]
Program = Callable[[], Awaitable[None]]
STRATEGIES = [Random(), PCT(3), POS()]

_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.testing.test_determinism import digest
print(digest())
"""


def traces(strategy: Strategy, seeds: Iterable[int], program: Program) -> list[tuple[int, ...]]:
    """The trace of a schedule of each seed, after a first one that PCT learns from."""
    found = []
    with Runs(program, max_steps=100_000, fairness=None, lag=1.0, checks=()) as runs:
        strategy.start()
        for seed in (0, *seeds):
            chooser = strategy.chooser(random.Random(seed))
            assert chooser is not None
            run = runs.run(chooser)
            assert run.failure is None
            found.append(tuple(run.simulation.trace))
            if len(found) == 1:
                strategy.learn(run.simulation)
    return found[1:]


def digest() -> str:
    """Of all the traces of an exploration."""
    found = hashlib.sha256()
    for strategy in (*STRATEGIES, Portfolio()):
        found.update(repr(traces(strategy, range(1, 20), bugs.healthy)).encode())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("strategy", "repeats"), [(Random(), 1_000), (PCT(3), 200), (POS(), 200)], ids=repr
)
def test_all_repeats_of_a_seed_are_one_trace(strategy: Strategy, repeats: int) -> None:
    assert len(set(traces(strategy, [1] * repeats, bugs.healthy))) == 1


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_thousand_seeds_are_nearly_as_many_traces(strategy: Strategy) -> None:
    assert len(set(traces(strategy, range(1, 1_001), bugs.channels))) >= 990


async def answered_while_it_works() -> None:
    """What a client gets on several channels waits while its thread is busy."""
    async with simulated_kernel(WordsKernel()) as kernel:
        cells = [kernel.client.execute_soon("say") for _ in range(2)]
        created = kernel.client.control_soon("create_subshell_request")
        time.sleep(1)
        for each in (*cells, created):
            assert (await each.done()).status == "ok"


async def shut_down_while_handles_create() -> None:
    """Several wait for the answers of one actor when it ends."""
    async with simulated_kernel(WordsKernel()) as kernel, trio.open_nursery() as nursery:

        async def create() -> None:
            with suppress(RuntimeError, ActorTerminated):  # the kernel is shutting down
                await kernel.running.create_subshell()

        for _ in range(3):
            nursery.start_soon(create)
        assert (await kernel.shutdown()).status == "ok"


class Idle(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        await trio.sleep_forever()


async def end_several_threads() -> None:
    """They are cancelled at once."""
    async with actors.open_system() as system:
        for number in range(4):
            await system.spawn(Idle(), name=f"idle{number}", host=actors.ThreadHost())


PROGRAMS = [answered_while_it_works, shut_down_while_handles_create, end_several_threads]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("preempt", [[], ["trio_subshells.actors"]], ids=["", "preempted"])
def test_every_schedule_can_be_replayed(
    program: Program, strategy: Strategy, preempt: list[str]
) -> None:
    preemption = Preemption(preempt) if preempt else None
    settings: dict[str, Any] = {"max_steps": 100_000, "fairness": None, "lag": 1.0, "checks": ()}
    with Runs(program, **settings, preemption=preemption) as runs:
        strategy.start()
        for seed in range(30):
            chooser = strategy.chooser(random.Random(seed))
            assert chooser is not None
            chance = partial(_generator, seed) if preempt else None
            run = runs.run(chooser, chance=chance)
            assert run.failure is None
            strategy.learn(run.simulation)
            schedule = Schedule.of(run.simulation, time=chooser.wants_time)
            others = [[None] * size for size in range(seed)]  # what is made now is elsewhere
            again = runs.run(Replayer(schedule))
            assert again.simulation.trace == run.simulation.trace
            del others


def _generator(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")


def test_new_processes_and_hash_seeds_change_nothing() -> None:
    expected = digest()
    for hash_seed in ("0", "1", "random"):
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT.format(root=str(ROOT))],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            timeout=300,
        )
        assert done.stdout.strip() == expected
