"""What JEP 91 says of subshells, sentence by sentence where no other module has it."""

from __future__ import annotations

import threading

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import TaskHost

from .helpers import CellsKernel, Flag, served


class PlainKernel(CellsKernel):
    """Its author has not opted in."""

    subshells = False


@pytest.mark.parametrize("channel", ["shell", "control"])
async def test_without_the_author_s_consent_nothing_is_advertised(channel: str) -> None:
    advertised = [
        "kernel subshells",
        "trio_subshells.interrupt_subshell",
        "trio_subshells.delete_timeout",
    ]
    for kernel, features in ((PlainKernel(), []), (CellsKernel(), advertised)):
        async with served(kernel) as here:
            request = here.client.request("kernel_info_request", channel=channel)  # type: ignore[arg-type]
            info = (await request.done()).content
            assert (info["supported_features"], info["protocol_version"]) == (features, "5.6")


async def test_a_kernel_without_subshells_doesn_t_know_their_requests() -> None:
    async with served(PlainKernel()) as here:
        for action in ("create", "delete", "list"):
            reply = (
                await here.client.control(f"{action}_subshell_request", subshell_id="x")
            ).content
            assert (reply["status"], reply["ename"]) == ("error", "UnknownMessageType")


async def test_a_kernel_without_subshells_ignores_the_ids_in_requests() -> None:
    """JEP 91, "Kernels not supporting subshells": any use of a subshell_id will be ignored."""
    kernel = PlainKernel()

    @kernel.cell
    def hello(cell: ts.Cell) -> None:
        cell.stdout(f"in {cell.subshell.name}")

    async with served(kernel) as here:
        by_header = here.client.execute_soon("hello", subshell="unknown")
        by_content = here.client.request(
            "execute_request", {"code": "hello", "subshell_id": "unknown"}
        )
        for request in (by_header, by_content):
            assert (await request.done()).status == "ok"
            assert request.text() == "in main"
        info = here.client.request("kernel_info_request", subshell="unknown")
        assert (await info.done()).status == "ok"


class LoopKernel(CellsKernel):
    """Its subshells are tasks of the main shell's loop."""

    subshell_host = TaskHost()


async def test_a_subshell_may_be_a_task_of_the_main_shell_s_loop() -> None:
    kernel = LoopKernel()
    inside, go_on = Flag(), Flag()
    threads: list[threading.Thread] = []

    @kernel.cell
    async def wait(cell: ts.Cell) -> None:
        threads.append(threading.current_thread())
        inside.set()
        await go_on.wait()

    @kernel.cell
    async def look(cell: ts.Cell) -> None:
        threads.append(threading.current_thread())
        cell.stdout(f"{cell.execution_count} in {cell.subshell.name}")

    async with served(kernel) as here:
        subshell_id = await here.client.create_subshell()
        waiting = here.client.execute_soon("wait")
        await inside.wait()
        looking = here.client.execute_soon("look", subshell=subshell_id)
        assert (await looking.done()).status == "ok"
        assert looking.text() == f"1 in {subshell_id}"
        go_on.set()
        assert (await waiting.done()).status == "ok"
    assert threads == [threading.current_thread()] * 2


async def test_the_delete_of_a_task_is_that_of_a_thread() -> None:
    kernel = LoopKernel()
    inside = Flag()

    @kernel.cell
    async def forever(cell: ts.Cell) -> None:
        inside.set()
        await trio.sleep_forever()

    async with served(kernel) as here:
        subshell_id = await here.client.create_subshell()
        running = here.client.execute_soon("forever", subshell=subshell_id)
        queued = here.client.execute_soon("forever", subshell=subshell_id)
        await inside.wait()
        deleted = here.client.control_soon("delete_subshell_request", subshell_id=subshell_id)
        assert (await deleted.done()).status == "ok"
        assert (await running.done()).ename == "SubshellDeleted"
        assert (await queued.done()).status == "aborted"
        assert (await here.client.control("list_subshell_request")).content["subshell_id"] == []
