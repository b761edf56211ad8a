"""The report of a failing schedule, told so that somebody who has never seen one understands it.

It is a screen of text: what went wrong and where; how it was found, and the line that makes it
happen again; then what the tasks did, in order, with an arrow at each decision that made the
difference.
`_scenes` chooses what is told.
"""

from __future__ import annotations

import os
import re
import textwrap
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from ._errors import (
    AND_WAITING,
    Deadlock,
    LeftBehind,
    LostMessage,
    NoProgress,
    RealInput,
    Starvation,
    UnansweredRequest,
    Unjoined,
)
from ._model import ProtocolViolation
from ._record import (
    By,
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
    is_ours,
    is_users_file,
    known_ids,
    raising_path,
    raising_place,
    shorten,
)
from ._scenes import (
    INSIDE,
    Gap,
    Item,
    Led,
    Line,
    Passing,
    Scene,
    Switch,
    Waiting,
    causes,
    compose,
)
from ._simulation import FAULT_PREFIX

_ENDED: Final = " (ended)"
_PUBLISHED: Final = frozenset({"publish", "status"})
_HEARD: Final = _PUBLISHED | {"prompt", "input"}
_ABOUT: Final = _HEARD | {"reply", "forward"}
WIDTH: Final = 110
ARROW: Final = "━━▶"
_MEANINGS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        Deadlock,
        "Every task that is left waits for something that only another one could do. See the end.",
    ),
    (
        NoProgress,
        "What the test waits for never comes, though tasks go on, or time does. See the end.",
    ),
    (
        Unjoined,
        "The test has ended, and a thread that it has started was not waited for.",
    ),
    (
        LeftBehind,
        "All went well, yet something was forgotten: a coroutine not awaited, a file not closed.",
    ),
    (
        LostMessage,
        "Something lies there, a message or their end; who should take it sleeps, or doesn't look.",
    ),
    (
        UnansweredRequest,
        "A kernel owes an answer for each request that it takes, and its idle on iopub.",
    ),
    (
        Starvation,
        "What should have gone on in time had to wait, though others went on all the while.",
    ),
    (
        RealInput,
        "The test wants real input or output, which no schedule can decide on: use a stand-in.",
    ),
    (
        trio.TrioInternalError,
        "Somebody has broken a rule of trio's lowest level: has woken a task twice, for example.",
    ),
    (
        ProtocolViolation,
        "What the kernel's clients have seen is not what the Jupyter protocol allows.",
    ),
)
_EXPLANATION: Final = (
    "What happened, in this order; a task runs until it awaits{}, then another may go on."
)
_DECIDES: Final = (
    "marks where another goes on than by default (the one that runs, else the oldest): "
    "it makes the difference."
)
_OR_STOPPED: Final = ", or its thread is stopped"
_WARDEN: Final = " (warden)"
_SCREEN: Final = 44
_ITEMS: Final = 24
_ITEMS_IN_DETAIL: Final = 100
_MOST_WAITING: Final = 6
_MOST_FAILURES: Final = 2
_MOST_MESSAGE: Final = 4
_MOST_CODE: Final = 50
_MOST_TASK: Final = 24
_MOST_PATH: Final = 4
_MUCH_CODE: Final = 28
_LEAST_CODE: Final = 10
_LEAST_CODE_WAITED: Final = 20


@attrs.frozen
class Finding:
    """How a failure was found, in words.

    Attributes:
        how: where in the exploration: ``schedule 3 of seed 0 (random)``.
        replay: one line that makes it happen again.
        deviations: how many decisions make the difference.
        found_with: how many did when it was found, before shrinking.
        picture: where its picture is.
    """

    how: str
    replay: str
    deviations: int
    found_with: int
    picture: Path | None = None


def tell(scene: Scene, finding: Finding) -> str:
    """The report."""
    lines = [*_what(scene), "", *_how(scene, finding), ""]
    lines += _Table(scene).lines()
    lines += _who_waits(scene)
    return "\n".join(line.rstrip() for line in lines)


def compose_story(recorder: Recorder, failure: BaseException, finding: Finding) -> Scene:
    """What to tell on one screen; with details, on some."""
    if recorder.details:
        return compose(recorder, failure, _ITEMS_IN_DETAIL)
    scene = compose(recorder, failure, _ITEMS)
    room = _SCREEN - len(tell(scene, finding).splitlines())
    return compose(recorder, failure, _ITEMS + room) if room > 0 else scene


# --------------------------------------------------------------------------- head and foot


def headline(scene: Scene) -> list[str]:
    """The exception's type and message, as a traceback ends with them, but short."""
    error = scene.failure
    message = str(error)
    if scene.waiting:  # who waits is said at the end
        message = message.partition(AND_WAITING)[0]
    message = known_ids(message)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    lines = [line for line in text.splitlines() if line.strip() and "Use -v to get" not in line]
    if len(lines) > _MOST_MESSAGE:
        lines[_MOST_MESSAGE - 1 :] = ["  …"]
    return [shorten(line, WIDTH) for line in lines]


def meaning_of(error: BaseException) -> str:
    """What a failure means that the simulator has found; empty for the user's own exceptions."""
    return next((words for kind, words in _MEANINGS if isinstance(error, kind)), "")


def _what(scene: Scene) -> Iterator[str]:
    yield from headline(scene)
    if isinstance(scene.failure, trio.TrioInternalError) and scene.failure.__cause__ is not None:
        cause = causes(scene.failure.__cause__)[0]
        frames = traceback.extract_tb(cause.__traceback__)
        where = f" in {frames[-1].name}: {frames[-1].line}" if frames else ""
        yield shorten(f"  {type(cause).__name__}{where}", WIDTH)
    if scene.inner_place is not None:
        yield _at("raised", scene.inner_place)
        path = raising_path(scene.failure)
        if len(path) > (1 if scene.place is None else 2):
            yield f"  reached by {_fitting(path, WIDTH - 13)}"
        if scene.place is not None:
            yield _at("called", scene.place)
        elif scene.led is not None:
            words = f"  {led_words(scene, scene.led)}:  "
            yield words + shorten(scene.led.place.code, max(20, WIDTH - len(words)))
    elif scene.place is not None:
        yield _at("raised", scene.place)
    if meaning := meaning_of(scene.failure):
        yield f"  {meaning}"
    for error, place in scene.more[:_MOST_FAILURES]:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        yield shorten(f"  and {known_ids(text)}", WIDTH)
        if place is not None:
            yield f"  {_at('raised', place)}"
    left = len(scene.more) - _MOST_FAILURES
    if left > 0:
        yield f"  and {_counted(left, 'more exception', 'more exceptions')}"


def _at(verb: str, place: Place) -> str:
    where = f"  {verb} in {place.function}, {place.short}:  "
    if len(where) + len(place.code) > WIDTH - 2:
        where = f"  {verb} at {place.short}:  "
    return where + shorten(place.code, max(20, WIDTH - 2 - len(where)))


def led_words(scene: Scene, led: Led) -> str:
    """What has led to a failure in our own code."""
    who, place = scene.label(led.turn), led.place.short
    if led.message is None:
        return f"in {who}, which was started at {place}"
    what = shorten(led.message.name or led.message.text, 30)
    return f"in {who}, which had taken {what}, sent at {place}"


def _how(scene: Scene, finding: Finding) -> Iterator[str]:
    count, of = finding.deviations, finding.found_with
    found = f"Found by {finding.how}."
    if not count:
        yield f"{found} It needs no context switch: it fails in the default order."
    elif count == of:
        yield f"{found} It takes {_counted(count, 'context switch', 'context switches')}."
    else:
        make = "makes" if count == 1 else "make"
        yield f"{found} Of its {of} context switches, {count} {make} the difference ({ARROW})."
    yield f"Replay it:  {finding.replay}"
    if finding.picture is not None:
        yield f"Picture:    {finding.picture}"
    if scene.inner and finding.replay.startswith("pytest "):
        yield "Details:    with --schedule-details, what the kernel does by itself is told, too"


def _who_waits(scene: Scene) -> Iterator[str]:
    if not scene.waiting:
        return
    yield ""
    yield waiting_words(scene)
    for each in scene.waiting[:_MOST_WAITING]:
        yield f"  {waiter_words(scene, each, WIDTH - 2)}"
    left = len(scene.waiting[_MOST_WAITING:])
    if left:
        yield f"  … and {left} more"
    if scene.hidden:
        yield f"  … and {_counted(scene.hidden, 'task', 'tasks')} of the kernel's own"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


# --------------------------------------------------------------------------------- the trace


class _Table:
    """What happened, in columns: time, task, code, what followed, where."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        items = scene.items
        self._lines = lines = [item for item in items if isinstance(item, Line)]
        self._file = _main_file(scene, lines)
        self._time = max([4, *(len(seconds(item.step.time)) for item in _timed(items))])
        self._task = min(
            _MOST_TASK, max([4, *(len(scene.label(line.step.turn)) for line in lines)])
        )
        codes = [len(code_of(line)) for line in lines]
        self._code = min(_MOST_CODE, max([12, *codes]))
        self._said_time = ""
        self._said_task = ""

    def lines(self) -> Iterator[str]:
        """All of it."""
        switches = [item for item in self._scene.items if isinstance(item, Switch)]
        marked = bool(switches)
        stopped = any(item.step.stops is not None for item in switches)
        text = _EXPLANATION.format("" if not stopped else _OR_STOPPED)
        yield from textwrap.wrap(text, WIDTH, break_long_words=False)
        if marked:
            yield f"{ARROW} {_DECIDES}"
        if any(line.step.turn.endswith(_WARDEN) for line in self._lines):
            yield "An actor's warden is the task that starts it and waits for its end."
        titles = ("time", "task", "line of code", ["what it leads to"], self._where_title())
        yield self._cells(*titles)
        for item in self._scene.items:
            match item:
                case Line():
                    yield self._line(item)
                case Switch():
                    self._said_task = ""
                    words = f"{ARROW} {switch_words(self._scene, item)}"
                    wrapped = textwrap.wrap(
                        words, WIDTH, subsequent_indent="    ", break_on_hyphens=False
                    )
                    yield from wrapped[:3]
                case Passing():
                    self._said_task = ""
                    words = f"({passing_words(self._scene, item.step, item.row)})"
                    time = self._when(item.step)
                    yield shorten(f"{time:>{self._time}}  {words}", WIDTH)
                case Gap():
                    self._said_task = ""
                    yield shorten(f"{'…':>{self._time}}  {gap_words(self._scene, item)}", WIDTH)

    def _line(self, line: Line) -> str:
        label = shorten(self._scene.label(line.step.turn), self._task)
        if line.step.happening and not line.step.hears:
            label = ""
        said = "" if label == self._said_task else label
        self._said_task = label
        return self._cells(
            self._when(line.step),
            said,
            code_of(line),
            effects_of(self._scene, line),
            self._place(place_of(line)),
            path_of(line),
        )

    def _cells(
        self,
        time: str,
        task: str,
        code: str,
        effects: Sequence[str],
        where: str,
        path: Sequence[str] = (),
    ) -> str:
        room = WIDTH - self._time - self._task - len(where) - 6
        if not code:
            code = _fitting(path, min(_MOST_CODE, room - len("; ".join(effects)) - 2))
        followed = _joined(effects, room - 2, len(code))
        if followed and code:
            code_room = min(self._code, max(room - len(followed) - 2, _LEAST_CODE))
            code = shorten(code, code_room)
            column = min(self._code, max(len(code), room - len(followed) - 2))
            text = f"{code:<{column}}  {followed}"
        else:
            text = code or followed
        text = shorten(text, room)
        return f"{time:>{self._time}}  {task:<{self._task}}  {text:<{room}}  {where}"

    def _when(self, step: Step) -> str:
        time = seconds(step.time)
        if time == self._said_time:
            return ""
        self._said_time = time
        return time

    def _where_title(self) -> str:
        return "" if self._file is None else f"line of {os.path.basename(self._file)}"  # noqa: PTH119

    def _place(self, place: Place | None) -> str:
        if place is None:
            return ""
        return f"{place.line}" if self._file == place.file else place.short


def _main_file(scene: Scene, lines: Sequence[Line]) -> str | None:
    """The file whose name needn't be said with each of its lines."""
    files = Counter(
        line.row.place.file
        for line in lines
        if line.row.place is not None and is_users_file(line.row.place.file)
    )
    return files.most_common(1)[0][0] if files else None


def _shorter(path: Sequence[str]) -> Iterator[str]:
    """A path, each time without one more of its outermost functions."""
    for start in range(max(0, len(path) - _MOST_PATH), len(path)):
        yield " › ".join(path[start:])


def _fitting(path: Sequence[str], room: int) -> str:
    """As many of the innermost functions as there is room for."""
    return next((text for text in _shorter(path) if len(text) <= room), "")


def _joined(effects: Sequence[str], room: int, code: int) -> str:
    """What followed, in one line. What is least needed is left out where that is too long.

    Args:
        effects: in words.
        room: for these and for the line of code.
        code: how long that is, which may be shortened.
    """
    words = list(effects)
    if len("; ".join(words)) > room - min(code, _MUCH_CODE):
        words = [each.replace("_request", "", 1) for each in words]
    for where in (_BY_WHICH_LINE, _IN_WHICH_LINE):
        if len("; ".join(words)) > room - min(code, _LEAST_CODE):
            words = [where.sub("", each) for each in words]
    for start in ("wakes ", "waits", "ends"):
        if len("; ".join(words)) <= room - min(code, _MUCH_CODE):
            break
        if len(words) > 1:
            words = [each for each in words if not each.startswith(start) or each.endswith(_ENDED)]
    return "; ".join(words)


_BY_WHICH_LINE: Final = re.compile(r" \([^ ()]+\.py:\d+\)")
_IN_WHICH_LINE: Final = re.compile(r" in [^ ()]+\.py:\d+")


def _timed(items: Sequence[Item]) -> Iterator[Line | Passing]:
    for item in items:
        if isinstance(item, Line | Passing):
            yield item


# --------------------------------------------------------------------------------- in words


def seconds(time: float) -> str:
    """Virtual seconds, short."""
    if time >= 100_000:
        return f"{time:,.0f} s" if time < 1e12 else f"{time:.3g} s"
    return f"{time:.3f}".rstrip("0").rstrip(".") + " s"


def code_of(line: Line) -> str:
    """The line of code; for what isn't one, what happens."""
    if line.step.happening and not line.step.hears:
        return line.step.turn
    if line.row.place is None:
        return ""
    return f"end of {line.row.place.code}" if line.row.leaves else line.row.place.code


def place_of(line: Line) -> Place | None:
    """The line of code; of what no line of the user's does, the one of our own."""
    if line.row.place is None and line.row.via is not None:
        return line.row.via.place
    return line.row.place


def path_of(line: Line) -> tuple[str, ...]:
    """Which functions of our own code do what no line of the user's does, the innermost last."""
    if line.row.place is not None or line.row.via is None:
        return ()
    return line.row.via.path


def effects_of(scene: Scene, line: Line) -> list[str]:
    """What a line led to, in words, in order."""
    row = line.row
    answered = any(
        isinstance(each, Taken) and each.message.kind in {"answer", "reply"} for each in row.effects
    )
    plain = row.place is not None and row.assigned == row.place.code  # a constant: the line says it
    words = [row.assigned] if row.assigned and not answered and not plain else []
    given = {
        effect.message.receiver if isinstance(effect, Sent) else effect.message.sender
        for effect in row.effects
        if isinstance(effect, Sent | Taken)
    }
    former: Sent | Taken | None = None
    about = ""
    for effect in row.effects:
        if isinstance(effect, Woke) and effect.turn in given and effect.why != "ended":
            continue  # it is the message that wakes
        text = effect_words(scene, effect)
        if not isinstance(effect, Sent | Taken):
            verb, _, who = text.partition(" ")
            if isinstance(effect, Woke) and words and words[-1].startswith(f"{verb} "):
                words[-1] += f", {who}"
            else:
                words.append(text)
            former = None
            continue
        if former is not None and _are_one_answer(former, effect):
            what = f" {effect.message.text}"
            to = scene.label(effect.message.receiver or "nobody")
            words[-1] = f"{words[-1].removesuffix(what)}, {to}{what}"
        elif former is not None and _go_together(former, effect):
            text = text.partition(" ")[2]  # "hears busy, idle of execute 'x'"
            words[-1] = f"{words[-1].removesuffix(about)}, {text}{about}"
        else:
            told_of = former is not None and former.message.about is effect.message.about
            about = "" if told_of else _about(scene, line, effect)
            words.append(text + about)
        former = effect
    if line.held:
        words.insert(0, "goes on from here")
    if row.raised is not None:
        words.append(raised_words(scene, row))
    elif line.end:
        words.append(line.end if line.times == 1 else f"{line.end}, {line.times} times")
    return words


def raised_words(scene: Scene, row: Row) -> str:
    """What a line has raised, and where that comes from, in words."""
    assert row.raised is not None
    words = f"raises {type(row.raised).__name__}"
    if row.struck is not None:
        return f"{words}, {by_words(scene, row.struck)}"
    inner = raising_place(row.raised)
    if inner is None or inner == row.place or not is_ours(inner.file):
        return words
    return f"{words} ({inner.short})"


def by_words(scene: Scene, by: By) -> str:
    """By whom something was brought about, and in which line, in words."""
    words = f"by {scene.label(by.turn)}" if by.turn else ""
    where = f"({by.place.short})" if by.place is not None else ""
    return " ".join(filter(None, [words, where]))


def _about(scene: Scene, line: Line, effect: Sent | Taken) -> str:
    """Which request a message of a kernel's is about, if that isn't plain."""
    message = effect.message
    about = message.about
    if about is None or message.kind not in (_ABOUT if isinstance(effect, Sent) else _HEARD):
        return ""
    served = {each.message for each in line.row.effects if isinstance(each, Taken)}
    if about in served or (message.kind == "reply" and _is_last_taken(scene, line, about)):
        return ""
    return f" {'to' if message.kind in {'reply', 'forward'} else 'of'} {about.name}"


def _are_one_answer(one: Sent | Taken, other: Sent | Taken) -> bool:
    """Whether both tell of the same answer, to several."""
    return (
        isinstance(one, Sent)
        and isinstance(other, Sent)
        and one.message.kind == other.message.kind == "answer"
        and one.message.text == other.message.text
    )


def _go_together(one: Sent | Taken, other: Sent | Taken) -> bool:
    """Whether both tell of what was published for the same request."""
    kinds = {one.message.kind, other.message.kind}
    return (
        type(one) is type(other)
        and kinds <= _PUBLISHED
        and one.message.about is other.message.about
    )


def _is_last_taken(scene: Scene, line: Line, request: Message) -> bool:
    """Whether it is plain which request a reply is to."""
    last = None
    for item in scene.items:
        if item is line:
            break
        if isinstance(item, Line) and item.step.turn == line.step.turn:
            for effect in item.row.effects:
                match effect:
                    case Taken(Message(kind="request") as taken):
                        last = taken
                    case Sent(Message(kind="reply")):
                        last = None  # from now on it has to be said
    return last is request


def effect_words(scene: Scene, effect: Sent | Taken | Spawned | Woke | Said) -> str:
    """One effect, in words."""
    match effect:
        case Sent(message):
            to = scene.label(message.receiver) if message.receiver else "nobody"
            lost = "" if message.taken is not None else " (never taken)"
            if message.withdrawn:
                lost = " (not accepted)"
            match message.kind:
                case "tell":
                    return f"tells {to} {message.text}{lost}"
                case "ask":
                    return f"asks {to} {message.text}{lost}"
                case "answer":
                    return f"answers {to} {message.text}"
                case "end":
                    return f"tells {to}: {message.text}"
                case "request" if not message.receiver:
                    return f"sends {message.text} (never served)"
                case "reply":
                    return f"replies {message.text}"
                case "forward":
                    return f"sends on the reply {message.text}"
                case "publish" | "status":
                    lost = "" if message.taken is not None else " (not heard)"
                    return f"publishes {message.text}{lost}"
            return f"sends {to} {message.text}{lost}"
        case Taken(message):
            by = scene.label(message.sender)
            match message.kind:
                case "request":
                    return f"serves {message.text} of {by}"
                case "answer" | "reply":
                    return f"is answered {message.text} by {by}"
                case "end":
                    return f"learns that {message.text}"
                case "publish" | "status":
                    return f"hears {message.text}"
                case "prompt" | "input":
                    return f"takes {message.text}"
            return f"takes {message.text} from {by}"
        case Spawned(turn=turn):
            return f"starts {scene.label(turn)}"
        case Woke(turn=turn, why="ended"):
            return f"wakes {scene.label(turn)}{_ENDED}"
        case Woke(turn=turn, why="cancelled"):
            return f"cancels {scene.label(turn)}"
        case Woke(turn=turn):
            return f"wakes {scene.label(turn)}"
        case Said(text, by, inside):
            words = text if by is None else f"{text} {by_words(scene, by)}"
            return words if inside is None else f"{words} in {inside.short}"


def thread_words(scene: Scene, thread: str) -> str:
    """What to call a thread; tasks of no thread are what takes place in between."""
    if thread == "main" and scene.label(thread) == "test":
        return "the test's thread"
    return (
        f"thread {known_ids(thread.rpartition('/')[2]).removeprefix('trio ')}"
        if thread
        else "elsewhere"
    )


def waiting_words(scene: Scene) -> str:
    """What to say before the list of those who wait at the end."""
    if isinstance(scene.failure, Deadlock):
        return "At the end, these wait, and nothing will ever wake them:"
    return "At the end, these are still there:"


def waiter_words(scene: Scene, waiting: Waiting, most: int) -> str:
    """Who waits in vain, where, and for what; in so many characters, if possible."""
    place = waiting.place or waiting.inside
    start = f"{scene.label(waiting.turn)} waits" + (
        "" if place is None else f" at {place.short}:  "
    )
    what = f"  ({waiting.what})" if waiting.what else ""
    inside = waiting.inside
    if inside not in {None, place} and not what:
        assert inside is not None
        room = most - len(start) - len(inside.short) - len("  (: )") - _LEAST_CODE_WAITED
        what = f"  ({inside.short})"
        if room >= _LEAST_CODE_WAITED:
            what = f"  ({inside.short}: {shorten(inside.code, room)})"
    code = (
        ""
        if place is None
        else shorten(place.code, max(_LEAST_CODE_WAITED, most - len(start) - len(what)))
    )
    return shorten(f"{start}{code}{what}", most)


def switch_words(scene: Scene, switch: Switch) -> str:
    """A decision that made the difference, in words."""
    kept = scene.label(switch.kept)
    step = switch.step
    delayed = f"{kept} goes on" if kept else switch.delayed
    before = f" before {delayed}" if delayed else ""
    instead = f" instead of {kept}" if kept else before
    on = scene.label(switch.turn)
    if step.turn.startswith(FAULT_PREFIX):
        fault = step.turn.removeprefix(FAULT_PREFIX)
        return f"here a fault is injected{before if kept else ''}: {fault}"
    if not step.turn:
        went_on = f"here time passes{before}"
    elif step.hears and not step.holds:
        went_on = f"here what was published reaches {on} first{before}"
    elif on and on == kept:
        first = _inside_words("something else", switch.went_inside)
        return f"here {first} comes first, inside of the kernel, and {kept} goes on later"
    elif switch.delayed.endswith(INSIDE):
        who = switch.delayed.removesuffix(INSIDE).strip()
        who = _inside_words(who, switch.kept_inside)
        if switch.went:
            went = switch.went
        else:
            went = scene.label(step.turn) if step.hidden and not step.inside else on
            went = f"{_inside_words(went or 'something else', switch.went_inside)} goes on"
        went_on = f"here {went} before {who} goes on, inside of the kernel"
    elif not on:
        return "here the order of things inside of the kernel is not the default one"
    elif step.inside and not step.hidden:
        thread = thread_words(scene, step.thread)
        what = (
            "does what it was handed by run_sync_soon"
            if "run_sync_soon" in step.turn
            else "sees to its own affairs"
        )
        went_on = f"here {thread} {what}{before}"
    elif step.happening and not step.hidden:
        place = f"here this takes place first: {step.turn}"
        return f"{place}; {kept} {_next_words(switch)}" if kept else place
    else:
        went_on = f"here {on} goes on{instead}"
    if step.stops is not None and kept:
        seen = on and on != kept and (switch.on or not step.inside)
        others = f"{on} goes" if seen else "others go"
        when = "in the midst of" if step.midway else "before it runs"
        where = f"{when} {step.stops.short}: {shorten(step.stops.code, 70)}"
        return f"here {kept} is stopped {where} ━ {others} on first, and {kept} from there later"
    if step.holds and kept and step.inside and not step.hidden:
        return f"{went_on}, which is held back until nothing else can happen"
    if step.holds and kept:
        others = on if on and on != kept else "others"
        goes_on = f"here {others} {'goes' if others == on else 'go'} on instead of {kept}"
        held = "which is held back until nothing else can happen"
        return f"{goes_on}, {held}; {kept} {_next_words(switch)}"
    if not kept and step.holds and delayed:
        return f"{went_on}; that is held back until nothing else can happen"
    if not kept:
        return went_on if delayed else f"{went_on}, sooner than by default"
    return f"{went_on}, which {_next_words(switch)}"


def _inside_words(who: str, place: Place | None) -> str:
    """A part of a kernel, with where it stands in its own code."""
    if place is None:
        return who
    return f"{who} (in {place.function.rpartition('.')[2]}, {place.short})"


def _next_words(switch: Switch) -> str:
    """What the one that had to wait was about to do."""
    if not switch.begun:
        return "was about to begin"
    if switch.about is not None and switch.about.place is not None:
        what = "go on in" if switch.about.resumed else "run"
        return f"was about to {what} {switch.about.place.short}: {switch.about.place.code}"
    if switch.came is not None:
        return f"had come to {switch.came.short}: {switch.came.code}"
    return "goes on later"


def passing_words(scene: Scene, step: Step, row: Row) -> str:
    """What time has brought, in words."""
    words = []
    for effect in row.effects:
        if isinstance(effect, Woke):
            who = scene.label(effect.turn)
            words.append(_IN_TIME[effect.why].format(who))
    words.sort()  # what is due at one time, trio tells in an order of addresses
    return f"time passes{': ' if words else ''}{', '.join(words)}"


_IN_TIME: Final = {
    "event": "{} goes on",
    "sleep": "{} has slept",
    "timeout": "the timeout of {} expires",
    "time": "{} has waited long enough",
}


def gap_words(scene: Scene, gap: Gap) -> str:
    """What was left out, in words."""
    who = ", ".join(shorten(scene.label(turn), _MOST_TASK) for turn in gap.turns[:4])
    lines = _counted(gap.lines, "line", "lines")
    more = ", …" if len(gap.turns) > 4 else ""
    words = [f"{lines} left out" + (f" ({who}{more})" if who else "")] if gap.lines else []
    if gap.passings:
        words.append(f"time passes, {_counted(gap.passings, 'time', 'times')}")
    return "; ".join(words)
