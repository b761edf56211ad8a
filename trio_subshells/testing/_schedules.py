"""Schedules on paper: a run as its deviations from the default, in one line and back.

A schedule is what a failure is reported by, shrunk by and replayed by. It is written as text that
fits between single quotes in any shell, in one of two forms:

- ``1:12=main/reader,40=time``: the decision's number and the name of the turn that was chosen. With
  ``12~main/writer``, that one was held: from there on it waits until nothing else can happen. And
  with ``12@actors._queue:88``, a thread was stopped before that line, when 12 decisions had been
  made, and waits as long (`_preemption`); ``*3`` says at the how many-th time since the decision
  before.
  ``1`` is the version of the form; ``1t:`` says that time was a candidate throughout, which is part
  of the schedule because such a run counts more decisions. Characters that would need care are
  written as in URLs.
- ``1z:…``: the same, compressed, where the former would be long. A checksum comes with it.

Replay is lenient: a deviation whose turn isn't there is skipped, as if it weren't in the schedule.
That makes every part of a schedule a schedule, which is what shrinking needs.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote

import attrs

from ._preemption import Stop
from ._simulation import FAULT, TIME, TIME_PASSES, Deviation, Recorder, Simulation, Turn

_VERSION = "1"
_LONG = 300
"""Characters; a longer schedule is compressed."""
_SAFE = "/#<>() "
_SAFE_PLACES = ":*"


class InvalidSchedule(ValueError):
    """A text that should be a schedule isn't one."""


@attrs.frozen
class Schedule:
    """One order of things, as the decisions that weren't the default. ``str()`` writes it down.

    The default is to go on with the task that ran last, else with what has waited longest.

    Attributes:
        deviations: by ascending number of the decision.
        time: whether time was a candidate in each decision.
    """

    deviations: tuple[Deviation, ...] = ()
    time: bool = False

    @classmethod
    def of(cls, simulation: Simulation, *, time: bool) -> Schedule:
        """The schedule that a simulation has run."""
        return cls(tuple(simulation.deviations), time)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what ``str()`` has written.

        Raises:
            InvalidSchedule: it isn't a schedule, or one of another version.
        """
        head, colon, body = text.strip().partition(":")
        if not colon or not head.startswith(_VERSION) or head[1:] not in {"", "t", "z"}:
            raise InvalidSchedule(
                f"{_shortened(text)!r} isn't a schedule of this version: it begins with '1:', "
                "'1t:' or '1z:', as a failure report prints it"
            )
        if head[1:] == "z":
            return cls.parse(_unpack(body))
        try:
            deviations = tuple(_deviation(each) for each in body.split(",") if each)
        except ValueError as error:
            raise InvalidSchedule(
                f"{_shortened(text)!r} isn't a schedule: {error}; what belongs between the commas "
                "is NUMBER=NAME, NUMBER~NAME, or NUMBER@PLACE"
            ) from None
        both = pairwise(deviations)
        if any(second.decision < first.decision + first.decides for first, second in both):
            raise InvalidSchedule(
                f"{_shortened(text)!r} isn't a schedule: its decisions aren't in ascending order"
            )
        return cls(deviations, head == "1t")

    def __str__(self) -> str:
        parts = map(_written, self.deviations)
        text = f"{_VERSION}{'t' if self.time else ''}:{','.join(parts)}"
        bare = text.rstrip(" ")  # a name may end in spaces, and whoever copies a line loses them
        text = bare + "%20" * (len(text) - len(bare))
        return text if len(text) <= _LONG else _pack(text)

    def __len__(self) -> int:
        return len(self.deviations)

    def only(self, deviations: Iterable[Deviation]) -> Schedule:
        """The same schedule with other deviations."""
        return attrs.evolve(self, deviations=tuple(deviations))


class Replayer:
    """Makes the decisions that a schedule says, and the default ones otherwise.

    Attributes:
        stops: where threads are to be stopped.
        skipped: the deviations whose turn wasn't there when its decision was made.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._wanted: dict[int, list[Deviation]] = {}
        self.stops = [
            Stop.parse(each.choice, each.decision) for each in schedule.deviations if each.preempts
        ]
        for each in schedule.deviations:
            if not each.preempts:
                self._wanted.setdefault(each.decision, []).append(each)
        self.wants_time = schedule.time
        self.skipped: list[Deviation] = []

    def choose(self, simulation: Simulation, default: int) -> int:
        """The turn that the schedule names, or the default."""
        for wanted in self._wanted.get(simulation.decisions - 1, ()):
            turns = simulation.turns
            if wanted.holds:
                if turns[default].name == wanted.choice and len(turns) > 1:
                    simulation.hold(turns[default])
                    default = simulation.front(default)
                    continue
            elif wanted.choice == TIME_PASSES and simulation.may_pass_time:
                return TIME
            else:
                for index, turn in enumerate(turns):
                    if turn.name == wanted.choice:
                        return index
                if simulation.fault_named(wanted.choice):
                    return FAULT
            self.skipped.append(wanted)
        return default


@attrs.frozen
class Delays:
    """The default order, but for some decisions in which the turn that would be next is held.

    Attributes:
        decisions: in which the default is held.
        times: in which time passes.
        time: whether time is a candidate in each decision.
        stops: where threads are stopped.
    """

    decisions: frozenset[int]
    times: frozenset[int] = frozenset()
    time: bool = False
    stops: tuple[Stop, ...] = ()


class Delayer:
    """Makes the decisions of `Delays`.

    Attributes:
        defaults: the name of each decision's default turn.
    """

    def __init__(self, delays: Delays) -> None:
        self._holds = delays.decisions
        self._times = delays.times
        self.wants_time = delays.time
        self.stops = list(delays.stops)
        self.defaults: list[str] = []

    def choose(self, simulation: Simulation, default: int) -> int:
        """The default, unless this is one of the decisions."""
        turns = simulation.turns
        self.defaults.append(turns[default].name)
        decision = simulation.decisions - 1
        if decision in self._times and simulation.may_pass_time:
            return TIME
        if decision in self._holds and len(turns) > 1:
            simulation.hold(turns[default])
            return simulation.front(default)
        return default


@attrs.frozen
class Order:
    """One order of things, as who makes so many steps, and who then: easier to rearrange.

    Attributes:
        blocks: the names of turns, and how many steps each makes.
        time: whether time was a candidate in each decision.
    """

    blocks: tuple[tuple[str, int], ...]
    time: bool


class OrderRecorder(Recorder):
    """Notes the order of a run.

    Attributes:
        blocks: the names of turns, and how many steps each made.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[str, int]] = []

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        """One step more."""
        if simulation.failure is None:
            self._add(turn.name)

    def time(self, simulation: Simulation) -> None:
        """A decision, unless nothing else could happen."""
        if simulation.turns and simulation.failure is None:
            self._add(TIME_PASSES)

    def _add(self, name: str) -> None:
        if self.blocks and self.blocks[-1][0] == name:
            self.blocks[-1] = (name, self.blocks[-1][1] + 1)
        else:
            self.blocks.append((name, 1))


class OrderFollower(Recorder):
    """Makes the decisions that follow an order, as far as that is possible; then the default ones.

    A block whose turn isn't there when it should begin, or go on, is skipped.
    """

    def __init__(self, order: Order) -> None:
        self._left: list[list[Any]] = [list(each) for each in reversed(order.blocks)]
        self.wants_time = order.time
        self.recorder = self

    def choose(self, simulation: Simulation, default: int) -> int:
        """Who is next in the order."""
        while self._left:
            name, count = self._left[-1]
            if count:
                if name == TIME_PASSES and simulation.may_pass_time:
                    self._left[-1][1] -= 1
                    return TIME
                for index, turn in enumerate(simulation.turns):
                    if turn.name == name:
                        return index
                if simulation.fault_named(name):
                    return FAULT
            self._left.pop()
        return default

    def turn(self, simulation: Simulation, turn: Turn) -> None:
        """A step has been made, whether it was a decision or the only one."""
        if self._left and self._left[-1][0] == turn.name and self._left[-1][1]:
            self._left[-1][1] -= 1


_SIGN = re.compile("[=~@]")


def _written(deviation: Deviation) -> str:
    sign = "~" if deviation.holds else "@" if deviation.preempts else "="
    safe = _SAFE + _SAFE_PLACES if deviation.preempts else _SAFE
    return f"{deviation.decision}{sign}{quote(deviation.choice, safe)}"


def _deviation(text: str) -> Deviation:
    found = _SIGN.search(text)
    number = text[: found.start()] if found else ""
    if not found or not number.isascii() or not number.isdigit():
        raise ValueError(f"{_shortened(text)!r} doesn't name a decision and a turn")
    choice = unquote(text[found.end() :], errors="strict")
    if not choice:
        raise ValueError(f"decision {number} has no turn")
    preempts = found.group() == "@"
    if preempts:
        Stop.parse(choice)
    return Deviation(int(number), choice, holds=found.group() == "~", preempts=preempts)


def _pack(text: str) -> str:
    packed = zlib.compress(text.encode(), 9)  # ends in a checksum
    return f"{_VERSION}z:{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"


def _unpack(body: str) -> str:
    inflate: Any = zlib.decompressobj()
    try:
        packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        text: str = inflate.decompress(packed, _MOST).decode()
    except (ValueError, zlib.error):  # not base64, not ASCII, not compressed, not UTF-8
        text = ""
    if not text or not inflate.eof or text.startswith(f"{_VERSION}z"):
        raise InvalidSchedule(
            f"'1z:{_shortened(body)}' isn't a schedule: it is damaged, or a part is missing"
        )
    return text


_MOST = 50_000_000
"""Bytes of a schedule's text at most: what looks like more is no schedule."""


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
