"""Deterministic concurrency tests: every interleaving on demand, replayed and explained."""

from __future__ import annotations

from ._checks import within
from ._client import Client, Exchange, Reply
from ._errors import (
    Deadlock,
    LeftBehind,
    LostMessage,
    NoProgress,
    SimulationFailure,
    Starvation,
    UnansweredRequest,
    UncontrolledNondeterminism,
    Unjoined,
)
from ._exhaustive import Exhaustive
from ._explore import Exploration, ScheduleFailed, explore, explore_schedules
from ._faults import Faults, InjectedFault, RandomFaults
from ._kernels import KernelUnderTest, SimulatedKernel, simulated_kernel
from ._launch import KernelDied
from ._loops import VirtualClock
from ._model import ProtocolViolation, check_protocol
from ._real import KernelProcess, RealKernel, real_kernel
from ._report import Report
from ._schedules import InvalidSchedule, Schedule
from ._simulation import Deviation
from ._strategies import PCT, POS, FewDelays, Portfolio, Random, Replay, Strategy

__all__ = [
    "PCT",
    "POS",
    "Client",
    "Deadlock",
    "Deviation",
    "Exchange",
    "Exhaustive",
    "Exploration",
    "Faults",
    "FewDelays",
    "InjectedFault",
    "InvalidSchedule",
    "KernelDied",
    "KernelProcess",
    "KernelUnderTest",
    "LeftBehind",
    "LostMessage",
    "NoProgress",
    "Portfolio",
    "ProtocolViolation",
    "Random",
    "RandomFaults",
    "RealKernel",
    "Replay",
    "Reply",
    "Report",
    "Schedule",
    "ScheduleFailed",
    "SimulatedKernel",
    "SimulationFailure",
    "Starvation",
    "Strategy",
    "UnansweredRequest",
    "UncontrolledNondeterminism",
    "Unjoined",
    "VirtualClock",
    "check_protocol",
    "explore",
    "explore_schedules",
    "real_kernel",
    "simulated_kernel",
    "within",
]
