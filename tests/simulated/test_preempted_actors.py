"""What actors are made of, used by several threads at once, any of which may be stopped anywhere.

Each test is the contract of one module: whatever comes between two of its statements, nothing is
lost, nothing is taken twice, nobody waits for ever, and what one has been told is so.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import outcome
import pytest
import trio
import zmq

from trio_subshells import actors
from trio_subshells.actors import ActorState, Promise
from trio_subshells.actors._promise import BlockingPromise
from trio_subshells.actors._queue import Queue
from trio_subshells.actors._transport import TrioBell
from trio_subshells.sockets import Context, InprocTransport, open_context
from trio_subshells.sockets._transport import InprocBell
from trio_subshells.testing import explore_schedules

from .kernels import Flag
from .threads import in_threads, some_steps


def _names(functions: Sequence[Callable[..., object]]) -> str:
    return "-".join(each.__name__ for each in functions)


# --------------------------------------------------------------------------------------- promises


@pytest.mark.parametrize("steps", [None, 0, 2])
@explore_schedules(150, preempt=["trio_subshells.actors._promise"])
async def test_a_promise_has_one_value(steps: int | None) -> None:
    """Which is got, unless whoever waits for it has given up before there was one."""
    promises: list[Promise[str]] = []
    is_there = Flag()
    taken: dict[str, bool] = {}
    got: list[str] = []

    async def waits() -> None:
        promise: Promise[str] = Promise()
        promises.append(promise)
        is_there.set()

        async def wait() -> None:
            got.append(await promise.wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            if steps is not None:
                await some_steps(steps)
                was_there = promise.resolved
                nursery.cancel_scope.cancel()
        if not got:
            assert steps is not None
            assert not was_there
            assert promise.abandoned
        else:
            assert not promise.abandoned

    async def resolves(name: str) -> None:
        await is_there.wait()
        taken[name] = promises[0].resolve(outcome.Value(name))
        assert promises[0].resolved

    await in_threads(waits=waits, one=partial(resolves, "one"), two=partial(resolves, "two"))
    winners = [name for name in taken if taken[name]]
    assert len(winners) == 1
    assert got in ([], winners)


@pytest.mark.parametrize("timeout", [math.inf, 0.05, 0])
@explore_schedules(150, preempt=["trio_subshells.actors._promise"])
async def test_a_blocking_promise_has_one_value(timeout: float) -> None:
    promise: BlockingPromise[str] = BlockingPromise()
    taken: dict[str, bool] = {}
    got: list[str] = []

    async def waits() -> None:
        if promise.wait(timeout):
            got.append(promise.result())
        else:
            assert timeout < math.inf
            assert promise.abandoned

    async def resolves(name: str) -> None:
        await trio.sleep(0.05)
        taken[name] = promise.resolve(outcome.Value(name))

    await in_threads(waits=waits, one=partial(resolves, "one"), two=partial(resolves, "two"))
    winners = [name for name in taken if taken[name]]
    assert len(winners) == 1
    assert got in ([], winners)


# ----------------------------------------------------------------------------------------- queues


class _Closed(Exception):
    pass


class _Use:
    """A queue for one value that several threads use: what has become of each that was sent?"""

    def __init__(self) -> None:
        self.queue: Queue[str] = Queue(1)
        self.accepted: list[str] = []
        self.received: list[str] = []
        self.left: list[str] = []

    async def put(self, value: str) -> None:
        with suppress(_Closed):
            await self.queue.put(value)
            self.accepted.append(value)

    async def put_and_withdraw(self, value: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.put, value)
            await some_steps(1)
            nursery.cancel_scope.cancel()

    async def put_nowait(self, value: str) -> None:
        with suppress(_Closed, trio.WouldBlock):
            self.queue.put_nowait(value)
            self.accepted.append(value)

    async def close_and_discard(self, value: str) -> None:
        self._close(discard=True)

    async def close(self, value: str) -> None:
        self._close(discard=False)

    def _close(self, *, discard: bool) -> None:
        self.left += self.queue.close(_Closed, discard=discard)
        with pytest.raises(_Closed):
            self.queue.put_nowait("late")

    async def receive(self) -> None:
        """All that comes until the end; after one that is given up."""
        bell = TrioBell()
        self.queue.attach(bell)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive_one)
            await some_steps(2)
            nursery.cancel_scope.cancel()
        with suppress(_Closed):
            while True:
                self.received.append(await self.queue.get())
        self.queue.detach()
        bell.close()

    async def _receive_one(self) -> None:
        with suppress(_Closed):
            self.received.append(await self.queue.get())


_DOINGS = (_Use.put, _Use.put_and_withdraw, _Use.put_nowait, _Use.close, _Use.close_and_discard)


@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize(
    "doings",
    list(itertools.combinations_with_replacement(_DOINGS, 2)),
    ids=_names,
)
@explore_schedules(60, preempt=["trio_subshells.actors._queue"])
async def test_a_queue_loses_nothing(
    doings: tuple[Callable[[_Use, str], Awaitable[None]], ...], full: bool
) -> None:
    use = _Use()
    if full:
        await use.put("first")
    doing = ["a", "b"]

    async def do(name: str, first: Callable[[_Use, str], Awaitable[None]]) -> None:
        await first(use, f"{name}1")
        assert use.queue.statistics().length <= 1
        await use.put(f"{name}2")
        doing.remove(name)
        if not doing:
            await use.close("")

    await in_threads(
        receives=use.receive, a=partial(do, "a", doings[0]), b=partial(do, "b", doings[1])
    )
    values = use.received + use.left
    assert sorted(values) == sorted(use.accepted)
    assert not full or values[0] == "first"
    for name in "ab":
        own = [value for value in values if value.startswith(name)]
        assert own == sorted(own)


@pytest.mark.parametrize("put", [_Use.put, _Use.put_and_withdraw, _Use.put_nowait])
@explore_schedules(200, preempt=["trio_subshells.actors._queue"])
async def test_what_is_discarded_is_all_that_was_accepted(
    put: Callable[[_Use, str], Awaitable[None]],
) -> None:
    """As an actor ends, which nobody receives for from then on."""
    use = _Use()
    await in_threads(puts=partial(put, use, "value"), closes=partial(use.close_and_discard, ""))
    assert use.left == use.accepted
    assert use.queue.statistics().length == 0


@pytest.mark.parametrize("discard", [False, True], ids=["kept", "discarded"])
@explore_schedules(200, preempt=["trio_subshells.actors._queue"])
async def test_who_waits_for_room_as_it_closes_is_taken_or_refused(discard: bool) -> None:
    """And is told so once: a second time, it would be wherever it waits by then."""
    use = _Use()
    await use.put("first")
    is_parked, is_over = Flag(), Flag()

    async def waits() -> None:
        await use.put("second")
        await is_over.wait()

    async def receives() -> None:
        await is_parked.wait()
        with suppress(_Closed, trio.WouldBlock):
            while True:
                use.received.append(use.queue.get_nowait())

    async def closes() -> None:
        while not use.queue.statistics().senders_waiting:  # noqa: ASYNC110 -- it tells nobody
            await trio.sleep(0.01)
        is_parked.set()
        use.left += use.queue.close(_Closed, discard=discard)
        await trio.lowlevel.checkpoint()
        is_over.set()

    await in_threads(waits=waits, receives=receives, closes=closes)
    with suppress(_Closed):
        while True:
            use.received.append(use.queue.get_nowait())
    assert sorted(use.received + use.left) == sorted(use.accepted)


# --------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("closes", ["one who sends", "another thread", "who receives"])
@explore_schedules(200, preempt=["trio_subshells.actors._channel", "trio_subshells.actors._queue"])
async def test_each_end_of_a_channel_is_told_what_was_closed(closes: str) -> None:
    """Those who send, by whichever means, that it was their own end; or that it was the other."""
    ends: list[actors.CrossThreadSendChannel[str]] = []
    is_there = Flag()
    accepted: list[str] = []
    received: list[str] = []
    own, others = trio.ClosedResourceError, trio.BrokenResourceError
    refusal: type[Exception] = others if closes == "who receives" else own

    async def receives() -> None:
        receiving: actors.CrossThreadReceiveChannel[str]
        sending, receiving = actors.open_channel(1)
        ends.append(sending)
        is_there.set()
        received.append(await receiving.receive())
        if closes == "who receives":
            receiving.close()
            with pytest.raises(own):
                await receiving.receive()
        else:
            received.extend([value async for value in receiving])
            with pytest.raises(trio.EndOfChannel):
                receiving.receive_nowait()
            receiving.close()

    async def waits() -> None:
        await is_there.wait()
        with suppress(refusal):
            for number in range(3):
                await ends[0].send(f"waits{number}")
                accepted.append(f"waits{number}")
            if closes == "one who sends":
                ends[0].close()

    async def tries() -> None:
        await is_there.wait()
        with suppress(refusal):
            for number in range(3):
                with suppress(trio.WouldBlock):
                    ends[0].send_nowait(f"tries{number}")
                    accepted.append(f"tries{number}")
                await trio.lowlevel.checkpoint()

    async def closes_it() -> None:
        await is_there.wait()
        while not received:  # noqa: ASYNC110 -- in another thread
            await trio.sleep(0.01)
        if closes == "another thread":
            ends[0].close()

    await in_threads(receives=receives, waits=waits, tries=tries, closes=closes_it)
    with pytest.raises(refusal):
        ends[0].send_nowait("late")
    if refusal is own:
        assert sorted(received) == sorted(accepted)
    else:
        assert set(received) <= set(accepted)


# ------------------------------------------------------------------------------------------ bells


def _transport(context: Context, kind: str) -> actors.Transport:
    return actors.TrioTransport() if kind == "trio" else InprocTransport(context)


def _without_room(open_raw: Callable[..., Any], kind: zmq.SocketType, *args: object) -> Any:
    if kind is zmq.SocketType.PUSH:
        raise OSError(errno.EMFILE, "no room for a socket to ring with")
    return open_raw(kind, *args)


@pytest.mark.parametrize("kind", ["trio", "inproc", "inproc without room"])
@explore_schedules(
    150, preempt=["trio_subshells.actors._transport", "trio_subshells.sockets._transport"]
)
async def test_no_ring_is_lost(kind: str) -> None:
    """Not even to a wait that is given up; from a thread that is attached, and from another.

    And not for want of a socket to ring with.
    """
    bells: list[actors.Bell] = []
    is_there = Flag()
    news: list[int] = []
    patient: list[bool] = []

    async def give_up_once(nursery: trio.Nursery) -> None:
        if patient:
            return
        patient.append(True)
        await some_steps(2)
        nursery.cancel_scope.cancel()

    async def listens() -> None:
        bell = transport.open_bell()
        bells.append(bell)
        is_there.set()
        while len(news) < 4:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up_once, nursery)
                await bell.wait()
                nursery.cancel_scope.cancel()
        bell.close()
        with pytest.raises(trio.ClosedResourceError):
            await bell.wait()

    async def rings() -> None:
        await is_there.wait()
        for number in range(2):
            news.append(number)
            bells[0].ring()
            await trio.lowlevel.checkpoint()

    async def rings_attached() -> None:
        with transport.attach():
            await rings()

    with open_context() as context:
        transport = _transport(context, kind)
        if kind == "inproc without room":
            context._open_raw = partial(_without_room, context._open_raw)  # type: ignore[method-assign]
        await in_threads(listens=listens, one=rings, two=rings_attached)
        bells[0].ring()


@pytest.mark.parametrize("kind", ["trio", "inproc"])
@explore_schedules(30)
async def test_a_cancelled_wait_takes_no_ring(kind: str) -> None:
    with open_context() as context:
        bell = _transport(context, kind).open_bell()
        bell.ring()
        with trio.CancelScope() as scope:
            scope.cancel()
            await bell.wait()
        assert scope.cancelled_caught
        await bell.wait()
        bell.close()


@explore_schedules(150, preempt=["trio_subshells.sockets._transport"])
async def test_a_bell_that_is_closed_is_forgotten() -> None:
    """By whoever rings it meanwhile, at the next ring of another."""
    bells: list[InprocBell] = []
    are_there, is_closed, are_rung = Flag(), Flag(), Flag()

    with open_context() as context:
        transport = InprocTransport(context)

        async def closes() -> None:
            bells.extend([transport.open_bell(), transport.open_bell()])
            are_there.set()
            await some_steps(1)
            bells[0].close()
            is_closed.set()
            await bells[1].wait()
            await are_rung.wait()
            bells[1].close()

        async def rings() -> None:
            with transport.attach():
                await are_there.wait()
                bells[0].ring()
                await is_closed.wait()
                bells[1].ring()
                ringer = transport._ringer()
                assert ringer is not None
                assert list(ringer._pushes) == bells[1:]
            are_rung.set()

        await in_threads(closes=closes, rings=rings)


# ------------------------------------------------------------------------------- life and its end

_AFTER = {
    ActorState.STARTING: set(ActorState),
    ActorState.RUNNING: set(ActorState) - {ActorState.STARTING},
    ActorState.RESTARTING: set(ActorState) - {ActorState.STARTING},
    ActorState.CANCELLING: {state for state in ActorState if state.ended} | {ActorState.CANCELLING},
}
"""What may be seen after a state that isn't the end, by who doesn't look all the time."""


class _Mortal(actors.Actor):
    """Answers, and ends as it is told to."""

    def __init__(self) -> None:
        self.refs: list[actors.ActorRef] = []
        self.returned = False
        self._failed_in: list[ActorState] = []

    async def run(self, mailbox: actors.Mailbox) -> None:
        assert ActorState.CANCELLING not in self._failed_in, "restarted, though it was cancelled"
        kept = []
        async for letter in mailbox:
            match letter.message:
                case "end":
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    self.returned = True
                    return
                case "fail":
                    self._failed_in.append(self.refs[0].state)
                    raise ValueError("as was wanted")
                case "keep":
                    kept.append(letter)
                case _:
                    letter.reply(letter.message)


class _Witness:
    """What one thread does to an actor, and sees of it.

    Args:
        ref: the actor.
        ends: what those have been told who watched it.
    """

    def __init__(self, ref: actors.ActorRef, ends: list[actors.Ended]) -> None:
        self._ref = ref
        self._ends = ends
        self._seen = ref.state

    def look(self) -> ActorState:
        state = self._ref.state
        assert state in _AFTER.get(self._seen, {self._seen}), f"{state} after {self._seen}"
        self._seen = state
        self._ref.statistics()
        return state

    async def ask(self) -> None:
        with suppress(actors.ActorTerminated):
            assert await self._ref.ask("anything", timeout=math.inf) == "anything"

    async def ask_in_vain(self) -> None:
        with pytest.raises(actors.ActorTerminated):
            await self._ref.ask("keep", timeout=math.inf)

    async def cancel(self) -> None:
        self._ref.cancel()
        assert self.look().ended or self._seen is ActorState.CANCELLING

    async def watch(self) -> None:
        self._ends.append(await self._ref.watch())
        assert self.look() is self._ends[-1].state
        with pytest.raises(actors.ActorTerminated):
            self._ref.tell_nowait("anything")

    async def end(self) -> None:
        with suppress(actors.ActorTerminated):
            self._ref.tell_nowait("end")

    async def fail(self) -> None:
        with suppress(actors.ActorTerminated):
            self._ref.tell_nowait("fail")


_DEEDS = (
    *(_Witness.ask, _Witness.ask_in_vain, _Witness.watch),
    *(_Witness.cancel, _Witness.end, _Witness.fail),
)


@pytest.mark.parametrize(
    ("host", "policy"),
    [(actors.TaskHost(), actors.Restart(intensity=9)), (actors.ThreadHost(), actors.Stop())],
    ids=["restarted task", "thread"],
)
@pytest.mark.parametrize(
    "deeds", list(itertools.combinations_with_replacement(_DEEDS, 2)), ids=_names
)
@explore_schedules(250, preempt=["trio_subshells.actors._supervision"])
async def test_all_see_one_end(
    deeds: tuple[Callable[[_Witness], Awaitable[None]], ...],
    host: actors.Host,
    policy: actors.FailurePolicy,
) -> None:
    """Those who ask, watch or end an actor, each in a thread of its own."""
    mortal = _Mortal()
    ends: list[actors.Ended] = []

    async def do(deed: Callable[[_Witness], Awaitable[None]]) -> None:
        witness = _Witness(mortal.refs[0], ends)
        await deed(witness)
        witness.look()
        await witness.watch()

    async def end_at_last() -> None:
        await trio.sleep(1)
        await _Witness(mortal.refs[0], ends).end()

    try:
        async with actors.open_system() as system:
            mortal.refs.append(
                await system.spawn(mortal, name="mortal", host=host, on_failure=policy)
            )
            await in_threads(
                one=partial(do, deeds[0]), other=partial(do, deeds[1]), third=end_at_last
            )
            assert len(ends) >= 2
            assert "mortal" not in system.tree()
    except* ValueError:  # what fails while it is cancelled isn't restarted
        assert {_Witness.fail, _Witness.cancel} == set(deeds)
    for end in ends:
        assert end.state is ends[0].state
        assert (end.state is ActorState.FINISHED) == mortal.returned


@pytest.mark.parametrize("host", [actors.TaskHost(), actors.ThreadHost()], ids=["task", "thread"])
@explore_schedules(100, preempt=["trio_subshells.actors._supervision"])
async def test_who_is_told_of_a_start_or_an_end_sees_it(host: actors.Host) -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(_Mortal(), name="mortal", host=host)
        assert ref.state is ActorState.RUNNING

        async def watches() -> None:
            await ref.watch()
            assert not system.statistics().actors, "it has ended, and is among the living"

        async def ends() -> None:
            ref.tell_nowait("end")

        await in_threads(watches=watches, ends=ends)


@explore_schedules(100, preempt=["trio_subshells.actors._supervision"])
async def test_who_looks_at_a_tree_sees_who_stays() -> None:
    """From another thread, whoever else comes or goes meanwhile."""
    async with actors.open_system() as system:
        await system.spawn(_Mortal(), name="stays")

        async def looks() -> None:
            for _ in range(2):
                assert "stays" in system.tree()
                assert "system/stays" in [each.path for each in system.statistics().actors]
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(in_threads, looks=looks))
            for name in ("one", "other"):
                ref = await system.spawn(_Mortal(), name=name)
                ref.cancel()
                await ref.watch()


@pytest.mark.parametrize("steps", range(5))
@explore_schedules(60, preempt=["trio_subshells.actors._hosts"])
async def test_a_thread_that_is_starting_is_cancelled(steps: int) -> None:
    spawned: list[actors.ActorRef] = []

    async def spawn(system: actors.Supervisor) -> None:
        spawned.append(await system.spawn(_Mortal(), name="mortal", host=actors.ThreadHost()))

    async with actors.open_system() as system:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawn, system)
            await some_steps(steps)
            nursery.cancel_scope.cancel()
        for ref in spawned:
            ref.cancel()
            assert (await ref.watch()).state is ActorState.CANCELLED
