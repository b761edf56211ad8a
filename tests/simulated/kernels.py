"""A kernel for simulated sessions: its cells are a few words, and functions of the test."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

import trio_subshells as ts
from trio_subshells.testing import check_protocol
from trio_subshells.testing._client import Client, Exchange
from trio_subshells.testing._network import Network
from trio_subshells.testing._simulation import Simulation
from trio_subshells.wire import WireSession

from .programs import call_into_c

CellFunction = Callable[[ts.Cell], Awaitable[None] | None]


class Flag:
    """An event between threads: set in any of them, awaited in any trio loop."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def set(self) -> None:
        """Let go on who waits."""
        self._set = True
        waiting, self._waiting = self._waiting, []
        for token, event in waiting:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

    def is_set(self) -> bool:
        """Whether it has been set."""
        return self._set

    async def wait(self) -> None:
        """Wait until it is set."""
        if not self._set:
            event = trio.Event()
            self._waiting.append((trio.lowlevel.current_trio_token(), event))
            await event.wait()


def the_simulation() -> Simulation:
    """The one that this is a part of."""
    assert Simulation.current is not None
    return Simulation.current


def compute(seconds: float = 1e6) -> None:
    """Block the calling thread for virtual seconds, in what can be interrupted."""
    time.sleep(seconds)


class WordsKernel(ts.Kernel):
    """Does what a few words mean, and what the functions of the test do; says anything else."""

    implementation = "words"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="words")
    subshells = True

    def __init__(self) -> None:
        self.functions: dict[str, CellFunction] = {}
        self.executed: list[str] = []

    def cell(self, function: CellFunction) -> CellFunction:
        """Decorate a function, to make its name a word."""
        self.functions[function.__name__] = function  # type: ignore[attr-defined]
        return function

    async def execute(self, cell: ts.Cell) -> None:
        self.executed.append(cell.code)
        match cell.code.split():
            case ["wait"]:
                await trio.sleep_forever()
            case ["sleep", seconds]:
                await trio.sleep(float(seconds))
            case ["block"]:
                compute()
                raise AssertionError("nothing has ended it")
            case ["stick", seconds]:
                call_into_c(float(seconds))
            case ["fail"]:
                raise ts.CellError("Failed", "as was wanted", [])
            case [word] if word in self.functions:
                result = self.functions[word](cell)
                if inspect.isawaitable(result):
                    await result
            case _:
                cell.stdout(cell.code)


def answered_before(client: Client, first: Exchange, second: Exchange) -> bool:
    """Whether the kernel sent the one reply before the other: clients may get them as they like."""
    numbers = [client.sent[each.replies[0].header.msg_id] for each in (first, second)]
    return numbers[0] < numbers[1]


def tasks_of(thread: str) -> Counter[str]:
    """The tasks in the loop of a simulated thread, by their names."""
    simulation = the_simulation()
    [loop] = [each.loop for each in simulation.threads if each.name == thread]
    return Counter(task.name for task in loop.runner.tasks)


async def check(client: Client) -> None:
    """Wait until everything that a client has asked is done, and compare it with the protocol."""
    for exchange in client.exchanges:
        await exchange.idle()
        if exchange.message.header.msg_type.endswith("_request"):
            await exchange.reply()
    check_protocol(client)


@asynccontextmanager
async def early_client(network: Network) -> AsyncIterator[Client]:
    """A client of a kernel that may not have got beyond its `Kernel.lifespan` yet."""
    session = WireSession(b"", username="early")
    async with Client(
        session, lambda channel: network.connect(channel, b"early")
    ).connected() as client:
        yield client
