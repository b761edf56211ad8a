"""Actors: what is told arrives, who asks is answered, and what has ended is over."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from trio_subshells import actors
from trio_subshells.testing import explore_schedules

from .kernels import Flag
from .threads import Caller

in_a_task_and_in_a_thread = pytest.mark.parametrize(
    "host", [actors.TaskHost(), actors.ThreadHost()], ids=["task", "thread"]
)


class Collector(actors.Actor):
    """Takes what it is told, and answers with all of it; gives up waiting for a while, at first.

    Args:
        patience: for how many seconds it waits, each time; later for ever.
    """

    def __init__(self, *patience: float) -> None:
        self._patience = patience
        self.taken: list[object] = []

    async def run(self, mailbox: actors.Mailbox) -> None:
        for seconds in self._patience:
            with trio.move_on_after(seconds):
                self._take(await mailbox.receive())
        async for letter in mailbox:
            self._take(letter)

    def _take(self, letter: actors.Letter) -> None:
        if letter.wants_reply:
            letter.reply(list(self.taken))
        else:
            self.taken.append(letter.message)


class Echo(actors.Actor):
    """Answers after a while with what it was asked; fails if that is an exception, or ends."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        async for letter in mailbox:
            await trio.lowlevel.checkpoint()
            if isinstance(letter.message, Exception):
                raise letter.message
            if letter.message == "end":
                return
            letter.reply(letter.message)


class Idle(actors.Actor):
    """Does nothing for ever."""

    async def run(self, mailbox: actors.Mailbox) -> None:
        await trio.sleep_forever()


async def together(*functions: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for number, function in enumerate(functions):
            nursery.start_soon(function, name=f"{function.__name__}#{number}")


async def in_another_thread(system: actors.Supervisor, name: str, function) -> None:
    """Call an async function in a thread of its own, and wait for its end."""

    class Caller(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            await function()

    ref = await system.spawn(Caller(), name=name, host=actors.ThreadHost())
    await ref.watch()


# ------------------------------------------------------------------------------------ mailboxes


@explore_schedules(100)
async def test_a_receiver_that_has_given_up_before_is_woken() -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(Collector(1, 1), name="collector")
        for number in range(2):
            await trio.sleep(1)
            await ref.tell(number)
        assert await ref.ask("all", timeout=math.inf) == [0, 1]


@in_a_task_and_in_a_thread
@explore_schedules(200)
async def test_what_is_told_arrives_once_and_what_is_cancelled_never(host: actors.Host) -> None:
    told = []

    async with actors.open_system() as system:
        ref = await system.spawn(Collector(), name="collector", capacity=1, host=host)

        async def tell(number: int) -> None:
            with trio.move_on_after(0.5):
                await ref.tell(number)
                told.append(number)

        await together(*(lambda number=number: tell(number) for number in range(4)))
        assert sorted(await ref.ask("all", timeout=math.inf)) == sorted(told)


@explore_schedules(200)
async def test_who_waits_longer_to_tell_is_taken_first() -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(Collector(), name="collector", capacity=2)
        begun = []

        async def tell(number: int) -> None:
            await trio.lowlevel.checkpoint()
            begun.append(number)
            await ref.tell(number)

        await together(*(lambda number=number: tell(number) for number in range(6)))
        assert await ref.ask("all", timeout=math.inf) == begun


@explore_schedules(100)
async def test_a_channel_that_is_closed_ends_for_its_receiver() -> None:
    sending, receiving = actors.open_channel(1)
    received = []

    async def receive() -> None:
        with receiving:
            received.extend([value async for value in receiving])

    async def send() -> None:
        with sending:
            for number in range(3):
                await sending.send(number)

    async with actors.open_system() as system:
        await together(receive, lambda: in_another_thread(system, "sender", send))
    assert received == [0, 1, 2]


@explore_schedules(60)
async def test_values_come_in_their_order_to_whoever_receives() -> None:
    """To one task that waits for them, and to another that looks whether there is one."""
    received: list[int] = []
    sending: actors.CrossThreadSendChannel[int]
    receiving: actors.CrossThreadReceiveChannel[int]
    sending, receiving = actors.open_channel(4)

    async def wait() -> None:
        with suppress(trio.EndOfChannel):
            while True:
                received.append(await receiving.receive())

    with receiving:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for number in range(4):
                await sending.send(number)
                with suppress(trio.WouldBlock):
                    received.append(receiving.receive_nowait())
            sending.close()
    assert received == list(range(4))


@explore_schedules(40)
async def test_who_closes_the_receiver_closes_it_under_a_receive_that_has_begun() -> None:
    """Also while there is a value, which is received or dropped."""
    receiving: actors.CrossThreadReceiveChannel[str]
    sending, receiving = actors.open_channel(1)
    sending.send_nowait("value")

    async def receive() -> None:
        with suppress(trio.ClosedResourceError):
            assert await receiving.receive() == "value"

    async def close() -> None:
        receiving.close()

    await together(receive, close)


@pytest.mark.parametrize("cancelled", ["sender", "receiver"])
@explore_schedules(60)
async def test_an_end_of_a_channel_is_closed_also_by_who_is_cancelled(cancelled: str) -> None:
    ends: list[actors.CrossThreadSendChannel[str]] = []
    is_open, is_held = Flag(), Flag()

    async def is_cancelled() -> None:
        is_held.set()
        await trio.sleep_forever()

    async def send() -> None:
        await is_open.wait()
        async with ends[0]:
            if cancelled == "sender":
                await is_cancelled()
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await ends[0].send("value")

    async def receive() -> None:
        receiving: actors.CrossThreadReceiveChannel[str]
        sending, receiving = actors.open_channel(1)
        ends.append(sending)
        is_open.set()
        async with receiving:
            if cancelled == "receiver":
                await is_cancelled()
            assert [value async for value in receiving] == []

    async with actors.open_system() as system:
        refs = {
            name: await system.spawn(Caller(function), name=name, host=actors.ThreadHost())
            for name, function in (("sender", send), ("receiver", receive))
        }
        await is_held.wait()
        refs[cancelled].cancel()
        for ref in refs.values():
            await ref.watch()


# ----------------------------------------------------------------------------------------- asks


@in_a_task_and_in_a_thread
@pytest.mark.parametrize("end", ["returns", "fails", "cancelled"])
@explore_schedules(100)
async def test_every_ask_ends(host: actors.Host, end: str) -> None:
    outcomes = []

    async with actors.open_system() as system:
        ref = await system.spawn(
            Echo(), name="echo", capacity=2, host=host, on_failure=actors.Stop()
        )

        async def ask(number: int) -> None:
            try:
                assert await ref.ask(number, timeout=math.inf) == number
            except actors.ActorTerminated:
                outcomes.append("terminated")
            else:
                outcomes.append("answered")

        async def end_it() -> None:
            await trio.lowlevel.checkpoint()
            if end == "cancelled":
                ref.cancel()
            else:
                await ref.tell("end" if end == "returns" else ValueError("as was wanted"))

        await together(*(lambda number=number: ask(number) for number in range(4)), end_it)
    assert len(outcomes) == 4


@in_a_task_and_in_a_thread
@explore_schedules(10)
async def test_every_ask_ends_however_many_there_are(host: actors.Host) -> None:
    """The mailbox remembers those whose letters were taken, and forgets the answered ones."""

    class AnswersEveryOther(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            for number in range(150):
                try:
                    letter = mailbox.receive_nowait()
                except trio.WouldBlock:
                    letter = await mailbox.receive()
                if number % 2:
                    letter.reply("answered")

    answers: list[str] = []
    errors: list[actors.ActorTerminated] = []

    async with actors.open_system() as system:
        ref = await system.spawn(AnswersEveryOther(), name="actor", capacity=math.inf, host=host)

        async def ask() -> None:
            try:
                answers.append(await ref.ask("anything", timeout=math.inf))
            except actors.ActorTerminated as error:
                errors.append(error)

        await together(*[ask] * 160)
    assert answers == ["answered"] * 75
    assert len({id(error) for error in errors}) == 85, "each has an exception of its own"


@in_a_task_and_in_a_thread
@explore_schedules(60)
async def test_an_error_is_the_askers_as_long_as_there_is_one(host: actors.Host) -> None:
    class Fails(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            async for letter in mailbox:
                with letter.answering():
                    while letter.message == "given up" and letter.wants_reply:  # noqa: ASYNC110
                        await trio.sleep(0.01)  # nothing announces it
                    raise ValueError(letter.message)

    async with actors.open_system() as system:
        ref = await system.spawn(Fails(), name="fails", host=host, on_failure=actors.Stop())
        with pytest.raises(ValueError, match="wanted"):
            await ref.ask("wanted", timeout=math.inf)
        with pytest.raises(actors.AskTimeout):
            await ref.ask("given up", timeout=1)
        ended = await ref.watch()
    assert isinstance(ended.error, ValueError)


@in_a_task_and_in_a_thread
@explore_schedules(40)
async def test_a_timeout_of_the_receivers_own_is_its_answer(host: actors.Host) -> None:
    """Whichever of the two is over first is told of, and as what it is."""

    class Hurries(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            async for letter in mailbox:
                with letter.answering(), trio.fail_after(2):
                    await trio.sleep_forever()

    async with actors.open_system() as system:
        ref = await system.spawn(Hurries(), name="hurries", host=host, on_failure=actors.Restart())
        for patience in (1, 10, math.inf):
            with pytest.raises(trio.TooSlowError) as error:
                await ref.ask("anything", timeout=patience)
            assert (error.type is actors.AskTimeout) is (patience == 1)


@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_an_ask_that_is_given_up_wants_no_reply(host: actors.Host) -> None:
    class Keeper(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            kept = await mailbox.receive()
            async for letter in mailbox:
                letter.reply(kept.wants_reply)

    async with actors.open_system() as system:
        ref = await system.spawn(Keeper(), name="keeper", host=host)
        with pytest.raises(actors.AskTimeout):
            await ref.ask("never answered", timeout=1)
        assert await ref.ask("is it still waited for?", timeout=math.inf) is False


@in_a_task_and_in_a_thread
@explore_schedules(40)
async def test_an_ask_is_given_up_in_time_though_the_mailbox_is_full(host: actors.Host) -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(Idle(), name="idle", capacity=1, host=host)
        await ref.tell("what fills the mailbox")
        with pytest.raises(actors.AskTimeout):
            await ref.ask("anything", timeout=1)
        assert ref.statistics().mailbox.senders_waiting == 0


# ---------------------------------------------------------------------------------- life and end


@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_a_spawn_that_is_cancelled_leaves_nothing(host: actors.Host) -> None:
    async with actors.open_system() as system:
        refs = []

        async def spawn() -> None:
            refs.append(await system.spawn(Idle(), name="idle", host=host))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawn)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await trio.sleep(10)
        if not refs:
            assert "idle" not in system.tree()


@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_two_of_one_name_never_live_at_once(host: actors.Host) -> None:
    async with actors.open_system() as system:
        refused = []

        async def spawn() -> None:
            try:
                await system.spawn(Idle(), name="idle", host=host)
            except ValueError:
                refused.append(True)

        await together(spawn, spawn)
        assert refused == [True]
        await system.spawn(Collector(), name="other", host=host)
        assert [each.path for each in system.statistics().actors] == [
            "system/idle",
            "system/other",
        ]


@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_who_watches_is_told_of_the_end(host: actors.Host) -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(Echo(), name="echo", host=host)
        ended = []

        async def watch() -> None:
            await trio.lowlevel.checkpoint()
            ended.append((await ref.watch()).state)

        await together(watch, watch, lambda: ref.tell("end"))
        assert ended == [actors.ActorState.FINISHED] * 2
        assert (await ref.watch()).state is actors.ActorState.FINISHED


@explore_schedules(100)
async def test_leaving_a_system_waits_for_its_threads() -> None:
    cleaned_up = []

    class Untidy(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)
                cleaned_up.append(True)

    async with actors.open_system() as system:
        await system.spawn(Untidy(), name="untidy", host=actors.ThreadHost())
    assert cleaned_up == [True]


# ------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("cancelled", ["actor", "system", "what is around"])
@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_what_fails_while_it_is_cancelled_is_not_restarted(
    host: actors.Host, cancelled: str
) -> None:
    is_cancelled = False
    failed_cancelled: list[bool] = []
    restarted_after = []

    class Failing(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            restarted_after.extend(failed_cancelled[-1:])
            try:
                await mailbox.receive()
            finally:
                await trio.lowlevel.cancel_shielded_checkpoint()
                failed_cancelled.append(is_cancelled)
                raise ValueError("as was wanted")

    with (
        pytest.RaisesGroup(ValueError, allow_unwrapped=True, flatten_subgroups=True),
        trio.CancelScope() as around,
    ):
        async with actors.open_system() as system:
            ref = await system.spawn(
                Failing(), name="failing", host=host, on_failure=actors.Restart()
            )
            await ref.tell("fail")
            {"actor": ref, "system": system, "what is around": around}[cancelled].cancel()
            is_cancelled = True
            await trio.sleep_forever()
    assert True not in restarted_after


@in_a_task_and_in_a_thread
@explore_schedules(20, max_steps=1_000)
async def test_what_always_fails_is_given_up(host: actors.Host) -> None:
    runs = []

    class AlwaysFails(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            runs.append(True)
            await trio.lowlevel.checkpoint()
            raise ValueError("as was wanted")

    with pytest.RaisesGroup(ValueError, allow_unwrapped=True, flatten_subgroups=True):
        async with actors.open_system() as system:
            policy = actors.Restart(intensity=2, period=5)
            await system.spawn(AlwaysFails(), name="failing", host=host, on_failure=policy)
            await trio.sleep_forever()
    assert len(runs) == 3


@in_a_task_and_in_a_thread
@explore_schedules(100)
async def test_a_failure_among_cancellations_is_a_failure(host: actors.Host) -> None:
    failed = []

    class Two(actors.Actor):
        async def run(self, mailbox: actors.Mailbox) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(self._fail)

        async def _fail(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                failed.append(True)
                raise ValueError("as was wanted")

    async with actors.open_system() as system:
        ref = await system.spawn(Two(), name="two", host=host, on_failure=actors.Stop())
    ended = await ref.watch()
    assert (ended.state is actors.ActorState.FAILED) == bool(failed)
