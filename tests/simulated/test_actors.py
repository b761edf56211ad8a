"""Actors: what is told arrives, who asks is answered, and what has ended is over."""

from __future__ import annotations

import math

import trio

from trio_subshells import actors
from trio_subshells.testing import explore_schedules


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


@explore_schedules(100)
async def test_a_receiver_that_has_given_up_before_is_woken() -> None:
    async with actors.open_system() as system:
        ref = await system.spawn(Collector(1, 1), name="collector")
        for number in range(2):
            await trio.sleep(1)
            await ref.tell(number)
        assert await ref.ask("all", timeout=math.inf) == [0, 1]
