"""Several simulated threads that do something at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import trio

from trio_subshells import actors
from trio_subshells.kernel._guard import CellGuard, Raiser

from .kernels import Flag

T = TypeVar("T")


class Caller(actors.Actor):
    """An actor that calls an async function."""

    def __init__(self, function: Callable[[], Awaitable[object]]) -> None:
        self._function = function

    async def run(self, mailbox: actors.Mailbox) -> None:
        await self._function()


async def in_threads(**functions: Callable[[], Awaitable[object]]) -> None:
    """Call async functions, each in a thread of its own, from when all threads are there."""
    go = Flag()

    def waiting(function: Callable[[], Awaitable[object]]) -> Caller:
        async def call() -> None:
            await go.wait()
            await function()

        return Caller(call)

    async with actors.open_system() as system:
        refs = [
            await system.spawn(waiting(function), name=name, host=actors.ThreadHost())
            for name, function in functions.items()
        ]
        go.set()
        for ref in refs:
            await ref.watch()


async def some_steps(count: int) -> None:
    """Let others go on so many times."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


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
