"""A value that one loop waits for and any thread may supply, once.

The building block of `ask` (the asker waits for the answer) and `watch` (the watcher waits for the
end). `trio.Event` won't do: it may be set from its own loop only.
"""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar, cast

import outcome
import trio

T = TypeVar("T")


class Promise(Generic[T]):
    """Made and awaited in one trio loop, resolved from any thread; the first resolution wins."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._task: trio.lowlevel.Task | None = None
        self._outcome: outcome.Outcome[T] | None = None
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        """Whether the waiting task has given up (its deadline has passed, or it was cancelled)."""
        return self._abandoned

    @property
    def resolved(self) -> bool:
        """Whether there is a value, or an error."""
        return self._outcome is not None

    @trio.lowlevel.enable_ki_protection
    def resolve(self, result: outcome.Outcome[T]) -> bool:
        """Supply the value or the error. Callable from any thread; never blocks.

        Returns whether it is taken: not, if there was one already.
        """
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = result
        if threading.get_ident() == self._thread:
            self._wake()
        else:
            try:
                self._token.run_sync_soon(self._wake)
            except trio.RunFinishedError:
                return True  # the loop that waited has ended; nobody is left to tell
        return True

    def _wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> T:
        """Wait for the value, or raise the error; one task, in the promise's loop.

        Always lets other tasks run. A cancellation point only while there is no value: one that
        arrives together with a cancellation is returned, it isn't lost.
        """
        if self._outcome is None:

            def abort(_: object) -> trio.lowlevel.Abort:
                if self._outcome is not None:
                    return trio.lowlevel.Abort.FAILED
                self._task = None
                self._abandoned = True
                return trio.lowlevel.Abort.SUCCEEDED

            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return cast("outcome.Outcome[T]", self._outcome).unwrap()


class BlockingPromise(Generic[T]):
    """A promise whose value a thread waits for by blocking, outside of any trio loop's control."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resolved = threading.Event()
        self._outcome: outcome.Outcome[T] | None = None
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        """Whether the waiting thread has given up."""
        return self._abandoned

    @property
    def resolved(self) -> bool:
        """Whether there is a value, or an error."""
        return self._outcome is not None

    def resolve(self, result: outcome.Outcome[T]) -> bool:
        """Supply the value or the error, from any thread; returns whether it is the first."""
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = result
        self._resolved.set()
        return True

    def wait(self, timeout: float) -> bool:
        """Block until there is a value or an error; return whether there is, for `result`.

        It wakes up now and then meanwhile, so that a `KeyboardInterrupt` raised in this thread by
        another gets through.

        Args:
            timeout: in seconds; `math.inf` for ever.
        """
        deadline = time.monotonic() + timeout
        try:
            while not self._resolved.wait(max(0, min(_NAP, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    break
        finally:
            self._abandoned = self._outcome is None  # it may have come at the very last moment
        return not self._abandoned

    def result(self) -> T:
        """The value, or raise the error; once, after `wait` has returned true."""
        return cast("outcome.Outcome[T]", self._outcome).unwrap()


_NAP = 0.05
"""Seconds; Python code that is blocked in a lock can't be interrupted, save in the main thread."""
