"""Actors are used at random: what is told arrives in order and once, who asks is answered.

A plan is a few actors and a few clients, each of which does a few things to them. Whatever the
order of events, what the clients were told and what the actors have taken must fit together.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import attrs
import pytest
import trio

from trio_subshells import actors
from trio_subshells.testing import ScheduleFailed, explore

PLANS: Final = int(os.environ.get("TRIO_SUBSHELLS_PLANS", "200"))
"""How many there are; a night may have more."""
SCHEDULES: Final = 40
"""For each plan."""

PATIENCE: Final = 50.0
"""Virtual seconds after which nobody waits any more: nothing takes so long but what hangs."""


@attrs.frozen
class Message:
    """What an actor is told to do.

    Attributes:
        sender: which client's it is.
        number: how many that client has sent before.
        action: what to do.
        other: the actor that is asked, if that is what is to be done.
    """

    sender: int
    number: int
    action: str
    other: str | None = None


@attrs.frozen
class Kind:
    """An actor of a plan."""

    name: str
    in_thread: bool
    capacity: float
    restarts: bool
    impatient: int  # so often it waits for a letter for a short time only, and then again


@attrs.frozen
class Act:
    """One thing that a client does."""

    verb: str
    target: str
    action: str = ""
    other: str | None = None
    seconds: float = math.inf

    def __str__(self) -> str:
        parts = [self.verb, self.target, self.action, self.other and f"({self.other})"]
        within = "" if self.seconds == math.inf else f"within {self.seconds:g} s"
        return " ".join(filter(None, [*parts, within]))


@attrs.frozen
class Plan:
    """What clients do to actors. The last client lives in a thread of its own, if there are two."""

    number: int
    kinds: tuple[Kind, ...]
    clients: tuple[tuple[Act, ...], ...]

    def __str__(self) -> str:
        lines = [f"plan {self.number}:", *(f"  {each}" for each in self.kinds)]
        for number, acts in enumerate(self.clients):
            lines.append(f"  client {number}: {'; '.join(map(str, acts))}")
        return "\n".join(lines)


MORE_VERBS: Final = (
    *("tell nowait", "tell briefly", "watch", "cancel", "replace", "sleep", "spawn briefly"),
)


def make_plan(number: int) -> Plan:
    """The plan of a number: always the same."""
    chance = random.Random(f"actors {number}")
    names = "abc"[: chance.randint(1, 3)]
    kinds = tuple(
        Kind(
            each,
            chance.random() < 0.5,
            chance.choice([1, 1, 2, 64, math.inf]),
            chance.random() < 0.3,
            chance.choice([0, 0, 0, 3]),
        )
        for each in names
    )
    restarting = {each.name for each in kinds if each.restarts}
    actions = chance.sample(["note", "nap", "later", "fail", "block", "relay", "hang"], 4)
    verbs = [
        *("tell", "tell", "ask", "ask"),
        *chance.sample(MORE_VERBS, 3),
    ]
    clients = []
    for _ in range(chance.randint(1, 3)):
        acts = []
        for _ in range(chance.randint(1, 4)):
            target, verb = chance.choice(names), chance.choice(verbs)
            action, other = chance.choice(actions), None
            if verb in ("cancel", "replace") and target in restarting:
                verb = "ask"  # a failure while it is being cancelled would escalate
            if action == "relay":
                other = chance.choice(names)
                if other == target:
                    action, other = "note", None
            seconds = math.inf
            if verb == "tell briefly" or (verb == "ask" and chance.random() < 0.3):
                seconds = chance.choice([0, 0.01, 0.2])
            if verb == "spawn briefly":
                seconds = chance.choice([0, 0.01])
            if verb == "sleep":
                seconds = chance.choice([0.01, 0.06])
            sends = verb.startswith(("tell", "ask"))
            acts.append(Act(verb, target, action if sends else "", other, seconds))
        clients.append(tuple(acts))
    return Plan(number, kinds, tuple(clients))


class Boom(Exception):
    """What fails."""


class Worker(actors.Actor):
    """Does as it is told, one message after the other; notes what it takes."""

    def __init__(self, world: World, kind: Kind) -> None:
        self._world = world
        self.kind = kind
        self.taken: list[Message] = []
        self.living = 0
        self.cancelled = False

    async def run(self, mailbox: actors.Mailbox) -> None:
        self.living += 1
        assert self.living == 1, "two lives at once"
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self.kind.impatient):
                    with trio.move_on_after(0.02) as scope:
                        letter = await mailbox.receive()
                    if not scope.cancelled_caught:
                        await self._take(letter, nursery)
                async for letter in mailbox:
                    await self._take(letter, nursery)
        finally:
            self.living -= 1

    async def _take(self, letter: actors.Letter, nursery: trio.Nursery) -> None:
        self.taken.append(letter.message)
        await self._do(letter, letter.message, nursery)

    async def _do(self, letter: actors.Letter, message: Message, nursery: trio.Nursery) -> None:
        match message.action:
            case "nap":
                await trio.sleep(0.05)
            case "block":
                time.sleep(0.05)  # noqa: ASYNC251
            case "hang":
                await trio.sleep_forever()
            case "fail":
                raise Boom
            case "later":
                nursery.start_soon(self._answer_later, letter, message)
                return
            case "relay":
                assert message.other is not None
                try:
                    asked = Message(message.sender, message.number, "note")
                    ref = self._world.refs[message.other]
                    assert await ref.ask(asked, timeout=2) == asked
                except (actors.AskTimeout, actors.ActorTerminated):
                    pass
        letter.reply(message)

    async def _answer_later(self, letter: actors.Letter, message: Message) -> None:
        await trio.sleep(0.05)
        letter.reply(message)


@attrs.define
class Sent:
    """What became of a message."""

    message: Message
    to: Worker
    act: Act
    outcome: str = ""
    began: int = 0


class Caller(actors.Actor):
    """A client in a thread."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    async def run(self, mailbox: actors.Mailbox) -> None:
        await self._world.act(self._number)


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.refs: dict[str, actors.ActorRef] = {}
        self._workers: dict[str, Worker] = {}
        self._all: list[Worker] = []
        self._sent: list[Sent] = []
        self._events = 0
        self._ended: dict[Worker, int] = {}
        self._brief: list[Worker] = []
        self._numbers = [0 for _ in plan.clients]

    async def run(self) -> None:
        """Do it, and compare."""
        async with self._system() as system:
            for kind in self._plan.kinds:
                await self._spawn(kind)
            async with trio.open_nursery() as nursery:
                for number in range(len(self._plan.clients)):
                    if self._is_in_thread(number):
                        host = actors.ThreadHost()
                        caller = await system.spawn(Caller(self, number), name="caller", host=host)
                        nursery.start_soon(caller.watch)
                    else:
                        nursery.start_soon(self.act, number)
            await trio.sleep(PATIENCE)  # until all is quiet
            for worker in self._all:
                self._check_life(worker)
            assert not any(each.living for each in self._brief), "it lives on, though cancelled"
            names = {each.path for each in system.statistics().actors}
            assert names <= {ref.path for ref in self.refs.values()}, names
        assert not any(each.living for each in self._all), "an actor has outlived its system"
        for sent in self._sent:
            self._check_outcome(sent)

    @asynccontextmanager
    async def _system(self) -> AsyncIterator[actors.Supervisor]:
        async with actors.open_system() as self._supervisor:
            yield self._supervisor

    async def _spawn(self, kind: Kind) -> None:
        worker, ref = await self._start(kind)
        self._workers[kind.name], self.refs[kind.name] = worker, ref

    async def _start(self, kind: Kind) -> tuple[Worker, actors.ActorRef]:
        worker = Worker(self, kind)
        self._all.append(worker)
        policy = actors.Restart(intensity=99) if kind.restarts else actors.Stop()
        ref = await self._supervisor.spawn(
            worker,
            name=kind.name,
            host=actors.ThreadHost() if kind.in_thread else actors.TaskHost(),
            capacity=kind.capacity,
            on_failure=policy,
        )
        return worker, ref

    # ------------------------------------------------------------------------------ clients

    async def act(self, client: int) -> None:
        """What one client does."""
        for number, act in enumerate(self._plan.clients[client]):
            ref, worker = self.refs[act.target], self._workers[act.target]
            match act.verb:
                case "sleep":
                    await trio.sleep(act.seconds)
                case "watch":
                    with trio.move_on_after(1):
                        self._has_ended(worker, await ref.watch())
                case "cancel":
                    worker.cancelled = True
                    ref.cancel()
                case "spawn briefly" if not self._is_in_thread(client):
                    await self._spawn_briefly(f"{client}{number}", act.seconds, worker.kind)
                case "spawn briefly":
                    pass  # that is for the supervisor's own thread
                case "replace":
                    await self._replace(client, ref, worker)
                case _:
                    await self._send(client, act, ref, worker)
            length = ref.statistics().mailbox.length
            assert length <= worker.kind.capacity, f"{length} letters wait in {worker.kind}"

    def _is_in_thread(self, client: int) -> bool:
        return 0 < client == len(self._plan.clients) - 1

    async def _spawn_briefly(self, name: str, seconds: float, kind: Kind) -> None:
        """Spawn an actor, which is over when the patience is."""
        count = len(self._all)
        with trio.move_on_after(seconds):
            worker, ref = await self._start(attrs.evolve(kind, name=name))
            worker.cancelled = True
            ref.cancel()
        if len(self._all) > count:
            self._brief.append(self._all[count])

    async def _replace(self, client: int, ref: actors.ActorRef, worker: Worker) -> None:
        worker.cancelled = True
        ref.cancel()
        self._has_ended(worker, await ref.watch())
        if not self._is_in_thread(client) and self._workers[worker.kind.name] is worker:
            with suppress(ValueError):  # another client was faster
                await self._spawn(worker.kind)

    def _has_ended(self, worker: Worker, ended: actors.Ended) -> None:
        assert not worker.living, "a watch was told of an end that was none yet"
        failed = any(each.action == "fail" for each in worker.taken)
        if ended.state is actors.ActorState.FAILED:
            assert failed
            assert isinstance(ended.error, ExceptionGroup), ended
            assert ended.error.subgroup(Boom) is not None
        else:
            assert ended.state is actors.ActorState.CANCELLED
            assert worker.cancelled
        self._events += 1
        self._ended.setdefault(worker, self._events)

    async def _send(self, client: int, act: Act, ref: actors.ActorRef, worker: Worker) -> None:
        message = Message(client, self._numbers[client], act.action, act.other)
        self._numbers[client] += 1
        self._events += 1
        sent = Sent(message, worker, act, began=self._events)
        self._sent.append(sent)
        sent.outcome = "no end"
        with trio.move_on_after(PATIENCE):
            sent.outcome = await self._outcome(act, ref, message)

    async def _outcome(self, act: Act, ref: actors.ActorRef, message: Message) -> str:
        start = trio.current_time()
        try:
            match act.verb:
                case "ask":
                    answer: Any = await ref.ask(message, timeout=act.seconds)
                    assert answer == message, f"{message} was answered {answer}"
                    return "answered"
                case "tell nowait":
                    ref.tell_nowait(message)
                case _:
                    with trio.move_on_after(act.seconds) as scope:
                        await ref.tell(message)
                    if scope.cancelled_caught:
                        return "withdrawn"
        except actors.AskTimeout:
            took = trio.current_time() - start
            assert took > act.seconds - 1e-9, f"a timeout came early, after {took} s"
            return "timed out"
        except actors.ActorTerminated:
            return "terminated"
        except trio.WouldBlock:
            assert ref.statistics().mailbox.capacity < math.inf
            return "withdrawn"
        return "told"

    # ---------------------------------------------------------------------------- comparing

    def _check_life(self, worker: Worker) -> None:
        """What it has taken: each once, in the order of each sender, and nothing lost."""
        assert len(set(worker.taken)) == len(worker.taken), f"taken twice: {worker.taken}"
        for sender in range(len(self._plan.clients)):
            own = [each.message for each in self._sent if each.to is worker]
            numbers = [
                each.number for each in worker.taken if each.sender == sender and each in own
            ]
            assert numbers == sorted(numbers), f"out of order: {worker.taken}"
        sent = {each.message: each.outcome for each in self._sent if each.to is worker}
        for message, outcome in sent.items():
            if outcome == "withdrawn":
                assert message not in worker.taken, f"withdrawn, and taken: {message}"
            if outcome == "answered":
                assert message in worker.taken, f"answered, and not taken: {message}"
            if outcome == "told" and self._lives_on(worker):
                assert message in worker.taken, f"lost: {message}"

    def _lives_on(self, worker: Worker) -> bool:
        """Whether it has neither ended nor come to a standstill."""
        actions = {each.action for each in worker.taken}
        return not (
            worker.cancelled
            or "hang" in actions
            or ("fail" in actions and not worker.kind.restarts)
        )

    def _check_outcome(self, sent: Sent) -> None:
        worker, actions = sent.to, {each.action for each in sent.to.taken}
        may_end = worker.cancelled or ("fail" in actions and not worker.kind.restarts)
        what = f"{sent.message} to {worker.kind.name}: {sent.outcome}"
        if worker in self._ended and self._ended[worker] < sent.began:
            outcomes = {"terminated"}
            if sent.act.seconds < math.inf:  # it may not have come to that
                outcomes |= {"withdrawn", "timed out"}
            assert sent.outcome in outcomes, f"{what}, after its end"
        match sent.outcome:
            case "no end":
                assert "hang" in actions, f"{what}, though nothing hangs"
            case "terminated" if not may_end:
                assert worker.kind.restarts, what
                assert "fail" in actions, what
                assert sent.message.action in {"fail", "later"}, what
            case "answered":
                assert sent.message.action not in {"fail", "hang"}, what
            case "timed out":
                assert sent.act.seconds < math.inf, what


async def carry_out(plan: Plan) -> None:
    await World(plan).run()


@pytest.mark.parametrize("number", range(PLANS))
def test_random_actors(number: int) -> None:
    plan = make_plan(number)
    try:
        explore(carry_out, plan, schedules=SCHEDULES, preempt=["trio_subshells.actors"])
    except ScheduleFailed as failed:
        failed.add_note(str(plan))
        raise
