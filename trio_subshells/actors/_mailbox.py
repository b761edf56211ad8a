"""What an actor receives: letters, in a mailbox.

A letter carries a frozen message, and for an `ask` the asker's promise. The mailbox remembers the
letters that it handed out and that are still unanswered, so that an actor that dies answers every
asker, those whose letters it had taken included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import outcome
import trio

from ._errors import ActorTerminated
from ._promise import BlockingPromise, Promise
from ._queue import Queue, QueueStatistics


class Letter:
    """One message in a mailbox, and the way to answer it.

    Answering a letter that was told rather than asked, or that has been answered, does nothing:
    the receiver need not care which of the two it is.
    """

    __slots__ = ("_promise", "message")

    message: object
    """What was sent: immutable, by convention an `attrs.frozen` instance."""

    def __init__(
        self, message: object, promise: Promise[Any] | BlockingPromise[Any] | None = None
    ) -> None:
        self.message = message
        self._promise = promise

    @property
    def wants_reply(self) -> bool:
        """Whether somebody still waits for an answer: false if told, answered, or abandoned."""
        promise = self._promise
        return promise is not None and not promise.resolved and not promise.abandoned

    def reply(self, value: object = None) -> None:
        """Answer with a value. Callable from any thread, so that the work can be passed on."""
        if self._promise is not None:
            self._promise.resolve(outcome.Value(value))

    def fail(self, error: BaseException) -> None:
        """Answer with an exception, which the asker's `ask` raises. Callable from any thread."""
        if self._promise is not None:
            self._promise.resolve(outcome.Error(error))

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Make an `Exception` in this block the asker's, if somebody asks.

        It answers the letter then, instead of ending the actor. Without an asker it passes.
        """
        try:
            yield
        except Exception as error:
            if not self.wants_reply:
                raise
            self.fail(error)

    def __repr__(self) -> str:
        return f"<Letter {self.message!r}{' asked' if self.wants_reply else ''}>"


class Mailbox:
    """The receiving end of an actor: iterate over it, or `receive` letters one by one.

    Touched by its actor only; others have an `ActorRef`.
    """

    def __init__(self, queue: Queue[Letter]) -> None:
        self._queue = queue
        self._unanswered: dict[Letter, None] = {}  # in the order in which they were taken
        self._sweep_at = 64

    def __aiter__(self) -> AsyncIterator[Letter]:
        return self

    async def __anext__(self) -> Letter:
        return await self.receive()

    @trio.lowlevel.enable_ki_protection  # a letter that was taken has to be remembered
    async def receive(self) -> Letter:
        """Wait for the next letter. A checkpoint; a cancelled `receive` has taken nothing.

        Raises:
            trio.BusyResourceError: another task of the actor waits here already.
        """
        return self._taken(await self._queue.get())

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> Letter:
        """The next letter, if there is one.

        Raises:
            trio.WouldBlock: there is none.
        """
        return self._taken(self._queue.get_nowait())

    def _taken(self, letter: Letter) -> Letter:
        if letter.wants_reply:
            self._unanswered[letter] = None
            if len(self._unanswered) >= self._sweep_at:
                # Forget the answered ones now and then; the more are open, the more rarely.
                open_ones = (each for each in self._unanswered if each.wants_reply)
                self._unanswered = dict.fromkeys(open_ones)
                self._sweep_at = max(64, 2 * len(self._unanswered))
        return letter

    def _abandon(self, error: Callable[[], ActorTerminated]) -> None:
        """The actor has ended: answer whoever still waits for a letter that it has taken, in order.

        Each asker gets an exception of its own: raising one changes it (traceback, context), and
        the askers may be in different threads.
        """
        for letter in self._unanswered:
            letter.fail(error())
        self._unanswered.clear()

    def statistics(self) -> QueueStatistics:
        """A snapshot of the queue."""
        return self._queue.statistics()
