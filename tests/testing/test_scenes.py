"""What of a run is worth telling."""

from __future__ import annotations

import itertools

import pytest
import trio

from trio_subshells.testing._scenes import Gap, Line, Passing, Switch, labels, leaves

from .bugs import abba, early_timeout, lost_update
from .stories import long_winded, scene_of


def test_the_deciding_switch_is_told_with_what_is_around_it() -> None:
    scene = scene_of(lost_update)
    (number,) = [number for number, item in enumerate(scene.items) if isinstance(item, Switch)]
    switch = scene.items[number]
    assert isinstance(switch, Switch)
    assert {scene.label(switch.kept), scene.label(switch.step.turn)} == {"add", "add#2"}
    assert switch.about is not None
    assert switch.about.place is not None
    assert switch.about.place.code == "number = read + 1"
    before, after = scene.items[number - 1], scene.items[number + 1]
    assert isinstance(before, Line)
    assert before.step.turn == switch.kept
    assert isinstance(after, Line)
    assert after.step is switch.step


def test_the_failure_is_the_last_thing() -> None:
    scene = scene_of(lost_update)
    assert isinstance(scene.failure, AssertionError)
    last = scene.items[-1]
    assert isinstance(last, Line)
    assert last.failure
    assert last.row.place == scene.place


def test_what_matters_is_there_however_long_the_run() -> None:
    scene = scene_of(long_winded)
    assert len(scene.items) <= 24
    codes = [
        item.row.place.code
        for item in scene.items
        if isinstance(item, Line) and item.row.place is not None
    ]
    assert codes.count("read = number") == 2
    assert codes.count("number = read + 1") == 2
    assert codes[-1] == "assert number == 2"
    assert any(isinstance(item, Switch) for item in scene.items)


def test_gaps_count_what_is_left_out() -> None:
    counts = set()
    for most in (6, 12, 24):
        scene = scene_of(long_winded, most)
        gaps = [item for item in scene.items if isinstance(item, Gap)]
        assert gaps
        assert len(scene.items) <= most
        counts.add(len(scene.items) - len(gaps) + sum(gap.lines + gap.passings for gap in gaps))
    assert len(counts) == 1


def test_who_waits_is_told_of_a_deadlock() -> None:
    scene = scene_of(abba)
    assert [scene.label(each.turn) for each in scene.waiting] == ["main", "take", "take#2"]
    assert scene.waiting[1].place is not None
    assert scene.waiting[1].place.code == "async with one, other:"
    assert scene_of(lost_update).waiting == ()


async def churning() -> None:
    """A lost update in the midst of so many steps that a schedule can't be shrunk to few."""
    number = 0
    order: list[int] = []

    async def add(which: int) -> None:
        nonlocal number
        for _ in range(15):
            order.append(which)
            await trio.lowlevel.checkpoint()
        read = number
        await trio.lowlevel.checkpoint()
        number = read + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, 1)
        nursery.start_soon(add, 2)
    alternating = sum(one != other for one, other in itertools.pairwise(order)) >= 12
    assert not alternating or number == 2


def test_of_many_switches_none_crowds_out_what_happened() -> None:
    scene = scene_of(churning)
    assert scene.switches > 8
    lines = [item for item in scene.items if isinstance(item, Line)]
    assert [line.row.assigned for line in lines].count("read = 0") == 2
    assert [line.row.assigned for line in lines].count("number = 1") == 2
    assert lines[-1].failure


def test_time_that_passes_early_is_a_switch() -> None:
    scene = scene_of(early_timeout)
    (switch,) = [item for item in scene.items if isinstance(item, Switch)]
    assert switch.step.turn == ""
    assert scene.label(switch.kept) == "answer"
    (passing,) = [item for item in scene.items if isinstance(item, Passing)]
    assert passing.step is switch.step


def test_labels_are_as_long_as_it_takes() -> None:
    assert labels(["main", "main/a", "main/b/a", "trio shell", "main/c"]) == {
        "main": "main",
        "main/a": "main/a",
        "main/b/a": "b/a",
        "trio shell": "shell",
        "main/c": "c",
    }


def test_the_leaves_of_a_group_are_what_was_raised() -> None:
    async def fail() -> None:
        raise ValueError("one")

    with pytest.raises(ExceptionGroup) as raised:
        trio.run(_in_nursery, fail)
    assert [str(error) for error in leaves(raised.value)] == ["one"]


async def _in_nursery(fail) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.sleep_forever()
