"""The commands: what they are called, what they take, and where it is done."""

from __future__ import annotations

import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from jupyter_core.paths import jupyter_path
from rich.markup import escape

from ..ipython import IPythonKernel
from ..kernel import install_kernelspec, uninstall_kernelspec
from . import _specs
from ._console import CommandError, make_console, mark

app = App(
    name="trio-subshells",
    help="A Python kernel for Jupyter that runs on trio, with concurrent subshells.",
    version=version("trio-subshells"),
    help_format="markdown",
)

Prefix = Annotated[
    Path | None, Parameter(help="Below this directory: PREFIX/share/jupyter/kernels.")
]
_flag = Parameter(negative="", show_default=False)
User = Annotated[
    bool, Parameter(help="Among your own data, where every Jupyter of yours looks."), _flag
]
SysPrefix = Annotated[bool, Parameter(help="In the environment of this Python."), _flag]
KernelName = Annotated[str, Parameter(help="The name of a kernelspec.")]


def run_app() -> None:
    """Run the command that ``sys.argv`` names; ends in `SystemExit`."""
    try:
        app(sys.argv[1:])
    except CommandError as error:
        console = make_console(stderr=True)
        console.print(f"{mark(console, good=False)} {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None


@app.command
def demo(*, kernel: KernelName = _specs.NAME) -> None:
    """Show what subshells do: a real kernel, a real client, some ten seconds.

    The exit code is 0 only if everything that is shown has really happened.
    """
    from ._demo import demo as show

    _run(show(make_console(), kernel))


@app.command
def install(
    *,
    prefix: Prefix = None,
    user: User = False,
    sys_prefix: SysPrefix = False,
    name: KernelName = _specs.NAME,
    display_name: Annotated[
        str, Parameter(help="What people read in a launcher.")
    ] = _specs.DISPLAY_NAME,
) -> None:
    """Tell Jupyter about the kernel.

    Without an option it goes where Jupyter looks first: in a virtual or conda environment that
    environment, otherwise your own data. It runs the Python that runs this command.
    """
    try:
        directory = install_kernelspec(
            name,
            _specs.trio_python(display_name),
            prefix=prefix,
            user=user,
            sys_prefix=sys_prefix,
            resources=IPythonKernel.resources,
        )
    except ValueError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        hint = "--user or --prefix DIR choose another place"
        raise CommandError(f"can't install {_in_words(error)}; {hint}") from None
    console = make_console()
    console.print(
        f"{mark(console, good=True)} {escape(display_name)} is installed as "
        f"[shell]{directory.name}[/] in {escape(str(directory))}",
        soft_wrap=True,
    )
    if str(directory.parent) not in jupyter_path("kernels"):
        data = escape(str(directory.parent.parent))
        console.print(f"  [note]Jupyter looks there if JUPYTER_PATH has {data}[/]", soft_wrap=True)
    elif sys.prefix != sys.base_prefix and directory.is_relative_to(sys.prefix):
        console.print(
            "  [note]for the Jupyter of this environment; one from elsewhere finds it with[/] "
            "[shell]install --user[/]",
            soft_wrap=True,
        )


@app.command
def uninstall(
    *,
    prefix: Prefix = None,
    user: User = False,
    sys_prefix: SysPrefix = False,
    name: KernelName = _specs.NAME,
) -> None:
    """Undo what *install* did with the same options."""
    try:
        directory = uninstall_kernelspec(name, prefix=prefix, user=user, sys_prefix=sys_prefix)
    except ValueError as error:
        raise CommandError(str(error)) from None
    except FileNotFoundError as error:
        others = [str(spec.directory) for spec in _specs.installed() if spec.name == name.lower()]
        hint = f"; there is one in {', '.join(others)}" if others else ""
        raise CommandError(f"{error}{hint}") from None
    except OSError as error:
        raise CommandError(f"can't remove {_in_words(error)}") from None
    console = make_console()
    console.print(f"{mark(console, good=True)} {escape(str(directory))} is gone", soft_wrap=True)


@app.command(name="list")
def list_() -> None:
    """Show the installed kernelspecs that run trio_subshells."""
    console = make_console()
    found = _specs.installed()
    if not found:
        console.print(
            "Jupyter finds no kernelspec of ours; [shell]trio-subshells install[/] gives it one."
        )
        return
    if not console.is_terminal:  # for programs: a line each, nothing cut off
        for spec in found:
            print(spec.name, spec.directory, spec.interpreter, spec.state, sep="\t")
        return
    for spec in found:
        sign = mark(console, good=spec.state == "ok")
        reason = "" if spec.state == "ok" else f": [bad]{spec.state}[/]"
        console.print(
            f"{sign} [shell]{spec.name}[/]{reason}\n"
            f"  [note]kernelspec [/] {escape(str(spec.directory))}\n"
            f"  [note]interpreter[/] {escape(spec.interpreter)}",
            soft_wrap=True,  # a path stays in one piece, to be copied
        )


@app.command
def start(
    *,
    file: Annotated[
        Path | None,
        Parameter(name=["-f", "--file"], help="The connection file, as Jupyter writes it."),
    ] = None,
    max_subshells: Annotated[
        int | None, Parameter(help="How many subshells there may be at once; 0 for none.")
    ] = None,
) -> None:
    """Start the kernel here, until a client shuts it down.

    Without a connection file there will be a new one, and you are told how to connect. Ctrl-C
    interrupts what the kernel runs.
    """
    from ._start import start as start_here

    if max_subshells is not None and max_subshells < 0:
        raise CommandError(
            f"--max-subshells takes a number of subshells, 0 or more, not {max_subshells}"
        )
    start_here(make_console(), file, max_subshells)


@app.command(name="run")
def run_(
    notebook: Annotated[Path, Parameter(help="An .ipynb file.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(help="The file to write. By default NAME.executed.ipynb, beside the notebook."),
    ] = None,
    inplace: Annotated[bool, Parameter(help="Write into the notebook itself."), _flag] = False,
    kernel: KernelName = _specs.NAME,
    timeout: Annotated[
        int | None, Parameter(help="Seconds for each cell. By default there is no limit.")
    ] = None,
    allow_errors: Annotated[bool, Parameter(help="Go on after a cell that fails."), _flag] = False,
) -> None:
    """Execute a notebook and write it with its outputs.

    The kernel is the one of this environment, installed or not, whatever kernel the notebook
    names. A cell that fails ends the run with exit code 1; what was executed is written anyway.
    """
    from ._notebook import run_notebook

    if inplace and output is not None:
        raise CommandError("the result goes to one place: choose --output or --inplace")
    if timeout is not None and timeout <= 0:
        raise CommandError(f"--timeout takes seconds, more than 0, not {timeout}")
    if notebook.is_dir():
        raise CommandError(f"{notebook} is a directory; run takes a notebook")
    target = notebook if inplace else output or notebook.with_suffix(".executed.ipynb")
    _run(
        run_notebook(
            make_console(),
            notebook,
            target,
            kernel_name=kernel,
            timeout=timeout,
            allow_errors=allow_errors,
        )
    )


def _run(command: Coroutine[Any, Any, None]) -> None:
    """Run a command that drives a kernel.

    Ctrl-C cancels it, so that it cleans up behind itself; so does what else asks it to end.
    """
    from ._client import run_asyncio

    try:
        with _ended_as_by_ctrl_c("SIGTERM", "SIGHUP"):
            run_asyncio(command)
    except KeyboardInterrupt:
        make_console(stderr=True).print("[note]interrupted; the kernel is gone[/]")
        raise SystemExit(130) from None


@contextmanager
def _ended_as_by_ctrl_c(*names: str) -> Iterator[None]:
    """Within this block, these signals, as far as the platform has them, do what Ctrl-C does.

    One that is ignored, as ``nohup`` has it, stays so.
    """
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = [
        (number, signal.signal(number, _end_as_by_ctrl_c))
        for number in signals
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _end_as_by_ctrl_c(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's ``&`` has it
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _in_words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
