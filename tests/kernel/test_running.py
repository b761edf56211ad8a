"""A running kernel and its subshells, from inside this process; and what leaving it leaves."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio
import zmq

import trio_subshells as ts
from trio_subshells.actors import ActorTerminated, TaskHost, ThreadHost
from trio_subshells.kernel import RunningKernel, open_kernel, serve
from trio_subshells.kernel._open import _with_free_paths, one_as_itself
from trio_subshells.wire import ConnectionInfo, InvalidConnectionInfo

from .helpers import HANG, CellsKernel, Flag, open_client, served


@asynccontextmanager
async def opened(kernel: ts.Kernel, **options: Any) -> AsyncIterator[RunningKernel]:
    with trio.fail_after(HANG):
        async with open_kernel(kernel, **options) as running:
            yield running


@pytest.fixture
def kernel() -> CellsKernel:
    kernel = CellsKernel()

    @kernel.cell
    async def wait(cell: ts.Cell) -> None:
        started = kernel.started  # type: ignore[attr-defined]
        started.set()
        await trio.sleep_forever()

    @kernel.cell
    def thread(cell: ts.Cell) -> None:
        raise ts.CellError(str(threading.get_ident()), "")

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        raise ZeroDivisionError("no such number")

    kernel.started = Flag()  # type: ignore[attr-defined]
    return kernel


# ------------------------------------------------------------------------------------- handles


async def test_execute_without_clients(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        assert running.connection is None
        reply = await running.main.execute("")
        assert (reply.status, reply.ename, reply.evalue) == ("ok", "", "")
        assert reply.content["execution_count"] == 1
        failed = await running.main.execute("fail")
        assert (failed.status, failed.ename) == ("error", "ZeroDivisionError")
        assert failed.evalue == "no such number"
        with pytest.raises(ValueError, match="main shell"):
            await running.main.delete()


async def test_a_subshell_for_the_time_of_a_block(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        here = str(threading.get_ident())
        async with running.spawn_subshell() as subshell:
            assert subshell.state is ts.SubshellState.IDLE
            ident = (await subshell.execute("thread")).ename
            assert ident != here
            assert ident in {str(thread.ident) for thread in threading.enumerate()}
            assert subshell.statistics().served == 1
            assert (await running.main.execute("thread")).ename == here
        assert subshell.state is ts.SubshellState.DELETED
        assert ident not in {str(thread.ident) for thread in threading.enumerate()}
        assert list(await running.subshells()) == [None]
        late = await subshell.execute("")
        assert (late.status, late.ename) == ("error", "UnknownSubshell")
        with pytest.raises(ts.UnknownSubshell):
            await subshell.delete()
        with pytest.raises(ts.UnknownSubshell):
            await subshell.interrupt()


async def test_leaving_the_block_ends_what_runs(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        replies: list[ts.ExecuteReply] = []

        async def execute(subshell: ts.SubshellHandle) -> None:
            replies.append(await subshell.execute("wait"))

        async with trio.open_nursery() as nursery, running.spawn_subshell() as subshell:
            nursery.start_soon(execute, subshell)
            await kernel.started.wait()  # type: ignore[attr-defined]
            assert subshell.state is ts.SubshellState.BUSY
            nursery.start_soon(execute, subshell)
            await running.subshells()
            await running.statistics()  # the shell channel has been told by now
        ended, aborted = sorted(replies, key=lambda reply: reply.status, reverse=True)
        assert ended.ename == "SubshellDeleted"
        assert aborted.content == {"status": "aborted", "execution_count": 0}


async def test_a_block_whose_subshell_a_client_has_deleted(kernel: CellsKernel) -> None:
    async with opened(kernel) as running, running.spawn_subshell() as subshell:
        assert subshell.id is not None
        await running.delete_subshell(subshell.id)


async def test_a_block_that_is_cancelled_leaves_no_subshell(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        with trio.CancelScope() as scope:
            async with running.spawn_subshell() as subshell:
                scope.cancel()
                await trio.sleep_forever()
        assert subshell.state is ts.SubshellState.DELETED


@pytest.mark.parametrize("fails", [False, True])
async def test_a_block_that_is_cancelled_before_it_begins_leaves_no_subshell(fails: bool) -> None:
    begun, go = Flag(), Flag()

    class Slow(CellsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main:
                begun.set()
                try:
                    await go.wait()
                finally:
                    if fails:
                        raise ValueError("it fails, and nobody is there to be told")
            yield

    async with opened(Slow()) as running:
        async with trio.open_nursery() as nursery:

            async def spawn() -> None:
                async with running.spawn_subshell():
                    raise AssertionError("it was set up")

            nursery.start_soon(spawn)
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert list(await running.subshells()) == [None]
        assert (await running.main.execute("")).status == "ok"


async def test_timeouts_of_execute(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        reply = await running.main.execute("wait", timeout=0.05)
        assert reply.ename == "CellTimeout"
        for wrong in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await running.main.execute("", timeout=wrong)


async def test_interrupt_of_a_handle_waits_for_its_effect(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:
        replies: list[ts.ExecuteReply] = []

        async def execute() -> None:
            replies.append(await running.main.execute("wait"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
            await kernel.started.wait()  # type: ignore[attr-defined]
            await running.main.interrupt()
            assert running.main.state is ts.SubshellState.IDLE
        assert replies[0].ename == "KeyboardInterrupt"


async def test_interrupt_of_a_handle_leaves_the_others_alone(kernel: CellsKernel) -> None:
    async with opened(kernel) as running, running.spawn_subshell() as subshell:
        handles = {None: running.main, subshell.id: subshell}
        begun = {key: Flag() for key in handles}
        replies: dict[str | None, str] = {}

        @kernel.cell
        async def begin(cell: ts.Cell) -> None:
            begun[cell.subshell.id].set()
            await trio.sleep_forever()

        async def execute(key: str | None) -> None:
            # Else the next one, sent before the reply is here, would be aborted with it.
            reply = await handles[key].execute("begin", stop_on_error=False)
            replies[key] = reply.ename

        async with trio.open_nursery() as nursery:
            for key in handles:
                nursery.start_soon(execute, key)
                await begun[key].wait()
            await running.main.interrupt()
            assert subshell.state is ts.SubshellState.BUSY
            nursery.start_soon(execute, None)
            begun[None] = Flag()
            await begun[None].wait()
            await subshell.interrupt()
            assert running.main.state is ts.SubshellState.BUSY
            await running.main.interrupt()
        assert replies == {None: "KeyboardInterrupt", subshell.id: "KeyboardInterrupt"}


async def test_handles_are_good_in_other_threads(kernel: CellsKernel) -> None:
    async with opened(kernel) as running:

        async def elsewhere() -> ts.ExecuteReply:
            async with running.spawn_subshell() as subshell:
                return await subshell.execute("fail")

        reply = await trio.to_thread.run_sync(trio.run, elsewhere)
        assert reply.ename == "ZeroDivisionError"
        assert list(await running.subshells()) == [None]


async def test_hosts(kernel: CellsKernel) -> None:
    @kernel.cell
    async def spawn_here(cell: ts.Cell) -> None:
        async with ts.spawn_subshell(host=TaskHost()) as subshell:
            raise ts.CellError((await subshell.execute("thread")).ename, "")

    async with opened(kernel) as running:
        here = str(threading.get_ident())
        async with running.spawn_subshell(host=TaskHost()) as task:
            assert (await task.execute("thread")).ename == here
        async with running.spawn_subshell(host=ThreadHost()) as thread:
            assert (await thread.execute("thread")).ename != here
        assert (await running.main.execute("spawn_here")).ename == here


async def test_statistics_and_tree(kernel: CellsKernel) -> None:
    async with opened(kernel) as running, running.spawn_subshell() as subshell:
        await subshell.execute("")
        statistics = await running.statistics()
        assert [each.id for each in statistics.subshells] == [None, subshell.id]
        assert [each.served for each in statistics.subshells] == [0, 1]
        paths = {each.path for each in statistics.actors.actors}
        assert {"kernel/io/shell", "kernel/io/control", "kernel/main shell"} <= paths
        assert f"subshell {subshell.id}" in running.tree()


# ----------------------------------------------------------------------------- from inside a cell


async def test_cells_use_subshells_of_their_own_kernel(kernel: CellsKernel) -> None:
    @kernel.cell
    def speak(cell: ts.Cell) -> None:
        cell.stdout(f"from {cell.subshell.is_main}\n")

    @kernel.cell
    async def parallel(cell: ts.Cell) -> None:
        async with (
            ts.spawn_subshell() as one,
            ts.spawn_subshell() as two,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(one.execute, "speak")
            nursery.start_soon(two.execute, "speak")
        assert list(await ts.current_kernel().subshells()) == [None]

    async with served(kernel) as at:
        exchange = at.client.execute_soon("parallel")
        assert (await exchange.done()).status == "ok"
        # What they wrote appears where they were asked from.
        assert exchange.text() == "from False\n" * 2


async def test_what_other_requests_execute_is_no_output_of_the_cell_before_them() -> None:
    class Completing(CellsKernel):
        async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
            async with ts.spawn_subshell() as subshell:
                await subshell.execute("speak")
            return ts.Completion([], 0, 0)

    kernel = Completing()

    @kernel.cell
    def speak(cell: ts.Cell) -> None:
        cell.stdout("spoken\n")

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        raise ZeroDivisionError

    async with served(kernel) as at:
        for code in ("speak", "fail"):
            cell = at.client.execute_soon(code)
            await cell.done()
            count = len(cell.published)
            completion = at.client.request("complete_request", {"code": "", "cursor_pos": 0})
            assert (await completion.done()).status == "ok"
            assert len(cell.published) == count


async def test_an_interrupt_of_such_a_cell_leaves_no_subshell(kernel: CellsKernel) -> None:
    @kernel.cell
    async def outer(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            await subshell.execute("wait")

    async with served(kernel) as at:
        exchange = at.client.execute_soon("outer")
        await kernel.started.wait()  # type: ignore[attr-defined]
        await at.client.control("interrupt_request")
        assert (await exchange.done()).ename == "KeyboardInterrupt"
        assert list(await at.running.subshells()) == [None]


async def test_outside_of_a_kernel_there_is_no_current_one() -> None:
    with pytest.raises(RuntimeError, match="open_kernel"):
        ts.current_kernel()
    with pytest.raises(RuntimeError, match="open_kernel"):
        async with ts.spawn_subshell():
            raise AssertionError


async def test_a_kernel_that_is_wholly_asynchronous() -> None:
    class OnTasks(CellsKernel):
        subshell_host = TaskHost()  # type: ignore[misc]

    kernel, meet = OnTasks(), trio.Event()
    threads: set[int] = set()

    @kernel.cell
    async def first(cell: ts.Cell) -> None:
        threads.add(threading.get_ident())
        await meet.wait()

    @kernel.cell
    async def second(cell: ts.Cell) -> None:
        threads.add(threading.get_ident())
        meet.set()

    async with served(kernel) as at:
        ids = [await at.client.create_subshell() for _ in range(2)]
        one = at.client.execute_soon("first", subshell=ids[0])
        two = at.client.execute_soon("second", subshell=ids[1])
        assert (await one.done()).status == (await two.done()).status == "ok"
        await at.client.control("delete_subshell_request", subshell_id=ids[0])
    assert threads == {threading.get_ident()}


# -------------------------------------------------------------------------------- begin and end


async def test_the_lifespan_is_around_everything() -> None:
    events: list[str] = []

    class Living(CellsKernel):
        @asynccontextmanager
        async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
            with pytest.raises(RuntimeError, match="lifespan"):
                await kernel.create_subshell()
            with pytest.raises(RuntimeError, match="lifespan"):
                await kernel.main.execute("")
            events.append("begin")
            yield
            events.append(f"end with {len(await kernel.subshells())} shells")

        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            events.append(f"begin {info.is_main}")
            yield

    async with opened(Living()) as running:
        await running.create_subshell()
    assert events == ["begin", "begin True", "begin False", "end with 0 shells"]


class FailingAt(CellsKernel):
    def __init__(self, point: str) -> None:
        super().__init__()
        self.point = point

    def fail_at(self, point: str) -> None:
        if self.point == point:
            raise ValueError(f"fails at the {point}")

    @asynccontextmanager
    async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
        self.fail_at("lifespan's begin")
        yield
        self.fail_at("lifespan's end")

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        self.fail_at("main shell's begin")
        try:
            yield
        finally:
            self.fail_at("main shell's end")


@pytest.mark.parametrize(
    "point",
    ["lifespan's begin", "lifespan's end", "main shell's begin", "main shell's end", "block"],
)
async def test_what_fails_is_raised_as_itself(point: str) -> None:
    kernel = FailingAt(point)
    with pytest.raises(ValueError, match=f"fails at the {point}"):
        async with opened(kernel) as running:
            if "begin" in point:
                raise AssertionError("it began all the same")
            await running.main.execute("")
            kernel.fail_at("block")


def test_what_is_raised_as_itself_is_as_it_was() -> None:
    """With its cause, and with the notes of all the groups that it was in."""
    error = ValueError("fails")
    inner, outer = ExceptionGroup("inner", [error]), ExceptionGroup("outer", [ActorTerminated()])
    inner.add_note("in actor kernel/io")
    whole = ExceptionGroup("whole", [outer, inner])
    whole.add_note("in actor kernel")
    with pytest.raises(ValueError, match="fails") as raised, one_as_itself():
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as cause:
            error.__cause__ = cause
            raise whole from None
    assert raised.value is error
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.__notes__ == ["in actor kernel", "in actor kernel/io"]


async def test_a_cancelled_block_ends_everything_in_good_order(kernel: CellsKernel) -> None:
    """The ladder is needed for it, so what climbs it must not be cancelled with the block."""
    spinning = Flag()

    @kernel.cell
    def spin(cell: ts.Cell) -> None:
        spinning.set()
        while True:
            pass

    async with (
        serving_elsewhere(kernel) as (connection, cancel, ended),
        open_client(connection) as client,
    ):
        subshell_id = await client.create_subshell()
        cells = [client.execute_soon("wait"), client.execute_soon("spin", subshell=subshell_id)]
        queued = client.execute_soon("", subshell=subshell_id)
        await kernel.started.wait()  # type: ignore[attr-defined]
        await spinning.wait()
        await client.request("kernel_info_request").done()  # so the queued one has arrived
        cancel.set()
        await ended.wait()
        for cell in cells:
            assert (await cell.done()).ename == "KernelShutdown"
        assert (await queued.done()).status == "aborted"


@asynccontextmanager
async def serving_elsewhere(
    kernel: ts.Kernel,
) -> AsyncIterator[tuple[ConnectionInfo, Flag, Flag]]:
    """Serve a kernel in a task whose scope is cancelled by a flag; another one tells the end."""
    cancel, ended = Flag(), Flag()

    async def serve_until_cancelled(
        task_status: trio.TaskStatus[ConnectionInfo] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, kernel, ConnectionInfo.local())
            task_status.started(running.connection)
            await cancel.wait()
            nursery.cancel_scope.cancel()
        ended.set()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(serve_until_cancelled), cancel, ended


@pytest.fixture
def count_descriptors() -> Callable[[], int]:
    if sys.platform == "win32":
        pytest.skip("Windows counts handles of every kind, which come and go by themselves")
    return psutil.Process().num_fds


def test_leaving_gives_everything_back(count_descriptors: Callable[[], int]) -> None:
    async def live() -> None:
        async with served(CellsKernel()) as at:
            ids = [await at.client.create_subshell() for _ in range(5)]
            for each in ids:
                await at.client.execute("", subshell=each)
            await at.client.control("delete_subshell_request", subshell_id=ids[0])

    trio.run(live)
    threads, descriptors = set(threading.enumerate()), count_descriptors()
    for _ in range(3):
        trio.run(live)
    assert set(threading.enumerate()) <= threads
    assert count_descriptors() <= descriptors


# --------------------------------------------------------------------------- where clients connect


def loopback_v6() -> bool:
    import socket

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_free_ports_are_told(kernel: CellsKernel) -> None:
    asked = ConnectionInfo.local()
    async with served(kernel, asked) as at:
        info = at.running.connection
        assert info is not None
        ports = [info.shell_port, info.iopub_port, info.stdin_port, info.control_port, info.hb_port]
        assert 0 not in ports
        assert len(set(ports)) == 5
        assert info.key == asked.key


@pytest.mark.skipif(not loopback_v6(), reason="this machine has no IPv6")
async def test_ipv6(kernel: CellsKernel) -> None:
    async with served(kernel, attrs.evolve(ConnectionInfo.local(), ip="::1")) as at:
        assert (await at.client.execute("")).status == "ok"


@pytest.mark.skipif(not zmq.has("ipc"), reason="ZMQ has no ipc here")
async def test_ipc(kernel: CellsKernel, tmp_path: Path) -> None:
    # The path of a socket in the file system must be short, and this one of pytest's isn't always.
    path = os.path.relpath(tmp_path / "k") if len(str(tmp_path)) > 80 else str(tmp_path / "k")
    asked = attrs.evolve(ConnectionInfo.local(), transport="ipc", ip=path)
    taken = Path(f"{path}-1")
    taken.touch()
    async with served(kernel, asked) as at:
        assert at.running.connection is not None
        assert at.running.connection.shell_port == 2
        assert (await at.client.execute("")).status == "ok"
        assert (await at.client.control("kernel_info_request")).status == "ok"
    assert taken.exists()


def test_a_free_path_is_nobody_elses(tmp_path: Path) -> None:
    """Neither one that a file has, nor one that the connection gives to another channel."""
    asked = ConnectionInfo(transport="ipc", ip=str(tmp_path / "k"), control_port=2, hb_port=4)
    (tmp_path / "k-1").touch()
    info = _with_free_paths(asked)
    assert (info.control_port, info.hb_port) == (2, 4)
    assert sorted((info.shell_port, info.iopub_port, info.stdin_port)) == [3, 5, 6]


async def test_an_address_in_use_is_named(kernel: CellsKernel) -> None:
    async with opened(kernel, connection=ConnectionInfo.local()) as running:
        with pytest.raises(zmq.ZMQError, match=r"tcp://127.0.0.1:\d+"):
            async with opened(CellsKernel(), connection=running.connection):
                raise AssertionError("it was bound")
        assert (await running.main.execute("")).status == "ok"


async def test_without_a_key_messages_arent_signed(kernel: CellsKernel) -> None:
    async with served(kernel, ConnectionInfo()) as at:
        exchange = at.client.execute_soon("")
        assert (await exchange.done()).status == "ok"


async def test_another_key_is_not_heard(kernel: CellsKernel) -> None:
    async with opened(kernel, connection=ConnectionInfo.local()) as running:
        assert running.connection is not None
        async with open_client(running.connection) as client:
            stranger = attrs.evolve(client.session, key=b"another")
            client.send_raw("shell", stranger.serialize("execute_request", {"code": ""}))
            assert (await client.execute("")).content["execution_count"] == 1


# ------------------------------------------------------------------------------------------ serve


async def test_serve_writes_a_connection_file_and_removes_it(
    kernel: CellsKernel, tmp_path: Path
) -> None:
    path = tmp_path / "app.json"
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, kernel, path)
            info = ConnectionInfo.from_file(path)
            assert info == running.connection
            assert info.kernel_name == "cells"
            async with open_client(info) as client:
                assert (await client.execute("")).status == "ok"
                assert (await client.control("shutdown_request")).status == "ok"
    assert not path.exists()


async def test_serve_takes_a_connection_file_that_is_there(
    kernel: CellsKernel, tmp_path: Path
) -> None:
    async with opened(CellsKernel(), connection=ConnectionInfo.local()) as other:
        info = other.connection  # five ports that are free as soon as it has ended
    assert info is not None
    path = tmp_path / "jupyter.json"
    info.write_file(path)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, kernel, path)
            assert running.connection == info
            nursery.cancel_scope.cancel()
    assert path.exists()  # it is whoever wrote it who removes it


async def test_serve_refuses_a_file_that_is_none(kernel: CellsKernel, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("[]")
    with pytest.raises(InvalidConnectionInfo, match=r"broken\.json"):
        await serve(kernel, path)


async def test_serve_ends_when_its_condition_does(kernel: CellsKernel) -> None:
    parent_has_ended = Flag()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[RunningKernel]) -> None:
                await serve(
                    kernel,
                    ConnectionInfo.local(),
                    task_status=task_status,
                    until=parent_has_ended.wait,
                )

            await nursery.start(run)
            parent_has_ended.set()
