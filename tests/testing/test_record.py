"""The recorder sees what a run does, and doesn't change it."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import attrs
import outcome
import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.testing import simulated_kernel
from trio_subshells.testing._record import (
    Place,
    Recorder,
    Row,
    Said,
    Sent,
    Spawned,
    Step,
    Taken,
    Woke,
    brief,
    is_delivery,
    shorten,
)
from trio_subshells.testing._runs import Runs
from trio_subshells.testing._schedules import Replayer, Schedule
from trio_subshells.testing._simulation import TIME, Simulation


class Follow:
    """Makes the decisions it is told to make, by number, and the default ones otherwise."""

    def __init__(self, choices: Mapping[int, str], *, wants_time: bool = False) -> None:
        self.choices = choices
        self.wants_time = wants_time

    def choose(self, simulation: Simulation, default: int) -> int:
        name = self.choices.get(simulation.decisions - 1)
        if name is None:
            return default
        if name == "time":
            return TIME
        return [turn.name for turn in simulation.turns].index(name)


def record(
    body: Callable[[], Awaitable[object]], choices: Mapping[int, str] | None = None
) -> tuple[Recorder, outcome.Outcome[object], list[int]]:
    recorder = Recorder()
    wants_time = "time" in (choices or {}).values()
    simulation = Simulation(Follow(choices or {}, wants_time=wants_time), recorder=recorder)
    with recorder:
        result = simulation.run(body)
    return recorder, result, simulation.trace


def rows(recorder: Recorder, turn: str) -> list[Row]:
    return [row for step in recorder.steps if step.turn == turn for row in step.rows]


def told(recorder: Recorder, turn: str) -> list[str]:
    """What a task did, as text."""
    texts = []
    for row in rows(recorder, turn):
        for effect in row.effects:
            match effect:
                case Sent(message):
                    texts.append(f"{message.kind} {message.text} to {message.receiver}")
                case Taken(message):
                    texts.append(f"{message.kind} {message.text} from {message.sender}")
                case Woke(turn=other, why=why):
                    texts.append(f"{why} {other}")
                case Spawned(turn=other):
                    texts.append(f"spawn {other}")
                case Said(text):
                    texts.append(text)
    return texts


class Account:
    def __init__(self) -> None:
        self.balance = 0


async def deposit(account: Account, amount: int) -> None:
    seen = account.balance
    await trio.lowlevel.checkpoint()
    account.balance = seen + amount


async def two_deposits() -> None:
    account = Account()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deposit, account, 10)
        nursery.start_soon(deposit, account, 10)
    assert account.balance == 20


def after_first_step(body: Callable[[], Awaitable[object]], first: str, second: str) -> int:
    """The decision at which `first` could go on after its first step, and `second` could begin."""
    seen: list[int] = []

    class Look:
        wants_time = False

        def choose(self, simulation: Simulation, default: int) -> int:
            names = [turn.name for turn in simulation.turns]
            if names[default] == first and second in names:
                seen.append(simulation.decisions - 1)
            return default

    Simulation(Look()).run(body)
    return seen[-1]


def test_lines_and_what_they_assign_are_seen() -> None:
    recorder, result, _ = record(two_deposits)
    assert isinstance(result, outcome.Value)
    assert [
        (row.place and row.place.code, row.assigned) for row in rows(recorder, "main/deposit")
    ] == [
        ("seen = account.balance", "seen = 0"),
        ("await trio.lowlevel.checkpoint()", ""),
        ("account.balance = seen + amount", "account.balance = 10"),
    ]
    steps = [step for step in recorder.steps if step.turn == "main/deposit"]
    assert steps[0].waits is not None
    assert steps[0].waits.code == "await trio.lowlevel.checkpoint()"
    assert Path(steps[0].waits.file) == Path(__file__)
    assert steps[-1].ended
    assert recorder.ends["main/deposit"] == steps[-1].number


def test_a_deviation_is_marked_with_what_would_have_been_next() -> None:
    number = after_first_step(two_deposits, "main/deposit", "main/deposit#2")
    recorder, result, _ = record(two_deposits, {number: "main/deposit#2"})
    assert isinstance(result, outcome.Error)
    (step,) = [step for step in recorder.steps if step.instead is not None]
    assert (step.turn, step.instead) == ("main/deposit#2", "main/deposit")
    ((error, where),) = recorder.raised
    assert isinstance(error, AssertionError)
    assert recorder.steps[where].turn == "main"
    (row,) = [row for row in rows(recorder, "main") if row.raised is not None]
    assert row.place is not None
    assert row.place.code == "assert account.balance == 20"


def test_a_recorded_run_is_the_same_run() -> None:
    number = after_first_step(two_deposits, "main/deposit", "main/deposit#2")
    choices = {number: "main/deposit#2"}
    plain = Simulation(Follow(choices))
    plain.run(two_deposits)
    assert record(two_deposits, choices)[2] == plain.trace


def test_everything_is_put_back() -> None:
    kinds = [trio.MemorySendChannel, trio.MemoryReceiveChannel, trio.CancelScope, actors.Promise]
    before = [dict(vars(kind)) for kind in kinds]
    tracing = sys.gettrace()
    record(two_deposits)
    with pytest.raises(KeyboardInterrupt), Recorder():
        raise KeyboardInterrupt
    assert [dict(vars(kind)) for kind in kinds] == before
    assert sys.gettrace() is tracing


def test_values_in_channels_are_messages() -> None:
    async def body() -> None:
        send, receive = trio.open_memory_channel[str](0)

        async def source() -> None:
            await send.send("one")
            await send.send("two")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(source)
            for _ in range(2):
                await receive.receive()

    recorder, _, _ = record(body)
    assert [(each.text, each.sender, each.receiver) for each in recorder.messages] == [
        ("'one'", "main/source", "main"),
        ("'two'", "main/source", "main"),
    ]
    assert "send 'one' from main/source" in told(recorder, "main")


def test_a_send_that_is_cancelled_is_withdrawn() -> None:
    async def body() -> None:
        send, _receive = trio.open_memory_channel[str](0)
        with trio.move_on_after(1):
            await send.send("never")

    recorder, _, _ = record(body)
    ((message),) = recorder.messages
    assert message.withdrawn
    assert message.taken is None


@attrs.frozen
class Add:
    amount: int


class Counter(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        total = 0
        async for letter in mailbox:
            total += letter.message.amount
            letter.reply(total)


async def count() -> None:
    async with actors.open_system() as system:
        counter = await system.spawn(Counter(), name="counter")
        await counter.tell(Add(1))
        assert await counter.ask(Add(2), timeout=10) == 3
        counter.cancel()
        await counter.watch()


def test_actors_messages_are_seen() -> None:
    recorder, result, _ = record(count)
    result.unwrap()
    counter = "system/counter"
    assert [(each.kind, each.text, each.sender, each.receiver) for each in recorder.messages] == [
        ("tell", "Add(amount=1)", "main", counter),
        ("ask", "Add(amount=2)", "main", counter),
        ("answer", "3", counter, "main"),
        ("end", "system/counter was cancelled", counter, "main"),
    ]
    for message in recorder.messages:
        assert message.taken is not None
        assert message.sent <= message.taken
    assert "tell Add(amount=1) from main" in told(recorder, counter)
    assert "answer 3 from system/counter" in told(recorder, "main")


def test_who_wakes_whom_and_why() -> None:
    async def body() -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait, name="waiter")
            nursery.start_soon(trio.sleep, 5, name="sleeper")
            nursery.start_soon(trio.sleep_forever, name="victim")
            await trio.testing.wait_all_tasks_blocked()
            event.set()
            with trio.move_on_after(2):
                await trio.sleep_forever()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

    recorder, result, _ = record(body)
    result.unwrap()
    assert "event main/waiter" in told(recorder, "main")
    assert "cancelled main/victim" in told(recorder, "main")
    assert "cancels" in told(recorder, "main")
    passing = [(step.time, *told_by_time(step)) for step in recorder.steps if step.turn == ""]
    assert passing == [(2, "timeout main"), (5, "sleep main/sleeper"), (12, "sleep main")]


def told_by_time(step: Step) -> list[str]:
    return [
        f"{effect.why} {effect.turn}"
        for row in step.rows
        for effect in row.effects
        if isinstance(effect, Woke)
    ]


def test_spawns_are_seen_at_their_line() -> None:
    recorder, _, _ = record(two_deposits)
    assert told(recorder, "main")[:2] == ["spawn main/deposit", "spawn main/deposit#2"]


class Hidden:
    """An attribute of it is a property: looking at it would run code."""

    looked = 0

    @property
    def value(self) -> int:
        self.looked += 1
        return 1

    @value.setter
    def value(self, value: int) -> None:
        self.set_to = value


def test_no_code_is_run_for_the_sake_of_a_value() -> None:
    hidden = Hidden()

    async def body() -> None:
        hidden.value = 5
        await trio.lowlevel.checkpoint()

    recorder, _, _ = record(body)
    assert hidden.looked == 0
    assert hidden.set_to == 5
    assert "hidden.value = 5" in [row.place.code for row in rows(recorder, "main") if row.place]


@attrs.define
class Slotted:
    total: int = 0


def test_values_are_found_where_they_are_kept() -> None:
    slotted = Slotted()
    table: dict[str, int] = {}

    async def body() -> None:
        slotted.total += 2
        table["key"] = 3
        one = two = 4
        flag: bool = one == two
        later = await answer()
        assert flag
        assert later

    async def answer() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    recorder, result, _ = record(body)
    result.unwrap()
    assigned = [row.assigned for row in rows(recorder, "main") if row.assigned]
    assert assigned == ["slotted.total = 2", "table['key'] = 3", "flag = True", "later = 7"]


def test_a_line_is_shown_without_its_comment(tmp_path: Path) -> None:
    lines = ["x = '#'  # one", "    f(  # two", "await g()  # three", "y = 1"]
    file = tmp_path / "source.py"
    file.write_text("\n".join(lines))
    codes = [Place(str(file), number, "f").code for number in (1, 2, 3, 4, 5)]
    assert codes == ["x = '#'", "f(", "await g()", "y = 1", ""]


class Broken:
    def __repr__(self) -> str:
        raise ValueError


def test_texts_are_short_and_on_one_line() -> None:
    assert brief("a\nb") == r"'a\nb'"
    assert brief(Broken()) == "<Broken, whose repr raises ValueError>"
    long = brief("x" * 1000, 20)
    assert len(long) == 20
    assert "…" in long
    assert shorten("short", 20) == "short"


class SleepingKernel(ts.Kernel):
    implementation = "sleeping"
    language_info = ts.LanguageInfo(name="sleep")

    async def execute(self, cell: ts.Cell) -> None:
        cell.stdout("good night")
        time.sleep(10)


async def asleep() -> None:
    async with simulated_kernel(SleepingKernel()) as kernel:
        assert (await kernel.client.execute("x")).status == "ok"


def test_what_arrives_is_not_done_by_who_is_blocked_meanwhile() -> None:
    runs = Runs(asleep, max_steps=10_000, fairness=None, lag=1.0, checks=())
    with runs, Recorder() as recorder:
        assert runs.run(Replayer(Schedule()), recorder).failure is None
    arrivals = [step for step in recorder.steps if is_delivery(step.own)]
    assert any(step.own.startswith("kernel > iopub") for step in arrivals)
    assert all(row.place is None for step in arrivals for row in step.rows)
    (slept,) = {
        row.place
        for row in rows(recorder, "kernel/main shell")
        if row.place is not None and "time.sleep" in row.place.code
    }
    assert slept.function == "SleepingKernel.execute"


def test_a_kernels_requests_are_messages_and_its_tasks_are_its_actors() -> None:
    runs = Runs(asleep, max_steps=10_000, fairness=None, lag=1.0, checks=())
    with runs, Recorder() as recorder:
        runs.run(Replayer(Schedule()), recorder)
    shell = "kernel/main shell"
    assert [(each.kind, each.text, each.sender, each.receiver) for each in recorder.messages] == [
        ("request", "execute_request 'x'", "main", shell),
        ("status", "busy", shell, "client"),
        ("status", "execute_input", shell, "client"),
        ("publish", "stdout 'good night'", "kernel/io/iopub", "client"),
        ("reply", "ok", shell, "main"),
        ("status", "idle", shell, "client"),
        ("forward", "ok", "kernel/io/shell", None),
    ]
    assert all(each.taken is not None for each in recorder.messages)
    woken = {
        effect.turn
        for step in recorder.steps
        for row in step.rows
        for effect in row.effects
        if isinstance(effect, Woke)
    }
    assert not woken & {"kernel/io/shell", "kernel/io/control"}
