"""The simulator: threads, time and the order of things, all in one OS thread and all by decision.

A `Simulation` runs one schedule. Its threads are `Loop`s, each with the trio loop that a real
thread would have; the actors that run in them can't tell the difference. Whenever more than one
thing could happen next, a *decision* is made, by a strategy: which of the runnable tasks makes its
next step (up to its next checkpoint), which happening takes place, or whether time passes.

What can happen is kept in one list, oldest first. Where several things have become possible in the
same step, in an order that depends on addresses of objects (trio keeps sets), they are put in the
order in which their tasks were spawned. So a schedule depends on the decisions and on nothing else.

The default decision is to go on with the task that ran last, else with what has waited longest. A
turn may be held: then it is the default only where nothing else can happen, until it is chosen.
A schedule is written down as its deviations from that (`_schedules`).

A fault that chance brings (`_faults`) is such a deviation, too: at each decision one could be
injected, and by default none is. What is injected is taken in between, as passing time is. So is a
thread that is stopped in the midst of its step (`_preemption`), which can be at many places.

Each thread has a greenlet, so that synchronous code can block its thread while the others go on.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from threading import get_ident as real_ident
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import attrs
import outcome
import trio
from greenlet import GreenletExit, getcurrent, greenlet

from ..actors._queue import Queue
from ..actors._transport import TrioBell
from ._errors import Deadlock, LostMessage, NoProgress, Starvation, Unjoined
from ._loops import Descriptor, Loop, VirtualClock, restore_place, save_place

if TYPE_CHECKING:
    from ._faults import Faults
    from ._preemption import Locks, Stop

TIME: Final = -1
"""What a strategy chooses to let time pass, though something could happen now."""

TIME_PASSES: Final = "time"
"""How a deviation says so."""

FAULT: Final = -2
"""What a strategy chooses to inject ``simulation.fault``, which it has set."""

FAULT_PREFIX: Final = "fault: "
"""How the name of such a turn begins."""

_ROOT: Final = "Simulation.start_thread.<locals>.root"

_LAST_STEPS: Final = 1_000
"""Steps by which a run that doesn't end is described."""

_STEPS_TO_END: Final = 5_000
"""Steps that the tasks have to end after a failure, being cancelled; then they are closed."""


class Turn:
    """Something that can happen next: a step of a task, or a happening.

    Attributes:
        thread: whose it is; None for a happening that is no thread's.
        task: the task; None for a happening.
        happen: what happens; None for a task.
        name: unique in a run, and the same in each run of the same schedule.
        order: when it was first seen, counted.
        since: the decision from which on it could have happened.
        behind: whether it waits until nothing else can happen, see `Simulation.hold`.
    """

    __slots__ = ("behind", "happen", "name", "order", "priority", "since", "task", "thread")

    def __init__(
        self,
        thread: SimulatedThread | None,
        name: str,
        order: int,
        task: trio.lowlevel.Task | None = None,
        happen: Callable[[], object] | None = None,
    ) -> None:
        self.thread = thread
        self.name = name
        self.order = order
        self.task = task
        self.happen = happen
        self.since = 0
        self.priority = 0.0
        self.behind = False

    def __repr__(self) -> str:
        return f"<Turn {self.name}>"


class Recorder:
    """What a `Simulation` tells of a run, while it runs; here nobody listens."""

    def fresh(self) -> list[trio.lowlevel.Task]:
        """The list in which a new simulation collects the tasks that become runnable."""
        return []

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        """This is next; instead of ``simulation.instead``, if that isn't None, the default."""

    def spawned(self, simulation: Simulation, turn: Turn) -> None:
        """A task has been seen for the first time."""

    def time(self, simulation: Simulation) -> None:
        """Time has passed, and what is due is about to be told; ``simulation.instead`` as above."""

    def fault(self, simulation: Simulation, text: str) -> None:
        """A fault has an effect, in the step that was begun last, or between two steps."""

    def preempted(self, simulation: Simulation, turn: Turn, place: str) -> None:
        """The step that was begun last is stopped in its midst, for others to go on first.

        Args:
            simulation: which one.
            turn: whose step it is.
            place: where, as it is in a schedule; ``trio_subshells.testing._preemption.Stop``.
        """


class Chooser(Protocol):
    """What a strategy makes for one schedule."""

    def choose(self, simulation: Simulation, default: int) -> int:
        """Which of ``simulation.turns`` is next: its index, `TIME`, or `FAULT`.

        Only asked where there are at least two, or where `wants_time` is true and time could pass,
        or where ``simulation.may_fault`` is true.
        """

    @property
    def wants_time(self) -> bool:
        """Whether time may pass before everything has come to rest."""


@attrs.frozen
class Deviation:
    """A decision that wasn't the default.

    Attributes:
        decision: which one, counted from 0.
        choice: the name of the turn that was chosen.
        holds: not chosen, but held from then on: it waits until nothing else can happen.
        instead: the name of the turn that was the default; of the one that was stopped.
        preempts: no decision, but a thread that was stopped before the one of that number; the
            choice is where.
    """

    decision: int
    choice: str
    holds: bool = False
    instead: str = attrs.field(default="", eq=False)
    preempts: bool = False

    @property
    def decides(self) -> bool:
        """Whether nothing else can be decided in the decision of that number."""
        return not self.holds and not self.preempts


class SimulatedThread:
    """A thread of the simulated process: a trio loop, and whether synchronous code blocks it."""

    def __init__(self, name: str, ident: int) -> None:
        self.name = name
        self.ident = ident
        self.loop: Loop
        self.greenlet: greenlet
        self.stand_in: threading.Thread | None = None  # for threading.current_thread()
        self.blocked: Turn | None = None
        self.blocked_since = 0.0
        self.interruptible = True
        self.paused = False
        self.struck: Turn | None = None
        self.error: type[BaseException] | None = None
        self.held: list[Turn] = []
        self.ended: Callable[[outcome.Outcome[object]], None]

    def forget(self) -> None:
        """The run is over: hold nothing of it, so that what was made in it goes at once."""
        self.loop.forget()
        del self.ended, self.greenlet
        self.held.clear()

    def __repr__(self) -> str:
        return f"<SimulatedThread {self.name}>"


# Slots, as they are looked at many times in each step; and neither validators nor converters, which
# would make each assignment a call.
@attrs.define(eq=False, repr=False)
class Simulation:
    """One run of an async function, under control.

    Args:
        chooser: makes the decisions.
        max_steps: how many steps a run may take before it counts as one without progress.
        fairness: how many decisions a turn may wait at most; None for no bound.
        lag: how many virtual seconds may pass, at most, before what could happen has happened: how
            slow the simulated machine may be.
        max_time: how many virtual seconds a run may take; one that takes longer is as above.
        starvation: how many virtual seconds synchronous code may block a thread in which something
            else could go on.
        checks: called after each step; what one raises is the run's failure.
        recorder: notes what happens, for a report; that takes time.
        chance: makes the generator by which what its name says is drawn, as faults are; None: that
            doesn't come by chance.
    """

    current: ClassVar[Simulation | None] = None
    """The one that runs, in the OS thread that runs it."""

    _chooser: Chooser
    _max_steps: float = attrs.field(default=100_000, kw_only=True)
    fairness: int | None = attrs.field(default=None, kw_only=True)
    _lag: float = attrs.field(default=math.inf, kw_only=True)
    _max_time: float = attrs.field(default=math.inf, kw_only=True)
    _starvation: float = attrs.field(default=math.inf, kw_only=True)
    checks: list[Callable[[], object]] = attrs.field(factory=list, kw_only=True)
    recorder: Recorder | None = attrs.field(default=None, kw_only=True)
    chance: Callable[[str], random.Random] | None = attrs.field(default=None, kw_only=True)

    # What is next

    turns: list[Turn] = attrs.field(factory=list, init=False)
    decisions: int = attrs.field(default=0, init=False)
    trace: list[int] = attrs.field(factory=list, init=False)
    instead: Turn | None = attrs.field(default=None, init=False)
    _deviated: list[tuple[int, str, bool, str, bool]] = attrs.field(factory=list, init=False)
    _turn: Turn | None = attrs.field(default=None, init=False)
    _fresh: list[trio.lowlevel.Task] = attrs.field(init=False)
    _known: dict[trio.lowlevel.Task, Turn] = attrs.field(factory=dict, init=False)
    _orders: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _names: dict[str, int] = attrs.field(factory=dict, init=False)
    _holds: bool = attrs.field(default=False, init=False)
    """Whether there was ever a turn that is held."""
    stepping: bool = attrs.field(default=False, init=False)
    """Whether what runs is a task's step, and not what takes place between two steps."""
    ids: Iterator[int] = attrs.field(factory=functools.partial(itertools.count, 1), init=False)
    """For what has to be unique, and the same in each run of a schedule."""

    # Time

    clock: VirtualClock = attrs.field(factory=VirtualClock, init=False)
    may_pass_time: bool = attrs.field(default=False, init=False)
    _wants_time: bool = attrs.field(init=False)
    _timers: list[tuple[float, int, Turn]] = attrs.field(factory=list, init=False)
    _rested_at: float = attrs.field(default=0.0, init=False)

    # Threads

    threads: list[SimulatedThread] = attrs.field(factory=list, init=False)
    unjoined: list[str] = attrs.field(factory=list, init=False)
    """The threads that were started and have not been joined, by name."""
    os_thread: int = attrs.field(default=0, init=False)
    kept: list[tuple[Callable[[], Any], Callable[[Any], object]]] = attrs.field(
        factory=list, init=False
    )
    """How to take away and to give back what belongs to an OS thread, here to each."""
    _thread_of: dict[object, SimulatedThread] = attrs.field(factory=dict, init=False)
    _idents: Iterator[int] = attrs.field(factory=functools.partial(itertools.count, 1), init=False)
    _entered: SimulatedThread | None = attrs.field(default=None, init=False)
    _root: greenlet = attrs.field(factory=getcurrent, init=False)

    # Threads that are stopped in the midst of a step

    locks: Locks | None = attrs.field(default=None, init=False)
    """What stands for locks, if threads may be stopped in the midst of a step."""
    locked: int = attrs.field(default=0, init=False)
    """How many of those are taken."""
    stops: list[Stop] = attrs.field(factory=list, init=False)
    """Where steps were stopped in their midst, counted from the start of the run."""
    patient: bool = attrs.field(default=False, init=False)
    """Whether who is stopped in the midst of a step waits as long as anything else can happen,
    whatever the chooser says."""
    _deferred: list[Turn] = attrs.field(factory=list, init=False)
    _preempted: int = attrs.field(default=0, init=False)
    _stopped: Turn | None = attrs.field(default=None, init=False)

    # The world around

    faults: Faults | None = attrs.field(default=None, init=False)
    may_fault: bool = attrs.field(default=False, init=False)
    """Whether a fault may be injected instead of each decision."""
    fault: Turn | None = attrs.field(default=None, init=False)
    queues: dict[Queue[Any], None] = attrs.field(factory=dict, init=False)
    """Every queue that something receives, or has received, from: mailboxes, sockets."""
    descriptors: dict[int, Descriptor] = attrs.field(factory=dict, init=False)
    """What the tasks of all threads may wait for; `_descriptors.Descriptor`."""
    sockets: Any = attrs.field(default=None, init=False)
    """The world of simulated ZMQ sockets; `_zmq` makes it with the first one."""

    # The end

    failure: BaseException | None = attrs.field(default=None, init=False)
    failed_at: int = attrs.field(default=-1, init=False)
    is_over: bool = attrs.field(default=False, init=False)
    checks_at_rest: list[Callable[[], object]] = attrs.field(init=False)
    """Called when nothing can happen until time passes; what one raises is the failure."""
    at_end: list[Callable[[], object]] = attrs.field(factory=list, init=False)
    """Called when the run is over."""
    cancelling: list[trio.lowlevel.Task] | None = attrs.field(default=None, init=False)
    """Who is to be told of the cancellation that trio looks for; None: it looks for none."""
    _cancel_all: list[tuple[SimulatedThread, trio.CancelScope]] = attrs.field(
        factory=list, init=False
    )

    def __attrs_post_init__(self) -> None:
        self._fresh = [] if self.recorder is None else self.recorder.fresh()
        self._wants_time = self._chooser.wants_time
        self.checks_at_rest = [self._check_queues]

    # ----------------------------------------------------------------------------- the run

    def run(self, body: Callable[[], Awaitable[object]]) -> outcome.Outcome[object]:
        """Run `body` in a simulated main thread, and all that it starts, to the end."""
        results: list[outcome.Outcome[object]] = []
        outside = Simulation.current
        Simulation.current = self
        self.os_thread = real_ident()
        place = save_place()
        try:
            self.start_thread("main", body, results.append)
            self._turn = self._decide()
            while self._turn is not None:
                self._switch_to(self._turn)
        finally:
            self._turn = None
            self.is_over = True
            for thread in reversed(self.threads):
                if thread.blocked is not None:
                    thread.greenlet.throw(GreenletExit)  # out of the code that blocks it
                thread.loop.abandon()
            restore_place(place)
            Simulation.current = outside
            for thread in self._thread_of.values():
                thread.forget()
            self._known.clear()
            self._thread_of.clear()
            self._cancel_all.clear()
            self.kept.clear()
            self.locks = None
            self._deferred.clear()
            self._stopped = None
        for call in self.at_end:
            call()
        self.at_end.clear()
        if self.failure is not None:
            return outcome.Error(self.failure)
        return results[0]

    def start_thread(
        self,
        name: str,
        body: Callable[[], Awaitable[object]],
        ended: Callable[[outcome.Outcome[object]], None],
    ) -> SimulatedThread:
        """Start a thread that runs a trio loop with `body`; `ended` is called at its end."""

        async def root() -> object:
            with trio.CancelScope() as scope:
                self._cancel_all.append((thread, scope))
                if self.failure is not None:
                    scope.cancel()
                return await body()
            return None

        thread = SimulatedThread(name, -next(self._idents))
        thread.loop = Loop(root, self.clock, self._fresh.append, self.descriptors)
        thread.greenlet = greenlet(lambda: self._serve(thread), self._root)
        thread.ended = ended
        self.threads.append(thread)
        self._thread_of[thread.loop.runner] = thread
        self._begin(thread)
        return thread

    def _begin(self, thread: SimulatedThread) -> None:
        """Let trio's own tasks in a new loop make their first steps, whose order doesn't matter."""
        entered, place = self._entered, save_place()
        self._step(thread, None)
        first = self._fresh.pop()
        self._register(first)
        self._step(thread, first)
        runner = thread.loop.runner
        for task in [each for each in self._fresh if each._runner is runner]:
            self._register(task)
            if task is not runner.main_task:
                self._fresh.remove(task)
                self._step(thread, task)
        restore_place(place)
        self._entered = entered
        if entered is not None:
            entered.loop.enter()

    def _serve(self, thread: SimulatedThread) -> None:
        """What the greenlet of a thread does, until its loop has finished."""
        loop = thread.loop
        while (turn := self._turn) is not None:
            if turn.thread is not thread:
                self._switch_to(turn)
                continue
            task = turn.task
            assert task is not None
            if self.faults is not None and self.failure is None:
                self.faults.before_step(task)
            if self._entered is not thread:
                self.enter(thread)
            self.stepping = True
            try:
                loop.step(task)
            except BaseException as error:
                self._died(thread, error)
            self.stepping = False
            if loop.finished:
                self._end_of(thread)
            if self._turn is not turn:
                return  # the run is over: the step was blocked, and has been abandoned
            self._turn = self._decide()
            if loop.finished:
                return

    def _switch_to(self, turn: Turn) -> None:
        """Let the greenlet of its thread go on."""
        going_on = turn.thread.greenlet  # type: ignore[union-attr]  # what was decided has one
        if going_on.dead:  # so is its loop: nothing of it happens any more
            self._turn = self._decide()
        else:
            going_on.switch()

    def _step(self, thread: SimulatedThread, task: trio.lowlevel.Task | None) -> None:
        """Let a loop make a step in between: it is nobody's turn."""
        before = self._entered
        if thread is not before:
            self.enter(thread)
        within, self.stepping = self.stepping, False
        try:
            thread.loop.step(task)
        except BaseException as error:
            self._died(thread, error)
        self.stepping = within
        if thread.loop.finished:
            self._end_of(thread)
        elif task is None and before is not None and before is not thread:
            self.enter(before)

    def _died(self, thread: SimulatedThread, error: BaseException) -> None:
        """A loop has ended with an error of trio's own, and with tasks in it."""
        self.fail(error)
        runner = thread.loop.runner
        self.turns[:] = [each for each in self.turns if each.thread is not thread]
        self._fresh[:] = [each for each in self._fresh if each._runner is not runner]

    def _end_of(self, thread: SimulatedThread) -> None:
        self._entered = None
        self.threads.remove(thread)
        result = thread.loop.runner.main_task_outcome
        if result is None:
            result = outcome.Error(self.failure or trio.TrioInternalError("the loop has died"))
        thread.ended(result)
        if thread.name == "main" and self.failure is None:
            if self.threads:
                names = ", ".join(each.name for each in self.threads)
                self.fail(Unjoined(f"the run has ended, but these threads go on: {names}"))
            elif self.unjoined:
                names = ", ".join(self.unjoined)
                self.fail(
                    Unjoined(f"these threads have ended, but nobody has joined them: {names}")
                )

    def fail(self, error: BaseException) -> None:
        """The run has failed: end it. The first failure is the one that counts."""
        if self.failure is None:
            self.failure = error
            self.failed_at = len(self.trace)
            self._max_steps = len(self.trace) + _STEPS_TO_END
            place = save_place()
            for thread, scope in self._cancel_all:
                if not thread.loop.finished:
                    thread.loop.enter()
                    scope.cancel()
            restore_place(place)
            if self._entered is not None:
                self._entered.loop.enter()

    # ------------------------------------------------------------------------- what is next

    @property
    def deviations(self) -> list[Deviation]:
        """The schedule: the decisions that weren't the default."""
        return [Deviation(*each) for each in self._deviated]

    def _decide(self, preferred: Turn | None = None) -> Turn | None:
        """The next thing to happen; None if all is over.

        Args:
            preferred: what is the default, if it is possible.
        """
        if self.checks and self.failure is None and not self._preempted:
            self._run_checks(self.checks)
        turns = self.turns
        last = self._turn
        default = 0
        while True:
            if self._deferred and not (self.locked and turns):
                self._turn = None
                self._take_place(self._deferred.pop(0))
                continue
            if self._fresh:
                default = self._take_fresh(last, default)
            if preferred is not None and preferred in turns:
                default = len(turns) - 1 if turns[-1] is preferred else turns.index(preferred)
            if len(self.trace) >= self._max_steps:
                if self.failure is not None:
                    return None
                self.fail(self._no_progress())
                continue
            if not turns:
                if not self._come_to_rest():
                    return None
                continue
            if self.failure is not None or (
                len(turns) == 1 and not self._wants_time and not self.may_fault
            ):
                index = 0
            else:
                index = self._choose(default)
                if index == TIME:
                    continue
                if index == FAULT:
                    default = turns.index(last) if last is not None and last in turns else 0
                    continue
            turn = turns.pop(index)
            self.trace.append(turn.order)
            if self.recorder is not None:
                self.recorder.turn(self, turn)
            if turn.happen is None:
                return turn
            last = None
            default = 0
            self._turn = None
            if self.locked and turn.thread is None:
                self._deferred.append(turn)  # no thread that could wait for a lock it may want
                continue
            self._take_place(turn)
            if turn.thread is not None:
                return turn  # its thread was blocked until then

    def _take_place(self, turn: Turn) -> None:
        assert turn.happen is not None
        try:
            turn.happen()
        except Exception as error:  # what is woken doesn't wait, or is gone
            self.fail(error)

    def _choose(self, default: int) -> int:
        turns = self.turns
        if self._wants_time:
            due = self.next_time()
            soon = due < math.inf and due - self._rested_at <= self._lag
            self.may_pass_time = soon and not self.locked  # a timeout might want a lock
            if len(turns) == 1 and not self.may_pass_time and not self.may_fault:
                return 0
        decision = self.decisions
        self.decisions = decision + 1
        if self._holds:
            default = self.front(default)
        by_default = turns[default]
        if self.may_fault and self._draw_fault():
            index = FAULT
        elif self.fairness is not None and decision - turns[0].since > self.fairness:
            index = 0
        else:
            index = self._chooser.choose(self, default)
            if self.patient and index >= 0 and turns[index].behind:
                index = self.front(index)
        if by_default.behind:
            default = self.front(default)
        stopped, self._stopped = self._stopped, None
        if index != default:
            self.instead = by_default
            if index == TIME:
                self._deviated.append((decision, TIME_PASSES, False, by_default.name, False))
                self._pass_time()
            elif index == FAULT:
                assert self.fault is not None
                self._deviated.append((decision, self.fault.name, False, by_default.name, False))
                self._inject(self.fault)
            else:
                turn = turns[index]
                turn.behind = False
                self._deviated.append((decision, turn.name, False, by_default.name, False))
        elif turns[default] is not by_default:
            self.instead = by_default
        elif stopped is not None:
            self.instead = stopped
        return index

    def _draw_fault(self) -> bool:
        if self.chance is None or self.faults is None:
            return False
        self.fault = self.faults.draw()
        return self.fault is not None

    def tasks(self) -> Iterator[trio.lowlevel.Task]:
        """The tasks that were seen, in the order in which that was; also those that have ended."""
        return iter(list(self._known))

    def fault_named(self, name: str) -> bool:
        """Whether this fault can be injected now; if so, it is the one that `FAULT` means."""
        self.fault = self.faults.named(name) if self.may_fault and self.faults is not None else None
        return self.fault is not None

    def _inject(self, fault: Turn) -> None:
        assert fault.happen is not None
        self.trace.append(fault.order)
        if self.recorder is not None:
            self.recorder.turn(self, fault)
        turn, self._turn = self._turn, None
        fault.happen()
        self._turn = turn

    def hold(self, turn: Turn) -> None:
        """Let a turn wait from this decision on, until nothing else can happen or it is chosen.

        For choosers, about the turn that is the default.
        """
        turn.behind = self._holds = True
        self._deviated.append((self.decisions - 1, turn.name, True, turn.name, False))

    def front(self, default: int) -> int:
        """The default, or the first turn that isn't held if that one is."""
        if self.turns[default].behind:
            for index, turn in enumerate(self.turns):
                if not turn.behind:
                    return index
        return default

    def _take_fresh(self, last: Turn | None, default: int) -> int:
        """Put into the list what has become possible; return which is the default."""
        fresh = self._fresh
        known = self._known
        if len(fresh) == 1:
            task = fresh.pop()
            new: tuple[Turn, ...] | list[Turn] = (known.get(task) or self._register(task),)
        else:
            new = [known.get(task) or self._register(task) for task in fresh]
            new.sort(key=_order)
            fresh.clear()
        turns = self.turns
        now = self.decisions
        for turn in new:
            turn.since = now
            assert turn.thread is not None
            if turn.thread.blocked is not None:
                turn.thread.held.append(turn)
                continue
            if turn is last:
                default = len(turns)
            turns.append(turn)
        return default

    def _register(self, task: trio.lowlevel.Task) -> Turn:
        thread = self._thread_of[task._runner]
        parent = None
        if task.parent_nursery is not None:
            parent = self._known.get(task.parent_nursery.parent_task)
        if parent is None:
            name = f"{thread.name}<init>"
        elif "/" in task.name:
            name = task.name  # an actor's path
        elif parent.name.endswith("<init>"):
            short = _short(task.name)
            short = short if short.startswith("<") else f"<{short}>"
            name = thread.name if task.name.endswith(_ROOT) else f"{thread.name}{short}"
        else:
            name = f"{parent.name}/{_short(task.name)}"
        number = self._names[name] = self._names.get(name, 0) + 1
        if number > 1:
            name = f"{name}#{number}"
        turn = Turn(thread, name, next(self._orders), task)
        self._known[task] = turn
        if self.recorder is not None:
            self.recorder.spawned(self, turn)
        return turn

    def _come_to_rest(self) -> bool:
        """Nothing can happen now: what does next? False: nothing ever will."""
        if self.failure is None:
            self._run_checks(self.checks_at_rest)
            if self.failure is not None:
                return True
        for thread in self.threads:
            if thread.blocked is None and thread.loop.waits_for_idle():
                self.enter(thread)
                thread.loop.tell_idle()
                return True
        if self.next_time() < math.inf:
            self._pass_time()
            self._rested_at = self.clock.now
            return True
        if not self.threads:
            return False
        if self.failure is not None:
            return False
        self.fail(Deadlock.of(self))
        return True

    def _check_queues(self) -> None:
        """A queue with something in it, whose receiver sleeps, has not woken it."""
        for queue in self.queues:
            bell = queue._bell
            waiter = bell._waiter if isinstance(bell, TrioBell) else None
            if waiter is not None and not self.is_blocked(waiter):
                name = self._known[waiter].name
                if queue._values:
                    raise LostMessage.unnoticed(name, queue._values)
                if queue._closed is not None:
                    raise LostMessage(f"{name} waits for a message, and hasn't noticed the end")
            if queue._parked and len(queue._values) < queue.capacity:
                raise LostMessage.unsent([each.value for each in queue._parked])

    def _no_progress(self) -> NoProgress:
        first = max(0, len(self.trace) - _LAST_STEPS)
        steps = f"no end after {self._max_steps:,} steps; the last of these were of"
        return NoProgress.of(self, f"{steps} {self.busiest(first)}")

    def busiest(self, first: int) -> str:
        """The tasks that have made most of the steps from one on, in words."""
        names = {turn.order: turn.name for turn in self._known.values()}
        count = Counter(names[order] for order in self.trace[first:] if order in names)
        return ", ".join(f"{name} ({number:,})" for name, number in count.most_common(5))

    def is_blocked(self, task: trio.lowlevel.Task) -> bool:
        """Whether synchronous code blocks a task's thread, so that it can't even be woken."""
        thread = self._known[task].thread
        return thread is not None and thread.blocked is not None

    def name_of(self, task: trio.lowlevel.Task) -> str:
        """The name of a task's turn."""
        return self._known[task].name

    def enter(self, thread: SimulatedThread) -> None:
        """Let trio's functions mean this thread's loop, in a happening."""
        self._entered = thread
        thread.loop.enter()

    def _run_checks(self, checks: list[Callable[[], object]]) -> None:
        try:
            for check in checks:
                check()
        except Exception as error:
            self.fail(error)

    # --------------------------------------------------------------------------------- time

    def next_time(self) -> float:
        """When the next thing is due, in virtual seconds; `math.inf` if nothing is."""
        due = self._timers[0][0] if self._timers else math.inf
        for thread in self.threads:
            if thread.blocked is None and (deadline := thread.loop.next_deadline()) < due:
                due = deadline
        return due

    def _pass_time(self) -> None:
        """Let time pass until the next thing is due, and let it become possible."""
        self.clock.now = now = max(self.clock.now, self.next_time())
        if self.failure is None:
            self._watch_time(now)
        if self.recorder is not None:
            self.recorder.time(self)
        while self._timers and self._timers[0][0] <= now:
            self.add(heapq.heappop(self._timers)[2])
        for thread in list(self.threads):
            if thread.blocked is None and thread.loop.next_deadline() <= now:
                self._step(thread, None)

    def _watch_time(self, now: float) -> None:
        if now > self._max_time:
            self.fail(NoProgress.of(self, f"no end after {self._max_time:g} virtual seconds"))
        for thread in self.threads:
            if thread.held and not thread.paused and now - thread.blocked_since > self._starvation:
                self.fail(Starvation.by_blocking(thread, now - thread.blocked_since))

    # --------------------------------------------------------------------------- happenings

    def happening(
        self, thread: SimulatedThread | None, name: str, happen: Callable[[], object]
    ) -> Turn:
        """Make a happening, to `add` when it can take place, or `add_at` a time.

        Args:
            thread: whose; None: nobody's, as the arrival of a message is.
            name: for people; should be the same in each run of the same schedule.
            happen: called when it takes place.
        """
        return Turn(thread, name, next(self._orders), happen=happen)

    def add(self, turn: Turn) -> None:
        """Let it be possible from now on."""
        turn.since = self.decisions
        self.turns.append(turn)

    def add_at(self, time: float, turn: Turn) -> None:
        """Let it be possible from a time on, in virtual seconds."""
        heapq.heappush(self._timers, (time, turn.order, turn))

    def remove(self, turn: Turn) -> None:
        """Let it not be possible any more."""
        for turns in (self.turns, self._deferred):
            if turn in turns:
                turns.remove(turn)
        self._timers = [each for each in self._timers if each[2] is not turn]
        heapq.heapify(self._timers)

    # ------------------------------------------------------------------ synchronous blocking

    @property
    def thread(self) -> SimulatedThread | None:
        """The thread whose step this is, if any."""
        return self._turn.thread if self._turn is not None else None

    def block(self, resume: Turn, *, interruptible: bool = True) -> None:
        """Block the thread that runs until `resume`, which is its, takes place.

        Nothing else of that thread happens meanwhile: neither its other tasks nor its deadlines.

        Args:
            resume: what ends it.
            interruptible: whether `raise_in` ends it, too. Code in C that doesn't look is not.

        Raises:
            BaseException: what `raise_in` was told to raise.
        """
        thread = resume.thread
        assert thread is not None
        assert self._turn is not None
        assert thread is self._turn.thread
        interrupted = self._turn
        turns = self.turns
        thread.blocked = resume
        thread.blocked_since = self.clock.now
        held = [each for each in turns if each.thread is thread and each is not resume]
        if held:
            thread.held += held
            turns[:] = [each for each in turns if each.thread is not thread or each is resume]
        thread.interruptible = interruptible
        kept = [(give_back, take()) for take, give_back in self.kept]
        within, self.stepping = self.stepping, False
        self._turn = None
        self._turn = self._decide(resume)
        while self._turn is not resume and self._turn is not thread.struck:
            if self._turn is None:
                self._root.switch()  # the run is over, and this thread is abandoned
            else:
                self._switch_to(self._turn)
        if self._turn is resume:
            error = None
        else:
            self.remove(resume)
            error = thread.error
        self.withdraw(thread)
        thread.blocked = None
        for give_back, value in kept:
            give_back(value)
        self.turns += thread.held
        thread.held.clear()
        self._turn = interrupted
        self.stepping = within
        self._entered = thread
        thread.loop.enter(interrupted.task)
        if error is not None:
            raise error

    def pause(self, *, alone: bool = False) -> None:
        """Let other threads go on, if it is so decided, in the middle of this one's step.

        As an operating system may do anywhere. It is called before what other threads can see: then
        nothing is missed.

        Args:
            alone: whether happenings count as other threads if there are none.
        """
        if self._could_switch(alone=alone):
            self._pause(self.resumption())

    def is_here(self) -> bool:
        """Whether the caller is in the OS thread that simulates."""
        return real_ident() == self.os_thread

    def resumption(self) -> Turn:
        """The turn with which the step that runs goes on, if it is stopped."""
        turn = self._turn
        assert turn is not None
        return self.happening(turn.thread, f"{turn.name} goes on", _nothing)

    def could_preempt(self) -> bool:
        """Whether the step that runs can be stopped, as there is another that could go on."""
        return self.is_here() and self._could_switch()

    def preempt(self, place: str) -> None:
        """Stop the step that runs until nothing else can happen, or it is chosen.

        Args:
            place: where it is, as a schedule says it.
        """
        turn, resume = self._turn, self.resumption()
        assert turn is not None
        resume.behind = self._holds = True
        self._deviated.append((self.decisions, place, False, turn.name, True))
        if self.recorder is not None:
            self.recorder.preempted(self, turn, place)
        self._stopped = resume
        self._preempted += 1
        try:
            self._pause(resume)
        finally:
            self._preempted -= 1

    def block_for_lock(self, resume: Turn) -> None:
        """Block the thread that runs until `resume`, because another one has what it wants."""
        thread = self.thread
        assert thread is not None
        thread.paused = True  # neither is it struck, as it waits in C, nor does it starve anybody
        self.block(resume)
        thread.paused = False

    def _could_switch(self, *, alone: bool = False) -> bool:
        # Without an effect: a replay doesn't ask where in the first run the answer was no.
        turn = self._turn
        if turn is None or turn.thread is None or not self.stepping:
            return False
        if len(self.threads) < 2 and not alone:
            return False
        if self.failure is not None:
            return False
        thread = turn.thread
        for each in self.turns:
            if each.thread is not thread:
                return True
        for task in self._fresh:
            other = self._thread_of[task._runner]
            if other is not thread and other.blocked is None:
                return True
        return False

    def _pause(self, resume: Turn) -> None:
        thread = resume.thread
        assert thread is not None
        if self._fresh:
            self._take_fresh(None, 0)
        self.add(resume)
        thread.paused = True
        self.block(resume)
        thread.paused = False

    def which(self, *names: str) -> str | None:
        """Which of several things is so, though it could be otherwise; by default none is.

        Args:
            names: the things, for people.
        """
        if not self.stepping:
            return None
        if self._fresh:
            self._take_fresh(None, 0)
        if self.failure is not None:
            return None
        happened: list[str] = []

        def happens(name: str) -> None:
            happened.append(name)
            for each in happenings:
                self.remove(each)

        happenings = [
            self.happening(None, name, functools.partial(happens, name)) for name in names
        ]
        for each in happenings:
            self.add(each)
        self._pause(self.resumption())
        for each in happenings:
            self.remove(each)
        return happened[0] if happened else None

    def raise_in(self, thread: SimulatedThread, error: type[BaseException]) -> bool:
        """Raise an exception in a thread that is blocked, some time later.

        Returns whether it will be: not, if no synchronous code blocks the thread.
        """
        if thread.blocked is None or thread.paused:
            return False
        if thread.struck is not None:
            self.remove(thread.struck)
        thread.error = error
        thread.struck = self.happening(thread, f"{thread.name} is struck", _nothing)
        if thread.interruptible:
            self.add(thread.struck)
        return True

    def withdraw(self, thread: SimulatedThread) -> None:
        """Take back what `raise_in` was told, if it has not been raised."""
        if thread.struck is not None:
            self.remove(thread.struck)
            thread.struck = thread.error = None

    def sleep(self, seconds: float) -> None:
        """Block the thread that runs for virtual seconds."""
        thread = self.thread
        assert thread is not None
        resume = self.happening(thread, f"{thread.name} wakes up", _nothing)
        self.add_at(self.clock.now + seconds, resume)
        self.block(resume)


def _nothing() -> None:
    """What happens when a thread only goes on."""


def _order(turn: Turn) -> int:
    return turn.order


def _short(name: str) -> str:
    """A task's name for people: of ``package.module.Class.method.<locals>.f``, ``f``."""
    if name.startswith("<"):
        return name
    return name.rpartition(".")[2] or name
