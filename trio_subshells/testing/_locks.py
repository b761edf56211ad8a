"""A lock around which other threads may go on.

What a lock keeps together is one step in the simulator, with the lock and without it. So nobody
notices there that it is missing, or that what belongs under it is done before or after. A test that
wants to know gives a `PausingLock` to what it is about.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from weakref import WeakKeyDictionary

from ._simulation import Simulation

_held: WeakKeyDictionary[Simulation, Counter[int]] = WeakKeyDictionary()


class PausingLock:
    """A `threading.Lock` or `threading.RLock` for simulated threads.

    Others may go on before it is taken and after it is released, but not while its thread holds
    another one.

    Args:
        reentrant: whether it may be taken again by who holds it.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        assert Simulation.current is not None, "there is no simulation"
        self._simulation = Simulation.current
        self._held = _held.setdefault(self._simulation, Counter())
        self._reentrant = reentrant
        self._owner: int | None = None
        self._depth = 0
        self._waiting: list[threading.Event] = []

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._reentrant and self._owner == me:
            self._depth += 1
            return
        self._pause(me)
        while self._owner is not None:
            released = threading.Event()
            self._waiting.append(released)
            released.wait()
        self._owner, self._depth = me, 1
        self._held[me] += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        me, self._owner = threading.get_ident(), None
        self._held[me] -= 1
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.set()
        self._pause(me)

    def _pause(self, me: int) -> None:
        if not self._held[me]:
            self._simulation.pause()
