"""A living IPython kernel without the runtime: real cells, whose output is recorded."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_subshells.ipython import IPythonKernel
from trio_subshells.kernel import Cell, CellError, SubshellInfo
from trio_subshells.kernel._guard import CellGuard
from trio_subshells.kernel._output import Outlet
from trio_subshells.wire import Header

_numbers = count()


@attrs.define
class Recorder:
    """Stands in for the output port and the prompter of a subshell."""

    published: list[tuple[str, str, dict[str, Any]]] = attrs.field(factory=list)
    """Message type, the request's id, content."""
    answers: list[str] = attrs.field(factory=list)
    prompts: list[tuple[str, bool]] = attrs.field(factory=list)
    is_inherited: bool = False

    def stream(self, name: str, text: str, parent: Header, outlet: Outlet) -> None:
        self.published.append(("stream", parent.msg_id, {"name": name, "text": text}))

    def publish(
        self, msg_type: str, content: Any, *, parent: Header, outlet: Outlet, **rest: Any
    ) -> None:
        self.published.append((msg_type, parent.msg_id, {**content, **rest}))

    def flush(self) -> None:
        """Nothing is held back here."""

    def blocking_ask(self, prompt: str, *, password: bool) -> str:
        self.prompts.append((prompt, password))
        return self.answers.pop(0)


@attrs.frozen
class Ran:
    """What became of a cell."""

    recorder: Recorder
    msg_id: str
    error: CellError | None
    payload: list[Any]
    cell: Cell

    def all(self, msg_type: str) -> list[dict[str, Any]]:
        return [
            content
            for kind, parent, content in self.recorder.published
            if kind == msg_type and parent == self.msg_id
        ]

    def text(self, name: str = "stdout") -> str:
        return "".join(each["text"] for each in self.all("stream") if each["name"] == name)

    @property
    def result(self) -> str | None:
        """As text/plain; None if there is none."""
        results = self.all("execute_result")
        assert len(results) <= 1
        return results[0]["data"]["text/plain"] if results else None

    @property
    def traceback(self) -> str:
        assert self.error is not None
        return "\n".join(self.error.traceback)


@attrs.define
class Shell:
    """Runs cells in one subshell."""

    kernel: IPythonKernel
    info: SubshellInfo
    state: Any
    recorder: Recorder
    count: int = 0

    async def run(self, code: str, **content: Any) -> Ran:
        """Run a cell; its failure is in what is returned."""
        if content.get("store_history", True) and not content.get("silent"):
            self.count += 1
        msg_id = f"request {next(_numbers)}"
        cell = Cell(
            content={"code": code, **content},
            metadata={},
            execution_count=self.count,
            subshell=self.info,
            state=self.state,
            outlet=Outlet(self.recorder, Header(msg_id, "execute_request")),
            prompter=self.recorder,
            guard=CellGuard(),
        )
        error = None
        try:
            await self.kernel.execute(cell)
        except CellError as raised:
            error = raised
        return Ran(self.recorder, msg_id, error, cell.payload, cell)

    async def value(self, expression: str) -> Any:
        """The value of an expression in the namespace, seen from this subshell."""
        await self.run(f"__value = {expression}", store_history=False)
        return self.kernel.shell.user_ns.pop("__value")


@attrs.define
class Living:
    """A kernel within its lifespan."""

    kernel: IPythonKernel
    recorder: Recorder
    main: Shell

    async def elsewhere(self, name: str, body: Callable[[Shell], Awaitable[Any]]) -> Any:
        """Call `body` in a new subshell, in its own thread and trio loop."""

        async def live() -> Any:
            info = SubshellInfo(name)
            async with self.kernel.subshell(info) as state:
                return await body(Shell(self.kernel, info, state, self.recorder))

        return await trio.to_thread.run_sync(trio.run, live)


@asynccontextmanager
async def _living(namespace: dict[str, Any] | None = None) -> AsyncIterator[Living]:
    kernel, recorder = IPythonKernel(namespace), Recorder()
    info = SubshellInfo(None)
    async with kernel.lifespan(None), kernel.subshell(info) as state:
        yield Living(kernel, recorder, Shell(kernel, info, state, recorder))


@pytest.fixture(autouse=True)
def ipython_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep away from the user's profile and history."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path / "ipython"


@pytest.fixture
def open_living():
    """The function that makes a kernel live, for tests that do so themselves."""
    return _living


@pytest.fixture
async def living() -> AsyncIterator[Living]:
    """A living kernel."""
    async with _living() as each:
        yield each


@pytest.fixture
def main(living: Living) -> Shell:
    """Its main shell."""
    return living.main


@pytest.fixture
def threads() -> Callable[[], set[threading.Thread]]:
    """The threads that were started by Python and are alive, without those that trio keeps.

    The others are in the list from when they first ran Python code until a new thread happens to
    get the number of one that has ended.
    """

    def alive() -> set[threading.Thread]:
        return {
            each
            for each in threading.enumerate()
            if not each.name.startswith("Trio thread")
            and not isinstance(each, threading._DummyThread)
        }

    return alive
