"""The IPython kernel: what Jupyter asks for, answered by IPython.

IPython itself is imported when the kernel starts to live, not with this module: meanwhile the
kernel's own threads answer already.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import trio

from ..kernel import (
    Cell,
    Completeness,
    CompleteRequest,
    Completion,
    HelpLink,
    HistoryEntry,
    HistoryRequest,
    Inspection,
    InspectRequest,
    IsCompleteRequest,
    Kernel,
    LanguageInfo,
    MimeBundle,
    RunningKernel,
    SubshellInfo,
)
from ._activity import Activity, ActivityTracker

if TYPE_CHECKING:
    from ._patches import Filters
    from ._session import Session
    from ._shell import TrioShell

_VERSION = ".".join(map(str, sys.version_info[:3]))


class IPythonKernel(Kernel):
    """Python with IPython: magics, rich display, top-level ``await`` in trio, and subshells.

    All subshells execute in one namespace, each in its own thread and trio loop, and each with its
    own numbers and its own history. What a cell prints, shows and asks goes to that cell, also from
    the tasks and threads that it started.

    While the kernel lives it replaces things of the whole process: `sys.stdout`, `input` and more
    (the module ``trio_subshells.ipython._patches`` has them all). They are given back at its end.
    As IPython has one shell per process, one such kernel can live in a process at a time.

    Args:
        namespace: what the cells execute in: ``globals()`` of a program that the kernel should see
            from inside. It gets IPython's names (``In``, ``get_ipython``...) while the kernel
            lives. By default it is that of a new module, which is ``__main__`` meanwhile.
    """

    implementation = "trio-python"
    implementation_version = "0.1.0"  # the distribution's; its metadata would take 20 ms to read
    language_info = LanguageInfo(
        name="python",
        version=_VERSION,
        mimetype="text/x-python",
        file_extension=".py",
        pygments_lexer="ipython3",
        codemirror_mode={"name": "ipython", "version": 3},
        nbconvert_exporter="python",
    )
    banner = (
        f"Python {_VERSION} in IPython, on trio {trio.__version__}\n"
        "Cells may await. Subshells run beside this one, in the same namespace.\n"
        "Type '?' for help.\n"
    )
    help_links = (
        HelpLink("Python Reference", f"https://docs.python.org/{_VERSION.rpartition('.')[0]}"),
        HelpLink("IPython Reference", "https://ipython.org/documentation.html"),
        HelpLink("Trio Reference", "https://trio.readthedocs.io/en/stable/reference.html"),
        HelpLink("NumPy Reference", "https://numpy.org/doc/stable/reference"),
        HelpLink("SciPy Reference", "https://docs.scipy.org/doc/scipy/reference"),
        HelpLink("Matplotlib Reference", "https://matplotlib.org/stable"),
        HelpLink("pandas Reference", "https://pandas.pydata.org/pandas-docs/stable"),
    )
    subshells: ClassVar[bool] = True
    kernelspec: ClassVar[Mapping[str, Any]] = {
        "display_name": "Python 3 (trio)",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": False},
    }
    resources: ClassVar[Path | None] = Path(__file__).parent / "resources"

    def __init__(self, namespace: dict[str, Any] | None = None) -> None:
        if namespace is not None and type(namespace) is not dict:
            raise TypeError(
                "namespace must be a dict, such as globals() returns, "
                f"not {type(namespace).__name__}"
            )
        self._namespace = namespace
        self._tracker = ActivityTracker()
        self._completing = threading.Lock()
        self._shell: TrioShell | None = None
        self._filters: Filters | None = None

    @property
    def shell(self) -> TrioShell:
        """IPython's shell.

        Raises:
            RuntimeError: the kernel isn't alive.
        """
        if self._shell is None:
            raise RuntimeError("the IPython kernel has a shell only while it is served")
        return self._shell

    # ------------------------------------------------------------------------------------- life

    @asynccontextmanager
    async def lifespan(self, kernel: RunningKernel) -> AsyncIterator[None]:
        """Create IPython's shell, and take over what is the whole process's.

        Raises:
            RuntimeError: another IPython shell lives in this process.
        """
        from IPython.core.interactiveshell import InteractiveShell

        from ._patches import process_patched
        from ._shell import TrioShell

        if InteractiveShell.initialized():
            raise RuntimeError(
                "an IPython shell lives in this process already "
                f"({type(InteractiveShell.instance()).__qualname__}), and IPython allows for one"
            )
        shell = TrioShell.instance(tracker=self._tracker, namespace=self._namespace)
        atexit.register(shell.close)  # if the process ends by force
        try:
            with (
                shell.history_store,
                process_patched(shell, own_main=self._namespace is None) as self._filters,
            ):
                self._shell = shell
                yield
                shell.main_session.history.end_session()
        finally:
            self._shell = None
            atexit.unregister(shell.close)
            shell.close()
            TrioShell.clear_instance()

    @asynccontextmanager
    async def subshell(self, info: SubshellInfo) -> AsyncIterator[Session]:
        """Give a subshell its numbers and its history."""
        session = self.shell.new_session(info)
        try:
            yield session
        finally:
            if not info.is_main:  # the main shell's ends with the kernel
                session.history.end_session()

    # ------------------------------------------------------------------------------------ cells

    async def execute(self, cell: Cell) -> None:
        """Execute a cell of Python, with all that IPython adds."""
        await self.shell.execute(cell, cell.state)

    async def evaluate(self, cell: Cell, expression: str) -> MimeBundle:
        """Evaluate an expression in the namespace."""
        return self.shell.evaluate(cell, cell.state, expression)

    # ------------------------------------------------------------------------- about the code

    async def complete(self, request: CompleteRequest) -> Completion:
        """Complete by IPython's completer, which looks at the code and at the living objects."""
        from IPython.core.completer import rectify_completions

        from ._patches import JEDI_LOOKS_AT_CODE

        completer = self.shell.Completer
        # The completer keeps what it is about in its attributes.
        with self._tracker.entered(Activity(request.state)), self._completing:
            if completer.use_jedi and self._filters is not None:
                self._filters.keep_from(*JEDI_LOOKS_AT_CODE)
            found = list(
                rectify_completions(
                    request.code, completer.completions(request.code, request.cursor_pos)
                )
            )
        if not found:
            return Completion((), request.cursor_pos, request.cursor_pos)
        types = [
            {
                "start": each.start,
                "end": each.end,
                "text": each.text,
                "type": each.type,
                "signature": each.signature,
            }
            for each in found
        ]
        return Completion(
            [each.text for each in found],
            found[0].start,
            found[0].end,
            {"_jupyter_types_experimental": types},
        )

    async def inspect(self, request: InspectRequest) -> Inspection:
        """Describe the object that is named at the cursor."""
        from IPython.utils.tokenutil import token_at_cursor

        name = token_at_cursor(request.code, request.cursor_pos)
        with self._tracker.entered(Activity(request.state)):
            try:
                data = self.shell.described(name, request.detail_level)
            except KeyError:
                return Inspection()
        return Inspection(found=True, data=data)

    async def is_complete(self, request: IsCompleteRequest) -> Completeness:
        """Tell whether another line is wanted, magics considered."""
        with self._tracker.entered(Activity(request.state)):
            status, indent = self.shell.check_complete(request.code)
        return Completeness(cast("Any", status), indent)

    async def history(
        self, request: HistoryRequest, executed: Sequence[HistoryEntry]
    ) -> Sequence[HistoryEntry]:
        """Look up this subshell's history, and that of earlier sessions in IPython's database."""
        history = request.state.history
        raw, output = request.raw, request.output
        found: Iterable[tuple[int, int, Any]]
        if request.access == "range":
            found = history.get_range(
                request.session, request.start or 1, request.stop, raw=raw, output=output
            )
        elif request.access == "tail":
            found = history.get_tail(request.n, raw=raw, output=output, include_latest=True)
        else:
            found = history.search(
                request.pattern, raw=raw, output=output, n=request.n, unique=request.unique
            )
        return [
            # IPython says 0 for the current session; a client can't ask for that number elsewhere.
            HistoryEntry(session or history.session_number, line, *(text if output else (text,)))
            for session, line, text in found
        ]
