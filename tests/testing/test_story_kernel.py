"""What a report tells of a kernel: where it has failed, and the messages that matter there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.kernel import _control, _stdin
from trio_subshells.kernel._subshell import Subshell
from trio_subshells.testing import ProtocolViolation, check_protocol, simulated_kernel

from .stories import CountingKernel, report_of, scene_of


async def one_cell() -> None:
    async with simulated_kernel(CountingKernel()) as kernel:
        assert (await kernel.client.execute("1")).status == "ok"
        check_protocol(kernel.client)


async def one_subshell() -> None:
    async with simulated_kernel(CountingKernel()) as kernel:
        await kernel.create_subshell()


def told(text: str) -> list[str]:
    """The lines of the trace, without its heading."""
    lines = text.splitlines()
    return lines[1 + next(i for i, line in enumerate(lines) if line.startswith("What happened")) :]


# ------------------------------------------------------------------------------ our own failures


def test_the_line_of_ours_that_has_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subshell, "_answer", None)
    text = report_of(one_cell).text
    assert text.startswith("TypeError: 'NoneType' object is not callable\n")
    (raised, reached, led) = text.splitlines()[1:4]
    assert reached.startswith("  reached by ")
    assert raised.startswith("  raised in Subshell._serve_one, kernel/_subshell.py:")
    assert raised.endswith("self._answer(work, content, started)")
    assert led.startswith("  in main shell, which had taken execute '1', sent at test_story_kern")
    (line,) = [line for line in told(text) if "raises TypeError" in line]
    assert "self._answer(work, content, started)" in line
    assert "kernel/_subshell.py:" in line


def test_a_line_of_ours_is_told_with_who_has_called_it() -> None:
    async def body() -> None:
        async with actors.open_system() as system:
            ref = await system.spawn(Silent(), name="silent", capacity=1)
            ref.tell_nowait(1)
            ref.tell_nowait(2)

    lines = report_of(body).text.splitlines()
    assert lines[0].startswith("WouldBlock")
    assert lines[1].startswith("  raised in ")
    assert ", actors/_" in lines[1]
    assert lines[2].startswith("  called in body, test_story_kernel.py:")
    assert lines[2].endswith("ref.tell_nowait(2)")


def test_an_error_that_a_kernel_replies_is_told_where_it_came_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_control, "Subshell", None)
    lines = told(report_of(one_subshell).text)
    (raised,) = [number for number, line in enumerate(lines) if "raises TypeError" in line]
    assert "kernel/_control.py:" in lines[raised]
    (replied,) = [number for number, line in enumerate(lines) if "replies error TypeError" in line]
    assert raised < replied


def test_other_failures_are_told_with_their_places() -> None:
    async def fail(number: int) -> None:
        raise ValueError(f"the {number}. one")

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(fail, number)

    lines = report_of(body).text.splitlines()
    assert "  and ValueError: the 1. one" in lines
    assert "    raised in fail, test_story_kernel.py:" in "\n".join(lines)
    assert "  and 2 more exceptions" in lines


# --------------------------------------------------------------------------------- its messages


def test_a_violation_is_told_with_what_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = Subshell._answer

    def answer(shell: Any, work: Any, *args: Any) -> None:
        shell._output.status("idle", work.request.header)
        shell._output.stream("stdout", "late\n", work.request.header)
        healthy(shell, work, *args)

    monkeypatch.setattr(Subshell, "_answer", answer)
    report = report_of(one_cell)
    assert report.text.startswith("ProtocolViolation: execute '1' ")
    lines = told(report.text)
    text = "\n".join(lines)
    assert "serves execute '1' of test; publishes busy, execute_input" in text.replace(
        "_request", ""
    )
    sent = ("publishes idle of", "publishes stdo", "publishes idle once more")
    numbers = [next(i for i, line in enumerate(lines) if each in line) for each in sent]
    assert numbers == sorted(numbers)
    heard = [line for line in lines if line.split()[:2] == ["client", "hears"]]
    assert "hears busy, execute_input" in heard[0]
    assert "idle, stdout 'late\\n'" in heard[-1]
    assert "participant" in report.mermaid
    assert "as client" in report.mermaid
    assert "-->>" in report.mermaid
    assert ">idle</text>" in report.svg
    assert ">hears busy, execute_input</text>" in report.svg
    assert ">of execute '1'</text>" in report.svg


def test_a_violation_is_told_with_when_a_reply_was_sent() -> None:
    async def body() -> None:
        async with simulated_kernel(CountingKernel()) as kernel:
            subshell = await kernel.create_subshell()
            cell = kernel.client.execute_soon("1", subshell=subshell)
            await cell.done()
            raise ProtocolViolation(f"{cell} came to nothing", frozenset({cell.id}))

    lines = told(report_of(body).text)
    is_made = ("replies ok", "publishes idle", "kernel/_subshell.py:")
    (made,) = [i for i, line in enumerate(lines) if all(each in line for each in is_made)]
    (sent,) = [i for i, line in enumerate(lines) if "sends on the reply ok to execute '1'" in line]
    assert made < sent
    assert lines[sent].split()[0] == "shell"


def test_the_tasks_of_a_cell_have_their_names() -> None:
    class Parallel(ts.Kernel):
        implementation = "parallel"
        language_info = ts.LanguageInfo(name="words")

        async def execute(self, cell: ts.Cell) -> None:
            async def piece() -> None:
                await trio.sleep(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(piece)
                nursery.start_soon(piece)

    async def body() -> None:
        async with simulated_kernel(Parallel()) as kernel:
            await kernel.client.execute("")
            raise ValueError("to be told")

    text = report_of(body).text
    assert "starts piece" in text
    assert "starts piece#2" in text
    assert "(time passes: piece has slept, piece#2 has slept)" in text
    assert any(line.split()[:2] == ["piece", "await"] for line in told(text))


def test_of_other_failures_only_output_is_told() -> None:
    class Talking(ts.Kernel):
        implementation = "talking"
        language_info = ts.LanguageInfo(name="words")

        async def execute(self, cell: ts.Cell) -> None:
            cell.stdout(f"{cell.code}\n")

    async def body() -> None:
        async with simulated_kernel(Talking()) as kernel:
            cell = kernel.client.execute_soon("hello")
            await cell.done()
            assert cell.text() == "goodbye\n"

    text = report_of(body).text
    assert "publishes stdout 'hello\\n' of execute 'hello'" in text
    for word in ("hears", "busy", "idle", "not heard"):
        assert word not in text


class Asking(ts.Kernel):
    implementation = "asking"
    language_info = ts.LanguageInfo(name="words")

    async def execute(self, cell: ts.Cell) -> None:
        cell.stdout(await cell.input(cell.code))


def test_prompts_and_answers_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = _stdin._belongs_to

    def belongs_to(*args: Any) -> str | None:
        healthy(*args)
        return None

    async def body() -> None:
        async with simulated_kernel(Asking()) as kernel:
            cell = kernel.client.execute_soon("who?", allow_stdin=True)
            prompt = await kernel.client.prompt()
            kernel.client.answer(prompt, "me")
            await cell.done()

    monkeypatch.setattr(_stdin, "_belongs_to", belongs_to)
    report = report_of(body)
    text = report.text
    assert text.startswith("Deadlock")
    assert "stdin" in text
    assert "sends test input_request 'who?' of execute 'who?'" in text
    assert "takes input_request 'who?' of execute 'who?'" in text
    assert "sends stdin input_reply 'me' of execute 'who?'" in text
    assert "takes input_reply 'me' of execute 'who?'; drops it" in text
    assert "(serves execute 'who?')" in text
    assert ": input_request 'who?'" in report.mermaid
    assert ": input_reply 'me'" in report.mermaid
    assert ">input_reply 'me'</text>" in report.svg
    assert ">drops it</text>" in report.svg
    assert "<br/>drops it" in report.mermaid


def test_what_was_answered_is_said_where_it_is_not_plain() -> None:
    async def body() -> None:
        async with simulated_kernel(CountingKernel()) as kernel:
            ask = kernel.client.control_soon
            deletes = [
                ask("delete_subshell_request", subshell_id=await kernel.create_subshell())
                for _ in range(2)
            ]
            assert (await deletes[0].reply()).status == "ok"
            assert (await deletes[1].reply()).status == "error"

    replies = [line for line in told(report_of(body).text) if "replies ok" in line]
    assert any("replies ok to delete_subshell " in line for line in replies)
    assert any("replies ok …2 " in line for line in replies)


# -------------------------------------------------------------------------------- who waits


class Silent(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        await mailbox.receive()
        await trio.sleep_forever()


async def ignored() -> None:
    async with actors.open_system() as system:
        silent = await system.spawn(Silent(), name="silent")

        async def ask(number: int) -> None:
            await silent.ask(number, timeout=math.inf)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            nursery.start_soon(ask, 2)


async def cancelled_in_vain() -> None:
    async def late() -> None:
        with trio.move_on_after(1):
            await trio.sleep_forever()
        raise ValueError("too late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)


def test_an_await_that_is_cancelled_is_said_to_be() -> None:
    lines = told(report_of(cancelled_in_vain).text)
    (line,) = [line for line in lines if "is cancelled" in line]
    assert "await trio.sleep_forever()" in line
    assert any("the timeout of late expires" in line for line in lines)


def test_who_waits_for_an_answer_is_told_with_whose() -> None:
    lines = report_of(ignored).text.splitlines()
    waiting = lines[lines.index("At the end, these wait, and nothing will ever wake them:") + 1 :]
    assert any(line.endswith("(silent has not answered 1)") for line in waiting)
    assert any(line.endswith("(silent has not taken 2)") for line in waiting)


def test_a_kernels_task_that_owes_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(*args: object) -> None:
        await trio.sleep_forever()

    async def body() -> None:
        async with simulated_kernel(CountingKernel()) as kernel:
            await kernel.client.control("shutdown_request", restart=False)

    monkeypatch.setattr(_control.ControlHandler, "_end_all", end)
    scene = scene_of(body, details=True)
    assert [each.what for each in scene.waiting if each.what] == [
        each.what for each in scene.waiting[:2]
    ]
    lines = report_of(body).text.splitlines()
    (line,) = [line for line in lines if line.startswith("  control waits at kernel/_control.py:")]
    assert line.endswith("(serves shutdown)")
