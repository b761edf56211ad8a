"""What can be wrong with a run, beside what the code under test raises."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ._simulation import SimulatedThread, Simulation

AND_WAITING = ", and these tasks wait:"


class SimulationFailure(Exception):
    """A run has failed in a way that only the simulator can see."""


class Deadlock(SimulationFailure):
    """Nothing can happen any more, and yet there are tasks that wait."""

    @classmethod
    def of(cls, simulation: Simulation) -> Deadlock:
        """Say who waits where."""
        return cls(_with_waiting(simulation, "nothing can happen any more"))


class NoProgress(SimulationFailure):
    """The run doesn't end: its tasks go round in circles, or time passes for ever."""

    @classmethod
    def of(cls, simulation: Simulation, what: str) -> NoProgress:
        """Say who waits where meanwhile."""
        return cls(_with_waiting(simulation, what))


class Starvation(SimulationFailure):
    """Something has to wait for too long, though others go on."""

    @classmethod
    def by_blocking(cls, thread: SimulatedThread, seconds: float) -> Starvation:
        """Say who could go on if synchronous code didn't block its thread."""
        kept = ", ".join(each.name for each in thread.held)
        assert thread.blocked is not None
        return cls(
            f"synchronous code blocks the thread {thread.name} for {seconds:g} s, "
            f"in which these could go on: {kept}"
        )


class LostMessage(SimulationFailure):
    """A message lies there, or the end of all messages, and nobody will ever take it."""

    @classmethod
    def unnoticed(cls, name: str, messages: Sequence[object]) -> LostMessage:
        """A receiver sleeps, though there is something for it."""
        return cls(f"{name} has not noticed what it waits for: {_all(messages)}")

    @classmethod
    def unsent(cls, messages: Sequence[object]) -> LostMessage:
        """Senders wait, though there is room."""
        return cls(f"there is room in a mailbox, and these still wait: {_all(messages)}")

    @classmethod
    def left(cls, path: str, messages: Sequence[object]) -> LostMessage:
        """An actor has something left in its mailbox, though everything has been done."""
        return cls(f"every request is done, and {path} still has in its mailbox: {_all(messages)}")


class UnansweredRequest(SimulationFailure):
    """A kernel has taken a client's request, and owes the answer."""


class Unjoined(SimulationFailure):
    """A thread has outlived those who started it."""


class RealInput(SimulationFailure):
    """A task wants something of the operating system, which isn't simulated."""


class RealLock(RuntimeError):
    """A thread can't be stopped where it has a lock that isn't simulated: nothing is explored."""


def _all(messages: Sequence[object]) -> str:
    shown = ", ".join(f"{each!r:.100}" for each in itertools.islice(messages, _MOST_SHOWN))
    more = len(messages) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


_MOST_SHOWN: Final = 3


def _with_waiting(simulation: Simulation, what: str) -> str:
    lines = [f"  {name} waits at {where}" for name, where in waiting(simulation)]
    return "\n".join([f"{what}{AND_WAITING}", *lines]) if lines else what


def waiting(simulation: Simulation) -> Iterator[tuple[str, str]]:
    """The tasks that wait, and where."""
    for task, turn in simulation._known.items():
        thread = turn.thread
        if thread in simulation.threads and not turn.name.startswith(f"{thread.name}<"):
            where = await_place(task)
            if where is not None:
                yield turn.name, where


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What is in a group, and in the groups therein."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


def calling_line(depth: int) -> str:
    """The line that a frame is at; the caller's is that of depth 1."""
    frame = sys._getframe(depth)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


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
