"""How fast the simulator is, how much of what it does is decided, and what a reduction saves.

    python benchmarks/simulator.py

Figures are per second of processor time: the machine may have something else to do. The goals stand
next to them. Each speed is the best of several rounds, since nothing makes a round faster than it
can be.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import math
import os
import random
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.testing import (
    PCT,
    POS,
    Exhaustive,
    Portfolio,
    Random,
    Strategy,
    explore,
    simulated_kernel,
)
from trio_subshells.testing._footprints import footprints
from trio_subshells.testing._runs import Runs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Program = Callable[[], Awaitable[None]]

STRATEGIES: tuple[Strategy, ...] = (Random(0), Random(), PCT(3), POS())


# ------------------------------------------------------------------------------------ programs


async def channels(messages: int) -> None:
    """Four pairs of tasks, each with a channel of trio's: 48 steps for 3 messages."""

    async def send(channel: trio.MemorySendChannel[int]) -> None:
        async with channel:
            for number in range(messages):
                await channel.send(number)

    async def receive(channel: trio.MemoryReceiveChannel[int]) -> None:
        async for _ in channel:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            sending, receiving = trio.open_memory_channel[int](0)
            nursery.start_soon(send, sending)
            nursery.start_soon(receive, receiving)


class Sink(actors.Actor):
    """Takes what comes, and answers if it is asked."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            letter.reply()


@attrs.define
class Source(actors.Actor):
    """Tells another actor something, again and again."""

    sink: actors.ActorRef
    messages: int
    start: float = 0

    async def run(self, mailbox: actors.Mailbox) -> None:
        await trio.sleep(self.start)
        for number in range(self.messages):
            await self.sink.tell(number)


async def pairs_of_actors(messages: int) -> None:
    """Four pairs of actors, in one loop."""
    async with actors.open_system() as system:
        for number in range(4):
            sink = await system.spawn(Sink(), name=f"sink {number}", capacity=4)
            await system.spawn(Source(sink, messages), name=f"source {number}")
        await trio.sleep(1)


async def threads_of_actors(messages: int) -> None:
    """Two sources in tasks, two sinks in simulated threads."""
    async with actors.open_system() as system:
        for number in range(2):
            host = actors.ThreadHost()
            sink = await system.spawn(Sink(), name=f"sink {number}", capacity=4, host=host)
            await system.spawn(Source(sink, messages), name=f"source {number}")
        await trio.sleep(1)


async def sources_and_sinks(sources: int, sinks: int, messages: int) -> None:
    """Sources that begin together, each with a sink of its own or with shared ones."""
    async with actors.open_system() as system:
        refs = [await system.spawn(Sink(), name=f"sink {number}") for number in range(sinks)]
        for number in range(sources):
            source = Source(refs[number % sinks], messages, start=1)
            await system.spawn(source, name=f"source {number}")
        await trio.sleep(2)


class Echo(ts.Kernel):
    """Says what it is told."""

    implementation = "echo"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="echo")
    subshells = True

    async def execute(self, cell: ts.Cell) -> None:
        cell.stdout(cell.code)


async def session(*, at_once: bool) -> None:
    """A kernel's: 20 cells, in the main shell and in a subshell that is created and deleted."""
    async with simulated_kernel(Echo()) as kernel:
        subshell = await kernel.create_subshell()
        shells = [None, subshell] * 10
        if at_once:
            sent = [kernel.client.execute_soon("x", subshell=shell) for shell in shells]
            replies = [await each.done() for each in sent]
        else:
            replies = [await kernel.client.execute("x", subshell=shell) for shell in shells]
        assert {reply.status for reply in replies} == {"ok"}
        assert (await kernel.delete_subshell(subshell)).status == "ok"
        assert (await kernel.shutdown()).status == "ok"


async def lost_update(tasks: int) -> None:
    """Tasks that take three steps each, and share all they have."""

    async def task() -> None:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(task)


# ------------------------------------------------------------------------------------ measuring


def runs_of(program: Program) -> Runs:
    return Runs(program, max_steps=10_000_000, fairness=None, lag=1.0, checks=())


def traces(
    program: Program, strategy: Strategy, seeds: Sequence[int]
) -> tuple[list[tuple[int, ...]], float]:
    """The traces of schedules of these seeds, and the seconds of processor time they took."""
    found = []
    with runs_of(program) as runs:
        strategy.start()
        first = runs.run(strategy.chooser(random.Random(0)))  # type: ignore[arg-type]
        strategy.learn(first.simulation)
        begin = time.process_time()
        for seed in seeds:
            run = runs.run(strategy.chooser(random.Random(seed)))  # type: ignore[arg-type]
            if run.failure is not None:
                raise run.failure
            found.append(run.simulation.trace)
        seconds = time.process_time() - begin
    return [tuple(trace) for trace in found], seconds


def label(strategy: Strategy) -> str:
    if isinstance(strategy, Portfolio):
        return "portfolio"
    return "random, without time" if strategy is STRATEGIES[0] else strategy.name


def row(name: str, figure: str, goal: str, *, reached: bool | None) -> None:
    mark = {True: "reached", False: "MISSED", None: ""}[reached]
    print(f"{name:<58} {figure:>14}   {goal:<22} {mark}")


def speed_of_steps(name: str, program: Program, strategy: Strategy, rounds: int, goal: int) -> None:
    best = 0.0
    for number in range(rounds):
        (trace,), seconds = traces(program, strategy, [number])
        best = max(best, len(trace) / seconds)
    row(
        f"{name}, {label(strategy)}",
        f"{best:,.0f}",
        f"steps/s, goal {goal:,}",
        reached=best >= goal,
    )


def speed_of_schedules(
    name: str, program: Program, strategy: Strategy, rounds: int, count: int, goal: int
) -> None:
    best, steps = 0.0, 0
    for number in range(rounds):
        found, seconds = traces(program, strategy, range(count * number, count * (number + 1)))
        best = max(best, len(found) / seconds)
        steps = max(map(len, found))
    name = f"{name}, {steps} steps, {label(strategy)}"
    row(name, f"{best:,.0f}", f"schedules/s, goal {goal}", reached=best >= goal)


def speeds(rounds: int) -> None:
    for strategy in STRATEGIES:
        speed_of_steps("trio code", partial(channels, 3_000), strategy, rounds, 80_000)
    for strategy in STRATEGIES:
        speed_of_steps("actors", partial(pairs_of_actors, 3_000), strategy, rounds, 150_000)
    speed_of_steps(
        "actors in threads", partial(threads_of_actors, 3_000), Random(0), rounds, 150_000
    )
    for strategy in STRATEGIES:
        speed_of_schedules("whole runs", partial(channels, 3), strategy, rounds, 200, 500)
    for name, at_once in (("kernel sessions", False), ("the same, cells at once", True)):
        program = partial(session, at_once=at_once)
        speed_of_schedules(name, program, Portfolio(), rounds, 34, 60)


def digest() -> str:
    """What a new process has to come to as well."""
    found = hashlib.sha256()
    for strategy in STRATEGIES:
        for program in (partial(channels, 3), partial(threads_of_actors, 2)):
            found.update(repr(traces(program, strategy, range(1, 30))[0]).encode())
    program = partial(session, at_once=True)
    found.update(repr(traces(program, Portfolio(), range(1, 30))[0]).encode())
    return found.hexdigest()


def determinism() -> None:
    for strategy in STRATEGIES:
        program = partial(threads_of_actors, 2)
        same = len(set(traces(program, strategy, [1] * 1_000)[0]))
        row(
            f"different traces in 1,000 repeats of a seed, {label(strategy)}",
            *(f"{same}", "goal 1"),
            reached=same == 1,
        )
        different = len(set(traces(partial(channels, 3), strategy, range(1, 1_001))[0]))
        row(
            f"different traces of 1,000 seeds, {label(strategy)}",
            *(f"{different}", "goal 990"),
            reached=different >= 990,
        )
    program = partial(session, at_once=True)
    for strategy in (Random(), PCT(3)):
        same = len(set(traces(program, strategy, [1] * 1_000)[0]))
        row(
            f"the same, kernel sessions, repeats, {label(strategy)}",
            *(f"{same}", "goal 1"),
            reached=same == 1,
        )
    different = len(set(traces(program, Portfolio(), range(1, 1_001))[0]))
    row(
        "the same, kernel sessions, seeds, portfolio",
        *(f"{different}", "goal 990"),
        reached=different >= 990,
    )
    expected = digest()
    hash_seeds = ("0", "1", "random")
    digests = [
        subprocess.run(
            [sys.executable, __file__, "--digest"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in hash_seeds
    ]
    alike = sum(each == expected for each in digests)
    row(
        f"new processes with the same traces, PYTHONHASHSEED {', '.join(hash_seeds)}",
        *(f"{alike} of {len(hash_seeds)}", "goal all"),
        reached=alike == len(hash_seeds),
    )


def reduction(seconds: float) -> None:
    print(f"\n{'schedules to run all of a program':<58} {'all':>14}   {'reduced':<22}")
    for name, program in (
        ("2 sources, 2 sinks, a message each", partial(sources_and_sinks, 2, 2, 1)),
        ("2 sources, 2 sinks, 2 messages each", partial(sources_and_sinks, 2, 2, 2)),
        ("3 sources, 3 sinks, a message each", partial(sources_and_sinks, 3, 3, 1)),
        ("2 sources, 1 sink, a message each", partial(sources_and_sinks, 2, 1, 1)),
        ("2 sources, 1 sink, 2 messages each", partial(sources_and_sinks, 2, 1, 2)),
        ("2 tasks that share everything", partial(lost_update, 2)),
        ("3 tasks that share everything", partial(lost_update, 3)),
    ):
        counts = []
        for strategy in (Exhaustive(reduction=False), Exhaustive()):
            done = explore(program, strategy=strategy, seconds=seconds)
            count = f"{done.schedules:,}"
            counts.append(count if done.exhausted else f"over {count}")
        print(f"{name:<58} {counts[0]:>14}   {counts[1]:<22}")
    begin = time.process_time()
    with footprints():
        pass
    took = (time.process_time() - begin) * 1e6
    print(f"(replacing methods for it takes {took:,.0f} µs once; without it nothing is replaced)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=20, help="for each exhaustive exploration (default: 20)"
    )
    parser.add_argument("--digest", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 0 < options.seconds < math.inf:
        parser.error("--rounds: at least 1; --seconds: more than 0")
    if options.digest:
        print(digest())
        return
    gc.collect()
    speeds(options.rounds)
    determinism()
    reduction(options.seconds)


if __name__ == "__main__":
    main()
