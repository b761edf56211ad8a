"""A cell: what `Kernel.execute` is given, and its way to publish and to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..wire import Buffer, Header
from ._guard import protected
from ._types import InputNotAllowed, Json, MimeBundle, SubshellInfo

if TYPE_CHECKING:
    from ._guard import CellGuard
    from ._output import Outlet
    from ._stdin import Prompter


class Cell:
    """One execution, from its ``execute_request`` to its reply.

    Publishing is synchronous and never blocks: it may be done from any thread, and after the cell
    has ended too (what a background task prints still goes to its cell). Only of a cell that could
    not be ended, and was given up, nothing is heard any more. Asking for input waits.

    Of a silent cell nothing is published, as the protocol wants it.

    Attributes:
        code: what to execute.
        header: the request's header: the parent of everything that the cell publishes.
        execution_count: the cell's number in its subshell.
        silent: whether to execute as quietly as possible.
        store_history: whether it belongs into the history.
        allow_stdin: whether the client can answer a prompt.
        user_expressions: what to evaluate afterwards, by name.
        metadata: of the request.
        subshell: where it runs.
        state: what the kernel's `Kernel.subshell` yielded for that subshell.
    """

    def __init__(
        self,
        *,
        content: Json,
        metadata: Json,
        execution_count: int,
        subshell: SubshellInfo,
        state: Any,
        outlet: Outlet,
        prompter: Prompter,
        guard: CellGuard,
    ) -> None:
        self.code: str = content["code"]
        self.silent: bool = content.get("silent", False)
        self.store_history: bool = content.get("store_history", True) and not self.silent
        self.allow_stdin: bool = content.get("allow_stdin", True)
        self.user_expressions: Mapping[str, str] = content.get("user_expressions") or {}
        self.metadata = metadata
        self.header: Header = outlet.parent
        self.execution_count = execution_count
        self.subshell = subshell
        self.state = state
        self.payload: list[Mapping[str, Any]] = []
        self._outlet = outlet
        self._prompter = prompter
        self._guard = guard

    # ---------------------------------------------------------------------------- publishing

    def stdout(self, text: str) -> None:
        """Write to the cell's standard output.

        Writes that follow each other closely are sent as one ``stream`` message; nothing waits for
        longer than some hundredths of a second.
        """
        self.stream("stdout", text)

    def stderr(self, text: str) -> None:
        """Write to the cell's standard error, likewise."""
        self.stream("stderr", text)

    def stream(self, name: str, text: str) -> None:
        """Write to the stream ``stdout`` or ``stderr``."""
        if name not in ("stdout", "stderr"):
            raise ValueError(f"a stream's name is 'stdout' or 'stderr', not {name!r}")
        if not isinstance(text, str):
            raise TypeError(f"a stream takes str, not {type(text).__name__}")
        if text and not self.silent:
            with protected():
                self._outlet.stream(name, text)

    def display(
        self,
        data: MimeBundle,
        *,
        metadata: Json | None = None,
        display_id: str | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Show something: ``display_data``.

        Args:
            data: representations by mimetype; ``text/plain`` should be among them.
            metadata: by mimetype.
            display_id: a name by which `update_display` can replace it later, in any cell.
            buffers: binary data.
        """
        self._show("display_data", data, metadata, display_id, buffers)

    def update_display(
        self,
        data: MimeBundle,
        *,
        display_id: str,
        metadata: Json | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Replace what was shown as `display_id`: ``update_display_data``."""
        self._show("update_display_data", data, metadata, display_id, buffers)

    def result(
        self, data: MimeBundle, *, metadata: Json | None = None, display_id: str | None = None
    ) -> None:
        """Publish the cell's result: ``execute_result``."""
        content: dict[str, Any] = {
            "data": data,
            "metadata": metadata or {},
            "execution_count": self.execution_count,
        }
        if display_id is not None:
            content["transient"] = {"display_id": display_id}
        self.publish("execute_result", content)

    def clear_output(self, *, wait: bool = False) -> None:
        """Clear the cell's output; with `wait`, as soon as there is new output."""
        self.publish("clear_output", {"wait": wait})

    def _show(
        self,
        msg_type: str,
        data: MimeBundle,
        metadata: Json | None,
        display_id: str | None,
        buffers: Sequence[Buffer],
    ) -> None:
        transient = {} if display_id is None else {"display_id": display_id}
        content = {"data": data, "metadata": metadata or {}, "transient": transient}
        self.publish(msg_type, content, buffers=buffers)

    def publish(
        self,
        msg_type: str,
        content: Json,
        *,
        metadata: Json | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Publish any iopub message with this cell as its parent.

        Raises:
            trio_subshells.wire.EncodeError: the content can't be turned into JSON.
        """
        if self.silent:
            return
        with protected():
            self._outlet.publish(msg_type, content, metadata=metadata, buffers=buffers)

    # -------------------------------------------------------------------------------- asking

    async def input(self, prompt: str = "") -> str:
        """Ask the client for a line of text. Cancelled, the prompt is withdrawn.

        Raises:
            InputNotAllowed: the request says that its client can't answer, or this is a forked
                child process.
        """
        self._check_stdin()
        return await self._ask(prompt, password=False)

    async def getpass(self, prompt: str = "") -> str:
        """Ask the client for a password, which it doesn't show. Otherwise as `input`."""
        self._check_stdin()
        return await self._ask(prompt, password=True)

    async def _ask(self, prompt: str, *, password: bool) -> str:
        with protected():  # the scope is what ends this
            return await self._prompter.ask(prompt, password=password)

    def blocking_input(self, prompt: str = "", *, password: bool = False) -> str:
        """Ask the client from code that can't await; it blocks this thread until the answer comes.

        For languages whose ``input()`` is synchronous. An interrupt ends it (`KeyboardInterrupt`).

        Raises:
            InputNotAllowed: the request says that its client can't answer, or this is a forked
                child process.
        """
        self._check_stdin()
        return self._prompter.blocking_ask(prompt, password=password)

    def _check_stdin(self) -> None:
        if not self.allow_stdin:
            raise InputNotAllowed(
                "input was asked for, but the client that sent this request can't give any "
                "(allow_stdin is false)"
            )
        if self._outlet.port.is_inherited:
            raise InputNotAllowed(
                "input was asked for in a forked child process, but only its parent has a client"
            )
        if not self.silent:
            with protected():
                self._outlet.port.flush()

    # -------------------------------------------------------------------------- cancellation

    @contextmanager
    def on_cancel(self, canceller: Callable[[], object]) -> Iterator[None]:
        """Within this block, an interrupt or a delete first calls `canceller`, in another thread.

        For work that can't await and knows how to be stopped, such as a database's:
        ``cell.on_cancel(connection.interrupt)``. It must be quick and thread-safe. The work it
        stops should raise, or return early.
        """
        with self._guard.canceller(canceller):
            yield

    def __repr__(self) -> str:
        first = self.code.splitlines()[0] if self.code.strip() else ""
        return f"<Cell [{self.execution_count}] of {self.subshell.name}: {first[:40]!r}>"
