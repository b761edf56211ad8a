"""All that the IPython kernel changes in the process around it, in one place, and how it is undone.

Each change is for the whole process, since Python offers no other way, and lasts as long as the
kernel: what it replaces is put back in the reverse order.
"""

from __future__ import annotations

import builtins
import getpass
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import trio
from IPython.core.error import StdinNotImplementedError
from IPython.display import display

from ..kernel import InputNotAllowed
from ..kernel._guard import exposed, interruptible_sleep, protected
from ..kernel._raisers import like_the_users
from ._activity import ActivityTracker
from ._children import children_heard
from ._programs import Programs
from ._streams import CellStream

if TYPE_CHECKING:
    from ._shell import TrioShell

RECURSION_LIMIT = 3000
"""Calls. What jedi asks for (``jedi.api.helpers.RECURSION_LIMIT``)."""

LOOK_AT_CODE = ("codeop", "IPython.core.inputtransformer2")
JEDI_LOOKS_AT_CODE = (
    "jedi.inference.compiled.access",
    "jedi.inference.docstrings",
    "parso.python.errors",
)
"""Modules that change the filters of warnings. Those of jedi take long to import."""

_MISSING: Any = object()


@contextmanager
def process_patched(shell: TrioShell, *, own_main: bool) -> Iterator[Filters]:
    """Within this block, the process's output, input and results are those of the shell's cells.

    Args:
        shell: the kernel's shell.
        own_main: whether the shell's module is ``__main__``, so that what cells define pickles.

    Returns:
        what keeps the filters of warnings as they are.
    """
    tracker = shell.tracker
    names: dict[str, Any] = {
        "input": _make_input(tracker, builtins.input),
        "display": display,
        "get_ipython": shell.get_ipython,
        "__IPYTHON__": True,
        # They would end the process. The namespace has IPython's.
        "exit": _MISSING,
        "quit": _MISSING,
    }
    system: dict[str, Any] = {
        "stdout": CellStream("stdout", tracker, sys.stdout),
        "stderr": CellStream("stderr", tracker, sys.stderr),
        "displayhook": shell.displayhook,
        # By these a program sees that it runs interactively.
        "ps1": "In : ",
        "ps2": "...: ",
    }
    with ExitStack() as undo:
        for name, value in names.items():
            undo.callback(replace_item(vars(builtins), name, value))
        for name, value in system.items():
            undo.callback(replace_item(vars(sys), name, value))
        if own_main:
            undo.callback(replace_item(sys.modules, "__main__", shell.user_module))
        undo.callback(
            replace_item(vars(getpass), "getpass", _make_getpass(tracker, getpass.getpass))
        )
        undo.callback(_follow_threads(tracker))
        programs = Programs(tracker, undo.enter_context(children_heard(tracker)))
        for owner, attribute, function in programs.replacements():
            undo.callback(replace_attribute(owner, attribute, function))
        undo.callback(replace_attribute(time, "sleep", _make_sleep()))
        undo.callback(replace_attribute(trio.to_thread, "run_sync", _make_run_sync()))
        undo.callback(_ignore_provisional_completer())
        undo.callback(_raise_recursion_limit())
        undo.callback(replace_attribute(warnings, "showwarning", _make_showwarning(tracker)))
        for name, text in _environment().items():
            undo.callback(replace_item(os.environ, name, text))
        filters = Filters(undo)
        filters.keep_from(*LOOK_AT_CODE)
        yield filters


def replace_item(
    mapping: MutableMapping[Any, Any], key: object, value: object
) -> Callable[[], None]:
    """Set (or, for what is missing, delete) an item; returns what puts back what was there."""
    before = mapping.get(key, _MISSING)

    def put(item: object) -> None:
        if item is _MISSING:
            mapping.pop(key, None)
        else:
            mapping[key] = item

    put(value)
    return lambda: put(before)


def replace_attribute(owner: object, name: str, value: object) -> Callable[[], None]:
    """Set an attribute that is there; returns what puts back what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _follow_threads(tracker: ActivityTracker) -> Callable[[], None]:
    """Tell the tracker of every thread that is started.

    What is to strike the cell meanwhile strikes right after that: see `is_in_machinery`.
    """
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        with protected():
            tracker.thread_starts(thread)
            original(thread)

    start.__doc__ = original.__doc__
    return replace_attribute(threading.Thread, "start", start)


def _make_sleep() -> Callable[[float], None]:
    original = time.sleep

    @like_the_users
    def sleep(seconds: float, /) -> None:
        interruptible_sleep(seconds, original)

    sleep.__doc__ = original.__doc__
    sleep.__module__, sleep.__qualname__ = "time", "sleep"  # it is pickled as what it replaces
    return sleep


def _make_run_sync() -> Callable[..., Any]:
    original = trio.to_thread.run_sync

    @wraps(original)
    async def run_sync(sync_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await original(exposed(sync_fn), *args, **options)

    return run_sync


def _make_input(tracker: ActivityTracker, original: Callable[..., str]) -> Callable[..., str]:
    def input(prompt: object = "", /) -> str:  # noqa: A001 - it is what cells call input
        """Read a line of text from the frontend, which shows `prompt`."""
        cell = tracker.cell()
        if cell is None:
            return original(prompt)
        try:
            return cell.blocking_input(str(prompt))
        except InputNotAllowed as error:
            raise StdinNotImplementedError(str(error)) from None

    return input


def _make_getpass(tracker: ActivityTracker, original: Callable[..., str]) -> Callable[..., str]:
    def getpass(prompt: str = "Password: ", stream: Any = None, **options: Any) -> str:
        """Read a password from the frontend, which shows `prompt` but not the password."""
        cell = tracker.cell()
        if cell is None:
            return original(prompt, stream, **options)
        try:
            return cell.blocking_input(str(prompt), password=True)
        except InputNotAllowed as error:
            raise StdinNotImplementedError(str(error)) from None

    return getpass


def _ignore_provisional_completer() -> Callable[[], None]:
    """IPython's completions warn that their interface may change.

    IPython's own way to say "I know", a context manager, swaps the filters of the whole process
    back and forth, under the feet of the cells that run meanwhile.
    """
    from IPython.core.completer import ProvisionalCompleterWarning

    warnings.filterwarnings("ignore", category=ProvisionalCompleterWarning)

    def undo() -> None:
        for each in [each for each in warnings.filters if each[2] is ProvisionalCompleterWarning]:
            warnings.filters.remove(each)  # type: ignore[attr-defined]

    return undo


class _NoFilters:
    """Stands in for the module `warnings` in modules that look at code, and don't run any.

    They don't want to warn, and so swap the filters of the whole process, and put them back. What
    another thread had swapped in between comes back for ever then; nor is anything put back if an
    interrupt strikes right there. Then every warning was recorded in a list that nobody reads, and
    shown to nobody. Here they leave the filters alone; see `_make_showwarning`.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @staticmethod
    def catch_warnings(**options: Any) -> AbstractContextManager[list[Any]]:
        return nullcontext([])

    @staticmethod
    def simplefilter(*arguments: Any, **options: Any) -> None:
        """Leave the filters as they are."""

    filterwarnings = simplefilter


class Filters:
    """The filters of warnings, which modules are to leave alone until `undo` is closed."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self._done: set[str] = set()

    def keep_from(self, *modules: str) -> None:
        """Import these modules, and let them leave the filters alone. By one thread at a time."""
        for name in modules:
            if name not in self._done:
                with suppress(ImportError, AttributeError):  # another version has no such module
                    module = import_module(name)
                    self._undo.callback(replace_attribute(module, "warnings", _NoFilters()))
                self._done.add(name)  # last: an interrupt may come in between


def _make_showwarning(tracker: ActivityTracker) -> Callable[..., None]:
    original = warnings.showwarning

    @wraps(original)
    def showwarning(*arguments: Any, **options: Any) -> None:
        activity = tracker.current()
        if activity is None or activity.cell is not None:
            original(*arguments, **options)
        # Else it comes of a look at code: the user gets it when the code runs.

    return showwarning


def _raise_recursion_limit() -> Callable[[], None]:
    """Let code recurse as deep as jedi wants to, which completes it.

    Otherwise jedi raises the limit for as long as it works, in all threads, and then lowers it
    again. A thread that is deeper down at that moment can't even handle an exception any more:
    CPython ends the process (``Cannot recover from stack overflow``).
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, RECURSION_LIMIT))
    return lambda: sys.setrecursionlimit(before)


def _environment() -> dict[str, str]:
    """For the programs that cells start: colours are shown, a pager can't be."""
    changes = {
        "TERM": "xterm-color",
        "CLICOLOR": "1",
        "CLICOLOR_FORCE": "1",
        "FORCE_COLOR": "1",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
    }
    if "MPLBACKEND" not in os.environ and find_spec("matplotlib_inline") is not None:
        changes["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    return changes
