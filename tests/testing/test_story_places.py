"""Where our own code is told of: its lines lead to what is wrong in it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import attrs
import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.kernel._subshell import Subshell
from trio_subshells.testing import simulated_kernel
from trio_subshells.testing._diagram import svg
from trio_subshells.testing._record import Said, Step
from trio_subshells.testing._scenes import Line, Switch
from trio_subshells.testing._story import Finding, switch_words

from .stories import Body, CountingKernel, report_of, scene_of


def told(body: Body, *words: str) -> str:
    """The one line of a report that has these words."""
    text = report_of(body).text
    found = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, f"{len(found)} lines with {words}:\n{text}"
    return found[0]


def ends_at(line: str, place: str) -> bool:
    return re.search(rf"{re.escape(place)}:\d+$", line) is not None


async def one_cell() -> None:
    async with simulated_kernel(CountingKernel()) as kernel:
        assert (await kernel.client.execute("1")).status == "aborted"


def test_what_a_kernel_does_by_itself_is_told_with_the_line_of_its_actor() -> None:
    served = told(one_cell, "serves execute_request '1' of test")
    assert ends_at(served, "kernel/_subshell.py")
    assert "_serve_one:" in served
    assert "publish" not in served  # which is how all of them say so


def test_lines_without_a_file_are_of_the_file_that_is_named() -> None:
    lines = report_of(one_cell).text.splitlines()
    (title,) = [line for line in lines if line.startswith("time ")]
    assert title.endswith("line of test_story_places.py")
    assert re.search(r"raises AssertionError +\d+$", lines[-1])
    assert any(re.search(r" stories\.py:\d+$", line) for line in lines)


async def cancelled_inside() -> None:
    send, receive = actors.open_channel(1)
    scope = trio.CancelScope()

    async def reader() -> None:
        with scope:
            await receive.receive()
        raise ValueError("too late")

    async def canceller() -> None:
        await trio.sleep(1)
        scope.cancel()

    with send, receive:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            nursery.start_soon(canceller)


def test_a_cancellation_is_told_with_who_and_where() -> None:
    line = told(cancelled_inside, "is cancelled")
    assert " by canceller " in line
    assert re.search(r" in actors/_\w+\.py:\d+ ", line)


class Loop(ts.Kernel):
    implementation = "loop"
    implementation_version = "1"
    language_info = ts.LanguageInfo(name="numbers")

    async def execute(self, cell: ts.Cell) -> None:
        def call_back() -> None:
            self.called = True

        with cell.on_cancel(call_back):
            await trio.sleep_forever()


async def interrupted() -> None:
    async with simulated_kernel(Loop()) as kernel:
        cell = kernel.client.execute_soon("1")
        await cell.output("execute_input")
        await kernel.interrupt()
        assert (await cell.done()).status == "ok"


def test_a_cell_is_told_with_who_cancels_it() -> None:
    line = told(interrupted, "await trio.sleep_forever()", "is cancelled")
    assert "is cancelled by control (kernel/_" in line


def test_a_function_of_the_users_is_told_with_who_calls_it() -> None:
    line = told(interrupted, "self.called = True")
    assert re.search(r"called at kernel/_\w+\.py:\d+\b", line)


async def never_closed() -> None:
    send, receive = actors.open_channel(1)
    with send, receive:
        await receive.receive()


def test_who_waits_in_our_code_is_told_with_its_line() -> None:
    line = told(never_closed, "main waits at test_story_places.py:")
    assert re.search(r"\(actors/_queue\.py:\d+: await bell\.wait\(\)\)$", line)


class Dying(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        await mailbox.receive()


async def unanswered() -> None:
    async with actors.open_system() as system:
        dying = await system.spawn(Dying(), name="dying")
        await dying.ask("hello", timeout=math.inf)


def test_what_an_actors_end_does_is_not_told_as_if_the_users_line_did_it() -> None:
    line = told(unanswered, "answers main ActorTerminated")
    assert "mailbox.receive()" not in line
    assert re.search(r" actors/_\w+\.py:\d+$", line)


async def named() -> None:
    async with simulated_kernel(CountingKernel()) as kernel:
        ask = kernel.client.control_soon
        first = ask("kernel_info_request")
        for _ in range(30):
            await kernel.client.execute("1")
        assert first.replies == []


def test_the_requests_that_the_failing_line_names_are_told() -> None:
    assert ends_at(told(named, "serves kernel_info_request of test"), "kernel/_control.py")
    told(named, "sends control kernel_info_request")


async def patient() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 100)
        for _ in range(200):
            await trio.sleep(0.25)
        raise ValueError("no more")


def test_time_that_passes_again_and_again_is_counted() -> None:
    assert re.search(r"; time passes, \d+ times$", told(patient, "left out"))


async def asked_twice() -> None:
    async with simulated_kernel(CountingKernel()) as kernel:
        cells = [kernel.client.execute_soon("1") for _ in range(2)]
        assert [(await cell.done()).status for cell in cells] == ["ok", "error"]


def test_requests_that_say_the_same_are_numbered() -> None:
    told(asked_twice, "serves execute_request '1' of test")
    told(asked_twice, "serves execute_request '1' #2 of test")


def test_a_failure_of_ours_is_told_with_how_it_was_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Subshell, "_frames", None)
    lines = report_of(one_cell).text.splitlines()
    assert lines[1].startswith("  raised in Subshell._answer, kernel/_subshell.py:")
    assert re.fullmatch(r"  reached by .* › _serve_one:\d+ › _answer:\d+", lines[2])


def test_an_error_of_ours_is_told_before_what_is_published_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Subshell, "_run_cell", None)
    lines = report_of(one_cell).text.splitlines()
    order = [
        next(i for i, line in enumerate(lines) if words in line)
        for words in ("raises TypeError", "publishes error TypeError", "replies error TypeError")
    ]
    assert order == sorted(order)


def never_served() -> Body:
    async def body() -> None:
        async with simulated_kernel(Loop()) as kernel:
            first = kernel.client.execute_soon("1")
            kernel.client.execute_soon("2")
            await first.reply()

    return body


def test_a_request_that_nobody_serves_leads_nowhere_in_the_picture() -> None:
    report = report_of(never_served())
    assert "sends execute_request '2' (never served)" in report.text
    root = ET.fromstring(report.svg)
    (label,) = [each for each in root.iter() if each.text == "execute_request '2'"]
    lost = [each.get("d") for each in root.iter() if each.get("class") == "lost"]
    assert len(lost) == 2  # a line, and the cross at its end
    assert label.get("class") == "label"
    assert "(never served)" in report.mermaid


def test_who_has_cancelled_is_said_in_the_picture() -> None:
    texts = [each.text or "" for each in ET.fromstring(report_of(interrupted).svg).iter()]
    after = texts[texts.index("is cancelled") + 1]
    assert after.startswith("by control (kernel/_")


def test_a_kernels_reply_is_not_told_as_if_the_users_line_gave_it() -> None:
    line = told(one_cell, "replies ok")
    assert ends_at(line, "kernel/_subshell.py")
    assert "self.total" not in line


def test_who_helps_to_send_is_not_told_but_who_sends() -> None:
    assert ends_at(told(unanswered, "answers main ActorTerminated"), "actors/_supervision.py")


def test_with_details_only_the_users_functions_are_told_with_who_calls_them() -> None:
    scene = scene_of(interrupted, 1_000, details=True)
    called = [
        item.row.place.short
        for item in scene.items
        if isinstance(item, Line) and item.row.place is not None
        for effect in item.row.effects
        if isinstance(effect, Said) and effect.text.startswith("called at ")
    ]
    assert called
    assert all(each.startswith("test_story_places.py:") for each in called)


class Curious(ts.Kernel):
    implementation = "curious"
    implementation_version = "1"
    language_info = ts.LanguageInfo(name="questions")

    async def execute(self, cell: ts.Cell) -> None:
        await cell.input("who? ")


async def asks_in_vain() -> None:
    async with simulated_kernel(Curious()) as kernel:
        assert (await kernel.client.execute("1", allow_stdin=False)).status == "ok"


def test_an_error_that_the_users_line_has_seen_is_told_there_only() -> None:
    line = told(asks_in_vain, "raises InputNotAllowed")
    assert 'await cell.input("who? ")' in line
    assert re.search(r"\((actors|kernel)/_\w+\.py:\d+\)", line)


def test_what_a_thread_was_handed_is_no_task_by_its_name() -> None:
    step = Step(
        9,
        0.0,
        "main<TrioToken.run_sync_soon task>",
        "main",
        inside=True,
        holds=True,
        instead="main",
    )
    words = switch_words(scene_of(unanswered), Switch(step, "main", None, None, begun=True))
    assert words.startswith("here thread main does what it was handed by run_sync_soon before main")
    assert words.endswith("which is held back until nothing else can happen")


def test_a_turn_that_goes_to_no_task_has_no_arrow() -> None:
    step = Step(9, 0.0, "main<TrioToken.run_sync_soon task>", "main", inside=True, instead="main")
    scene = scene_of(unanswered)
    switch = Switch(step, "main", None, None, begun=True)
    scene = attrs.evolve(scene, items=(scene.items[0], switch, *scene.items[1:]))
    picture = ET.fromstring(svg(scene, Finding("", "", 1, 1)))
    classes = [each.get("class") for each in picture.iter()]
    assert "tipswitch" in classes  # who had to wait is marked
    assert "held" in classes
    assert "turn" not in classes
