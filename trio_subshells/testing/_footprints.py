"""Footprints: what each step of a run touches, which tells the steps whose order doesn't matter.

Two steps of different tasks commute if they touch nothing in common. What is known to be touched:

- the actor that a task belongs to, whose state is its own: steps of one actor never commute;
- mailboxes, promises and bells of actors, and trio's channels, events and locks;
- a loop's queue of calls from other threads.

A step of a task that isn't an actor's may touch anything, and commutes with none. So does one that
starts, ends or cancels an actor, or looks at its state; and one that uses a simulated ZMQ socket.
Actors are taken at their word: what they share beside messages isn't seen.

Things are named by who made them, and as which of his things, so that a name means the same thing
in each run. Methods are replaced as long as `footprints` is entered, which slows them down; else
nothing is.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import attrs
import trio
from trio._channel import MemoryChannelState
from trio._sync import _LockImpl

from ..actors._promise import Promise
from ..actors._queue import Queue
from ..actors._supervision import Node, Supervisor
from ..actors._transport import TrioBell
from ..sockets import InprocBell
from ._descriptors import Descriptor
from ._libzmq import Socket
from ._simulation import Recorder, Simulation, Turn

Footprint = frozenset[str] | None
"""The names of what is touched; None: maybe anything."""


def conflict(one: Footprint, other: Footprint) -> bool:
    """Whether the order of two steps may matter."""
    return one is None or other is None or not one.isdisjoint(other)


@attrs.define
class Event:
    """A step of a run.

    Attributes:
        name: of its turn.
        touched: its footprint.
        enabler: the number of the step that made it possible; -1 if that was none.
        epoch: how often time had passed.
    """

    name: str
    touched: Footprint
    enabler: int
    epoch: int


class Tracker(Recorder):
    """Notes the footprint of each step of one run.

    Attributes:
        events: the steps; the last one is complete only when the next has begun, or after `finish`.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._touched: set[str] | None = None
        self._made = 0
        self._steps: dict[str, int] = {}
        self._names: dict[int, tuple[str, object]] = {}
        self._actors: dict[trio.lowlevel.Task, str] = {}
        self._enablers: dict[str, int] = {}
        self._epoch = 0

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        """The step before has ended, and this one begins."""
        self.finish()
        number = len(self.events)
        # What wasn't possible before the last step was made possible by it.
        before, self._enablers = self._enablers, {}
        for each in (*simulation.turns, turn):
            self._enablers[each.name] = before.get(each.name, number - 1)
        enabler = self._enablers.pop(turn.name)
        actor = self._actor(turn)
        self._touched = None if actor is None else {actor}
        self._made = 0
        self._steps[turn.name] = self._steps.get(turn.name, 0) + 1
        self.events.append(Event(turn.name, frozenset(), enabler, self._epoch))
        global _tracker  # noqa: PLW0603 - the replaced methods have no other way to find it
        _tracker = self

    def time(self, simulation: Simulation) -> None:
        """All that was before comes before all that will be."""
        self._epoch += 1

    def finish(self) -> None:
        """The last step has ended."""
        if self.events:
            touched = self._touched
            self.events[-1].touched = None if touched is None else frozenset(touched)

    def touch(self, thing: object) -> None:
        if self._touched is not None:
            name, _ = self._names.get(id(thing)) or (f"outside {id(thing)}", None)
            self._touched.add(name)

    def touch_actor(self, path: str) -> None:
        if self._touched is not None:
            self._touched.add(f"actor {path}")

    def touch_anything(self) -> None:
        self._touched = None

    def made(self, thing: object) -> None:
        self._made += 1
        if self.events:
            turn = self.events[-1].name
            name = f"{turn} {self._steps[turn]}.{self._made}"
        else:
            name = f"first {self._made}"
        self._names[id(thing)] = (name, thing)  # kept, so that its id isn't another's

    @contextmanager
    def acting(self, actor: str, *, is_task: bool) -> Iterator[None]:
        """What the calling task does here is done by an actor; `is_task`: and all it ever does."""
        task = trio.lowlevel.current_task()
        outer = self._actors.get(task)
        self._actors[task] = actor
        if is_task:
            self._touched = {actor}  # nothing of this step was before
        try:
            yield
        finally:
            if outer is not None:
                self._actors[task] = outer
            elif not is_task:
                del self._actors[task]
                self._touched = None  # who knows what else is done in this step

    def _actor(self, turn: Turn) -> str | None:
        task = turn.task
        if task is not None and turn.name.endswith(_ENTRY):
            return turn.name
        while task is not None:
            actor = self._actors.get(task)
            if actor is not None:
                return actor
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return None


_tracker = Tracker()
"""That of the run that goes on."""

_supervise: Final = Supervisor._supervise
_ENTRY: Final = "<TrioToken.run_sync_soon task>"


def _touching(function: Callable[..., Any]) -> Callable[..., Any]:
    """The method, touching the object when it begins."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def touching_async(self: Any, *args: Any, **options: Any) -> Any:
            _tracker.touch(self)
            return await function(self, *args, **options)

        return touching_async

    @functools.wraps(function)
    def touching(self: Any, *args: Any, **options: Any) -> Any:
        _tracker.touch(self)
        return function(self, *args, **options)

    return touching


def _touching_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    """The async method, touching the object not just in its first step but in each."""

    @functools.wraps(function)
    async def touching(self: Any, *args: Any, **options: Any) -> Any:
        return await _in_each_step(function(self, *args, **options), self)

    return touching


@types.coroutine
def _in_each_step(coro: Coroutine[Any, Any, Any], thing: object) -> Generator[Any, Any, Any]:
    """Await a coroutine that touches something in whichever step it makes."""
    value = None
    try:
        while True:
            _tracker.touch(thing)
            value = yield coro.send(value)  # trio throws nothing in: errors come as outcomes
    except StopIteration as stop:
        return stop.value
    finally:
        coro.close()


def _touching_anything(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def touching(self: Any, *args: Any, **options: Any) -> Any:
        _tracker.touch_anything()
        return function(self, *args, **options)

    return touching


def _touching_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of one end of a memory channel: it touches what both ends share."""

    @functools.wraps(function)
    def touching(self: Any, *args: Any, **options: Any) -> Any:
        _tracker.touch(self._state)
        return function(self, *args, **options)

    return touching


def _ending(function: Callable[..., Any]) -> Callable[..., Any]:
    """``Node.end``, the last step of an actor: its parent sees it."""

    @functools.wraps(function)
    def ending(self: Node, *args: Any) -> None:
        _tracker.touch(self)
        _tracker.touch_actor(self.path.rpartition("/")[0])
        function(self, *args)

    return ending


def _making(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def making(self: Any, *args: Any, **options: Any) -> None:
        _tracker.made(self)
        function(self, *args, **options)

    return making


def _acting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The life of an actor."""

    @functools.wraps(function)
    async def acting(self: Supervisor, node: Node, *args: Any) -> Any:
        with _tracker.acting(f"actor {node.path}", is_task=function is _supervise):
            return await function(self, node, *args)

    return acting


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    """``TrioToken.run_sync_soon``: touches the loop's queue, and so will the call."""
    known = (Promise._wake, TrioBell._wake)

    @functools.wraps(function)
    def calling(self: Any, sync_fn: Any, *args: Any, **options: Any) -> Any:
        _tracker.touch(self)
        told = getattr(sync_fn, "__func__", None)
        if told not in known and sync_fn is not trio.lowlevel.reschedule:
            _tracker.touch_anything()
            sync_fn = _Call(sync_fn)
        return function(self, sync_fn, *args, **options)

    return calling


@attrs.frozen
class _Call:
    """A call from another thread, of which nobody knows what it does."""

    function: Callable[..., object]

    def __call__(self, *args: object) -> None:
        _tracker.touch_anything()
        self.function(*args)


_REPLACED: Final[
    tuple[tuple[Any, Callable[[Callable[..., Any]], Callable[..., Any]], str], ...]
] = (
    (Queue, _making, "__init__"),
    (Queue, _touching, "put_nowait put attach detach get_nowait close statistics"),
    (Queue, _touching_steps, "get"),
    (Promise, _making, "__init__"),
    (Promise, _touching, "resolve wait _wake"),
    (TrioBell, _making, "__init__"),
    (TrioBell, _touching, "ring _wake close"),
    (TrioBell, _touching_steps, "wait"),
    (Node, _making, "__init__"),
    (Node, _touching, "state go add_watcher statistics"),
    (Node, _ending, "end"),
    (Node, _touching_anything, "cancel tree"),
    (Supervisor, _acting, "_supervise _live"),
    (MemoryChannelState, _making, "__init__"),
    (trio.MemorySendChannel, _touching_state, "send_nowait send clone close statistics"),
    (trio.MemoryReceiveChannel, _touching_state, "receive_nowait receive clone close statistics"),
    (trio.Event, _touching, "is_set set wait"),
    (trio.lowlevel.ParkingLot, _touching, "park unpark unpark_all"),
    (_LockImpl, _touching, "locked acquire_nowait acquire release statistics"),
    (trio.Semaphore, _touching, "value acquire_nowait acquire release statistics"),
    (trio.CapacityLimiter, _touching_anything, "acquire_on_behalf_of_nowait release_on_behalf_of"),
    (trio.CancelScope, _touching_anything, "cancel"),
    (trio.lowlevel.TrioToken, _calling, "run_sync_soon"),
    (Socket, _touching_anything, "_about_to post"),
    (Descriptor, _touching_anything, "wait_readable notify_closing"),
    (InprocBell, _touching_anything, "ring _take close"),
)


@contextmanager
def footprints() -> Iterator[None]:
    """Let the `Tracker` of the run that goes on know what is touched."""
    with ExitStack() as stack:
        for where, how, names in _REPLACED:
            for name in names.split():
                what = vars(where)[name]
                changed: Any = how(getattr(what, "fget", what))
                if isinstance(what, property):
                    changed = property(changed)
                stack.enter_context(mock.patch.object(where, name, changed))
        yield
