"""What happened in one run of a schedule, noted for those who have to understand it.

A `Recorder` is given to a `Simulation` for one more run of a schedule that is known to fail. It
notes, for each step that a task makes: the lines of the user's code that ran and what they have
assigned, messages sent, taken and answered, who woke whom and why, who was spawned, who ended and
with what, and which decision led to the step. `_story` and `_diagram` tell it.

Messages are the actors', those of trio's channels, and what a simulated kernel and its clients send
each other. How a kernel does its work, in `trio_subshells`, is no business of whoever tests one:
its lines and its tasks are noted only if *details* are wanted, or where it has failed.

Nothing is slowed down but that one run: lines are seen by `sys.settrace`, messages by methods of
trio's memory channels and of the actors' queues and promises that are replaced as long as the
recorder is entered. Neither changes what happens next, so the run is the one that failed.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import linecache
import os
import re
import site
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import (
    CodeType,
    CoroutineType,
    FrameType,
    GeneratorType,
    MemberDescriptorType,
    ModuleType,
    TracebackType,
)
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import outcome
import trio
from trio._core import _run as trio_run

from ..actors._actor import Actor, ActorState, Ended
from ..actors._mailbox import Letter
from ..actors._promise import BlockingPromise, Promise
from ..actors._queue import Queue
from ..kernel import _guard, _stdin
from ..kernel._errors import text_of
from ..wire import Channel, WireSession
from ..wire import Message as WireMessage
from ..wire._session import DELIMITER
from . import _process, _simulation
from ._client import Client, Exchange
from ._errors import leaves
from ._network import SimulatedRouter

if TYPE_CHECKING:
    from ._simulation import SimulatedThread, Simulation, Turn

_MOST_LINES: Final = 60
"""Lines noted per step; what a loop does a thousand times needn't be told a thousand times."""

ONCE_MORE: Final = " once more"
"""How the text of a state ends that a kernel has published before for the same request."""

CANCELLED: Final = "is cancelled"
"""What is said of an await that ends so."""

STOPPED: Final = "is stopped here"
"""What is said of a line with which a thread was stopped, in the midst of a step."""

_MOST_WATCHED: Final = 600
"""The same where our own code's lines are noted, most of which are dropped afterwards."""

KERNEL: Final = "kernel"
"""The name of a simulated kernel's first thread; those that it starts are named after it."""

_PASSING: Final = (
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    trio.Cancelled,
    trio.WouldBlock,
    trio.EndOfChannel,
)
"""Exceptions that are part of how things work."""


@attrs.frozen
class Place:
    """A line of the user's code.

    Attributes:
        file: its path.
        line: its number.
        function: the innermost function it is in.
    """

    file: str
    line: int
    function: str

    @property
    def code(self) -> str:
        """The line, without indentation and comment; empty where the source isn't there."""
        return _without_comment(linecache.getline(self.file, self.line).strip())

    @property
    def short(self) -> str:
        """``file.py:12``; of ours, ``actors/_queue.py:12``."""
        file = os.path.basename(self.file)  # noqa: PTH119 - may be no path
        if self.file.startswith(_PACKAGE):
            file = self.file.removeprefix(_PACKAGE).replace(os.sep, "/")
        return f"{file}:{self.line}"


@attrs.frozen
class Via:
    """How our own code has come to do something that no line of the user's does.

    Attributes:
        place: the line: of the actor that does it, or the innermost one.
        path: the functions that lead there and on from there, ``name:line``, the innermost last.
    """

    place: Place
    path: tuple[str, ...]


@attrs.frozen
class By:
    """Who has cancelled, or interrupted, what another task did.

    Attributes:
        turn: the name of its turn; empty for time that has passed.
        place: its line: the user's, or of our own code; None if it has none.
    """

    turn: str
    place: Place | None


@attrs.define(eq=False)
class Message:
    """Something that one task has given to another.

    Attributes:
        kind: ``tell``, ``ask``, ``answer``, ``send``, or ``end`` (of an actor, to who watches it);
            between a kernel and its client, ``request`` and ``reply`` (``forward``, where a channel
            sends that later), ``publish`` and ``status`` (on iopub), ``prompt`` and ``input`` (on
            stdin).
        text: what it is, shortened.
        sender: the name of the turn that sent it.
        sent: the number of that step.
        receiver: the name of the turn that took it; of the one it is for, if that is known.
        taken: the number of the step that took it; None if none has.
        withdrawn: the sender was cancelled, or refused, before it was accepted.
        place: the line that sent it, if that is the user's.
        about: the request that it belongs to, or the ask that it answers.
        matters: whether the failure is about it; that is known afterwards.
        name: of a request: what to call it where another message is about it.
        exchange: of a request: its client's side of it.
        named: the line that has failed names it, or the request it belongs to.
        via: how our own code has come to send it.
        taken_via: how our own code has come to take it.
    """

    kind: str
    text: str
    sender: str
    sent: int
    receiver: str | None = None
    taken: int | None = None
    withdrawn: bool = False
    place: Place | None = attrs.field(default=None, repr=False)
    about: Message | None = attrs.field(default=None, repr=False)
    matters: bool = False
    name: str = ""
    exchange: Exchange | None = attrs.field(default=None, repr=False)
    named: bool = False
    via: Via | None = attrs.field(default=None, repr=False)
    taken_via: Via | None = attrs.field(default=None, repr=False)
    _value: object = attrs.field(default=None, repr=False)


@attrs.define(eq=False)
class Row:
    """A line of code that a step has run, with what that has led to.

    Attributes:
        place: where; None if no line of the user's was involved.
        effects: what followed: a message, or words.
        assigned: ``name = value``, if the line has assigned something that can be shown.
        resumed: the step began in the middle of this line, where the task had waited.
        raised: this is where the failure, or another exception, came up.
        watched: it is noted only because a thread was stopped in its file.
        of: which object's method it is part of, if it is watched.
        leaves: the block that begins with this line, a ``with``, is left.
        struck: who has had `raised` raised here, where it is an interrupt.
        did: how our own code has come to do what no line of the user's does.
    """

    place: Place | None
    effects: list[Sent | Taken | Spawned | Woke | Said] = attrs.field(factory=list)
    assigned: str = ""
    resumed: bool = False
    raised: BaseException | None = None
    watched: bool = False
    of: int = 0
    leaves: bool = False
    struck: By | None = None
    did: Via | None = None

    @property
    def via(self) -> Via | None:
        """How our own code has come to do the last of this."""
        for effect in reversed(self.effects):
            if isinstance(effect, Sent) and effect.message.via is not None:
                return effect.message.via
            if isinstance(effect, Taken) and effect.message.taken_via is not None:
                return effect.message.taken_via
        return self.did


@attrs.frozen(eq=False)
class Sent:
    """An effect: a message was sent."""

    message: Message


@attrs.frozen(eq=False)
class Taken:
    """An effect: a message was taken."""

    message: Message


@attrs.define(eq=False)
class Spawned:
    """An effect: a task was started."""

    turn: str


@attrs.define(eq=False)
class Woke:
    """An effect: a task can go on.

    Attributes:
        turn: the task's.
        why: ``event`` (whatever it waited for has come), ``cancelled``, ``sleep`` (it has slept
            enough), ``timeout`` (a deadline has passed) or ``time`` (one of these two); or
            ``ended``: it has been woken in error.
    """

    turn: str
    why: str


@attrs.frozen(eq=False)
class Said:
    """An effect that has no other task to it.

    Attributes:
        text: what, in words.
        by: who has brought it about, if that is another task.
        inside: where in our own code it has happened.
    """

    text: str
    by: By | None = None
    inside: Place | None = None


@attrs.define(eq=False)
class Step:
    """What happened between two decisions: a task's step, or time that passed.

    Attributes:
        number: the step, counted from 0.
        time: virtual seconds since the start.
        turn: whose it is: the name of the task's turn; empty for time that passes. For a task that
            is part of how an actor of the kernel works, the name of the actor's.
        own: the name of the task's own turn.
        thread: the name of its thread.
        rows: what it did.
        waits: where it waits afterwards; None if it has ended.
        waits_inside: the same in our own code, where it is that.
        ended: whether the task has ended.
        instead: the name of the turn that would have been next, if this decision made the
            difference; empty if that was one of trio's own tasks.
        instead_of: the name of that turn's thread.
        instead_happens: whether it would not have been a task's step, but something that takes
            place.
        choices: how many things could have happened.
        inside: a step of one of trio's own tasks, which no reader cares about.
        hidden: what takes place inside of a kernel, or between it and its clients, and has no
            lines of the user's.
        happening: not a task's step, but something that takes place: a delivery, the end of a join.
        place: where it had waited before.
        stopped: how its thread was stopped in the midst of it, if it was: by code that blocks, or
            by another thread that went on.
        holds: what would have been next is held back, until nothing else can happen.
        stops: before which line what would have been next was stopped, in the midst of its step.
        midway: it was stopped when it had begun with that line.
        hears: a message on iopub reaches the client of this name, which is `turn` then.
    """

    number: int
    time: float
    turn: str
    thread: str
    own: str = ""
    rows: list[Row] = attrs.field(factory=list)
    waits: Place | None = None
    waits_inside: Place | None = None
    ended: bool = False
    instead: str | None = None
    instead_of: str = ""
    instead_happens: bool = False
    choices: int = 1
    inside: bool = False
    hidden: bool = False
    happening: bool = False
    place: Place | None = None
    stopped: str = ""
    holds: bool = False
    stops: Place | None = None
    midway: bool = False
    hears: str = ""


class Recorder(_simulation.Recorder):
    """Notes what happens in one run; to be entered around it, and given to its `Simulation`.

    Args:
        details: whether the lines and tasks of a kernel's own actors are noted, too.
        watched: files of our own whose lines are noted, too: where threads were stopped in the
            midst of a step.

    Attributes:
        steps: what happened, in order.
        messages: all that were sent, in order.
        raised: exceptions, each with the steps in which it was seen.
        ends: the step in which each task ended, by the name of its turn.
        threads: the thread of each, by the name of its turn.
        hidden: the names of the turns that are part of how a kernel works.
        awaited: what the tasks wait for that wait for a kernel, by the name of their turns.
        serving: the names of the turns that serve requests which have no reply yet.
        inner: where the tasks wait that are part of how a kernel works, by the name of their turns.
        requests: what clients have asked, by the messages' ids.
        stopped_in: the files in which threads were stopped in the midst of a step.
    """

    def __init__(self, *, details: bool = False, watched: Collection[str] = ()) -> None:
        self.details = details
        self._watched = frozenset(watched)
        self.stopped_in: set[str] = set()
        self._stop: tuple[Turn, Place, bool] | None = None
        self._stopped: dict[str, tuple[Row, _Lines | None]] = {}
        self.steps: list[Step] = []
        self.messages: list[Message] = []
        self.ends: dict[str, int] = {}
        self.threads: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.awaited: dict[str, Exchange] = {}
        self._owner: dict[str, str] = {}
        self.serving: dict[Message, str] = {}
        self.inner: dict[str, Place] = {}
        self.requests: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}
        self._replied: dict[str, Message] = {}
        self._published: dict[str, Message] = {}
        self._states: set[tuple[Message, str]] = set()
        self._prompts: dict[str, Message] = {}
        self._inputs: list[tuple[str, Message]] = []
        self._last_raised = 0
        self._cancelled_in = -1
        self._raised_at = (-1, 0)
        self._waited_inside: Place | None = None
        self._inside_of: dict[str, Place] = {}
        self._cancelled_by: dict[trio.CancelScope, By] = {}
        self._struck_by: dict[SimulatedThread, By] = {}
        self._brought_by: dict[trio.lowlevel.Task, By] = {}
        self._raised_inside: dict[tuple[str, str], tuple[Step, int, Place]] = {}
        self.raised: list[tuple[BaseException, int]] = []
        self._simulation: Simulation | None = None
        self._step = Step(-1, 0.0, "", "main", inside=True)
        self._task: trio.lowlevel.Task | None = None
        self._thread: SimulatedThread | None = None
        self._last: dict[SimulatedThread, Turn] = {}
        self._names: dict[trio.lowlevel.Task, str] = {}
        self._inside: set[str] = set()
        self._pending: list[tuple[Woke | Spawned, trio.lowlevel.Task]] = []
        self._wakers: dict[trio.lowlevel.Task, Row] = {}
        self._asks: dict[int, Message] = {}
        self._waiting: dict[int, list[Message]] = {}
        self._owners: dict[int, str] = {}
        self._undo: list[tuple[type | ModuleType, str, object]] = []
        self._tracing: Callable[..., Any] | None = None
        self._deciding = False

    # ----------------------------------------------------------- called by the simulation

    def fresh(self) -> list[trio.lowlevel.Task]:
        """The list in which the simulation gets the tasks that have become runnable."""
        return _Fresh(self._woke)

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        """A decision has been made."""
        self._simulation = simulation
        self._deciding = False
        former = self._step
        self._close_step()
        stop, self._stop = self._stop, None
        chosen = turn
        if turn.happen is not None and turn.thread is not None:
            turn = self._last.get(turn.thread, turn)  # a step goes on that was stopped in its midst
        instead = self._instead(simulation, turn) if stop is None else stop[0]
        thread = turn.thread.name if turn.thread is not None else ""
        if simulation.failure is not None:
            self._step = Step(-1, simulation.clock.now, "", thread, inside=True)
            return
        if turn is not chosen and turn.name == former.own and instead in (None, turn):
            self._task, self._thread = turn.task, turn.thread
            former.stopped = ""  # nobody came in between
            self._go_on(former)
            return
        self._step = step = Step(
            number=len(self.steps),
            time=simulation.clock.now,
            turn=self.owner(turn.name),
            own=turn.name,
            thread=thread,
            instead=_name(instead),
            instead_of=_thread_of(instead),
            instead_happens=instead is not None and instead.happen is not None,
            choices=len(simulation.turns) + 1,
            inside=_is_inside(turn),
            happening=turn.happen is not None,
            holds=stop is not None or (instead is not None and instead.behind),
            stops=stop[1] if stop is not None else None,
            midway=stop is not None and stop[2],
        )
        step.hidden = not self.details and bool(
            turn.name in self.hidden
            or (step.inside and self.hidden)
            or (step.happening and is_delivery(turn.name))
        )
        self._waited_inside = self._inside_of.pop(turn.name, None)
        if turn.thread is not None and turn.task is not None:
            self._last[turn.thread] = turn
            step.place = self._await_place(turn.task) if turn is chosen else former.waits
        self._task, self._thread = turn.task, turn.thread
        self.threads[turn.name] = thread
        self.steps.append(step)
        if turn is not chosen:
            self._go_on(step)

    def _go_on(self, step: Step) -> None:
        """A thread that was stopped in the midst of a step goes on."""
        row, lines = self._stopped.pop(step.own, (None, None))
        if row is not None:
            step.rows.append(row)
            if lines is not None:
                lines.row = row

    def preempted(self, simulation: Simulation, turn: Turn, place: str) -> None:
        """The step is stopped in its midst; what it was about to run is what comes next in it."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not _is_under_test(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or simulation.failure is not None:
            return
        where = _place_of(frame)
        self.stopped_in.add(where.file)
        lines = frame.f_trace if isinstance(frame.f_trace, _Lines) else None
        rows = self._step.rows
        midway = re.search(r":\d+\.\d+", place) is not None
        reached = lines is not None and bool(rows) and rows[-1] is lines.row
        if reached and not midway and not rows[-1].effects:
            rows.pop()  # the line has been reached, and has not run
        self._stop = turn, where, midway
        row = Row(where, watched=where.file in self._watched)
        row.of = _self_of(frame) if row.watched else 0
        self._stopped[turn.name] = row, lines

    def spawned(self, simulation: Simulation, turn: Turn) -> None:
        """A task has been seen for the first time."""
        assert turn.task is not None
        self._names[turn.task] = turn.name
        thread = turn.thread.name if turn.thread is not None else ""
        self.threads[turn.name] = thread
        if _is_inside(turn):
            self._inside.add(turn.name)
        elif not self.details and _is_machinery(turn.task, thread):
            self.hidden.add(turn.name)
            nursery = turn.task.parent_nursery
            parent = self._names.get(nursery.parent_task) if nursery is not None else None
            if parent is not None and "/" not in turn.task.name and parent not in self._inside:
                self._owner[turn.name] = self.owner(parent)

    def owner(self, turn: str) -> str:
        """Whose a task's turn is: the turn of the kernel's actor that it is a part of, or it."""
        return self._owner.get(turn, turn)

    def time(self, simulation: Simulation) -> None:
        """Time has passed: because all rests, or instead of something that could have happened."""
        self._simulation = simulation
        self._deciding = False
        self._close_step()
        instead = self._instead(simulation, None)
        if simulation.failure is not None:
            return
        self._step = Step(
            number=len(self.steps),
            time=simulation.clock.now,
            turn="",
            thread="",
            rows=[Row(None)],
            instead=_name(instead),
            instead_of=_thread_of(instead),
            instead_happens=instead is not None and instead.happen is not None,
        )
        self.steps.append(self._step)

    def fault(self, simulation: Simulation, text: str) -> None:
        """A fault has an effect."""
        if simulation.failure is None and self._step.number >= 0:
            rows = self._step.rows
            if not rows:
                rows.append(Row(self._step.place, resumed=True))
            rows[-1].effects.append(Said(f"fault: {text}"))

    def _close_step(self) -> None:
        if self._task is not None and not self._step.ended:
            if self._thread is not None and self._thread.blocked is not None:
                self._step.waits = self._calling_place(sys._getframe())
                paused = self._thread.paused or self._stop is not None
                self._step.stopped = STOPPED if paused else "blocks its thread"
                frame: FrameType | None = sys._getframe()
                while frame is not None:
                    if isinstance(frame.f_trace, _Lines):
                        frame.f_trace.row = None  # the rest of the line is part of another step
                    frame = frame.f_back
            else:
                self._step.waits = self._await_place(self._task)
                self._step.waits_inside = inner = inner_await_place(self._task)
                if inner is not None:
                    self._inside_of[self._step.own] = inner
            if self._step.hidden and (place := await_place(self._task, details=True)) is not None:
                self.inner[self._step.own] = place
        self._task = None

    def _instead(self, simulation: Simulation, chosen: Turn | None) -> Turn | None:
        """What would have been next; rather a task of the user's than one of trio's."""
        instead, simulation.instead = simulation.instead, None
        if instead is None:
            return None
        if _is_inside(instead):
            others = [each for each in simulation.turns if each is not chosen]
            instead = next((each for each in others if not _is_inside(each)), instead)
        if instead.happen is not None and instead.thread is not None:
            return self._last.get(instead.thread, instead)
        return instead

    # ----------------------------------------------------------------- entering, leaving

    def __enter__(self) -> Self:
        linecache.checkcache()
        self._replace(Queue, "put_nowait", self._sending)
        self._replace(Queue, "put", self._sending_async)
        self._replace(Queue, "get_nowait", self._taking)
        self._replace(Queue, "get", self._taking_async)
        self._replace(Queue, "attach", self._attaching)
        self._replace(Promise, "resolve", self._resolving)
        self._replace(BlockingPromise, "resolve", self._resolving)
        self._replace(Promise, "wait", self._answered_async)
        self._replace(trio.MemorySendChannel, "send_nowait", self._sending)
        self._replace(trio.MemorySendChannel, "send", self._sending_async)
        self._replace(trio.MemoryReceiveChannel, "receive_nowait", self._taking)
        self._replace(trio.MemoryReceiveChannel, "receive", self._taking_async)
        self._replace(Client, "request", self._requesting)
        self._replace(Client, "answer", self._typing)
        self._replace(Client, "prompt", self._prompted)
        self._replace(Client, "_take", self._hearing)
        self._replace(WireSession, "serialize", self._serializing)
        self._replace(SimulatedRouter, "send_nowait", self._forwarding)
        self._replace(WireSession, "serialize_message", self._prompting)
        self._replace(_stdin, "_belongs_to", self._pairing)
        self._replace(Exchange, "until", self._awaiting)
        self._replace(trio.CancelScope, "cancel", self._cancelling)
        self._replace(_simulation.Simulation, "raise_in", self._striking)
        self._replace(trio_run.Runner, "task_exited", self._exiting)
        self._tracing = sys.gettrace()
        sys.settrace(self._trace_call)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(self._tracing)
        while self._undo:
            owner, name, function = self._undo.pop()
            setattr(owner, name, function)
        self._close_step()
        self._name_all()
        self._names.clear()
        self._pending.clear()
        self._wakers.clear()
        self._last.clear()
        self._asks.clear()
        self._waiting.clear()
        self._raised_inside.clear()
        self._cancelled_by.clear()
        self._struck_by.clear()
        self._brought_by.clear()

    def _replace(self, owner: type | ModuleType, name: str, wrap: Callable[[Any], Any]) -> None:
        function = vars(owner)[name]
        self._undo.append((owner, name, function))
        real = getattr(function, "__wrapped__", None)
        if real is not None and function.__code__.co_filename == _process.__file__:
            # Other threads may go on before it: what is noted then has not yet happened.
            setattr(owner, name, _process._pausing(wrap(real)))
        else:
            setattr(owner, name, wrap(function))

    def _name_all(self) -> None:
        for effect, task in self._pending:
            effect.turn = self._names.get(task, "")
        untold = self.hidden | self._inside | {""}
        untold -= {each.own for each in self.steps if any(row.place for row in each.rows)}
        for step in self.steps:
            for row in step.rows:
                silent = row.place is None and step.hidden  # how a kernel wakes whom is its affair
                effects, row.effects = row.effects, []
                for each in effects:
                    if isinstance(each, Woke | Spawned):
                        if silent or each.turn in untold:
                            continue
                        each.turn = self.owner(each.turn)
                    row.effects.append(each)

    @property
    def _active(self) -> bool:
        """Whether the code that runs is a step of the simulation, before its failure."""
        simulation = self._simulation
        if simulation is None or simulation.failure is not None or self._deciding:
            return False
        return bool(self._step.turn)

    def _row(self, depth: int = 2) -> Row:
        """The row for what the code that runs does now."""
        place = None
        if not self._step.happening:  # else whoever is blocked meanwhile is on the stack
            place = self._calling_place(sys._getframe(depth))
        rows = self._step.rows
        did = self._via(sys._getframe(depth)) if place is None else None
        by_itself = did is not None and bool(rows) and rows[-1].place is not None
        if rows and not by_itself and (place is None or _same_line(rows[-1].place, place)):
            return rows[-1]
        row = Row(place, resumed=True, did=did)
        rows.append(row)
        return row

    def _via(self, frame: FrameType | None) -> Via | None:
        """How our own code does something by itself; None if the user's does it."""
        return None if self._step.happening or self.details else via(frame)

    def _by(self, frame: FrameType | None) -> By:
        """Who does something to another task, with the line that does it."""
        if self._step.inside and self._task in self._brought_by:
            return self._brought_by[self._task]  # trio's own task does but what it was given
        place = calling_place(frame, details=self.details) if not self._step.happening else None
        if place is None and (inner := via(frame)) is not None:
            place = inner.place
        return By(self._step.turn, place)

    def _calling_place(self, frame: FrameType | None) -> Place | None:
        return calling_place(frame, details=self.details)

    def _await_place(self, task: trio.lowlevel.Task) -> Place | None:
        return await_place(task, details=self.details)

    def _is_kernels_own(self, frame: FrameType | None) -> bool:
        """Whether it is the kernel's own code that makes the actors do something."""
        if self.details:
            return False
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_MACHINERY):
                return True
            if is_users_file(file):
                return False
            frame = frame.f_back
        return False

    # -------------------------------------------------------------------------- wake-ups

    def _woke(self, task: trio.lowlevel.Task) -> None:
        simulation = self._simulation
        if simulation is None or simulation.failure is not None:
            return
        turn = simulation._turn
        by_time = self._step.turn == ""
        if not by_time and turn is not None and turn.task is task:
            return  # it has only given the others a chance
        if self._step.inside and turn is not None and turn.task in self._wakers:
            row = self._wakers[turn.task]  # trio's own task has but passed it on
        elif by_time:
            row = self._step.rows[0]
        else:
            row = self._row()
        effect: Woke | Spawned
        if self._names.get(task, "") in self._inside and not by_time:
            self._brought_by[task] = self._by(sys._getframe(2))
        if task not in self._names:
            effect = Spawned("")
        else:
            why = "ended" if self._names[task] in self.ends else "event"
            if isinstance(getattr(task, "_next_send", None), outcome.Error) and isinstance(
                getattr(task._next_send, "error", None), trio.Cancelled
            ):
                why = self._why_in_time(task) if by_time else "cancelled"
            effect = Woke("", why)
        self._pending.append((effect, task))
        self._wakers[task] = row
        row.effects.append(effect)

    def _why_in_time(self, task: trio.lowlevel.Task) -> str:
        if self._names[task] in self.hidden:  # where a kernel's method waits can't be seen
            return "time"
        return "sleep" if _sleeps(task) else "timeout"

    # -------------------------------------------------------------------------- messages

    def _send(self, where: object, value: object) -> Message:
        row = self._row(3)
        kind = "send"
        receiver = self._owners.get(id(where))
        promise = None
        content = value
        if isinstance(value, Letter):
            content = value.message
            promise = value._promise
            kind = "tell" if promise is None else "ask"
        message = Message(
            kind,
            brief(content),
            self._step.turn,
            self._step.number,
            receiver,
            place=row.place,
            value=value,
        )
        if promise is not None:
            self._asks[id(promise)] = message
        self.messages.append(message)
        row.effects.append(Sent(message))
        self._waiting.setdefault(id(where), []).append(message)
        return message

    def _take(self, where: object, value: object, depth: int = 3) -> None:
        row = self._row(depth)
        queue = self._waiting.get(id(where), [])
        for message in queue:
            if message._value is value:
                queue.remove(message)
                message.receiver = self._step.turn
                message.taken = self._step.number
                row.effects.append(Taken(message))
                return

    def _sending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        def send_nowait(end: Any, value: Any) -> Any:
            caller = sys._getframe(1)
            if not self._active or _from_trio(caller) or self._is_kernels_own(caller):
                return function(end, value)
            message = self._send(_shared(end), value)
            try:
                return function(end, value)
            except BaseException:
                self._withdraw(end, message)
                raise

        return send_nowait

    def _sending_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        async def send(end: Any, value: Any) -> Any:
            if not self._active or self._is_kernels_own(sys._getframe(1)):
                return await function(end, value)
            message = self._send(_shared(end), value)
            try:
                return await function(end, value)
            except BaseException:
                self._withdraw(end, message)
                raise

        return send

    def _withdraw(self, end: object, message: Message) -> None:
        waiting = self._waiting.get(id(_shared(end)), [])
        if message in waiting:
            waiting.remove(message)
            message.withdrawn = True

    def _taking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        def receive_nowait(end: Any) -> Any:
            value = function(end)
            if self._active and not _from_trio(sys._getframe(1)):
                self._take(_shared(end), value)
            return value

        return receive_nowait

    def _taking_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        async def receive(end: Any) -> Any:
            value = await function(end)
            if self._active:
                self._take(_shared(end), value)
            return value

        return receive

    def _attaching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        def attach(queue: Any, bell: Any) -> Any:
            if self._active:
                self._owners[id(queue)] = self._step.turn
            return function(queue, bell)

        return attach

    def _resolving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        def resolve(promise: Any, result: outcome.Outcome[Any]) -> Any:
            ask = self._asks.get(id(promise))
            ended = isinstance(result, outcome.Value) and isinstance(result.value, Ended)
            ended = ended and self._step.own not in self.hidden
            if self._active and not promise.resolved and (ask is not None or ended):
                self._answer(promise, ask, result)
            return function(promise, result)

        return resolve

    def _answer(self, promise: Any, ask: Message | None, result: outcome.Outcome[Any]) -> None:
        row = self._row(3)
        how = self._via(sys._getframe(2))
        if isinstance(result, outcome.Error):
            error = result.error
            ours = type(error).__module__.startswith(_OUR_NAME)
            text = type(error).__name__ if ours else brief(error)
        elif isinstance(result, outcome.Value) and isinstance(result.value, Ended):
            state = result.value.state
            verb = "was" if state is ActorState.CANCELLED else "has"
            text = f"{result.value.path} {verb} {state.value}"
        else:
            text = brief(getattr(result, "value", None))
        message = Message(
            "answer" if ask is not None else "end",
            text,
            self._step.turn,
            self._step.number,
            ask.sender if ask is not None else self._name_of(getattr(promise, "_task", None)),
            about=ask,
            via=how,
        )
        self._asks[id(promise)] = message
        self.messages.append(message)
        row.effects.append(Sent(message))

    def _answered_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        async def wait(promise: Any) -> Any:
            try:
                return await function(promise)
            finally:
                message = self._asks.get(id(promise))
                if self._active and message is not None and promise.resolved:
                    message.taken = self._step.number
                    message.receiver = self._step.turn
                    self._row(2).effects.append(Taken(message))

        return wait

    def _name_of(self, task: trio.lowlevel.Task | None) -> str | None:
        name = self._names.get(task) if task is not None else None
        return None if name is None else self.owner(name)

    # ------------------------------------------------------------------ a kernel's messages

    def _requesting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            exchange = function(client, *args, **kwargs)
            if self._active:
                row = self._row()
                message = self._message("request", _request(exchange.message), place=row.place)
                message.name = known_ids(str(exchange))
                if (number := 1 + self._times_asked(message.text)) > 1:
                    message.text += f" #{number}"
                    message.name += f" #{number}"
                message.exchange = exchange
                self.requests[exchange.id] = message
                row.effects.append(Sent(message))
            return exchange

        return request

    def _times_asked(self, text: str) -> int:
        """How often the same has been asked before."""
        return sum(_NUMBER.sub("", each.text) == text for each in self.requests.values())

    def _message(self, kind: str, text: str, **more: Any) -> Message:
        """Something that a kernel or its client sends in this step."""
        message = Message(kind, text, self._step.turn, self._step.number, **more)
        self.messages.append(message)
        return message

    def _kernels_row(self, depth: int = 3) -> Row:
        """The row for what a kernel does now: it may be a cell that has it done."""
        rows = self._step.rows
        place = None if self._step.happening else self._calling_place(sys._getframe(depth))
        if place is not None:
            return self._row(depth + 1)
        has_raised = self._raised_at == (self._step.number, len(rows))
        if not rows or rows[-1].place is not None or has_raised:
            rows.append(Row(None, did=self._via(sys._getframe(depth))))
        return rows[-1]

    def _serializing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def serialize(session: Any, msg_type: str, content: Any = None, **kwargs: Any) -> Any:
            frames = function(session, msg_type, content, **kwargs)
            header = getattr(kwargs.get("parent"), "header", kwargs.get("parent"))
            msg_id = getattr(header, "msg_id", "")
            request = self.requests.get(msg_id)
            if self._active and request is not None:
                if msg_type.endswith("_reply"):
                    self._reply(msg_id, request, content or {})
                    self._replied[_id_of(frames)] = self._replies[msg_id]
                else:
                    self._publish(request, msg_type, content or {}, frames)
            return frames

        return serialize

    def _reply(self, msg_id: str, request: Message, content: Mapping[str, Any]) -> None:
        step = self._step
        self.serving.pop(request, None)
        known = self._raised_inside.pop((content.get("ename"), content.get("evalue")), None)  # type: ignore[arg-type]
        is_told = any(
            (type(each).__name__, text_of(each)) == (content.get("ename"), content.get("evalue"))
            for each, _ in self.raised
        )
        if known is not None and not is_told:  # through no line of the user's
            where, position, place = known
            where.rows.insert(position, Row(place, [Said(f"raises {content['ename']}")]))
        how = self._via(sys._getframe(2))
        message = self._message(
            "reply", _reply(content), receiver=request.sender, about=request, via=how
        )
        self._replies[msg_id] = message
        if not step.rows or any(_stands_alone(each) for each in step.rows[-1].effects):
            step.rows.append(Row(None))
        elif step.rows[-1].place is not None and how is not None:
            step.rows.append(Row(None))  # the user's line does not reply
        step.rows[-1].effects.append(Sent(message))

    def _forwarding(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The channel sends what a shell has answered, maybe some time later."""

        def send_nowait(router: Any, frames: list[bytes]) -> Any:
            message = self._replied.pop(_id_of(frames), None) if self._active else None
            if message is not None and message.sent != self._step.number:
                how = self._via(sys._getframe(1))
                sent = self._message("forward", message.text, about=message.about, via=how)
                sent.taken = sent.sent
                self._kernels_row().effects.append(Sent(sent))
            return function(router, frames)

        return send_nowait

    def _publish(
        self, request: Message, msg_type: str, content: Mapping[str, Any], frames: list[bytes]
    ) -> None:
        state = str(content.get("execution_state", ""))
        how = self._via(sys._getframe(2))
        if state == "busy" and request.taken is None:
            request.taken = self._step.number
            request.receiver = self._step.turn
            request.taken_via = how
            self.serving[request] = self._step.own
            self._step.rows.append(Row(None, [Taken(request)]))
        kind = "status" if state or msg_type == "execute_input" else "publish"
        text = _publication(msg_type, content)
        if state == "idle" and request.text.startswith("comm_"):
            self.serving.pop(request, None)  # there is no reply to these
        if state and (request, state) in self._states:
            text, kind = f"{text}{ONCE_MORE}", "publish"
        self._states.add((request, state))
        message = self._message(kind, text, about=request, via=how)
        self._published[_id_of(frames)] = message
        self._kernels_row().effects.append(Sent(message))

    def _hearing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def take(client: Any, channel: Channel, message: WireMessage) -> None:
            if self._active:
                parent = message.parent_header
                msg_id = message.header.msg_id
                if msg_id in self._prompts:
                    self._prompts[msg_id].taken = self._step.number
                elif parent is not None and parent.msg_id in client._by_id:
                    self._hear(client.name, self._published.get(msg_id))
            function(client, channel, message)

        return take

    def _hear(self, client: str, message: Message | None) -> None:
        if message is None:
            return
        step = self._step
        if step.happening:
            step.turn = step.hears = client
            self.threads[client] = "main"
        message.taken = step.number
        message.receiver = step.turn
        step.rows.append(Row(None, [Taken(message)]))

    # ------------------------------------------------------------------------------- stdin

    def _prompting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def serialize_message(session: Any, message: WireMessage) -> Any:
            frames = function(session, message)
            parent = message.parent_header
            request = self.requests.get(parent.msg_id) if parent is not None else None
            if self._active and request is not None and message.header.msg_type == "input_request":
                text = f"input_request {brief(message.content.get('prompt'), 32)}"
                prompt = self._message("prompt", text, receiver=request.sender, about=request)
                self._prompts[message.header.msg_id] = prompt
                self._kernels_row().effects.append(Sent(prompt))
            return frames

        return serialize_message

    def _prompted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def prompt(client: Any) -> Any:
            message = await function(client)
            known = self._prompts.get(message.header.msg_id)
            if self._active and known is not None:
                known.taken = self._step.number
                known.receiver = self._step.turn
                self._row().effects.append(Taken(known))
            return message

        return prompt

    def _typing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def answer(client: Any, prompt: Any, value: str, **kwargs: Any) -> Any:
            known = self._prompts.get(prompt.header.msg_id)
            if self._active and known is not None:
                text = f"input_reply {brief(value, 14)}"
                message = self._message("input", text, receiver=known.sender, about=known.about)
                self._inputs.append((prompt.header.msg_id, message))
                self._row().effects.append(Sent(message))
            return function(client, prompt, value, **kwargs)

        return answer

    def _pairing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel decides which prompt has been answered."""

        def belongs_to(parent: Any, *args: Any) -> Any:
            msg_id = function(parent, *args)
            named = getattr(parent, "msg_id", None)
            coming = [each for each in self._inputs if named in (None, each[0])]
            if self._active and coming:
                self._inputs.remove(coming[0])
                message = coming[0][1]
                message.taken = self._step.number
                message.receiver = self._step.turn
                message.taken_via = self._via(sys._getframe(1))
                row = self._kernels_row()
                row.effects.append(Taken(message))
                prompt = self._prompts.get(msg_id)
                about = prompt.about if prompt is not None else None
                given = f"hands it to {about.name}" if about is not None else "drops it"
                row.effects.append(Said(given))
            return msg_id

        return belongs_to

    def _awaiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def until(exchange: Any, condition: Any) -> Any:
            self.awaited[self._step.own] = exchange
            try:
                return await function(exchange, condition)
            finally:
                if self._active:  # else it has waited in vain
                    self.awaited.pop(self._step.own, None)
                    message = self._replies.get(exchange.id)
                    if exchange.replies and message is not None and message.taken is None:
                        message.taken = self._step.number
                        message.receiver = self._step.turn
                        self._row().effects.append(Taken(message))

        return until

    # ------------------------------------------------------------------------ other things

    def _cancelling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @trio.lowlevel.enable_ki_protection
        def cancel(scope: Any, *args: Any, **kwargs: Any) -> Any:
            if self._active and not scope.cancel_called:
                self._cancelled_by[scope] = self._by(sys._getframe(1))
            if (
                self._active
                and not self._step.inside
                and not scope.cancel_called
                and not self._is_kernels_own(sys._getframe(1))
            ):
                self._row().effects.append(Said("cancels"))
            return function(scope, *args, **kwargs)

        return cancel

    def _striking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def raise_in(simulation: Any, thread: SimulatedThread, error: Any) -> Any:
            if self._active:
                self._struck_by[thread] = self._by(sys._getframe(1))
            return function(simulation, thread, error)

        return raise_in

    def _exiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def task_exited(runner: Any, task: trio.lowlevel.Task, result: Any) -> Any:
            name = self._names.get(task)
            if name is not None and self._active and name == self._step.own:
                self._step.ended = True
                self.ends[name] = self._step.number
                error = getattr(result, "error", None)
                rows = self._step.rows
                if error is not None and not isinstance(error, trio.Cancelled):
                    self._note_ended(error, rows)
            return function(runner, task, result)

        return task_exited

    def _note_ended(self, error: BaseException, rows: list[Row]) -> None:
        """Note with what a task has ended; also where our own code has raised it."""
        if any(each is error for each, _ in self.raised):
            self._note_raised(error, rows[-1] if rows else None)
            return
        for leaf in leaves(error):
            if isinstance(leaf, _PASSING) or any(each is leaf for each, _ in self.raised):
                continue
            place = _actors_place(leaf) or raising_place(leaf)
            if place is not None and not (rows and _same_line(rows[-1].place, place)):
                rows.append(Row(place, resumed=True))
            self._note_raised(leaf, rows[-1] if rows else None)

    def _note_cancelled(self, row: Row) -> None:
        """Note that an await has ended by a cancellation: once in a step, in the innermost line."""
        if self._cancelled_in != self._step.number:
            self._cancelled_in = self._step.number
            row.effects.append(Said(CANCELLED, self._who_cancelled(), self._waited_inside))

    def _who_cancelled(self) -> By | None:
        """Who has cancelled the task that runs, if that isn't the task itself."""
        status = getattr(self._task, "_cancel_status", None)
        while status is not None:
            scope = status._scope
            if scope.cancel_called:
                by = self._cancelled_by.get(scope)
                return by if by is not None and by.turn != self._step.own else None
            status = None if scope.shield else status._parent
        return None

    def _note_raised(self, error: BaseException, row: Row | None) -> None:
        """Note an exception once per step: where it is seen first, which is the innermost place."""
        if isinstance(error, BaseExceptionGroup):
            return
        number = self._step.number
        if any(each is error and at == number for each, at in self.raised):
            return
        self.raised.append((error, number))
        if row is not None:
            row.raised = error
            if isinstance(error, KeyboardInterrupt) and self._thread is not None:
                row.struck = self._struck_by.pop(self._thread, None)

    # ------------------------------------------------------------------------------- lines

    def _trace_call(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if self._simulation is None:
            return None
        if not is_users_file(file, details=self.details) and file not in self._watched:
            if not file.startswith(_REPLYING):
                return None
            frame.f_trace_lines = False
            return self._trace_inside
        if _is_decision(frame.f_back):
            self._deciding = True
        lines = frame.f_trace
        if isinstance(lines, _Lines):
            lines.row = None  # it goes on where it had waited
            return lines
        return _Lines(self, watched=not is_users_file(file, details=self.details))

    def _trace_inside(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        """In a kernel's own code, only note where an exception comes up: a reply may tell of it."""
        if event == "exception" and self._active and isinstance(arg[1], Exception):
            error = arg[1]
            if id(error) != self._last_raised and not isinstance(error, _PASSING):
                self._last_raised = id(error)  # not the error, which would keep its frames alive
                if not any(each is error for each, _ in self.raised):
                    what = type(error).__name__, text_of(error)
                    where = self._step, len(self._step.rows), _place_of(frame)
                    self._raised_inside[what] = where
                    self._raised_at = self._step.number, len(self._step.rows)
        return self._trace_inside


class _Lines:
    """Traces the lines of one frame, through all its steps."""

    def __init__(self, recorder: Recorder, *, watched: bool = False) -> None:
        self._recorder = recorder
        self._watched = watched
        self.row: Row | None = None
        self._target: tuple[ast.expr, Place] | None = None
        self._number = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> _Lines:
        recorder = self._recorder
        if not recorder._active:
            return self
        if event == "line":
            self._assigned(frame)
            self._line(frame)
        elif event == "exception":
            error = arg[1]
            if not isinstance(error, StopIteration):  # so an await returns
                self._target = None
            if isinstance(error, trio.Cancelled) and not self._watched:
                recorder._note_cancelled(self._current(frame))
            if isinstance(error, BaseException) and not isinstance(error, _PASSING):
                if self._watched:
                    recorder._trace_inside(frame, event, arg)
                else:
                    recorder._note_raised(error, self._current(frame))
        elif event == "return":
            target = self._target
            if target is not None and "await" not in target[1].code:
                self._assigned(frame)
        return self

    def _current(self, frame: FrameType) -> Row:
        place = _place_of(frame)
        rows = self._recorder._step.rows
        if not rows or not _same_line(rows[-1].place, place):
            rows.append(Row(place, resumed=True))
        return rows[-1]

    def _line(self, frame: FrameType) -> None:
        rows = self._recorder._step.rows
        place = _place_of(frame)
        if len(rows) >= (_MOST_WATCHED if self._recorder._watched else _MOST_LINES):
            rows.pop(len(rows) // 2)
        leaves = self._number > place.line and place.code.startswith("with ")
        begins = not self._number
        self._number = place.line
        self.row = row = Row(place, watched=self._watched, leaves=leaves)
        if self._watched:
            row.of = _self_of(frame)
        elif begins and not place.code.startswith("def ") and (caller := _calling_back(frame)):
            row.effects.append(Said(f"called at {caller.short}"))
        rows.append(row)
        target = _target_of(place.code)
        self._target = (target, place) if target is not None else None

    def _assigned(self, frame: FrameType) -> None:
        if self._target is None:
            return
        target, place = self._target
        self._target = None
        shown = _shown(target, frame)
        if shown is None:
            return
        if self.row is None:
            self.row = Row(place, resumed=True, watched=self._watched)
            rows = self._recorder._step.rows
            if rows and _same_line(rows[-1].place, place):
                self.row = rows[-1]
            else:
                rows.append(self.row)
        self.row.assigned = shown


class _Fresh(list[trio.lowlevel.Task]):
    """The tasks that have become runnable, and a call for each."""

    def __init__(self, woke: Callable[[trio.lowlevel.Task], None]) -> None:
        super().__init__()
        self._woke = woke

    def append(self, task: trio.lowlevel.Task) -> None:
        self._woke(task)
        super().append(task)


def _name(turn: Turn | None) -> str | None:
    """What to say of it; nothing of trio's own tasks."""
    return None if turn is None else "" if _is_inside(turn) else turn.name


def _thread_of(turn: Turn | None) -> str:
    return turn.thread.name if turn is not None and turn.thread is not None else ""


def _is_inside(turn: Turn) -> bool:
    """Whether it is one of trio's own tasks."""
    return turn.thread is not None and turn.name.startswith(f"{turn.thread.name}<")


def _is_kernels(thread: str) -> bool:
    """Whether a thread is one of the simulated kernel's."""
    return thread == KERNEL or thread.startswith(f"{KERNEL}/")


def _is_machinery(task: trio.lowlevel.Task, thread: str) -> bool:
    """Whether a task is part of how a kernel, or its client, works."""
    coro = task.coro
    if getattr(coro, "cr_code", None) is _guard._drive_task.__code__ and coro.cr_frame is not None:
        coro = coro.cr_frame.f_locals["body"]  # a cell has started it
    code = getattr(coro, "cr_code", None)
    name = code.co_filename if code is not None else ""
    if _is_kernels(thread):
        return not is_users_file(name)
    return name.startswith(_TESTING) and not task.name.endswith(_simulation._ROOT)


_NUMBER: Final = re.compile(r" #\d+$")
_DELIVERY: Final = re.compile(r"(.+) > (\S+) \d+")


def is_delivery(name: str) -> re.Match[str] | None:
    """Whether a happening is a message's arrival in the simulated network: from whom, where."""
    return _DELIVERY.fullmatch(name)


def _request(message: WireMessage) -> str:
    """A request, for people."""
    content = message.content
    what = content.get("code", content.get("subshell_id"))
    return message.header.msg_type + ("" if what is None else f" {brief(what, 32)}")


def _reply(content: Mapping[str, Any]) -> str:
    """A reply, for people."""
    more = content.get("ename", content.get("subshell_id"))
    return f"{content.get('status')}" + ("" if more is None else f" {known_ids(str(more))}")


def _publication(msg_type: str, content: Mapping[str, Any]) -> str:
    """What is published, for people."""
    match msg_type:
        case "status":
            return str(content.get("execution_state"))
        case "stream":
            return f"{content.get('name')} {brief(content.get('text'), 32)}"
        case "error":
            return f"error {content.get('ename')}"
    return msg_type


def _stands_alone(effect: object) -> bool:
    """Whether a reply is told on a line of its own after this."""
    return isinstance(effect, Said) or (
        isinstance(effect, Sent) and effect.message.kind in {"publish", "status"}
    )


def _self_of(frame: FrameType) -> int:
    """Which object's method is being run; 0 if it is none."""
    return id(frame.f_locals["self"]) if "self" in frame.f_locals else 0


def _id_of(frames: list[bytes]) -> str:
    """The id of a message on the wire."""
    return str(json.loads(frames[frames.index(DELIMITER) + 2])["msg_id"])


def _is_decision(frame: FrameType | None) -> bool:
    """Whether a frame is where the simulation asks its chooser, which may be the user's code."""
    return (
        frame is not None
        and frame.f_code.co_name in {"_choose", "_decide"}
        and frame.f_code.co_filename == _simulation.__file__
    )


def _shared(end: Any) -> object:
    """What the two ends of a channel have in common: it stands for the channel."""
    return end if isinstance(end, Queue) else end._state


def _from_trio(frame: FrameType) -> bool:
    """Whether trio calls: its `send` begins as a `send_nowait`."""
    return bool(frame.f_globals.get("__name__") == "trio._channel")


def _sleeps(task: trio.lowlevel.Task) -> bool:
    return any(
        frame.f_code.co_name == "sleep_until" and frame.f_globals.get("__name__", "")[:5] == "trio."
        for frame, _ in await_frames(task)
    )


# ------------------------------------------------------------------------------------- places


def _library_roots() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= set(site.getsitepackages())
    return tuple(sorted(str(Path(path)) + os.sep for path in paths if path))


_LIBRARIES: Final = _library_roots()
_PACKAGE: Final = str(Path(__file__).parent.parent) + os.sep
_OUR_NAME: Final = f"{__package__.partition('.')[0]}."
_SAYING: Final = frozenset({"publish", "status", "reply"})
"""Functions that say nothing that isn't said of a message anyway."""
_ACTORS: Final = f"{_PACKAGE}actors{os.sep}"
_TESTING: Final = f"{_PACKAGE}testing{os.sep}"
_REPLYING: Final = tuple(f"{_PACKAGE}{name}{os.sep}" for name in ("kernel", "ipython"))
_MACHINERY: Final = tuple(
    f"{_PACKAGE}{name}{os.sep}" for name in ("kernel", "ipython", "sockets", "wire", "testing")
)


@cache
def is_users_file(file: str, *, details: bool = False) -> bool:
    """Whether a file is the user's: neither a library's nor of `trio_subshells`.

    Args:
        file: its path.
        details: whether a kernel's own code counts as the user's; actors and simulator never do.
    """
    if file.startswith("<"):  # made by exec: attrs' methods, namedtuples
        return file.startswith(("<ipython-input", "<doctest"))
    if file.startswith(_PACKAGE):  # which may be among the libraries
        return details and not file.startswith((_ACTORS, _TESTING))
    return not file.startswith(_LIBRARIES)


@cache
def is_ours(file: str) -> bool:
    """Whether a file is of `trio_subshells`, save for what tests."""
    return file.startswith(_PACKAGE) and not file.startswith(_TESTING)


def _is_under_test(file: str) -> bool:
    return is_users_file(file) or is_ours(file)


def raising_place(error: BaseException, *, users: bool = False) -> Place | None:
    """The innermost line that an exception has come through, of the user's or of our own.

    Args:
        error: the exception.
        users: whether only the user's lines count.
    """
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users_file(code.co_filename) or (not users and is_ours(code.co_filename)):
            found = Place(code.co_filename, traceback.tb_lineno, _function(code))
        traceback = traceback.tb_next
    return found


def _actors_place(error: BaseException) -> Place | None:
    """The innermost line of an actor of our own that an exception has come through."""
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if is_users_file(frame.f_code.co_filename):
            found = None
        elif is_ours(frame.f_code.co_filename) and isinstance(frame.f_locals.get("self"), Actor):
            found = Place(frame.f_code.co_filename, traceback.tb_lineno, _function(frame.f_code))
        traceback = traceback.tb_next
    return found


def raising_path(error: BaseException) -> list[str]:
    """The functions of our own that an exception has come through, ``name:line``, innermost last.

    Of the user's, they are those that the innermost one has called.
    """
    path: list[str] = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users_file(code.co_filename):
            path.clear()
        elif is_ours(code.co_filename):
            path.append(f"{code.co_name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return path


def calling_place(frame: FrameType | None, *, details: bool = False) -> Place | None:
    """The innermost line of the user's that is being run."""
    while frame is not None:
        if is_users_file(frame.f_code.co_filename, details=details):
            return _place_of(frame)
        frame = frame.f_back
    return None


def _telling(chain: Sequence[tuple[Place, object]]) -> Place | None:
    """Which of several lines of our own, that call each other, says most.

    It is that of the actor, if one is among them, else the one that calls into the innermost
    module: what helps to send, to wait or to strike is the same for all.

    Args:
        chain: each line, and whose method it is in, the innermost first.
    """
    if not chain:
        return None
    innermost = chain[0][0]
    of_actor = (place for place, owner in chain if isinstance(owner, Actor))
    elsewhere = (place for place, _ in chain if place.file != innermost.file)
    return next(of_actor, next(elsewhere, innermost))


def via(frame: FrameType | None) -> Via | None:
    """How our own code, called by none of the user's, has come to where it is."""
    chain: list[tuple[Place, object]] = []
    path: list[str] = []
    actor: object = None
    while frame is not None:
        code = frame.f_code
        if is_users_file(code.co_filename):
            return None
        if is_ours(code.co_filename):
            owner = frame.f_locals.get("self")
            if actor is not None and owner is not actor:
                break
            actor = owner if isinstance(owner, Actor) else None
            former = chain[0][0].function if chain else ""
            chain.insert(0, (_place_of(frame), owner))
            if code.co_name not in _SAYING and former.rpartition(".")[2] != code.co_name:
                path.insert(0, f"{code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    place = _telling(chain[::-1])
    return Via(place, tuple(path)) if place is not None else None


def _calling_back(frame: FrameType) -> Place | None:
    """The line of our own that calls the user's function, if it isn't a task's or a generator."""
    if frame.f_code.co_flags & _NO_CALL or not is_users_file(frame.f_code.co_filename):
        return None
    chain: list[tuple[Place, object]] = []
    caller = frame.f_back
    while caller is not None and not is_users_file(caller.f_code.co_filename):
        file = caller.f_code.co_filename
        if is_ours(file):
            chain.append((_place_of(caller), None))
        elif not chain and file.startswith(_TESTING) and file != _process.__file__:
            return None  # it is the simulator that calls
        caller = caller.f_back
    return _telling(chain)


_NO_CALL: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def inner_await_place(task: trio.lowlevel.Task) -> Place | None:
    """The line of our own where a task waits, if it waits in our own code."""
    if getattr(task.coro, "cr_frame", task) is None:
        return None
    chain: list[tuple[Place, object]] = []
    for frame, line in await_frames(task):
        code = frame.f_code
        if is_users_file(code.co_filename):
            chain.clear()
        elif line is not None and is_ours(code.co_filename):
            place = Place(code.co_filename, line, _function(code))
            chain.insert(0, (place, frame.f_locals.get("self")))
    return _telling(chain)


def await_place(task: trio.lowlevel.Task, *, details: bool = False) -> Place | None:
    """The innermost line of the user's where a task waits."""
    found = None
    if getattr(task.coro, "cr_frame", task) is None:
        return None  # it has ended; older versions of trio stumble over that
    for frame, line in await_frames(task):
        if line is not None and is_users_file(frame.f_code.co_filename, details=details):
            found = Place(frame.f_code.co_filename, line, _function(frame.f_code))
    return found


def await_frames(task: trio.lowlevel.Task) -> Iterator[tuple[FrameType, int | None]]:
    """What a task's ``iter_await_frames`` gives, also inside of what a kernel steps by itself."""
    for frame, line in task.iter_await_frames():
        yield frame, line
        if frame.f_code is _guard._stepped.__code__:
            inner = frame.f_locals.get("body")
            while isinstance(inner, CoroutineType) and inner.cr_frame is not None:
                yield inner.cr_frame, inner.cr_frame.f_lineno
                awaited = inner.cr_await
                if isinstance(awaited, GeneratorType) and awaited.gi_frame is not None:
                    yield awaited.gi_frame, awaited.gi_frame.f_lineno
                    awaited = awaited.gi_yieldfrom
                inner = awaited


def _place_of(frame: FrameType) -> Place:
    return Place(frame.f_code.co_filename, frame.f_lineno, _function(frame.f_code))


def _function(code: CodeType) -> str:
    return code.co_qualname.rpartition("<locals>.")[2]


@cache
def _without_comment(code: str) -> str:
    if "#" not in code:
        return code
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                return code[: token.start[1]].rstrip()
    except (SyntaxError, tokenize.TokenError):
        return code  # a part of something longer
    return code


def _same_line(one: Place | None, other: Place | None) -> bool:
    return one is not None and other is not None and one == other


# ------------------------------------------------------------------------------------- values

_PLAIN: Final = (int, float, str, bytes, bool, type(None))


def brief(value: object, most: int = 60) -> str:
    """A value for people, on one line, shortened in the middle."""
    try:
        text = repr(value)
    except Exception as error:  # a repr may be as broken as the code that is tested
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return shorten(known_ids(" ".join(text.split())), most)


_ID: Final = re.compile(
    r"\b0{8}-0{4}-4000-8000-0*([0-9a-f]+)\b"
    r"|(?<=\(for )0+([0-9a-f]+)(?=\))"  # cut by an `Exchange`
    r"|\b0{8}-0[0-9-]*\.\.\.0*([0-9a-f]+)\b"  # cut by pytest
)


def known_ids(text: str) -> str:
    """Shorten the ids that the simulator has given, which count from 1."""
    return _ID.sub(lambda match: f"…{match[match.lastindex or 0]}", text)


def shorten(text: str, most: int) -> str:
    """Cut a text in the middle."""
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    start, rest = text[: most - 1 - end], text[len(text) - end :]
    return f"{start.rstrip('…')}…{rest.lstrip('…')}"


@cache
def _target_of(code: str) -> ast.expr | None:
    """What an assignment on one line assigns to, if that is simple."""
    try:
        (statement,) = ast.parse(code).body
    except (SyntaxError, ValueError):
        return None  # a part of something longer
    match statement:
        case ast.Assign(targets=[ast.Name() | ast.Attribute() | ast.Subscript() as target]):
            return target
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target, value=ast.expr()):
            return target
    return None


def _shown(target: ast.expr, frame: FrameType) -> str | None:
    """``name = value``, for a value that is plain."""
    try:
        value = _resolved(target, frame)
    except (LookupError, TypeError, AttributeError):
        return None
    if type(value) in _PLAIN or (
        type(value) in (list, tuple, dict, set)
        and len(value) <= 8
        and all(type(each) in _PLAIN for each in value)
        and (type(value) is not dict or all(type(each) in _PLAIN for each in value.values()))
    ):
        return f"{_written(target, frame)} = {brief(value, 32)}"
    return None


def _written(target: ast.expr, frame: FrameType) -> str:
    """What is assigned to, with the value of a key in place of its name."""
    if isinstance(target, ast.Subscript):
        key = _resolved(target.slice, frame)
        if type(key) in _PLAIN:
            return f"{ast.unparse(target.value)}[{brief(key, 20)}]"
    return ast.unparse(target)


def _resolved(target: ast.expr, frame: FrameType) -> Any:
    """The value of a simple expression, without running any code of the user's."""
    match target:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return frame.f_locals[name] if name in frame.f_locals else frame.f_globals[name]
        case ast.Attribute(value=inner, attr=name):
            return _attribute(_resolved(inner, frame), name)
        case ast.Subscript(value=inner, slice=index):
            owner = _resolved(inner, frame)
            if type(owner) in (list, dict, tuple):
                return owner[_resolved(index, frame)]
    raise LookupError


def _attribute(owner: object, name: str) -> Any:
    """An attribute that is kept in the object itself; no property is run for it."""
    for cls in type(owner).__mro__:
        slot = vars(cls).get(name)
        if isinstance(slot, MemberDescriptorType):
            return slot.__get__(owner)
    return object.__getattribute__(owner, "__dict__")[name]
