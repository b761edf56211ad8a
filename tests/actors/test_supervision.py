"""Supervisors: scopes, failure policies, the tree, and nothing left behind."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import attrs
import psutil
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_subshells.actors import (
    Actor,
    ActorRef,
    ActorState,
    ActorTerminated,
    Bell,
    Ended,
    Escalate,
    FailurePolicy,
    Host,
    Mailbox,
    Restart,
    Stop,
    Supervisor,
    TaskHost,
    ThreadHost,
    TrioTransport,
    open_supervisor,
    open_system,
)

hosts = pytest.mark.parametrize("host", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)


async def happened(event: threading.Event) -> None:
    """Wait in a trio task for something that happens in another thread."""
    assert await trio.to_thread.run_sync(event.wait, 60)


class Idle(Actor):
    """Lives until it is cancelled; remembers its threads."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    async def run(self, mailbox: Mailbox) -> None:
        self.threads.append(threading.current_thread())
        await trio.sleep_forever()


class Fragile(Actor):
    """Raises each exception that it is sent; answers everything else with its thread's name."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.fell = threading.Event()

    async def run(self, mailbox: Mailbox) -> None:
        self.threads.append(threading.current_thread())
        async for letter in mailbox:
            if isinstance(letter.message, BaseException):
                self.fell.set()
                raise letter.message
            letter.reply(letter.message)


class FailsAtTheEnd(Actor):
    """Raises while it is cancelled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.runs = 0

    async def run(self, mailbox: Mailbox) -> None:
        self.runs += 1
        try:
            await trio.sleep_forever()
        finally:
            raise self.error


async def raised_by(function: Callable[[], object]) -> BaseException:
    """What an async function raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the caller looks at it
        await function()  # type: ignore[misc]
    return caught.value


# ------------------------------------------------------------------------------------- the scope


@hosts
async def test_leaving_the_block_ends_and_joins_everything(host: Host) -> None:
    actors = [Idle(), Idle()]
    refs: list[ActorRef] = []
    with trio.fail_after(60):
        async with open_system() as system:
            for n, actor in enumerate(actors):
                refs.append(await system.spawn(actor, name=f"idle {n}", host=host))
                assert refs[-1].state is ActorState.RUNNING
    assert [ref.state for ref in refs] == [ActorState.CANCELLED] * 2
    if host == ThreadHost():
        assert not any(actor.threads[0].is_alive() for actor in actors)


async def test_200_threads_started_and_cancelled_in_random_order_leave_nothing() -> None:
    def descriptors() -> int:
        gc.collect()
        process = psutil.Process(os.getpid())
        return int(process.num_handles() if os.name == "nt" else process.num_fds())

    random = Random(200)
    async with open_system() as system:  # what is loaded once is loaded now
        await system.spawn(Idle(), name="idle", host=ThreadHost())
    before = set(threading.enumerate())
    count = descriptors()
    actors: list[Idle] = []
    alive: list[ActorRef] = []

    async def cancel_one(ref: ActorRef) -> None:
        ref.cancel()
        assert (await ref.watch()).state is ActorState.CANCELLED

    with trio.fail_after(300):
        async with open_system() as system, trio.open_nursery() as nursery:
            for n in range(200):
                actors.append(Idle())
                alive.append(await system.spawn(actors[-1], name=f"idle {n}", host=ThreadHost()))
                while len(alive) > 20 or (alive and random.random() < 0.5):
                    ref = alive.pop(random.randrange(len(alive)))
                    nursery.start_soon(cancel_one, ref)
            assert alive  # the end of the block takes the others
    assert len({actor.threads[0] for actor in actors}) == 200
    assert not any(actor.threads[0].is_alive() for actor in actors)
    assert set(threading.enumerate()) <= before
    assert descriptors() == count


@hosts
async def test_cancel_ends_everything(host: Host) -> None:
    reached = []
    async with open_system() as system:
        ref = await system.spawn(Idle(), name="idle", host=host)
        system.cancel()
        await trio.lowlevel.checkpoint()
        reached.append("after the cancellation")
    assert reached == []
    assert ref.state is ActorState.CANCELLED


@pytest.mark.parametrize("name", ["", "a/b"])
async def test_a_bad_name_is_refused(name: str) -> None:
    async with open_system() as system:
        with pytest.raises(ValueError, match="must be non-empty and without slashes"):
            await system.spawn(Idle(), name=name)


async def test_a_name_is_taken_until_its_actor_has_ended() -> None:
    async with open_system() as system:
        first = await system.spawn(Idle(), name="idle")
        with pytest.raises(ValueError, match="system has an actor named 'idle' already"):
            await system.spawn(Idle(), name="idle")
        first.cancel()
        await first.watch()
        second = await system.spawn(Idle(), name="idle")
        assert (first.state, second.state) == (ActorState.CANCELLED, ActorState.RUNNING)


async def test_a_bad_capacity_leaves_no_trace() -> None:
    async with open_system() as system:
        with pytest.raises(ValueError, match="capacity"):
            await system.spawn(Idle(), name="idle", capacity=0)
        assert system.statistics().actors == ()


async def test_only_its_own_thread_spawns_and_cancels() -> None:
    async with open_system() as system:

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="spawns actors in its own thread only"):
                await system.spawn(Idle(), name="idle")
            with pytest.raises(RuntimeError, match="is cancelled in its own thread only"):
                system.cancel()

        await trio.to_thread.run_sync(trio.run, elsewhere)
        assert system.statistics().actors == ()


async def test_a_scope_that_is_over_refuses_and_keeps_no_ghost() -> None:
    names: list[tuple[str, ...]] = []

    class Parent(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async with open_supervisor() as supervisor:
                pass
            with pytest.raises(RuntimeError):
                await supervisor.spawn(Idle(), name="idle")
            names.append(tuple(each.path for each in supervisor.statistics().actors))

    async with open_system() as system:
        await (await system.spawn(Parent(), name="parent")).watch()
    assert names == [()]


@hosts
async def test_a_cancelled_spawn_cancels_the_actor(host: Host) -> None:
    """Cancelled while the actor's place is being made."""
    opening, go_on = threading.Event(), threading.Event()

    class Slow(TrioTransport):
        def open_bell(self) -> Bell:
            opening.set()
            if threading.current_thread() is not home:
                assert go_on.wait(60)
            return super().open_bell()

    home = threading.current_thread()
    with trio.fail_after(60):
        async with open_system(transport=Slow()) as system:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: system.spawn(Idle(), name="idle", host=host))
                    if host == ThreadHost():
                        await happened(opening)
                    scope.cancel()
            go_on.set()
            for node in list(system._node.children.values()):  # there is no ref to watch
                ended = await ActorRef(node, node.queue).watch()
                assert ended.state is ActorState.CANCELLED
            await system.spawn(Idle(), name="idle", host=host)  # its name is free again


@pytest.mark.parametrize("policy", [Escalate(), Stop(), Restart()])
async def test_an_actor_that_can_not_get_its_thread(
    monkeypatch: pytest.MonkeyPatch, policy: FailurePolicy
) -> None:
    """Who spawns it decides whether to try again, whatever follows when it fails later."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with open_system() as system:
        bystander = await system.spawn(Idle(), name="bystander")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await system.spawn(Idle(), name="idle", host=ThreadHost(), on_failure=policy)
        assert [each.path for each in system.statistics().actors] == ["system/bystander"]
        await system.spawn(Idle(), name="idle", host=ThreadHost())
        assert bystander.state is ActorState.RUNNING


async def test_a_failure_that_the_cancelled_spawn_can_not_raise_is_raised_by_the_scope() -> None:
    class Broken(TrioTransport):
        def open_bell(self) -> Bell:
            raise OSError("no descriptor left")

    async def parent() -> None:
        async with open_system(transport=Broken()) as system:
            with trio.CancelScope() as scope:
                scope.cancel()
                await system.spawn(Idle(), name="idle")
            assert scope.cancelled_caught
            await trio.sleep_forever()

    with trio.fail_after(60):
        error = await raised_by(parent)
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(OSError) is not None


# ---------------------------------------------------------------------------------- the policies


@hosts
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("policy", [None, Escalate()])
async def test_a_failure_escalates_as_itself(
    host: Host, kind: type[BaseException], policy: FailurePolicy | None
) -> None:
    error = kind("mine")
    refs: list[ActorRef] = []

    async def parent() -> None:
        async with open_system() as system:
            refs.append(await system.spawn(Idle(), name="bystander", host=host))
            refs.append(await system.spawn(Fragile(), name="fragile", host=host, on_failure=policy))
            await refs[1].tell(error)
            await trio.sleep_forever()  # the failure ends this

    with trio.fail_after(60):
        raised = await raised_by(parent)
    assert isinstance(raised, BaseExceptionGroup)
    assert len(raised.exceptions) == 1
    assert raised.exceptions[0] is error
    assert await refs[0].watch() == Ended("system/bystander", ActorState.CANCELLED)
    assert await refs[1].watch() == Ended("system/fragile", ActorState.FAILED, error)


@hosts
async def test_stop_leaves_the_others_alone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("mine")
    async with open_system() as system:
        bystander = await system.spawn(Idle(), name="bystander", host=host)
        ref = await system.spawn(Fragile(), name="fragile", host=host, on_failure=Stop())
        await ref.tell(error)
        assert await ref.watch() == Ended("system/fragile", ActorState.FAILED, error)
        assert bystander.state is ActorState.RUNNING
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "actor system/fragile has failed")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("policy", [Stop(), Restart()])
@hosts
async def test_a_base_exception_is_nobodys_to_swallow(host: Host, policy: FailurePolicy) -> None:
    actor = Fragile()

    async def parent() -> None:
        async with open_system() as system:
            ref = await system.spawn(actor, name="fragile", host=host, on_failure=policy)
            await ref.tell(SystemExit(3))
            await trio.sleep_forever()

    with trio.fail_after(60):
        raised = await raised_by(parent)
    assert isinstance(raised, BaseExceptionGroup)
    assert [type(each) for each in raised.exceptions] == [SystemExit]
    assert len(actor.threads) == 1


@hosts
async def test_restart_keeps_the_mailbox_in_a_new_place(host: Host) -> None:
    actor = Fragile()
    answers: dict[object, object] = {}

    async def ask(ref: ActorRef, message: object) -> None:
        try:
            answers[message] = await ref.ask(message, timeout=60)
        except ActorTerminated as error:
            answers[message] = error

    error = ValueError("mine")
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(
                actor, name="fragile", host=host, on_failure=Restart(intensity=1)
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, ref, error)
                await happened(actor.fell)
                nursery.start_soon(ask, ref, "queued or later")
            assert answers["queued or later"] == "queued or later"
            lost = answers[error]  # this one it had taken
            assert isinstance(lost, ActorTerminated)
            assert lost.__cause__ is error
            statistics = ref.statistics()
            assert (statistics.restarts, statistics.state) == (1, ActorState.RUNNING)
            assert "restarts 1" in system.tree()
            assert len(actor.threads) == 2
            if host == ThreadHost():
                assert actor.threads[0] is not actor.threads[1]
                assert not actor.threads[0].is_alive()


async def test_letters_queued_before_a_failure_are_handled_after_it() -> None:
    received: list[object] = []
    done = trio.Event()

    class Picky(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async for letter in mailbox:
                received.append(letter.message)
                if letter.message == "bad":
                    raise ValueError("bad")
                if letter.message == "last":
                    done.set()

    async with open_system() as system:
        ref = await system.spawn(Picky(), name="picky", capacity=3, on_failure=Restart())
        for message in ("good", "bad", "better"):
            ref.tell_nowait(message)
        await ref.tell("last")  # the mailbox is full: this one waits for room
        await done.wait()
    assert received == ["good", "bad", "better", "last"]


@hosts
async def test_one_restart_too_many_escalates_and_says_so(host: Host) -> None:
    actor = Fragile()
    errors = [ValueError(f"number {n}") for n in range(4)]

    async def parent() -> None:
        async with open_system() as system:
            ref = await system.spawn(
                actor, name="fragile", host=host, on_failure=Restart(intensity=2, period=3600)
            )
            for error in errors:
                await ref.tell(error)
            await trio.sleep_forever()

    with trio.fail_after(60):
        raised = await raised_by(parent)
    assert isinstance(raised, ExceptionGroup)
    assert raised.exceptions == (errors[2],)
    assert errors[2].__notes__ == [
        "actor system/fragile failed 3 times within 3600 s, and was to be restarted 2 times",
        "this was the failure of the actor system/fragile",
    ]
    assert len(actor.threads) == 3


async def test_failures_further_apart_than_the_period_do_not_add_up(
    autojump_clock: MockClock,
) -> None:
    actor = Fragile()
    async with open_system() as system:
        ref = await system.spawn(actor, name="fragile", on_failure=Restart(intensity=1, period=10))
        for n in range(5):
            with pytest.raises(ActorTerminated):
                await ref.ask(ValueError(f"number {n}"), timeout=60)
            await trio.sleep(10)  # of the mock clock
        assert await ref.ask("alive?", timeout=60) == "alive?"
        assert ref.statistics().restarts == 5


@pytest.mark.parametrize(
    "arguments", [{"intensity": 0}, {"intensity": -1}, {"period": 0}, {"period": -1.0}]
)
def test_a_senseless_intensity_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Restart(**arguments)


async def test_a_place_that_can_not_be_had_again_is_one_more_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    attempts: list[str] = []

    def limited_start(self: threading.Thread) -> None:
        if self.name == "trio system/fragile":
            attempts.append(self.name)
            if len(attempts) in {2, 3}:
                raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited_start)
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(
                Fragile(), name="fragile", host=ThreadHost(), on_failure=Restart(intensity=3)
            )
            await ref.tell(ValueError("mine"))
            assert await ref.ask("alive?", timeout=60) == "alive?"
            assert ref.statistics().restarts == 3
    assert len(attempts) == 4


# ------------------------------------------------------------------------ cancellation and failure


@hosts
@pytest.mark.parametrize("policy", [Escalate(), Restart()])
@pytest.mark.parametrize("by", ["the ref", "the scope", "a scope around it"])
async def test_a_failure_during_cancellation_is_raised_and_not_restarted(
    host: Host, policy: FailurePolicy, by: str
) -> None:
    error = ValueError("while cleaning up")
    actor = FailsAtTheEnd(error)
    refs: list[ActorRef] = []

    async def parent() -> None:
        with trio.CancelScope() as around:
            async with open_system() as system:
                ref = await system.spawn(actor, name="actor", host=host, on_failure=policy)
                refs.append(ref)
                if by != "the scope":
                    (ref if by == "the ref" else around).cancel()
                    await trio.sleep_forever()

    with trio.fail_after(60):
        raised = await raised_by(parent)
    assert isinstance(raised, ExceptionGroup)
    assert raised.exceptions == (error,)
    assert actor.runs == 1
    assert await refs[0].watch() == Ended("system/actor", ActorState.FAILED, error)


@hosts
async def test_an_actor_with_a_nursery_that_is_cancelled_has_not_failed(host: Host) -> None:
    """What comes out of its `run` is a group of cancellations, not one."""

    class Busy(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)

    async with open_system() as system:
        ref = await system.spawn(Busy(), name="busy", host=host)
    assert await ref.watch() == Ended("system/busy", ActorState.CANCELLED)


async def test_a_failure_among_cancellations_is_told_without_them() -> None:
    error = ValueError("while cleaning up")

    class Busy(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise error

    async with open_system() as system:
        ref = await system.spawn(Busy(), name="busy", on_failure=Stop())
    ended = await ref.watch()
    assert ended.state is ActorState.FAILED
    assert isinstance(ended.error, ExceptionGroup)
    assert ended.error.exceptions == (error,)


async def test_an_actor_that_is_being_cancelled_says_so() -> None:
    cleaning = trio.Event()
    may_end = trio.Event()

    class Slow(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cleaning.set()
                with trio.CancelScope(shield=True):
                    await may_end.wait()

    async with open_system() as system:
        ref = await system.spawn(Slow(), name="slow")
        ref.cancel()
        await cleaning.wait()
        assert ref.state is ActorState.CANCELLING
        assert "slow  task  cancelling" in system.tree()
        may_end.set()
        assert (await ref.watch()).state is ActorState.CANCELLED


def test_ctrl_c_stops_an_actors_own_code_at_once() -> None:
    """The supervision task is protected from it; the actor that it runs is not."""
    reached: list[str] = []

    class Computing(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            reached.append("before")
            signal.raise_signal(signal.SIGINT)
            reached.append("after")

    refs: list[ActorRef] = []

    async def main() -> None:
        async with open_system() as system:
            refs.append(await system.spawn(Computing(), name="computing"))
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert reached == ["before"]
    assert refs == [] or refs[0].state is ActorState.FAILED


def test_ctrl_c_while_an_actor_ends_does_not_keep_its_end_from_anyone() -> None:
    """The signal comes while the supervision task answers a queued letter."""
    signals: list[int] = []

    class Interrupting(ValueError):
        def __repr__(self) -> str:
            if not signals:
                signals.append(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().__repr__()

    class Fails(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            await go_on.wait()
            raise Interrupting

    refs: list[ActorRef] = []
    answers: list[BaseException] = []
    go_on = trio.Event()

    async def ask() -> None:
        with pytest.raises(ActorTerminated) as caught:
            await refs[0].ask("queued", timeout=60)
        answers.append(caught.value)

    async def main() -> None:
        async with open_system() as system, trio.open_nursery() as nursery:
            refs.append(await system.spawn(Fails(), name="fails", on_failure=Stop()))
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            go_on.set()
            await trio.sleep_forever()

    async def watch() -> Ended:
        with trio.fail_after(60):
            return await refs[0].watch()

    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(main)
    assert raised.group_contains(KeyboardInterrupt)
    assert signals
    assert refs[0].state is ActorState.FAILED
    assert isinstance(trio.run(watch).error, Interrupting)
    assert len(answers) == 1


# ---------------------------------------------------------------------------------------- the tree


@attrs.frozen
class Where:
    """Ask a `Family` for what its supervisor sees."""


class Family(Actor):
    """Has two children in the hosts that it was made for."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.children: tuple[Idle, Fragile] = (Idle(), Fragile())

    async def run(self, mailbox: Mailbox) -> None:
        async with open_supervisor() as supervisor:
            await supervisor.spawn(self.children[0], name="idle", host=self.host)
            fragile = await supervisor.spawn(self.children[1], name="fragile", host=self.host)
            async for letter in mailbox:
                if isinstance(letter.message, Where):
                    letter.reply((threading.current_thread(), supervisor.tree()))
                else:
                    await fragile.tell(letter.message)


@pytest.mark.parametrize("inner", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)
@pytest.mark.parametrize("outer", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)
async def test_a_tree_shows_who_lives_where(outer: Host, inner: Host) -> None:
    family = Family(inner)
    with trio.fail_after(60):
        async with open_system("root") as system:
            await system.spawn(Idle(), name="alone", capacity=1)
            ref = await system.spawn(family, name="family", host=outer)
            thread, seen_from_within = await ref.ask(Where(), timeout=60)
            tree = await trio.to_thread.run_sync(system.tree)  # from any thread
            assert tree == (
                "root\n"
                "├─ alone  task  running  mailbox 0/1\n"
                f"└─ family  {outer.kind}  running  mailbox 0/64\n"
                f"   ├─ idle  {inner.kind}  running  mailbox 0/64\n"
                f"   └─ fragile  {inner.kind}  running  mailbox 0/64"
            )
            assert seen_from_within == (
                "family\n"
                f"├─ idle  {inner.kind}  running  mailbox 0/64\n"
                f"└─ fragile  {inner.kind}  running  mailbox 0/64"
            )
            statistics = await trio.to_thread.run_sync(system.statistics)
            assert [(each.path, each.children) for each in statistics.actors] == [
                ("root/alone", 0),
                ("root/family", 2),
                ("root/family/idle", 0),
                ("root/family/fragile", 0),
            ]
    # A child lives where its host says, a task in the loop of its parent.
    assert (family.children[0].threads[0] is thread) is (inner == TaskHost())
    assert (thread is threading.current_thread()) is (outer == TaskHost())
    if inner == ThreadHost():
        assert not any(child.threads[0].is_alive() for child in family.children)


@pytest.mark.parametrize("inner", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)
@pytest.mark.parametrize("outer", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)
async def test_a_failure_climbs_through_the_threads(outer: Host, inner: Host) -> None:
    error = ValueError("from below")
    family = Family(inner)

    async def parent() -> None:
        async with open_system() as system:
            ref = await system.spawn(family, name="family", host=outer)
            await ref.tell(error)
            await trio.sleep_forever()

    with trio.fail_after(60):
        raised = await raised_by(parent)
    # A group for each scope, as with nurseries; the innermost has the very exception.
    while isinstance(raised, BaseExceptionGroup):
        (raised,) = raised.exceptions
    assert raised is error


async def test_cancelling_an_actor_cancels_what_lives_beneath_it() -> None:
    family = Family(ThreadHost())
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(family, name="family", host=ThreadHost())
            await ref.ask(Where(), timeout=60)
            ref.cancel()
            assert (await ref.watch()).state is ActorState.CANCELLED
            assert not any(child.threads[0].is_alive() for child in family.children)
            assert system.statistics().actors == ()


async def test_the_tree_can_be_drawn_while_it_changes() -> None:
    stop = threading.Event()
    drawn: list[int] = []

    def draw(system: Supervisor) -> None:
        while not (stop.is_set() and drawn):
            drawn.append(system.tree().count("\n") + len(system.statistics().actors))

    with trio.fail_after(120):
        async with open_system() as system, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, draw, system)
            for n in range(200):
                ref = await system.spawn(Idle(), name=f"idle {n}")
                if n % 3:
                    ref.cancel()
            stop.set()
    assert drawn


async def test_a_supervisor_belongs_inside_an_actor() -> None:
    with pytest.raises(RuntimeError, match=r"open_system\(\) makes a new tree"):
        async with open_supervisor():
            pass
    async with open_system() as system:
        await (await system.spawn(Fragile(), name="fragile")).ask("x", timeout=60)
        with pytest.raises(RuntimeError, match=r"open_system\(\) makes a new tree"):
            async with open_supervisor():
                pass


# ----------------------------------------------------------------------------------- the transport


async def test_the_transport_serves_every_thread_of_the_tree() -> None:
    log: list[tuple[str, str]] = []

    @attrs.define
    class CountingBell:
        bell: Bell

        def ring(self) -> None:
            self.bell.ring()

        async def wait(self) -> None:
            await self.bell.wait()

        def close(self) -> None:
            log.append(("close", threading.current_thread().name))
            self.bell.close()

    class Counting(TrioTransport):
        def open_bell(self) -> Bell:
            log.append(("open", threading.current_thread().name))
            return CountingBell(super().open_bell())

        @contextmanager
        def attach(self) -> Iterator[None]:
            log.append(("attach", threading.current_thread().name))
            yield
            log.append(("detach", threading.current_thread().name))

    with trio.fail_after(60):
        async with open_system(transport=Counting()) as system:
            ref = await system.spawn(Family(ThreadHost()), name="family", host=ThreadHost())
            await ref.ask(Where(), timeout=60)
    home = threading.current_thread().name
    family = "trio system/family"
    for name in (family, f"{family}/idle", f"{family}/fragile"):
        steps = [what for what, thread in log if thread == name]
        assert steps == ["attach", "open", "close", "detach"]
    assert [what for what, thread in log if thread == home] == ["attach", "detach"]
    assert len(log) == 3 * 4 + 2


async def test_a_supervisor_may_have_a_transport_of_its_own() -> None:
    log: list[str] = []

    class Named(TrioTransport):
        def __init__(self, name: str) -> None:
            self.name = name

        def open_bell(self) -> Bell:
            log.append(f"{self.name} bell")
            return super().open_bell()

        @contextmanager
        def attach(self) -> Iterator[None]:
            log.append(f"{self.name} thread")
            yield

    class Parent(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async with open_supervisor(transport=Named("inner")) as supervisor:
                child = await supervisor.spawn(
                    Family(ThreadHost()), name="child", host=ThreadHost()
                )
                async for letter in mailbox:
                    letter.reply(await child.ask(letter.message, timeout=60))

    with trio.fail_after(60):
        async with open_system(transport=Named("outer")) as system:
            parent = await system.spawn(Parent(), name="parent", host=ThreadHost())
            await parent.ask(Where(), timeout=60)
    # The parent is woken as its system is; the three beneath it are not, grandchildren included.
    assert log[:3] == ["outer thread", "outer thread", "outer bell"]
    assert sorted(log[3:]) == ["inner bell"] * 3 + ["inner thread"] * 3
