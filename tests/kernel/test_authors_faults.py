"""A kernel author's code raises whatever it likes, wherever it is called: the kernel bears it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.actors import Host, TaskHost, ThreadHost
from trio_subshells.kernel import RunningKernel, open_kernel

from .helpers import HANG, CellsKernel, Flag, served, types


class Unspeakable(Exception):
    """Nothing can be said of it."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise SystemExit


def _recursion() -> None:
    _recursion()


def _raise(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


ERRORS: dict[str, Callable[[], None]] = {
    "Exception": _raise(ValueError("mine")),
    "SystemExit": _raise(SystemExit(3)),
    "KeyboardInterrupt": _raise(KeyboardInterrupt()),
    "GeneratorExit": _raise(GeneratorExit()),
    "StopIteration": _raise(StopIteration()),
    "StopAsyncIteration": _raise(StopAsyncIteration()),
    "BaseException": _raise(BaseException("mine")),
    "BaseExceptionGroup": _raise(BaseExceptionGroup("mine", [SystemExit(3), ValueError("a")])),
    "ExceptionGroup": _raise(ExceptionGroup("mine", [KeyError("a"), ValueError("b")])),
    "MemoryError": _raise(MemoryError()),
    "RecursionError": _recursion,
    "Unspeakable": _raise(Unspeakable()),
    "surrogates": _raise(ValueError("\ud800")),
    "CellError": _raise(ts.CellError("\ud800", "\udfff", ["\ud800"])),
}
errors = pytest.mark.parametrize("error", ERRORS)
hosts = pytest.mark.parametrize("host", [ThreadHost(), TaskHost()], ids=["thread", "task"])


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trio_subshells")


class RaisingKernel(CellsKernel):
    """Raises at the place that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.at = ""
        self.throw = _raise(AssertionError("not told what"))
        self.go = Flag()

        @self.cell
        async def nothing(cell: ts.Cell) -> None:
            pass

        @self.cell
        async def fail(cell: ts.Cell) -> None:
            self.throw()

        @self.cell
        async def fail_later(cell: ts.Cell) -> None:
            await trio.lowlevel.checkpoint()
            self.throw()

        @self.cell
        async def fail_in_the_end(cell: ts.Cell) -> None:
            try:
                await trio.sleep_forever()
            finally:
                self.throw()

        @self.cell
        def uninterruptible(cell: ts.Cell) -> None:
            def cancel() -> None:
                self.go.set()
                self.throw()

            with cell.on_cancel(cancel):
                self.go.block()

    def _at(self, place: str) -> None:
        if self.at == place:
            self.throw()

    @asynccontextmanager
    async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
        self._at("lifespan begins")
        yield
        self._at("lifespan ends")

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[None]:
        if self.at.startswith("main") != info.is_main:
            yield
            return
        self._at("begins")
        self._at("main begins")
        try:
            yield
        finally:
            self._at("ends")
            self._at("main ends")

    async def evaluate(self, cell: ts.Cell, expression: str) -> ts.MimeBundle:
        self.throw()
        return {}

    async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
        self.throw()
        return await super().complete(request)

    async def comm_open(self, message: ts.CommMessage) -> None:
        self.throw()


@errors
@hosts
async def test_in_a_cell(error: str, host: Host) -> None:
    kernel = RaisingKernel()
    kernel.subshell_host = host  # type: ignore[misc]
    kernel.throw = ERRORS[error]
    async with served(kernel) as at:
        client = at.client
        for place in (None, await client.create_subshell()):
            for code in ("fail", "fail_later"):
                cell = client.execute_soon(code, subshell=place)
                reply = (await cell.done()).content
                assert reply["status"] == "error"
                shown = {key: reply[key] for key in ("ename", "evalue", "traceback")}
                assert ("error", shown) in cell.outputs
                if error not in ("surrogates", "CellError"):
                    assert reply["ename"] in (error, "ValueError", "RuntimeError")
            asks = client.request("complete_request", {"code": "a", "cursor_pos": 1})
            assert (await asks.done()).status == "error"
            client.request("comm_open", {"comm_id": "c", "target_name": "t"}, subshell=place)
            evaluates = client.execute_soon(
                "nothing", subshell=place, user_expressions={"a": "b"}, stop_on_error=False
            )
            assert (await evaluates.done()).status in ("ok", "error")
            alive = client.execute_soon("nothing", subshell=place)
            assert (await alive.done()).status == "ok"


@errors
async def test_in_a_cell_that_is_being_ended(error: str) -> None:
    kernel = RaisingKernel()
    kernel.throw = ERRORS[error]
    async with served(kernel) as at:
        client = at.client
        ended = await client.create_subshell()
        cell = client.execute_soon("fail_in_the_end", subshell=ended)
        await cell.output("execute_input")
        await client.control("interrupt_request")
        # Python itself throws GeneratorExit where a coroutine is thrown away: that is let pass.
        expected = "GeneratorExit" if error == "GeneratorExit" else "KeyboardInterrupt"
        assert (await cell.done()).ename == expected
        cell = client.execute_soon("fail_in_the_end", subshell=ended)
        await cell.output("execute_input")
        deleted = (await client.control("delete_subshell_request", subshell_id=ended)).content
        assert deleted["status"] == "ok"
        expected = "GeneratorExit" if error == "GeneratorExit" else "SubshellDeleted"
        assert (await cell.done()).ename == expected
        assert "error" in types(cell)
        assert (await client.execute("nothing")).status == "ok"


@errors
async def test_in_a_canceller(error: str) -> None:
    kernel = RaisingKernel()
    kernel.throw = ERRORS[error]
    async with served(kernel) as at:
        place = await at.client.create_subshell()
        cell = at.client.execute_soon("uninterruptible", subshell=place)
        await cell.output("execute_input")
        assert (await at.client.control("interrupt_request")).status == "ok"
        await cell.done()
        assert (await at.client.execute("nothing", subshell=place)).status == "ok"


@errors
@hosts
async def test_when_a_subshell_is_set_up(error: str, host: Host) -> None:
    kernel = RaisingKernel()
    kernel.subshell_host = host  # type: ignore[misc]
    async with served(kernel) as at:
        client = at.client
        if isinstance(host, TaskHost) and error == "KeyboardInterrupt":
            return  # in the main thread that is Ctrl-C, and ends everything
        lives = await client.create_subshell()
        kernel.throw, kernel.at = ERRORS[error], "begins"
        reply = (await client.control("create_subshell_request")).content
        assert reply["status"] == "error"
        if error != "MemoryError":
            assert "could not be set up" in reply["evalue"]
        with pytest.raises(Exception, match=r"could not be set up|memory"):
            await at.running.create_subshell()
        kernel.at = ""
        assert list(await at.running.subshells()) == [None, lives]
        for place in (None, lives, await client.create_subshell()):
            assert (await client.execute("nothing", subshell=place)).status == "ok"


@errors
@hosts
async def test_when_a_subshell_ends(error: str, host: Host) -> None:
    kernel = RaisingKernel()
    kernel.subshell_host = host  # type: ignore[misc]
    async with served(kernel) as at:
        client = at.client
        if isinstance(host, TaskHost) and error == "KeyboardInterrupt":
            return  # as above
        lives, ends = await client.create_subshell(), await client.create_subshell()
        kernel.throw, kernel.at = ERRORS[error], "ends"
        deleted = (await client.control("delete_subshell_request", subshell_id=ends)).content
        assert deleted["status"] == "ok"
        assert list(await at.running.subshells()) == [None, lives]
        assert (await client.execute("nothing", subshell=lives)).status == "ok"
        kernel.at = ""


@pytest.mark.parametrize("place", ["lifespan begins", "main begins", "main ends", "lifespan ends"])
# Trio's own nurseries can't bear an exception without a repr (0.35): their loop crashes.
@pytest.mark.parametrize("error", sorted(ERRORS.keys() - {"Unspeakable"}))
async def test_when_the_kernel_starts_or_ends(error: str, place: str) -> None:
    kernel = RaisingKernel()
    kernel.throw, kernel.at = ERRORS[error], place
    raised: BaseException | None = None
    with trio.fail_after(HANG):
        try:
            async with open_kernel(kernel) as running:
                assert "begins" not in place
                assert (await running.main.execute("nothing")).status == "ok"
        except BaseException as caught:
            raised = caught
    expected: BaseException | None = None
    try:
        ERRORS[error]()
    except BaseException as caught:
        expected = caught
    assert expected is not None
    if isinstance(expected, StopIteration | StopAsyncIteration):
        assert isinstance(raised, RuntimeError)  # Python's own rule for generators
    elif isinstance(expected, BaseExceptionGroup):
        assert isinstance(raised, BaseExceptionGroup)
    else:
        assert type(raised) is type(expected)


class EndingKernel(CellsKernel):
    """Ends its subshells by itself, as an author may do by mistake."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.scopes: dict[str | None, trio.CancelScope] = {}

        @self.cell
        async def end(cell: ts.Cell) -> None:
            cell.state.cancel()
            await trio.sleep_forever()

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[Any]:
        if self.how == "cancels":
            with trio.CancelScope() as scope:
                yield scope
        else:
            async with trio.open_nursery() as nursery:
                try:
                    yield nursery.cancel_scope
                except BaseException:
                    return


@hosts
@pytest.mark.parametrize("how", ["cancels", "swallows"])
async def test_a_subshell_that_the_author_ends(how: str, host: Host) -> None:
    kernel = EndingKernel(how)
    kernel.subshell_host = host  # type: ignore[misc]
    async with served(kernel) as at:
        client = at.client
        ends = await client.create_subshell()
        reply = (await client.execute("end", subshell=ends)).content
        assert reply["ename"] == "SubshellDied"
        assert "Kernel.subshell() has ended its subshell" in reply["evalue"]
        while ends in await at.running.subshells():
            await trio.lowlevel.checkpoint()
        assert (await client.execute("")).status == "ok"


@pytest.mark.parametrize("how", ["cancels", "swallows"])
async def test_a_main_shell_that_the_author_ends(how: str) -> None:
    with trio.fail_after(HANG), pytest.raises(RuntimeError, match="has ended its subshell"):
        async with open_kernel(EndingKernel(how)) as running:
            await running.main.execute("end")
            await trio.sleep_forever()
