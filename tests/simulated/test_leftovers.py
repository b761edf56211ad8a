"""What cells leave running in the author's nursery ends with their subshell, and is no failure."""

from __future__ import annotations

import pytest

from trio_subshells.testing import check_protocol, explore, simulated_kernel

from .programs import ProgramKernel


@pytest.mark.parametrize("in_subshell", [True, False])
def test_what_awaits_is_cancelled(in_subshell: bool) -> None:
    async def body() -> None:
        async with simulated_kernel(ProgramKernel()) as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            assert (await kernel.client.execute("1: task", subshell=subshell)).status == "ok"
            # While the shell is in a call, who ends it loses patience.
            cell = kernel.client.execute_soon("2: call", subshell=subshell)
            await cell.output("execute_input")
            if subshell is not None:
                assert (await kernel.delete_subshell(subshell)).status == "ok"
            await kernel.shutdown()
            await cell.done()
            check_protocol(kernel.client)

    explore(body, schedules=60)


@pytest.mark.parametrize("in_subshell", [True, False])
@pytest.mark.parametrize("how", ["interrupt", "timeout"])
def test_what_computes_is_struck(how: str, in_subshell: bool) -> None:
    """Together with its cell. It isn't a part of that, and nobody's failure."""

    async def body() -> None:
        async with simulated_kernel(ProgramKernel()) as kernel:
            subshell = await kernel.create_subshell() if in_subshell else None
            timeout = 1 if how == "timeout" else None
            cell = kernel.client.execute_soon("1: leave, await", subshell=subshell, timeout=timeout)
            await cell.output("execute_input")
            if how == "interrupt":
                await kernel.client.control("interrupt_request")
            assert (await cell.done()).status == "error"
            assert (await kernel.client.execute("2: nap", subshell=subshell)).status == "ok"
            await kernel.shutdown()
            check_protocol(kernel.client)

    explore(body, schedules=60)
