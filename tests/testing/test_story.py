"""The report as text: short, and with all that it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_subshells.kernel._subshell import Subshell
from trio_subshells.testing import (
    Deadlock,
    LeftBehind,
    NoProgress,
    ProtocolViolation,
    Unjoined,
    check_protocol,
    simulated_kernel,
)
from trio_subshells.testing._record import Recorder, Step
from trio_subshells.testing._runs import Runs
from trio_subshells.testing._scenes import Line, Scene, Switch
from trio_subshells.testing._schedules import Replayer, Schedule
from trio_subshells.testing._simulation import Deviation
from trio_subshells.testing._story import (
    ARROW,
    WIDTH,
    Finding,
    compose_story,
    effects_of,
    meaning_of,
    seconds,
    switch_words,
)

from . import bugs, stories
from .stories import failure_of, report_of, scene_of

BODIES = [
    bugs.lost_update,
    bugs.lost_wakeup,
    bugs.abba,
    bugs.early_timeout,
    bugs.depth_three,
    stories.overtaken,
    stories.terminated,
    stories.long_winded,
    stories.crowded,
    stories.miscounted,
    stories.interrupted,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_it_fits_a_screen_and_says_what_it_must(body: Callable[[], Awaitable[object]]) -> None:
    error = failure_of(body)
    assert error.report is not None
    lines = error.report.text.splitlines()
    assert len(lines) <= 45
    assert all(len(line) <= WIDTH for line in lines if not line.startswith("Replay it:"))
    assert lines[0].startswith(type(error.failure).__name__) or isinstance(
        error.failure, ExceptionGroup
    )
    assert any(error.replay in line for line in lines)
    assert any(f"schedule {error.number:,} of seed 0 ({error.strategy})" in line for line in lines)
    switches = sum(line.startswith(f"{ARROW} here") for line in lines)
    assert bool(switches) == bool(error.schedule.deviations)


def test_the_switch_is_said_in_words() -> None:
    text = report_of(bugs.lost_update).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{ARROW} here")]
    assert "goes on instead of" in line
    assert line.endswith("number = read + 1")
    assert "number = 1" in text
    assert "AssertionError: two additions made 1" in text


def test_who_is_held_back_is_said_to_be_until_nothing_else_can_happen() -> None:
    runs = Runs(bugs.lost_update, max_steps=1_000, fairness=None, lag=1.0, checks=())
    for decision in range(9):
        held = Schedule((Deviation(decision, "main/add", holds=True),))
        with runs, Recorder() as recorder:
            failure = runs.run(Replayer(held), recorder).failure
        if failure is not None:
            break
    else:
        raise AssertionError("it never fails")
    scene = compose_story(recorder, failure, Finding("", "", 1, 1))
    (switch,) = [item for item in scene.items if isinstance(item, Switch)]
    words = (
        "here add#2 goes on instead of add, which is held back until nothing else can happen; add"
    )
    assert switch_words(scene, switch).startswith(f"{words} was about to run bugs.py:")
    (last,) = [item for item in scene.items if isinstance(item, Line) and item.held]
    assert effects_of(scene, last)[:2] == ["goes on from here", "number = 1"]


def test_messages_are_told_by_both_sides() -> None:
    text = report_of(stories.overtaken).text
    assert "asks cell Set(value='two')" in text
    assert "takes Set(value='two') from other" in text
    assert "is answered 'two' by cell" in text


def test_a_whole_kernel_is_told_by_what_its_author_knows() -> None:
    text = report_of(stories.miscounted).text
    assert text.count("seen = 0") == 2
    assert text.count("self.total = seen + int(cell.code)") >= 2
    assert "sends main shell execute_request '2'" in text
    assert "serves execute_request '2' of test" in text
    assert "is answered ok by main shell" in text
    told = [line for line in text.splitlines() if not line.startswith("Replay it:")]
    (here,) = [line for line in told if line.startswith(f"{ARROW} here")]
    assert "main shell goes on" in here
    assert "subshell …2" in here
    for word in ("_serve_requests", "warden", "_guard.py", "00000000", "iopub"):
        assert word not in "\n".join(told)


def test_a_kernels_replies_tell_of_errors() -> None:
    text = report_of(stories.interrupted).text
    assert "sends control interrupt_request" in text
    assert "replies error KeyboardInterrupt" in text
    assert "is answered error KeyboardInterrupt by main shell" in text
    assert "raises AssertionError" in text


def test_what_a_kernel_does_itself_is_told_if_that_is_wanted() -> None:
    def files(scene: Scene) -> set[str]:
        lines = [item for item in scene.items if isinstance(item, Line)]
        return {Path(each.row.place.file).name for each in lines if each.row.place is not None}

    assert files(scene_of(stories.miscounted, most=1000)) == {"stories.py"}
    assert "_subshell.py" in files(scene_of(stories.miscounted, most=1000, details=True))


def test_what_the_simulator_finds_is_explained() -> None:
    lines = report_of(bugs.abba).text.splitlines()
    assert "waits for something that only another one could do" in lines[1]
    kinds = {Deadlock, LeftBehind, NoProgress, ProtocolViolation, Unjoined}
    assert all(meaning_of(kind("x")) for kind in kinds)
    assert meaning_of(ValueError("x")) == ""


def test_what_a_kernel_says_twice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = Subshell._answer

    def answer(shell: Any, work: Any, *args: Any) -> None:
        healthy(shell, work, *args)
        shell._output.status("idle", work.request.header)

    async def body() -> None:
        async with simulated_kernel(stories.CountingKernel()) as kernel:
            assert (await kernel.client.execute("1")).status == "ok"
            check_protocol(kernel.client)

    monkeypatch.setattr(Subshell, "_answer", answer)
    text = report_of(body).text
    assert text.startswith("ProtocolViolation: ")
    assert "publishes idle once more of execute '1'" in text


def test_what_is_done_again_and_again_is_told_once() -> None:
    text = report_of(bugs.depth_three).text
    assert text.count("waits, 4 times") == 1


def test_a_deadlock_ends_with_who_waits() -> None:
    lines = report_of(bugs.abba).text.splitlines()
    assert lines[0] == "Deadlock: nothing can happen any more"
    start = lines.index("At the end, these wait, and nothing will ever wake them:")
    assert [line.split()[0] for line in lines[start + 1 :]] == ["main", "take", "take#2"]


def test_a_failure_in_every_schedule_is_said_to_be_one() -> None:
    async def body() -> None:
        raise ValueError("always\nand in two lines")

    text = report_of(body).text
    assert "It needs no context switch: it fails in the default order." in text
    assert text.splitlines()[:2] == ["ValueError: always", "and in two lines"]
    assert ARROW not in text


def test_virtual_seconds_are_short() -> None:
    assert [seconds(time) for time in (0, 0.5, 1e-3, 3600, 1e9)] == [
        "0 s",
        "0.5 s",
        "0.001 s",
        "3600 s",
        "1,000,000,000 s",
    ]


async def rude() -> None:
    """What can't be cancelled must say so, and not raise."""

    def abort(_: object) -> trio.lowlevel.Abort:
        raise ValueError("not me")

    with trio.move_on_after(1):
        await trio.lowlevel.wait_task_rescheduled(abort)


def test_an_internal_error_of_trios_is_explained() -> None:
    lines = report_of(rude).text.splitlines()
    assert lines[0].startswith("TrioInternalError")
    assert lines[1] == '  ValueError in abort: raise ValueError("not me")'
    assert lines[2].startswith("  raised in abort, test_story.py:")
    assert "a rule of trio's lowest level" in lines[3]
    assert not any("kill_everything" in line for line in lines)


def test_what_takes_place_is_not_told_as_if_it_were_a_task() -> None:
    scene = scene_of(bugs.lost_update)
    door = Step(1, 0.0, "the door opens", "", own="the door opens", happening=True)
    chosen = Switch(door, "main", None, None, begun=False)
    words = "here this takes place first: the door opens; main was about to begin"
    assert switch_words(scene, chosen) == words
    step = Step(1, 0.0, "main", "main", own="main")
    delayed = Switch(step, "", None, None, begun=True, delayed="this takes place: the door opens")
    words = "here main goes on before this takes place: the door opens"
    assert switch_words(scene, delayed) == words
    step.holds = True
    held = f"{words}; that is held back until nothing else can happen"
    assert switch_words(scene, delayed) == held
