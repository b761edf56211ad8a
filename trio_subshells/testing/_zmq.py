"""Simulated ZMQ sockets: `trio_subshells.sockets` as it ships, upon a model of libzmq.

While a simulation runs, in the OS thread that runs it and nowhere else, the contexts and sockets
that `trio_subshells.sockets` opens are those of `_libzmq`, and their descriptors are simulated.
Other threads may go on before each call that they could see, and what libzmq's own threads do is
done some time later, both by decision. The threads that `trio_subshells.sockets` starts are
simulated ones.

Nobody looks after the subscribers of a simulated iopub device: who doesn't read isn't disconnected.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import outcome
import zmq

from ..sockets import Ledger
from ..sockets import _context as _context_module
from ..sockets import _device as _device_module
from ..sockets import _socket as _socket_module
from ..sockets import _transport as _transport_module
from . import _libzmq
from ._descriptors import Descriptor, block_until_readable
from ._simulation import Simulation

_real_ident: Final = threading.get_ident


def _simulation() -> Simulation | None:
    simulation = Simulation.current
    if simulation is not None and simulation.os_thread == _real_ident():
        return simulation
    return None


class _Surroundings:
    """What `_libzmq` finds in a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._counts: dict[str, int] = {}

    def descriptor(self, name: str) -> Descriptor:
        return Descriptor(self._simulation, name)

    def pause(self) -> None:
        self._simulation.pause(alone=True)  # libzmq has threads of its own

    def later(self, name: str, job: Callable[[], None]) -> None:
        number = self._counts[name] = self._counts.get(name, 0) + 1
        if number > 1:
            name = f"{name} {number}"
        self._simulation.add(self._simulation.happening(None, name, job))

    def is_too_soon(self, name: str) -> bool:
        return bool(self._simulation.which(f"{name} has looked just now"))

    def wait(self, descriptors: Sequence[_libzmq.SignalledDescriptor]) -> None:
        block_until_readable(self._simulation, cast("Sequence[Descriptor]", descriptors))


def _world(simulation: Simulation) -> _libzmq.World:
    world: _libzmq.World | None = simulation.sockets
    if world is None:
        world = simulation.sockets = _libzmq.World(_Surroundings(simulation))
    return world


class _Deque(deque[Any]):
    """A deque that several threads use: others may go on before each operation."""

    def append(self, item: Any) -> None:
        _pause()
        super().append(item)

    def pop(self) -> Any:  # type: ignore[override]
        _pause()
        return super().pop()

    def popleft(self) -> Any:
        _pause()
        return super().popleft()

    def clear(self) -> None:
        _pause()
        super().clear()


def _pause() -> None:
    simulation = _simulation()
    if simulation is not None:
        simulation.pause()


class _Local:
    """What `threading.local` is, for simulated threads."""

    def __init__(self) -> None:
        self.__dict__["_values"] = {}

    def _here(self) -> dict[str, Any]:
        simulation = _simulation()
        thread = None if simulation is None else simulation.thread
        here: dict[str, Any] = self.__dict__["_values"].setdefault(thread, {})
        return here

    def __getattr__(self, name: str) -> Any:
        try:
            return self._here()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: object) -> None:
        self._here()[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._here()[name]
        except KeyError:
            raise AttributeError(name) from None


class _Thread:
    """What `threading.Thread` is, as far as `trio_subshells.sockets` needs it."""

    def __init__(self, target: Callable[[], object], name: str, daemon: bool) -> None:
        self._target = target
        self.name = name
        self._ended = threading.Event()

    def start(self) -> None:
        simulation = _simulation()
        assert simulation is not None

        async def body() -> None:
            self._target()

        def ended(result: outcome.Outcome[object]) -> None:
            if isinstance(result, outcome.Error):
                simulation.fail(result.error)
            simulation.add(simulation.happening(None, f"{self.name} ends", self._ended.set))

        simulation.start_thread(self.name, body, ended)

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return not self._ended.is_set()


class _Namespace:
    """A module, with something else in the place of some of it in a simulation."""

    def __init__(self, module: object, **replaced: object) -> None:
        self._module = module
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced and _simulation() is not None:
            return self._replaced[name]
        return getattr(self._module, name)


def _context(io_threads: int = 1) -> _libzmq.Context:
    simulation = _simulation()
    assert simulation is not None
    return _libzmq.Context(_world(simulation))


def _proxy_steerable(
    frontend: _libzmq.Socket, backend: _libzmq.Socket, capture: None, control: _libzmq.Socket
) -> None:
    _libzmq.proxy_steerable(frontend, backend, control)


def _unless_simulated(real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        return (real if _simulation() is None else instead)(*args, **options)

    return function


@asynccontextmanager
async def _open_subscribers(*_: object) -> AsyncIterator[Ledger]:
    yield Ledger(math.inf)


def _nothing(*_: object) -> None:
    """There is always room."""


def _no(*_: object) -> bool:
    return False


_ZMQ: Final = _Namespace(
    zmq,
    Context=_context,
    Socket=_libzmq.Socket,
    proxy=_libzmq.proxy_steerable,
    proxy_steerable=_proxy_steerable,
)
_THREADING: Final = _Namespace(threading, Thread=_Thread, local=_Local)

REPLACED: Final[tuple[tuple[Any, str, Any], ...]] = (
    *((module, "zmq", _ZMQ) for module in (_context_module, _device_module, _socket_module)),
    *(
        (module, "threading", _THREADING)
        for module in (_context_module, _device_module, _transport_module)
    ),
    *(
        (module, name, _unless_simulated(getattr(module, name), instead))
        for module, name, instead in (
            (_context_module, "check_room_for_threads", _nothing),
            (_device_module, "check_room_for_threads", _nothing),
            (_device_module, "open_subscribers", _open_subscribers),
            (_socket_module, "check_descriptors", _nothing),
            (_socket_module, "is_ours_to_make", _no),
            (_transport_module, "deque", _Deque),
        )
    ),
)
"""What is replaced while schedules are explored: where, its name, and by what."""
