"""Tests of how `KeyboardInterrupt` gets into a thread, and of what its traceback shows."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import pytest

from trio_subshells.kernel import _raisers
from trio_subshells.kernel._raisers import (
    AsyncRaiser,
    LineRaiser,
    SignalRaiser,
    is_in_machinery,
    without_our_frames,
)


def wait_to_be_hit(raiser: SignalRaiser) -> None:
    raiser.strike()
    time.sleep(10)  # if the strike does not interrupt it, nothing else does


def test_a_strike_is_told_from_a_users_sigint() -> None:
    raiser, interrupts = SignalRaiser(), []
    with raiser.installed(lambda: interrupts.append("by the user")):
        with pytest.raises(KeyboardInterrupt):
            wait_to_be_hit(raiser)
        assert interrupts == []
        signal.raise_signal(signal.SIGINT)
        assert interrupts == ["by the user"]


def test_a_withdrawn_strike_does_not_eat_the_users_sigint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two signals that come soon one after the other are one: so none may be on its way."""
    raiser, interrupts = SignalRaiser(), []
    now = 100.0
    monkeypatch.setattr(_raisers.time, "monotonic", lambda: now)
    with raiser.installed(lambda: interrupts.append("by the user")):
        raiser._pending = True  # a strike whose signal has been merged with another
        raiser.withdraw()
        now += _raisers.ON_ITS_WAY
        signal.raise_signal(signal.SIGINT)
    assert interrupts == ["by the user"]


def test_a_signal_that_finds_machinery_is_missed() -> None:
    """It comes some time after `strike`, and by then the thread may be anywhere."""
    raiser = SignalRaiser()
    machinery: dict[str, Any] = {"__name__": "logging"}
    exec("def call(function): function(); return", machinery)
    ours = {raiser.strike.__code__, raiser._send.__code__}
    with raiser.installed(lambda: None):
        # Without the decorator's mark they run on behalf of their caller, which the signal finds.
        with mock.patch.object(_raisers, "_LIKE_THE_USERS", _raisers._LIKE_THE_USERS - ours):
            machinery["call"](raiser.strike)
        assert raiser.missed
        with pytest.raises(KeyboardInterrupt):
            wait_to_be_hit(raiser)
        assert not raiser.missed


def test_the_traceback_ends_where_the_users_code_was() -> None:
    raiser = SignalRaiser()
    with raiser.installed(lambda: None), pytest.raises(KeyboardInterrupt) as hit:
        wait_to_be_hit(raiser)
    assert hit.value.__traceback__ is not None
    names = [frame.name for frame in traceback.extract_tb(hit.value.__traceback__)]
    assert names[-1] == "handle"  # our signal handler
    frames = without_our_frames(hit.value.__traceback__, None)
    assert [frame.name for frame in traceback.extract_tb(frames)][-1] == "wait_to_be_hit"


def test_the_frames_that_ran_the_code_are_left_out() -> None:
    def users_code() -> None:
        raise ZeroDivisionError

    runner: dict[str, Any] = {"__package__": "the_runner"}
    exec("def run(code): code()", runner)
    with pytest.raises(ZeroDivisionError) as error:
        runner["run"](users_code)
    here = error.value.__traceback__
    assert here is not None
    ran = here.tb_next  # this test's own frame is in front
    assert [frame.name for frame in traceback.extract_tb(ran)] == ["run", "users_code"]
    left = without_our_frames(ran, "the_runner")
    assert [frame.name for frame in traceback.extract_tb(left)] == ["users_code"]


#: One thread looks again and again whether another may be struck, and each time garbage is
#: collected, which runs code; meanwhile other threads end.
STRIKES_WHILE_THREADS_END = """
import gc, sys, threading
from trio_subshells.kernel._raisers import AsyncRaiser
sys.setswitchinterval(1e-6)
gc.set_threshold(5)
raisers, over, done = [], threading.Event(), threading.Event()
def target():
    # What runs here seems to be trio's, and so is never struck.
    exec("raisers.append(AsyncRaiser())\\nwhile not done.is_set(): pass", trio)
trio = {"__name__": "trio", "AsyncRaiser": AsyncRaiser, "raisers": raisers, "done": done}
def ends():
    for _ in range(300):
        threads = [threading.Thread(target=int) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    over.set()
class Garbage:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        for _ in range(50):
            pass
threads = [threading.Thread(target=function) for function in (target, ends)]
for thread in threads:
    thread.start()
while not raisers:
    pass
struck = False
while not over.is_set():
    Garbage()
    struck |= raisers[0].strike()
done.set()
for thread in threads:
    thread.join()
print("struck" if struck else "ended")
"""


def test_a_strike_stops_no_thread_that_ends() -> None:
    """A lock of the interpreter's, taken while code may run, stops every thread (#106883)."""
    program = [sys.executable, "-c", STRIKES_WHILE_THREADS_END]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("ended\n", "", 0)


def test_a_strike_waits_until_a_new_thread_runs() -> None:
    """It has its starter's identifier until it runs; struck, it never would."""
    raisers: list[AsyncRaiser] = []
    begins, lets_it_begin = threading.Event(), threading.Event()

    class Late(threading.Event):
        def set(self) -> None:
            begins.set()
            lets_it_begin.wait()
            super().set()

    def starts() -> None:
        raisers.append(AsyncRaiser())
        late = threading.Thread(target=int)
        late._started = Late()  # type: ignore[attr-defined]
        late.start()
        late.join()

    thread = threading.Thread(target=starts)
    thread.start()
    begins.wait()
    try:
        assert not raisers[0].strike()
    finally:
        lets_it_begin.set()
        thread.join()


#: What looks for something to be raised, before it enters a traced function.
WITHDRAWN_AND_TRACED = """
import sys
from trio_subshells.kernel._raisers import AsyncRaiser
AsyncRaiser().withdraw()
sys.settrace(lambda *arguments: None)
(lambda: print("entered"))()
"""


def test_what_is_withdrawn_is_not_looked_for_ever_after() -> None:
    """CPython 3.11 does, and never enters a function that a debugger traces."""
    program = [sys.executable, "-c", WITHDRAWN_AND_TRACED]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("entered\n", "", 0)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there is nothing to be raised there")
def test_what_is_withdrawn_stays_so_though_a_signal_comes_meanwhile() -> None:
    """What its handler raises comes first, and what else is to be raised would be raised next."""
    to_be_raised: list[Any] = []

    def raise_in(thread: int, what: Any) -> None:
        to_be_raised[:] = [] if what is _raisers._NOTHING else [what]
        if to_be_raised:
            raise KeyboardInterrupt

    with mock.patch.object(_raisers, "_raise_in", raise_in), pytest.raises(KeyboardInterrupt):
        AsyncRaiser().withdraw()
    assert to_be_raised == []


def test_what_is_made_for_a_traceback_only_is_not_struck() -> None:
    """Such a frame is what Cython's extensions for several versions of Python make (pyzmq's)."""
    made = compile("_getframe()", "an_extension.py", "eval")
    assert is_in_machinery(eval(made, {"_getframe": sys._getframe}))
    assert not is_in_machinery(eval("f()", {"f": sys._getframe}))


def wanted_everywhere(frame: FrameType) -> type[KeyboardInterrupt]:
    return KeyboardInterrupt


if sys.version_info >= (3, 12):

    def tools() -> list[str | None]:
        return [sys.monitoring.get_tool(number) for number in range(6)]

    @pytest.fixture
    def tools_are_as_before() -> Iterator[None]:
        before = tools()
        yield
        assert tools() == before

    pytestmark = pytest.mark.usefixtures("tools_are_as_before")

    def counting() -> int:
        count = 0
        count += 1
        return count

    def counting_too() -> int:
        return counting()

    def test_it_strikes_before_a_line() -> None:
        raiser = LineRaiser(wanted_everywhere)
        assert raiser.begin([counting.__code__])
        with pytest.raises(KeyboardInterrupt) as hit:
            counting_too()
        raiser.end([counting.__code__])
        assert counting_too() == 1
        frames = without_our_frames(hit.value.__traceback__, None)
        assert [frame.name for frame in traceback.extract_tb(frames)][-1] == "counting"

    def test_it_strikes_in_what_runs_already() -> None:
        raiser = LineRaiser(wanted_everywhere)

        def begin_here() -> None:
            raiser.begin([begin_here.__code__])
            pytest.fail("this line is not to be run")

        with pytest.raises(KeyboardInterrupt):
            begin_here()
        raiser.end([begin_here.__code__])

    def test_it_asks_whether_to_strike() -> None:
        frames: list[tuple[CodeType, int]] = []

        def wanted(frame: FrameType) -> type[KeyboardInterrupt] | None:
            frames.append((frame.f_code, frame.f_lineno))
            return None

        raiser = LineRaiser(wanted)
        raiser.begin([counting.__code__])
        assert counting() == 1
        raiser.end([counting.__code__])
        first = counting.__code__.co_firstlineno
        assert frames == [(counting.__code__, first + number) for number in (1, 2, 3)]

    def test_it_tells_code_from_code_that_is_equal() -> None:
        source = compile("def f():\n    return 1\n", "twins.py", "exec")
        first: dict[str, Any] = {}
        exec(source, first)
        second: dict[str, Any] = {}
        exec(compile("def f():\n    return 1\n", "twins.py", "exec"), second)
        assert first["f"].__code__ == second["f"].__code__
        raiser = LineRaiser(wanted_everywhere)
        raiser.begin([first["f"].__code__])
        assert second["f"]() == 1
        raiser.begin([second["f"].__code__])
        raiser.end([first["f"].__code__])
        assert first["f"]() == 1
        with pytest.raises(KeyboardInterrupt):
            second["f"]()
        raiser.end([second["f"].__code__])

    def test_it_goes_on_until_everybody_has_ended_it() -> None:
        raiser = LineRaiser(wanted_everywhere)
        raiser.begin([counting.__code__])
        raiser.begin([counting.__code__])
        raiser.end([counting.__code__])
        with pytest.raises(KeyboardInterrupt):
            counting()
        raiser.end([counting.__code__])
        assert counting() == 1

    def test_it_does_without_where_others_have_all_the_tools() -> None:
        free = [number for number, name in enumerate(tools()) if name is None]
        for number in free:
            sys.monitoring.use_tool_id(number, "somebody else's")
        raiser = LineRaiser(wanted_everywhere)
        assert not raiser.begin([counting.__code__])
        assert counting() == 1
        for number in free:
            sys.monitoring.free_tool_id(number)

    def test_a_user_who_frees_what_is_not_theirs_does_no_harm() -> None:
        before = tools()
        raiser = LineRaiser(wanted_everywhere)
        raiser.begin([counting.__code__])
        (ours,) = [number for number in range(6) if tools()[number] != before[number]]
        sys.monitoring.free_tool_id(ours)
        raiser.end([counting.__code__])
        assert raiser.begin([counting.__code__])
        with suppress(KeyboardInterrupt):
            counting()
        raiser.end([counting.__code__])
        assert counting() == 1

else:

    def test_there_is_none_before_python_312() -> None:
        raiser = LineRaiser(wanted_everywhere)
        code = test_there_is_none_before_python_312.__code__
        assert not raiser.begin([code])
        raiser.end([code])
