"""Actors and the references by which others reach them.

An actor is one async function with a mailbox, run in one place (its host). Its state is touched by
its own tasks only. What crosses its boundary is immutable.

The life of an actor is a small machine (see `_TRANSITIONS`), driven by its *supervision task* in
the parent's nursery (`_supervision`); everybody else only reads it.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ._errors import ActorTerminated, AskTimeout, described
from ._mailbox import Letter, Mailbox
from ._promise import BlockingPromise, Promise
from ._queue import Queue, QueueStatistics

if TYPE_CHECKING:
    from ._supervision import Node


class Actor(ABC):
    """The base of all actors: subclass it and write `run`."""

    @abstractmethod
    async def run(self, mailbox: Mailbox) -> None:
        """The actor's whole life, in its host's loop.

        It ends by returning, by raising (the failure policy that it was spawned with decides what
        follows), or by being cancelled. Under `Restart`, it is called again, on the same instance
        and with the same queue: what must not survive a failure belongs into local variables.
        """


class ActorState(enum.Enum):
    """Where an actor is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    CANCELLING = "cancelling"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the actor's life is over."""
        return not _TRANSITIONS[self]


_TRANSITIONS: dict[ActorState, frozenset[ActorState]] = {
    ActorState.STARTING: frozenset(
        {ActorState.RUNNING, ActorState.CANCELLING, ActorState.FAILED, ActorState.CANCELLED}
    ),
    ActorState.RUNNING: frozenset(
        {
            ActorState.CANCELLING,
            ActorState.RESTARTING,
            ActorState.FINISHED,
            ActorState.FAILED,
            ActorState.CANCELLED,
        }
    ),
    # To itself: the new place couldn't be had (no thread, no descriptor): one more failure.
    ActorState.RESTARTING: frozenset(
        {
            ActorState.RUNNING,
            ActorState.RESTARTING,
            ActorState.CANCELLING,
            ActorState.FAILED,
            ActorState.CANCELLED,
        }
    ),
    ActorState.CANCELLING: frozenset(
        {ActorState.FINISHED, ActorState.FAILED, ActorState.CANCELLED}
    ),
    ActorState.FINISHED: frozenset(),
    ActorState.CANCELLED: frozenset(),
    ActorState.FAILED: frozenset(),
}


def check_transition(old: ActorState, new: ActorState) -> None:
    """Raise `RuntimeError` for a step that the table doesn't have: a bug in this package."""
    if new not in _TRANSITIONS[old]:
        raise RuntimeError(f"an actor can't go from {old.value} to {new.value}")


@attrs.frozen
class Ended:
    """How an actor ended, as `ActorRef.watch` tells it.

    Attributes:
        path: the actor.
        state: `ActorState.FINISHED`, `ActorState.CANCELLED` or `ActorState.FAILED`.
        error: what it failed with, else None.
    """

    path: str
    state: ActorState
    error: BaseException | None = None


@attrs.frozen
class ActorStatistics:
    """A snapshot of an actor.

    Attributes:
        path: its name and those of its ancestors.
        state: where it is in its life.
        host: the kind of its host.
        restarts: how often it has been restarted.
        mailbox: its queue.
        children: how many actors live beneath it.
    """

    path: str
    state: ActorState
    host: str
    restarts: int
    mailbox: QueueStatistics
    children: int


class ActorRef:
    """How others reach an actor. Cheap, immutable, and usable from any thread.

    `tell`, `ask` and `watch` need a trio loop to wait in, whichever; `tell_nowait`, `cancel` and
    `statistics` work in any thread. Holding a ref keeps nothing alive.
    """

    __slots__ = ("_node", "_queue")

    def __init__(self, node: Node, queue: Queue[Letter]) -> None:
        self._node = node
        self._queue = queue

    @property
    def name(self) -> str:
        """The actor's name, unique among its living siblings."""
        return self._node.name

    @property
    def path(self) -> str:
        """The names from the root of the tree down to this actor, joined by slashes."""
        return self._node.path

    @property
    def state(self) -> ActorState:
        """Where the actor is in its life, at this moment."""
        return self._node.state

    async def tell(self, message: object) -> None:
        """Put a message into the actor's mailbox, waiting while that is full. A checkpoint.

        Cancelled, it has not been put there.

        Raises:
            ActorTerminated: the actor has ended, or ends meanwhile.
        """
        await self._queue.put(Letter(message))

    def tell_nowait(self, message: object) -> None:
        """Put a message into the actor's mailbox; from any thread, in a trio loop or not.

        Raises:
            trio.WouldBlock: the mailbox is full.
            ActorTerminated: the actor has ended.
        """
        self._queue.put_nowait(Letter(message))

    async def ask(self, message: object, *, timeout: float) -> Any:
        """Send a message and wait for its answer. A checkpoint.

        It always ends: with the answer, with the exception that the receiver answered, or with one
        of those below. Cancelled, the receiver may still handle the message; its answer is dropped.

        Args:
            message: what to send.
            timeout: seconds for all of it, a wait for room in the mailbox included; `math.inf` to
                wait as long as the actor lives.

        Raises:
            AskTimeout: there was no answer within `timeout`.
            ActorTerminated: the actor has ended, or failed while it handled the request.
        """
        _check_timeout(timeout)
        promise: Promise[Any] = Promise()
        with trio.move_on_after(timeout) as scope:
            await self._queue.put(Letter(message, promise))
            return await promise.wait()
        assert scope.cancelled_caught
        raise AskTimeout(f"{self.path} did not answer {message!r} within {timeout:g} s")

    def ask_blocking(self, message: object, *, timeout: float) -> Any:
        """Ask from code that can't await: block the calling thread until the answer is there.

        For synchronous code, in any thread but the actor's own (which could never answer). As `ask`
        otherwise; but a full mailbox isn't waited for.

        Raises:
            AskTimeout: there was no answer within `timeout` seconds.
            ActorTerminated: the actor has ended, or failed while it handled the request.
            trio.WouldBlock: its mailbox is full.
        """
        _check_timeout(timeout)
        promise: BlockingPromise[Any] = BlockingPromise()
        self._queue.put_nowait(Letter(message, promise))
        if not promise.wait(timeout):
            raise AskTimeout(f"{self.path} did not answer {message!r} within {timeout:g} s")
        return promise.result()

    def cancel(self) -> None:
        """Cancel the actor, and what lives beneath it. From any thread; doesn't wait: `watch` does.

        An actor that has ended, or is being cancelled, doesn't mind.
        """
        self._node.cancel()

    async def watch(self) -> Ended:
        """Wait until the actor has ended and its thread has been joined, and tell how it ended.

        A checkpoint. Cancelling a watch does nothing to the actor.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        promise: Promise[Ended] = Promise()
        self._node.add_watcher(promise)
        return await promise.wait()

    def statistics(self) -> ActorStatistics:
        """A snapshot; from any thread."""
        return self._node.statistics()

    def __repr__(self) -> str:
        return f"<ActorRef {self.path} {self.state.value}>"


def _check_timeout(timeout: float) -> None:
    if not timeout >= 0:  # catches NaN as well
        raise ValueError(f"timeout must be a number of seconds of at least 0, not {timeout!r}")


def terminated(path: str, cause: BaseException | None = None) -> ActorTerminated:
    """A new `ActorTerminated`, for one asker or sender."""
    if cause is None:
        return ActorTerminated(f"actor {path} has ended")
    error = ActorTerminated(f"actor {path} has failed: {described(cause)}")
    error.__cause__ = cause
    return error
