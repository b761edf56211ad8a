"""Tests of how `KeyboardInterrupt` gets into a thread, and of what its traceback shows."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any
from unittest import mock

import pytest

from trio_subshells.kernel import _raisers
from trio_subshells.kernel._raisers import AsyncRaiser, SignalRaiser, without_our_frames


def wait_to_be_hit(raiser: SignalRaiser) -> None:
    raiser.strike()
    time.sleep(60)  # a hang, if the strike doesn't interrupt it


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
    strike = raiser.strike.__code__
    with raiser.installed(lambda: None):
        # Without the decorator's mark it runs on behalf of its caller, where the signal finds it.
        with mock.patch.object(_raisers, "_LIKE_THE_USERS", _raisers._LIKE_THE_USERS - {strike}):
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
