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
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any
from unittest import mock

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
    """A pytest plugin that keeps what came of the test, and lets it explore otherwise.

    Args:
        strategy: another than the test's own.
        others: how else it is run then, only to see what comes of it: strategies, or seeds.
    """

    def __init__(self, strategy: str | None, others: Sequence[str | int]) -> None:
        self.result = Result()
        self.others: dict[str, Result] = {}
        self._strategy = strategy
        self._others = others

    def pytest_configure(self, config: pytest.Config) -> None:
        # Else async tests aren't run, and fail for that, as if they had caught something.
        assert config.getini("trio_mode"), "the settings of pyproject.toml don't hold"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from trio_subshells.testing import _explore

        try:
            with _exploring_by(self._strategy) if self._strategy is not None else nullcontext():
                start = time.process_time()
                try:
                    result = yield
                except BaseException as error:
                    self.result = _result_of(error, start)
                    raise
                self.result = Result(passed=True, seconds=time.process_time() - start)
                return result
        finally:
            settings = _explore.settings.get(None)
            if settings is not None and settings.tally.schedules:
                self._run_otherwise(item)

    def _run_otherwise(self, item: pytest.Item) -> None:
        """Only to see what comes of it. Not for a test that explores nothing: it may run once."""
        from trio_subshells.testing import _explore

        for how in self._others:
            with (
                _exploring_by(how),
                mock.patch.object(_explore, "shrink", lambda found, *_, **__: found),
                mock.patch.object(_explore, "make_report", return_value=None),
            ):
                start = time.process_time()
                try:
                    item.runtest()
                except Exception as error:
                    self.others[str(how)] = _result_of(error, start)
                else:
                    self.others[str(how)] = Result(passed=True)


def _result_of(error: BaseException, start: float) -> Result:
    from trio_subshells.testing import _explore

    match error:
        case _explore.ScheduleFailed():
            return Result(
                caught=True,
                schedules=error.number,
                seconds=error.seconds,
                deviations=len(error.schedule),
                strategy=error.strategy,
                failure=_line(error.failure),
            )
        case _explore.UncontrolledNondeterminism():
            return Result(failure=_line(error))
        case _:
            seconds = time.process_time() - start
            return Result(caught=True, seconds=seconds, failure=_line(error))


@contextmanager
def _exploring_by(how: str | int) -> Iterator[None]:
    """Let explorations use another strategy, or another seed."""
    from trio_subshells.testing import _explore

    outside = _explore.settings.get()
    inside = (
        attrs.evolve(outside, seed=how)
        if isinstance(how, int)
        else attrs.evolve(outside, strategy=_strategy(how))
    )
    token = _explore.settings.set(inside)
    try:
        yield
    finally:
        _explore.settings.reset(token)


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
    mutant: Mutant,
    test: str,
    options: Sequence[str],
    strategy: str | None = None,
    others: Sequence[str | int] = (),
) -> tuple[Result, dict[str, Result]]:
    """Run a test in this process, which must not have imported the module yet.

    Args:
        mutant: which bug the code has.
        test: what pytest is to run.
        options: of pytest.
        strategy: another than the test's own.
        others: how else it is run then, only to see what comes of it: strategies, or seeds.
    """
    assert mutant.module not in sys.modules, f"{mutant.module} has been imported too soon"
    sys.meta_path.insert(0, _Patch(mutant))
    watch = _Watch(strategy, others)
    # Only the plugins that it takes, and of what they take, only what the test does: to import all
    # there is takes longer than most tests. Without hypothesis, pytest-trio does nothing for it.
    path = ROOT / test.partition("::")[0]
    if path.is_file() and "hypothesis" not in path.read_text("utf-8"):
        sys.modules["hypothesis"] = None  # type: ignore[assignment]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugins = ["-p", "pytest_trio.plugin", "-p", "trio_subshells_pytest", "-p", "no:cacheprovider"]
    # pyproject.toml is named: pytest would look for it by the paths that it takes options for. Its
    # `addopts` are about other plugins, too.
    settings = ["-c", str(ROOT / "pyproject.toml"), "-o", "addopts=", "--import-mode=importlib"]
    arguments = ["-q", *plugins, *settings, *options]
    pytest.main([*arguments, str(ROOT / test)], [watch])
    return watch.result, watch.others


# ------------------------------------------------------------------------ in the parent process


def run(mutant: Mutant, timeout: float = 300) -> Result:
    """Run a mutant's test, as it is, in a process of its own.

    Args:
        mutant: which.
        timeout: after how many seconds of real time the process is killed: the mutant has made it
            hang, in a way that the simulator doesn't see.
    """
    return _in_a_process(["run", mutant.name, "--json"], timeout)[0]


def measure(mutant: Mutant, schedules: int, seconds: float) -> dict[str, Result]:
    """What each strategy makes of a mutant.

    Args:
        mutant: which.
        schedules: how many at most, for each.
        seconds: for how long at most, for each.
    """
    options = ["--schedules", str(schedules), "--seconds", str(seconds), "--all"]
    result, others = _in_a_process(["run", mutant.name, "--json", *options], 120)
    if not result.caught:  # one of the others has made it hang
        return {STRATEGIES[0]: run(mutant)}
    return {STRATEGIES[0]: result, **(others or dict.fromkeys(STRATEGIES[1:], result))}


def steadiness(mutant: Mutant, seeds: int) -> list[bool]:
    """Whether a mutant is caught by its test as it is, but for the seed; for each of so many."""
    command = ["run", mutant.name, "--json", "--seeds", str(seeds)]
    result, others = _in_a_process(command, 60 * seeds)
    if result.caught and not result.schedules:  # it explores none: there is no seed
        return [True] * seeds
    return [others[str(seed)].caught if others else False for seed in range(1, seeds + 1)]


def _in_a_process(arguments: Sequence[str], timeout: float) -> tuple[Result, dict[str, Result]]:
    try:
        done = subprocess.run(
            [sys.executable, str(HERE), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = (expired.output or b"").decode("utf-8", "replace")
        return Result(failure=f"it hung: no end after {timeout:g} s", output=output), {}
    output, _, last = done.stdout.decode("utf-8", "replace").rstrip().rpartition("\n")
    try:
        result, others = json.loads(last)
        return Result(**result, output=output), {name: Result(**others[name]) for name in others}
    except (ValueError, TypeError):
        failure = f"the process has ended with {done.returncode}"
        return Result(failure=failure, output=f"{output}\n{last}"), {}


def as_json(result: Result, others: dict[str, Result]) -> str:
    """One line, for the process that waits for it."""
    without_output = attrs.filters.exclude("output")
    plain = {name: attrs.asdict(each, filter=without_output) for name, each in others.items()}
    return json.dumps([attrs.asdict(result, filter=without_output), plain])
