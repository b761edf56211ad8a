"""The pytest plugin: options and fixtures for `trio_subshells.testing`.

It stands beside the package, not in it, for one reason: pytest imports it at the start of every
test run in an environment that has this project installed, and must not import the package for
that. Nothing of it is imported before a test module does so itself, an option is given, or a
fixture is used. What then has to be done is in `trio_subshells.testing._plugin`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import ModuleType

    from trio_subshells.testing import KernelUnderTest, VirtualClock

    OpenKernel = Callable[..., AbstractAsyncContextManager[KernelUnderTest]]

_REPLAY_HELP = "run this schedule only, which the report of a failure has printed"


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, Any, Any]:
    """Add our options last: a name that another plugin has taken is its own."""
    result = yield
    group = parser.getgroup("schedules", "schedules of concurrent tests (trio_subshells.testing)")
    group.addoption(
        "--schedules",
        type=int,
        metavar="N",
        help="how many schedules each exploring test runs, whatever it says itself",
    )
    group.addoption(
        "--schedule-seconds",
        type=float,
        metavar="S",
        help="for how many seconds each exploring test runs schedules, whatever it says itself",
    )
    group.addoption(
        "--schedule-seed",
        type=int,
        metavar="SEED",
        help="what the exploring tests' random decisions start from",
    )
    group.addoption(
        "--preempt",
        action="append",
        default=[],
        metavar="MODULE",
        help="stop threads between two statements of this module or package, too, in exploring "
        "tests; may be given several times",
    )
    options: dict[str, Any] = {"dest": "schedule_replay", "metavar": "SCHEDULE"}
    try:
        group.addoption("--replay", "--schedule-replay", help=_REPLAY_HELP, **options)
    except (ValueError, argparse.ArgumentError):  # pytest-replay has one, for something else
        group.addoption("--schedule-replay", help=_REPLAY_HELP, **options)
    group.addoption(
        "--schedule-dir",
        default=".schedules",
        metavar="DIR",
        help="where pictures of failing schedules are written, from the root directory: "
        "%(default)s",
    )
    group.addoption(
        "--schedule-details",
        action="store_true",
        help="tell, of a failing schedule, what the kernel's own code does, too",
    )
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that make no sense."""
    given = ("schedules", "schedule_seconds", "schedule_seed", "schedule_replay")
    if any(config.getoption(name, None) is not None for name in given):
        from trio_subshells.testing import _plugin

        _plugin.check(config)


def _plugin_if_used() -> ModuleType | None:
    """What does the work, if any test module has imported what it works for."""
    if "trio_subshells.testing" not in sys.modules:
        return None
    from trio_subshells.testing import _plugin

    return _plugin


_OURS = frozenset({"kernel_under_test", "real_kernel", "simulated_kernel", "virtual_clock"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests run where their fixtures want them to: in the simulator, or in a trio loop."""
    for item in items:
        if not _OURS.isdisjoint(getattr(item, "fixturenames", ())):
            from trio_subshells.testing import _plugin

            _plugin.choose_run(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Tell explorations what was asked for, and which test they are in."""
    plugin = _plugin_if_used()
    if plugin is None:
        return (yield)
    with plugin.set_for(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a failing schedule by its story, and by no line that isn't the user's."""
    report = yield
    if call.excinfo is not None and (plugin := _plugin_if_used()) is not None:
        plugin.tell(item, call.excinfo.value, report)
    if report.when == "call" and (plugin := _plugin_if_used()) is not None:
        plugin.count(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was explored, if anything was; a worker of pytest-xdist has told its reports."""
    told: list[dict[str, Any]] = [
        dict(report.user_properties)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
    ]
    schedules = sum(each.get("schedules", 0) for each in told)
    if schedules:
        seconds = sum(each.get("schedule_seconds", 0.0) for each in told)
        tests = sum("schedules" in each for each in told)
        terminalreporter.write_sep("-", "schedules")
        terminalreporter.write_line(
            f"{schedules:,} {'schedule' if schedules == 1 else 'schedules'} in {seconds:.1f} s, "
            f"explored by {tests} {'test' if tests == 1 else 'tests'}"
        )


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """Makes an async test run in the simulator, with virtual time: its clock.

    One schedule is run, the default one, in which sleeping takes no time. ``virtual_clock.now`` is
    the time since the start, in virtual seconds.
    """
    from trio_subshells.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def simulated_kernel() -> OpenKernel:
    """Makes an async test run in the simulator, under many schedules; it opens a kernel.

    ``async with simulated_kernel(MyKernel()) as kernel:``, see
    `trio_subshells.testing.simulated_kernel`. How many schedules is said by pytest's options, or by
    ``@explore_schedules(500)``; otherwise it is 50. Async fixtures are made anew in each.
    """
    from trio_subshells.testing import simulated_kernel

    return simulated_kernel


@pytest.fixture
def real_kernel() -> OpenKernel:
    """Makes an async test one of pytest-trio's; it opens a kernel at real sockets.

    ``async with real_kernel(MyKernel()) as kernel:``, see `trio_subshells.testing.real_kernel`.
    """
    from trio_subshells.testing import real_kernel

    return real_kernel


@pytest.fixture(params=["simulated", "real"])
def kernel_under_test(request: pytest.FixtureRequest) -> OpenKernel:
    """Makes two tests of one: with `simulated_kernel`, and with `real_kernel`."""
    from trio_subshells.testing import real_kernel, simulated_kernel

    return simulated_kernel if request.param == "simulated" else real_kernel
