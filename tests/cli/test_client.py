"""The client that the commands drive kernels with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from trio_subshells.cli._client import (
    DrivenKernel,
    KernelDied,
    RequestFailed,
    run_asyncio,
    run_kernel,
)
from trio_subshells.cli._specs import NAME, OwnKernelSpecManager

pytestmark = pytest.mark.process


def drive(program: Callable[[DrivenKernel], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(120), run_kernel(NAME, OwnKernelSpecManager()) as kernel:
            await program(kernel)

    run_asyncio(run())


def test_outputs_belong_to_their_request() -> None:
    async def program(kernel: DrivenKernel) -> None:
        subshell = await kernel.create_subshell()
        first = kernel.execute("for i in range(3): print('first', i)")
        second = kernel.execute("print('second'); 'result'", subshell=subshell)
        third = kernel.execute("import sys; print('third', file=sys.stderr)")
        assert await second.value() == "result"
        await first.ok()
        await third.ok()
        assert first.stdout == "first 0\nfirst 1\nfirst 2\n"
        assert second.stdout == "second\n"
        assert third.stdout == ""
        assert first.state == second.state == "ok"
        assert 0 < second.seconds < 120
        with pytest.raises(RequestFailed, match="no execute_result"):
            await first.value()
        assert await kernel.list_subshells() == [subshell]

    drive(program)


def test_a_request_that_fails() -> None:
    async def program(kernel: DrivenKernel) -> None:
        failing = kernel.execute("print('so far'); 1 / 0")
        await failing.wait_stdout("so far")
        with pytest.raises(RequestFailed, match="ZeroDivisionError: division by zero"):
            await failing.ok()
        assert failing.state == "error"
        with pytest.raises(RequestFailed):
            await kernel.execute("print('this')").wait_stdout("that")
        with pytest.raises(RequestFailed, match="no-such-subshell"):
            await kernel.execute("1", subshell="no-such-subshell").ok()

    drive(program)


def test_a_kernel_that_dies_fails_what_waits_for_it() -> None:
    async def program(kernel: DrivenKernel) -> None:
        dying = kernel.execute("import os; os.write(2, b'last words'); os._exit(5)")
        behind = kernel.execute("'behind'")
        for waiting in (dying.reply(), behind.value(), behind.wait_stdout("x")):
            with pytest.raises(KernelDied) as caught:
                await waiting
            assert (caught.value.code, caught.value.log) == (5, "last words")

    drive(program)


def test_leaving_ends_the_process_whatever_it_does() -> None:
    seen: list[DrivenKernel] = []

    async def program(kernel: DrivenKernel) -> None:
        seen.append(kernel)
        await kernel.execute("print('there'); __import__('time').sleep(1000)").wait_stdout("there")
        raise LookupError("what the program raised")

    with pytest.raises(LookupError, match="what the program raised"):
        drive(program)
    assert seen[0]._process.returncode is not None
