"""Creating subshells: while others are created, fail, are deleted, or the kernel shuts down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import ActorTerminated, TaskHost
from trio_subshells.kernel import SubshellState, TooManySubshells
from trio_subshells.kernel._ladder import SHUTDOWN_TIMEOUT
from trio_subshells.testing import explore_schedules, simulated_kernel

from .kernels import Flag, WordsKernel, check


class SlowToCome(WordsKernel):
    """The set-up of its subshells takes a while, and fails if it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.coming = Flag()
        self.ids: list[str] = []

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        if info.id is not None:
            self.ids.append(info.id)
            self.coming.set()
            await trio.sleep(0.5)
            if self.fails:
                raise ValueError("no")
        yield None


@explore_schedules(40)
async def test_an_id_is_never_given_twice() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        first = kernel.client.control_soon("create_subshell_request")
        second = await kernel.create_subshell()
        await first.reply()
        await kernel.delete_subshell(second)
        third = await kernel.create_subshell()
        assert sorted(await kernel.subshells()) == sorted(
            [first.replies[0].content["subshell_id"], third]
        )
        await check(kernel.client)


@explore_schedules(40)
async def test_what_has_failed_in_its_set_up_is_gone() -> None:
    words = SlowToCome()
    words.fails = True
    async with simulated_kernel(words) as kernel:
        creating = kernel.client.control_soon("create_subshell_request")
        assert (await creating.reply()).ename == "RuntimeError"
        assert await kernel.subshells() == []
        assert len(kernel.threads) == 2
        words.fails = False
        assert await kernel.subshells() == []
        await kernel.create_subshell()
        await check(kernel.client)


@explore_schedules(60)
async def test_a_delete_overtakes_a_create() -> None:
    words = SlowToCome()
    async with simulated_kernel(words) as kernel:
        creating = kernel.client.control_soon("create_subshell_request")
        await words.coming.wait()
        [subshell] = words.ids  # which the author's code knows before the control handler does
        deleted = (await kernel.delete_subshell(subshell)).status == "ok"
        created = (await creating.reply()).status == "ok"
        assert created or deleted
        assert await kernel.subshells() == ([] if deleted else [subshell])
        assert len(kernel.threads) == (2 if deleted else 3)
        await check(kernel.client)


@explore_schedules(40)
async def test_a_set_up_that_hangs_keeps_nobody() -> None:
    begun, released = Flag(), Flag()

    class Hanging(WordsKernel):
        @asynccontextmanager
        async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
            if not info.is_main and not begun.is_set():
                begun.set()
                await released.wait()
            yield None

    async with simulated_kernel(Hanging()) as kernel:
        hanging = kernel.client.control_soon("create_subshell_request")
        await begun.wait()
        assert (await kernel.client.control("kernel_info_request")).status == "ok"
        second = await kernel.create_subshell()
        assert (await kernel.interrupt()).status == "ok"
        assert not hanging.replies
        released.set()
        assert (await hanging.done()).status == "ok"
        first = hanging.replies[0].content["subshell_id"]
        assert await kernel.subshells() == [first, second]
        await check(kernel.client)


@explore_schedules(60)
async def test_there_are_never_more_than_the_maximum() -> None:
    words = SlowToCome()
    words.max_subshells = 1
    created: list[ts.SubshellHandle] = []

    async def create(running: ts.RunningKernel) -> None:
        with suppress(TooManySubshells):
            created.append(await running.create_subshell())

    async with simulated_kernel(words) as kernel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create, kernel.running)
            nursery.start_soon(create, kernel.running)
            by_client = await kernel.client.control("create_subshell_request")
        assert len(created) + (by_client.status == "ok") == 1
        assert len(await kernel.subshells()) == 1
        await check(kernel.client)


@explore_schedules(30)
async def test_what_could_not_be_started_takes_no_room() -> None:
    words = WordsKernel()
    words.max_subshells = 1
    async with simulated_kernel(words, descriptors=0) as kernel:
        refused = await kernel.client.control("create_subshell_request")
        assert refused.ename == "TooManySubshells"
        kernel.network.descriptors = 100
        await kernel.create_subshell()
        assert (await kernel.client.control("create_subshell_request")).status == "error"
        await check(kernel.client)


@explore_schedules(30, lag=0)
async def test_what_could_not_be_started_is_not_waited_for() -> None:
    async with simulated_kernel(WordsKernel(), descriptors=0) as kernel:
        refused = await kernel.client.control("create_subshell_request")
        assert refused.ename == "TooManySubshells"
        start = trio.current_time()
        await kernel.shutdown()
        assert trio.current_time() - start < SHUTDOWN_TIMEOUT
        await check(kernel.client)


class Reluctant(TaskHost):
    """Has no place for an actor, at first."""

    refused = False

    async def run(
        self,
        body: Callable[[], Awaitable[None]],
        *,
        name: str,
        attach: Callable[[], AbstractContextManager[None]],
    ) -> None:
        if not Reluctant.refused:
            Reluctant.refused = True
            raise RuntimeError("there is no place for it")
        await super().run(body, name=name, attach=attach)


@explore_schedules(30)
async def test_what_its_host_has_no_place_for_is_the_failure_of_its_create_alone() -> None:
    Reluctant.refused = False

    class Refused(WordsKernel):
        subshell_host = Reluctant()

    async with simulated_kernel(Refused()) as kernel:
        client = kernel.client
        cell = client.execute_soon("sleep 1")
        refused = await client.control("create_subshell_request")
        assert refused.content["evalue"] == "there is no place for it"
        subshell = await kernel.create_subshell()
        assert await kernel.subshells() == [subshell]
        assert (await cell.done()).status == "ok"
        await check(client)


@explore_schedules(60)
async def test_a_create_that_is_cancelled_leaves_nothing() -> None:
    async with simulated_kernel(SlowToCome()) as kernel:
        created: list[ts.SubshellHandle] = []

        async def create(scope: trio.CancelScope) -> None:
            with scope:
                created.append(await kernel.running.create_subshell())

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(create, scope)
            await kernel.subshells()
            scope.cancel()
        assert len(await kernel.running.subshells()) == 1 + len(created)
        await check(kernel.client)


@explore_schedules(60)
async def test_a_block_that_is_cancelled_leaves_nothing() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        handles: list[ts.SubshellHandle] = []
        with trio.CancelScope() as scope:
            async with kernel.running.spawn_subshell() as subshell:
                handles.append(subshell)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(subshell.execute, "wait")
                    await kernel.subshells()
                    scope.cancel()
        assert handles[0].state is SubshellState.DELETED
        assert await kernel.subshells() == []
        await check(kernel.client)


@pytest.mark.parametrize("cancelled", [False, True], ids=["left", "cancelled"])
@explore_schedules(40)
async def test_a_block_is_left_when_its_subshell_has_ended(cancelled: bool) -> None:
    """However long what runs there can't be ended."""
    async with simulated_kernel(WordsKernel()) as kernel:
        with trio.CancelScope() as scope:
            async with kernel.running.spawn_subshell() as subshell:
                stuck = kernel.client.execute_soon("stick 20", subshell=subshell.id)
                await stuck.output("execute_input")
                if cancelled:
                    scope.cancel()
        assert subshell.state is SubshellState.DELETED
        assert not any(str(subshell.id) in name for name in kernel.threads)
        assert await kernel.subshells() == []
        await check(kernel.client)


@explore_schedules(150)
async def test_a_shutdown_overtakes_creates() -> None:
    async with simulated_kernel(SlowToCome()) as kernel:
        client = kernel.client
        creates = [client.control_soon("create_subshell_request") for _ in range(2)]
        stopping = client.control_soon("shutdown_request", restart=False)
        assert (await stopping.reply()).status == "ok"
        assert not any("subshell" in name for name in kernel.threads)
        for create in creates:
            await create.done()
        await check(kernel.client)


@explore_schedules(40)
async def test_creates_are_served_in_their_order() -> None:
    async with simulated_kernel(WordsKernel()) as kernel:
        creates = [kernel.client.control_soon("create_subshell_request") for _ in range(3)]
        ids = [(await create.reply()).content["subshell_id"] for create in creates]
        assert await kernel.subshells() == ids
        await check(kernel.client)


@explore_schedules(100)
async def test_a_shutdown_waits_for_what_a_handle_has_begun_to_start() -> None:
    """Nobody on the control channel waits for an answer, which would have come after that."""
    async with simulated_kernel(WordsKernel()) as kernel, trio.open_nursery() as nursery:

        async def create() -> None:
            with suppress(RuntimeError, ActorTerminated):  # the kernel is shutting down
                await kernel.running.create_subshell()

        for _ in range(2):
            nursery.start_soon(create)
        assert (await kernel.shutdown()).status == "ok"
        assert not any("subshell" in name for name in kernel.threads)
        await check(kernel.client)


@explore_schedules(40)
async def test_a_create_in_progress_is_answered_though_the_control_handler_fails() -> None:
    async with simulated_kernel(SlowToCome()) as kernel:
        create = kernel.client.control_soon("create_subshell_request")
        await create.busy()
        kernel.faults.fail_actor("control")
        kernel.client.control_soon("list_subshell_request")  # that it has something to do
        await create.done()
