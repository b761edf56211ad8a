"""What of a recording matters: the one selection that the story and the diagram both tell.

A run has hundreds of lines, its failure is understood from some twenty. What is kept:

- each decision that made the difference (a `Switch`), what the task that had to wait had done last,
  what the one that went on instead then did, and with what the other went on in the end;
- where the failure came up;
- messages, wake-ups, spawns, time that passes and values assigned, the nearer to those the rather;
- lines that mention the names which the failing line mentions.

The rest is a `Gap`. Names of tasks are shortened to what tells them apart.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import attrs
import trio

from ._client import Exchange
from ._errors import leaves
from ._model import ProtocolViolation
from ._record import (
    CANCELLED,
    KERNEL,
    ONCE_MORE,
    Message,
    Place,
    Recorder,
    Row,
    Said,
    Sent,
    Spawned,
    Step,
    Taken,
    Woke,
    is_delivery,
    is_users_file,
    known_ids,
    raising_place,
    shorten,
)
from ._simulation import FAULT_PREFIX

INSIDE: Final = "goes on, inside of the kernel"
"""How the words for a task end that is part of how a kernel works."""

_RISING: Final = 1_000.0
_NEAR: Final = 50.0
_NAMED: Final = 30.0
_HOME: Final = 20.0
_MOST_SWITCHES: Final = 8
_MOST_IN_ORDER: Final = 6
_MOST_BEFORE: Final = 4
_MOST_AFTER: Final = 4
_MOST_MEANWHILE: Final = 8
_MOST_LABEL: Final = 40
_MOST_NAMED: Final = 3
_SAME: Final = 0.15
_ALIKE: Final = 0.6
_LEAST: Final = 8.0
_OF_KERNELS: Final = frozenset({"request", "prompt", "input", "status", "forward"})
_RARE: Final = frozenset({"prompt", "input", "status", "forward"})
_WAKES: Final = {"event": 35.0, "ended": 150.0}
_MOST_CANDIDATES: Final = 400
_TRIVIAL: Final = (
    "def ",
    "async def ",
    "class ",
    "@",
    "for ",
    "async for ",
    "while ",
    "try:",
    "else:",
    "match ",
    "case ",
    "super().",
)


@attrs.frozen(eq=False)
class Line:
    """A line of code that a task has run.

    Attributes:
        step: in which step.
        row: the line, and what it led to.
        end: ``waits``, ``ends`` and the like if it is the last one of its step, else empty.
        failure: the failure came up here.
        times: how often in a row.
        held: it is what was held back until now.
    """

    step: Step
    row: Row
    end: str = ""
    failure: bool = False
    times: int = 1
    held: bool = False


@attrs.frozen(eq=False)
class Switch:
    """A decision that made the difference: `step` was next, and not its default.

    Attributes:
        step: what was next.
        kept: the name of the turn that had to wait; empty if that is nothing that is told of.
        about: the line with which that went on later; None if it never did.
        came: where it had waited until then, if that is known.
        begun: whether it had begun.
        on: the name of the turn whose line is told next, if `step` is hidden.
        delayed: what had to wait, in words, if it has no turn that is told of.
        went: what went on, in words, if it has no turn that is told of.
        count: of how many such decisions in a row it stands for.
        kept_inside: where in our own code the one waited that had to wait, if it is hidden.
        went_inside: where in our own code the one had waited that went on, if it is hidden.
    """

    step: Step
    kept: str
    about: Row | None
    came: Place | None
    begun: bool
    on: str = ""
    delayed: str = ""
    went: str = ""
    count: int = 1
    kept_inside: Place | None = None
    went_inside: Place | None = None

    @property
    def turn(self) -> str:
        """The name of the turn that went on, as far as can be told; empty if it can't."""
        return self.on or ("" if self.step.hidden else self.step.turn)


@attrs.frozen(eq=False)
class Passing:
    """Time that passes.

    Attributes:
        step: the one.
        row: who goes on because of that.
    """

    step: Step
    row: Row


@attrs.frozen(eq=False)
class Gap:
    """What has been left out.

    Attributes:
        lines: how many lines.
        turns: the tasks that ran them.
        passings: how often time passed.
    """

    lines: int
    turns: tuple[str, ...]
    passings: int = 0


@attrs.frozen(eq=False)
class Waiting:
    """A task that waits in vain.

    Attributes:
        turn: the name of its turn.
        place: where it waits.
        what: for what, if that is known, in words.
        inside: where in our own code, if it waits in that.
    """

    turn: str
    place: Place | None
    what: str = ""
    inside: Place | None = None


Item = Line | Switch | Passing | Gap


@attrs.frozen(eq=False)
class Led:
    """What has led to a failure in our own code.

    Attributes:
        turn: the name of the turn that has failed.
        message: what it had taken last; None if it had only been started.
        place: the line of the user's that sent that, or started it.
    """

    turn: str
    message: Message | None
    place: Place


@attrs.frozen(eq=False)
class Scene:
    """What there is to tell of a run.

    Attributes:
        failure: what it failed with: the one exception, without the groups around it.
        others: how many others there are beside it.
        place: where it came up: the innermost line of the user's.
        inner_place: where our own code has raised it, if it was that.
        led: what has led to that, where no line of the user's has.
        more: other failures, each with where it came up.
        items: what happened.
        labels: what to call the tasks, by the names of their turns.
        threads: the threads of these tasks, by the names of their turns.
        waiting: who waits in vain at the end, where, and for what, if that is the failure.
        hidden: how many tasks of the kernel wait as well.
        inner: whether what a kernel does by itself has been left out.
        switches: how many decisions made a difference.
    """

    failure: BaseException
    others: int
    place: Place | None
    inner_place: Place | None
    led: Led | None
    more: tuple[tuple[BaseException, Place | None], ...]
    items: tuple[Item, ...]
    labels: dict[str, str]
    threads: dict[str, str]
    waiting: tuple[Waiting, ...]
    hidden: int
    inner: bool
    switches: int

    def label(self, turn: str) -> str:
        """What to call a task."""
        return shorten(self.labels.get(turn, turn), _MOST_LABEL)


def compose(recorder: Recorder, failure: BaseException, most: int) -> Scene:
    """Choose what to tell.

    Args:
        recorder: of the run.
        failure: what it failed with.
        most: how many items at most.
    """
    errors = causes(failure)
    error = errors[0]
    stuck = not any(each is error for each, _ in recorder.raised)
    last = _failing_step(recorder, error)
    place, inner_place = _failing_places(recorder, error)
    led = _led(recorder, error) if inner_place is not None and place is None else None
    known = place or (led.place if led is not None else None)
    _choose_published(recorder, error)
    _choose_named(recorder, error, place)
    _choose_watched(recorder)
    home = known.file if known is not None else ""
    everything = _up_to_failure(_everything(recorder, error, last, home))
    everything = _without_repeats(_without_inner(everything))
    weights = _weigh(everything, home)
    items = tuple(_choose(everything, weights, most))
    named = {step.turn for step in recorder.steps if step.turn}
    waiting = tuple(_waiting(recorder)) if stuck else ()
    if len(waiting) > _MOST_IN_ORDER:  # who waits for something that is known is told first
        waiting = tuple(sorted(waiting, key=lambda each: not each.what))
    told = tuple(
        attrs.evolve(each, turn=recorder.owner(each.turn))
        for each in waiting
        if each.turn not in recorder.hidden or each.place or each.what
    )
    return Scene(
        failure=error,
        others=len(errors) - 1,
        place=place,
        inner_place=inner_place,
        led=led,
        more=tuple((each, raising_place(each)) for each in errors[1:]),
        items=items,
        labels=labels({recorder.owner(each) for each in named | set(recorder.threads)}),
        threads=dict(recorder.threads),
        waiting=told,
        hidden=len(waiting) - len(told),
        inner=bool(recorder.hidden),
        switches=sum(isinstance(item, Switch) for item in everything),
    )


def causes(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, cancellations last."""
    return sorted(leaves(error), key=lambda each: isinstance(each, trio.Cancelled))


def _failing_step(recorder: Recorder, error: BaseException) -> int:
    """The step after which nothing matters."""
    for each, number in reversed(recorder.raised):
        if each is error:
            return number
    return len(recorder.steps) - 1


def _failing_places(recorder: Recorder, error: BaseException) -> tuple[Place | None, Place | None]:
    """Where it came up: the innermost line of the user's, and the one of ours that is inside."""
    if isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        error = causes(error.__cause__)[0]
    inner = raising_place(error)
    place = None
    for step in recorder.steps:
        for row in step.rows:
            if row.raised is error and row.place is not None and is_users_file(row.place.file):
                place = row.place
                break
    if place is None:
        place = raising_place(error, users=True)
    return place, inner if inner is not None and not is_users_file(inner.file) else None


def _led(recorder: Recorder, error: BaseException) -> Led | None:
    """What has led to a failure that has come through no line of the user's."""
    number = next((number for each, number in recorder.raised if each is error), -1)
    if number < 0:
        return None
    turn = recorder.steps[number].turn
    answers = (each for each in recorder.messages if each.kind in {"reply", "answer"})
    answered = {each.about for each in answers if each.sent <= number}
    for step in reversed(recorder.steps[: number + 1]):
        for row in reversed(step.rows):
            for effect in row.effects:
                match effect:
                    case Taken(message) if step.turn == turn and message.place is not None:
                        if message not in answered:
                            return Led(turn, message, message.place)
                    case Spawned(turn=started) if started == turn and row.place is not None:
                        return Led(turn, None, row.place)
    return None


def _choose_published(recorder: Recorder, error: BaseException) -> None:
    """Keep of what a kernel has published what the failure is about; that is told by both sides.

    Of the rest, output is told where there is room for it; busy and idle are not.
    """
    about: frozenset[str] = frozenset()
    if isinstance(error, ProtocolViolation):
        about = error.requests
    wanted = {message for msg_id, message in recorder.requests.items() if msg_id in about}
    wanted |= {
        each.about
        for each in recorder.messages
        if each.about is not None and each.text.endswith(ONCE_MORE)
    }
    for each in recorder.messages:
        each.matters = each in wanted or each.about in wanted
    for step in recorder.steps:
        rows: list[Row] = []
        for row in step.rows:
            kept = []
            for effect in row.effects:
                message = effect.message if isinstance(effect, Sent | Taken) else None
                if (
                    message is not None
                    and message.kind in {"publish", "status", "forward"}
                    and not message.matters
                ):
                    if message.kind != "publish" or isinstance(effect, Taken):
                        continue
                    message.receiver, message.taken = None, step.number  # no arrow: it just is
                kept.append(effect)
            if row.effects and not kept and row.place is None:
                continue
            row.effects = kept
            if rows and row.place is None and _goes_with(rows[-1], row):
                rows[-1].effects += kept
            else:
                rows.append(row)
        step.rows = rows
        if not rows and step.hears:
            step.hears, step.turn = "", step.own


def _choose_named(recorder: Recorder, error: BaseException, place: Place | None) -> None:
    """Mark the requests that the line names which has failed, and the messages about them."""
    traceback = error.__traceback__
    while traceback is not None and place is not None:
        frame = traceback.tb_frame
        if (frame.f_code.co_filename, traceback.tb_lineno) == (place.file, place.line):
            named = _exchanges(frame.f_locals, _names_in(place.code))
            for each in recorder.messages:
                request = each if each.kind == "request" else each.about
                each.named = request is not None and request.exchange in named
            return
        traceback = traceback.tb_next


def _exchanges(values: Mapping[str, object], names: frozenset[str]) -> list[Exchange]:
    """What a line has asked a kernel, by the names that it mentions; also a few in a list."""
    found: list[Exchange] = []
    for name in names:
        value = values.get(name)
        each = value if isinstance(value, list | tuple) else [value]
        if len(each) <= _MOST_NAMED:
            found += [one for one in each if isinstance(one, Exchange)]
    return found


def _choose_watched(recorder: Recorder) -> None:
    """Keep of our own code what is about threads that were stopped in the midst of a step.

    That is what they had just done in that function, what they do there when they go on, and what
    others have done meanwhile to the same attributes.
    """
    kept: set[Row] = set()
    for step in recorder.steps:
        if step.stops is not None and step.instead:
            kept |= _around_stop(recorder.steps, step, step.instead, step.stops)
    for step in recorder.steps:
        rows = []
        for row in step.rows:
            if row.watched and row not in kept:
                if not row.effects:
                    continue
                row.place, row.assigned, row.leaves = None, "", False
            rows.append(row)
        step.rows = rows


def _around_stop(steps: Sequence[Step], stopping: Step, who: str, place: Place) -> set[Row]:
    number = stopping.number
    later = next((each for each in steps[number:] if each.own == who), None)
    of = next((row.of for row in later.rows if row.place == place), 0) if later is not None else 0

    def is_in_function(row: Row) -> bool:
        other = row.place
        there = other is not None and (other.file, other.function) == (place.file, place.function)
        return there and of in {0, row.of}

    before = next((each for each in reversed(steps[:number]) if each.own == who), None)
    theirs = [row for row in before.rows if is_in_function(row)][-_MOST_BEFORE:] if before else []
    if later is not None:
        start = next((i for i, row in enumerate(later.rows) if row.place == place), 0)
        theirs += [row for row in later.rows[start:] if is_in_function(row)][:_MOST_AFTER]
    names = frozenset[str]().union(*(_shared_in(row) for row in theirs))
    end = later.number if later is not None else len(steps)
    others = [
        row
        for step in steps[number:end]
        for row in step.rows
        if row.watched and of in {0, row.of} and names & _shared_in(row)
    ]
    return {*theirs, *others[:_MOST_MEANWHILE]}


def _goes_with(former: Row, row: Row) -> bool:
    """Whether what a kernel does by itself can be told with what it did before."""
    if not row.effects or any(isinstance(each, Said) for each in former.effects):
        return False
    effect = row.effects[0]
    if isinstance(effect, Sent) and effect.message.kind == "reply":
        if former.place is not None and effect.message.via is not None:
            return False  # the user's line does not reply
        return not any(isinstance(each, Sent) for each in former.effects)
    return False


# ------------------------------------------------------------------------------- everything


def _everything(recorder: Recorder, error: BaseException, last: int, home: str) -> Iterator[Item]:
    steps = recorder.steps[: last + 1]
    came: dict[str, Place | None] = {}
    inside: dict[str, Place | None] = {}
    released: set[Row] = set()
    seen: dict[str, set[Place]] = {}
    held: Switch | None = None  # until there is something to tell after it
    waits: str | None = None  # who was made to wait by the last one, and still does
    for step in steps:
        if step.own == waits:
            waits = None
        if _is_told(step) and step.instead != waits:
            assert step.instead is not None
            about = _next_row(steps, step.number + 1, step.instead, home, step.stops)
            kept, delayed = _kept(recorder, step, about)
            begun = step.instead in came or step.instead in recorder.hidden
            place = came.get(step.instead)
            switch = Switch(
                step,
                kept,
                about,
                place,
                begun,
                delayed=delayed,
                went=_delivery_words(recorder, step.own),
                kept_inside=inside.get(step.instead) if delayed else None,
                went_inside=inside.get(step.own) if step.hidden else None,
            )
            if step.holds and about is not None:
                released.add(about)
            if held is not None and step.turn.startswith(FAULT_PREFIX):
                yield held
                held = None
            held = switch if held is None else _merge(held, switch)
            waits = step.instead
        items = list[Item]()
        if not step.turn:
            items = [Passing(step, step.rows[0])]
        elif not step.inside:
            items = list(_lines(step, error, last, seen.setdefault(step.own, set())))
            items = [_marked(each, released) for each in items]
            came[step.own] = step.waits
            inside[step.own] = step.waits_inside
        if held is not None and (items or not (step.hidden or _is_unseen(held, step))):
            hidden = step.hidden or held.step is not step
            yield attrs.evolve(held, on=step.turn) if hidden else held
            held = None
        yield from items
    if held is not None:
        yield held


def _is_unseen(switch: Switch, step: Step) -> bool:
    """Whether a thread was stopped for something that nobody sees: others go on after that."""
    return switch.step.stops is not None and step.inside


def _marked(item: Item, released: set[Row]) -> Item:
    if isinstance(item, Line) and item.row in released:
        return attrs.evolve(item, held=True)
    return item


def _up_to_failure(items: Iterable[Item]) -> list[Item]:
    """What comes after the line that has failed is only what it takes to end."""
    found = list(items)
    for index, item in enumerate(found):
        if isinstance(item, Line) and item.failure:
            return found[: index + 1]
    return found


def _without_inner(items: Sequence[Item]) -> list[Item]:
    """Without the decisions that only a kernel's own code is about, if others are left."""
    inner = [
        item
        for item in items
        if isinstance(item, Switch)
        and not item.step.turn.startswith(FAULT_PREFIX)
        and item.step.stops is None
        and (item.delayed.endswith(INSIDE) or item.on == item.kept != "")
    ]
    if not any(isinstance(item, Switch) and item not in inner for item in items):
        return list(items)
    return [item for item in items if item not in inner]


def _without_repeats(items: Iterable[Item]) -> list[Item]:
    """What the same task does over and over again is told once."""
    found: list[Item] = []
    for item in items:
        former = found[-1] if found else None
        if isinstance(item, Passing) and isinstance(former, Passing) and _is_no_news(former, item):
            continue
        if isinstance(item, Line) and isinstance(former, Line) and _is_same(former, item):
            found[-1] = attrs.evolve(former, times=former.times + 1)
        elif isinstance(item, Line) and isinstance(former, Line) and _both_heard(former, item):
            found[-1] = attrs.evolve(
                former, row=Row(None, [*former.row.effects, *item.row.effects])
            )
        else:
            found.append(item)
    return found


def _is_same(one: Line, other: Line) -> bool:
    """Whether both are the same line, in steps of their own, that does nothing to anybody."""
    first, second = one.row, other.row
    return (
        one.step is not other.step
        and one.step.own == other.step.own
        and one.step.time == other.step.time
        and first.place is not None
        and first.place == second.place
        and one.end == other.end == "waits"
        and not (first.effects or second.effects or first.assigned or second.assigned)
        and first.raised is second.raised is None
    )


def _is_no_news(one: Passing, other: Passing) -> bool:
    """Whether the same have been woken, at the same time."""
    first, second = (
        {each.turn for each in passing.row.effects if isinstance(each, Woke)}
        for passing in (one, other)
    )
    return second <= first and one.step.time == other.step.time


def _both_heard(one: Line, other: Line) -> bool:
    """Whether both are something that reaches the same client, one after the other."""
    return bool(one.step.hears) and one.step.hears == other.step.hears and len(one.row.effects) < 6


def _kept(recorder: Recorder, step: Step, about: Row | None) -> tuple[str, str]:
    """What had to wait: a turn that can be told of, or words."""
    instead = step.instead or ""
    if not instead and step.instead_of not in {"", step.thread}:
        does = "does" if step.inside else "sees to what others have brought it"
        return "", f"thread {_last_part(step.instead_of)} {does}"
    if delivery := _delivery_words(recorder, instead):
        return "", delivery
    if step.instead_happens:
        return "", f"this takes place: {_last_part(instead)}"
    if instead in recorder.hidden and (about is None or about.place is None):
        return "", f"{_last_part(recorder.owner(instead))} {INSIDE}"
    return recorder.owner(instead), ""


def _delivery_words(recorder: Recorder, name: str) -> str:
    """What it is that arrives; empty for what is no message's arrival."""
    delivery = is_delivery(name)
    if delivery is None:
        return ""
    sender, where = delivery.groups()
    sender = _last_part(recorder.owner(sender))
    if where.startswith("iopub") and sender != "client":
        return f"some output of {'the main shell' if sender == KERNEL else sender} arrives"
    return f"the next message from {sender} to {where} arrives"


def _merge(first: Switch, second: Switch) -> Switch:
    """Of two decisions with nothing to tell in between, the one that says more."""
    is_fault = first.step.turn.startswith(FAULT_PREFIX)
    better = second if second.kept and not (first.kept or is_fault) else first
    if first.step.stops is None and second.step.stops is not None:
        better = second
    return attrs.evolve(better, count=first.count + 1)


def _lines(step: Step, error: BaseException, last: int, seen: set[Place]) -> Iterator[Line]:
    rows = [row for row in step.rows if row.place is not None or row.effects]
    rows = [row for row in rows if row is rows[-1] or not _is_trivial(row, seen)]
    seen.update(row.place for row in rows if row.place is not None)
    ended = step.ended and step.own == step.turn
    end = "ends" if ended else "waits" if step.waits is not None or _pauses(step, rows) else ""
    end = "" if step.hears else step.stopped or end
    if not rows and ended and not step.happening and not step.hidden:
        rows = [Row(step.place, resumed=True)]
    for row in rows:
        failing = row.raised is error
        yield Line(step, row, end if row is rows[-1] else "", failing)
        if failing and step.number == last:
            return


def _pauses(step: Step, rows: Sequence[Row]) -> bool:
    """Whether a kernel's method waits: what calls it doesn't let the simulator look inside."""
    if not step.hidden or not rows:
        return False
    effects = rows[-1].effects
    return not any(isinstance(each, Sent) and each.message.kind == "reply" for each in effects)


def _is_told(step: Step) -> bool:
    """Whether it was a decision that made a difference which a reader can understand."""
    return step.instead is not None and not step.turn.endswith("<init>")


def _is_trivial(row: Row, seen: set[Place] | frozenset[Place] = frozenset()) -> bool:
    """Whether a line says nothing: a definition, the head of a loop, the end of a block."""
    if row.place is None or row.effects or row.assigned or row.raised is not None:
        return False
    code = row.place.code
    if code.startswith(("with ", "async with ")):
        return row.place in seen
    return code.startswith(_TRIVIAL)


def _next_row(
    steps: Sequence[Step], start: int, turn: str, home: str, stopped: Place | None
) -> Row | None:
    """The first line that a task runs from some step on; rather one in the file that has failed."""
    for step in steps[start:]:
        if step.own == turn and step.rows:
            going_on = (row for row in step.rows if row.place == stopped is not None)
            if (row := next(going_on, None)) is not None:
                return row
            rows = [row for row in step.rows if row.place is not None and not row.resumed]
            rows = [row for row in rows if not _is_trivial(row)]
            at_home = (row for row in rows if _is_at(row, home))
            return next(at_home, rows[0] if rows else step.rows[0])
    return None


def _waiting(recorder: Recorder) -> Iterator[Waiting]:
    places: dict[str, Place | None] = {}
    insides: dict[str, Place | None] = {}
    ran: dict[str, Place] = {}
    for step in recorder.steps:
        if step.turn and not step.inside and not step.happening:
            places[step.own] = step.waits
            insides[step.own] = step.waits_inside
            ran.update((step.own, row.place) for row in step.rows if row.place is not None)
            if _pauses(step, step.rows):
                places[step.own] = step.rows[-1].place
            if step.ended:
                del places[step.own]
    for turn, place in places.items():
        exchange = recorder.awaited.get(turn)
        if exchange is not None:
            yield Waiting(turn, place, _missing(recorder, exchange))
            continue
        inside = insides[turn] if turn not in recorder.hidden else None
        served = [each for each, own in recorder.serving.items() if own == turn]
        if served:
            inner = recorder.inner.get(turn)
            if inner is not None and " yield " in inner.code:  # it runs a coroutine by itself
                inner = ran.get(turn, inner)
            yield Waiting(turn, place or inner, f"serves {served[-1].name}")
        else:
            yield Waiting(turn, place, _unanswered(recorder, turn, place), inside)


def _unanswered(recorder: Recorder, turn: str, place: Place | None) -> str:
    """What a task has sent, and waits for somebody to take or to answer."""
    answered = {each.about for each in recorder.messages if each.kind == "answer" and each.taken}
    for message in reversed(recorder.messages):
        if message.sender != turn or message.kind not in {"ask", "tell", "send"}:
            continue
        if message.place is None or message.place != place or message.withdrawn:
            return ""
        receiver = message.receiver
        who = _last_part(receiver) if receiver else "nobody"
        has = "has ended, and not" if receiver in recorder.ends else "has not"
        if message.taken is None:
            return f"{who} {has} taken {message.text}" if receiver else ""
        if message.kind == "ask" and message not in answered:
            return f"{who} {has} answered {message.text}"
        return ""
    return ""


def _missing(recorder: Recorder, exchange: Exchange) -> str:
    """What of an exchange has not come."""
    message = recorder.requests.get(exchange.id)
    request = message.name if message is not None else known_ids(str(exchange))
    if not exchange.replies:
        return f"{request} has no reply"
    if "idle" not in exchange.states:
        return f"the kernel is not idle after {request}"
    return f"{request} has its reply"


# ----------------------------------------------------------------------------------- weight


def _weigh(items: Sequence[Item], home: str) -> list[float]:
    switches = [index for index, item in enumerate(items) if isinstance(item, Switch)]
    important = [i for i, item in enumerate(items) if isinstance(item, Line) and item.failure]
    if len(switches) <= _MOST_SWITCHES:  # of more, hardly any can be the one that matters
        important += switches
    names = _names(items[index] for index in important)
    if not important and items:
        important = [len(items) - 1]
    weights = [_weight(item, names, home) for item in items]
    position = 0
    important.sort()
    for index in range(len(items)):
        while position + 1 < len(important) and abs(important[position + 1] - index) <= abs(
            important[position] - index
        ):
            position += 1
        if important:
            weights[index] += _NEAR / (1 + abs(important[position] - index))
    seen = Counter[object]()
    for index in range(len(items) - 1, -1, -1):
        same, alike = _contents(items[index])
        if seen[same] > 1:
            weights[index] = 0.0
        elif seen[same]:  # the last time is the one that tells
            weights[index] *= _SAME
        elif seen[alike]:
            weights[index] *= _ALIKE
        seen.update({same, alike})
    for index in important:
        weights[index] += _RISING
    for index in switches:
        item = items[index]
        assert isinstance(item, Switch)
        if index in important:
            for near in _around(items, index, item):
                weights[near] += _RISING / 2
        elif _is_at(item.about, home):
            weights[index] += _NAMED + _HOME
    return weights


def _contents(item: Item) -> tuple[object, object]:
    """What an item says, in two values: where both say the same, and where they do the same."""
    if isinstance(item, Switch | Gap):
        return item, item
    kinds = tuple(type(effect) for effect in item.row.effects)
    what = (item.step.turn, item.row.place, item.row.resumed, kinds)
    texts: list[object] = [item.row.assigned]
    for effect in item.row.effects:
        if isinstance(effect, Sent | Taken):
            texts.append(effect.message.text)
            if effect.message.taken is None or effect.message.kind in _RARE:
                return item, item
        elif isinstance(effect, Woke):
            texts.append(effect.turn)
    return (*what, *texts), what


def _around(items: Sequence[Item], index: int, switch: Switch) -> Iterator[int]:
    """What one has to see to understand a switch."""
    for before in range(index - 1, -1, -1):
        item = items[before]
        if isinstance(item, Line) and item.step.turn == switch.kept:
            yield before
            break
    for after in range(index + 1, len(items)):
        item = items[after]
        if isinstance(item, Line | Passing) and (item.step is switch.step or switch.on):
            yield after
            break
    for after in range(index + 1, len(items)):
        item = items[after]
        if isinstance(item, Line) and item.row is switch.about:
            yield after
            break


def _is_at(row: Row | None, file: str) -> bool:
    return row is not None and row.place is not None and row.place.file == file


def _weight(item: Item, names: frozenset[str], home: str) -> float:
    if isinstance(item, Passing):
        return 50.0 if item.row.effects else 10.0
    if not isinstance(item, Line):
        return 0.0
    row = item.row
    weight = 5.0
    code = row.place.code if row.place is not None else ""
    if _is_trivial(row):
        weight = 1.0
    elif _is_at(row, home):
        weight = _HOME
    for effect in row.effects:
        if isinstance(effect, Sent | Taken) and effect.message.sender == effect.message.receiver:
            continue  # a queue of one's own
        if isinstance(effect, Sent | Taken) and effect.message.kind in _OF_KERNELS:
            weight = max(weight, 110.0)
        if isinstance(effect, Sent | Taken) and effect.message.named:
            weight = max(weight, 150.0)
        if isinstance(effect, Sent | Taken) and effect.message.matters:
            weight = max(weight, 200.0)
        if isinstance(effect, Sent) and effect.message.kind == "publish":
            weight = max(weight, 20.0 if effect.message.receiver is None else 110.0)
        elif isinstance(effect, Sent):
            weight = max(weight, 60.0 if effect.message.taken is not None else 90.0)
        elif isinstance(effect, Taken | Said):
            said = isinstance(effect, Said) and effect.text == CANCELLED
            weight = max(weight, 35.0 if said else 60.0)
        elif isinstance(effect, Woke):
            weight = max(weight, _WAKES.get(effect.why, 70.0))
        elif isinstance(effect, Spawned):
            weight = max(weight, 25.0)
    if row.assigned and not (row.place is not None and row.place.function.endswith("__init__")):
        weight = max(weight, 40.0)
    if row.watched and row.place is not None:
        weight = 200.0
    if row.raised is not None:
        weight = max(weight, 70.0)
    if item.end:
        weight = max(weight, 15.0)
    if names and not names.isdisjoint(_names_in(code)):
        weight += _NAMED
    if _is_at(row, home) and weight > _HOME:
        weight += _HOME
    return weight


def _names(items: Iterable[Item]) -> frozenset[str]:
    """The names that the lines mention which matter most."""
    found: set[str] = set()
    for item in items:
        row = item.about if isinstance(item, Switch) else getattr(item, "row", None)
        if row is not None and row.place is not None:
            found |= _names_in(row.place.code)
    return frozenset(found - {"self", "trio", "lowlevel", "checkpoint"})


def _shared_in(row: Row) -> frozenset[str]:
    """The attributes that a line is about; a lock is not what it is about."""
    code = row.place.code if row.place is not None else ""
    return frozenset() if code.startswith("with ") else frozenset(re.findall(r"\.(\w+)", code))


@cache
def _names_in(code: str) -> frozenset[str]:
    for text in (code, f"{code} pass", f"async def f():\n {code}", f"async def f():\n {code} pass"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        return frozenset(
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute | ast.Name)
        )
    return frozenset()


def _choose(items: Sequence[Item], weights: Sequence[float], most: int) -> Iterator[Item]:
    """The items that weigh most, in order, with gaps for the others; `most` together."""
    order = sorted(range(len(items)), key=lambda index: -weights[index])[:_MOST_CANDIDATES]
    chosen: set[int] = set()
    for index in order:
        if weights[index] < _LEAST and len(items) > most:
            break
        chosen.add(index)
        if _length(chosen, len(items)) > most:
            chosen.remove(index)
    for index in range(len(items)):  # a gap takes as much room as the one line that it is about
        if index not in chosen and {index - 1, index + 1} - chosen <= {-1, len(items)}:
            chosen.add(index)
    left_out: list[Item] = []
    for index, item in enumerate(items):
        if index in chosen:
            yield from _gap(left_out)
            left_out.clear()
            yield item
        else:
            left_out.append(item)
    yield from _gap(left_out)


def _length(chosen: set[int], count: int) -> int:
    """How many items they make, gaps included."""
    gaps = sum(index - 1 not in chosen for index in chosen if index > 0)
    return len(chosen) + gaps + (count - 1 not in chosen)


def _gap(items: Sequence[Item]) -> Iterator[Gap]:
    turns = dict.fromkeys(item.step.turn for item in items if isinstance(item, Line))
    if items:
        passings = sum(isinstance(item, Passing) for item in items)
        yield Gap(len(items) - passings, tuple(turns), passings)


# ----------------------------------------------------------------------------------- labels


def labels(names: Iterable[str]) -> dict[str, str]:
    """Short names, as long as it takes to tell them apart."""
    parts = {name: name.split("/") for name in names if name}
    found: dict[str, str] = {}
    for name, path in parts.items():
        for length in range(1, len(path) + 1):
            short = "/".join(path[-length:])
            if sum(other[-length:] == path[-length:] for other in parts.values()) == 1:
                break
        found[name] = known_ids(short.removeprefix("trio "))
    if KERNEL in found and "main" in found:
        found["main"] = "test"  # not to be taken for the kernel's main shell
    return found


def _last_part(turn: str) -> str:
    return known_ids(turn.rpartition("/")[2])
