"""Where two runs of one schedule part ways: the await after which something else decided."""

from __future__ import annotations

import attrs

from ._errors import await_place
from ._runs import Run, Runs
from ._schedules import Replayer, Schedule
from ._simulation import Recorder, Simulation, Turn

_REPEATS = 10
"""How often a schedule is run to see two runs of it differ."""


@attrs.frozen
class _Step:
    """What a run was about to do: whose step it was, and what else could have been next."""

    name: str
    others: frozenset[str]


class _Log(Recorder):
    """Notes each step of a run, and where its task was waiting until then."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.places: list[str | None] = []

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        self.steps.append(_Step(turn.name, frozenset(each.name for each in simulation.turns)))
        self.places.append(None if turn.task is None else await_place(turn.task))

    def where(self, number: int) -> str:
        """Say which step that was."""
        if number < 0:
            return "before the first step"
        place = self.places[number]
        went_on = f", in which {self.steps[number].name} went on"
        return f"in step {number + 1:,}{went_on}" + (f" from {place}" if place else "")


def explain_divergence(runs: Runs, schedule: Schedule, first: Run, second: Run) -> str:
    """Say where the runs of a schedule differ, of which two are known to."""
    first_log = _Log()
    runs.run(Replayer(schedule), first_log)
    for _ in range(_REPEATS):
        log = _Log()
        runs.run(Replayer(schedule), log)
        if log.steps != first_log.steps:
            return _difference(first_log, log)
    # They are all the same now: what was different was the first run, of which there is no log.
    number = _first_difference(first.steps, second.steps)
    if number is None:
        return (
            f"The first run ended with {_ended(first)}, the second, in which every step was the "
            f"same, with {_ended(second)}."
        )
    return (
        f"The runs part ways {first_log.where(number - 1)}. Further runs are all like the second: "
        "something is kept from run to run, or is made once and kept."
    )


def _difference(first: _Log, second: _Log) -> str:
    number = _first_difference(first.steps, second.steps)
    assert number is not None
    lines = [f"The runs part ways {first.where(number - 1)}."]
    for which, log in (("one", first), ("another", second)):
        if number < len(log.steps):
            step = log.steps[number]
            others = ", ".join(sorted(step.others)) or "nothing"
            lines.append(f"In {which} run, {step.name} was next ({others} could have been).")
        else:
            lines.append(f"In {which} run, that was the last step.")
    return "\n".join(lines)


def _first_difference(
    first: list[_Step] | list[int], second: list[_Step] | list[int]
) -> int | None:
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return number
    return None if len(first) == len(second) else min(len(first), len(second))


def _ended(run: Run) -> str:
    return "success" if run.failure is None else f"{type(run.failure).__name__}: {run.failure}"
