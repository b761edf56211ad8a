"""Faults: what goes wrong in reality now and then, made to go wrong in a simulation.

On demand, by the methods of `Faults`; or by chance, with `RandomFaults`: then each is a decision of
the schedule, a deviation from the default, which is that nothing goes wrong. So a schedule says
which faults there were and when, replay has them again, and shrinking leaves out those that don't
matter.

What a kernel still promises with each of them is in `docs/testing.md`; they are made so that one
which is all right keeps that. An actor that is made to fail does so as `trio_subshells.kernel`'s
failure policies expect it: at an await of its own code, never in the midst of trio's.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import outcome
import trio

from ..actors import ActorTerminated, _supervision
from ._client import CLIENT_CHANNELS
from ._errors import await_place, leaves
from ._simulation import FAULT_PREFIX, Simulation, Turn

if TYPE_CHECKING:
    from ..actors._supervision import Node
    from ..wire import Channel
    from ._client import Client
    from ._network import Line, Met, Network

FAULT_LASTS: Final = 5.0
"""Virtual seconds that a fault lasts which comes by chance, and passes."""

LONGEST_HOLD: Final = 60.0
"""Virtual seconds after which a message goes on whatever it waits for."""

FIRST_CLIENT: Final = "client"
"""The name of a simulated kernel's first client."""

KINDS: Final = ("actor", "mailbox", "line", "client", "reader", "descriptors", "thread", "join")


class InjectedFault(Exception):
    """What an actor raises because it was told to."""


@attrs.frozen
class RandomFaults:
    """Which faults may come by chance, in schedules that are chosen by chance.

    Some schedules have none, some have one early, some late: how often one is drawn is drawn, too.

    Attributes:
        kinds: of ``actor`` (it raises), ``mailbox`` (it is full), ``line`` (its messages are late),
            ``client`` (it vanishes), ``reader`` (a client that doesn't read a channel),
            ``descriptors`` (there are none left), ``thread`` (it can't be started), ``join``
            (a thread takes its time to end). Those that pass do so after 5 virtual seconds.
        actors: which actors may fail or be full, by name, with ``*`` for anything.
        clients: which clients may vanish or stop reading, by name; None: all but the first one.
        most: how many in a schedule.

    Raises:
        ValueError: there is no such kind.
    """

    kinds: tuple[str, ...] = attrs.field(default=KINDS, converter=tuple)
    actors: str = "*"
    clients: str | None = None
    most: int = 1

    @kinds.validator
    def _check_kinds(self, attribute: object, kinds: tuple[str, ...]) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"there is no fault of the kind {unknown[0]!r}, only {KINDS}")


@attrs.define(eq=False)
class _Failure:
    """An actor that is to fail.

    Attributes:
        name: its name, a pattern.
        left: at how many more awaits it goes on before that.
        error: what it raises; None: an `InjectedFault`.
        node: this one only.
    """

    name: str
    left: int
    error: BaseException | None = None
    node: Node | None = None


@attrs.define(eq=False)
class _Hold:
    """Lines whose messages are held.

    Attributes:
        lines: a pattern for their names.
        past: a pattern for those that are to deliver before; None: it is only for a time.
    """

    lines: str
    past: str | None


class Faults:
    """The faults of one run, on demand. In a simulation only, and one for each run.

    A simulated kernel has them as ``kernel.faults``; without a kernel, make them before the actors
    that are to fail. Actors are named as they were spawned: a kernel's are ``io``, ``shell``,
    ``control``, ``stdin``, ``iopub``, ``nest``, ``main shell``, and ``subshell ID``, for which the
    id will do. Names may have a ``*``, for anything.

    Args:
        by_chance: faults that may come by themselves, from `begin_chance` on.

    Raises:
        RuntimeError: this is no simulation, or there are faults already.
    """

    def __init__(self, by_chance: RandomFaults | None = None) -> None:
        simulation = Simulation.current
        if simulation is None:
            raise RuntimeError("faults are for a simulation: make them in what explore() runs")
        if simulation.faults is not None:
            raise RuntimeError("this run has its faults already, for a kernel as `kernel.faults`")
        simulation.faults = self
        self._simulation = simulation
        self._by_chance = by_chance
        self._network: Network | None = None
        self._failures: list[_Failure] = []
        self._holds: list[_Hold] = []
        self._no_thread = 0
        self._late_joins: list[tuple[str, float]] = []
        self._capacities: dict[Node, float] = {}
        self._failed: set[str] = set()
        self._went_on: dict[str, None] = {}  # while there was somebody who is to fail
        self._rng: random.Random | None = None
        self._rate = 0.0
        self._drawn = 0
        self.injected: list[str] = []
        """What has gone wrong so far, in words, in its order."""
        self.raised: list[BaseException] = []
        """What actors were made to raise."""

    # ------------------------------------------------------------------------------- actors

    def fail_actor(self, name: str, *, at: int = 1, error: BaseException | None = None) -> None:
        """Let an actor raise at its n-th await from now on, counted over all its tasks.

        It is raised where the actor would have gone on. What the await would have brought is lost.

        Args:
            name: of the actor, which may be still to come.
            at: the how many-th.
            error: what it raises; by default an `InjectedFault`.

        Raises:
            ValueError: `at` is less than 1. At the end of a simulated kernel: no actor of that name
                has made a step since.
        """
        if at < 1:
            raise ValueError(f"an actor fails at its first await (at=1) or later, not at={at!r}")
        self._failures.append(_Failure(name, at, error))

    def fill_mailbox(self, name: str, *, seconds: float = math.inf) -> None:
        """Let the mailbox of a living actor be full from now on, for virtual seconds.

        What is in it can be taken, and who waits for room gets the place; nobody else gets in.

        Raises:
            ValueError: no such actor lives, or its mailbox has no bound.
        """
        nodes = [node for node in self._living() if _is_named(node, name)]
        if not nodes:
            names = ", ".join(node.name for node in self._living()) or "none"
            raise ValueError(f"no actor {name!r} lives: there are {names}")
        for node in nodes:
            if node.queue.capacity == math.inf and node not in self._capacities:
                raise ValueError(f"the mailbox of {node.path} has no bound: it is never full")
            self._fill(node, seconds)

    def _fill(self, node: Node, seconds: float) -> None:
        self._tell(f"the mailbox of {node.name} is full")
        self._capacities.setdefault(node, node.queue.capacity)
        node.queue.capacity = 0
        if seconds < math.inf:
            self._later(
                seconds, f"the mailbox of {node.name} has room again", lambda: self._free(node)
            )

    def _free(self, node: Node) -> None:
        """Give a mailbox its room back, and those who wait their place."""
        queue = node.queue
        queue.capacity = self._capacities.pop(node, queue.capacity)
        bell = None
        taken = []
        with queue._lock:
            while queue._parked and len(queue._values) < queue.capacity:
                sender = queue._parked.popleft()
                bell = queue._append(sender.value) or bell
                taken.append(sender)
        for sender in taken:
            sender.wake(outcome.Value(None))
        if bell is not None:
            bell.ring()

    def before_step(self, task: trio.lowlevel.Task) -> None:
        """Called by the simulation before each step."""
        if not self._failures:
            return
        node = _node_of(task)
        if node is None:
            return
        self._went_on[node.name] = None
        for failure in self._failures:
            if failure.node is not None:
                meant = failure.node is node
            else:
                meant = _is_named(node, failure.name)
            if meant and _may_raise(task):
                failure.left -= 1
                if not failure.left:
                    self._failures.remove(failure)
                    self._raise_in(task, node, failure)
                    return

    def _raise_in(self, task: trio.lowlevel.Task, node: Node, failure: _Failure) -> None:
        error = failure.error
        if error is None:
            error = InjectedFault(f"{node.path} was made to fail at {await_place(task)}")
        self.raised.append(error)
        self._failed.add(node.name)
        what = f"raises {type(error).__name__}"
        self._tell(f"{node.name} {what}", what)  # a report says at that line whose step it is
        # There is no public way to have a task that is to go on raise something instead.
        task._next_send = outcome.Error(error)

    def dead_subshells(self) -> set[str | None]:
        """The ids of subshells that may have died of faults.

        All have, and None, which stands for the main shell, if an actor was made to raise that a
        kernel can't do without.
        """
        dead = {name for name in self._failed if name.startswith(_SUBSHELL)}
        if self._failed - dead - _RESTARTED:
            dead = {node.name for node in self._known() if node.name.startswith(_SUBSHELL)}
            return {None, *(name.removeprefix(_SUBSHELL) for name in dead)}
        return {name.removeprefix(_SUBSHELL) for name in dead}

    def check_names(self) -> None:
        """Called when a kernel has ended: who was to fail should have been seen.

        Raises:
            ValueError: there was no such actor, or it didn't live any more.
        """
        for failure in self._failures:
            named = any(_matches(name, failure.name) for name in self._went_on)
            if failure.node is None and not named:
                names = ", ".join(self._went_on) or "none"
                raise ValueError(f"no actor {failure.name!r} has gone on since: only {names}")

    def _known(self) -> list[Node]:
        """The actors that were seen, each once, in the order in which that was."""
        nodes = map(_node_of, self._simulation.tasks())
        return list(dict.fromkeys(node for node in nodes if node is not None))

    def _living(self) -> list[Node]:
        return [node for node in self._known() if node.ended is None]

    # ------------------------------------------------------------------------------- threads

    def fail_thread(self, times: int = 1) -> None:
        """Let the next threads fail to start, as when the machine allows no more of them."""
        self._no_thread += times

    def delay_join(self, seconds: float, *, name: str = "*") -> None:
        """Let the next thread of an actor take virtual seconds between its loop's end and its own.

        Args:
            seconds: how many.
            name: of the actor.
        """
        self._late_joins.append((name, seconds))

    def starts_thread(self, path: str) -> None:
        """Called before a thread is started.

        Raises:
            RuntimeError: it can't be.
        """
        if self._no_thread and "/" in path:
            self._no_thread -= 1
            self._tell("no thread can be started")
            raise RuntimeError("can't start new thread")  # the interpreter's words

    def join_delay(self, path: str) -> float:
        """Called when the loop of a thread has ended: how long until the thread has."""
        for late in self._late_joins:
            name, seconds = late
            if "/" in path and _matches(path.rpartition("/")[2], name):
                self._late_joins.remove(late)
                self._tell(f"the thread {path} takes {seconds:g} s to end")
                return seconds
        return 0.0

    # ------------------------------------------------------------------------------- kernels

    def attach(self, network: Network) -> None:
        """Called by the simulated kernel: what is between it and its clients."""
        self._network = network

    def _kernels(self) -> Network:
        if self._network is None:
            raise RuntimeError("this is for a simulated kernel: `kernel.faults` has it")
        return self._network

    def delay(self, lines: str, *, past: str | None = None, seconds: float = LONGEST_HOLD) -> None:
        """Hold what is sent on some lines, until others have delivered a message.

        A line is named by its ends, as in a report: ``client > shell`` carries a client's requests,
        ``shell > client`` the replies, ``trio kernel/io > iopub1`` what a thread publishes.

        Args:
            lines: a name, where ``*`` stands for anything; one end may be of a client to come.
            past: the name of those others. None: it is only for a time.
            seconds: how many virtual seconds at most.

        Raises:
            ValueError: there is no such line.
            RuntimeError: there is no simulated kernel.
        """
        there_are = sorted({line.name for line in self._kernels().lines})
        for pattern in filter(None, (lines, past)):
            ends = pattern.split(" > ")
            to_come = len(ends) == 2 and not {*ends}.isdisjoint(CLIENT_CHANNELS)
            if not to_come and not any(fnmatchcase(name, pattern) for name in there_are):
                raise ValueError(f"there is no line {pattern!r}: there are {', '.join(there_are)}")
        self._hold(lines, past, seconds)

    def _hold(self, lines: str, past: str | None, seconds: float) -> None:
        hold = _Hold(lines, past)
        self._holds.append(hold)
        until = "" if past is None else f" until {past} has delivered"
        self._tell(f"{lines} is held{until}")
        for line in self._kernels().lines:
            line.look()
        if seconds < math.inf:
            self._later(seconds, f"{lines} goes on", lambda: self._release(hold))

    def _release(self, hold: _Hold) -> None:
        if hold in self._holds:
            self._holds.remove(hold)
            for line in self._kernels().lines:
                line.look()

    def is_held(self, line: Line) -> bool:
        """Whether a line's next message has to wait."""
        return any(fnmatchcase(line.name, hold.lines) for hold in self._holds)

    def delivered(self, line: Line) -> None:
        """Called by a line that has delivered a message."""
        for hold in list(self._holds):
            if hold.past is not None and fnmatchcase(line.name, hold.past):
                self._release(hold)

    def exhaust_descriptors(self, *, seconds: float = math.inf) -> None:
        """Let there be no file descriptor left, for virtual seconds.

        `simulated_kernel` has a number of them as ``descriptors=``, which subshells take and give
        back.

        Raises:
            RuntimeError: there is no simulated kernel.
        """
        network = self._kernels()
        self._tell("there is no file descriptor left")
        network.exhausted += 1
        if seconds < math.inf:
            self._later(seconds, "there are file descriptors again", network.have_descriptors)

    def vanish(self, client: Client, *, at: int = 0) -> None:
        """Let a client go without a word, now or when it has taken n more messages.

        Its ``async with`` block is cancelled: it was a part of what has gone. (`Client.vanish`
        leaves the block as it is.)

        Raises:
            ValueError: this client isn't connected.
        """
        met = self._met(client)

        def go() -> None:
            self._tell(f"{client.name} vanishes")
            client.vanish()
            met.scope.cancel()

        client.when_taken(at, go)

    def stop_reading(
        self, client: Client, channel: Channel, *, at: int = 0, seconds: float = math.inf
    ) -> None:
        """Let a client read no more from a channel, now or when it has taken n more messages.

        Args:
            client: the one.
            channel: which.
            at: n.
            seconds: how many virtual seconds; then it reads on.

        Raises:
            ValueError: this client isn't connected.
        """
        met = self._met(client)

        def stop() -> None:
            self._tell(f"{client.name} doesn't read {channel}")
            client.stop_reading(channel)
            if seconds < math.inf:
                self._later(
                    seconds,
                    f"{client.name} reads {channel} again",
                    lambda: _soon(met, client.read_on, channel),
                )

        client.when_taken(at, stop)

    def _met(self, client: Client) -> Met:
        met = self._kernels().met.get(client.name)
        if met is None or met.client is not client:
            raise ValueError(f"the client {client.name!r} isn't connected to this kernel")
        return met

    def pass_over(self) -> None:
        """Called in the loop of its clients when a kernel is left: what lasts, doesn't any more."""
        for node in list(self._capacities):
            self._free(node)
        for hold in list(self._holds):
            self._release(hold)
        if self._network is not None:
            self._network.exhausted = 0
            for met in self._network.met.values():
                for channel in CLIENT_CHANNELS:
                    met.client.read_on(channel)

    # ------------------------------------------------------------------------------ by chance

    def begin_chance(self) -> None:
        """From now on, faults may come by chance, if that was wanted."""
        if self._by_chance is not None:
            self._simulation.may_fault = True

    def end_chance(self) -> None:
        """From now on, none does."""
        self._simulation.may_fault = False

    @property
    def come_by_chance(self) -> bool:
        """Whether they may."""
        return self._by_chance is not None

    def explains(self, error: BaseException | None) -> bool:
        """Whether an exception is nothing but what actors were made to raise, and its echo."""
        errors = [] if error is None else list(leaves(error))
        raised = [any(each is other for other in self.raised) for each in errors]
        return any(raised) and all(
            known or isinstance(each, ActorTerminated)
            for known, each in zip(raised, errors, strict=True)
        )

    def draw(self) -> Turn | None:
        """Called by the simulation at each decision: the fault that is injected instead."""
        assert self._by_chance is not None
        assert self._simulation.chance is not None
        if self._drawn >= self._by_chance.most:
            return None
        if self._rng is None:
            self._rng = self._simulation.chance("faults")
            # As likely to come in the next ten decisions as in the hundred or thousand after that.
            self._rate = 0.5 ** self._rng.uniform(2, 11)
        if self._rng.random() >= self._rate:
            return None
        kinds: dict[str, list[tuple[str, Callable[[], None]]]] = {}
        for kind, name, happen in self._possible():
            kinds.setdefault(kind, []).append((name, happen))
        if not kinds:
            return None
        weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
        (kind,) = self._rng.choices(list(kinds), weights)
        name, happen = self._rng.choice(kinds[kind])
        return self._turn(name, happen)

    def named(self, name: str) -> Turn | None:
        """The fault of that name, if it is possible now."""
        if self._by_chance is not None and name.startswith(FAULT_PREFIX):
            for _, other, happen in self._possible():
                if f"{FAULT_PREFIX}{other}" == name:
                    return self._turn(other, happen)
        return None

    def _turn(self, name: str, happen: Callable[[], None]) -> Turn:
        self._drawn += 1
        return self._simulation.happening(None, f"{FAULT_PREFIX}{name}", happen)

    def _possible(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        """What could go wrong now: its kind, its name, and what makes it so."""
        assert self._by_chance is not None
        for kind in self._by_chance.kinds:
            for name, happen in _BY_KIND[kind](self):
                yield kind, name, happen

    def _actors_to_fail(self) -> Iterator[tuple[str, Callable[[], None]]]:
        assert self._by_chance is not None
        seen: set[Node] = set()
        for turn in self._simulation.turns:
            node = None if turn.task is None else _node_of(turn.task)
            if (
                node is not None
                and node not in seen
                and _is_named(node, self._by_chance.actors)
                and turn.task is not None
                and _may_raise(turn.task)
            ):
                seen.add(node)
                failure = _Failure(node.name, 1, node=node)
                yield f"{node.name} fails", lambda it=failure: self._failures.append(it)  # type: ignore[misc]

    def _mailboxes_to_fill(self) -> Iterator[tuple[str, Callable[[], None]]]:
        assert self._by_chance is not None
        for node in self._living():
            bounded = node.queue.capacity < math.inf and node not in self._capacities
            if bounded and _is_named(node, self._by_chance.actors):
                yield (
                    f"the mailbox of {node.name} is full",
                    lambda it=node: self._fill(it, FAULT_LASTS),  # type: ignore[misc]
                )

    def _lines_to_hold(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self._network is not None:
            for line in self._network.lines:
                if len(line) and not self.is_held(line):
                    yield (
                        f"{line.name} is held",
                        lambda it=line.name: self._hold(it, None, FAULT_LASTS),  # type: ignore[misc]
                    )

    def _some_clients(self) -> Iterator[Met]:
        assert self._by_chance is not None
        pattern = self._by_chance.clients
        for name, met in {} if self._network is None else self._network.met.items():
            if fnmatchcase(name, pattern) if pattern is not None else name != FIRST_CLIENT:
                yield met

    def _clients_to_go(self) -> Iterator[tuple[str, Callable[[], None]]]:
        for met in self._some_clients():
            yield (
                f"{met.client.name} vanishes",
                lambda it=met: _soon(it, self._if_there, it, self.vanish),  # type: ignore[misc]
            )

    def _readers_to_stop(self) -> Iterator[tuple[str, Callable[[], None]]]:
        for met in self._some_clients():
            for channel in met.client.reading:
                stop = partial(self.stop_reading, channel=channel, seconds=FAULT_LASTS)
                yield (
                    f"{met.client.name} doesn't read {channel}",
                    lambda it=met, how=stop: _soon(it, self._if_there, it, how),  # type: ignore[misc]
                )

    def _if_there(self, met: Met, do: Callable[[Client], None]) -> None:
        if self._kernels().met.get(met.client.name) is met:
            do(met.client)

    def _descriptors_to_exhaust(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self._network is not None and not self._network.exhausted:
            yield (
                "there is no file descriptor left",
                lambda: self.exhaust_descriptors(seconds=FAULT_LASTS),
            )

    def _thread_to_fail(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if not self._no_thread:
            yield "the next thread can't be started", self.fail_thread

    def _join_to_delay(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if not self._late_joins:
            yield "the next thread takes its time to end", lambda: self.delay_join(FAULT_LASTS)

    # ---------------------------------------------------------------------------------- both

    def _later(self, seconds: float, name: str, happen: Callable[[], object]) -> None:
        turn = self._simulation.happening(None, name, happen)
        self._simulation.add_at(self._simulation.clock.now + seconds, turn)

    def _tell(self, text: str, short: str = "") -> None:
        self.injected.append(text)
        if self._simulation.recorder is not None:
            self._simulation.recorder.fault(self._simulation, short or text)


_WEIGHTS: Final = {"actor": 6, "line": 4, "mailbox": 2, "client": 2}
"""Of the kinds that differ by when they come, and to whom; the others weigh 1."""

_BY_KIND: Final[dict[str, Callable[[Faults], Iterator[tuple[str, Callable[[], None]]]]]] = {
    "actor": Faults._actors_to_fail,
    "mailbox": Faults._mailboxes_to_fill,
    "line": Faults._lines_to_hold,
    "client": Faults._clients_to_go,
    "reader": Faults._readers_to_stop,
    "descriptors": Faults._descriptors_to_exhaust,
    "thread": Faults._thread_to_fail,
    "join": Faults._join_to_delay,
}


_SUBSHELL: Final = "subshell "
_RESTARTED: Final = frozenset({"stdin", "iopub"})


def _soon(met: Met, do: Callable[..., object], *args: object) -> None:
    """Have something done in a client's loop, unless that has ended."""
    with suppress(trio.RunFinishedError):
        met.token.run_sync_soon(do, *args)


def _node_of(task: trio.lowlevel.Task) -> Node | None:
    """Which actor a task belongs to."""
    place = task.context.get(_supervision._place)
    return None if place is None or place.node.host == "root" else place.node


def _is_named(node: Node, name: str) -> bool:
    return _matches(node.name, name)


def _matches(actor: str, name: str) -> bool:
    return fnmatchcase(actor, name) or fnmatchcase(actor.removeprefix(_SUBSHELL), name)


def _may_raise(task: trio.lowlevel.Task) -> bool:
    """Whether a task waits at an await of its actor's own code, which may fail.

    Others are: what has not begun; trio's own wait for a nursery's tasks, and a warden's for its
    thread, which can't fail, as all that they hold together would come apart; a checkpoint after
    something that is done, and isn't undone; and what is around an actor, or serves its loop.
    """
    if inspect.getcoroutinestate(task.coro) != inspect.CORO_SUSPENDED:
        return False
    names: set[str] = set()
    own_code = False
    for frame, _ in task.iter_await_frames():
        if frame.f_code.co_name == "_run_actor":
            names.clear()  # how it got there is its supervisor's business
            own_code = False
        else:
            names.add(frame.f_code.co_name)
            module = frame.f_globals.get("__name__", "")
            own_code = own_code or not module.startswith(_NOT_AN_ACTORS)
    if "cancel_shielded_checkpoint" in names and "checkpoint" not in names:
        return False
    return own_code and names.isdisjoint(_CANT_FAIL)


_NOT_AN_ACTORS: Final = ("trio.", f"{__package__}.")
_CANT_FAIL: Final = frozenset({"_nested_child_finished", "wait_finished", "_supervise", "root"})
