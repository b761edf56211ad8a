"""Checks beside the user's own: what no run may do, and what some must do in time.

A simulation sees deadlocks, threads that outlive their parents, and receivers that sleep although
there is something for them (`_simulation`). Here is what takes more knowledge: `KernelChecks` knows
what a kernel owes to its client, and `within` what the user expects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from ..actors import _supervision
from ..kernel._messages import AreYouReady
from ._client import CLIENT_CHANNELS, Client, Exchange
from ._errors import LostMessage, NoProgress, Starvation, UnansweredRequest, calling_line, waiting
from ._network import Network
from ._simulation import Simulation

_DELIMITER: Final = b"<IDS|MSG>"


class KernelChecks:
    """What a simulated kernel owes to its first client.

    Args:
        simulation: in which both are.
        network: between them.
        patience: how many virtual seconds an answer may take.
    """

    def __init__(self, simulation: Simulation, network: Network, patience: float) -> None:
        self._simulation = simulation
        self._network = network
        self._patience = patience
        self._client: Client | None = None
        self._unanswered: list[Exchange] = []

    def begin(self, client: Client) -> None:
        """The client is there: look from now on, whenever nothing goes on."""
        self._client = client
        self._simulation.checks_at_rest.append(self._check_at_rest)

    def end(self) -> None:
        """The kernel is about to be shut down, or is: its actors take nothing any more."""
        if self._check_at_rest in self._simulation.checks_at_rest:
            self._simulation.checks_at_rest.remove(self._check_at_rest)

    def _check_at_rest(self) -> None:
        assert self._client is not None
        unanswered = [each for each in self._client.exchanges if _missing(each)]
        until = self._simulation.next_time()
        for exchange in unanswered:
            waits = until - exchange.asked.time
            if self._patience < waits < math.inf:
                raise UnansweredRequest(
                    f"{exchange} has to wait for at least {waits:g} s: "
                    f"no {_missing(exchange)} until then"
                )
        requests = {each.message.header.msg_type for each in self._client.exchanges}
        everybody = all(each.client is self._client for each in self._network.met.values())
        if not unanswered and everybody and "shutdown_request" not in requests:
            self._check_mailboxes()

    def _check_mailboxes(self) -> None:
        for task in self._simulation.tasks():
            place = task.context.get(_supervision._place)
            if place is None or self._simulation.is_blocked(task):
                continue
            node = place.node
            if node.ended is not None:
                continue
            left = [each.message for each in node.queue._values]
            # A subshell that is still being set up, for this process and no client, will be ready.
            if any(not isinstance(each, AreYouReady) for each in left):
                raise LostMessage.left(node.path, left)

    def settle(self) -> None:
        """The kernel has ended, and everything that it has sent has arrived, if anybody reads."""
        client = self._client
        if client is None or client.vanished or len(client.reading) < len(CLIENT_CHANNELS):
            return
        unanswered = [each for each in client.exchanges if _missing(each)]
        if unanswered:
            headers = b"".join(_header(frames) for frames in self._network.taken)
            self._unanswered = [each for each in unanswered if each.id.encode() in headers]

    def check_answers(self) -> None:
        """Look at how everything was when it had settled.

        Raises:
            UnansweredRequest: the kernel has taken a request, and hasn't answered it.
        """
        if self._unanswered:
            owed = [f"{each} (no {_missing(each)})" for each in self._unanswered]
            raise UnansweredRequest(
                f"the kernel has ended; it has taken and never answered: {', '.join(owed)}"
            )


def _missing(exchange: Exchange) -> str:
    """What has to come yet for a request, in words; empty if nothing has."""
    missing = []
    if not exchange.replies and not exchange.message.header.msg_type.startswith("comm_"):
        missing.append("reply")
    if "idle" not in exchange.states:
        missing.append("idle")
    return ", no ".join(missing)


def _header(frames: list[bytes]) -> bytes:
    """The header of what came to a ROUTER; empty if that isn't a message."""
    after = frames[frames.index(_DELIMITER) + 1 :] if _DELIMITER in frames else []
    return after[1] if len(after) > 1 else b""


@contextmanager
def within(*, steps: float = math.inf, seconds: float = math.inf) -> Iterator[None]:
    """A block that has to end in time, whatever else goes on; in `explore` only.

    A block that doesn't is the run's failure, and that says who has gone on meanwhile. (To cancel
    it instead, there is `trio.move_on_after`.)

    Args:
        steps: how many steps all tasks together may make. They mean something only in fair
            schedules: ``explore(..., fairness=100)``.
        seconds: how many virtual seconds may pass. A timer that is set again and again hides that
            nothing else happens; this sees it.

    Raises:
        RuntimeError: this is not a simulation, or there are to be so many steps, and the schedules
            may be unfair.
        Starvation: there were more steps. It is raised where the run ends, not in the block.
        NoProgress: it took longer; as before.
    """
    simulation = Simulation.current
    if simulation is None:
        raise RuntimeError("within() is for a simulation: for what explore() runs")
    if steps < math.inf and simulation.fairness is None:
        raise RuntimeError(
            "a strategy may let anything wait for as long as it likes: with a bound on steps, say "
            "how long it may at most, as in explore(..., fairness=100)"
        )
    where = calling_line(3)
    task = trio.lowlevel.current_task()
    first = len(simulation.trace)
    start = simulation.clock.now

    def check() -> None:
        if len(simulation.trace) - first > steps:
            waits = dict(waiting(simulation)).get(simulation.name_of(task))
            at = f", and waits at {waits}" if waits else ""
            raise Starvation(
                f"the block at {where} hasn't ended after {steps:,} steps{at}; these were of "
                f"{simulation.busiest(first)}"
            )
        if simulation.clock.now - start > seconds:
            raise NoProgress.of(
                simulation, f"the block at {where} hasn't ended after {seconds:g} virtual seconds"
            )

    simulation.checks.append(check)
    try:
        yield
    finally:
        simulation.checks.remove(check)
