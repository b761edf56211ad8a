"""SIGTERM, as far as it can be told in the test's own process; see `tests/process`, too."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from types import FrameType, SimpleNamespace

import pytest
import trio
import trio.testing

from trio_subshells.kernel import _terminate
from trio_subshells.kernel._terminate import NUMBER, Terminator

from .helpers import HANG, CellsKernel, Flag, served


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(NUMBER)
    yield
    signal.signal(NUMBER, before)


def _wakeup_descriptor() -> int:
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return descriptor


async def test_it_tells_that_the_kernel_is_to_end_and_gives_everything_back() -> None:
    trios = _wakeup_descriptor()
    terminator = Terminator()
    with trio.fail_after(HANG), terminator.installed():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminator.wait)
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(NUMBER)
    assert _wakeup_descriptor() == trios
    assert signal.getsignal(NUMBER) is signal.SIG_DFL


async def test_the_handler_of_somebody_else_is_left_to_them() -> None:
    def theirs(number: int, frame: FrameType | None) -> None: ...

    with Terminator().installed():
        signal.signal(NUMBER, theirs)
    assert signal.getsignal(NUMBER) is theirs


async def test_what_came_before_anybody_waited_is_not_lost() -> None:
    terminator = Terminator()
    with trio.fail_after(HANG), terminator.installed():
        signal.raise_signal(NUMBER)
        await terminator.wait()


async def test_it_comes_to_the_handler_if_the_descriptor_is_taken_away() -> None:
    terminator = Terminator()
    with trio.fail_after(HANG), terminator.installed():
        ours = signal.set_wakeup_fd(-1)
        signal.raise_signal(NUMBER)
        await terminator.wait()
        signal.set_wakeup_fd(ours, warn_on_full_buffer=False)


def test_who_is_woken_by_the_handler_sees_that_it_has_come() -> None:
    """At once, as it may: by nothing else would it be woken before the next one."""
    terminator = Terminator()
    terminator._writer = SimpleNamespace(send=lambda _: terminator._look())  # type: ignore[assignment]
    terminator.handle(NUMBER, None)
    assert terminator._counted == 1


def test_it_is_noticed_though_trio_has_been_told_of_many() -> None:
    reader, writer = socket.socketpair()
    trios, waker = socket.socketpair()
    with closing(reader), closing(writer), closing(trios), closing(waker):
        waker.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                waker.send(bytes(4096))
        terminator = Terminator()
        terminator._calls = 1
        writer.send(b"\0")
        writer.shutdown(socket.SHUT_RDWR)
        terminator._listen(reader, waker.fileno())
        assert terminator._counted == 1


async def test_a_second_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_terminate, "TOGETHER", 0)
    left = Flag()
    terminator = Terminator(left.set)
    with trio.fail_after(HANG), terminator.installed():
        signal.raise_signal(NUMBER)
        await terminator.wait()
        assert not left.is_set()
        signal.raise_signal(NUMBER)
        await left.wait()


async def test_where_it_is_ignored_it_still_is() -> None:
    signal.signal(NUMBER, signal.SIG_IGN)
    trios = _wakeup_descriptor()
    with Terminator().installed():
        assert signal.getsignal(NUMBER) is signal.SIG_IGN
        assert _wakeup_descriptor() == trios


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of forks beside threads
async def test_what_a_forked_child_handles_is_its_own_business() -> None:
    """C code writes its number to the descriptor, and that would be its parent's."""
    terminator, read = Terminator(), Flag()
    terminator._look = read.set  # type: ignore[method-assign]
    with trio.fail_after(HANG), terminator.installed():
        pid = os.fork()
        if pid == 0:
            signal.alarm(HANG)
            signal.signal(NUMBER, lambda *_: os._exit(0))
            signal.raise_signal(NUMBER)
            os._exit(1)
        assert (await trio.to_thread.run_sync(os.waitpid, pid, 0))[1] == 0
        terminator._writer.send(b"\0")  # what the child has written is read before this
        await read.wait()
        assert terminator._bytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_who_forks_when_no_kernel_runs_any_more_keeps_their_mask() -> None:
    def fork() -> None:
        _terminate._before_fork()
        _terminate._after_fork_in_parent()

    with Terminator().installed():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        fork()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}) == before
    try:
        fork()
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_a_kernel_in_another_program_leaves_its_signals_alone() -> None:
    trios = _wakeup_descriptor()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, NUMBER)}
    async with served(CellsKernel()) as at:
        await at.client.execute("")
        assert {number: signal.getsignal(number) for number in before} == before
        assert _wakeup_descriptor() == trios
