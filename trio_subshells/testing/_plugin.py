"""What the pytest plugin does for tests that explore schedules, or use one of its fixtures.

The plugin itself is `trio_subshells_pytest`, which imports this module when a test needs it.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest
import trio
from _pytest._code.code import (
    ExceptionInfo,
    ExceptionRepr,
    ReprExceptionInfo,
    ReprFileLocation,
    ReprTracebackNative,
)
from _pytest.logging import caplog_handler_key

from ._errors import SimulationFailure
from ._explore import ScheduleFailed, Settings, explore, settings
from ._loops import VirtualClock
from ._process import simulated_process
from ._record import is_users_file
from ._scenes import causes
from ._schedules import InvalidSchedule, Replayer, Schedule
from ._simulation import Simulation

KERNEL_SCHEDULES: Final = 50
"""How many schedules a test with `simulated_kernel` runs, if nobody says how many."""

_MOST_LOGGED: Final = 50
"""Lines of what a failing schedule has logged, or printed."""
_SECTION: Final = "failing schedule"


# --------------------------------------------------------------------------------- options


def check(config: pytest.Config) -> None:
    """Refuse options that make no sense.

    Raises:
        pytest.UsageError: says which, and what would make sense.
    """
    schedules = config.getoption("schedules", None)
    if schedules is not None and schedules < 1:
        raise pytest.UsageError(f"--schedules must be at least 1, not {schedules}")
    seconds = config.getoption("schedule_seconds", None)
    if seconds is not None and not 0 <= seconds < math.inf:
        raise pytest.UsageError(f"--schedule-seconds must be a number of seconds, not {seconds}")
    try:
        _replay(config)
    except InvalidSchedule as error:
        raise pytest.UsageError(f"{_replay_option(config)}: {error}") from None


def _replay(config: pytest.Config) -> Schedule | None:
    text = config.getoption("schedule_replay", None)
    return None if text is None else Schedule.parse(text)


def _replay_option(config: pytest.Config) -> str:
    """How the option is called: ``--replay``, unless that is another plugin's."""
    dest = config._parser._opt2dest.get("--replay")
    return "--replay" if dest == "schedule_replay" else "--schedule-replay"


@contextmanager
def set_for(item: pytest.Item) -> Iterator[None]:
    """Set what explorations in a test go by."""
    config = item.config
    name = str(item.nodeid)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        name = f"{name} {worker}"  # all workers may run the same test
    test = shlex.quote(_from_here(config, str(item.nodeid)))
    modules = tuple(config.getoption("preempt", ()))
    for module in modules:
        test += f" --preempt {shlex.quote(module)}"
    token = settings.set(
        Settings(
            schedules=config.getoption("schedules", None),
            seconds=config.getoption("schedule_seconds", None),
            seed=config.getoption("schedule_seed", None),
            preempt=modules,
            replay=_replay(config),
            directory=Path(config.rootpath, config.getoption("schedule_dir", ".schedules")),
            command=f"pytest {test} {_replay_option(config)}",
            name=name,
            details=config.getoption("schedule_details", False),
            begin=functools.partial(_forget_logs, item),
        )
    )
    try:
        yield
    finally:
        settings.reset(token)


def _forget_logs(item: pytest.Item) -> None:
    """Drop what earlier schedules of a test have logged.

    What is shown of a failure is then the log of the failing schedule, and nothing that records
    refer to, kernels and all, is kept for the rest of the test.
    """
    logs = item.config.pluginmanager.get_plugin("logging-plugin")
    if logs is not None:
        logs.report_handler.clear()
        item.stash[caplog_handler_key].clear()


def _from_here(config: pytest.Config, nodeid: str) -> str:
    """The name of a test where pytest was started; that it has is from the root directory."""
    path, colons, rest = nodeid.partition("::")
    here = config.invocation_params.dir
    if here != config.rootpath:
        path = os.path.relpath(config.rootpath / path, here)
    return path + colons + rest


# --------------------------------------------------------------------------------- reports


def tell(item: pytest.Item, error: BaseException, report: pytest.TestReport) -> None:
    """Give a test that has failed with a schedule a report that a person can read."""
    if isinstance(error, ScheduleFailed) and report.longrepr is not None:
        report.longrepr = _told(item, error)
        report.sections = [(name, _last_lines(text)) for name, text in report.sections]


def _last_lines(text: str) -> str:
    """What was logged last: a task that goes round in circles logs more than anybody reads."""
    lines = text.splitlines(keepends=True)
    if len(lines) <= _MOST_LOGGED:
        return text
    return f"… {len(lines) - _MOST_LOGGED:,} lines\n" + "".join(lines[-_MOST_LOGGED:])


def count(report: pytest.TestReport) -> None:
    """Note in a report how much its test has explored; that is added up at the end."""
    tally = settings.get(Settings()).tally
    if tally.schedules:
        report.user_properties += [
            ("schedules", tally.schedules),
            ("schedule_seconds", round(tally.seconds, 3)),
        ]


def _told(item: pytest.Item, error: ScheduleFailed) -> ExceptionRepr:
    failure = causes(error.failure)[0]
    with _users_frames_only(failure) as has_frames:
        told = item.repr_failure(ExceptionInfo.from_exception(failure)) if has_frames else None
    if not isinstance(told, ExceptionRepr):
        told = _bare(item, failure)
    told.addsection(_SECTION, "\n".join([str(error), *getattr(error, "__notes__", [])]), "-")
    return told


def _bare(item: pytest.Item, failure: BaseException) -> ReprExceptionInfo:
    """For a failure that no line of the user's has raised."""
    path, line, _ = item.reportinfo()
    text = f"{type(failure).__name__}: {failure}"
    return ReprExceptionInfo(
        ReprTracebackNative([f"{text.splitlines()[0]}\n"]),
        ReprFileLocation(str(path), (line or 0) + 1, text),
    )


@contextmanager
def _users_frames_only(error: BaseException) -> Iterator[bool]:
    """Take trio's frames, and ours, from an exception and from those that have led to it.

    Yields whether there are any left of the exception itself.
    """
    with ExitStack() as undo:
        seen: set[int] = set()
        todo: list[BaseException | None] = [error]
        while todo:
            each = todo.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            todo += [each.__cause__, each.__context__]
            undo.callback(each.with_traceback, each.__traceback__)
            each.__traceback__ = _users(each.__traceback__)
        yield error.__traceback__ is not None


def _users(traceback: TracebackType | None) -> TracebackType | None:
    frames = []
    while traceback is not None:
        if is_users_file(traceback.tb_frame.f_code.co_filename):
            frames.append(traceback)
        traceback = traceback.tb_next
    left = None
    for each in reversed(frames):
        left = TracebackType(left, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return left


# -------------------------------------------------------------------------------- fixtures


def choose_run(item: pytest.Item) -> None:
    """Let pytest-trio run a test where its fixtures want it to."""
    function = getattr(item, "obj", None)
    names = getattr(item, "fixturenames", ())
    if not inspect.iscoroutinefunction(function):
        return  # it explores by itself, or fails by itself
    if _explores(item):
        run = functools.partial(run_explored, function)
        item.add_marker(pytest.mark.trio(run=run), append=False)
    elif "virtual_clock" in names:
        item.add_marker(pytest.mark.trio(run=run_simulated), append=False)
    else:
        item.add_marker(pytest.mark.trio)


def _explores(item: pytest.Item) -> bool:
    if "simulated_kernel" in getattr(item, "fixturenames", ()):
        return True
    call = getattr(item, "callspec", None)
    return call is not None and call.params.get("kernel_under_test") == "simulated"


def run_explored(
    function: Callable[..., Awaitable[Any]],
    async_fn: functools.partial[Any],
    *,
    clock: trio.abc.Clock | None,
    instruments: Sequence[trio.abc.Instrument],
) -> None:
    """Explore schedules of a test, where pytest-trio would run it once.

    Args:
        function: the test.
        async_fn: calls it, with what pytest-trio puts around it, and has its arguments.
        clock: the `virtual_clock`, if it has one.
        instruments: what trio is to tell of each run.
    """
    __tracebackhide__ = True
    from ._fixtures import made_fixtures  # needs pytest-trio, as nothing else here

    if clock is not None and not isinstance(clock, VirtualClock):
        raise RuntimeError(f"each schedule has a virtual clock; this test can't have {clock!r} too")

    @functools.wraps(function)
    async def body() -> None:
        simulation = Simulation.current
        assert simulation is not None
        for instrument in instruments:
            trio.lowlevel.add_instrument(instrument)

        def instead(value: Any) -> Any:
            return simulation.clock if isinstance(value, VirtualClock) else value

        async with made_fixtures(async_fn.keywords, instead) as arguments:
            await function(**arguments)

    explore(body, schedules=KERNEL_SCHEDULES)


def run_simulated(
    async_fn: Callable[[], Awaitable[Any]],
    *,
    clock: trio.abc.Clock | None,
    instruments: Sequence[trio.abc.Instrument],
) -> Any:
    """Run an async function in the simulator, in the default order, as `trio.run` would.

    Args:
        async_fn: what to run.
        clock: the `virtual_clock`.
        instruments: what trio is to tell of the run.
    """
    __tracebackhide__ = True
    if not isinstance(clock, VirtualClock):
        raise RuntimeError(f"a test with virtual_clock can't have another clock as well, {clock!r}")

    async def body() -> Any:
        for instrument in instruments:
            trio.lowlevel.add_instrument(instrument)
        return await async_fn()

    simulation = Simulation(Replayer(Schedule()))
    simulation.clock = clock
    with simulated_process():
        result = simulation.run(body)
    failure = simulation.failure
    if isinstance(failure, SimulationFailure):  # there is no line to point to
        pytest.fail(f"{type(failure).__name__}: {failure}", pytrace=False)
    return result.unwrap()
