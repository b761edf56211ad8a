"""Each fault does what it says, and a kernel that is all right keeps its promises with it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import attrs
import pytest
import trio

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.kernel._limits import DESCRIPTORS, RESERVE
from trio_subshells.testing import (
    Client,
    Exhaustive,
    Exploration,
    Faults,
    InjectedFault,
    Random,
    RandomFaults,
    Reply,
    ScheduleFailed,
    SimulatedKernel,
    check_protocol,
    explore,
    simulated_kernel,
)
from trio_subshells.testing._explore import Settings, settings
from trio_subshells.testing._faults import FIRST_CLIENT, KINDS

from .words import WordsKernel

Body = Callable[[], Awaitable[object]]
LONGEST = 1_000
"""Virtual seconds: nothing here takes longer."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What fails here says so in the log, hundreds of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(body: Body, schedules: int = 15) -> Exploration:
    return explore(body, schedules=schedules, max_time=LONGEST, max_steps=20_000)


# ------------------------------------------------------------------------- actors without a kernel


class Echo(actors.Actor):
    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            await trio.lowlevel.checkpoint()
            letter.reply(letter.message)


async def ask(echo: actors.ActorRef, message: object) -> object:
    """The answer; None from one that has failed."""
    try:
        return await echo.ask(message, timeout=60)
    except actors.ActorTerminated:
        return None


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("host", [actors.TaskHost(), actors.ThreadHost()], ids=lambda it: it.kind)
def test_an_actor_fails_at_its_nth_await(at: int, host: actors.Host) -> None:
    async def body() -> None:
        faults = Faults()
        faults.fail_actor("echo", at=at)
        async with actors.open_system() as system:
            echo = await system.spawn(Echo(), name="echo", host=host, on_failure=actors.Restart())
            await system.spawn(Echo(), name="other")
            answers = [await ask(echo, number) for number in range(4)]
            assert echo.statistics().restarts == 1
        # Each message takes it two awaits: for the letter, which isn't lost, and for the answer.
        lost = at // 2 - 1 if at % 2 == 0 else None
        assert answers == [None if number == lost else number for number in range(4)]
        assert faults.injected == ["echo raises InjectedFault"]

    explore(body, schedules=10)


def test_what_it_raises_says_where_or_is_the_users() -> None:
    async def body(error: Exception | None) -> None:
        faults = Faults()
        faults.fail_actor("e*", error=error)
        async with actors.open_system() as system:
            await ask(await system.spawn(Echo(), name="echo"), 1)
            await trio.sleep_forever()

    with pytest.raises(ScheduleFailed) as failed:
        explore(body, None, schedules=1)
    (cause,) = failed.value.failure.exceptions  # type: ignore[attr-defined]
    assert isinstance(cause, InjectedFault)
    assert "system/echo" in str(cause)
    assert "_transport.py" in str(cause)
    with pytest.raises(ScheduleFailed) as failed:
        explore(body, ZeroDivisionError("mine"), schedules=1)
    (cause,) = failed.value.failure.exceptions  # type: ignore[attr-defined]
    assert isinstance(cause, ZeroDivisionError)


def test_a_full_mailbox_lets_nobody_in_until_it_has_room() -> None:
    async def body() -> None:
        faults = Faults()
        async with actors.open_system() as system:
            echo = await system.spawn(Echo(), name="echo", capacity=2)
            assert await ask(echo, 1) == 1
            faults.fill_mailbox("echo", seconds=10)
            with pytest.raises(trio.WouldBlock):
                echo.tell_nowait(2)
            answers = []

            async def ask_and_note(number: int) -> None:
                answers.append(await ask(echo, number))
                assert trio.current_time() >= 10

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(ask_and_note, number)
            assert sorted(answers) == list(range(5))  # type: ignore[type-var]

    explore(body, schedules=40)


def test_what_there_is_not_is_refused() -> None:
    async def body() -> None:
        faults = Faults()
        async with actors.open_system() as system:
            await system.spawn(Echo(), name="echo", capacity=float("inf"))
            with pytest.raises(ValueError, match="no bound"):
                faults.fill_mailbox("echo")
            with pytest.raises(ValueError, match="no actor 'ecco' lives: there are echo"):
                faults.fill_mailbox("ecco")
        with pytest.raises(ValueError, match="at=0"):
            faults.fail_actor("echo", at=0)
        with pytest.raises(RuntimeError, match="simulated kernel"):
            faults.delay("*")
        with pytest.raises(RuntimeError, match="already"):
            Faults()

    explore(body, schedules=1)
    with pytest.raises(RuntimeError, match="explore"):
        Faults()
    with pytest.raises(ValueError, match="'actors'"):
        RandomFaults(["actors"])


def test_a_thread_that_cant_be_started() -> None:
    async def body() -> None:
        faults = Faults()
        faults.fail_thread()
        async with actors.open_system() as system:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await system.spawn(Echo(), name="echo", host=actors.ThreadHost())
            echo = await system.spawn(Echo(), name="echo", host=actors.ThreadHost())
            assert await ask(echo, 1) == 1

    explore(body, schedules=5)


def test_a_join_takes_its_time() -> None:
    async def body() -> None:
        faults = Faults()
        faults.delay_join(100, name="late")
        async with actors.open_system() as system:
            for name in ("early", "late"):
                echo = await system.spawn(Echo(), name=name, host=actors.ThreadHost())
                start = trio.current_time()
                echo.cancel()
                await echo.watch()
                assert trio.current_time() - start == (100 if name == "late" else 0)

    explore(body, schedules=5, strategy=Random(time=0))


# --------------------------------------------------------------------------------------- by chance


@attrs.frozen
class Add:
    amount: int


class Account(actors.Actor):
    """Keeps a balance; it is restarted with what it had."""

    balance = 0

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            assert isinstance(letter.message, Add)
            self.balance += letter.message.amount
            await trio.lowlevel.checkpoint()  # it tells the auditors
            letter.reply(self.balance)


async def add_again_if_it_fails() -> None:
    """Whoever tries again after a failure doesn't know whether it was done."""
    faults = Faults(RandomFaults(["actor"]))
    async with actors.open_system() as system:
        account = Account()
        ref = await system.spawn(account, name="account", on_failure=actors.Restart())
        other = await system.spawn(Account(), name="other", on_failure=actors.Restart())
        faults.begin_chance()
        for _ in range(5):
            await ask(other, Add(1))
            if await ask(ref, Add(10)) is None:
                await ask(ref, Add(10))
        faults.end_chance()
        assert account.balance == 50


def fails(body: Body, **options: object) -> ScheduleFailed:
    token = settings.set(Settings())
    try:
        with pytest.raises(ScheduleFailed) as failed:
            explore(body, **options)  # type: ignore[arg-type]
    finally:
        settings.reset(token)
    assert getattr(failed.value, "__notes__", []) == []
    return failed.value


def test_a_fault_is_a_decision_that_is_found_shrunk_replayed_and_told() -> None:
    failed = fails(add_again_if_it_fails, schedules=500)
    (deviation,) = failed.schedule.deviations
    assert deviation.choice == "fault: account fails"
    again = fails(add_again_if_it_fails, strategy=_replay(failed))
    assert again.schedule == failed.schedule
    assert failed.report is not None
    text = failed.report.text
    assert "here a fault is injected" in text
    assert "account fails" in text
    assert "fault: raises" in text
    assert "account fails" in failed.report.mermaid


def _replay(failed: ScheduleFailed) -> ts.testing.Replay:  # type: ignore[name-defined]
    from trio_subshells.testing import Replay

    return Replay(str(failed.schedule))


def test_without_chance_there_is_no_fault() -> None:
    explore(add_again_if_it_fails, schedules=200, strategy=Exhaustive(preemptions=1))
    explore(add_again_if_it_fails, schedules=1)  # the first of all is the default order


def test_the_same_seed_has_the_same_faults() -> None:
    found: list[list[str]] = []

    async def body() -> None:
        try:
            await add_again_if_it_fails()
        except ExceptionGroup:
            return
        finally:
            simulation = ts.testing._simulation.Simulation.current  # type: ignore[attr-defined]
            found.append([each.choice for each in simulation.deviations])

    seen = []
    for seed in (0, 0, 1):
        found.clear()
        explore(body, schedules=100, seed=seed)
        seen.append(list(found))
    assert seen[0] == seen[1] != seen[2]
    faults = Counter(each for run in seen[0] for each in run if each.startswith("fault: "))
    assert faults["fault: account fails"] >= 5
    assert faults["fault: other fails"] >= 5
    assert all(sum(each.startswith("fault: ") for each in run) <= 1 for run in seen[0])


# ------------------------------------------------------------------- a kernel, with each of them


class TalkingKernel(WordsKernel):
    """Its cells may ask without awaiting, too."""

    async def execute(self, cell: ts.Cell) -> None:
        if cell.code == "ask blocking":
            cell.stdout(cell.blocking_input("who? "))
        elif cell.code == "print and wait":
            cell.stdout("a line")
            await trio.sleep(100)
        else:
            await super().execute(cell)


async def use(kernel: SimulatedKernel) -> None:
    """A little of everything, by a client that takes whatever answer it gets."""
    client = kernel.client
    create = await client.control("create_subshell_request")
    subshell = create.content.get("subshell_id", "none")
    for where in (None, subshell):
        await client.execute("x", subshell=where)
    asks = client.execute_soon("ask", subshell=subshell, allow_stdin=True)
    await until_done(kernel, asks_or_ends=asks)
    fails_, queued = (client.execute_soon(code, subshell=subshell) for code in ("fail", "x"))
    await fails_.done()
    await queued.done()
    runs = client.execute_soon("await", subshell=subshell)
    await runs.until(lambda: "execute_input" in runs.types or bool(runs.replies))
    await client.control("delete_subshell_request", subshell_id=subshell)
    await runs.done()
    await client.control("list_subshell_request")
    check_protocol(client, died=kernel.died)


async def until_done(kernel: SimulatedKernel, asks_or_ends: ts.testing.Exchange) -> None:  # type: ignore[name-defined]
    """Answer a cell's prompt, if there is one."""
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            kernel.client.answer(await kernel.client.prompt(), "you")

        nursery.start_soon(answer)
        await asks_or_ends.done()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_keeps_its_promises_whatever_goes_wrong(kind: str) -> None:
    seen: Counter[str] = Counter()

    async def body() -> None:
        chance = RandomFaults([kind], clients="*")
        async with simulated_kernel(TalkingKernel(), faults=chance) as kernel:
            await use(kernel)
        seen.update(kernel.faults.injected)
        if kernel.failure is not None:
            assert isinstance(kernel.failure, InjectedFault)
            seen["ended"] += 1

    run(body, 40)
    assert seen.total() >= 8
    assert bool(seen["ended"]) == (kind == "actor")


def test_all_of_them_by_chance() -> None:
    async def body() -> None:
        chance = RandomFaults(most=3)
        async with (
            simulated_kernel(TalkingKernel(), faults=chance) as kernel,
            kernel.connect("other") as other,
        ):
            for _ in range(3):
                other.execute_soon("x")
            await use(kernel)

    run(body, 30)


def test_stdin_fails_while_cells_ask_and_is_restarted() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            client = kernel.client
            where = await kernel.create_subshell()
            for code in ("ask", "ask blocking"):
                asks = client.execute_soon(code, subshell=where, allow_stdin=True)
                prompt = await client.prompt()
                kernel.faults.fail_actor("stdin")
                client.answer(prompt, "wakes it up")
                reply = await asks.done()
                assert reply.ename == "ConnectionError"
                assert "stdin channel has failed" in str(reply.evalue)
                again = client.execute_soon(code, subshell=where, allow_stdin=True)
                client.answer(await client.prompt(), "you")
                assert (await again.done()).status == "ok"
                assert again.text() == "you"
            check_protocol(client)
        assert kernel.failure is None

    run(body)


def test_iopub_fails_and_no_output_is_lost() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            kernel.faults.fail_actor("iopub")
            prints = kernel.client.execute_soon("print and wait")
            await prints.output("stream")
            async with kernel.connect("late"):
                pass  # it has been welcomed
            assert (await prints.done()).status == "ok"
            check_protocol(kernel.client)
        assert kernel.failure is None

    run(body)


def test_a_subshell_fails_and_the_others_go_on() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            client = kernel.client
            doomed, other = await kernel.create_subshell(), await kernel.create_subshell()
            ran = client.execute_soon("await", subshell=doomed)
            await ran.output("execute_input")
            goes_on = client.execute_soon("print and wait", subshell=other)
            kernel.faults.fail_actor(doomed)
            queued = client.execute_soon("x", subshell=doomed)  # it wakes up
            assert (await ran.done()).ename in {"SubshellDied", "InjectedFault"}
            assert (await queued.done()).status in {"aborted", "error", "ok"}
            assert (await goes_on.done()).status == "ok"
            while await kernel.subshells() != [other]:
                assert kernel.died == {doomed}
            check_protocol(client, died=kernel.died)
        assert kernel.failure is None

    run(body)


@pytest.mark.parametrize("victim", ["shell", "control", "nest", "io", "main shell"])
def test_any_other_actor_ends_the_kernel_in_order(victim: str) -> None:
    """Everything that was taken is answered: `simulated_kernel` looks at it."""

    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            client = kernel.client
            where = await kernel.create_subshell()
            cells = [client.execute_soon("await", subshell=each) for each in (None, where)]
            for each in cells:
                await each.output("execute_input")
            queued = client.execute_soon("x", subshell=where)
            kernel.faults.fail_actor(victim, at=2 if victim == "nest" else 1)
            for _ in range(3):
                client.control_soon("kernel_info_request")
                client.request("kernel_info_request")
                client.request("comm_msg", {"comm_id": "c", "data": {}})
            if victim in ("nest", "io"):  # nobody tells them anything
                return
            for each in cells:
                reply = await each.done()
                assert reply.ename in {"KernelDied", "InjectedFault", "KernelShutdown"}
        for each in queued.replies:  # perhaps it was never taken
            assert each.content["status"] in {"aborted", "error"}
        assert kernel.failure is not None

    run(body)


def test_an_actor_fails_while_the_kernel_starts() -> None:
    async def body() -> None:
        Faults().fail_actor("io")
        with pytest.raises(InjectedFault, match="kernel/io was made to fail"):
            async with simulated_kernel(TalkingKernel()):
                raise AssertionError("it can't get here")

    explore(body, schedules=15, strategy=Random(time=0))


def test_a_client_that_comes_when_the_kernel_has_failed_hears_nothing() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            kernel.faults.fail_actor("shell")
            kernel.client.request("kernel_info_request")
            await kernel.wait_closed()
            with trio.move_on_after(60) as waits:
                async with kernel.connect("late"):
                    raise AssertionError("it can't get here")
            assert waits.cancelled_caught
        assert kernel.failure is kernel.faults.raised[0]

    run(body, 10)


def test_an_actor_that_there_never_was() -> None:
    async def body() -> None:
        with pytest.raises(ValueError, match="no actor 'stdout' has gone on since: only "):
            async with simulated_kernel(TalkingKernel()) as kernel:
                kernel.faults.fail_actor("stdout")
                kernel.faults.fail_actor("stdin", at=1000)

    run(body, 5)


@pytest.mark.parametrize("name", ["iopub", "stdin", "control"])
def test_a_full_mailbox_is_waited_for_or_does_without(name: str) -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            client = kernel.client
            kernel.faults.fill_mailbox(name, seconds=10)
            with trio.fail_after(9):
                assert (await client.execute("x")).status == "ok"
                prints = client.execute_soon("print and wait")
                await prints.output("stream")
                await kernel.interrupt()
                await prints.done()
                blocking = client.execute_soon("ask blocking", allow_stdin=True)
                await until_done(kernel, blocking)
                reply = await blocking.done()
                if name == "stdin":
                    assert reply.ename == "ConnectionError"
            asks = client.execute_soon("ask", allow_stdin=True)
            await until_done(kernel, asks)
            assert (await asks.done()).status == "ok"
            assert kernel.faults.injected == [f"the mailbox of {name} is full"]
            check_protocol(client)

    run(body)


def test_a_mailbox_that_is_full_for_ever_has_room_when_the_kernel_is_left() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            kernel.faults.fill_mailbox("control")
            assert (await kernel.client.control("kernel_info_request")).status == "ok"
            with pytest.raises(ValueError, match="no bound"):
                kernel.faults.fill_mailbox("shell")

    run(body, 10)


@pytest.mark.parametrize("at", range(0, 9, 2))
def test_a_client_vanishes_and_the_others_notice_nothing(at: int) -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            async with kernel.connect("other") as other:
                where = await kernel.create_subshell()
                kernel.faults.vanish(other, at=at)
                for code in ("x", "print and wait", "fail", "x"):
                    await other.execute(code, subshell=where)
                raise AssertionError("by then it has gone")
            assert other.vanished
            await kernel.client.execute("x", subshell=where)  # one that may be aborted
            assert (await kernel.client.execute("x", subshell=where)).status == "ok"
            with pytest.raises(ValueError, match="isn't connected"):
                kernel.faults.vanish(other)
            check_protocol(kernel.client)

    run(body, 15)


@pytest.mark.parametrize("channel", ["iopub", "shell", "control", "stdin"])
def test_a_client_stops_reading_and_reads_on(channel: ts.wire.Channel) -> None:  # type: ignore[name-defined]
    async def body() -> None:
        async with (
            simulated_kernel(TalkingKernel()) as kernel,
            kernel.connect("other") as other,
        ):
            kernel.faults.stop_reading(other, channel, seconds=100)
            assert channel not in other.reading
            asks = other.execute_soon("ask", allow_stdin=True)
            info = other.control_soon("kernel_info_request")
            with trio.fail_after(50):
                where = await kernel.create_subshell()
                assert (await kernel.client.execute("x", subshell=where)).status == "ok"
            other.answer(await other.prompt(), "you")
            await asks.done()
            await info.done()
            assert trio.current_time() >= 100
            assert channel in other.reading
            check_protocol(other, kernel.client)

    run(body, 15)


@pytest.mark.parametrize(
    ("lines", "past"),
    [
        ("client > shell", "client > control"),
        ("client > control", "shell > client"),
        ("shell > client", "control > client"),
        ("control > client", "shell > client"),
        ("* > iopub?", "shell > client"),
        ("shell > client", "* > iopub?"),
    ],
)
def test_messages_of_a_channel_come_after_those_of_another(lines: str, past: str) -> None:
    """The order of channels among each other is nobody's promise."""

    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            client = kernel.client
            kernel.faults.delay(lines, past=past)
            exchanges = [client.execute_soon("x"), client.control_soon("list_subshell_request")]
            for each in exchanges:
                await each.done()
            check_protocol(client)
            with pytest.raises(ValueError, match="no line 'client > shall': there are"):
                kernel.faults.delay("client > shall")

    run(body, 15)


def test_a_delayed_message_comes_last() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            kernel.faults.delay("shell > client", past="control > client")
            cell = kernel.client.execute_soon("x")
            await cell.idle()
            assert not cell.replies
            await kernel.client.control("kernel_info_request")
            assert (await cell.reply()).status == "ok"

    run(body)


def test_a_subscription_that_comes_late_holds_nobody_up() -> None:
    async def body() -> None:
        async with (
            simulated_kernel(TalkingKernel()) as kernel,
            trio.open_nursery() as nursery,
        ):

            async def connect() -> None:
                async with kernel.connect("late") as late:
                    assert trio.current_time() >= 10
                    assert (await late.execute("x")).status == "ok"

            kernel.faults.delay("late > iopub", seconds=10)
            nursery.start_soon(connect)
            with trio.fail_after(5):
                assert (await kernel.client.execute("x")).status == "ok"

    run(body, 20)


def test_descriptors_are_taken_and_given_back() -> None:
    async def body() -> None:
        room = RESERVE + 2 * DESCRIPTORS
        async with simulated_kernel(TalkingKernel(), descriptors=room) as kernel:
            first, second = [await kernel.create_subshell() for _ in range(2)]
            refused = await kernel.client.control("create_subshell_request")
            assert refused.ename == "TooManySubshells"
            await kernel.delete_subshell(first)
            third = await kernel.create_subshell()
            assert await kernel.subshells() == [second, third]

    run(body, 20)


@pytest.mark.parametrize("fault", ["descriptors", "thread"])
def test_a_shortage_is_an_error_reply_and_passes(fault: str) -> None:
    replies: set[str | None] = set()

    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            creates = kernel.client.control_soon("create_subshell_request")
            if fault == "thread":
                kernel.faults.fail_thread()
            else:
                kernel.faults.exhaust_descriptors(seconds=10)
            reply = await creates.done()
            assert reply.status == "ok" or reply.ename == "TooManySubshells", reply
            replies.add(reply.ename)
            await trio.sleep(20)
            created = await kernel.create_subshell()
            assert created in await kernel.subshells()
            assert len(await kernel.subshells()) == 1 + (reply.status == "ok")
            assert (await kernel.client.execute("x", subshell=created)).status == "ok"
            check_protocol(kernel.client)

    run(body)
    assert "TooManySubshells" in replies


def test_a_thread_that_is_late_to_end_is_waited_for_and_told_of() -> None:
    async def body() -> None:
        async with simulated_kernel(TalkingKernel()) as kernel:
            first, second = [await kernel.create_subshell() for _ in range(2)]
            kernel.faults.delay_join(4)
            assert (await kernel.delete_subshell(first)).status == "ok"
            assert len(kernel.threads) == 3
            kernel.faults.delay_join(60)
            start = trio.current_time()
            reply: Reply = await kernel.delete_subshell(second)
            assert reply.ename == "SubshellUnjoinable"
            assert trio.current_time() - start < 60
            await trio.sleep(60)
            assert await kernel.subshells() == []
            check_protocol(kernel.client)

    explore(body, schedules=20, strategy=Random(time=0), max_time=LONGEST)


def test_the_first_client_is_spared_by_default() -> None:
    async def body() -> None:
        chance = RandomFaults(["client", "reader"])
        async with simulated_kernel(TalkingKernel(), faults=chance) as kernel:
            client: Client = kernel.client
            assert client.name == FIRST_CLIENT
            for _ in range(5):
                await client.execute("x")
            assert kernel.faults.injected == []

    run(body, 30)
