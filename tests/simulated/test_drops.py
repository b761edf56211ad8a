"""What is dropped is told: the first of it at once, and the rest in sums, not for ever later."""

from __future__ import annotations

from unittest import mock

import trio

from trio_subshells.kernel import DropReason, _drops
from trio_subshells.kernel._drops import LONGEST_INTERVAL, Drops
from trio_subshells.testing import explore_schedules


@explore_schedules(40)
async def test_all_that_is_dropped_is_told_however_many_there_are_at_a_time() -> None:
    drops, told = Drops(), 0

    def warning(line: str, *values: object) -> None:
        nonlocal told
        told += int(str(values[0])) if line.startswith("dropped %d") else 1

    async def lose(channel: str, *counts: int) -> None:
        for count in counts:
            drops.add(channel, DropReason.NOT_READ, "it was for a client that doesn't read", count)
            await trio.lowlevel.checkpoint()

    with mock.patch.object(_drops, "_log", mock.Mock(warning=warning)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drops.tell)
            for losses in ([1], [3], [1, 1], [2, 1], [1, 4], [5]):
                async with trio.open_nursery() as clients:
                    for channel in ("iopub", "shell"):
                        clients.start_soon(lose, channel, *losses)
                await trio.sleep(2 * LONGEST_INTERVAL)
                assert told == sum(each.count for each in drops.counts())
            nursery.cancel_scope.cancel()
