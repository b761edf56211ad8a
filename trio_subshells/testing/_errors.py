"""What can be wrong with a run, beside what the code under test raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ._simulation import Simulation


class SimulationFailure(Exception):
    """A run has failed in a way that only the simulator can see."""


class Deadlock(SimulationFailure):
    """Nothing can happen any more, and yet there are tasks that wait."""

    @classmethod
    def of(cls, simulation: Simulation) -> Deadlock:
        """Say who waits where."""
        lines = [f"  {name} waits at {where}" for name, where in waiting(simulation)]
        return cls("\n".join(["nothing can happen any more, and these tasks wait:", *lines]))


class NoProgress(SimulationFailure):
    """The run doesn't end: its tasks go round in circles, or time passes for ever."""


class Unjoined(SimulationFailure):
    """A thread has outlived those who started it."""


class RealInput(SimulationFailure):
    """A task waits for something outside of the simulation."""

    @classmethod
    def of(cls, simulation: Simulation) -> RealInput:
        """Say who waits where."""
        lines = [f"  {name} waits at {where}" for name, where in waiting(simulation)]
        return cls(
            "\n".join(
                [
                    "a task waits for real I/O, which isn't simulated (use memory channels, or "
                    "trio.testing.memory_stream_pair); these tasks wait:",
                    *lines,
                ]
            )
        )


def waiting(simulation: Simulation) -> Iterator[tuple[str, str]]:
    """The tasks that wait, and where."""
    for task, turn in simulation._known.items():
        if turn.thread in simulation.threads and not turn.name.endswith(">"):
            where = await_place(task)
            if where is not None:
                yield turn.name, where


def await_place(task: trio.lowlevel.Task) -> str | None:
    """Where a task waits: the innermost line that isn't trio's."""
    found = None
    for frame, line in task.iter_await_frames():
        file = frame.f_code.co_filename
        if not frame.f_globals.get("__name__", "").startswith(("trio.", "outcome")):
            found = f"{file.rpartition('/')[2]}:{line}, in {frame.f_code.co_name}"
    return found
