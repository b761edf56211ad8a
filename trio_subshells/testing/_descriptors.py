"""Simulated file descriptors: what `trio.lowlevel.wait_readable` waits for in a simulated loop.

A descriptor is readable for as long as whoever made it says so. The task that waits for it is woken
some time later, by decision: a loop looks at its descriptors now and then, and if it isn't readable
any more by then, nobody is woken. That is how an edge is lost that another task has swallowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import outcome
import trio

from ._loops import wake
from ._simulation import Simulation, Turn


class Descriptor:
    """A simulated file descriptor. Its `number` is negative, as no real one's is.

    Args:
        simulation: decides.
        name: for people, and the same in each run: ``ROUTER-1``.
    """

    def __init__(self, simulation: Simulation, name: str) -> None:
        self._simulation = simulation
        self._name = name
        self.number = min(simulation.descriptors, default=0) - 1
        simulation.descriptors[self.number] = self
        self._readable = False
        self._task: trio.lowlevel.Task | None = None
        self._sleeper: _Sleeper | None = None
        self._turn: Turn | None = None

    @property
    def readable(self) -> bool:
        """Whether there is something to read."""
        return self._readable

    @readable.setter
    def readable(self, value: bool) -> None:
        self._readable = value
        self._update()

    def _update(self) -> None:
        if self._readable and self._sleeper is not None:
            self._sleeper.wake()
        possible = self._readable and self._task is not None
        if possible and self._turn is None:
            self._turn = self._simulation.happening(None, f"{self._name} is readable", self._tell)
            self._simulation.add(self._turn)
        elif not possible and self._turn is not None:
            self._simulation.remove(self._turn)
            self._turn = None

    def _tell(self) -> None:
        self._turn = None
        task, self._task = self._task, None
        assert task is not None
        wake(task)

    async def wait_readable(self) -> None:
        """What `trio.lowlevel.wait_readable` does, with this descriptor."""
        if self._task is not None:
            raise trio.BusyResourceError("another task is already reading from this descriptor")

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            self._update()
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        self._update()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def notify_closing(self) -> None:
        """What `trio.lowlevel.notify_closing` does: wake who waits."""
        task, self._task = self._task, None
        self._update()
        if task is not None:
            error = trio.ClosedResourceError("another task closed this descriptor")
            task._runner.reschedule(task, outcome.Error(error))

    def close(self) -> None:
        """It doesn't exist any more."""
        self._readable = False
        self._update()
        self._simulation.descriptors.pop(self.number, None)


class _Sleeper:
    """A simulated thread that blocks until one of some descriptors is readable."""

    def __init__(self, simulation: Simulation, descriptors: Sequence[Descriptor]) -> None:
        thread = simulation.thread
        assert thread is not None
        self._simulation = simulation
        self._descriptors = descriptors
        self._turn = simulation.happening(thread, f"{thread.name} goes on", lambda: None)

    def sleep(self) -> None:
        for each in self._descriptors:
            each._sleeper = self
        try:
            self._simulation.block(self._turn)
        finally:
            self._leave()

    def wake(self) -> None:
        self._leave()
        self._simulation.add(self._turn)

    def _leave(self) -> None:
        for each in self._descriptors:
            each._sleeper = None


def block_until_readable(simulation: Simulation, descriptors: Sequence[Descriptor]) -> None:
    """Block the simulated thread that runs until one of them is readable, as ``poll`` does."""
    if not any(each.readable for each in descriptors):
        _Sleeper(simulation, descriptors).sleep()
