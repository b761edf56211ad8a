"""Running the test that must catch a mutant, on the code that has the mutant in it.

Each run is a process of its own: ``python tests/mutants run NAME``. An import hook compiles the one
module from its patched source, so that tracebacks and reports show what runs; everything else is
pytest's usual run of one test. What came of it is one line of JSON.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import linecache
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

import attrs
import pytest

from ._corpus import HERE, ROOT, Mutant

STRATEGIES = ("portfolio", "random", "PCT", "POS", "exhaustive")


@attrs.frozen
class Result:
    """What came of one run.

    Attributes:
        caught: whether the test has failed, for a schedule or by itself.
        passed: whether it has passed. Where both are false, something else is wrong.
        schedules: how many were run until one failed, that one included; 0: it explores none.
        seconds: how long that took, in seconds of processor time, without the shrinking.
        deviations: of the shrunk schedule.
        strategy: what has found the schedule.
        failure: what it failed with, in a line.
        output: what pytest has printed.
    """

    caught: bool = False
    passed: bool = False
    schedules: int = 0
    seconds: float = 0.0
    deviations: int = 0
    strategy: str = ""
    failure: str = ""
    output: str = attrs.field(default="", repr=False)


# ------------------------------------------------------------------------- in the child process


class _Patch(importlib.abc.MetaPathFinder):
    """Imports one module from its patched source."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None, name
        assert spec.origin is not None, name
        assert (ROOT / self._mutant.file).samefile(spec.origin), spec.origin
        spec.loader = _PatchedLoader(name, spec.origin, self._mutant.patched())
        return spec


class _PatchedLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source
        # No time of modification: the file's own lines never take the place of these.
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)

    def get_source(self, fullname: str) -> str:
        return self._source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Watch:
    """A pytest plugin that keeps what came of the test, and lets it explore otherwise."""

    def __init__(self, strategy: str | None) -> None:
        self.result = Result()
        self._strategy = strategy
        self._explores = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from trio_subshells.testing import _explore

        if self._strategy is not None:
            outside = _explore.settings.get()
            _explore.settings.set(attrs.evolve(outside, strategy=_strategy(self._strategy)))
        start = time.process_time()
        try:
            result = yield
        except _explore.ScheduleFailed as error:
            self.result = Result(
                caught=True,
                schedules=error.number,
                seconds=error.seconds,
                deviations=len(error.schedule),
                strategy=error.strategy,
                failure=_line(error.failure),
            )
            raise
        except _explore.UncontrolledNondeterminism as error:
            self.result = Result(failure=_line(error))
            raise
        except BaseException as error:
            seconds = time.process_time() - start
            self.result = Result(caught=True, seconds=seconds, failure=_line(error))
            raise
        self.result = Result(passed=True, seconds=time.process_time() - start)
        return result


def _strategy(name: str) -> Any:
    from trio_subshells import testing

    match name:
        case "random":
            return testing.Random()
        case "PCT":
            return testing.PCT()
        case "POS":
            return testing.POS()
        case "exhaustive":
            return testing.Exhaustive()
        case _:
            return testing.Portfolio()


def _line(error: BaseException) -> str:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    text = str(leaf).partition("\n")[0]
    return f"{type(leaf).__name__}: {text}" if text else type(leaf).__name__


def run_here(
    mutant: Mutant | None, test: str, options: Sequence[str], strategy: str | None
) -> Result:
    """Run a test in this process, which must not have imported the module yet."""
    if mutant is not None:
        assert mutant.module not in sys.modules, f"{mutant.module} has been imported too soon"
        sys.meta_path.insert(0, _Patch(mutant))
    watch = _Watch(strategy)
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *options]
    pytest.main([*arguments, str(ROOT / test)], [watch])
    return watch.result


# ------------------------------------------------------------------------ in the parent process


def run(
    mutant: Mutant,
    *,
    strategy: str | None = None,
    schedules: int | None = None,
    seconds: float | None = None,
    timeout: float = 300,
) -> Result:
    """Run a mutant's test in a process of its own.

    Args:
        mutant: which.
        strategy: another than the test's; one of `STRATEGIES`.
        schedules: how many at most; as the test says, if `seconds` isn't said either.
        seconds: for how long at most.
        timeout: after how many seconds of real time the process is killed: the mutant has made it
            hang, in a way that the simulator doesn't see.
    """
    command = [sys.executable, str(HERE), "run", mutant.name, "--json"]
    if strategy is not None:
        command += ["--strategy", strategy]
    if schedules is not None:
        command += ["--schedules", str(schedules)]
    if seconds is not None:
        command += ["--seconds", str(seconds)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = (expired.output or b"").decode("utf-8", "replace")
        return Result(failure=f"it hung: no end after {timeout:g} s", output=output)
    output, _, last = done.stdout.rstrip().rpartition("\n")
    try:
        return Result(**json.loads(last), output=output)
    except (ValueError, TypeError):
        return Result(failure=f"the process has ended with {done.returncode}", output=done.stdout)


def as_json(result: Result) -> str:
    """One line, for `run`."""
    return json.dumps(attrs.asdict(result, filter=attrs.filters.exclude("output")))
