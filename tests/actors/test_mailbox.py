"""Letters and the mailbox: who gets which answer."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import ActorTerminated, Letter, Mailbox, Promise
from trio_subshells.actors._actor import terminated
from trio_subshells.actors._queue import Queue
from trio_subshells.actors._transport import TrioBell


def mailbox() -> tuple[Mailbox, Queue[Letter]]:
    queue: Queue[Letter] = Queue(1000)
    queue.attach(TrioBell())
    return Mailbox(queue), queue


async def test_a_reply_reaches_the_asker() -> None:
    promise: Promise[object] = Promise()
    letter = Letter("question", promise)
    assert letter.wants_reply
    assert repr(letter) == "<Letter 'question' asked>"
    letter.reply("answer")
    assert not letter.wants_reply
    letter.reply("another")
    letter.fail(ValueError())
    assert await promise.wait() == "answer"


async def test_a_reply_needs_no_value() -> None:
    promise: Promise[object] = Promise()
    letter = Letter("question", promise)
    letter.reply()
    assert not letter.wants_reply
    assert await promise.wait() is None


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")])
async def test_a_failure_reaches_the_asker_as_itself(error: BaseException) -> None:
    promise: Promise[object] = Promise()
    letter = Letter("question", promise)
    letter.fail(error)
    assert not letter.wants_reply
    with pytest.raises(type(error), match="no") as caught:
        await promise.wait()
    assert caught.value is error


def test_answering_a_letter_that_was_told_does_nothing() -> None:
    letter = Letter("news")
    assert not letter.wants_reply
    assert repr(letter) == "<Letter 'news'>"
    letter.reply(1)
    letter.fail(ValueError())


async def test_answering_gives_an_exception_to_the_asker() -> None:
    promise: Promise[object] = Promise()
    with Letter("question", promise).answering():
        raise ValueError("your fault")
    with pytest.raises(ValueError, match="your fault"):
        await promise.wait()


async def test_without_an_asker_an_exception_passes() -> None:
    with pytest.raises(ValueError, match="mine"), Letter("news").answering():
        raise ValueError("mine")
    promise: Promise[object] = Promise()
    answered = Letter("question", promise)
    answered.reply("answer")
    with pytest.raises(ValueError, match="after the answer"), answered.answering():
        raise ValueError("after the answer")


async def test_answering_leaves_cancellation_alone() -> None:
    promise: Promise[object] = Promise()
    letter = Letter("question", promise)
    with trio.CancelScope() as scope:
        scope.cancel()
        with letter.answering():
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert letter.wants_reply


async def test_an_asker_that_gave_up_wants_no_reply() -> None:
    promise: Promise[object] = Promise()
    with trio.CancelScope() as scope:
        scope.cancel()
        await promise.wait()
    assert not Letter("question", promise).wants_reply


async def test_receiving() -> None:
    box, queue = mailbox()
    with pytest.raises(trio.WouldBlock):
        box.receive_nowait()
    for message in ("a", "b", "c"):
        queue.put_nowait(Letter(message))
    assert box.statistics().length == 3
    assert box.receive_nowait().message == "a"
    assert (await box.receive()).message == "b"
    async for letter in box:
        assert letter.message == "c"
        break


async def test_a_cancelled_receive_loses_nothing() -> None:
    box, queue = mailbox()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.receive)
            await wait_all_tasks_blocked()
            scope.cancel()
    queue.put_nowait(Letter("a"))
    assert (await box.receive()).message == "a"


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
async def test_abandoning_answers_every_open_letter_in_order_and_only_those(count: int) -> None:
    box, queue = mailbox()
    promises: list[Promise[object]] = [Promise() for _ in range(count)]
    for n, promise in enumerate(promises):
        queue.put_nowait(Letter(n, promise))
        letter = box.receive_nowait()
        if n % 3 == 0:
            letter.reply(n)
    cause = ValueError("the cause")
    made: list[ActorTerminated] = []

    def make() -> ActorTerminated:
        made.append(terminated("system/actor", cause))
        return made[-1]

    box._abandon(make)
    errors = []
    for n, promise in enumerate(promises):
        assert promise.resolved  # else it would be waited for in vain
        if n % 3 == 0:
            assert await promise.wait() == n
        else:
            with pytest.raises(ActorTerminated, match="system/actor has failed") as caught:
                await promise.wait()
            assert caught.value.__cause__ is cause
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(errors)  # one for each, not one for all
    places = [made.index(error) for error in errors]
    assert places == sorted(places)  # who has asked first is answered first


async def test_open_letters_are_not_looked_through_for_each_one_received() -> None:
    looks = 0

    class Watched(Letter):
        @property
        def wants_reply(self) -> bool:
            nonlocal looks
            looks += 1
            return super().wants_reply

    box, queue = mailbox()
    for n in range(1000):
        queue.put_nowait(Watched(n, Promise()))
        box.receive_nowait()
    assert looks < 4 * 1000


def test_ctrl_c_while_a_letter_is_taken_does_not_lose_its_asker() -> None:
    """The signal comes when the letter has left the queue and isn't remembered yet."""

    class Interrupting(Letter):
        interrupted = False

        @property
        def wants_reply(self) -> bool:
            if not Interrupting.interrupted:
                Interrupting.interrupted = True
                signal.raise_signal(signal.SIGINT)
            return super().wants_reply

    promises: list[Promise[object]] = []

    async def main() -> None:
        box, queue = mailbox()
        promises.append(Promise())
        queue.put_nowait(Interrupting("question", promises[0]))
        try:
            await box.receive()
        finally:
            box._abandon(partial(terminated, "system/actor"))

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert Interrupting.interrupted
    assert promises[0].resolved
