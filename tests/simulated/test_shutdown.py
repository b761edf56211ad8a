"""The end of a kernel: everything is answered, everything is joined, whatever it ends of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any
from unittest import mock

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import _main, open_kernel
from trio_subshells.kernel._ladder import SHUTDOWN_TIMEOUT
from trio_subshells.testing import (
    Client,
    Exchange,
    KernelUnderTest,
    check_protocol,
    explore_schedules,
    simulated_kernel,
)
from trio_subshells.testing._network import Network

from . import starting
from .kernels import Flag, WordsKernel, answered_before, check, early_client, the_simulation
from .programs import call_into_c
from .starting import SlowInAGroup, SlowMainShell, SlowToStart
from .threads import some_steps


@explore_schedules(60)
async def test_a_shutdown_is_answered_last() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cells = [
            client.execute_soon(code, subshell=where)
            for where in (None, subshell)
            for code in ("say", "wait", "next")
        ]
        await client.request("kernel_info_request").reply()  # now all of them have come
        deleting = client.control_soon("delete_subshell_request", subshell_id=subshell)
        stopping = client.control_soon("shutdown_request", restart=False)  # after the delete
        assert (await stopping.reply()).status == "ok"
        assert not any("subshell" in name for name in kernel.threads)
        await check(kernel.client)
        for cell in cells:
            if cell.replies[0].content.get("ename") != "UnknownSubshell":
                assert answered_before(client, cell, stopping)
        assert deleting.replies


async def cells_that_wait(kernel: KernelUnderTest) -> list[Exchange]:
    """Two of them, which have begun: in the main shell and in a subshell."""
    subshell = await kernel.create_subshell()
    cells = [kernel.client.execute_soon("wait", subshell=where) for where in (None, subshell)]
    for cell in cells:
        await cell.output("execute_input")
    return cells


@explore_schedules(60)
async def test_a_shutdown_on_the_shell_channel_is_answered_last() -> None:
    """That of a client older than protocol 5.4."""
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        cells = await cells_that_wait(kernel)
        stopping = client.request("shutdown_request", {"restart": True})
        reply = await stopping.reply()
        assert (reply.status, reply.content.get("restart")) == ("ok", True)
        await kernel.wait_closed()
        await check(client)
        for cell in cells:
            assert cell.replies[0].content["ename"] == "KernelShutdown"
            assert answered_before(client, cell, stopping)


@explore_schedules(60)
async def test_each_shutdown_is_answered_last() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        client = kernel.client
        cells = await cells_that_wait(kernel)
        stops = [client.control_soon("shutdown_request", restart=False) for _ in range(2)]
        await stops[0].reply()
        for cell in cells:
            assert (await cell.done()).ename == "KernelShutdown"
            for stop in stops:
                # The second one may come too late for any answer.
                assert not stop.replies or answered_before(client, cell, stop)


@explore_schedules(100)
async def test_a_shutdown_ends_who_waits_for_another_cell() -> None:
    """The inner cell may end first; its reply is no reason to go on."""
    words = WordsKernel()
    begun = Flag()

    @words.cell
    async def outer(cell: ts.Cell) -> None:
        async with ts.spawn_subshell() as subshell:
            await subshell.execute("inner", silent=True)
            cell.stdout("and on it goes")

    @words.cell
    async def inner(cell: ts.Cell) -> None:
        begun.set()
        await trio.sleep_forever()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        elsewhere = await kernel.create_subshell()
        for where in (None, elsewhere):
            begun = Flag()
            client.execute_soon("outer", subshell=where)
            await begun.wait()
        assert (await kernel.shutdown()).status == "ok"
        await check(client)
        for cell in client.exchanges:
            if cell.message.header.msg_type == "execute_request":
                assert cell.text() == ""
                assert cell.replies[0].content["ename"] == "KernelShutdown"


@explore_schedules(150)
async def test_a_shutdown_ends_who_waits_for_what_is_aborted() -> None:
    """A cell that nothing has ended makes way for one that doesn't even start any more."""
    words = WordsKernel()
    waiting, ends = Flag(), Flag()
    elsewhere: list[ts.SubshellHandle] = []

    @words.cell
    async def ends_by_itself(cell: ts.Cell) -> None:
        await ends.wait()

    @words.cell
    async def outer(cell: ts.Cell) -> None:
        waiting.set()
        reply = await elsewhere[0].execute("inner", silent=True)
        cell.stdout(reply.status)

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        elsewhere.append(await kernel.running.create_subshell())
        before = client.execute_soon("ends_by_itself", subshell=elsewhere[0].id)
        await before.output("execute_input")
        cell = client.execute_soon("outer", subshell=await kernel.create_subshell())
        await waiting.wait()
        stopping = client.control_soon("shutdown_request", restart=False)
        ends.set()
        assert (await stopping.reply()).status == "ok"
        await check(client)
        assert cell.text() in {"", "ok"}


@pytest.mark.parametrize("how", ["a client", "a signal"])
@explore_schedules(40)
async def test_who_waits_for_the_end_of_a_kernel_finds_it_ended(how: str) -> None:
    """Whoever has ended it: nothing runs there any more, and everybody has been answered."""
    words = WordsKernel()
    network = Network(the_simulation())
    comes, both_wait = Flag(), Flag()
    begun: list[str] = []
    left: list[str] = []

    @words.cell
    async def waits(cell: ts.Cell) -> None:
        begun.append(cell.code)
        if len(begun) == 2:
            both_wait.set()
        try:
            await trio.sleep_forever()
        finally:
            left.append(cell.code)

    async def serve_until_it_comes(task_status: trio.TaskStatus[None]) -> None:
        async with open_kernel(
            words,
            make_raiser=network.make_raiser,
            until=comes.wait,
            open_ground=lambda: nullcontext(network),
        ) as running:
            task_status.started()
            await running.wait_closed()
            assert len(left) == 2
            assert not any("subshell" in each.name for each in the_simulation().threads)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_it_comes)
        async with early_client(network) as client:
            subshell = await client.create_subshell()
            cells = [client.execute_soon("waits", subshell=where) for where in (None, subshell)]
            await both_wait.wait()
            if how == "a client":
                client.control_soon("shutdown_request", restart=False)
            else:
                comes.set()
            for cell in cells:
                assert (await cell.done()).ename == "KernelShutdown"


@explore_schedules(30, lag=0)
async def test_a_signal_gives_cells_the_time_that_they_have_to_end() -> None:
    """And then to be given up: the kernel hasn't failed for all that."""
    network = Network(the_simulation())
    comes = Flag()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(starting.serve, WordsKernel(), network, until=comes.wait))
        async with early_client(network) as client:
            subshell = await client.create_subshell()
            cell = client.execute_soon("stick 60", subshell=subshell)
            await cell.output("execute_input")
            comes.set()
            assert (await cell.done()).ename == "KernelShutdown"


@explore_schedules(60, lag=0)
async def test_a_kernel_that_has_failed_has_failed_though_it_is_shut_down_then() -> None:
    """Its process is to end with a status that says so, if it can't but be ended."""
    network = Network(the_simulation())
    statuses: list[int] = []

    async def unjoinable(status: int) -> None:
        statuses.append(status)

    async def serve_until_it_fails(task_status: trio.TaskStatus[None]) -> None:
        with suppress(TypeError):
            await starting.serve(
                WordsKernel(), network, on_unjoinable=unjoinable, task_status=task_status
            )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_it_fails)
        async with early_client(network) as client:
            subshells = [await client.create_subshell() for _ in range(2)]
            cells = [client.execute_soon("stick 60", subshell=each) for each in subshells]
            for cell in cells:
                await cell.output("execute_input")
            deleting = client.control_soon(
                "delete_subshell_request", subshell_id=subshells[1], timeout=1000
            )
            await deleting.busy()
            network.routers["shell"].inbox.put(None)  # what no socket ever gives
            await trio.sleep(1)
            client.control_soon("shutdown_request", restart=False)
            assert (await cells[0].done()).ename == "KernelDied"
            assert (await cells[1].done()).ename == "SubshellDeleted"  # that came first
            assert (await deleting.done()).ename == "KernelDied"
    assert statuses == [1]


async def serve(
    words: WordsKernel,
    network: Network,
    scope: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a kernel in the calling thread, of which everything can be ended."""

    async def unjoinable(status: int) -> None:
        raise AssertionError("there is something that can't be ended")

    await starting.serve(words, network, scope, on_unjoinable=unjoinable, task_status=task_status)


@explore_schedules(150)
async def test_who_comes_early_is_served() -> None:
    words = SlowToStart()
    network = Network(the_simulation())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network, trio.CancelScope())
        await words.starting.wait()
        async with early_client(network) as client:
            creating = client.control_soon("create_subshell_request")
            cell = client.execute_soon("say")
            assert (await client.control("kernel_info_request")).status == "ok"
            words.started.set()
            assert (await creating.done()).status == "ok"
            assert (await cell.done()).status == "ok"
            assert (await client.control("shutdown_request", restart=False)).status == "ok"
            check_protocol(client)


@explore_schedules(40)
async def test_who_shuts_down_early_is_served() -> None:
    words = SlowToStart()
    network = Network(the_simulation())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network, trio.CancelScope())
        await words.starting.wait()
        async with early_client(network) as client:
            client.execute_soon("say")
            await client.request("kernel_info_request").reply()
            stopping = client.control_soon("shutdown_request", restart=False)
            await stopping.busy()
            words.started.set()
            assert (await stopping.done()).status == "ok"
            await check(client)


@explore_schedules(40)
async def test_a_kernel_whose_start_outlasts_its_shutdown_ends() -> None:
    """Whatever its main shell is asked for when it is there at last."""
    words = SlowToStart()
    network = Network(the_simulation())
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starting.serve, words, network)
        await words.starting.wait()
        async with early_client(network) as client:
            assert (await client.control("shutdown_request", restart=False)).status == "ok"
            words.started.set()
            for _ in range(3):
                client.execute_soon("block")
                await trio.lowlevel.checkpoint()
    assert trio.current_time() - begin < 60


@explore_schedules(40)
async def test_a_kernel_that_is_cancelled_ends_in_good_order() -> None:
    network = Network(the_simulation())
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, WordsKernel(), network, scope)
        async with early_client(network) as client:
            running, queued = client.execute_soon("wait"), client.execute_soon("next")
            await client.request("kernel_info_request").reply()
            await running.output("execute_input")
            scope.cancel()
            assert (await running.done()).ename == "KernelShutdown"
            assert (await queued.done()).status == "aborted"


@asynccontextmanager
async def client_that_outlives(words: WordsKernel) -> AsyncIterator[Client]:
    """A client of a kernel that fails; other than the block of `simulated_kernel`, it goes on."""
    network = Network(the_simulation())

    async def serve_until_it_fails(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(ValueError, match="as was wanted"):
            await starting.serve(words, network, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_it_fails)
        async with early_client(network) as client:
            yield client


@explore_schedules(20)
async def test_a_kernel_that_dies_answers_everything() -> None:
    dies, hangs = Flag(), Flag()

    class Dying(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                if info.is_main:
                    nursery.start_soon(self.die)
                elif hangs.is_set():
                    await trio.sleep_forever()
                yield
                nursery.cancel_scope.cancel()

        async def die(self) -> None:
            await dies.wait()
            raise ValueError("as was wanted")

    async with client_that_outlives(Dying()) as client:
        subshell = await client.create_subshell()
        cells = {
            where: [client.execute_soon(code, subshell=where) for code in ("wait", "next")]
            for where in (None, subshell)
        }
        hangs.set()
        creating = client.control_soon("create_subshell_request")
        await creating.busy()
        await client.request("kernel_info_request").reply()
        for running, _ in cells.values():
            await running.output("execute_input")
        dies.set()
        for running, queued in cells.values():
            assert (await running.done()).ename == "KernelDied"
            assert (await queued.done()).status == "aborted"
        assert (await creating.done()).ename in {"KernelDied", "RuntimeError"}
        await check(client)


def waits_for_another_cell(words: WordsKernel, begun: Flag, said: list[str]) -> None:
    """Let a cell, ``outer``, execute one in another subshell, ``inner``, that doesn't end."""

    @words.cell
    async def outer(cell: ts.Cell) -> None:
        subshells = await ts.current_kernel().subshells()
        [other] = [each for key, each in subshells.items() if key not in (None, cell.subshell.id)]
        await other.execute("inner", silent=True)
        said.append("and on it goes")

    @words.cell
    async def inner(cell: ts.Cell) -> None:
        begun.set()
        await trio.sleep_forever()


@explore_schedules(60)
async def test_a_kernel_that_dies_ends_who_waits_for_another_cell() -> None:
    dies, begun = Flag(), Flag()
    said: list[str] = []

    class Dying(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                if info.is_main:
                    nursery.start_soon(self.die)
                yield
                nursery.cancel_scope.cancel()

        async def die(self) -> None:
            await dies.wait()
            raise ValueError("as was wanted")

    words = Dying()
    waits_for_another_cell(words, begun, said)

    async with client_that_outlives(words) as client:
        await client.create_subshell()
        cell = client.execute_soon("outer", subshell=await client.create_subshell())
        await begun.wait()
        dies.set()
        assert (await cell.done()).ename == "KernelDied"
        await check(client)
    assert not said


@explore_schedules(100)
async def test_a_control_handler_that_fails_ends_who_waits_for_another_cell() -> None:
    words = WordsKernel()
    begun = Flag()
    said: list[str] = []
    waits_for_another_cell(words, begun, said)

    async with simulated_kernel(words) as kernel:
        await kernel.create_subshell()
        cell = kernel.client.execute_soon("outer", subshell=await kernel.create_subshell())
        await begun.wait()
        kernel.faults.fail_actor("control")
        kernel.client.control_soon("list_subshell_request")  # that it has something to do
        await cell.done()
    assert not said


@explore_schedules(40)
async def test_what_is_being_deleted_as_the_control_handler_fails_was_deleted() -> None:
    """That it ends has its reason already, and its client is told no other."""
    words = WordsKernel()

    @words.cell
    async def sticks(cell: ts.Cell) -> None:
        call_into_c(1)
        await trio.sleep_forever()

    async with simulated_kernel(words) as kernel:
        client = kernel.client
        subshell = await kernel.create_subshell()
        cell = client.execute_soon("sticks", subshell=subshell)
        await cell.output("execute_input")
        deleting = client.control_soon("delete_subshell_request", subshell_id=subshell)
        await deleting.busy()
        kernel.faults.fail_actor("control")
        client.control_soon("list_subshell_request")  # that it has something to do
        assert (await cell.done()).ename == "SubshellDeleted"


@explore_schedules(100)
async def test_what_is_in_progress_is_answered_before_the_shutdown() -> None:
    class SlowToSetUp(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if self.executed:
                await trio.sleep(1)
            yield

    async with simulated_kernel(SlowToSetUp()) as kernel:
        client = kernel.client
        subshells = [await kernel.create_subshell() for _ in range(2)]
        cells = [client.execute_soon("wait", subshell=each) for each in subshells]
        for cell in cells:
            await cell.output("execute_input")
        in_progress = [
            client.control_soon("delete_subshell_request", subshell_id=subshells[0]),
            client.control_soon("create_subshell_request"),
            client.control_soon("interrupt_request", subshell_id=subshells[1]),
            client.control_soon("create_subshell_request"),
            client.control_soon("delete_subshell_request", subshell_id=subshells[0]),
        ]
        stopping = client.control_soon("shutdown_request", restart=False)
        assert (await stopping.done()).status == "ok"
        await kernel.wait_closed()
        await check(client)
        for each in in_progress:
            assert answered_before(client, each, stopping)
            # All was ended in time: so what became of it is known.
            assert (await each.reply()).ename in {None, "UnknownSubshell", "RuntimeError"}


@explore_schedules(60, lag=0)
async def test_a_shutdown_waits_for_answers_no_longer_than_until_they_are_given() -> None:
    """Also for those that are errors."""
    begun = Flag()

    class NeverSetUp(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main:
                begun.set()
                await trio.sleep_forever()
            yield

    async with simulated_kernel(NeverSetUp()) as kernel:
        client = kernel.client
        creating = client.control_soon("create_subshell_request")
        await begun.wait()
        before = trio.current_time()
        stopping = client.control_soon("shutdown_request", restart=False)
        assert (await stopping.done()).status == "ok"
        assert trio.current_time() - before < SHUTDOWN_TIMEOUT
        await kernel.wait_closed()
        assert (await creating.done()).ename == "RuntimeError"
        await check(client)


@explore_schedules(60)
async def test_a_kernel_that_is_cancelled_as_it_starts_ends_in_good_order() -> None:
    """Its main shell serves already what has come early."""
    words = SlowToStart()
    network = Network(the_simulation())
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network, scope)
        await words.starting.wait()
        async with early_client(network) as client:
            running, queued = client.execute_soon("wait"), client.execute_soon("next")
            await client.request("kernel_info_request").reply()
            words.started.set()
            await running.output("execute_input")
            scope.cancel()
            assert (await running.done()).ename == "KernelShutdown"
            assert (await queued.done()).status == "aborted"


@pytest.mark.parametrize("slow", [SlowToStart, SlowInAGroup, SlowMainShell])
@explore_schedules(60)
async def test_a_kernel_that_is_cancelled_before_it_has_started_answers_everything(
    slow: type[SlowToStart],
) -> None:
    words = slow()
    network = Network(the_simulation())
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, words, network, scope)
        await words.starting.wait()
        async with early_client(network) as client:
            cells = [client.execute_soon("say") for _ in range(2)]
            await client.request("kernel_info_request").reply()
            creating = client.control_soon("create_subshell_request")
            await creating.busy()
            scope.cancel()
            for cell in cells:
                assert (await cell.done()).status == "aborted"
            assert (await creating.done()).ename in {"RuntimeError", "KernelShutdown"}
    assert words.executed == []


@pytest.mark.parametrize("slow", [SlowToStart, SlowMainShell])
@explore_schedules(60)
async def test_what_is_asked_while_a_start_is_cancelled_has_not_met_a_dead_kernel(
    slow: type[SlowToStart],
) -> None:
    words = slow()
    network = Network(the_simulation())
    scope = trio.CancelScope()
    ended = trio.Event()

    async def serve_and_tell() -> None:
        await serve(words, network, scope)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_and_tell)
        await words.starting.wait()
        async with early_client(network) as client:
            await client.request("kernel_info_request").reply()
            scope.cancel()
            for _ in range(3):
                client.execute_soon("say")
                client.control_soon("create_subshell_request")
            await ended.wait()
            for exchange in client.exchanges[1:]:
                for reply in exchange.replies:  # there is none to what came too late for any
                    ename = reply.content.get("ename", reply.content["status"])
                    assert ename in {"aborted", "UnknownSubshell", "RuntimeError", "KernelShutdown"}
    assert words.executed == []


@pytest.mark.parametrize("steps", [0, 5, 10, 20])
@explore_schedules(200, lag=0)
async def test_a_start_that_is_cancelled_at_any_moment_ends_at_once(steps: int) -> None:
    """Nothing runs yet that would have to be ended, or waited for."""
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, WordsKernel(), Network(the_simulation()), scope)
        await some_steps(steps)
        scope.cancel()
    assert trio.current_time() < SHUTDOWN_TIMEOUT


@explore_schedules(60)
async def test_who_has_come_early_has_not_met_a_dead_kernel_if_the_start_is_cancelled() -> None:
    network = Network(the_simulation())
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, SlowToStart(), network, scope)
        while "shell" not in network.routers:  # noqa: ASYNC110 -- in another thread
            await trio.sleep(0.01)
        async with early_client(network) as client:
            creating = client.control_soon("create_subshell_request")
            await creating.busy()
            scope.cancel()
            assert (await creating.done()).ename in {"RuntimeError", "KernelShutdown"}


@pytest.mark.parametrize("seconds", [0, 0.5, 100])
@explore_schedules(20)
async def test_who_leaves_by_force_leaves_though_all_else_is_cancelled(seconds: float) -> None:
    """However long what has been sent is on its way, and whenever the rest of the kernel ends.

    Its children have as long to end by themselves as the last replies have to leave.
    """
    steps = ["terminate_children", "kill_children", "remove_own_files", "leave_at_once"]
    for patience in (0, _main.LAST_WORDS / 2, _main.LINGER / 2, 2 * _main.LINGER):
        begun = trio.current_time()
        gone_at = begun + seconds
        done: list[tuple[str, tuple[object, ...]]] = []
        times: list[float] = []

        def note(step: str, *args: object, done: Any = done, times: Any = times) -> None:
            done.append((step, args))
            times.append(trio.current_time())

        with mock.patch.multiple(
            _main,
            bytes_on_their_way=lambda until=gone_at: int(trio.current_time() < until),
            **{step: partial(note, step) for step in steps},
        ):
            with trio.move_on_after(patience):
                await _main._leave_by_force(1)
        assert done == list(zip(steps, [(), (0,), (), (1,)], strict=True))
        assert times[0] == begun
        assert times[1] >= begun + _main.LAST_WORDS


@explore_schedules(60)
async def test_who_has_come_early_is_told_that_the_start_has_failed() -> None:
    """What it asks has not only been aborted: there will be no kernel."""
    network = Network(the_simulation())

    class Failing(SlowToStart):
        @asynccontextmanager
        async def lifespan(self, kernel: ts.RunningKernel) -> AsyncIterator[None]:
            async with super().lifespan(kernel):
                raise ValueError("as was wanted")
                yield

    words = Failing()

    async def serve_until_it_fails() -> None:
        with pytest.raises(ValueError, match="as was wanted"):
            await starting.serve(words, network)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_it_fails)
        await words.starting.wait()
        async with early_client(network) as client:
            cells = [client.execute_soon("say") for _ in range(2)]
            await client.request("kernel_info_request").reply()  # now they have come
            words.started.set()
            for cell in cells:
                assert (await cell.done()).ename == "KernelDied"
