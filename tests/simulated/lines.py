"""What comes in before some line of a module's: an interrupt, or a garbage collection."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from .kernels import the_simulation


@contextmanager
def before_a_line(
    module: ModuleType, lines: int, what: str, do: Callable[[], object], *, times: int = 1
) -> Iterator[None]:
    """Do something before one of the first lines that a module runs within this block, or never.

    Args:
        module: which one.
        lines: how many of its lines come into question.
        what: what is done, for people.
        do: does it; what it raises is raised there.
        times: before how many lines it may be done.
    """
    names = [f"{what} at line {each}" for each in range(lines)]
    chosen = [the_simulation().which(*names) for _ in range(times)]
    count = itertools.count()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line" and f"{what} at line {next(count)}" in chosen:
            do()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
