"""A thread is a task of its parent: the warden's promises, one by one."""

from __future__ import annotations

import contextvars
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_subshells.actors import TaskHost, ThreadHost

run_in_thread = partial(ThreadHost().run, name="child", attach=nullcontext)


async def happened(event: threading.Event) -> None:
    """Wait in a trio task for something that happens in another thread."""
    assert await trio.to_thread.run_sync(event.wait, 60)


async def test_a_task_host_runs_it_right_here() -> None:
    tasks: list[object] = []

    async def body() -> None:
        tasks.append(trio.lowlevel.current_task())

    await TaskHost().run(body, name="child", attach=nullcontext)
    assert tasks == [trio.lowlevel.current_task()]
    assert (TaskHost().kind, ThreadHost().kind) == ("task", "thread")


async def test_a_thread_of_its_own_each_time_gone_afterwards() -> None:
    threads: list[threading.Thread] = []

    async def body() -> None:
        threads.append(threading.current_thread())
        await trio.lowlevel.checkpoint()

    for _ in range(2):
        await run_in_thread(body)
        assert not threads[-1].is_alive()
    assert len({threading.current_thread(), *threads}) == 3
    assert threads[0].name == "trio child"
    assert threads[0].daemon


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
async def test_an_exception_reaches_the_parents_nursery_as_itself(
    kind: type[BaseException],
) -> None:
    error = kind("mine")
    threads: list[threading.Thread] = []

    async def body() -> None:
        threads.append(threading.current_thread())
        raise error

    async def parent() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_in_thread, body)
            await trio.sleep_forever()  # a failed child ends this

    with pytest.raises(BaseExceptionGroup) as caught:
        await parent()
    assert caught.value.exceptions == (error,)
    assert caught.value.exceptions[0] is error
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback is not None
    assert traceback.tb_frame.f_code is body.__code__
    assert not threads[0].is_alive()


async def test_cancelling_the_parent_cancels_the_child_and_waits_for_its_thread() -> None:
    """The child takes its time to clean up: the parent does not leave before it is done."""
    started, cleaning = threading.Event(), threading.Event()
    clean = trio.Event()
    child: dict[str, object] = {}
    log: list[str] = []

    async def body() -> None:
        may_end = trio.Event()
        child.update(thread=threading.current_thread(), end=may_end.set)
        child["token"] = trio.lowlevel.current_trio_token()
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cleaning.set()
            with trio.CancelScope(shield=True):
                await may_end.wait()
            log.append("child")

    async def parent(scope: trio.CancelScope) -> None:
        with scope:
            await run_in_thread(body)
        log.append("parent")
        clean.set()

    scope = trio.CancelScope()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent, scope)
            await happened(started)
            scope.cancel()
            await happened(cleaning)
            await wait_all_tasks_blocked()
            assert not clean.is_set()
            child["token"].run_sync_soon(child["end"])  # type: ignore[attr-defined]
    assert log == ["child", "parent"]
    assert scope.cancelled_caught
    assert not child["thread"].is_alive()  # type: ignore[attr-defined]


async def test_cancelled_while_the_thread_starts() -> None:
    """The cancellation comes before there is a scope to cancel in the child."""
    starting, cancelled = threading.Event(), threading.Event()
    log: list[str] = []

    @contextmanager
    def attach() -> Iterator[None]:
        starting.set()
        assert cancelled.wait(60)
        yield

    async def body() -> None:
        log.append("runs")
        await trio.lowlevel.checkpoint()
        log.append("goes on")

    async def parent(scope: trio.CancelScope) -> None:
        with scope:
            await ThreadHost().run(body, name="child", attach=attach)

    scope = trio.CancelScope()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent, scope)
            await happened(starting)
            scope.cancel()
            await wait_all_tasks_blocked()
            cancelled.set()
    assert scope.cancelled_caught
    assert log == ["runs"]


async def test_cancelled_after_the_childs_loop_has_ended() -> None:
    """Too late: it has finished by itself, and that is what the parent gets."""
    ending, cancelled = threading.Event(), threading.Event()
    log: list[str] = []

    @contextmanager
    def attach() -> Iterator[None]:
        yield
        ending.set()
        assert cancelled.wait(60)

    async def body() -> None:
        await trio.lowlevel.checkpoint()

    async def parent(scope: trio.CancelScope) -> None:
        with scope:
            await ThreadHost().run(body, name="child", attach=attach)
            log.append("finished")

    scope = trio.CancelScope()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent, scope)
            await happened(ending)
            scope.cancel()
            await wait_all_tasks_blocked()
            cancelled.set()
    assert log == ["finished"]
    assert not scope.cancelled_caught


async def test_an_error_during_cancellation_is_not_lost() -> None:
    started = threading.Event()
    error = ValueError("while cleaning up")

    async def body() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def parent() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_in_thread, body)
            await happened(started)
            nursery.cancel_scope.cancel()

    with trio.fail_after(60), pytest.raises(ExceptionGroup) as caught:
        await parent()
    assert caught.value.exceptions == (error,)


async def test_a_thread_that_can_not_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await run_in_thread(trio.lowlevel.checkpoint)


async def test_attach_surrounds_the_life_of_the_loop() -> None:
    log: list[tuple[str, threading.Thread]] = []

    @contextmanager
    def attach() -> Iterator[None]:
        log.append(("attach", threading.current_thread()))
        yield
        log.append(("detach", threading.current_thread()))

    async def body() -> None:
        log.append(("body", threading.current_thread()))

    await ThreadHost().run(body, name="child", attach=attach)
    assert [what for what, _ in log] == ["attach", "body", "detach"]
    assert len({thread for _, thread in log} | {threading.current_thread()}) == 2


async def test_an_error_in_attach_reaches_the_parent() -> None:
    @contextmanager
    def attach() -> Iterator[None]:
        raise OSError("no descriptor left")
        yield

    with pytest.raises(OSError, match="no descriptor left"):
        await ThreadHost().run(trio.lowlevel.checkpoint, name="child", attach=attach)


async def test_context_variables_are_inherited_and_not_given_back() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("parent")
    seen: list[str] = []

    async def body() -> None:
        seen.append(variable.get())
        variable.set("child")

    await run_in_thread(body)
    assert seen == ["parent"]
    assert variable.get() == "parent"


def test_ctrl_c_while_the_thread_starts_does_not_leave_it_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted_start(self: threading.Thread) -> None:
        start(self)
        if self.name == "trio child":
            threads.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_in_thread, trio.sleep_forever)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert len(threads) == 1
    assert not threads[0].is_alive()
