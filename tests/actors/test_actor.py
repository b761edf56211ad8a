"""What others do with an actor through its ref: tell, ask, cancel, watch."""

from __future__ import annotations

import math
import threading
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import (
    Actor,
    ActorRef,
    ActorState,
    ActorTerminated,
    AskTimeout,
    Ended,
    Host,
    Mailbox,
    Stop,
    TaskHost,
    ThreadHost,
    open_system,
)
from trio_subshells.actors._actor import _TRANSITIONS, check_transition

hosts = pytest.mark.parametrize("host", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)


async def happened(event: threading.Event) -> None:
    """Wait in a trio task for something that happens in another thread."""
    assert await trio.to_thread.run_sync(event.wait, 60)


@attrs.frozen
class Divide:
    a: float
    b: float


class Calculator(Actor):
    async def run(self, mailbox: Mailbox) -> None:
        async for letter in mailbox:
            with letter.answering():
                match letter.message:
                    case Divide(a, b):
                        letter.reply(a / b)


class Silent(Actor):
    """Takes letters and never answers."""

    async def run(self, mailbox: Mailbox) -> None:
        async for _ in mailbox:
            pass


class Deaf(Actor):
    """Takes no letters."""

    async def run(self, mailbox: Mailbox) -> None:
        await trio.sleep_forever()


class Collector(Actor):
    """Keeps what it was told; gives it to who asks."""

    async def run(self, mailbox: Mailbox) -> None:
        told: list[object] = []
        async for letter in mailbox:
            if letter.wants_reply:
                letter.reply(tuple(told))
            else:
                told.append(letter.message)


# ------------------------------------------------------------------------------------- the states


def test_an_end_is_an_end_and_every_state_leads_to_one() -> None:
    for state in ActorState:
        assert state.ended is (state.value in {"finished", "cancelled", "failed"})
        reachable = {state}
        while True:
            more = reachable.union(*(_TRANSITIONS[each] for each in reachable))
            if more == reachable:
                break
            reachable = more
        assert any(each.ended for each in reachable)
        if state is ActorState.STARTING:
            assert reachable == set(ActorState)


@pytest.mark.parametrize("old", ActorState)
@pytest.mark.parametrize("new", ActorState)
def test_a_step_is_in_the_table_or_an_error(old: ActorState, new: ActorState) -> None:
    if new in _TRANSITIONS[old]:
        check_transition(old, new)
    else:
        with pytest.raises(RuntimeError, match=f"can't go from {old.value} to {new.value}"):
            check_transition(old, new)


# ----------------------------------------------------------------------------------- tell and ask


@hosts
async def test_ask_gets_the_answer_or_the_receivers_error(host: Host) -> None:
    async with open_system() as system:
        calculator = await system.spawn(Calculator(), name="calculator", host=host)
        assert await calculator.ask(Divide(1, 4), timeout=60) == 0.25
        with pytest.raises(ZeroDivisionError):
            await calculator.ask(Divide(1, 0), timeout=60)
        assert await calculator.ask(Divide(1, 2), timeout=math.inf) == 0.5
        assert calculator.state is ActorState.RUNNING


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_senseless_timeout_is_refused(timeout: float) -> None:
    async with open_system() as system:
        ref = await system.spawn(Silent(), name="silent")
        with pytest.raises(ValueError, match="timeout must be a number of seconds"):
            await ref.ask("x", timeout=timeout)
        with pytest.raises(ValueError, match="timeout must be a number of seconds"):
            ref.ask_blocking("x", timeout=timeout)
        assert ref.statistics().mailbox.sent == 0


async def test_ask_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with open_system() as system:
        silent = await system.spawn(Silent(), name="silent")
        before = trio.current_time()
        with pytest.raises(AskTimeout, match=r"system/silent did not answer 'x' within 7 s"):
            await silent.ask("x", timeout=7)
        assert trio.current_time() - before == 7


async def test_the_deadline_covers_the_wait_for_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_system() as system:
        deaf = await system.spawn(Deaf(), name="deaf", capacity=1)
        await deaf.tell("fills it")
        with pytest.raises(AskTimeout) as caught:
            await deaf.ask("x", timeout=7)
        assert isinstance(caught.value, trio.TooSlowError)
        # It was withdrawn: it neither waits nor is in the mailbox.
        mailbox = deaf.statistics().mailbox
        assert (mailbox.length, mailbox.senders_waiting, mailbox.sent) == (1, 0, 1)


async def test_a_cancelled_ask_is_cancelled_not_timed_out() -> None:
    async with open_system() as system:
        silent = await system.spawn(Silent(), name="silent")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: silent.ask("x", timeout=60))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught


async def test_a_full_mailbox_pushes_back() -> None:
    async with open_system() as system:
        deaf = await system.spawn(Deaf(), name="deaf", capacity=2)
        deaf.tell_nowait(1)
        deaf.tell_nowait(2)
        with pytest.raises(trio.WouldBlock):
            deaf.tell_nowait(3)
        with pytest.raises(trio.WouldBlock):
            deaf.ask_blocking(3, timeout=60)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deaf.tell, 3)
                await wait_all_tasks_blocked()
                assert deaf.statistics().mailbox.senders_waiting == 1
                scope.cancel()
        assert deaf.statistics().mailbox.sent == 2  # the cancelled one has not been sent


@hosts
async def test_a_plain_thread_tells_and_asks(host: Host) -> None:
    async with open_system() as system:
        collector = await system.spawn(Collector(), name="collector", host=host)

        def outside() -> Any:
            for n in range(10):
                collector.tell_nowait(n)
            return collector.ask_blocking("all", timeout=60)

        assert await trio.to_thread.run_sync(outside) == tuple(range(10))


async def test_a_blocking_ask_ends_as_an_awaited_one_does() -> None:
    async with open_system() as system:
        calculator = await system.spawn(Calculator(), name="calculator", host=ThreadHost())
        silent = await system.spawn(Silent(), name="silent", host=ThreadHost())
        assert calculator.ask_blocking(Divide(1, 4), timeout=60) == 0.25
        with pytest.raises(ZeroDivisionError):
            calculator.ask_blocking(Divide(1, 0), timeout=60)
        with pytest.raises(AskTimeout, match="system/silent did not answer 'x' within 0 s"):
            silent.ask_blocking("x", timeout=0)
        calculator.cancel()
        await calculator.watch()
        with pytest.raises(ActorTerminated):
            calculator.ask_blocking(Divide(1, 4), timeout=60)


@hosts
async def test_many_senders_in_many_threads(host: Host) -> None:
    """Each message once, those of one sender in its order, through a small mailbox."""
    loops, count = 4, 250
    barrier = threading.Barrier(loops)

    async def loop(ref: ActorRef, number: int) -> None:
        barrier.wait()
        for n in range(count):
            await ref.tell((number, n))

    with trio.fail_after(120):
        async with open_system() as system:
            collector = await system.spawn(Collector(), name="collector", host=host, capacity=4)
            async with trio.open_nursery() as nursery:
                for number in range(loops):
                    nursery.start_soon(trio.to_thread.run_sync, trio.run, loop, collector, number)
            told = await collector.ask("all", timeout=60)
    for number in range(loops):
        assert [n for sender, n in told if sender == number] == list(range(count))
    assert len(told) == loops * count


def test_an_answer_for_a_loop_that_has_ended_harms_nobody() -> None:
    asked, gone = threading.Event(), threading.Event()

    class Late(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            letter = await mailbox.receive()
            asked.set()
            await happened(gone)
            letter.reply("too late")
            (await mailbox.receive()).reply("alive")

    async def asker(ref: ActorRef) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ref.ask("x", timeout=60))
            await happened(asked)
            nursery.cancel_scope.cancel()

    async def main() -> None:
        async with open_system() as system:
            late = await system.spawn(Late(), name="late", host=ThreadHost())
            await trio.to_thread.run_sync(trio.run, asker, late)
            gone.set()
            assert await late.ask("x", timeout=60) == "alive"

    trio.run(main)


# ----------------------------------------------------------------------------------------- the end


class Mortal(Actor):
    """Takes one letter, then ends in the way that it was made for."""

    def __init__(self, death: str) -> None:
        self.death = death
        self.taken = threading.Event()
        self.die = threading.Event()

    async def run(self, mailbox: Mailbox) -> None:
        await mailbox.receive()
        self.taken.set()
        await trio.to_thread.run_sync(self.die.wait, abandon_on_cancel=True)
        if self.death == "failed":
            raise OSError("no space left")


@hosts
@pytest.mark.parametrize("death", ["failed", "finished", "cancelled"])
async def test_an_actor_that_dies_answers_every_asker(host: Host, death: str) -> None:
    """Its letter taken, queued, or still waiting for room: each asker gets an exception."""
    actor = Mortal(death)
    errors: dict[str, ActorTerminated] = {}

    async def ask(ref: ActorRef, message: str) -> None:
        with pytest.raises(ActorTerminated, match="system/mortal has ") as caught:
            await ref.ask(message, timeout=math.inf)
        errors[message] = caught.value

    with trio.fail_after(60):
        async with open_system() as system, trio.open_nursery() as nursery:
            ref = await system.spawn(actor, name="mortal", host=host, capacity=1, on_failure=Stop())
            nursery.start_soon(ask, ref, "taken")
            await happened(actor.taken)
            for message in ("queued", "waits for room"):
                nursery.start_soon(ask, ref, message)
                await wait_all_tasks_blocked()
            mailbox = ref.statistics().mailbox
            assert (mailbox.length, mailbox.senders_waiting) == (1, 1)
            if death == "cancelled":
                ref.cancel()
            else:
                actor.die.set()
            ended = await ref.watch()
        actor.die.set()
        assert set(errors) == {"taken", "queued", "waits for room"}
        assert len({id(error) for error in errors.values()}) == 3
        assert ended.state.value == death
        for error in errors.values():
            assert error.__cause__ is ended.error
        with pytest.raises(ActorTerminated):
            await ref.ask("after the end", timeout=math.inf)
        with pytest.raises(ActorTerminated):
            await ref.tell("after the end")
        with pytest.raises(ActorTerminated):
            ref.tell_nowait("after the end")


@hosts
@pytest.mark.parametrize("death", ["failed", "finished", "cancelled"])
async def test_watch_tells_how_it_ended_before_and_after(host: Host, death: str) -> None:
    actor = Mortal(death)
    seen: list[Ended] = []

    async def watch(ref: ActorRef) -> None:
        seen.append(await ref.watch())

    with trio.fail_after(60):
        async with open_system() as system, trio.open_nursery() as nursery:
            ref = await system.spawn(actor, name="mortal", host=host, on_failure=Stop())
            nursery.start_soon(watch, ref)
            nursery.start_soon(trio.to_thread.run_sync, trio.run, watch, ref)
            await ref.tell("live")
            await happened(actor.taken)
            assert seen == []
            if death == "cancelled":
                ref.cancel()
                ref.cancel()  # once more is fine
            else:
                actor.die.set()
            await ref.watch()
        actor.die.set()
        ref.cancel()  # after the end as well
        seen.append(await ref.watch())
        with trio.CancelScope() as scope:
            scope.cancel()
            await ref.watch()  # a checkpoint, also when there is nothing to wait for
        assert scope.cancelled_caught
    assert len(seen) == 3
    assert all(ended == seen[0] for ended in seen)
    assert seen[0].path == "system/mortal"
    assert seen[0].state is ref.state is ActorState(death)
    assert (repr(seen[0].error) if death == "failed" else seen[0].error) == (
        "OSError('no space left')" if death == "failed" else None
    )


async def test_watch_returns_when_the_thread_has_been_joined() -> None:
    threads: list[threading.Thread] = []

    class Short(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            threads.append(threading.current_thread())

    async with open_system() as system:
        ref = await system.spawn(Short(), name="short", host=ThreadHost())
        await ref.watch()
        assert not threads[0].is_alive()


async def test_cancelling_a_watch_leaves_the_actor_alone() -> None:
    async with open_system() as system:
        ref = await system.spawn(Deaf(), name="deaf")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ref.watch)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert ref.state is ActorState.RUNNING


@hosts
async def test_cancel_from_a_plain_thread(host: Host) -> None:
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(Deaf(), name="deaf", host=host)
            await trio.to_thread.run_sync(ref.cancel)
            assert (await ref.watch()).state is ActorState.CANCELLED


async def test_a_ref_shows_what_it_refers_to() -> None:
    async with open_system("root") as system:
        ref = await system.spawn(Deaf(), name="deaf", capacity=5)
        assert (ref.name, ref.path) == ("deaf", "root/deaf")
        assert repr(ref) == "<ActorRef root/deaf running>"
        statistics = ref.statistics()
        assert (statistics.path, statistics.host, statistics.restarts) == ("root/deaf", "task", 0)
        assert (statistics.children, statistics.mailbox.capacity) == (0, 5)
    assert repr(ref) == "<ActorRef root/deaf cancelled>"
