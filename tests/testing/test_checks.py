"""What no run may do, and what must happen in time: each check has a program that it catches."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.actors._queue import Queue
from trio_subshells.kernel._iopub import IOPub
from trio_subshells.kernel._pending import PendingTable
from trio_subshells.kernel._shell import ShellChannel
from trio_subshells.testing import (
    LostMessage,
    NoProgress,
    Random,
    ScheduleFailed,
    SimulationFailure,
    Starvation,
    UnansweredRequest,
    explore,
    simulated_kernel,
    within,
)
from trio_subshells.testing._explore import Settings, settings

from .words import WordsKernel

Body = Callable[[], Awaitable[object]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def failure_of(body: Body, **options: object) -> SimulationFailure:
    """What it fails with, as a check says it; its report is as clear."""
    token = settings.set(Settings())
    try:
        with pytest.raises(ScheduleFailed) as failed:
            explore(body, schedules=50, **options)  # type: ignore[arg-type]
    finally:
        settings.reset(token)
    assert getattr(failed.value, "__notes__", []) == []
    failure = failed.value.failure
    assert isinstance(failure, SimulationFailure)
    assert failed.value.report is not None
    assert str(failure).partition(", and these tasks wait")[0][:60] in failed.value.report.text
    return failure


# ---------------------------------------------------------------------------------- lost messages


class Echo(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            letter.reply(letter.message)


async def ask_an_echo() -> None:
    async with actors.open_system() as system:
        echo = await system.spawn(Echo(), name="echo", capacity=1, host=actors.ThreadHost())
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(lambda number=number: echo.ask(number, timeout=60))


def test_a_receiver_that_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Queue._append

    def append_silently(queue: Queue[object], value: object) -> None:
        append(queue, value)

    explore(ask_an_echo, schedules=50)
    monkeypatch.setattr(Queue, "_append", append_silently)
    failure = failure_of(ask_an_echo)
    assert isinstance(failure, LostMessage)
    assert str(failure).startswith("system/echo has not noticed what it waits for: <Letter")


def test_a_receiver_that_does_not_hear_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        sender, receiver = actors.open_channel(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await trio.sleep(1)
            sender.close()

    close = Queue.close

    def close_silently(queue: Queue[object], *args: object, **options: object) -> object:
        queue._asleep = False
        return close(queue, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Queue, "close", close_silently)
    failure = failure_of(body)
    assert isinstance(failure, LostMessage)
    assert "hasn't noticed the end" in str(failure)


def test_a_sender_that_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_only(queue: Queue[object]) -> object:
        if not queue._values:
            raise trio.WouldBlock
        return queue._values.popleft()

    monkeypatch.setattr(Queue, "_take", take_only)
    failure = failure_of(ask_an_echo)
    assert isinstance(failure, LostMessage)
    assert str(failure).startswith("there is room in a mailbox, and these still wait: <Letter")


def test_a_thread_that_is_blocked_takes_nothing_and_that_is_all_right() -> None:
    class Blocking(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._block)
                async for letter in mailbox:
                    letter.reply()

        async def _block(self) -> None:
            time.sleep(100)

    async def body() -> None:
        async with actors.open_system() as system:
            ref = await system.spawn(Blocking(), name="blocking", host=actors.ThreadHost())
            await ref.ask("wait", timeout=1000)

    explore(body, schedules=50)


async def print_something() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        assert (await kernel.client.execute("x")).status == "ok"
        await trio.sleep(1)


def test_an_actor_of_a_kernel_that_takes_no_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def only_welcome(iopub: IOPub, mailbox: actors.Mailbox) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(iopub._welcome)
            (await mailbox.receive()).reply()  # that somebody listens
            await trio.sleep_forever()

    explore(print_something, schedules=50)
    monkeypatch.setattr(IOPub, "run", only_welcome)
    failure = failure_of(print_something, strategy=Random(time=0))
    assert isinstance(failure, LostMessage)
    assert "every request is done, and kernel/io/iopub still has in its mailbox: " in str(failure)
    assert "FlushLater" in str(failure)


# ----------------------------------------------------------------------------- unanswered requests


async def ask_and_leave() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        kernel.client.request("kernel_info_request")
        kernel.client.execute_soon("x")
        kernel.client.control_soon("create_subshell_request")


def test_a_request_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    explore(ask_and_leave, schedules=100)  # what wasn't taken yet is nobody's fault
    monkeypatch.setattr(ShellChannel, "_serve_known", lambda shell, request: None)
    failure = failure_of(ask_and_leave)
    assert isinstance(failure, UnansweredRequest)
    assert str(failure) == (
        "the kernel has ended; it has taken and never answered: kernel_info (no reply, no idle)"
    )


def test_a_request_whose_idle_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PendingTable,
        "answer_here",
        lambda table, request, content, letter=None: table.reply(request, content, letter),
    )
    failure = failure_of(ask_and_leave)
    assert isinstance(failure, UnansweredRequest)
    assert "kernel_info (no idle)" in str(failure)


@pytest.mark.parametrize("patience", [50, 200])
def test_a_client_loses_its_patience(patience: float) -> None:
    class Slow(WordsKernel):
        async def execute(self, cell: ts.Cell) -> None:
            await trio.sleep(100)

    async def body() -> None:
        async with simulated_kernel(Slow(), patience=patience) as kernel:
            cell = kernel.client.execute_soon("x")
            with trio.move_on_after(1000):
                await cell.done()

    if patience > 100:
        explore(body, schedules=20)
    else:
        failure = failure_of(body)
        assert isinstance(failure, UnansweredRequest)
        assert "execute 'x' has to wait for at least 1" in str(failure)
        assert "no reply, no idle until then" in str(failure)


# --------------------------------------------------------------------------------------- starvation


@pytest.mark.parametrize("fair", [False, True])
def test_readers_starve_a_writer(fair: bool) -> None:
    async def body() -> None:
        readers = 0
        waiting = done = False
        free = trio.Condition()

        async def read() -> None:
            nonlocal readers
            while not done:
                async with free:
                    while fair and waiting:
                        await free.wait()
                    readers += 1
                    while readers < 2 and not (fair and waiting) and not done:
                        await free.wait()  # nobody likes to be alone in there
                    readers -= 1
                    free.notify_all()

        async def write() -> None:
            nonlocal waiting, done
            with within(steps=800):
                async with free:
                    waiting = True
                    free.notify_all()
                    while readers:
                        await free.wait()
                    done = True
                    waiting = False
                    free.notify_all()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            nursery.start_soon(write)

    if fair:
        explore(body, schedules=50, fairness=30)
        return
    failure = failure_of(body, fairness=30)
    assert isinstance(failure, Starvation)
    assert "the block at test_checks.py:" in str(failure)
    assert "hasn't ended after 800 steps, and waits at test_checks.py:" in str(failure)
    assert "main/read" in str(failure)


def test_steps_mean_something_in_fair_schedules_only() -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="fairness"), within(steps=10):
            raise AssertionError("it can't get here")

    explore(body, schedules=1)
    with pytest.raises(RuntimeError, match="explore"), within(seconds=1):
        raise AssertionError("it can't get here")


def test_synchronous_code_starves_a_thread() -> None:
    async def body() -> None:
        async def block() -> None:
            time.sleep(20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(block)
            nursery.start_soon(trio.sleep, 0)
            await trio.sleep(30)

    explore(body, schedules=20, starvation=21)
    failure = failure_of(body, starvation=10)
    assert isinstance(failure, Starvation)
    assert "synchronous code blocks the thread main for 20 s" in str(failure)
    assert "these could go on: " in str(failure)


def test_blocking_a_thread_in_which_nothing_could_go_on_starves_nobody() -> None:
    async def body() -> None:
        time.sleep(20)

    explore(body, schedules=20, starvation=10)


# ----------------------------------------------------------------------------------------- progress


async def tick_for_ever() -> None:
    async def tick() -> None:
        while True:  # noqa: ASYNC110 - that is what it is about
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await trio.Event().wait()


def test_timers_hide_that_nothing_happens() -> None:
    failure = failure_of(tick_for_ever, max_time=3600)
    assert isinstance(failure, NoProgress)
    text = str(failure)
    assert text.startswith("no end after 3600 virtual seconds, and these tasks wait:\n  main waits")
    assert "main/tick waits at test_checks.py:" in text
    explore(trio.sleep, 3600, schedules=10, max_time=3600)


def test_steps_without_end_say_whose_they_are() -> None:
    failure = failure_of(tick_for_ever, max_steps=500)
    assert isinstance(failure, NoProgress)
    text = str(failure)
    assert text.startswith("no end after 500 steps; the last of these were of main/tick (")
    assert "\n  main waits at " in text


@pytest.mark.parametrize("seconds", [50, 200])
def test_a_block_takes_too_long(seconds: float) -> None:
    async def body() -> None:
        async def tick() -> None:
            while True:  # noqa: ASYNC110 - as above
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            with within(seconds=seconds):
                await trio.sleep(100)
            nursery.cancel_scope.cancel()

    if seconds > 100:
        explore(body, schedules=20)
        return
    failure = failure_of(body)
    assert isinstance(failure, NoProgress)
    assert "hasn't ended after 50 virtual seconds, and these tasks wait:" in str(failure)
