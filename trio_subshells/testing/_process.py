"""The simulated process: what threads, time and blocking calls are while a simulation runs.

Within `simulated_process`, in the OS thread that simulates and nowhere else:

- `trio_subshells.actors.ThreadHost` starts a simulated thread;
- `threading.get_ident` and `threading.current_thread` tell simulated threads apart;
- `time.monotonic` tells virtual time, and `time.sleep` blocks the simulated thread for it;
- a `threading.Event` made here blocks the simulated thread that waits for it;
- `uuid.uuid4` gives what is unique in one run, and the same in each run of a schedule;
- an actor's message to another, and its answer, may be delayed: other threads go on before it;
- so may be what a kernel's threads settle between them: who answers a request, say;
- `trio_subshells.sockets` opens simulated sockets (`_zmq`);
- those whom trio cancels at once learn it in the order in which they were started;
- `trio.to_thread.run_sync` calls the function in a step of its own. It can't wait for anything.

Everything else of the process is real.
"""

from __future__ import annotations

import contextvars
import functools
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import outcome
import trio
from trio._core._run import CancelStatus
from trio.lowlevel import Task

from ..actors import _hosts, _promise
from ..actors._queue import Queue
from ..actors._transport import Bell
from ..kernel import _guard, _output, _pending
from . import _zmq
from ._loops import order_of_start
from ._simulation import SimulatedThread, Simulation, Turn

_real_ident: Final = threading.get_ident
_real_current: Final = threading.current_thread
_real_monotonic: Final = time.monotonic
_real_sleep: Final = time.sleep
_real_event: Final = threading.Event
_real_start: Final = _hosts.start_thread


def _simulation() -> Simulation | None:
    """The simulation that the caller is a part of, if any."""
    simulation = Simulation.current
    if simulation is not None and simulation.os_thread == _real_ident():
        return simulation
    return None


def _thread() -> SimulatedThread | None:
    simulation = _simulation()
    return None if simulation is None else simulation.thread


def _get_ident() -> int:
    thread = _thread()
    return _real_ident() if thread is None else thread.ident


def _current_thread(exploring: threading.Thread) -> threading.Thread:
    thread = _thread()
    if thread is None:
        return _real_current()
    if thread.name == "main":
        return exploring  # the real function would look for the simulated identifier
    if thread.stand_in is None:
        thread.stand_in = threading.Thread(name=thread.name, daemon=True)  # never started
    return thread.stand_in


def _monotonic() -> float:
    simulation = _simulation()
    return _real_monotonic() if simulation is None else simulation.clock.now


def _sleep(seconds: float) -> None:
    simulation = _simulation()
    if simulation is None or simulation.thread is None:
        _real_sleep(seconds)
    elif seconds < 0:
        raise ValueError("sleep length must be non-negative")
    else:
        simulation.sleep(seconds)


def _start_thread(child: _hosts.ChildThread, name: str) -> Callable[[], None]:
    simulation = _simulation()
    if simulation is None:
        return _real_start(child, name)
    if simulation.faults is not None:
        simulation.faults.starts_thread(name)

    async def body() -> None:
        with child.attach():
            await child.root()

    def ended(result: outcome.Outcome[object]) -> None:
        def joinable() -> None:
            child.end(result if isinstance(result, outcome.Error) else outcome.Value(None))

        # Some time passes between a loop's end and that of its thread.
        ends = simulation.happening(None, f"{name} ends", joinable)
        delay = 0.0 if simulation.faults is None else simulation.faults.join_delay(name)
        if delay:
            simulation.add_at(simulation.clock.now + delay, ends)
        else:
            simulation.add(ends)

    def start() -> None:
        simulation.start_thread(name, body, ended)

    contextvars.copy_context().run(start)
    simulation.unjoined.append(name)
    return functools.partial(simulation.unjoined.remove, name)


class SimulatedEvent:
    """What `threading.Event` is in a simulated thread."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Turn] = []

    def is_set(self) -> bool:
        """Whether it has been set, and not been cleared."""
        return self._set

    def set(self) -> None:
        """Let go on who waits."""
        self._set = True
        simulation = _simulation()
        for wake in self._waiting:
            if simulation is not None:
                simulation.add(wake)
        self._waiting.clear()

    def clear(self) -> None:
        """Let those wait who come now."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Block the simulated thread until it is set, or until the timeout (virtual seconds)."""
        simulation = _simulation()
        if self._set or simulation is None or simulation.thread is None:
            return self._set
        thread = simulation.thread
        wake = simulation.happening(thread, f"{thread.name} goes on", lambda: None)
        self._waiting.append(wake)
        if timeout is not None and timeout < math.inf:
            simulation.add_at(simulation.clock.now + timeout, wake)
        try:
            simulation.block(wake)
        finally:
            simulation.remove(wake)
            if wake in self._waiting:
                self._waiting.remove(wake)
        return self._set


def _event() -> threading.Event | SimulatedEvent:
    return SimulatedEvent() if _thread() is not None else _real_event()


async def _run_sync(
    sync_fn: Callable[..., Any],
    *args: Any,
    **options: Any,
) -> Any:
    if _simulation() is None:
        return await _real_run_sync(sync_fn, *args, **options)
    await trio.lowlevel.checkpoint()
    result = outcome.capture(sync_fn, *args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result.unwrap()


_real_uuid4: Final = uuid.uuid4
_real_run_sync: Final = trio.to_thread.run_sync


def _uuid4() -> uuid.UUID:
    simulation = _simulation()
    return _real_uuid4() if simulation is None else uuid.UUID(int=next(simulation.ids), version=4)


def _pausing(real: Callable[..., Any]) -> Callable[..., Any]:
    """A method before which other threads may go on."""

    @functools.wraps(real)
    def method(self: object, *args: Any) -> Any:
        simulation = Simulation.current
        if simulation is not None and simulation.os_thread == _real_ident():
            simulation.pause()
        return real(self, *args)

    return method


_real_attach: Final = Queue.attach


def _attach(queue: Queue[Any], bell: Bell) -> None:
    simulation = _simulation()
    if simulation is not None:
        simulation.queues[queue] = None
    _real_attach(queue, bell)


_real_recalculate: Final = CancelStatus.recalculate
_real_deliver: Final = Task._attempt_delivery_of_any_pending_cancel


def _recalculate(status: CancelStatus) -> None:
    """Tell a cancellation to its tasks in the order of their start.

    trio keeps them in sets. What each does as it is cancelled may be stopped in its midst, or wake
    another thread, so that their order, which is one of addresses, would show.
    """
    simulation = _simulation() if status._tasks or status._children else None
    if simulation is None:
        _real_recalculate(status)
        return
    outer, simulation.cancelling = simulation.cancelling, []
    try:
        _real_recalculate(status)
    finally:
        tasks, simulation.cancelling = simulation.cancelling, outer
    for task in sorted(tasks, key=order_of_start):
        task._attempt_delivery_of_any_pending_cancel()


def _deliver(task: Task) -> None:
    simulation = _simulation()
    if simulation is None or simulation.cancelling is None:
        _real_deliver(task)
    else:
        simulation.cancelling.append(task)


_REPLACED: Final[tuple[tuple[Any, str, Any], ...]] = (
    (threading, "get_ident", _get_ident),
    (time, "monotonic", _monotonic),
    (time, "sleep", _sleep),
    (trio.to_thread, "run_sync", _run_sync),
    (_hosts, "start_thread", _start_thread),
    (threading, "Event", _event),
    (uuid, "uuid4", _uuid4),
    (_promise, "_NAP", math.inf),
    (_promise.Promise, "resolve", _pausing(_promise.Promise.resolve)),
    (_promise.BlockingPromise, "resolve", _pausing(_promise.BlockingPromise.resolve)),
    (Queue, "attach", _attach),
    (CancelStatus, "recalculate", _recalculate),
    (Task, "_attempt_delivery_of_any_pending_cancel", _deliver),
    *(
        (where, name, _pausing(getattr(where, name)))
        for where, names in (
            (_pending.AnswerRight, ("begin", "settle", "give_up")),
            (_output.OutputPort, ("status",)),
            (_guard._Canceller, ("call", "withdraw")),
        )
        for name in names
    ),
    (Queue, "put_nowait", _pausing(Queue.put_nowait)),
    (Queue, "put", _pausing(Queue.put)),
    *_zmq.REPLACED,
)


@contextmanager
def simulated_process() -> Iterator[None]:
    """See the module's first lines. Entering it again inside does nothing."""
    if time.monotonic is _monotonic:
        yield
        return
    current = functools.partial(_current_thread, threading.current_thread())
    with ExitStack() as stack:
        for where, name, what in (*_REPLACED, (threading, "current_thread", current)):
            stack.enter_context(mock.patch.object(where, name, what))
        yield
