"""What subscribers of iopub hear first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.kernel._drops import Drops
from trio_subshells.kernel._iopub import IOPub
from trio_subshells.sockets import Subscription
from trio_subshells.wire import WireSession


class Publisher:
    """Notes what is published: topic, type and content."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, str, dict[str, Any]]] = []
        self.subscribe, self._subscriptions = trio.open_memory_channel[Subscription](9)

    def publish(self, frames: Sequence[bytes]) -> None:
        topic, header, content = frames[0], json.loads(frames[-4]), json.loads(frames[-1])
        self.published.append((topic, header["msg_type"], content))

    async def receive_subscription(self) -> Subscription:
        return await self._subscriptions.receive()


async def test_the_welcome_is_the_first_that_a_subscriber_hears(nursery: trio.Nursery) -> None:
    publisher = Publisher()
    nursery.start_soon(IOPub(WireSession(b""), publisher, Drops())._welcome)
    for subscribed, topic in ((True, b"\xff"), (False, b"x"), (True, b"x"), (True, b"")):
        publisher.subscribe.send_nowait(Subscription(topic, subscribed))
    await wait_all_tasks_blocked()
    assert publisher.published == [
        (b"x", "iopub_welcome", {"subscription": "x"}),
        (b"x", "status", {"execution_state": "starting"}),
        (b"", "iopub_welcome", {"subscription": ""}),
    ]
    nursery.cancel_scope.cancel()
