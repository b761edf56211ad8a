"""A kernel whose cells are Python functions of the test, and a client that speaks to its sockets.

The kernel runs in the test's own process and loop (`open_kernel`), and so does the client. So a
test can let a cell and itself wait for each other, with a `Flag`, and never sleeps.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import attrs
import trio

import trio_subshells as ts
from trio_subshells.kernel import RunningKernel, open_kernel
from trio_subshells.kernel._guard import CellGuard, Raiser
from trio_subshells.testing import Client, Exchange
from trio_subshells.testing._real import open_client as testing_client
from trio_subshells.wire import ConnectionInfo

HANG = 60
"""Seconds; nothing here takes a tenth of that, so what does hangs."""

T = TypeVar("T")

CellFunction = Callable[[ts.Cell], Awaitable[None] | None]


def local_connection() -> ConnectionInfo:
    """Where a test's kernel listens: where there are many, at this process's own address.

    A client of another process's may still knock at a port that its kernel has left, and that is
    this kernel's now; what it says is dropped, counted and logged.
    """
    connection = ConnectionInfo.local()
    if sys.platform != "linux":
        return connection
    rest, last = divmod(os.getpid(), 250)
    return attrs.evolve(connection, ip=f"127.{1 + rest // 250 % 250}.{1 + rest % 250}.{1 + last}")


async def run_cell(
    guard: CellGuard,
    body: Callable[[], Coroutine[Any, Any, T]],
    raiser: Raiser,
    *,
    what: object = 1,
) -> T:
    """Run a cell, of which nobody has been told before."""
    with guard.cell(what):
        return await guard.run(body, raiser)


class Flag:
    """An event between threads: set anywhere, awaited in any trio loop, or blocked on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flag = threading.Event()
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def set(self) -> None:
        with self._lock:
            self._flag.set()
            waiting, self._waiting = self._waiting, []
        for token, event in waiting:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

    def is_set(self) -> bool:
        return self._flag.is_set()

    async def wait(self) -> None:
        event = trio.Event()
        with self._lock:
            if self._flag.is_set():
                event.set()
            else:
                self._waiting.append((trio.lowlevel.current_trio_token(), event))
        await event.wait()

    def block(self) -> None:
        """Wait as a C call does that knows nothing of interrupts."""
        assert self._flag.wait(HANG)


class CellsKernel(ts.Kernel):
    """Its language consists of the names of functions: those that `cell` was told of."""

    implementation = "cells"
    implementation_version = "1.0"
    banner = "Cells"
    language_info = ts.LanguageInfo(name="cells")
    subshells = True

    def __init__(self) -> None:
        self.functions: dict[str, CellFunction] = {}

    def cell(self, function: CellFunction) -> CellFunction:
        """Decorate a function to make its name executable."""
        self.functions[function.__name__] = function  # type: ignore[attr-defined]
        return function

    async def execute(self, cell: ts.Cell) -> None:
        result = self.functions[cell.code](cell) if cell.code else None
        if inspect.isawaitable(result):
            await result


def types(exchange: Exchange) -> list[str]:
    """The types of what was published for a request but for busy and idle."""
    return [msg_type for msg_type, _ in exchange.outputs]


@asynccontextmanager
async def open_client(
    connection: ConnectionInfo | None, name: str = "client", *, listens: bool = True
) -> AsyncIterator[Client]:
    """A client of a kernel. What it was answered, and heard of that, must have the right form.

    `check_protocol` would ask for more: that it is the clients who end cells, and nobody else.
    """
    assert connection is not None
    async with testing_client(connection, name, listens=listens) as client:
        yield client
    for exchange in client.exchanges:
        if exchange.replies and "idle" in exchange.states:
            check_form(exchange)


def check_form(exchange: Exchange) -> None:
    """Check the form of all that came for a request that is done."""
    (reply,) = exchange.replies
    assert exchange.states == ["busy", "idle"]
    assert exchange.types[0] == "status"
    expected = exchange.message.header.msg_type.removesuffix("_request") + "_reply"
    assert reply.header.msg_type == expected
    content = reply.content
    if content["status"] == "error":
        assert isinstance(content["ename"], str)
        assert isinstance(content["evalue"], str)
        assert all(isinstance(line, str) for line in content["traceback"])


@attrs.frozen
class Served:
    """A kernel that runs, and a client of it."""

    running: RunningKernel
    client: Client


@asynccontextmanager
async def served(
    kernel: ts.Kernel, connection: ConnectionInfo | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Run a kernel at real sockets, with a client; fail if it takes forever."""
    with trio.fail_after(HANG):
        async with (
            open_kernel(kernel, connection or local_connection(), **options) as running,
            open_client(running.connection) as client,
        ):
            yield Served(running, client)
