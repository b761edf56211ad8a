"""pytest-trio's fixtures, for a test that is explored: made anew in each schedule.

pytest-trio makes a fixture once for a test, in the test's one trio loop. Each schedule has a loop
of its own, so here fixtures are made by what pytest-trio knows of them (`TrioFixture`): in the
test's own task, in the order in which the test and other fixtures name them, and ended in the
reverse order. What the test fails with is raised where a fixture yields, as in an ``async with`` of
the test's.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import trio
from pytest_trio.plugin import (  # type: ignore[import-untyped]
    NURSERY_FIXTURE_PLACEHOLDER,
    TrioFixture,
)


@asynccontextmanager
async def made_fixtures(
    arguments: Mapping[str, Any], instead: Callable[[Any], Any]
) -> AsyncIterator[dict[str, Any]]:
    """Make the fixtures among a test's arguments, for the time of a block.

    Args:
        arguments: of the test, as pytest-trio has them.
        instead: called with everything that isn't one of pytest-trio's fixtures; returns what the
            test gets.

    Yields:
        The arguments that the test is to be called with.
    """
    made: dict[int, Any] = {}

    async def make_all(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: await make(value) for name, value in values.items()}

    async def make(value: Any) -> Any:
        if not isinstance(value, TrioFixture):
            return instead(value)
        if id(value) not in made:
            made[id(value)] = await enter(value._func, await make_all(value._pytest_kwargs))
        return made[id(value)]

    async def enter(function: Callable[..., Any], values: dict[str, Any]) -> Any:
        if inspect.isasyncgenfunction(function):
            return await stack.enter_async_context(asynccontextmanager(function)(**values))
        if inspect.isgeneratorfunction(function):
            return stack.enter_context(contextmanager(function)(**values))
        result = function(**values)
        if inspect.isawaitable(result):
            return await result
        if result is NURSERY_FIXTURE_PLACEHOLDER:
            return await stack.enter_async_context(_nursery())
        return result

    async with AsyncExitStack() as stack:
        yield await make_all(arguments)


@asynccontextmanager
async def _nursery() -> AsyncIterator[trio.Nursery]:
    """The fixture ``nursery``: at its end, what runs in it is cancelled."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()
