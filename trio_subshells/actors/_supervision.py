"""Supervisors, and the tree of who lives where.

A supervisor is a scope, like a nursery: actors are spawned into it, and leaving it cancels them and
waits until each has ended and its thread, if it has one, has been joined. For every actor one task
in the supervisor's nursery, the *supervision task*, drives the actor's life: it runs the actor in
its host, decides what a failure leads to, and tells whoever waits how it ended. It is the only one
that does, so the order of these steps is the order of the lines in `Supervisor._supervise`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import attrs
import outcome
import trio

from ._actor import (
    Actor,
    ActorRef,
    ActorState,
    ActorStatistics,
    Ended,
    check_transition,
    terminated,
)
from ._hosts import Host, TaskHost
from ._mailbox import Letter, Mailbox
from ._promise import Promise
from ._queue import Queue
from ._transport import Transport, TrioTransport

_log = logging.getLogger("trio_subshells.actors")


@attrs.frozen
class Escalate:
    """The default failure policy, as in a nursery.

    An exception takes down the supervisor's scope and leaves it as itself, with a note that says
    whose failure it was.
    """


@attrs.frozen
class Stop:
    """Failure policy: the actor ends, whoever watches it is told, the others go on.

    The failure is logged.
    """


@attrs.frozen
class Restart:
    """Failure policy: the actor's `run` is called again, in a new place of the same kind.

    Queued letters are kept; those that it had taken are answered with `ActorTerminated`. An actor
    that fails while it is being cancelled isn't called again: that failure escalates.

    Attributes:
        intensity: how many restarts within `period` are accepted; one more failure escalates.
        period: in seconds.
    """

    intensity: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    period: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))


FailurePolicy = Escalate | Stop | Restart


class Node:
    """One place in the tree: what others can see of an actor or of the system's root.

    Read from any thread. Written by the supervision task, save for the wish to cancel.
    """

    def __init__(self, name: str, parent: Node | None, host: str, queue: Queue[Letter]) -> None:
        self.name = name
        self.path: str = name if parent is None else f"{parent.path}/{name}"
        self.host = host
        self.queue = queue
        self.restarts = 0
        self.children: dict[str, Node] = {}
        self.ended: Ended | None = None
        self.felled = False  # by a child whose failure has escalated
        self._state = ActorState.STARTING
        self._lock = threading.Lock()
        self._watchers: list[Promise[Ended]] = []
        self._token = trio.lowlevel.current_trio_token()
        self.scope = trio.CancelScope()

    @property
    def state(self) -> ActorState:
        return self._state

    def go(self, new: ActorState) -> None:
        """Take a step in the actor's life. One that is being cancelled stays so until it ends."""
        with self._lock:
            if self._state is ActorState.CANCELLING and not new.ended:
                return
            check_transition(self._state, new)
            self._state = new

    @trio.lowlevel.enable_ki_protection
    def cancel(self) -> None:
        with self._lock:
            if self._state.ended or self._state is ActorState.CANCELLING:
                return
            check_transition(self._state, ActorState.CANCELLING)
            self._state = ActorState.CANCELLING
        try:
            self._token.run_sync_soon(self.scope.cancel)
        except trio.RunFinishedError:
            return  # the parent's loop has ended, and all that lived in it

    def end(self, state: ActorState, error: BaseException | None) -> None:
        """The last step: refuse letters, answer the queued ones, tell the watchers."""
        for letter in self.queue.close(partial(terminated, self.path, error), discard=True):
            letter.fail(terminated(self.path, error))
        self.go(state)
        with self._lock:
            self.ended = Ended(self.path, state, error)
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.resolve(outcome.Value(self.ended))

    def add_watcher(self, promise: Promise[Ended]) -> None:
        with self._lock:
            if self.ended is None:
                self._watchers = [each for each in self._watchers if not each.abandoned]
                self._watchers.append(promise)
                return
        promise.resolve(outcome.Value(self.ended))

    def statistics(self) -> ActorStatistics:
        return ActorStatistics(
            path=self.path,
            state=self._state,
            host=self.host,
            restarts=self.restarts,
            mailbox=self.queue.statistics(),
            children=len(self.children),
        )

    def tree(self) -> str:
        lines = [self.name]
        self._draw(lines, "")
        return "\n".join(lines)

    def _draw(self, lines: list[str], indent: str) -> None:
        children = list(self.children.values())
        for child in children:
            last = child is children[-1]
            mailbox = child.queue.statistics()
            restarts = f"  restarts {child.restarts}" if child.restarts else ""
            lines.append(
                f"{indent}{'└─ ' if last else '├─ '}{child.name}  {child.host}  "
                f"{child.state.value}  mailbox {mailbox.length}/{mailbox.capacity}{restarts}"
            )
            child._draw(lines, indent + ("   " if last else "│  "))


@attrs.frozen
class _Place:
    """Where the running code stands in the tree."""

    node: Node
    transport: Transport


_place: ContextVar[_Place] = ContextVar("trio_subshells_actor")


@attrs.frozen
class SystemStatistics:
    """A snapshot of all that lives beneath a supervisor.

    Attributes:
        actors: one entry for each living actor, parents before their children.
    """

    actors: tuple[ActorStatistics, ...]


class Supervisor:
    """A scope in which actors live: made by `open_system` and `open_supervisor`."""

    def __init__(self, nursery: trio.Nursery, node: Node, transport: Transport) -> None:
        self._nursery = nursery
        self._node = node
        self._transport = transport
        self._thread = threading.get_ident()

    @trio.lowlevel.enable_ki_protection
    async def spawn(
        self,
        actor: Actor,
        *,
        name: str,
        host: Host | None = None,
        capacity: float = 64,
        on_failure: FailurePolicy | None = None,
    ) -> ActorRef:
        """Start an actor; returns once its place is there and `run` is called. A checkpoint.

        Cancelled, the actor is cancelled too. It belongs to this supervisor from then on: leaving
        the supervisor's scope cancels it and waits for its end.

        Args:
            actor: what to run.
            name: unique among the supervisor's living actors.
            host: where to run it; `TaskHost()` by default.
            capacity: how many letters may wait in its mailbox.
            on_failure: `Escalate()` (the default), `Restart()` or `Stop()`.

        Raises:
            ValueError: the name is empty, has a slash in it, or is in use.
            RuntimeError: the machine can't start another thread, or this is not the thread (the
                trio loop) that the supervisor lives in, or its scope is over.
            ActorTerminated: the actor was cancelled before it ran.
        """
        self._check_thread("spawns actors")
        if not name or "/" in name:
            raise ValueError(f"an actor's name must be non-empty and without slashes, not {name!r}")
        if name in self._node.children:
            raise ValueError(f"{self._node.path} has an actor named {name!r} already")
        queue: Queue[Letter] = Queue(capacity)
        host = TaskHost() if host is None else host
        node = Node(name, self._node, host.kind, queue)
        started: Promise[None] = Promise()
        task_name = node.path if host.kind == "task" else f"{node.path} (warden)"
        self._nursery.start_soon(
            self._supervise, node, actor, host, on_failure or Escalate(), started, name=task_name
        )
        self._node.children[name] = node  # only now: a scope that is over has refused
        try:
            await started.wait()
        except BaseException:
            node.cancel()  # nobody would have a ref to it
            raise
        return ActorRef(node, queue)

    @trio.lowlevel.enable_ki_protection  # its last steps must be taken; see _run_actor
    async def _supervise(
        self,
        node: Node,
        actor: Actor,
        host: Host,
        policy: FailurePolicy,
        started: Promise[None],
    ) -> None:
        state, error = ActorState.CANCELLED, None
        try:
            with node.scope:
                await self._run_until_settled(node, actor, host, policy, started)
                state = ActorState.FINISHED
        except BaseException as raised:
            error = _without_cancelled(raised)
            if error is None:
                raise
            state = ActorState.FAILED
            if not started.resolved and not started.abandoned:
                return  # it never ran: spawn() raises this
            if isinstance(policy, Stop) and isinstance(error, Exception):
                _log.error("actor %s has failed", node.path, exc_info=error)
                return
            if not node.felled and isinstance(error, Exception):
                raised.add_note(f"this was the failure of the actor {node.path}")
            self._node.felled = True
            raise
        finally:
            del self._node.children[node.name]
            node.end(state, error)
            started.resolve(outcome.Error(error or terminated(node.path)))
            del error  # its traceback holds this frame: no cycle that keeps what the actor held

    async def _run_until_settled(
        self,
        node: Node,
        actor: Actor,
        host: Host,
        policy: FailurePolicy,
        started: Promise[None],
    ) -> None:
        """Run the actor, again after each failure that the policy accepts."""
        failures: deque[float] = deque()
        while True:
            body = partial(self._live, node, actor, started)
            try:
                await host.run(body, name=node.path, attach=self._transport.attach)
            except Exception as failure:
                if not isinstance(policy, Restart) or not started.resolved:
                    raise
                if node.state is ActorState.CANCELLING or _is_cancelled():
                    raise
                now = trio.current_time()
                failures.append(now)
                while failures[0] <= now - policy.period:
                    failures.popleft()
                if len(failures) > policy.intensity:
                    failure.add_note(
                        f"actor {node.path} failed {len(failures)} times within "
                        f"{policy.period:g} s, and was to be restarted {policy.intensity} times"
                    )
                    raise
                _log.warning("actor %s has failed and is restarted", node.path, exc_info=failure)
                node.restarts += 1
                node.felled = False
                node.go(ActorState.RESTARTING)
            else:
                return

    async def _live(self, node: Node, actor: Actor, started: Promise[None]) -> None:
        """One incarnation of an actor, in its host's loop."""
        bell = self._transport.open_bell()
        node.queue.attach(bell)
        mailbox = Mailbox(node.queue)
        place = _place.set(_Place(node, self._transport))
        node.go(ActorState.RUNNING)
        started.resolve(outcome.Value(None))
        error: BaseException | None = None
        try:
            await _run_actor(actor, mailbox)
        except BaseException as raised:
            error = _without_cancelled(raised)
            raise
        finally:
            mailbox._abandon(partial(terminated, node.path, error))
            _place.reset(place)
            node.queue.detach()
            bell.close()
            del error  # as above

    def cancel(self) -> None:
        """Cancel everything in this scope, the block included.

        Raises:
            RuntimeError: this is not the thread (the trio loop) that the supervisor lives in.
        """
        self._check_thread("is cancelled")
        self._nursery.cancel_scope.cancel()

    def _check_thread(self, does: str) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"{self._node.path} {does} in its own thread only: "
                "tell an actor that lives there to do it"
            )

    def tree(self) -> str:
        """Who lives where and in which state, a line each, for people. From any thread."""
        return self._node.tree()

    def statistics(self) -> SystemStatistics:
        """A snapshot of every living actor beneath this supervisor. From any thread."""
        found: list[ActorStatistics] = []
        # list() first, everywhere: it copies in one step what another thread may be changing
        nodes = deque(list(self._node.children.values()))
        while nodes:
            node = nodes.popleft()
            found.append(node.statistics())
            nodes.extendleft(reversed(list(node.children.values())))
        return SystemStatistics(tuple(found))


@trio.lowlevel.disable_ki_protection
async def _run_actor(actor: Actor, mailbox: Mailbox) -> None:
    """The actor's own code: Ctrl-C may stop it anywhere, as it may any task of the main thread."""
    await actor.run(mailbox)


def _is_cancelled() -> bool:
    """Whether the calling task is cancelled, by a scope of its own or around it."""
    return trio.current_effective_deadline() == -math.inf


def _without_cancelled(raised: BaseException) -> BaseException | None:
    """What was raised but for cancellations; None if it was nothing else.

    A nursery that is cancelled from outside raises its tasks' `trio.Cancelled` in a group.
    """
    if isinstance(raised, BaseExceptionGroup):
        return raised.split(trio.Cancelled)[1]
    return None if isinstance(raised, trio.Cancelled) else raised


@asynccontextmanager
async def open_system(
    name: str = "system", *, transport: Transport | None = None
) -> AsyncIterator[Supervisor]:
    """The root of a tree of actors, in the calling task's trio loop.

    Leaving the block cancels every actor, waits for it, and joins its thread. An actor that fails
    cancels the block and the other actors; the exception leaves the block in an exception group, as
    it does with a trio nursery.

    Args:
        name: the root's name in paths and in the tree.
        transport: how threads wake each other; by default through trio alone.
    """
    transport = TrioTransport() if transport is None else transport
    with transport.attach():
        async with _open(Node(name, None, "root", Queue(1)), transport) as supervisor:
            yield supervisor


@asynccontextmanager
async def open_supervisor(*, transport: Transport | None = None) -> AsyncIterator[Supervisor]:
    """A scope for the children of the actor that calls it; a parent outlives its children.

    Leaving the block cancels them, waits for them, and joins their threads.

    Args:
        transport: how they, and what lives beneath them, are woken; by default as the actor is.
            The threads that it starts are attached to this transport only.

    Raises:
        RuntimeError: the caller isn't an actor; the root of a tree is made by `open_system`.
    """
    place = _place.get(None)
    if place is None:
        raise RuntimeError(
            "open_supervisor() is for the inside of an actor's run(); "
            "outside of one, open_system() makes a new tree"
        )
    async with _open(place.node, transport or place.transport) as supervisor:
        yield supervisor


@asynccontextmanager
async def _open(node: Node, transport: Transport) -> AsyncIterator[Supervisor]:
    async with trio.open_nursery() as nursery:
        try:
            yield Supervisor(nursery, node, transport)
        finally:
            nursery.cancel_scope.cancel()
