"""The end of a kernel's process, step by step; that it comes to one is in tests/process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from trio_subshells.kernel import _leftovers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="children are not found there")


class Children:
    """Who there is, as if they were the process's children; nobody waits for them in real time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there: list[str] = []
        self.sent: list[tuple[int, list[str]]] = []
        self.waits: list[list[str]] = []
        """Who is there after each wait."""
        monkeypatch.setattr(_leftovers, "_children", lambda: list(self.there))
        monkeypatch.setattr(_leftovers, "_gone_within", self._gone_within)
        monkeypatch.setattr(_leftovers, "send", lambda *args: self.sent.append(args))

    def _gone_within(self, seconds: float) -> bool:
        self.there = self.waits.pop(0)
        return not self.there


def test_it_is_those_who_are_left_that_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those who were there before the wait: one that has gone may have left another."""
    children = Children(monkeypatch)
    children.there = ["shell", "deaf"]
    children.waits = [["deaf", "started by shell"], []]
    _leftovers.kill_children()
    assert children.sent == [(signal.SIGKILL, ["deaf", "started by shell"])]


def test_who_obeys_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(monkeypatch)
    children.waits = [[]]
    _leftovers.kill_children()
    assert children.sent == []


@pytest.mark.parametrize("stuck", [False, True])
def test_handlers_that_hold_up_the_end_are_not_run_again(
    stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is threads that do, nobody has run the handlers yet."""
    left: list[tuple[int, bool]] = []
    may_end = threading.Event()

    @contextmanager
    def thread() -> Iterator[None]:
        other = threading.Thread(target=may_end.wait)
        other.start()
        yield
        may_end.set()
        other.join()

    def leave(code: int, *, handlers: bool = True) -> None:
        left.append((code, handlers))

    monkeypatch.setattr(_leftovers, "leave_at_once", leave)
    monkeypatch.setattr(_leftovers.time, "sleep", lambda seconds: None)
    with thread():
        others = threading.enumerate() if stuck else [threading.main_thread()]
        monkeypatch.setattr(_leftovers.threading, "enumerate", lambda: others)
        _leftovers._leave_in_time(3)
    assert left == [(3, stuck)]


class Tracker:
    """`multiprocessing`'s, of which only the end is told."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self.told: list[str] = []

    def _stop(self) -> None:
        self.told.append("the tracker is waited for")


def test_the_servant_of_multiprocessing_ends_after_those_whom_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends when nobody has its pipe any more: who waits for it before that waits for ever."""
    tracker, children = Tracker(4321), Children(monkeypatch)
    children.there = ["started at the end"]
    monkeypatch.setattr(_leftovers, "_resource_tracker", lambda: tracker)
    monkeypatch.setattr(_leftovers, "send", lambda *args: tracker.told.append("they are killed"))
    monkeypatch.setattr(_leftovers.os, "waitpid", lambda *args: (0, 0))
    _leftovers._end_the_rest()
    assert tracker.told == ["they are killed", "the tracker is waited for"]


def test_the_servant_of_multiprocessing_is_no_child_to_be_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cleans up what they have shared."""
    there = [SimpleNamespace(pid=pid) for pid in (4320, 4321)]
    monkeypatch.setattr(_leftovers, "_resource_tracker", lambda: Tracker(4321))
    monkeypatch.setattr(_leftovers, "leftovers", lambda: there)
    assert _leftovers._children() == there[:1]


def test_who_is_there_when_the_time_is_up_has_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([["deaf"], ["deaf"], [], ["deaf"]])
    now = iter(range(9))
    monkeypatch.setattr(_leftovers, "_children", lambda: next(looks))
    monkeypatch.setattr(
        _leftovers, "time", SimpleNamespace(monotonic=lambda: next(now), sleep=lambda seconds: None)
    )
    assert _leftovers._gone_within(5)
    assert not _leftovers._gone_within(0)
