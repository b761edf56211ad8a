"""What a hop between two actors costs: in one loop, between two loops, and with either bell.

    python benchmarks/hops.py

Every round measures each place of the receiving actor, in an order drawn anew, in a new system of
actors; the sender lives in the main thread's loop. A place is a host and a bell: ``task``;
``thread`` with the bell of `trio_subshells.actors.TrioTransport`; ``thread-inproc`` with that of
`trio_subshells.sockets.InprocTransport`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING

import attrs
import trio
from _report import Metric, Outcome, show, summarise

from trio_subshells import actors
from trio_subshells.sockets import InprocTransport, open_context

if TYPE_CHECKING:
    from collections.abc import Sequence

METRICS = (
    Metric("hop", "a hop: half of a tell there and a tell back", "µs"),
    Metric("ask", "ask, there and back", "µs"),
    Metric("tell", "tell, one of many in a row", "µs"),
)
PLACES = ("task", "thread", "thread-inproc")

#: Seconds until something is taken for hung.
_LONG = 60.0


@attrs.frozen
class Ball:
    """Comes back to the one who threw it."""

    thrower: actors.ActorRef


@attrs.frozen
class Nothing:
    """Is received, and that is all."""


@attrs.frozen
class Throw:
    """Asks a `Thrower` for the times, in seconds, of `count` balls there and back."""

    target: actors.ActorRef
    count: int


class Receiver(actors.Actor):
    """Throws balls back, and answers everything else at once."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            match letter.message:
                case Ball(thrower):
                    await thrower.tell(Nothing())
                case _:
                    letter.reply()


class Thrower(actors.Actor):
    """Plays with a `Receiver`, one ball at a time."""

    def __init__(self) -> None:
        self.ref: actors.ActorRef | None = None

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            assert isinstance(letter.message, Throw)
            assert self.ref is not None
            ball = Ball(self.ref)
            times = []
            for _ in range(letter.message.count):
                begin = time.perf_counter()
                await letter.message.target.tell(ball)
                await mailbox.receive()
                times.append(time.perf_counter() - begin)
            letter.reply(times)


async def _measure(
    host: actors.Host, transport: actors.Transport, count: int
) -> dict[str, Outcome]:
    with trio.fail_after(10 * _LONG):
        async with actors.open_system(transport=transport) as system:
            return await _measure_in(system, host, count)


async def _measure_in(
    system: actors.Supervisor, host: actors.Host, count: int
) -> dict[str, Outcome]:
    receiver = await system.spawn(Receiver(), name="receiver", host=host)
    thrower = Thrower()
    thrower.ref = await system.spawn(thrower, name="thrower")
    # The first ones bring the sockets and the caches with them.
    await thrower.ref.ask(Throw(receiver, 50), timeout=_LONG)

    balls: list[float] = await thrower.ref.ask(Throw(receiver, count), timeout=_LONG)

    asks = []
    for _ in range(count):
        begin = time.perf_counter()
        await receiver.ask(Nothing(), timeout=_LONG)
        asks.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    for _ in range(10 * count):
        await receiver.tell(Nothing())
    await receiver.ask(Nothing(), timeout=_LONG)
    tell = (time.perf_counter() - begin) / (10 * count)

    return {
        "hop": Outcome(tuple(seconds / 2 * 1e6 for seconds in balls)),
        "ask": Outcome(tuple(seconds * 1e6 for seconds in asks)),
        "tell": Outcome((tell * 1e6,)),
    }


def _measure_place(place: str, count: int) -> dict[str, Outcome]:
    host = actors.TaskHost() if place == "task" else actors.ThreadHost()
    if place != "thread-inproc":
        return trio.run(_measure, host, actors.TrioTransport(), count)
    with open_context() as context:
        return trio.run(_measure, host, InprocTransport(context), count)


def _run(rounds: int, count: int) -> None:
    outcomes: dict[tuple[str, str], list[Outcome]] = {
        (metric.key, place): [] for metric in METRICS for place in PLACES
    }
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for place in random.sample(PLACES, len(PLACES)):
            for key, outcome in _measure_place(place, count).items():
                outcomes[key, place].append(outcome)
    show(summarise(METRICS, PLACES, "thread", outcomes), "thread", rounds, sys.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="how many rounds (default: 9)")
    parser.add_argument(
        "--count", type=int, default=2000, help="round trips in each round (default: 2000)"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.count < 1:
        parser.error("--rounds and --count: at least 1")
    _run(options.rounds, options.count)


if __name__ == "__main__":
    main()
