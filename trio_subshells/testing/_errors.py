"""What can be wrong with a run, beside what the code under test raises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
    """A task wants something of the operating system, which isn't simulated."""


def waiting(simulation: Simulation) -> Iterator[tuple[str, str]]:
    """The tasks that wait, and where."""
    for task, turn in simulation._known.items():
        thread = turn.thread
        if thread in simulation.threads and not turn.name.startswith(f"{thread.name}<"):
            where = await_place(task)
            if where is not None:
                yield turn.name, where


def await_place(task: trio.lowlevel.Task) -> str | None:
    """Where a task waits: the innermost line that isn't trio's."""
    found = None
    if getattr(task.coro, "cr_frame", task) is None:
        return None  # it has ended; older versions of trio stumble over that
    for frame, line in task.iter_await_frames():
        is_trios = frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS)
        if found is None or not is_trios:
            file = Path(frame.f_code.co_filename).name
            found = f"{file}:{line}, in {frame.f_code.co_name}"
    return found


class LeftBehind(SimulationFailure):
    """A run was all right, but has left something behind that was never awaited or closed."""


class UncontrolledNondeterminism(SimulationFailure):
    """The same schedule, run twice, was not the same: something decides that we don't control."""


_NOT_THE_USERS = ("trio.", "outcome", f"{__package__}._footprints")
