"""The pytest plugin, in suites of its own."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# An environment that was installed before there was a plugin has no entry point for it.
IS_INSTALLED = any(
    each.value == "trio_subshells_pytest"
    for each in importlib.metadata.entry_points(group="pytest11")
)
ARGUMENTS = ["-p", "no:asyncio", "-p", "no:cacheprovider"]
ARGUMENTS += [] if IS_INSTALLED else ["-p", "trio_subshells_pytest"]

RACY = """
import trio
from trio_subshells.testing import explore_schedules

class Account:
    balance = 0

async def deposit(account, amount):
    seen = account.balance
    await trio.lowlevel.checkpoint()
    account.balance = seen + amount

@explore_schedules(300)
async def test_deposits_add_up():
    account = Account()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deposit, account, 10)
        nursery.start_soon(deposit, account, 10)
    assert account.balance == 20

@explore_schedules(30)
async def test_nothing_is_wrong():
    await trio.sleep(3600)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_inprocess(*ARGUMENTS, *arguments)


def test_a_failure_is_told_and_nothing_else(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_racy=RACY)
    result = run(suite)
    result.assert_outcomes(failed=1, passed=1)
    text = result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "*assert account.balance == 20",
            "E *assert 10 == 20",
            "-*failing schedule*-",
            "AssertionError: assert 10 == 20*",
            "Found by schedule * of seed 0 (*",
            "Replay it:  pytest test_racy.py::test_deposits_add_up --replay '1*'",
            "Picture:    .schedules*test_racy.py*test_deposits_add_up*.svg",
            "*goes on instead of *about to run test_racy.py:10: account.balance = seen*",
            "FAILED test_racy.py::test_deposits_add_up - *assert 10 == 20",
        ]
    )
    for inside in ("_simulation.py", "_explore.py", "_run.py", "greenlet", "unrolled_run"):
        assert inside not in text
    assert len(text.splitlines()) < 80


def replay_line(result: pytest.RunResult) -> list[str]:
    (line,) = [each for each in result.outlines if each.startswith("Replay it:")]
    return shlex.split(line.removeprefix("Replay it:"))


def test_of_a_long_log_the_end_is_shown(suite: pytest.Pytester) -> None:
    logs = """    account = Account()
    for number in range(300):
        logging.getLogger('bank').warning('statement %d', number)"""
    text = RACY.replace("    account = Account()", logs)
    suite.makepyfile(test_racy=f"import logging\n{text}")
    shown = run(suite).stdout.str().partition("Captured log call")[2]
    assert "\n… 250 lines\n" in shown
    assert shown.count("statement ") == 50
    assert "statement 299" in shown


def test_only_the_failing_schedules_log_is_shown(suite: pytest.Pytester) -> None:
    logs = "    logging.getLogger('bank').warning('an account is opened')\n    account = Account()"
    text = RACY.replace("    account = Account()", logs)
    suite.makepyfile(test_racy=f"import logging\n{text}")
    shown = run(suite).stdout.str()
    assert shown.count("Captured log call") == 1
    assert shown.partition("Captured log call")[2].count("an account is opened") == 1
    result = run(suite, "-p", "no:logging")
    result.assert_outcomes(failed=1, passed=1)


def test_the_replay_line_replays_it(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_racy=RACY)
    command, *arguments = replay_line(run(suite))
    assert command == "pytest"
    again = run(suite, *arguments)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["E *assert 10 == 20", "Found by replaying a schedule.*"])
    assert replay_line(again)[1:] == arguments


def test_the_replay_line_is_right_in_any_directory(suite: pytest.Pytester) -> None:
    directory = suite.mkdir("deep")
    (directory / "test_racy.py").write_text(RACY)
    suite.chdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        _, *arguments = replay_line(run(suite, "--rootdir", str(suite.path)))
        assert arguments[0] == "test_racy.py::test_deposits_add_up"
        again = run(suite, "--rootdir", str(suite.path), *arguments)
    again.assert_outcomes(failed=1)


def test_pictures_go_to_one_directory_only(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_racy=RACY)
    run(suite)
    found = sorted(path.suffix for path in (suite.path / ".schedules").iterdir())
    assert found == ["", ".mmd", ".svg"]
    run(suite, "--schedule-dir", "elsewhere")
    assert len(list((suite.path / "elsewhere").glob("*.svg"))) == 1
    names = {path.name for path in suite.path.iterdir()} - {"__pycache__"}
    assert names == {"test_racy.py", "tox.ini", ".schedules", "elsewhere"}


def test_a_kernels_own_code_is_told_if_that_is_wanted(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import trio_subshells as ts
        from trio_subshells.testing import explore_schedules, simulated_kernel

        class Silent(ts.Kernel):
            implementation = "silent"
            language_info = ts.LanguageInfo(name="silence")

            async def execute(self, cell):
                pass

        @explore_schedules(1)
        async def test_it():
            async with simulated_kernel(Silent()) as kernel:
                assert (await kernel.client.execute("x")).status == "error"
        """
    )
    text = "\n".join(run(suite).outlines)
    assert "serves execute_request 'x' of test" in text
    assert "_open.py:" not in text
    assert "\nDetails:    with --schedule-details, " in text
    assert "_open.py:" in "\n".join(run(suite, "--schedule-details").outlines)


def test_a_deadlock_needs_no_traceback(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_stuck="""
        import trio
        from trio_subshells.testing import explore_schedules

        @explore_schedules
        async def test_it():
            await trio.Event().wait()
        """
    )
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "Deadlock: nothing can happen any more*",
            "*it fails in the default order*",
            "  main waits at test_stuck.py:6:  await trio.Event().wait()",
            "FAILED test_stuck.py::test_it - Deadlock: nothing can happen any more*",
        ]
    )


def test_fixtures_and_parameters_reach_the_test(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest
        from trio_subshells.testing import explore_schedules

        @pytest.fixture
        def three():
            return 3

        @pytest.mark.parametrize("text", ["a b", "it's"])
        @explore_schedules(2)
        async def test_it(three, text):
            assert (three, text) == (3, "a b")
        """
    )
    result = run(suite)
    result.assert_outcomes(passed=1, failed=1)
    arguments = replay_line(result)[1:]
    run(suite, *arguments).assert_outcomes(failed=1)


COUNTING = """
from trio_subshells.testing import explore

runs = []

async def body():
    runs.append(1)

def test_it():
    figures = explore(body, schedules=7)
    print(f"ran {len(runs)}, seed {figures.seed}")
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "ran 7, seed 0"),
        (["--schedules", "3"], "ran 3, seed 0"),
        (["--schedules=3", "--schedule-seed=5"], "ran 3, seed 5"),
        (["--schedule-seconds", "0"], "ran 1, seed 0"),
        (["--replay", "1:"], "ran 1, seed 0"),
        (["--schedule-replay=1:"], "ran 1, seed 0"),
    ],
)
def test_options_come_before_what_a_test_says(
    suite: pytest.Pytester, arguments: list[str], expected: str
) -> None:
    suite.makepyfile(COUNTING)
    result = run(suite, "-s", *arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*{expected}*"])


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--schedules=0", "--schedules must be at least 1, not 0"),
        ("--schedule-seconds=-1", "--schedule-seconds must be a number of seconds, not -1.0"),
        ("--replay=rubbish", "--replay: 'rubbish' isn't a schedule*"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    suite: pytest.Pytester, argument: str, complaint: str
) -> None:
    suite.makepyfile(COUNTING)
    result = run(suite, argument)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {complaint}"])


THREADS = """
from trio_subshells import actors
from trio_subshells.testing import explore_schedules
from counters import Counter

class Adds(actors.Actor):
    def __init__(self, counter):
        self.counter = counter
    async def run(self, mailbox):
        self.counter.add()

@explore_schedules(100)
async def test_counts_add_up():
    counter = Counter()
    async with actors.open_system() as system:
        host = actors.ThreadHost()
        adds = [await system.spawn(Adds(counter), name=name, host=host) for name in "ab"]
        for ref in adds:
            await ref.watch()
    assert counter.count == 2
"""


def test_threads_are_stopped_where_that_is_asked_for(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        counters="class Counter:\n    count = 0\n    def add(self):\n        self.count += 1\n",
        test_threads=THREADS,
    )
    suite.syspathinsert()
    run(suite).assert_outcomes(passed=1)
    result = run(suite, "--preempt", "counters")
    result.assert_outcomes(failed=1)
    line = next(each for each in result.outlines if each.startswith("Replay it:"))
    _, *arguments = shlex.split(line.removeprefix("Replay it:"))
    assert arguments[1:3] == ["--preempt", "counters"]
    run(suite, *arguments).assert_outcomes(failed=1)
    unknown = run(suite, "--preempt", "countres")
    unknown.stdout.fnmatch_lines(["*ValueError: there is no module 'countres'*"])


def test_another_plugin_may_have_a_replay_of_its_own(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--replay", default="theirs")

        def pytest_report_header(config):
            return f"their replay: {config.getoption('--replay')}"
        """
    )
    suite.makepyfile(test_racy=RACY)
    result = run(suite)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["their replay: theirs"])
    arguments = replay_line(result)[1:]
    assert arguments[1] == "--schedule-replay"
    run(suite, *arguments).assert_outcomes(failed=1)


def test_a_suite_that_doesnt_use_it_doesnt_pay_for_it(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            print("imported:", [name for name in sys.modules if name.startswith("trio_subshells.")])
        """
    )
    suite.makepyfile("def test_it():\n    pass\n")
    result = suite.runpytest_subprocess(*ARGUMENTS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["imported: []*"])


def test_exploring_needs_no_pytest_trio(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys\nsys.modules['pytest_trio'] = None\n")
    pytester.makepyfile(test_racy=RACY)
    result = pytester.runpytest_subprocess(*ARGUMENTS, "-p", "no:trio")
    result.assert_outcomes(passed=1, failed=1)


def test_each_worker_writes_its_own_files(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    suite.makepyfile(test_racy=RACY)
    # The workers are processes of their own; what isn't installed they are told to load, too.
    result = suite.runpytest_subprocess(*ARGUMENTS, "--dist", "each", "--tx", "2*popen")
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(["E *assert 10 == 20", "-*failing schedule*-"])
    assert len(list((suite.path / ".schedules").glob("*.svg"))) == 2


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_what_was_explored_is_counted(suite: pytest.Pytester, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    suite.makepyfile(
        test_some="""
from trio_subshells.testing import explore, explore_schedules

@explore_schedules(30)
async def test_thirty():
    pass

async def nothing():
    pass

def test_twenty():
    explore(nothing, schedules=12)
    explore(nothing, schedules=8)

@explore_schedules(10)
async def test_one():
    raise LookupError

def test_none():
    pass
"""
    )
    result = suite.runpytest_subprocess(*ARGUMENTS, *workers)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["-*schedules*-", "51 schedules in * s, explored by 3 tests"])


def test_nothing_is_counted_where_nothing_was_explored(suite: pytest.Pytester) -> None:
    suite.makepyfile("import trio_subshells.testing\ndef test_it():\n    pass\n")
    result = run(suite)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*schedules in*")


VIRTUAL = """
import time
import pytest
import trio
from trio_subshells import actors
from trio_subshells.testing import Deadlock

@pytest.fixture
async def tool():
    await trio.sleep(100)
    yield "tool"
    await trio.sleep(100)

async def test_time_takes_none(virtual_clock, tool, nursery):
    assert virtual_clock.now == trio.current_time() == 100
    real = time.perf_counter()
    with trio.move_on_after(3600) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert virtual_clock.now == 3700

class Sleeper(actors.Actor):
    async def run(self, mailbox):
        async for letter in mailbox:
            time.sleep(50)
            letter.reply(time.monotonic())

async def test_threads_are_simulated(virtual_clock):
    async with actors.open_system() as system:
        sleeper = await system.spawn(Sleeper(), name="sleeper", host=actors.ThreadHost())
        assert await sleeper.ask("now", timeout=60) == 50

async def test_failures_are_failures(virtual_clock):
    assert virtual_clock.now == 1

async def test_a_deadlock_ends(virtual_clock):
    await trio.Event().wait()

async def test_without_it(autojump_clock):
    await trio.sleep(1)

def test_real_time_goes_on():
    assert time.monotonic() != 0
"""


@pytest.mark.parametrize("mode", ["true", "false"])
def test_a_virtual_clock(pytester: pytest.Pytester, mode: str) -> None:
    pytester.makeini(f"[pytest]\ntrio_mode = {mode}\nfilterwarnings = error\n")
    text = VIRTUAL
    if mode == "false":
        text = text.replace("async def test", "@pytest.mark.trio\nasync def test")
    pytester.makepyfile(text)
    result = run(pytester)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: assert 0.0 == 1",
            "Deadlock: nothing can happen any more, and these tasks wait:",
            "*test_a_deadlock_ends* waits at test_a_virtual_clock.py:*, in test_a_deadlock_ends",
        ]
    )


# The kernel of the suites below. A second cell sees what the first one has left, or doesn't.
KERNEL = """
import pytest
import trio
import trio_subshells as ts
from trio_subshells.testing import check_protocol, explore_schedules

class Counting(ts.Kernel):
    implementation = "counting"
    language_info = ts.LanguageInfo(name="counting")
    subshells = True
    count = 0

    async def execute(self, cell):
        seen = self.count
        await trio.lowlevel.checkpoint()
        self.count = seen + 1
        cell.stdout(str(self.count))

async def count_twice(open_kernel):
    kernel = Counting()
    async with open_kernel(kernel) as at:
        subshell = await at.create_subshell()
        cells = [at.client.execute_soon("", subshell=where) for where in (None, subshell)]
        for cell in cells:
            assert (await cell.done()).status == "ok"
    assert kernel.count == 2

async def count_once(open_kernel):
    async with open_kernel(Counting()) as at:
        assert (await at.client.execute("")).status == "ok"
        check_protocol(at.client)
"""


@pytest.mark.parametrize("mode", ["true", "false"])
def test_a_kernel_is_explored_or_real(pytester: pytest.Pytester, mode: str) -> None:
    pytester.makeini(f"[pytest]\ntrio_mode = {mode}\nfilterwarnings = error\n")
    pytester.makepyfile(
        test_it=KERNEL
        + """
runs = []

async def test_simulated(simulated_kernel):
    runs.append(1)

async def test_real(real_kernel, nursery):
    nursery.start_soon(trio.sleep_forever)
    await count_once(real_kernel)

async def test_both(kernel_under_test):
    await count_once(kernel_under_test)

def test_how_often():
    print(f"ran {len(runs)}")
"""
    )
    # Not in this process: a second pyzmq in it doesn't know the exceptions of its C code.
    result = pytester.runpytest_subprocess(*ARGUMENTS, "-s", "-v", "--schedules", "3")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        ["*::test_both[[]simulated[]] PASSED*", "*::test_both[[]real[]] PASSED*", "*ran 3*"]
    )
    by_default = pytester.runpytest_inprocess(*ARGUMENTS, "-s", "-k", "test_simulated or how_often")
    by_default.stdout.fnmatch_lines(["*ran 50*"])


def test_a_failure_with_a_simulated_kernel_is_told_and_replayed(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it=KERNEL
        + """
async def test_both(kernel_under_test):
    await count_twice(kernel_under_test)
"""
    )
    result = run(suite, "-k", "simulated")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "*assert kernel.count == 2",
            "-*failing schedule*-",
            "Replay it:  pytest 'test_it.py::test_both[[]simulated[]]' --replay '1*'",
        ]
    )
    assert "_plugin.py" not in result.stdout.str()
    _, *arguments = replay_line(result)
    again = run(suite, *arguments)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["Found by replaying a schedule.*"])
    assert replay_line(again)[1:] == arguments


def test_the_fixtures_have_their_place_in_other_tests(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it=KERNEL
        + """
runs = []

@explore_schedules(7)
async def test_decorated(simulated_kernel):
    runs.append(1)
    await count_once(simulated_kernel)

class TestMethods:
    @pytest.mark.parametrize("times", [2])
    async def test_simulated(self, simulated_kernel, virtual_clock, times, tmp_path):
        assert virtual_clock.now == trio.current_time() == 0
        await trio.sleep(3600)
        assert virtual_clock.now == trio.current_time() == 3600
        async with simulated_kernel(Counting()) as at:
            for _ in range(times):
                await at.client.execute("")

def test_how_often():
    print(f"ran {len(runs)}")
"""
    )
    result = run(suite, "-s")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*ran 7*"])


FIXTURES = """
@pytest.fixture
async def kernel(kernel_under_test):
    log.append("begin")
    async with kernel_under_test(Counting()) as kernel:
        yield kernel
    log.append("end")

@pytest.fixture
async def subshell(kernel):
    return await kernel.create_subshell()

@pytest.fixture
def client(kernel, virtual_clock):
    yield kernel.client

log = []

async def test_it(client, subshell, kernel, nursery):
    ticks, ticked = trio.open_memory_channel(1)
    nursery.start_soon(ticks.send, "tick")
    nursery.start_soon(trio.sleep_forever)
    assert await ticked.receive() == "tick"
    assert await kernel.subshells() == [subshell]
    assert (await client.execute("", subshell=subshell)).status == "ok"

async def test_no_other(kernel):
    assert await kernel.subshells() == []

def test_how_often():
    assert log == ["begin", "end"] * (len(log) // 2)
    print(f"made {len(log) // 2}")
"""


def test_fixtures_are_made_anew_in_each_schedule(suite: pytest.Pytester) -> None:
    text = FIXTURES.replace("kernel_under_test", "simulated_kernel")
    suite.makepyfile(test_it=KERNEL + text)
    result = run(suite, "-s", "--schedules", "4")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*made 8*"])


def test_the_same_fixtures_are_real(suite: pytest.Pytester) -> None:
    text = FIXTURES.replace("(kernel, virtual_clock)", "(kernel)")
    suite.makepyfile(test_it=KERNEL + text)
    result = suite.runpytest_subprocess(*ARGUMENTS, "-s", "--schedules", "4")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*made 10*"])


def test_a_failure_with_fixtures_is_told_and_replayed(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it=KERNEL
        + """
@pytest.fixture
async def kernel(simulated_kernel):
    async with simulated_kernel(Counting()) as kernel:
        yield kernel

async def test_it(kernel):
    subshell = await kernel.create_subshell()
    cells = [kernel.client.execute_soon("", subshell=where) for where in (None, subshell)]
    texts = set()
    for cell in cells:
        await cell.done()
        texts.add(cell.text())
    assert texts == {"1", "2"}
"""
    )
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *AssertionError: assert {'1'} == {'1', '2'}"])
    text = result.stdout.str()
    for inside in ("_plugin.py", "_fixtures.py", "contextlib.py"):
        assert inside not in text
    _, *arguments = replay_line(result)
    again = run(suite, *arguments)
    again.assert_outcomes(failed=1)
    assert replay_line(again)[1:] == arguments


def test_a_test_in_the_simulator_has_no_clock_but_that(suite: pytest.Pytester) -> None:
    suite.makepyfile("async def test_clock(simulated_kernel, autojump_clock):\n    pass\n")
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*RuntimeError: each schedule has a virtual clock; * can't have *MockClock* too"]
    )


def test_the_fixtures_work_in_workers(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    suite.makepyfile(
        test_it=KERNEL
        + """
async def test_both(kernel_under_test):
    await count_once(kernel_under_test)

async def test_simulated(simulated_kernel):
    await count_twice(simulated_kernel)
"""
    )
    result = suite.runpytest_subprocess(*ARGUMENTS, "-n", "2", "--schedules", "20")
    result.assert_outcomes(passed=2, failed=1)
    _, *arguments = replay_line(result)
    run(suite, *arguments).assert_outcomes(failed=1)


def test_two_clocks_are_one_too_many(suite: pytest.Pytester) -> None:
    suite.makepyfile("async def test_it(virtual_clock, autojump_clock):\n    pass\n")
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: Expected at most one Clock*"])


def test_the_plugin_is_declared() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert 'trio_subshells = "trio_subshells_pytest"' in project.read_text(encoding="utf-8")
    assert "trio_subshells_pytest" in sys.modules or not IS_INSTALLED
