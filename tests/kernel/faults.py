"""Kills one actor of a kernel at one of its await points, while a client uses the kernel.

`Faults` is a trio instrument: it watches the tasks of one actor (its `run`, and what its nurseries
run) and raises a `Fault` where the task that is about to go on has been waiting. An await point is
told by its stack: the lines of this package that wait there. `use_kernel` is what a client does
meanwhile, one of everything; `survey` runs it without a fault to learn the points, `sabotage`
again with one, and checks what must hold whatever has failed.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import outcome
import pytest
import trio
from trio_util import move_on_when

import trio_subshells as ts
from trio_subshells import actors
from trio_subshells.actors import _supervision
from trio_subshells.kernel import serve
from trio_subshells.sockets._ledger import start_lending
from trio_subshells.testing import Client, Exchange
from trio_subshells.wire import ConnectionInfo

from .helpers import HANG, CellsKernel, open_client, types

_PACKAGE = Path(ts.__file__).parent

Point = tuple[str, ...]
"""An await point: the lines that wait there, the outermost first."""


class Fault(Exception):
    """What is raised in the victim."""


_victim: ContextVar[str] = ContextVar("victim")


class Faults(trio.abc.Instrument):
    """See the module's first lines.

    Args:
        victim: the actor's name; ``subshell`` is the first one that is a child of control or nest.
        point: where to raise; None: nowhere.
        occurrence: when it is passed for which time.
    """

    def __init__(self, victim: str, point: Point | None = None, occurrence: int = 1) -> None:
        self.victim = victim
        self.point = point
        self.occurrence = occurrence
        self.passed: Counter[Point] = Counter()
        self.raised = False
        self._wanted = 0
        self._subshells = 0

    def arm(self, times: int = 1) -> None:
        """Raise wherever the victim goes on next; again and again that many times."""
        self._wanted = times

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio, in the thread of the task."""
        if task.context.get(_victim) != self.victim:
            return
        point = await_point(task)
        if point is None:
            return
        self.passed[point] += 1
        wanted = point == self.point and self.passed[point] == self.occurrence
        if wanted or self._wanted:
            self._wanted = max(0, self._wanted - 1)
            self.raised = True
            # There is no public way to have a task that is to go on raise something instead.
            task._next_send = outcome.Error(Fault(" < ".join(reversed(point))))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch every actor that starts within this block, in whichever thread."""
        run_actor = _supervision._run_actor

        async def run_watched(actor: actors.Actor, mailbox: actors.Mailbox) -> None:
            name = _supervision._place.get().node.name
            if name.startswith("subshell "):
                self._subshells += 1
                name = "subshell" if self._subshells == 1 else f"subshell {self._subshells}"
            token = _victim.set(name)
            trio.lowlevel.add_instrument(self)
            try:
                await run_actor(actor, mailbox)
            finally:
                _victim.reset(token)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_supervision, "_run_actor", run_watched)
            try:
                yield
            finally:
                with suppress(KeyError):  # no actor has got as far as this thread
                    trio.lowlevel.remove_instrument(self)


def await_point(task: trio.lowlevel.Task) -> Point | None:
    """Where a task waits; None where nothing can be raised.

    That is what has not begun; trio's own wait for a nursery's tasks, and the warden's for its
    thread: neither can fail, and all that they hold together would come apart; and a supervision
    task outside of its actor's code.
    """
    if inspect.getcoroutinestate(task.coro) != inspect.CORO_SUSPENDED:  # type: ignore[arg-type]
        return None
    stack: list[str] = []
    names: set[str] = set()
    for frame, line in task.iter_await_frames():
        names.add(frame.f_code.co_name)
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            if frame.f_code.co_name == "_run_actor":
                stack.clear()  # how it got there is the supervisor's business
                names.clear()
            else:
                where = path.relative_to(_PACKAGE).as_posix()
                stack.append(f"{where}:{line} {frame.f_code.co_name}")
    if names & {"_nested_child_finished", "wait_finished", "_supervise"}:
        return None
    return tuple(stack) or None  # trio's own tasks inherit the context, too


# ------------------------------------------------------------------------------- what a client does


class TargetKernel(CellsKernel):
    """Its cells do one of everything."""

    def __init__(self, subshell_host: actors.Host | None = None) -> None:
        super().__init__()
        if subshell_host is not None:
            self.subshell_host = subshell_host  # type: ignore[misc]

        @self.cell
        async def hello(cell: ts.Cell) -> None:
            cell.stdout("hel")
            await trio.lowlevel.checkpoint()
            cell.stdout("lo")
            cell.result({"text/plain": "'hello'"})

        @self.cell
        async def ask(cell: ts.Cell) -> None:
            cell.stdout(await cell.input("? "))

        @self.cell
        async def forever(cell: ts.Cell) -> None:
            await trio.sleep_forever()

        @self.cell
        async def fail(cell: ts.Cell) -> None:
            await trio.lowlevel.checkpoint()
            raise ValueError("on purpose")

    async def comm_message(self, message: ts.CommMessage) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define
class Session:
    """A kernel that is being used, and what was asked of it."""

    connection: ConnectionInfo
    ended: trio.Event = attrs.field(factory=trio.Event)
    error: BaseException | None = None
    asked: list[Exchange] = attrs.field(factory=list)

    async def done(self, exchange: Exchange) -> Mapping[str, Any]:
        """Wait for a reply, and check it."""
        self.asked.append(exchange)
        content = (await exchange.done()).content
        check_reply(exchange)
        return content

    async def begun(self, exchange: Exchange) -> Exchange:
        """Wait until a cell runs, or has ended without having run."""
        self.asked.append(exchange)
        await exchange.until(lambda: "execute_input" in types(exchange) or bool(exchange.replies))
        return exchange


def check_reply(exchange: Exchange) -> None:
    """What a client may rely on, whatever has failed."""
    content = exchange.replies[0].content
    if exchange.message.header.msg_type == "execute_request":
        began = "execute_input" in types(exchange)
        assert ("error" in types(exchange)) == (began and content["status"] == "error"), exchange
        assert not (began and content["status"] == "aborted")


async def use_kernel(session: Session, client: Client) -> None:
    """One of everything: what is asked is answered, whichever way."""
    done = session.done

    async def create() -> str:
        content = await done(client.control_soon("create_subshell_request"))
        return content.get("subshell_id", "none")  # type: ignore[no-any-return]

    async def interrupt(subshell_id: str | None) -> None:
        """If the fault has hit the interrupt itself, the cell runs on."""
        for _ in range(2):
            content = await done(client.control_soon("interrupt_request", subshell_id=subshell_id))
            if content["status"] == "ok" or content["ename"] == "UnknownSubshell":
                return

    await done(client.request("kernel_info_request"))
    await done(client.control_soon("kernel_info_request"))
    await done(client.execute_soon("hello"))
    first, second = await create(), await create()
    for place in (None, first, second):
        await done(client.execute_soon("hello", subshell=place))
        await done(client.execute_soon("ask", subshell=place))
        client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=place)
        await done(client.request("complete_request", _COMPLETE, subshell=place))
        fails = client.execute_soon("fail", subshell=place)
        queued = client.execute_soon("hello", subshell=place)
        await done(fails)
        await done(queued)
    await done(client.control_soon("list_subshell_request"))
    running = await session.begun(client.execute_soon("forever", subshell=first))
    await interrupt(first)
    await done(running)
    cells = [
        await session.begun(client.execute_soon("forever", subshell=place))
        for place in (None, first, second)
    ]
    await interrupt(None)
    for cell in cells:
        await done(cell)
    cells = [
        await session.begun(client.execute_soon("forever", subshell=first)),
        client.execute_soon("hello", subshell=first),
    ]
    await done(client.control_soon("delete_subshell_request", subshell_id=first))
    for cell in cells:
        await done(cell)
    await done(client.execute_soon("hello", subshell=second))


_COMPLETE = {"code": "a", "cursor_pos": 1}


async def check_works(session: Session, client: Client) -> None:
    """A kernel that goes on after a fault is as good as new."""

    async def ok(exchange: Exchange) -> Mapping[str, Any]:
        content = await session.done(exchange)
        if content.get("ename") == "KernelDied":
            await trio.sleep_forever()  # it says so itself: who has called waits for its end
        assert content["status"] == "ok", content
        return content

    await ok(client.request("kernel_info_request"))
    listed = (await ok(client.control_soon("list_subshell_request")))["subshell_id"]
    new = (await ok(client.control_soon("create_subshell_request")))["subshell_id"]
    for place in (None, *listed, new):
        asks = client.execute_soon("ask", subshell=place)
        if (await session.done(asks)).get("ename") == "UnknownSubshell":
            listed.remove(place)  # it was on its way out
        else:
            assert asks.text() == "answer"
    async with open_client(session.connection, "another") as another:  # it is welcomed
        cell = another.execute_soon("hello")
        await cell.done()
    assert cell.text() == "hello"
    await ok(client.control_soon("delete_subshell_request", subshell_id=new))
    listed_now = (await ok(client.control_soon("list_subshell_request")))["subshell_id"]
    assert listed_now == listed


async def _answer_prompts(client: Client) -> None:
    while True:
        client.answer(await client.prompt(), "answer")


@asynccontextmanager
async def _serving(kernel: ts.Kernel, faults: Faults) -> AsyncIterator[Session]:
    session = Session(ConnectionInfo.local())
    started = trio.Event()

    class Status(trio.TaskStatus[ts.RunningKernel]):
        def started(self, value: ts.RunningKernel | None = None) -> None:
            assert value is not None
            assert value.connection is not None
            session.connection = value.connection
            started.set()

    async def run() -> None:
        try:
            await serve(kernel, session.connection, task_status=Status())
        except Exception as error:
            session.error = error
        finally:
            session.ended.set()

    with faults.installed(), trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            async with move_on_when(session.ended.wait):
                await started.wait()
            yield session
            await session.ended.wait()


async def sabotage(kernel: ts.Kernel, faults: Faults) -> Session:
    """Use a kernel in which there is a fault, and check that it works on, or ends in order.

    In order: it is the fault that ends it, everything that was asked is answered, once, and no
    thread is left.
    """
    start_lending()  # pyzmq's thread, which stays
    threads = set(threading.enumerate())
    async with _serving(kernel, faults) as session:
        if not session.ended.is_set():
            async with (
                trio.open_nursery() as nursery,
                open_client(session.connection, listens=False) as client,
            ):
                async with move_on_when(session.ended.wait):
                    await client.listen()
                    nursery.start_soon(_answer_prompts, client)
                    await use_kernel(session, client)
                    raised_before = faults.raised
                    try:
                        await check_works(session, client)
                    except (AssertionError, ValueError):
                        if raised_before == faults.raised:
                            raise
                        await check_works(session, client)  # it was this that was hit
                    await session.done(client.control_soon("shutdown_request"))
                    await session.ended.wait()
                for exchange in session.asked:
                    if exchange.published:  # it has been read
                        await exchange.done()
                nursery.cancel_scope.cancel()
    if session.error is not None:
        assert isinstance(session.error, Fault), session.error
        assert faults.raised
    assert set(threading.enumerate()) <= threads, set(threading.enumerate()) - threads
    return session


async def survey(kernel: ts.Kernel, victim: str) -> Counter[Point]:
    """The await points of an actor, and how often each is passed."""
    faults = Faults(victim)
    session = await sabotage(kernel, faults)
    assert session.error is None
    return faults.passed
