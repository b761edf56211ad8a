"""Cells that are small programs, and a kernel that runs them.

A cell's code is ``tag: word, word``. Each word does one thing that cells do: prints, awaits, blocks
its thread, fails, asks. What a cell that is left alone says, and how it ends, follows from its
words (`expected`), so that whatever a client gets can be compared with it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

import trio_subshells as ts
from trio_subshells.testing._simulation import Simulation

FOREVER: Final = 1e6
"""Virtual seconds that something blocks which doesn't end by itself."""

STUCK: Final = 20.0
"""Virtual seconds that a call into C takes: longer than anybody waits for it."""

PRINTING: Final = ("say", "write", "show")
ENDING: Final = ("nap", "doze", "call", "work", "spawn", "task", "shield")
ENDLESS: Final = ("await", "block", "both", "clean", "catch")
ASKING: Final = ("ask", "input")
FAILING: Final = ("fail", "exit")
QUIET: Final = ("nap", "doze", "await", "block", "fail")
"""What handlers of other requests, and of comm messages, can do."""


@attrs.frozen
class Expected:
    """What becomes of a cell that nobody ends.

    Attributes:
        text: what it prints, all together.
        ename: of the error it ends with; None: it ends well.
        ends: whether it ends by itself.
    """

    text: str
    ename: str | None
    ends: bool


def expected(tag: str, words: Sequence[str], *, allow_stdin: bool = True) -> Expected:
    """What a cell's words come to."""
    text = ""
    ends = True
    for number, word in enumerate(words, 1):
        here = f"{tag}.{number}"
        if word in ("say", "catch", "clean"):
            text += f"{here}\n"
        elif word == "write":
            text += here
        elif word in ASKING:
            if not allow_stdin:
                return Expected(text, "InputNotAllowed", ends)
            text += f"{here}? yes\n"
        elif word in FAILING:
            return Expected(text, {"fail": "Failed", "exit": "SystemExit"}[word], ends)
        if word in ENDLESS and word != "catch":  # which makes an interrupt the end of its waiting
            ends = False
        if word == "clean":
            break  # it goes on ending
    return Expected(text, None, ends)


class ProgramKernel(ts.Kernel):
    """Runs the programs. What a subshell yields is a nursery for tasks that outlive their cell."""

    implementation = "programs"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="programs")
    subshells = True

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()

    async def execute(self, cell: ts.Cell) -> None:
        tag, _, words = cell.code.partition(": ")
        for number, word in enumerate(words.split(", "), 1):
            await self._do(word, cell, f"{tag}.{number}")

    async def evaluate(self, cell: ts.Cell, expression: str) -> ts.MimeBundle:
        return {"text/plain": expression}

    async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
        await self._do_quietly(request.code)
        return ts.Completion((), 0, 0)

    async def is_complete(self, request: ts.IsCompleteRequest) -> ts.Completeness:
        await self._do_quietly(request.code)
        return ts.Completeness("complete")

    async def comm_open(self, message: ts.CommMessage) -> None:
        await self._do_quietly(message.data["words"])

    async def comm_message(self, message: ts.CommMessage) -> None:
        await self._do_quietly(message.data["words"])

    async def _do_quietly(self, words: str) -> None:
        for word in words.split(", "):
            await self._do(word, None, "")

    async def _do(self, word: str, cell: ts.Cell | None, here: str) -> None:
        match word:
            case "nap":
                await trio.sleep(0.05)
            case "doze":
                time.sleep(0.05)  # noqa: ASYNC251
            case "await":
                await trio.sleep_forever()
            case "block":
                time.sleep(FOREVER)  # noqa: ASYNC251
            case "fail":
                raise ts.CellError("Failed", "as was wanted", [])
            case "exit":
                raise SystemExit("no")
            case "call":
                call_into_c(0.3)
            case "stuck":
                call_into_c(STUCK)
            case _:
                assert cell is not None, word
                await self._do_in_cell(word, cell, here)

    async def _do_in_cell(self, word: str, cell: ts.Cell, here: str) -> None:
        match word:
            case "say":
                cell.stdout(f"{here}\n")
            case "write":
                cell.stdout(here)
            case "show":
                cell.display({"text/plain": here}, display_id=here)
                cell.update_display({"text/plain": here}, display_id=here)
            case "ask":
                cell.stdout(f"{await cell.input(f'{here}? ')}\n")
            case "input":
                cell.stdout(f"{cell.blocking_input(f'{here}? ')}\n")
            case "work":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep, 0.05)
                    nursery.start_soon(trio.sleep, 0.02)
            case "both":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._do, "block", None, "")
                    nursery.start_soon(self._do, "await", None, "")
            case "task":
                cell.state.start_soon(trio.sleep, 5)
            case "leave":
                cell.state.start_soon(self._do, "block", None, "")
            case "spawn":
                async with ts.spawn_subshell() as subshell:
                    count = len(await ts.current_kernel().subshells()) - 1
                    assert count <= (self.max_subshells or count), "more than there may be"
                    await subshell.execute("inner: nap")
            case "shield":
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
            case "clean":
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.02)
                    cell.stdout(f"{here}\n")
            case "catch":
                try:
                    time.sleep(FOREVER)  # noqa: ASYNC251
                except KeyboardInterrupt:
                    cell.stdout(f"{here}\n")
            case _:
                raise AssertionError(f"there is no word {word!r}")


class TaskProgramKernel(ProgramKernel):
    """Its subshells are tasks of the main shell's loop."""

    subshell_host = ts.TaskHost()


def call_into_c(seconds: float) -> None:
    """Block the simulated thread in what nothing can interrupt."""
    simulation = Simulation.current
    assert simulation is not None
    thread = simulation.thread
    assert thread is not None
    returns = simulation.happening(thread, f"{thread.name} returns from C", lambda: None)
    simulation.add_at(simulation.clock.now + seconds, returns)
    simulation.block(returns, interruptible=False)
