"""Deterministic concurrency tests: every interleaving on demand, replayed and explained."""

from __future__ import annotations

from ._errors import (
    Deadlock,
    LeftBehind,
    NoProgress,
    SimulationFailure,
    UncontrolledNondeterminism,
    Unjoined,
)
from ._explore import Exploration, ScheduleFailed, explore, explore_schedules
from ._report import Report
from ._schedules import InvalidSchedule, Schedule
from ._simulation import Deviation
from ._strategies import PCT, POS, Portfolio, Random, Replay, Strategy

__all__ = [
    "PCT",
    "POS",
    "Deadlock",
    "Deviation",
    "Exploration",
    "InvalidSchedule",
    "LeftBehind",
    "NoProgress",
    "Portfolio",
    "Random",
    "Replay",
    "Report",
    "Schedule",
    "ScheduleFailed",
    "SimulationFailure",
    "Strategy",
    "UncontrolledNondeterminism",
    "Unjoined",
    "explore",
    "explore_schedules",
]
