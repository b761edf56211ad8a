"""What the whole suite needs, and how it is spread over two processes, by pytest-xdist.

Half of it waits most of its time, for kernels in other processes, for a browser, for timeouts of
real threads. The other half computes. Two workers do both at once, and a run takes half as long.
Somebody who names the tests that he wants has them run by the process that he has started.
``-n 0`` does that for all; ``-n 4`` takes four.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

# All that starts kernels or browsers is one piece of work: such tests never run beside each other.
# At most one other worker takes the machine from them, and what they wait for.
PROCESSES = ("tests/browser/", "tests/cli/", "tests/process/", "tests/test_examples.py")
# A process for each test: small pieces, which are done last, by whoever has time.
MUTANTS = "tests/mutants/"


def pytest_configure() -> None:
    """Take Ctrl-C for what it is, though a shell's ``&`` has it ignored by all that it starts.

    There are tests of what Ctrl-C does, in this process and in those that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return what ``-n auto`` means, which is in pyproject.toml: 0 is no worker at all."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_watched = config.option.capture == "no"  # what workers print isn't shown
    return 2 if is_whole and not config.option.keyword and not is_watched else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Return what decides which worker runs what, unless ``--dist`` wants another."""
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):
        """The pieces with the most tests are given away first."""

        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(PROCESSES):
                return "processes"
            return nodeid if nodeid.startswith(MUTANTS) else nodeid.partition("::")[0]

    return Pieces(config, log) if config.option.dist == "load" else None
