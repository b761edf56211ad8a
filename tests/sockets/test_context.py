"""A context's room, its books, and its end, which must neither hang nor be silent."""

from __future__ import annotations

import errno
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import zmq

from trio_subshells.sockets import Context, Socket, SocketsLeftOpenError, _context, open_context


def test_it_knows_what_is_open(context: Context) -> None:
    with context.socket(zmq.ROUTER, name="shell"), context.socket(zmq.XPUB):
        assert context.statistics().sockets_open == ("shell", "XPUB-1")
    assert context.statistics().sockets_open == ()


def test_who_looks_is_not_disturbed_by_who_comes_and_goes(context: Context) -> None:
    """In other threads, anywhere in the middle of it."""
    names = tuple(f"stays {number}" for number in range(100))

    def come_and_go() -> None:
        for _ in range(3000):
            context.socket(zmq.PAIR, name="goes").close()

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(context.socket(zmq.PAIR, name=name))
        thread = threading.Thread(target=come_and_go)
        stack.callback(thread.join)
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        thread.start()
        while thread.is_alive():
            assert context.statistics().sockets_open[:100] == names


def test_it_has_room_for_thousands(context: Context) -> None:
    assert context.statistics().max_sockets == 65_535


def test_it_has_no_more_room_than_libzmq_allows() -> None:
    with open_context(max_sockets=100_000) as context:
        assert context.statistics().max_sockets == 65_535


def test_more_sockets_than_libzmq_has_by_default() -> None:
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3000:
        pytest.skip("fewer than 3000 file descriptors are allowed here")
    with open_context() as context:
        sockets = [context.socket(zmq.DEALER) for _ in range(2000)]
        assert len(context.statistics().sockets_open) == 2000
        for socket in sockets:
            socket.close()


def test_one_socket_too_many_says_which_limit() -> None:
    with open_context(max_sockets=2) as context, context.socket(zmq.PAIR), context.socket(zmq.PAIR):
        with pytest.raises(OSError, match=r"2 are open of at most 2 .*max_sockets") as caught:
            context.socket(zmq.PAIR, name="third")
        assert caught.value.errno == errno.EMFILE
        assert "'third'" in str(caught.value)


@pytest.mark.parametrize("argument", ["max_sockets", "io_threads"])
def test_limits_below_one_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} .* 1 or more, not 0"):
        Context(**{argument: 0})


def test_a_closed_context_makes_no_sockets() -> None:
    with open_context() as context:
        pass
    with pytest.raises(RuntimeError, match="this context is closed"):
        context.socket(zmq.PAIR)
    context.close()  # again: nothing


def test_what_this_thread_left_open_is_closed_and_named() -> None:
    context = Context()
    socket = context.socket(zmq.ROUTER, name="forgotten")
    with pytest.raises(SocketsLeftOpenError, match=r"1 socket.*: forgotten;") as caught:
        context.close()
    assert caught.value.names == ("forgotten",)
    with pytest.raises(trio.ClosedResourceError):
        socket.get(zmq.EVENTS)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_of_the_block_itself_comes_out_with_a_note(
    error: type[BaseException],
) -> None:
    with pytest.raises(error) as caught, open_context() as context:
        raise error(context.socket(zmq.ROUTER, name="forgotten").name)
    assert "forgotten" in caught.value.__notes__[0]
    assert context.statistics().sockets_open == ()


async def test_a_task_of_the_same_thread_that_waits_is_woken() -> None:
    context = Context()
    socket = context.socket(zmq.ROUTER, name="forgotten")

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await socket.receive()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(SocketsLeftOpenError):
                context.close()


def test_a_task_of_another_thread_is_woken_and_has_time_to_close() -> None:
    context = Context()
    waiting = threading.Event()
    errors: list[str] = []

    async def main() -> None:
        async with context.socket(zmq.ROUTER, name="elsewhere") as socket:
            trio.lowlevel.spawn_system_task(tell_when_blocked)
            try:
                await socket.receive()
            except trio.BrokenResourceError as error:
                errors.append(str(error))
            with pytest.raises(trio.BrokenResourceError):
                await socket.send([b"to", b"nobody"])
            with pytest.raises(trio.BrokenResourceError):
                socket.bind("inproc://late")
            with pytest.raises(trio.BrokenResourceError):
                socket.set(zmq.ROUTER_MANDATORY, 1)
            with pytest.raises(trio.BrokenResourceError):
                socket.get(zmq.TYPE)
            with pytest.raises(trio.BrokenResourceError):
                socket.receive_nowait()

    async def tell_when_blocked() -> None:
        await trio.testing.wait_all_tasks_blocked()
        waiting.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert waiting.wait(60)
    with pytest.raises(SocketsLeftOpenError, match="elsewhere") as caught:
        context.close()
    assert "daemon thread" not in str(caught.value)
    thread.join(60)
    assert not thread.is_alive()
    assert errors == ["the context of the socket 'elsewhere' has ended"]


def test_who_waits_is_told_though_another_task_is_the_first_to_hear_of_it() -> None:
    """The descriptor says it once; whoever operates on the socket may be the one to hear it."""
    context = Context()
    waiting = threading.Event()
    told: list[str] = []

    async def main() -> None:
        with trio.fail_after(60):
            async with (
                context.socket(zmq.DEALER, name="shared") as socket,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(receive, socket)
                await trio.testing.wait_all_tasks_blocked()
                waiting.set()
                with pytest.raises(trio.BrokenResourceError):
                    while True:  # without a checkpoint: nobody looks at the descriptor meanwhile
                        socket.get(zmq.EVENTS)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    async def receive(socket: Socket) -> None:
        try:
            await socket.receive()
        except trio.BrokenResourceError as error:
            told.append(str(error))

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert waiting.wait(60)
    with pytest.raises(SocketsLeftOpenError):
        context.close()
    thread.join(60)
    assert told == ["the context of the socket 'shared' has ended"]


def test_who_does_not_close_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_context, "GRACE_SECONDS", 0.01)
    context = Context()
    opened = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with context.socket(zmq.ROUTER, name="stubborn"):
            opened.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert opened.wait(60)
    before = set(threading.enumerate())
    with pytest.raises(SocketsLeftOpenError, match=r"stubborn.*daemon thread waits on"):
        context.close()
    context.close()  # again: nothing
    (waiter,) = set(threading.enumerate()) - before
    release.set()
    thread.join(60)
    waiter.join(60)  # and it is right: the last socket is closed, so the context ends after all
    assert not waiter.is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="no ipc")
def test_the_end_waits_for_who_lingers_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only for who was closed last."""
    monkeypatch.setattr(_context, "GRACE_SECONDS", 0)
    url = f"ipc://{tmp_path}/late"
    context = Context()
    with context.socket(zmq.PUSH, linger=60_000) as patient, context.socket(zmq.PUSH, linger=0):
        patient.connect(url)
        patient.send_nowait([b"last words"])
        patient.close()
    received: list[bytes] = []
    waits = threading.Event()

    class Ending(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            waits.set()
            super().join(timeout)

    def take() -> None:
        assert waits.wait(60)
        with zmq.Context() as other, other.socket(zmq.PULL) as pull:
            pull.bind(url)
            received.append(pull.recv())

    thread = threading.Thread(target=take)
    thread.start()
    monkeypatch.setattr(threading, "Thread", Ending)
    context.close()
    thread.join(60)
    assert received == [b"last words"]


def test_descriptors_are_given_back(count_descriptors) -> None:
    before = count_descriptors()
    with open_context() as context:
        for number in range(50):
            with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
                dealer.connect(router.bind(f"inproc://{number}"))
        assert count_descriptors() > before
    assert count_descriptors() == before
