"""What threads settle between them under locks: who comes first, and that nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from unittest import mock

import outcome
import pytest
import trio

from trio_subshells import actors
from trio_subshells.actors import Promise, _hosts, _promise, _queue, _supervision
from trio_subshells.kernel import _guard, _output, _pending, _terminate
from trio_subshells.kernel._guard import CellEnded, CellGuard, EndReason
from trio_subshells.kernel._output import OutputPort
from trio_subshells.kernel._parent import VARIABLE
from trio_subshells.kernel._pending import AnswerRight
from trio_subshells.kernel._terminate import Terminator
from trio_subshells.testing import explore_schedules
from trio_subshells.wire import WireSession

from .kernels import Flag
from .threads import Caller, in_threads

# ------------------------------------------------------------------------------------------ actors


@explore_schedules(300, preempt=[_promise])
async def test_a_value_that_is_there_is_not_lost_to_a_cancellation() -> None:
    promises: list[Promise[int]] = []
    waited_for = Flag()

    async def waits() -> None:
        promises.append(Promise())
        got: list[int] = []

        async def wait() -> None:
            got.append(await promises[0].wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            waited_for.set()
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            was_there = promises[0].resolved
            nursery.cancel_scope.cancel()
        assert got or not was_there

    async def resolves() -> None:
        await waited_for.wait()
        promises[0].resolve(outcome.Value(1))

    await in_threads(waits=waits, resolves=resolves)


@explore_schedules(300, preempt=[_supervision, _queue])
async def test_who_has_seen_an_actor_end_is_refused() -> None:
    watching = Flag()

    async with actors.open_system() as system:
        ref = await system.spawn(Caller(watching.wait), name="ends")

        async def tells() -> None:
            watching.set()
            await ref.watch()
            with pytest.raises(actors.ActorTerminated):
                ref.tell_nowait("anything")

        teller = await system.spawn(Caller(tells), name="tells", host=actors.ThreadHost())
        await teller.watch()


@explore_schedules(300, preempt=[_supervision])
async def test_whoever_watches_is_told_of_the_end() -> None:
    watching = Flag()

    async with actors.open_system() as system:
        ref = await system.spawn(Caller(watching.wait), name="ends")

        async def watches() -> None:
            watching.set()
            assert (await ref.watch()).state is actors.ActorState.FINISHED

        watcher = await system.spawn(Caller(watches), name="watches", host=actors.ThreadHost())
        await watcher.watch()


@explore_schedules(300, preempt=[_queue])
async def test_a_receiver_that_falls_asleep_is_woken() -> None:
    class Receiver(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            for _ in range(2):
                await mailbox.receive()

    async with actors.open_system() as system:
        ref = await system.spawn(Receiver(), name="receives", host=actors.ThreadHost())
        for _ in range(2):
            await ref.tell("wake up")
        await ref.watch()


@explore_schedules(300, preempt=[_hosts])
async def test_a_cancellation_reaches_a_thread_that_is_about_to_start() -> None:
    async def spawn() -> None:
        await system.spawn(Caller(trio.sleep_forever), name="idle", host=actors.ThreadHost())

    async with actors.open_system() as system, trio.open_nursery() as nursery:
        nursery.start_soon(spawn)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------- cells


class _NoRaiser:
    """For cells that never compute."""

    missed = False

    def strike(self, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> bool:
        return False

    def withdraw(self) -> None:
        """There is nothing."""


def _no_port() -> OutputPort:
    """For requests of which nothing is said."""
    return OutputPort(WireSession(b""), mock.Mock(), mock.Mock())


@explore_schedules(300, preempt=[_pending])
async def test_one_of_two_has_the_right_to_answer() -> None:
    right = AnswerRight()
    assert right.begin(_no_port())
    right.begun()
    have: list[bool] = []

    async def settles() -> None:
        have.append(right.settle())

    async def gives_up() -> None:
        have.append(right.give_up() is not None)

    await in_threads(settles=settles, gives_up=gives_up)
    assert sorted(have) == [False, True]


@pytest.mark.parametrize("how", ["note", "cancel"])
@explore_schedules(300, preempt=[_guard])
async def test_what_is_to_end_one_cell_leaves_the_next_alone(how: str) -> None:
    guard = CellGuard()
    begun = Flag()

    async def first() -> None:
        begun.set()
        await trio.lowlevel.checkpoint()

    async def next_one() -> None:
        await trio.sleep(1)
        raise ValueError("its own")

    async def runs() -> None:
        with suppress(CellEnded):
            await guard.run(first, what=1, raiser=_NoRaiser())
        with pytest.raises(ValueError, match="its own"):
            await guard.run(next_one, what=2, raiser=_NoRaiser())

    async def ends() -> None:
        await begun.wait()
        if how == "note":
            guard.begin_end(1, EndReason.INTERRUPTED)
        else:
            guard.cancel(1)

    await in_threads(runs=runs, ends=ends)


@explore_schedules(600, preempt=[_guard])
async def test_a_canceller_is_not_called_after_its_block() -> None:
    guard = CellGuard()
    begun = Flag()
    within = [True]
    called_within: list[bool] = []

    async def cell() -> None:
        with guard.canceller(lambda: called_within.extend(within)):
            begun.set()
            for _ in range(3):
                await trio.lowlevel.checkpoint()
        within[:] = [False]

    async def cancels() -> None:
        await begun.wait()
        for canceller in guard.cancellers(1):
            canceller()

    async def runs() -> None:
        await guard.run(cell, what=1, raiser=_NoRaiser())

    await in_threads(runs=runs, cancels=cancels)
    assert False not in called_within


@explore_schedules(300, preempt=[_output])
async def test_whatever_is_written_is_sent_in_time() -> None:
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


# ----------------------------------------------------------------------------------------- signals


@explore_schedules(300, preempt=[_terminate])
async def test_the_signal_is_told_to_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    terminator = Terminator()

    async def comes() -> None:
        terminator._calls += 1
        terminator._look()

    await in_threads(waits=terminator.wait, comes=comes)
