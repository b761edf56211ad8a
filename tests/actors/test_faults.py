"""Failures at awkward moments: between two steps, while asked, while restarted, while cancelled."""

from __future__ import annotations

import threading
from typing import Any

import outcome
import pytest
import trio

from trio_subshells.actors import (
    Actor,
    ActorRef,
    ActorState,
    ActorTerminated,
    Host,
    Mailbox,
    Restart,
    Stop,
    TaskHost,
    ThreadHost,
    TrioTransport,
    open_supervisor,
    open_system,
)
from trio_subshells.actors._queue import Queue

hosts = pytest.mark.parametrize("host", [TaskHost(), ThreadHost()], ids=lambda host: host.kind)


class Unspeakable(Exception):
    """Its repr is no help."""

    def __repr__(self) -> str:
        raise SystemExit

    __str__ = __repr__


class Fails(Actor):
    """Fails of what it is sent or asked, before it has answered."""

    async def run(self, mailbox: Mailbox) -> None:
        async for letter in mailbox:
            if isinstance(letter.message, BaseException):
                raise letter.message
            letter.reply(letter.message)


@hosts
@pytest.mark.parametrize("error", [ValueError("mine"), Unspeakable()], ids=["usual", "unspeakable"])
async def test_who_asked_an_actor_that_failed_of_it(host: Host, error: Exception) -> None:
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(Fails(), name="fails", host=host, on_failure=Stop())
            with pytest.raises(ActorTerminated, match="system/fails has failed") as told:
                await ref.ask(error, timeout=60)
            assert told.value.__cause__ is error
            ended = await ref.watch()
            assert ended.state is ActorState.FAILED
            assert ended.error is error
            with pytest.raises(ActorTerminated):
                await ref.ask("anything", timeout=60)


@hosts
async def test_who_asked_while_it_was_being_restarted(host: Host) -> None:
    with trio.fail_after(60):
        async with open_system() as system:
            ref = await system.spawn(Fails(), name="fails", host=host, on_failure=Restart())
            answers: list[Any] = []

            async def ask(message: object) -> None:
                try:
                    answers.append(await ref.ask(message, timeout=60))
                except ActorTerminated as error:
                    answers.append(error.__cause__)

            failure = ValueError("mine")
            async with trio.open_nursery() as nursery:
                for message in (1, failure, 2, 3):
                    nursery.start_soon(ask, message)
            # Only the letter that it failed of is lost with it, wherever that stood in the queue.
            assert {1, 2, 3, failure} == set(answers)
            assert await ref.ask(4, timeout=60) == 4
            assert ref.statistics().restarts == 1


async def test_a_fault_at_any_suspension_of_a_receive_loses_nothing() -> None:
    """An exception that is raised where a receiver waits must not take a value with it."""
    queue: Queue[int] = Queue(10)
    bell = TrioTransport().open_bell()
    queue.attach(bell)
    faults = _RaiseAt(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(faults)
    try:
        for full in (True, False):
            for step in range(1, 4):
                if full:
                    queue.put_nowait(step)
                else:
                    trio.lowlevel.spawn_system_task(queue.put, step)
                faults.left = step
                try:
                    assert await queue.get() == step
                except ZeroDivisionError:
                    faults.left = 0
                    assert await queue.get() == step
                faults.left = 0
        assert faults.raised >= 2
    finally:
        trio.lowlevel.remove_instrument(faults)
        bell.close()


class _RaiseAt(trio.abc.Instrument):
    """Raises in a task when it goes on for the n-th time."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.left = 0
        self.raised = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.left:
            self.left -= 1
            if not self.left:
                self.raised += 1
                task._next_send = outcome.Error(ZeroDivisionError())


class Parent(Actor):
    """Has a child whose tear-down fails, while it is itself ending."""

    def __init__(self, host: Host, own: Exception | None) -> None:
        self.host = host
        self.own = own
        self.child: ActorRef | None = None

    async def run(self, mailbox: Mailbox) -> None:
        async with open_supervisor() as supervisor:
            self.child = await supervisor.spawn(FailsAtTheEnd(), name="child", host=self.host)
            await mailbox.receive()
            if self.own is not None:
                raise self.own


class FailsAtTheEnd(Actor):
    async def run(self, mailbox: Mailbox) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while tearing down")


@hosts
@pytest.mark.parametrize("own", [None, ValueError("mine")])
async def test_a_child_that_fails_while_its_parent_ends(host: Host, own: Exception | None) -> None:
    threads = set(threading.enumerate())
    with trio.fail_after(60):
        async with open_system() as system:
            parent = Parent(host, own)
            ref = await system.spawn(parent, name="parent", host=host, on_failure=Stop())
            await ref.tell("end")
            ended = await ref.watch()
            assert isinstance(ended.error, ExceptionGroup)
            assert ended.error.subgroup(KeyError) is not None
            assert (ended.error.subgroup(ValueError) is None) == (own is None)
            assert parent.child is not None
            assert parent.child.state is ActorState.FAILED
            assert set(threading.enumerate()) <= threads


def all_notes(error: BaseException) -> list[str]:
    """Those of an exception, and of what it is a group of."""
    notes = list(getattr(error, "__notes__", ()))
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        notes += all_notes(each)
    return notes


@hosts
async def test_a_failure_says_whose_it_was(host: Host) -> None:
    error = ValueError("mine")

    class Grandparent(Actor):
        async def run(self, mailbox: Mailbox) -> None:
            async with open_supervisor() as supervisor:
                ref = await supervisor.spawn(Fails(), name="fails", host=host)
                await ref.tell(error)
                await trio.sleep_forever()

    with trio.fail_after(60), pytest.raises(ExceptionGroup) as raised:
        async with open_system() as system:
            await system.spawn(Grandparent(), name="grandparent", host=host)
            await trio.sleep_forever()
    assert raised.value.subgroup(lambda each: each is error) is not None
    assert all_notes(raised.value) == ["this was the failure of the actor system/grandparent/fails"]


@hosts
async def test_a_failure_says_whose_it_was_though_a_childs_came_before(host: Host) -> None:
    """One that the actor has been restarted after is no reason for the next."""
    error = ValueError("mine")

    class Parent(Actor):
        restarted = False

        async def run(self, mailbox: Mailbox) -> None:
            if self.restarted:
                raise error
            self.restarted = True
            async with open_supervisor() as supervisor:
                ref = await supervisor.spawn(Fails(), name="fails", host=host)
                await ref.tell(KeyError("the child's"))
                await trio.sleep_forever()

    with trio.fail_after(60), pytest.raises(ExceptionGroup) as raised:
        async with open_system() as system:
            await system.spawn(
                Parent(), name="parent", host=host, on_failure=Restart(intensity=1, period=3600)
            )
            await trio.sleep_forever()
    assert raised.value.subgroup(lambda each: each is error) is not None
    assert error.__notes__[-1] == "this was the failure of the actor system/parent"
