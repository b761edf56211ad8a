"""The base class of all kernels: what their authors subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..actors import Host, ThreadHost
from ._types import (
    CommMessage,
    Completeness,
    CompleteRequest,
    Completion,
    HelpLink,
    HistoryEntry,
    HistoryRequest,
    Inspection,
    InspectRequest,
    IsCompleteRequest,
    LanguageInfo,
    MimeBundle,
    SubshellInfo,
)

if TYPE_CHECKING:
    from ._cell import Cell
    from ._running import RunningKernel


class Kernel(ABC):
    """A Jupyter kernel: subclass it, say what it is, and write `execute`.

    One instance serves all subshells. Its methods run in the subshell that the request is for: in
    that subshell's thread and trio loop. So what they share on `self` is shared between threads;
    what belongs to one subshell is better yielded by `subshell`, and found as ``state``.

    Within a subshell, requests are served one after the other, after the comm messages that came
    before them; comm messages that come later are served whenever `execute` awaits. A method that
    is cancelled (by an interrupt, or because its subshell is deleted) must let `trio.Cancelled`
    pass.
    """

    implementation: str
    """The kernel's name, as in ``kernel_info_reply``."""

    implementation_version: str = ""
    """The kernel's version."""

    banner: str = ""
    """What a console shows when it starts."""

    language_info: LanguageInfo
    """The language."""

    help_links: Sequence[HelpLink] = ()
    """For a frontend's help menu."""

    subshells: ClassVar[bool] = False
    """Whether clients may create subshells (JEP 91); advertised only if so. Opt in when `execute`
    can run in several threads at once."""

    subshell_host: ClassVar[Host] = ThreadHost()
    """Where a subshell lives: a thread of its own; or, with `TaskHost`, a task of the main shell's
    loop, for kernels that are wholly asynchronous."""

    largest_frame: ClassVar[int] = 1 << 30
    """Bytes that a frame of a client's message may have: a cell's code, or a buffer of a comm
    message. ZMQ closes the connection of a client that sends a larger one, before there is room
    made for it."""

    max_subshells: int | None = 2000
    """How many subshells there may be at once, the main shell not counted; None for as many as the
    machine has room for. ``--max-subshells`` on the command line overrides it."""

    supported_features: Sequence[str] = ()
    """Further optional features (JEP 92) to advertise."""

    kernelspec: ClassVar[Mapping[str, Any]] = {}
    """What ``install`` writes into ``kernel.json`` besides the command: ``display_name``,
    ``metadata``..."""

    resources: ClassVar[Path | None] = None
    """A directory whose files ``install`` puts beside ``kernel.json``: ``logo-svg.svg``..."""

    @abstractmethod
    async def execute(self, cell: Cell) -> None:
        """Execute a cell.

        Returning is success. An exception is the error reply and the ``error`` message;
        `CellError` chooses what these say.
        """

    @asynccontextmanager
    async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
        """Around the whole life of the kernel, in the loop of the main shell: entered before the
        first request is served, left after the last subshell is gone.

        Until it has yielded there are no shells: what it starts may use those of `kernel` then.
        """
        yield

    @asynccontextmanager
    async def subshell(self, info: SubshellInfo) -> AsyncIterator[Any]:
        """Around the whole life of one subshell (the main shell too), in its own thread and loop.

        What it yields is the ``state`` of the subshell's cells and requests. It is left cancelled
        when the subshell is deleted.
        """
        yield None

    async def evaluate(self, cell: Cell, expression: str) -> MimeBundle:
        """Evaluate one of the cell's user expressions, after the cell was executed without error.

        An exception is that expression's error, not the cell's.
        """
        raise NotImplementedError(f"{self.implementation} doesn't evaluate user expressions")

    async def complete(self, request: CompleteRequest) -> Completion:
        """Complete the code at the cursor. By default nothing matches."""
        return Completion((), request.cursor_pos, request.cursor_pos)

    async def inspect(self, request: InspectRequest) -> Inspection:
        """Describe the thing at the cursor. By default nothing is found."""
        return Inspection()

    async def is_complete(self, request: IsCompleteRequest) -> Completeness:
        """Tell whether code is complete. By default ``unknown``: the frontend decides."""
        return Completeness("unknown")

    async def history(
        self, request: HistoryRequest, executed: Sequence[HistoryEntry]
    ) -> Sequence[HistoryEntry]:
        """Look up history.

        Args:
            request: what is looked for.
            executed: what this subshell has executed since it was created; the default looks there.
        """
        if request.access == "range":
            if request.session != 0:
                return ()
            return [
                entry
                for entry in executed
                if request.start <= entry.line
                and (request.stop is None or entry.line < request.stop)
            ]
        found = list(executed)
        if request.access == "search":
            found = [entry for entry in found if fnmatchcase(entry.input, request.pattern)]
            if request.unique:
                found = list({entry.input: entry for entry in found}.values())
        if request.n is not None:
            found = found[len(found) - request.n :] if 0 < request.n < len(found) else found
            found = [] if request.n <= 0 else found
        return found

    async def comm_info(self, target_name: str | None) -> Mapping[str, Mapping[str, Any]]:
        """The open comms, by id: ``{comm_id: {"target_name": ...}}``; of one target, if named."""
        return {}

    async def comm_open(self, message: CommMessage) -> None:
        """A client opens a comm. By default it is ignored: the kernel has no targets."""
        return

    async def comm_message(self, message: CommMessage) -> None:
        """A client says something on a comm. By default it is ignored."""
        return

    async def comm_close(self, message: CommMessage) -> None:
        """A client closes a comm. By default it is ignored."""
        return
