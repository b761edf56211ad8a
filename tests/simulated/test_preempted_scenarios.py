"""The scenarios of this directory once more, with threads that are stopped between two statements.

Each is about something else; here they are only a way to have the kernel's own code, and that of
its actors, do what it does while others come in between. What is planned for a lock or a statement
is in `test_preempted_actors` and `test_preempted_kernel`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import attrs
import pytest

from trio_subshells.testing._explore import settings

from . import (
    test_abort,
    test_actors,
    test_comms,
    test_create,
    test_delete,
    test_interrupt,
    test_leftovers,
    test_output,
    test_prompts,
    test_shell,
    test_shutdown,
    test_stdin,
    test_subshells,
    test_timeouts,
)

OF_ACTORS: Final = (test_actors,)
OF_KERNELS: Final = (
    *(test_abort, test_comms, test_create, test_delete, test_interrupt, test_leftovers),
    *(test_output, test_prompts, test_shell, test_shutdown, test_stdin, test_subshells),
    test_timeouts,
)


def scenarios(modules: tuple[ModuleType, ...]) -> Iterator[Any]:
    """The exploring tests of some modules, each with all of its parameters."""
    for module in modules:
        for name, test in vars(module).items():
            if not name.startswith("test_") or not hasattr(test, "_explored"):
                continue
            marks = [each for each in getattr(test, "pytestmark", ()) if each.name == "parametrize"]
            for arguments in itertools.product(*map(_choices, marks)):
                given = {key: value for each in arguments for key, value in each.items()}
                if set(inspect.signature(test).parameters) == set(given):  # it takes no fixture
                    words = [name.removeprefix("test_"), *map(str, given.values())]
                    yield pytest.param(test, given, id=" ".join(words))


def _choices(mark: pytest.Mark) -> list[dict[str, Any]]:
    names, values = mark.args[:2]
    split = names.replace(" ", "").split(",") if isinstance(names, str) else list(names)
    return [
        dict(zip(split, each if len(split) > 1 else [each], strict=True))
        for each in (getattr(value, "values", value) for value in values)
    ]


def explored(
    test: Callable[..., None], arguments: dict[str, Any], schedules: int, *packages: str
) -> None:
    outside = settings.get()
    if outside.schedules is None and outside.seconds is None:
        outside = attrs.evolve(outside, schedules=schedules)
    token = settings.set(attrs.evolve(outside, preempt=packages))
    try:
        test(**arguments)
    finally:
        settings.reset(token)


@pytest.mark.parametrize(("test", "arguments"), list(scenarios(OF_ACTORS)))
def test_actors_preempted(test: Callable[..., None], arguments: dict[str, Any]) -> None:
    explored(test, arguments, 60, "trio_subshells.actors")


@pytest.mark.parametrize(("test", "arguments"), list(scenarios(OF_KERNELS)))
def test_kernels_preempted(test: Callable[..., None], arguments: dict[str, Any]) -> None:
    explored(test, arguments, 20, "trio_subshells.actors", "trio_subshells.kernel")
