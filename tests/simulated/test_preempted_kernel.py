"""What a kernel's threads share, used by several of them at once, any of which may be stopped.

Each test is the contract of one module: whatever comes between two of its statements.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import trio

from trio_subshells.actors import Promise
from trio_subshells.kernel import _guard, _parent, _raisers
from trio_subshells.kernel._channels import ClientSocket, error_content
from trio_subshells.kernel._failures import SUMMARY_INTERVAL, Failures
from trio_subshells.kernel._guard import (
    CellEnded,
    CellGuard,
    EndReason,
    checkpoint_if_ending,
    exposed,
    protected,
)
from trio_subshells.kernel._ladder import end_cells
from trio_subshells.kernel._output import Outlet, OutputPort
from trio_subshells.kernel._parent import VARIABLE, parent_death
from trio_subshells.kernel._pending import AnswerRight, Execution, PendingTable
from trio_subshells.kernel._raisers import SignalRaiser
from trio_subshells.kernel._terminate import Terminator
from trio_subshells.sockets import Ledger, _ledger
from trio_subshells.testing import explore_schedules
from trio_subshells.wire import WireSession

from .kernels import Flag
from .lines import before_a_line
from .threads import in_threads, run_cell, some_steps

# ------------------------------------------------------------------------------ the right to answer


class _Party:
    """One who may answer a request; what it does returns whether it has taken the right to."""

    def __init__(self, right: AnswerRight) -> None:
        self._right = right

    def serve(self) -> bool:
        if not self._right.begin(mock.create_autospec(OutputPort)):
            return False
        self._right.begun()
        return self._right.settle()

    def settle(self) -> bool:
        return self._right.settle()

    def give_up(self) -> bool:
        return self._right.give_up() is not None


@pytest.mark.parametrize(
    "others",
    list(itertools.combinations_with_replacement((_Party.settle, _Party.give_up), 2)),
    ids=lambda others: "-".join(each.__name__ for each in others),
)
@explore_schedules(100, preempt=["trio_subshells.kernel._pending"])
async def test_a_request_is_answered_once(others: Sequence[Callable[[_Party], bool]]) -> None:
    party = _Party(AnswerRight())
    have: list[bool] = []

    async def answer(how: Callable[[_Party], bool]) -> None:
        have.append(how(party))

    await in_threads(
        serves=partial(answer, _Party.serve),
        one=partial(answer, others[0]),
        other=partial(answer, others[1]),
    )
    assert sorted(have) == [False, False, True]
    assert not party.settle()
    assert not party.serve()


@pytest.mark.parametrize("how", ["display", "print"])
@explore_schedules(400, preempt=["trio_subshells.kernel._pending", "trio_subshells.kernel._output"])
async def test_nothing_is_heard_of_a_cell_after_its_idle_though_it_goes_on(how: str) -> None:
    said: list[str] = []
    begun, is_given_up = Flag(), Flag()

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            content = json.loads(frames[-1])
            said.append(content.get("execution_state") or content.get("ename", "output"))

    session = WireSession(b"")
    port = OutputPort(session, Publisher(), lambda port: None)
    table = PendingTable(session, mock.create_autospec(ClientSocket), port)
    pending = table.enter(session.message("execute_request", {"code": ""}))

    async def goes_on() -> None:
        outlet = Outlet(port, pending.request.header)
        pending.right.begin(port)
        port.status("busy", outlet.parent)
        pending.right.execution = Execution(1, outlet, silent=False, stop_on_error=True)
        pending.right.begun()
        begun.set()
        for _ in range(3):
            if how == "print":
                outlet.stream("stdout", "text")
            else:
                outlet.publish("display_data", {})
            await trio.lowlevel.checkpoint()
        await is_given_up.wait()
        assert not pending.right.settle()

    async def gives_up() -> None:
        await begun.wait()
        table.give_up(pending, error_content("CellTimeout", "it can't be ended"), {})
        is_given_up.set()

    await in_threads(goes_on=goes_on, gives_up=gives_up)
    port.flush()
    assert (said[0], said[-1]) == ("busy", "idle")
    assert (said.count("CellTimeout"), said.count("idle")) == (1, 1)


# ------------------------------------------------------------------------------------------- cells


class _Raiser:
    """Notes whether something is still to be raised."""

    missed = False

    def __init__(self) -> None:
        self.is_pending = False

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        self.is_pending = True
        return True

    def strike_on(self) -> None:
        """It is pending already."""

    def withdraw(self) -> None:
        self.is_pending = False


class _Ender:
    """One who is to end the first cell of a guard, and nothing else."""

    def __init__(self) -> None:
        self.guard = CellGuard()
        self.raiser = _Raiser()
        self.begun, self.coming = Flag(), Flag()
        self.closing = self.has_closed = False
        self._within_block = False
        self._told: Promise[None] | None = None
        self._struck = threading.Event()
        """What the first cell blocks its thread for, if it is to be struck."""
        self._struck.set()

    async def runs_first(self) -> None:
        """The first cell, which ends by itself."""
        assert not self.has_closed
        self._within_block = True
        with self.guard.canceller(self._canceller):
            self.begun.set()
            await self.coming.wait()
            await some_steps(1)
        self._within_block = False
        self._struck.wait()

    async def runs_second(self) -> None:
        """The second one, which fails by itself, and late."""
        assert not self.has_closed
        assert self._told is None or self._told.resolved, "the first one has ended"
        with self.guard.canceller(self._canceller_of_the_second):
            await trio.sleep(1)
        raise ValueError("its own")

    def _canceller_of_the_second(self) -> None:
        raise AssertionError("nobody wants to end the second one")

    def _canceller(self) -> None:
        assert self._within_block, "called when its block has been left"

    async def watch(self) -> None:
        ended = self._told = self.guard.watch(1)
        if ended is not None:
            await ended.wait()
        self._check_that_it_has_ended()

    async def begin_end(self) -> None:
        ended = self._told = self.guard.begin_end(1, EndReason.INTERRUPTED)
        if ended is not None:
            await ended.wait()
        self._check_that_it_has_ended()

    def _check_that_it_has_ended(self) -> None:
        assert (self.guard.generation, self.guard.running is None) != (1, False)

    async def call_cancellers(self) -> None:
        for canceller in self.guard.cancellers(1):
            canceller()

    async def cancel(self) -> None:
        self.guard.cancel(1)

    async def lift_shields(self) -> None:
        self.guard.cancel(1, lift_shields=True)

    async def strike(self) -> None:
        self._struck.clear()
        self.guard.begin_end(1, EndReason.INTERRUPTED)
        await some_steps(2)
        self._struck.set()
        self.guard.strike(1)

    async def strike_each_once(self) -> None:
        self._struck.clear()
        self.guard.begin_end(1, EndReason.INTERRUPTED)
        await some_steps(2)
        self._struck.set()
        while not self.guard.strike_each_once(1):  # noqa: ASYNC110 -- as the ladder does
            await trio.sleep(0.01)

    async def close(self) -> None:
        self.closing = True
        self.guard.close(EndReason.DELETED)
        generation = self.guard.generation
        if self.guard.running is not None:
            ended = self.guard.begin_end(generation, EndReason.DELETED)
            self.guard.begin_end(generation, EndReason.INTERRUPTED)  # which comes too late
            self.guard.cancel(generation)
            if ended is not None:
                await ended.wait()
        assert self.guard.running is None
        self.has_closed = True
        self.guard.strike_leftovers()


_ENDING = (
    *(_Ender.watch, _Ender.begin_end, _Ender.call_cancellers, _Ender.cancel, _Ender.lift_shields),
    *(_Ender.strike, _Ender.strike_each_once, _Ender.close),
)


@pytest.mark.parametrize("steps", [0, 1], ids=["before", "at"])
@pytest.mark.parametrize("end", _ENDING, ids=lambda end: end.__name__)
@explore_schedules(600, preempt=["trio_subshells.kernel._guard"])
async def test_a_cell_is_ended_and_not_the_next_one(
    end: Callable[[_Ender], Awaitable[None]], steps: int
) -> None:
    """Neither if that comes a step before its end, nor if it comes at that moment."""
    ender = _Ender()
    guard = ender.guard
    ended_by: set[EndReason] = set()

    async def runs() -> None:
        for what, cell in enumerate((ender.runs_first, ender.runs_second, ender.runs_first), 1):
            try:
                await run_cell(guard, cell, ender.raiser, what=what)
                assert cell == ender.runs_first
            except ValueError:
                assert cell == ender.runs_second
            except CellEnded as ended:
                ended_by.add(ended.reason)
                assert ender.closing or what == 1
            assert not ender.raiser.is_pending, "to be raised when the cell has ended"

    async def ends() -> None:
        if end is not _Ender.close:
            await ender.begun.wait()
        ender.coming.set()
        await some_steps(steps)
        await end(ender)

    await in_threads(runs=runs, ends=ends)
    assert ended_by <= {EndReason.DELETED if ender.closing else EndReason.INTERRUPTED}
    assert (guard.closed is not None) == ender.closing
    if ender.closing:
        with pytest.raises(CellEnded):
            await run_cell(guard, ender.runs_first, ender.raiser, what=9)


@explore_schedules(150, preempt=["trio_subshells.kernel._ladder", "trio_subshells.kernel._guard"])
async def test_who_waits_for_a_cell_that_is_ended_too_goes_no_further() -> None:
    """When the end of the one is seen, the other has been told that it is to end as well."""
    inner, outer = CellGuard(), CellGuard()
    inner_begun, outer_begun, inner_ended = Flag(), Flag(), Flag()
    went_on: list[bool] = []

    async def inner_cell() -> None:
        inner_begun.set()
        try:
            await trio.sleep_forever()
        finally:
            inner_ended.set()

    async def outer_cell() -> None:
        outer_begun.set()
        await inner_ended.wait()
        await checkpoint_if_ending()
        went_on.append(True)

    async def runs(guard: CellGuard, cell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with pytest.raises(CellEnded):
            await run_cell(guard, cell, _Raiser())

    async def ends() -> None:
        await inner_begun.wait()
        await outer_begun.wait()
        cells = [(guard, guard.generation) for guard in (inner, outer)]
        assert await end_cells(cells, EndReason.INTERRUPTED, deadline=math.inf) == [True, True]

    await in_threads(
        inner=partial(runs, inner, inner_cell), outer=partial(runs, outer, outer_cell), ends=ends
    )
    assert not went_on


@explore_schedules(150, preempt=["trio_subshells.kernel._guard"])
async def test_pieces_of_a_cell_come_and_go_while_it_is_struck() -> None:
    guard, raiser, begun = CellGuard(), _Raiser(), Flag()

    async def cell() -> None:
        begun.set()
        for _ in range(4):
            with ExitStack() as pieces:
                for _ in range(4):
                    await trio.lowlevel.checkpoint()
                    pieces.callback(guard.expose(1, raiser).close)

    async def runs() -> None:
        await run_cell(guard, cell, raiser)

    async def strikes() -> None:
        await begun.wait()
        for _ in range(8):
            guard.strike(1)
            guard.strike_each_once(1)
            await trio.lowlevel.checkpoint()

    await in_threads(runs=runs, strikes=strikes)


@explore_schedules(150, preempt=["trio_subshells.kernel._guard"])
async def test_what_strikes_in_a_protected_block_is_raised_once() -> None:
    """At its end; who catches it there isn't struck for it again, at the end of the next one."""
    guard, raiser, begun = CellGuard(), _Raiser(), Flag()
    struck: list[bool] = []
    caught: list[int] = []

    async def cell() -> None:
        begun.set()
        for block in range(6):
            try:
                with protected():
                    assert not raiser.is_pending, "to be raised within the block"
                    if block % 2:
                        await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                caught.append(block)

    async def runs() -> None:
        with suppress(CellEnded):
            await run_cell(guard, cell, raiser)

    async def strikes() -> None:
        await begun.wait()
        struck.append(guard.strike(1))

    await in_threads(runs=runs, strikes=strikes)
    assert len(caught) <= (not struck[0])


class _Choosy(_Raiser):
    """Refuses every other strike: its thread is in something that is not to be torn apart."""

    def __init__(self) -> None:
        super().__init__()
        self._refuses = True

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        self._refuses = not self._refuses
        return not self._refuses and super().strike(error)


@pytest.mark.parametrize("firmly", [False, True], ids=["once", "firmly"])
@explore_schedules(60, preempt=["trio_subshells.kernel._guard"])
async def test_what_was_raised_is_withdrawn_though_the_next_strike_was_refused(
    firmly: bool,
) -> None:
    guard, raiser, begun, goes_on = CellGuard(), _Choosy(), Flag(), threading.Event()

    async def cell() -> None:
        begun.set()
        goes_on.wait()

    async def runs() -> None:
        with suppress(CellEnded):
            await run_cell(guard, cell, raiser)
        assert not raiser.is_pending, "to be raised when the cell has ended"

    async def strikes() -> None:
        await begun.wait()
        for _ in range(2):
            guard.strike(1, firmly=firmly)
        goes_on.set()

    await in_threads(runs=runs, strikes=strikes)


@explore_schedules(800, preempt=["trio_subshells.kernel._guard"])
async def test_nothing_is_raised_once_it_has_been_withdrawn() -> None:
    guard, raiser, begun, goes_on = CellGuard(), _Raiser(), Flag(), threading.Event()

    async def cell() -> None:
        begun.set()
        goes_on.wait()

    async def runs() -> None:
        with suppress(KeyboardInterrupt, CellEnded):
            await run_cell(guard, cell, raiser)

    async def strikes() -> None:
        await begun.wait()
        goes_on.set()
        guard.strike(1)

    await in_threads(runs=runs, strikes=strikes)
    assert not raiser.is_pending


@explore_schedules(500, preempt=["trio_subshells.kernel._guard"])
async def test_nothing_is_raised_in_a_worker_once_it_has_returned() -> None:
    """A worker thread has more to do: what is raised there would hit trio, or what comes next."""
    guard, of_worker, begun = CellGuard(), _Raiser(), Flag()

    async def cell() -> None:
        begun.set()
        for _ in range(6):
            exposed(_raises_nothing)()
            assert not of_worker.is_pending
            await trio.lowlevel.checkpoint()

    async def runs() -> None:
        with mock.patch.object(_guard, "AsyncRaiser", return_value=of_worker):
            await run_cell(guard, cell, _Raiser())

    async def strikes() -> None:
        await begun.wait()
        for _ in range(6):
            guard.strike(1)
            await trio.lowlevel.checkpoint()

    await in_threads(runs=runs, strikes=strikes)


def _raises_nothing() -> None:
    """What a cell has done in a worker thread."""


@explore_schedules(300, preempt=["trio_subshells.kernel._guard"])
async def test_who_sleeps_is_woken_by_a_strike_whenever_it_comes() -> None:
    """Who strikes may find that it is about to sleep, or to wake."""
    guard, raiser, begun = CellGuard(), _Raiser(), Flag()

    async def cell() -> None:
        begun.set()
        for _ in range(3):
            _sleep_in(guard)

    async def runs() -> None:
        with suppress(CellEnded):
            await run_cell(guard, cell, raiser)

    async def strikes() -> None:
        await begun.wait()
        for _ in range(3):
            guard.strike(1)
            await trio.lowlevel.checkpoint()

    await in_threads(runs=runs, strikes=strikes)


def _sleep_in(guard: CellGuard) -> None:
    (exposure,) = guard._exposures
    exposure.sleep(0)


@explore_schedules(800, preempt=["trio_subshells.kernel._guard"])
async def test_an_interrupt_never_renames_the_end_of_a_subshell() -> None:
    """Whichever came first: it is the end of the subshell that clients hear of."""
    guard, begun = CellGuard(), Flag()
    ended_by: list[EndReason] = []

    async def cell() -> None:
        begun.set()
        await trio.sleep_forever()

    async def runs() -> None:
        try:
            await run_cell(guard, cell, _Raiser())
        except CellEnded as ended:
            ended_by.append(ended.reason)

    async def interrupts() -> None:
        await begun.wait()
        guard.begin_end(1, EndReason.INTERRUPTED)

    async def deletes() -> None:
        await begun.wait()
        guard.close(EndReason.DELETED)

    async def ends() -> None:
        await in_threads(interrupts=interrupts, deletes=deletes)
        guard.cancel(1)

    await in_threads(runs=runs, ends=ends)
    assert ended_by == [EndReason.DELETED]


# ------------------------------------------------------------------------------------------ output


@explore_schedules(200, preempt=["trio_subshells.kernel._output"])
async def test_whatever_is_written_is_sent() -> None:
    """In time, in its order, and once; but not after the end."""
    sent: list[str] = []
    timers: list[OutputPort] = []
    timed = Flag()
    writing = ["a", "b"]

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            content = json.loads(frames[-1])
            sent.append(content.get("text") or content["execution_state"])

    def later(output: OutputPort) -> None:
        timers.append(output)
        timed.set()

    port = OutputPort(WireSession(b""), Publisher(), later)

    async def writes(name: str) -> None:
        for number in range(2):
            port.stream("stdout", f"{name}{number}", None)
            await trio.lowlevel.checkpoint()
        port.status(f"({name})", None)
        text = "".join(sent)
        assert text.index(f"{name}0") < text.index(f"{name}1") < text.index(f"({name})")
        port.stream("stdout", f"{name}2", None)
        await trio.lowlevel.checkpoint()
        port.stream("stdout", f"{name}3", None)
        port.flush()
        text = "".join(sent)
        assert text.index(f"({name})") < text.index(f"{name}2") < text.index(f"{name}3")
        writing.remove(name)

    async def tells_the_time() -> None:
        while writing or timers:
            await trio.sleep(0.01)
            while timers:
                timers.pop().time_is_up()

    await in_threads(a=partial(writes, "a"), b=partial(writes, "b"), tells_the_time=tells_the_time)
    everything = "".join(sent)
    for name in "ab":
        for text in (f"{name}0", f"{name}1", f"({name})", f"{name}2", f"{name}3"):
            assert everything.count(text) == 1
    port.stream("stdout", "last", None)
    port.close()
    assert sent[-1] == "last"
    port.stream("stdout", "late", None)
    port.flush()
    assert sent[-1] == "last"
    statistics = port.statistics()
    assert (statistics.messages, statistics.late) == (len(sent), 1)


@explore_schedules(300, preempt=["trio_subshells.kernel._output"])
async def test_what_is_written_as_the_time_is_up_is_sent() -> None:
    sent: list[str] = []
    timers: list[OutputPort] = []

    class Publisher:
        def publish(self, frames: Sequence[bytes]) -> None:
            sent.append(json.loads(frames[-1])["text"])

    port = OutputPort(WireSession(b""), Publisher(), timers.append)

    async def writes() -> None:
        for text in "ab":
            port.stream("stdout", text, None)
            await trio.lowlevel.checkpoint()

    async def tells_the_time() -> None:
        for _ in range(3):
            if timers:
                timers.pop().time_is_up()
            await trio.lowlevel.checkpoint()

    await in_threads(writes=writes, tells_the_time=tells_the_time)
    while timers:
        timers.pop().time_is_up()
    assert "".join(sent) == "ab"


@explore_schedules(300, preempt=["trio_subshells.sockets._ledger"])
async def test_what_all_publishers_are_lent_is_counted() -> None:
    """Who is lent something, and who lets go of it, are threads that know nothing of each other."""
    ledger = Ledger(math.inf)

    async def is_lent() -> None:
        message = ledger.lent([b"frame"], 20)
        await trio.lowlevel.checkpoint()
        del message

    # A frame of libzmq's would be let go of in a thread that isn't simulated.
    with mock.patch.object(_ledger, "zmq", SimpleNamespace(Frame=lambda loan, copy: loan)):
        await in_threads(a=is_lent, b=is_lent, c=is_lent)
    assert ledger.held == 0


@explore_schedules(150, preempt=["trio_subshells.sockets._ledger"])
async def test_the_alarm_rings_once_at_each_crossing() -> None:
    """Whoever it is that crosses, of those who are lent something at the same time."""
    rung: list[None] = []
    lent: list[object] = []
    ledger = Ledger(math.inf, 25, lambda: rung.append(None))

    async def is_lent() -> None:
        lent.append(ledger.lent([b"frame"], 10))

    with mock.patch.object(_ledger, "zmq", SimpleNamespace(Frame=lambda loan, copy: loan)):
        for crossings in (1, 2):
            await in_threads(a=is_lent, b=is_lent, c=is_lent)
            assert ledger.held == 30
            assert len(rung) == crossings
            lent.clear()
            assert ledger.held == 0


# ---------------------------------------------------------------------------------------- failures


class _Lines(logging.Handler):
    """How many failures have been told of; each line takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.args, tuple)
        self.told += record.args[1] if "more" in record.msg else 1  # type: ignore[operator]


@explore_schedules(150, preempt=["trio_subshells.kernel._failures"])
async def test_each_failure_is_told_of() -> None:
    failures = Failures()
    lines = _Lines()
    log = logging.getLogger("trio_subshells.kernel")

    async def fails() -> None:
        for _ in range(2):
            failures.add("a handler", ValueError("as was wanted"))
            await trio.sleep(SUMMARY_INTERVAL)

    async def tells() -> None:
        with trio.move_on_after(math.inf) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(failures.tell)
                await trio.sleep(4 * SUMMARY_INTERVAL)
                scope.cancel()

    log.addHandler(lines)
    try:
        await in_threads(one=fails, other=fails, tells=tells)
    finally:
        log.removeHandler(lines)
    count = sum(entry.untold for entry in failures._entries.values())
    assert lines.told + count == 4


# ----------------------------------------------------------------------------------------- signals


@explore_schedules(300, preempt=["trio_subshells.kernel._terminate"])
async def test_the_signal_is_told_to_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    terminator = Terminator()

    async def comes() -> None:
        terminator._calls += 1
        terminator._look()

    await in_threads(waits=terminator.wait, comes=comes)


@pytest.mark.skipif(sys.platform == "win32", reason="the parent is a handle there")
@pytest.mark.parametrize("told", [4321, 1234], ids=["the parent", "another one"])
@explore_schedules(40, preempt=["trio_subshells.kernel._parent"])
async def test_the_end_of_the_parent_is_noticed_however_early(
    monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    """It may have come before anybody has looked who that is. A script may be in between."""
    parent = 4321
    monkeypatch.setenv(VARIABLE, str(told))
    monkeypatch.setattr(_parent.os, "getppid", lambda: parent)

    async def waits() -> None:
        with trio.fail_after(60):
            await parent_death()
        assert parent == 1

    async def ends() -> None:
        nonlocal parent
        parent = 1  # who adopts orphans

    await in_threads(waits=waits, ends=ends)


class Signals:
    """Stand in for the system: a signal waits until it `comes`; two that wait are one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._handlers: list[Any] = [signal.default_int_handler]
        self._waits = False
        monkeypatch.setattr(_raisers.signal, "signal", self._install)
        monkeypatch.setattr(_raisers.signal, "pthread_kill", self._send, raising=False)
        monkeypatch.setattr(_raisers, "_withdraw", lambda thread: None)

    def _install(self, number: int, handler: Any) -> Any:
        self._handlers.append(handler)
        return self._handlers[-2]

    def _send(self, *_: object) -> None:
        self._waits = True

    def comes(self) -> None:
        """The main thread handles it, if there is one."""
        if self._waits:
            self._waits = False
            self._handlers[-1](signal.SIGINT, None)


@explore_schedules(60)
async def test_our_signal_is_never_the_users_though_it_comes_as_it_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals, raiser = Signals(monkeypatch), SignalRaiser()
    interrupts: list[str] = []
    with raiser.installed(lambda: interrupts.append("by the user")):
        raiser.strike()
        with before_a_line(_raisers, 8, "the signal", signals.comes), suppress(KeyboardInterrupt):
            raiser.withdraw()
    assert not interrupts


@explore_schedules(60)
async def test_our_signal_strikes_once_though_it_comes_as_it_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals, raiser = Signals(monkeypatch), SignalRaiser()
    interrupts: list[str] = []

    def comes() -> None:
        try:
            signals.comes()
        except KeyboardInterrupt:
            interrupts.append("by us")

    with raiser.installed(lambda: interrupts.append("by the user")):
        raiser.strike()
        with before_a_line(_raisers, 8, "a signal", comes, times=2):
            raiser.strike_on()
        comes()
    assert interrupts == ["by us"]
