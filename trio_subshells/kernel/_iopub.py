"""The iopub actor: welcomes subscribers (JEP 65), and sends in time what streams have gathered.

The messages themselves don't pass through it: every subshell publishes into the iopub device, which
is native and needs no Python.
"""

from __future__ import annotations

from typing import Protocol

import trio

from ..actors import Actor, Letter, Mailbox
from ..sockets import Subscription
from ..wire import WireSession
from ._drops import DropReason, Drops
from ._messages import AwaitSubscriber, FlushLater
from ._output import GATHERING_TIME, FramesPublisher, OutputPort


class SubscriptionsPublisher(FramesPublisher, Protocol):
    """A publisher that is notified of every subscription."""

    async def receive_subscription(self) -> Subscription:
        """Wait for the next one."""


class IOPub(Actor):
    """See the module's first lines.

    Args:
        session: makes the welcomes.
        publisher: sends them, and tells who has subscribed.
        drops: what was dropped on any channel.
    """

    def __init__(
        self, session: WireSession, publisher: SubscriptionsPublisher, drops: Drops
    ) -> None:
        self._session = session
        self._publisher = publisher
        self._drops = drops
        # These survive a restart of this actor.
        self._to_flush: dict[OutputPort, None] = {}
        self._waiting: list[Letter] = []
        self._has_subscriber = False

    async def run(self, mailbox: Mailbox) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._welcome)
            for output in self._to_flush:
                nursery.start_soon(self._flush_in_time, output)
            async for letter in mailbox:
                match letter.message:
                    case FlushLater(output):
                        self._to_flush[output] = None
                        nursery.start_soon(self._flush_in_time, output)
                    case AwaitSubscriber() if self._has_subscriber:
                        letter.reply()
                    case AwaitSubscriber():
                        self._waiting.append(letter)

    async def _welcome(self) -> None:
        """Welcome each subscriber; the first one hears that the kernel is starting, too.

        Before there is one, nobody could hear it; and sent at any other moment, it might reach a
        subscriber before its welcome.
        """
        while True:
            subscription = await self._publisher.receive_subscription()
            if not subscription.subscribed:
                continue
            try:
                topic = subscription.topic.decode("utf-8")
            except UnicodeDecodeError:
                continue  # JEP 65: a subscription that isn't UTF-8 is ignored
            # The topic itself is the prefix, or its subscriber wouldn't get it.
            self._publisher.publish(
                self._session.serialize(
                    "iopub_welcome", {"subscription": topic}, idents=(subscription.topic,)
                )
            )
            if not self._has_subscriber:
                self._has_subscriber = True
                self._publisher.publish(
                    self._session.serialize(
                        "status", {"execution_state": "starting"}, idents=(subscription.topic,)
                    )
                )
                for letter in self._waiting:
                    letter.reply()

    async def _flush_in_time(self, output: OutputPort) -> None:
        await trio.sleep(GATHERING_TIME)
        self._to_flush.pop(output, None)
        dropped = output.time_is_up()
        if dropped:
            what = "output of a cell that was given up: it has come after the cell's idle"
            self._drops.add("iopub", DropReason.GIVEN_UP, what, dropped)
