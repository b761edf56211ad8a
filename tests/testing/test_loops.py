"""A canary for everything that the simulator uses and trio doesn't document.

If one of these fails with a new trio, `trio_subshells.testing` has to follow: mostly `_loops`,
whose first lines say how it works. docs/testing.md says what each name is used for.
"""

from __future__ import annotations

import ast
import gc
import inspect
import math
import pkgutil
import re
import traceback
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import outcome
import pytest
import trio
import trio.testing
from trio._core import _run as trio_run

from trio_subshells import testing
from trio_subshells.testing._errors import RealInput
from trio_subshells.testing._loops import Loop, VirtualClock, restore_place, save_place


class Stepper:
    """Runs a loop, always the task that has waited longest, and notes who ran."""

    def __init__(self, body: object) -> None:
        self.clock = VirtualClock()
        self.runnable: list[trio.lowlevel.Task] = []
        self.ran: list[str] = []
        self.loop = Loop(body, self.clock, self.runnable.append)  # type: ignore[arg-type]

    def step(self, which: int = 0) -> None:
        task = self.runnable.pop(which)
        self.ran.append(task.name.rpartition(".")[2])
        self.loop.enter()
        self.loop.step(task)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """In the loop, whose first task can run."""
        place = save_place()
        try:
            self.loop.enter()
            self.loop.step(None)
            yield
        finally:
            restore_place(place)

    def rest(self) -> None:
        """Run all until nothing can."""
        while self.runnable:
            self.step()

    def run(self) -> object:
        with self.begun():
            self.rest()
            return self.loop.outcome.unwrap()


def test_the_loop_is_a_generator_that_yields_before_it_looks_for_events() -> None:
    assert inspect.isgeneratorfunction(trio_run.unrolled_run)


def test_what_a_runner_has() -> None:
    fields = {each.name for each in trio_run.Runner.__attrs_attrs__}  # type: ignore[attr-defined]
    assert fields >= {
        "asyncgens",
        "clock",
        "deadlines",
        "entry_queue",
        "instruments",
        "io_manager",
        "ki_manager",
        "main_task_outcome",
        "runq",
        "strict_exception_groups",
        "system_context",
        "tasks",
        "waiting_for_idle",
    }


def test_one_step_runs_one_task_up_to_its_next_checkpoint() -> None:
    seen: list[str] = []

    async def child(name: str) -> None:
        for number in range(2):
            seen.append(f"{name}{number}")
            await trio.lowlevel.checkpoint()

    async def body() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, "a")
            nursery.start_soon(child, "b")
        return "done"

    stepper = Stepper(body)
    with stepper.begun():
        while not {"a0", "b0"} <= set(seen):
            before = len(seen)
            stepper.step()
            assert len(seen) - before <= 1
        assert len(stepper.runnable) >= 2
        stepper.step(len(stepper.runnable) - 1)  # out of turn
        stepper.rest()
        assert stepper.loop.finished
        assert stepper.loop.outcome.unwrap() == "done"
        assert sorted(seen) == ["a0", "a1", "b0", "b1"]


@pytest.mark.parametrize("wakes", ["event", "channel", "cancellation", "token", "started"])
def test_whatever_wakes_a_task_goes_through_the_run_queue(wakes: str) -> None:
    """Nothing runs but what was taken out of the queue: `Stepper.run` would not end otherwise."""

    async def starts(task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()
        task_status.started()

    async def body() -> str:
        event = trio.Event()
        send, receive = trio.open_memory_channel[int](0)
        async with trio.open_nursery() as nursery:
            match wakes:
                case "event":
                    nursery.start_soon(event.wait)
                    await trio.lowlevel.checkpoint()
                    event.set()
                case "channel":
                    nursery.start_soon(send.send, 1)
                    assert await receive.receive() == 1
                case "cancellation":
                    nursery.start_soon(trio.sleep_forever)
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                case "token":
                    trio.lowlevel.current_trio_token().run_sync_soon(event.set)
                    await event.wait()
                case "started":
                    await nursery.start(starts)
        return wakes

    assert Stepper(body).run() == wakes


def test_an_exception_comes_from_where_it_was_raised() -> None:
    """Neither a frame of the simulator's nor one of the loop's is in its traceback."""

    async def body() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("of body's")

    with pytest.raises(ValueError, match="of body's") as info:
        Stepper(body).run()
    names = [each.name for each in traceback.extract_tb(info.tb)]
    assert names[names.index("unwrap") + 1 :] == ["body"]


def test_what_a_task_says_that_it_should_not_is_for_trio_to_answer() -> None:
    @types.coroutine
    def say_rubbish() -> Iterator[str]:
        yield "rubbish"

    async def body() -> str:
        with pytest.raises(TypeError, match="'rubbish'"):
            await say_rubbish()
        await trio.lowlevel.checkpoint()
        return "went on"

    assert Stepper(body).run() == "went on"


def test_a_coroutine_that_leaves_its_task_has_left() -> None:
    """It is the third thing that a task may say."""
    left: list[str] = []

    async def leaves() -> None:
        await trio.lowlevel.permanently_detach_coroutine_object(outcome.Value(None))
        left.append("and was resumed")

    async def body() -> None:
        coro = None

        async def child() -> None:
            nonlocal coro
            coro = trio.lowlevel.current_task().coro
            await leaves()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        assert coro is not None
        with pytest.raises(StopIteration):
            coro.send(None)

    Stepper(body).run()
    assert left == ["and was resumed"]


def test_checkpoints_count() -> None:
    async def body() -> str:
        with trio.testing.assert_checkpoints():
            await trio.lowlevel.checkpoint()
        with pytest.raises(AssertionError), trio.testing.assert_checkpoints():
            await trio.lowlevel.cancel_shielded_checkpoint()
        with pytest.raises(AssertionError), trio.testing.assert_checkpoints():
            await trio.lowlevel.checkpoint_if_cancelled()
        with trio.testing.assert_no_checkpoints():
            trio.lowlevel.current_task()
        return "counted"

    assert Stepper(body).run() == "counted"


def test_who_is_cancelled_before_it_waits_does_not_wait() -> None:
    async def body() -> str:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        return "cancelled"

    assert Stepper(body).run() == "cancelled"


def test_a_wrong_answer_to_a_cancellation_ends_the_loop_as_trio_says() -> None:
    async def body() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.wait_task_rescheduled(lambda _: "rubbish")  # type: ignore[arg-type, return-value]

    with pytest.raises(testing.ScheduleFailed) as info:
        testing.explore(body, schedules=1)
    assert isinstance(info.value.failure, trio.TrioInternalError)
    assert "Abort enum" in str(info.value.failure)


def test_a_deadline_that_is_past_expires_before_the_next_step() -> None:
    async def body() -> bool:
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time()
            await trio.lowlevel.cancel_shielded_checkpoint()
            assert trio.lowlevel.current_task()._cancel_status.effectively_cancelled
        return True

    assert Stepper(body).run()


def test_deadlines_that_nobody_wants_any_more_are_forgotten() -> None:
    async def body() -> None:
        for seconds in range(5_000):
            with trio.move_on_after(1 + seconds):
                await trio.lowlevel.checkpoint()

    stepper = Stepper(body)
    with stepper.begun():
        while stepper.runnable:
            stepper.step()
            assert len(stepper.loop.runner.deadlines._heap) <= 2_000


def test_deadlines_expire_when_the_clock_says_so() -> None:
    async def body() -> float:
        await trio.sleep(3600)
        return trio.current_time()

    stepper = Stepper(body)
    with stepper.begun():
        stepper.rest()
        assert stepper.loop.next_deadline() == 3600
        stepper.loop.step(None)
        assert not stepper.runnable
        stepper.clock.now = 3600
        stepper.loop.step(None)
        assert len(stepper.runnable) == 1
        stepper.rest()
        assert stepper.loop.outcome.unwrap() == 3600
        assert stepper.loop.next_deadline() == math.inf


def test_who_waits_until_all_tasks_are_blocked_is_told() -> None:
    async def body() -> None:
        await trio.testing.wait_all_tasks_blocked()

    stepper = Stepper(body)
    with stepper.begun():
        stepper.rest()
        assert stepper.loop.waits_for_idle()
        stepper.loop.tell_idle()
        assert not stepper.loop.waits_for_idle()
        stepper.rest()
        assert stepper.loop.finished


def test_instruments_are_called_as_long_as_they_are_there() -> None:
    seen: list[str] = []

    class Watch(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name.endswith("body"):
                seen.append("step")

    async def body() -> int:
        watch = Watch()
        trio.lowlevel.add_instrument(watch)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(watch)
        await trio.lowlevel.checkpoint()
        return len(seen)

    assert Stepper(body).run() == 3


@pytest.mark.parametrize("cushion", [0.0, 5.0])
def test_all_who_wait_for_idle_are_told_in_the_order_of_their_cushions(cushion: float) -> None:
    told: list[str] = []

    async def wait(name: str, cushion: float) -> None:
        await trio.testing.wait_all_tasks_blocked(cushion)
        told.append(name)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "later", cushion + 1)
            nursery.start_soon(wait, "first", cushion)

    stepper = Stepper(body)
    with stepper.begun():
        stepper.rest()
        for names in (["first"], ["first", "later"]):
            stepper.loop.tell_idle()
            stepper.rest()
            assert told == names
        assert stepper.loop.finished


def test_calls_from_outside_are_made_in_their_order_and_one_alike_once() -> None:
    made: list[object] = []

    async def body() -> None:
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()

        def call_again() -> None:
            made.append("call")
            token.run_sync_soon(made.append, "called by a call")
            token.run_sync_soon(done.set)

        for _ in range(2):
            token.run_sync_soon(made.append, "idempotent", idempotent=True)
        token.run_sync_soon(call_again)
        assert not made
        await done.wait()

    Stepper(body).run()
    assert made == ["call", "idempotent", "called by a call"]


def test_a_call_is_made_as_a_system_task() -> None:
    names: list[str] = []

    async def body() -> None:
        done = trio.Event()

        def call() -> None:
            names.append(trio.lowlevel.current_task().name)
            trio.lowlevel.spawn_system_task(trio.lowlevel.checkpoint)
            done.set()

        trio.lowlevel.current_trio_token().run_sync_soon(call)
        await done.wait()

    Stepper(body).run()
    assert names == ["<TrioToken.run_sync_soon task>"]


def test_a_call_that_raises_ends_the_loop() -> None:
    async def body() -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(int, "rubbish")
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as info:
        Stepper(body).run()
    causes: BaseException | None = info.value
    while causes is not None and not isinstance(causes, ValueError):
        causes = causes.exceptions[0] if isinstance(causes, ExceptionGroup) else causes.__cause__
    assert "rubbish" in str(causes)


def test_a_call_before_the_end_is_made_and_one_after_it_is_refused() -> None:
    made: list[str] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def body() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        tokens[0].run_sync_soon(made.append, "at the end")

    Stepper(body).run()
    assert made == ["at the end"]
    with pytest.raises(trio.RunFinishedError):
        tokens[0].run_sync_soon(made.append, "too late")


def test_a_call_while_its_caller_is_runnable_doesnt_make_it_so_twice() -> None:
    """Else a schedule couldn't say which of the two is meant."""
    caller = "<TrioToken.run_sync_soon task>"
    made: list[int] = []
    called: list[int] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def body() -> None:
        for _ in range(3):  # trio's own tasks have begun then
            await trio.lowlevel.checkpoint()
        tokens.append(trio.lowlevel.current_trio_token())

    stepper = Stepper(body)
    with stepper.begun():
        while stepper.runnable:
            if tokens and caller in [task.name for task in stepper.runnable]:
                tokens[0].run_sync_soon(made.append, len(called))
                called.append(len(called))
                assert [task.name for task in stepper.runnable].count(caller) == 1
            stepper.step()
    assert made == called
    assert len(called) > 1  # when the async generators are finalized, and when it is cancelled


def test_two_loops_take_turns_in_one_thread() -> None:
    seen: list[tuple[str, object]] = []

    def body(name: str) -> object:
        async def main() -> None:
            for _ in range(3):
                seen.append((name, trio.lowlevel.current_trio_token()))
                await trio.lowlevel.checkpoint()

        return main

    steppers = [Stepper(body("a")), Stepper(body("b"))]
    place = save_place()
    try:
        for each in steppers:
            each.loop.enter()
            each.loop.step(None)
        while any(each.runnable for each in steppers):
            for each in steppers:
                if each.runnable:
                    each.step()
    finally:
        restore_place(place)
    assert {name for name, _ in seen} == {"a", "b"}
    tokens = {name: {token for each, token in seen if each == name} for name in "ab"}
    assert len(tokens["a"]) == len(tokens["b"]) == 1
    assert not tokens["a"] & tokens["b"]


def test_the_loop_around_is_there_again_afterwards() -> None:
    async def outer() -> None:
        before = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
        Stepper(inner).run()
        assert (trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()) == before
        await trio.lowlevel.checkpoint()

    async def inner() -> None:
        await trio.lowlevel.checkpoint()

    trio.run(outer)


def test_asynchronous_generators_belong_to_the_loop_that_iterates_over_them() -> None:
    closed: list[str] = []

    async def numbers(name: str) -> object:
        try:
            while True:
                yield 1
        finally:
            closed.append(name)

    async def body() -> None:
        generator = numbers("left open")
        assert await generator.__anext__() == 1  # type: ignore[attr-defined]
        body.kept = generator  # type: ignore[attr-defined]

    Stepper(body).run()
    assert closed == ["left open"]


@pytest.mark.parametrize("wait", [trio.lowlevel.wait_readable, trio.lowlevel.wait_writable])
def test_there_are_no_descriptors(wait: object) -> None:
    async def body() -> None:
        await wait(0)  # type: ignore[operator]

    with pytest.raises(RealInput, match="memory channels"):
        Stepper(body).run()


def test_what_is_abandoned_is_closed() -> None:
    closed: list[str] = []

    async def body() -> None:
        try:
            await trio.sleep_forever()
        finally:
            closed.append("body")

    stepper = Stepper(body)
    with stepper.begun():
        stepper.rest()
        stepper.loop.abandon()
    assert closed == ["body"]
    assert stepper.loop.finished


def test_a_loop_that_is_part_of_a_cycle_is_collected() -> None:
    async def body() -> None:
        await trio.lowlevel.checkpoint()

    stepper = Stepper(body)
    stepper.run()
    # As an exception does whose traceback has frames of the simulator's in it.
    stepper.loop.runner.main_task_outcome = outcome.Value(stepper.loop)
    loop = weakref.ref(stepper.loop)
    del stepper
    gc.collect()
    assert loop() is None


# ------------------------------------------------------------------------- what the docs promise

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
SOURCES = sorted(Path(testing.__file__).parent.glob("*.py"))


def names_on_the_page() -> list[str]:
    """The names of trio's that the page says are used."""
    table = PAGE.read_text(encoding="utf-8").partition("| name in trio |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("name", names_on_the_page())
async def test_what_the_page_says_is_used_is_there(name: str) -> None:
    async with trio.open_nursery() as nursery:
        ends = trio.open_memory_channel[None](0)
        made = {type(each): each for each in (nursery, *ends)}  # what has it as an instance only
        owner_name, _, attribute = name.rpartition(".")
        owner = pkgutil.resolve_name(owner_name)
        assert hasattr(made.get(owner, owner), attribute), (
            f"trio {trio.__version__} has no {name} any more. {PAGE.name} says what it is used for:"
            " find what trio does that with now, and let trio_subshells.testing follow"
        )


def test_the_page_names_every_module_of_trios_that_is_used() -> None:
    used = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio._"):
                used |= {f"{node.module}.{each.name}" for each in node.names}
    assert used
    named = names_on_the_page()
    for each in used:
        assert any(f"{name}.".startswith(f"{each}.") for name in named), (
            f"{each} is imported, and {PAGE.name} doesn't say what for"
        )
