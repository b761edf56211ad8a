"""IPython's `InteractiveShell`, made to serve the cells of several threads at once.

There is one shell per kernel, as there is one namespace: a shell per subshell would cost some 50 ms
and two database connections each, and would duplicate what should be common (magics, extensions,
configuration). What belongs to one subshell or one cell is kept by its `Session` and `Activity`;
here the attributes in which IPython keeps it become properties that look it up.

IPython was written for one cell at a time. Around each cell it puts its display hook, its builtins
and its `excepthook` in place, and takes them away again: that would pull them from under the cells
of other threads. Here these stay in place for the kernel's whole life (see `_patches`), and the
places in IPython that would change them do nothing.
"""

# IPython's functions have no annotations of their own.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import ast
import atexit
import inspect
import os
import re
import sys
import time
import traceback
from bdb import BdbQuit
from collections.abc import Coroutine
from contextlib import nullcontext
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, Literal, Self

import trio
from IPython.core import page
from IPython.core.autocall import ExitAutocall, ZMQExitAutocall
from IPython.core.builtin_trap import BuiltinTrap
from IPython.core.compilerop import CachingCompiler, PyCF_MASK
from IPython.core.display_trap import DisplayTrap
from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell
from IPython.core.payload import PayloadManager
from traitlets import Instance, TraitError, Type, default, validate

from ..kernel import Cell, CellError, SubshellInfo
from ..kernel._errors import text_of
from ..kernel._fork import leave_child
from ..kernel._guard import is_about_to_end, protected
from ..kernel._raisers import without_our_frames
from ._activity import Activity, ActivityTracker
from ._display import CellDisplayHook, CellDisplayPublisher, CellPayloads
from ._history import HistoryStore, SessionHistory
from ._magics import KernelMagics
from ._session import InProxy, OutProxy, Session

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

ATTEMPTS_TO_PARSE: Final = 100
"""After which it is no coincidence."""

_CELL_FILE = re.compile(r'File "<ipython-input-(\d+)-[0-9a-f]+>"')

_FOREIGN_LOOP_NOTE = (
    "Cells of this kernel await in trio, not in asyncio. Use what trio has for it, "
    "as trio.sleep() for asyncio.sleep(), or run it in a thread: "
    "await trio.to_thread.run_sync(asyncio.run, coroutine)"
)


class _TrioRunner:
    """What ``%autoawait`` names as the loop of top-level ``await``.

    It runs no cell, as the subshell's loop does that. It is only asked to if a cell calls
    ``get_ipython().run_cell()``, which isn't async, with code that awaits.
    """

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        coroutine.close()
        raise RuntimeError(
            "get_ipython().run_cell() can't await, as this thread's trio loop runs already; "
            "use: await get_ipython().run_cell_async(code, transformed_cell=code)"
        )

    def __str__(self) -> str:
        return "trio"


class _StandingDisplayTrap(DisplayTrap):
    """Does nothing: the display hook is in place all the time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        return False


class _StandingBuiltinTrap(BuiltinTrap):
    """Does nothing: IPython's builtins are in place all the time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        return False


class _Compiler(CachingCompiler):
    """Parses again where CPython fails, as several threads parse at once.

    They count the depth of their trees in one place, if one is interrupted by another. That is
    CPython 3.11's, and it is seldom: when garbage is collected in the middle, and that runs code.
    """

    def ast_parse(self, *args: Any, **options: Any) -> ast.AST:
        """Parse code, as `ast.parse` does."""
        for _ in range(ATTEMPTS_TO_PARSE):
            try:
                return super().ast_parse(*args, **options)
            except SystemError as error:
                if "recursion depth mismatch" not in str(error):
                    raise
                time.sleep(0)  # let the other one come to its end
        return super().ast_parse(*args, **options)


class TrioShell(InteractiveShell):
    """The shell of an `IPythonKernel`. ``get_ipython()`` in a cell returns it.

    Create it by `TrioShell.instance`, so that IPython finds it; `close` it, and then
    `TrioShell.clear_instance`.

    Args:
        tracker: knows which cell is current.
        namespace: what the cells execute in. None makes a new module, which becomes ``__main__``.
    """

    displayhook_class = Type(CellDisplayHook)  # type: ignore[assignment]
    display_pub_class = Type(CellDisplayPublisher)
    compiler_class = Type(_Compiler)
    exiter = Instance(ExitAutocall)
    loop_runner_map = {"trio": (_TrioRunner(), True)}  # noqa: RUF012 - the base class's declaration

    tracker: ActivityTracker
    displayhook: CellDisplayHook
    history_store: HistoryStore

    def __init__(
        self, *, tracker: ActivityTracker, namespace: dict[str, Any] | None = None, **traits: Any
    ) -> None:
        self.tracker = tracker
        self._given_namespace = namespace
        self._names_before = dict(namespace or {})
        super().__init__(user_module=_module_of(namespace), user_ns=namespace, **traits)
        # What IPython registers clears the namespace, which may be that of a program that goes on.
        atexit.unregister(self.atexit_operations)

    def close(self) -> None:
        """Remove temporary files; give back the namespace, if it was lent."""
        self.atexit_operations()
        if self._given_namespace is None:
            return
        missing = object()
        ours = {**self.user_ns_hidden, "__builtin__": self.user_ns.get("__builtin__")}
        for name, value in ours.items():
            if self.user_ns.get(name, missing) is not value:
                continue  # assigned by the user since
            if name in self._names_before:
                self.user_ns[name] = self._names_before[name]
            else:
                del self.user_ns[name]

    # ------------------------------------------------------------ what each subshell has of its own

    @property
    def session(self) -> Session:
        """The session of whoever asks; of the main shell, if that is nobody known."""
        activity = self.tracker.current()
        return self.main_session if activity is None else activity.session

    def new_session(self, info: SubshellInfo) -> Session:
        """What a subshell has of its own. The main shell's exists from the start."""
        if info.is_main:
            return self.main_session
        history = SessionHistory(
            self, self.history_store, numbered=False, dir_hist=self.main_session.history.dir_hist
        )
        return Session(info, history)

    @property
    def history_manager(self) -> SessionHistory:  # type: ignore[override]
        """The current subshell's history."""
        return self.session.history

    @property
    def execution_count(self) -> int:
        """The number of the current subshell's next cell."""
        return self.session.execution_count

    @execution_count.setter
    def execution_count(self, count: int) -> None:
        self.session.execution_count = count

    @property
    def last_execution_succeeded(self) -> bool:
        """Of the current subshell."""
        return self.session.last_execution_succeeded

    @last_execution_succeeded.setter
    def last_execution_succeeded(self, succeeded: bool) -> None:
        self.session.last_execution_succeeded = succeeded

    @property
    def last_execution_result(self) -> ExecutionResult | None:
        """Of the current subshell."""
        return self.session.last_execution_result

    @last_execution_result.setter
    def last_execution_result(self, result: ExecutionResult | None) -> None:
        self.session.last_execution_result = result

    # ----------------------------------------------------------------------------- running cells

    async def execute(self, cell: Cell, session: Session) -> None:
        """Execute a cell in the calling task.

        Cancelled, it lets `trio.Cancelled` pass, after IPython's event ``post_execute``.

        Raises:
            CellError: the cell failed.
        """
        activity = Activity(session, cell)
        with self.tracker.entered(activity):
            session.execution_count = cell.execution_count
            self.displayhook.put_underscores()
            try:
                result = await self._execute(cell, activity)
            finally:
                activity.running = False
                activity.hear_children()
        if activity.failure is not None:
            raise activity.failure
        if not result.success:  # what IPython ends without a traceback, as the debugger's quit
            error = result.error_before_exec or result.error_in_exec
            assert error is not None
            raise CellError(type(error).__name__, text_of(error))

    async def _execute(self, cell: Cell, activity: Activity) -> ExecutionResult:
        failed_transform = None
        activity.collects = True
        try:
            activity.source = self.transform_cell(cell.code)
        except Exception:
            activity.source = cell.code
            failed_transform = sys.exc_info()
        result = ExecutionResult(
            ExecutionInfo(cell.code, cell.store_history, cell.silent, True, None)
        )
        try:
            result = await self.run_cell_async(
                cell.code,
                store_history=cell.store_history,
                silent=cell.silent,
                transformed_cell=activity.source,
                preprocessing_exc_tuple=failed_transform,
                cell_id=cell.metadata.get("cellId"),
                cell_meta=cell.metadata,
            )
        except BaseException as error:
            result.error_in_exec = error
            raise
        finally:
            activity.collects = False
            self.events.trigger("post_execute")
            if not cell.silent:
                self.events.trigger("post_run_cell", result)
        return result

    async def run_ast_nodes(
        self,
        nodelist: list[ast.stmt],
        cell_name: str,
        interactivity: str = "last_expr",
        compiler: Any = None,
        result: ExecutionResult | None = None,
    ) -> bool:
        """Compile and run a cell's statements; tell whether it failed.

        Other than IPython, which compiles them one by one, this compiles all before it runs any. So
        what can't be compiled isn't half executed; and IPython, each time, changes flags of the
        compiler, which all threads share.
        """
        try:
            codes = self._compile(nodelist, cell_name, interactivity, compiler or self.compile)
        except Exception as error:
            if result is not None:
                result.error_before_exec = error
            self.showtraceback()
            return True
        process = os.getpid()
        for code in codes:
            is_async = bool(code.co_flags & inspect.CO_COROUTINE)
            if await self.run_code(code, result, async_=is_async):
                return True
        if os.getpid() != process:  # a forked child: what follows is its parent's to do
            leave_child()
        return False

    def _compile(
        self,
        nodes: list[ast.stmt],
        name: str,
        interactivity: str,
        compiler: CachingCompiler,
    ) -> list[CodeType]:
        silent, shown = _split_statements(nodes, interactivity)
        parts: list[tuple[ast.Module | ast.Interactive, str]] = []
        if silent:
            parts.append((ast.Module(silent, []), "exec"))
        if shown:
            parts.append((ast.Interactive(shown), "single"))
        codes = []
        for part, mode in parts:
            flags = compiler.flags
            if self.autoawait:
                flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(part, name, mode, flags, dont_inherit=True)
            compiler.flags |= code.co_flags & PyCF_MASK  # __future__ imports also hold later on
            codes.append(code)
        return codes

    async def run_code(
        self, code_obj: CodeType, result: ExecutionResult | None = None, *, async_: bool = False
    ) -> bool:
        """Run compiled code in the namespace; tell whether it failed, and show the error if so.

        A cancellation is no failure: it passes. So does whatever the code raises while its subshell
        is being ended, which is not to wait for a long traceback.
        """
        __tracebackhide__ = "__ipython_bottom__"  # for IPython's debugger: its stack begins below
        activity = self.tracker.current()
        collects = activity is not None and activity.collects
        if activity is not None:
            activity.collects = False
        process = os.getpid()
        try:
            if async_:
                await eval(code_obj, self.user_global_ns, self.user_ns)
            else:
                exec(code_obj, self.user_global_ns, self.user_ns)
        except BaseException as error:
            if os.getpid() != process:
                leave_child(error)
            if _is_cancellation(error) or is_about_to_end():
                raise
            if activity is not None:
                activity.collects = collects
            if result is not None:
                result.error_in_exec = error
            with protected():  # it is on its way out, and takes its time to say where it was
                self._show_error(error)
            return True
        finally:
            if activity is not None:
                activity.collects = collects
        return False

    def _show_error(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self.showtraceback(exception_only=True)
        elif isinstance(error, BdbQuit):
            return  # the user has ended the debugger
        elif isinstance(error, self.custom_exceptions):
            lines = self.CustomTB(type(error), error, error.__traceback__)
            self._showtraceback(type(error), error, lines or [])
        else:
            if _is_foreign_loop(error):
                error.add_note(_FOREIGN_LOOP_NOTE)
            self.showtraceback(running_compiled_code=True)

    # ----------------------------------------------------------------------------- about objects

    def evaluate(self, cell: Cell, session: Session, expression: str) -> dict[str, Any]:
        """Evaluate an expression in the namespace; return the value's representations, by mimetype.

        Raises:
            CellError: it can't be evaluated.
        """
        assert self.display_formatter is not None
        with self.tracker.entered(Activity(session, cell)):
            try:
                value = eval(expression, self.user_global_ns, self.user_ns)
                data: dict[str, Any] = self.display_formatter.format(value)[0]
            except Exception as error:
                lines = self.InteractiveTB.get_exception_only(type(error), error)
                raise CellError(type(error).__name__, text_of(error), lines) from error
        return data

    def described(self, name: str, detail_level: int) -> dict[str, Any]:
        """What is known of the object of that name, by mimetype.

        Raises:
            KeyError: there is none.
        """
        data: dict[str, Any] = self.object_inspect_mime(name, detail_level=detail_level)
        if not self.enable_html_pager:
            data.pop("text/html", None)
        return data

    # ------------------------------------------------------------------------------------ errors

    def showtraceback(
        self,
        exc_tuple: ExcInfo | None = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        """Show an exception, by default the handled one: as the cell's own end, or as output."""
        error = sys.exception() if exc_tuple is None else exc_tuple[1]
        if error is None or exception_only or not _has_group(error):
            try:
                super().showtraceback(
                    exc_tuple, filename, tb_offset, exception_only, running_compiled_code
                )
                return
            except (Exception, SystemExit) as worse:
                if error is None:
                    raise
                # Its text is the user's code, too; and IPython can't follow causes in a circle.
                self.log.debug("IPython can't show this error: %s", type(worse).__name__)
        # IPython prints groups to the terminal, as its formatter doesn't know them.
        kind, error, frames = self._get_exc_info(exc_tuple)
        text = traceback.format_exception(kind, error, frames)
        lines = "".join(text).rstrip("\n").splitlines()
        self._showtraceback(kind, error, [_CELL_FILE.sub(r"Cell In[\1]", line) for line in lines])

    def _get_exc_info(self, exc_tuple: ExcInfo | None = None) -> ExcInfo:
        """The exception to show, without the frames of ours that have run the user's code."""
        kind, error, frames = super()._get_exc_info(exc_tuple)
        frames = without_our_frames(frames, __package__)
        sys.last_traceback = frames  # for %tb and %debug
        return kind, error, frames

    def _showtraceback(
        self, etype: type[BaseException], evalue: BaseException, stb: list[str]
    ) -> None:
        activity = self.tracker.current()
        if activity is None or activity.cell is None:
            super()._showtraceback(etype, evalue, stb)
        elif activity.collects:
            activity.failure = CellError(etype.__name__, text_of(evalue), stb)
        else:
            activity.cell.publish(
                "error", {"ename": etype.__name__, "evalue": text_of(evalue), "traceback": stb}
            )

    def show_usage_error(self, exc: BaseException) -> None:
        """Show that a magic was used wrongly, in one line."""
        self._showtraceback(type(exc), exc, [f"UsageError: {exc}"])

    def _format_exception_for_storage(
        self,
        exception: BaseException,
        filename: str | None = None,
        running_compiled_code: bool = False,
    ) -> dict[str, Any]:
        """What ``%notebook`` exports. It has been formatted already, which is slow."""
        activity = self.tracker.current()
        failure = None if activity is None else activity.failure
        return {
            "ename": type(exception).__name__,
            "evalue": text_of(exception),
            "traceback": [] if failure is None else failure.traceback,
        }

    # ------------------------------------------------------------------------- talking to frontends

    def set_next_input(self, s: str, replace: bool = False) -> None:
        """Propose the frontend's next input, as ``%load`` does; `replace`: in place of this one."""
        self.write_payload(source="set_next_input", text=s, replace=replace)

    def ask_exit(self) -> None:
        """Have the frontend end, as ``exit`` does."""
        keep_kernel = getattr(self, "keepkernel_on_exit", False)  # set by exit(keep_kernel=...)
        self.write_payload(source="ask_exit", keepkernel=keep_kernel)

    def show_in_pager(
        self,
        text: str | dict[str, Any],
        start: int = 0,
        screen_lines: int = 0,
        pager_cmd: str | None = None,
    ) -> None:
        """Have the frontend show a text, or a mime bundle, in its pager, from line `start` on.

        The other arguments are for pagers in a terminal.
        """
        data = text if isinstance(text, dict) else {"text/plain": text}
        self.write_payload(source="page", data=data, start=max(0, start))

    def write_payload(self, **payload: Any) -> None:
        """Ask something of the frontend, in the reply."""
        manager = self.payload_manager
        assert isinstance(manager, PayloadManager)
        manager.write_payload(payload)

    def enable_gui(self, gui: str | None = None) -> None:
        """Refuse: this kernel has no GUI event loops yet. What shows inline needs none."""
        if gui not in (None, "inline"):
            raise UsageError(
                f"this kernel can't run the event loop of {gui!r}; use: %matplotlib inline"
            )

    # --------------------------------------------------------------- what is made, and what is not

    @default("exiter")
    def _default_exiter(self) -> ExitAutocall:
        return ZMQExitAutocall(self)

    @default("loop_runner")
    def _default_loop_runner(self) -> Any:
        return self.loop_runner_map["trio"][0]

    @validate("loop_runner")
    def _import_runner(self, proposal: dict[str, Any]) -> Any:
        if proposal["value"] not in ("trio", self.loop_runner_map["trio"][0]):
            raise TraitError("cells always await in trio here; use: %autoawait on, or off")
        return self.loop_runner_map["trio"][0]

    def init_history(self) -> None:
        """Open the main shell's session."""
        assert self.profile_dir is not None
        self.history_store = HistoryStore(Path(self.profile_dir.location) / "history.sqlite")
        history = SessionHistory(self, self.history_store, numbered=True)
        self.main_session = Session(SubshellInfo(None), history)
        self.configurables.append(history)  # type: ignore[arg-type]  # for %config

    def init_user_ns(self) -> None:
        """Put IPython's names into the namespace."""
        super().init_user_ns()
        inputs, results = InProxy(lambda: self.session), OutProxy(lambda: self.session)
        self.push({"In": inputs, "_ih": inputs, "Out": results, "_oh": results}, interactive=False)

    def init_payload(self) -> None:
        """Payloads go to the cell."""
        self.payload_manager = CellPayloads(parent=self)

    def init_hooks(self) -> None:
        """Pages go to the frontend."""
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(self.show_in_pager), 99)

    def init_magics(self) -> None:
        """Register IPython's magics, and the kernel's in place of those that want a terminal."""
        super().init_magics()
        self.register_magics(KernelMagics)

    def init_displayhook(self) -> None:
        """The display hook stays in place."""
        super().init_displayhook()
        self.display_trap = _StandingDisplayTrap(hook=self.displayhook)

    def init_builtins(self) -> None:
        """The builtins stay in place; `_patches` puts them there."""
        self.builtin_trap = _StandingBuiltinTrap(shell=self)

    def init_sys_modules(self) -> None:
        """`_patches` does it."""

    def init_prompts(self) -> None:
        """`_patches` does it."""

    def init_virtualenv(self) -> None:
        """Do nothing: a kernel runs in the environment that it is installed in."""

    def _atexit_once(self) -> None:
        """Do nothing: the namespace isn't cleared, and the history is closed by who opened it."""

    def _clear_warning_registry(self) -> None:
        self.user_global_ns.pop("__warningregistry__", None)

    def _tee(self, channel: str) -> Any:
        """Don't record output: it is in the notebook, and `sys.stdout` is everybody's."""
        return nullcontext()


def _module_of(namespace: dict[str, Any] | None) -> ModuleType | None:
    """The module whose globals these are, if they are a module's."""
    if namespace is None:
        return None
    module = sys.modules.get(str(namespace.get("__name__")))
    return module if module is not None and module.__dict__ is namespace else None


def _split_statements(
    nodes: list[ast.stmt], interactivity: str
) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Tell the statements whose values aren't shown from those at the end whose values are."""
    if interactivity == "none" or not nodes:
        return _hoist_futures(nodes), []
    if interactivity == "all":
        return [], nodes
    last = nodes[-1]
    if interactivity == "last_expr_or_assign":
        match last:
            case (
                ast.Assign(targets=[ast.Name(id=name)])
                | ast.AnnAssign(target=ast.Name(id=name))
                | ast.AugAssign(target=ast.Name(id=name))
            ):
                shown = ast.copy_location(ast.Expr(ast.Name(name, ast.Load())), last)
                return _hoist_futures(nodes), [ast.fix_missing_locations(shown)]
    if interactivity == "last" or isinstance(last, ast.Expr):
        return _hoist_futures(nodes[:-1]), [last]
    return _hoist_futures(nodes), []


def _hoist_futures(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """Move ``from __future__`` imports to where they must be: a magic may come before."""

    def comes_after(node: ast.stmt) -> bool:
        return not (isinstance(node, ast.ImportFrom) and node.module == "__future__")

    return sorted(nodes, key=comes_after)


def _is_cancellation(error: BaseException) -> bool:
    """Whether an exception that leaves a cell's code ends more than that, so that it must pass."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled | GeneratorExit)


def _has_group(error: BaseException | None) -> bool:
    seen: set[int] = set()  # a chain may be a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, BaseExceptionGroup):
            return True
        seen.add(id(error))
        error = error.__context__ if error.__cause__ is None else error.__cause__
    return False


def _is_foreign_loop(error: BaseException) -> bool:
    """Whether an error is what asyncio says without its loop, or trio of somebody else's future."""
    text = text_of(error)
    return (isinstance(error, RuntimeError) and text == "no running event loop") or (
        isinstance(error, TypeError) and "unrecognized yield message" in text
    )
