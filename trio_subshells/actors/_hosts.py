"""Where an actor runs: as a task of its parent's loop, or in a thread of its own.

Theory: a thread is a task of its parent. `ThreadHost.run` is an ordinary async function that the
parent's nursery runs (the *warden*). It starts one thread with one trio loop in it and ends when
that thread has been joined, never before, whatever happens:

- parent cancelled: the warden cancels the child's root scope through the child's trio token, and
  goes on waiting, shielded;
- child raised: the thread is joined, then the warden raises the same exception object, whether the
  parent has been cancelled meanwhile or not;
- child returned: the thread is joined, then the warden returns;
- Ctrl-C in the parent's thread: goes to trio's main task, which cancels the warden in its turn.

The thread is joined by the warden itself, without a helper thread: the very last thing that the
child does is a callback into the parent's loop, after which `join` has but a few bytecodes to wait
for. Threads are never reused, so the descriptors of the child's loop are closed when it is joined.

They are daemon threads, for one reason only: a child that is stuck in a C call for ever must not
keep the interpreter from exiting. Nothing else relies on it; the warden always waits.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol

import attrs
import outcome
import trio


class Host(Protocol):
    """A place where an actor can run."""

    @property
    def kind(self) -> str:
        """What people see in the tree: ``task``, ``thread``."""

    async def run(
        self,
        body: Callable[[], Awaitable[None]],
        *,
        name: str,
        attach: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Run `body` to its end, in this place; return, raise, or be cancelled as it does.

        Args:
            body: what to run.
            name: of the actor, for people.
            attach: entered around the life of a new thread, if this host makes one.
        """


@attrs.frozen
class TaskHost:
    """Runs an actor as a task of its parent's loop: cheap, and as blocked as that loop."""

    @property
    def kind(self) -> str:
        """``task``."""
        return "task"

    async def run(
        self,
        body: Callable[[], Awaitable[None]],
        *,
        name: str,
        attach: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Await `body` right here."""
        await body()


@attrs.frozen
class ThreadHost:
    """Runs an actor in a new OS thread with its own `trio.run`, joined when the actor ends."""

    @property
    def kind(self) -> str:
        """``thread``."""
        return "thread"

    # A KeyboardInterrupt between start() and the wait would leave the thread to itself.
    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        body: Callable[[], Awaitable[None]],
        *,
        name: str,
        attach: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Be the warden: start the thread, run `body` in it, join it.

        Cancelled while the thread runs: cancels `body`, and waits until the thread has been joined.

        Raises:
            RuntimeError: the machine can't start another thread.
            BaseException: whatever `body` raised, the very object.
        """
        child = ChildThread(body, attach)
        join = start_thread(child, name)
        await child.wait_finished()
        join()
        child.result.unwrap()
        if child.was_cancelled:
            await trio.lowlevel.checkpoint_if_cancelled()


def _start_thread(child: ChildThread, name: str) -> Callable[[], None]:
    """Run ``child.main`` in a new OS thread; returns what joins it."""
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=context.run, args=(child.main,), name=f"trio {name}", daemon=True
    )
    thread.start()
    return thread.join


start_thread: Callable[[ChildThread, str], Callable[[], None]] = _start_thread
"""How threads are started. `trio_subshells.testing` has its own way while it simulates them."""


class ChildThread:
    """What the warden and its thread share.

    Each attribute is written by one side only, but for the cancel request, which the lock pairs
    with the scope that it is meant for.
    """

    def __init__(
        self,
        body: Callable[[], Awaitable[None]],
        attach: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._body = body
        self.attach = attach
        self._parent_token = trio.lowlevel.current_trio_token()
        self._parent_task = trio.lowlevel.current_task()
        self._lock = threading.Lock()
        self._cancel_requested = False
        self._cancel: Callable[[], None] | None = None
        self.result: outcome.Outcome[None] = outcome.Value(None)
        self.was_cancelled = False

    # ------------------------------------------------------------------- in the child's thread

    def main(self) -> None:
        """The whole life of the thread."""
        self.end(outcome.capture(self._run))

    def end(self, result: outcome.Outcome[None]) -> None:
        """Tell the warden how it has ended: the very last thing."""
        self.result = result
        self._parent_token.run_sync_soon(self._wake_parent)

    def _run(self) -> None:
        with self.attach():
            trio.run(self.root)

    async def root(self) -> None:
        """What the thread's trio loop runs."""
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            with self._lock:
                self._cancel = lambda: token.run_sync_soon(scope.cancel)
                if self._cancel_requested:
                    scope.cancel()
            await self._body()
        self.was_cancelled = scope.cancelled_caught

    # ------------------------------------------------------------------- in the parent's loop

    def _wake_parent(self) -> None:
        trio.lowlevel.reschedule(self._parent_task)

    async def wait_finished(self) -> None:
        """Wait for the end of the thread. Never ends before; a cancellation is passed on."""

        def pass_on(_: object) -> trio.lowlevel.Abort:
            with self._lock:
                self._cancel_requested = True
                cancel = self._cancel
            if cancel is not None:
                try:
                    cancel()
                except trio.RunFinishedError:
                    return trio.lowlevel.Abort.FAILED  # its loop has ended: it is on its way
            return trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(pass_on)
