"""Whether answers about which subshells there are can all be true: are they linearizable?

Each subshell comes into being at one moment, and ends at another; each look (a list, say) is taken
at one moment, somewhere between its request and its reply. All of them happen one after the other,
in an order that has to agree with the clients' own (what was answered before another was asked has
happened before it), and with what each look has seen. There is such an order unless these demands
form a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from ._client import Moment

_MOST_OPEN: Final = 12
"""Questions that are tried both ways, at most: 4,096 ways. Further ones are left open."""


@attrs.frozen
class Lifetime:
    """When a subshell came into being, and when it ended; as far as its clients can know.

    Attributes:
        created_after: the create was asked for.
        created_before: it was answered.
        ended_after: something that may end it was asked for; None: nothing was.
        ended_before: a delete was answered; None: it may be there yet.
    """

    created_after: Moment
    created_before: Moment | None
    ended_after: Moment | None = None
    ended_before: Moment | None = None


@attrs.frozen
class Look:
    """An answer that tells which subshells there are.

    Attributes:
        name: for people.
        after: it was asked for.
        before: it was answered.
        seen: the ids of those that are there.
        of: the ids of those that it tells something about; None: of all.
    """

    name: str
    after: Moment
    before: Moment
    seen: frozenset[str]
    of: frozenset[str] | None = None


@attrs.frozen
class _Event:
    """One moment that is to be found, between two that are known."""

    after: Moment
    before: Moment | None

    def precedes(self, other: _Event) -> bool:
        """Whether it has happened before another one, by the clients' own order."""
        return self.before is not None and self.before < other.after


def contradictions(lifetimes: Mapping[str, Lifetime], looks: Sequence[Look]) -> Iterator[str]:
    """What can't all be true; nothing, if there is an order in which it is.

    Args:
        lifetimes: of each subshell that a client has created, by its id.
        looks: what was answered. Ids of others are ignored: the kernel may have subshells of its
            own.
    """
    order = _Order()
    births: dict[str, int] = {}
    ends: dict[str, int] = {}
    for subshell, life in lifetimes.items():
        births[subshell] = order.add(_Event(life.created_after, life.created_before))
        if life.ended_after is not None:
            ends[subshell] = order.add(_Event(life.ended_after, life.ended_before))
            order.demand(births[subshell], ends[subshell])
    questions = []
    for look in looks:
        there = order.add(_Event(look.after, look.before))
        for subshell in sorted(lifetimes if look.of is None else look.of & lifetimes.keys()):
            end = ends.get(subshell)
            if subshell not in look.seen:
                questions.append((look.name, subshell, there, births[subshell], end))
            elif not order.demand(births[subshell], there) or (
                end is not None and not order.demand(there, end)
            ):
                yield f"{look.name}: {subshell} is in it, and wasn't there"
                return
    open_questions = []
    for name, subshell, there, birth, end in questions:
        early = order.allows(there, birth)
        late = end is not None and order.allows(end, there)
        if early and late and end is not None:
            open_questions.append((there, birth, end))
        elif early:
            order.demand(there, birth)
        elif late and end is not None:
            order.demand(end, there)
        else:
            yield f"{name}: {subshell} isn't in it, and was there"
            return
    if not _answerable(order, open_questions[:_MOST_OPEN]):
        yield "what lists and deletes say of subshells was never true at the same time"


def _answerable(order: _Order, questions: list[tuple[int, int, int]]) -> bool:
    """Whether each look can be before the birth, or after the end, of what it hasn't seen."""
    if not questions:
        return True
    (there, birth, end), *rest = questions
    for first, second in ((there, birth), (end, there)):
        if order.demand(first, second):
            if _answerable(order, rest):
                return True
            order.withdraw()
    return False


class _Order:
    """Events, and which has to come before which."""

    def __init__(self) -> None:
        self._events: list[_Event] = []
        self._after: list[list[int]] = []
        self._demands: list[int] = []

    def add(self, event: _Event) -> int:
        """One more event; returns its number."""
        number = len(self._events)
        self._after.append([])
        for other, each in enumerate(self._events):
            if each.precedes(event):
                self._after[other].append(number)
            elif event.precedes(each):
                self._after[number].append(other)
        self._events.append(event)
        return number

    def allows(self, first: int, second: int) -> bool:
        """Whether one can come before another."""
        seen, todo = {second}, [second]
        while todo:
            for each in self._after[todo.pop()]:
                if each == first:
                    return False
                if each not in seen:
                    seen.add(each)
                    todo.append(each)
        return True

    def demand(self, first: int, second: int) -> bool:
        """One has to come before another; false: that can't be."""
        if not self.allows(first, second):
            return False
        self._after[first].append(second)
        self._demands.append(first)
        return True

    def withdraw(self) -> None:
        """Take the last demand back."""
        self._after[self._demands.pop()].pop()
