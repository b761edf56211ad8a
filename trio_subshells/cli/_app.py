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
from rich.markup import escape
from rich.table import Table

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
User = Annotated[bool, Parameter(negative="", help="Among your own data, for all environments.")]
SysPrefix = Annotated[bool, Parameter(negative="", help="In the environment of this Python.")]
KernelName = Annotated[str, Parameter(help="The name of a kernelspec.")]


def run_app() -> None:
    """Run the command that ``sys.argv`` names; ends in `SystemExit`."""
    try:
        app(sys.argv[1:])
    except CommandError as error:
        console = make_console(stderr=True)
        console.print(f"{mark(console, good=False)} {error}", soft_wrap=True)
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
        raise CommandError(escape(str(error))) from None
    except OSError as error:
        raise CommandError(_not_possible("install", error)) from None
    console = make_console()
    console.print(
        f"{mark(console, good=True)} {display_name} is installed as [shell]{directory.name}[/] in "
        f"{escape(str(directory))}",
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
        raise CommandError(escape(str(error))) from None
    except FileNotFoundError as error:
        others = [str(spec.directory) for spec in _specs.installed() if spec.name == name.lower()]
        hint = f"; there is one in {', '.join(others)}" if others else ""
        raise CommandError(escape(f"{error}{hint}")) from None
    except OSError as error:
        raise CommandError(_not_possible("uninstall", error)) from None
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
    table = Table(box=None, header_style="title", padding=(0, 2, 0, 0))
    for title in ("name", "kernelspec", "interpreter"):
        table.add_column(title, overflow="fold")
    for spec in found:
        sign = mark(console, good=spec.state == "ok")
        reason = "" if spec.state == "ok" else f" [bad]{spec.state}[/]"
        table.add_row(
            f"[shell]{spec.name}[/]",
            escape(str(spec.directory)),
            f"{sign} {escape(spec.interpreter)}{reason}",
        )
    console.print(table)


@app.command
def start(
    *,
    file: Annotated[
        Path | None,
        Parameter(name=["-f", "--file"], help="The connection file, as Jupyter writes it."),
    ] = None,
) -> None:
    """Start the kernel here, until a client shuts it down.

    Without a connection file there will be a new one, and you are told how to connect.
    """
    from ._start import start as start_here

    start_here(make_console(), file)


@app.command(name="run")
def run_(
    notebook: Path,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(help="The file to write. By default NOTEBOOK.executed.ipynb.")
    ] = None,
    inplace: Annotated[
        bool, Parameter(negative="", help="Write into the notebook itself.")
    ] = False,
    kernel: KernelName = _specs.NAME,
    timeout: Annotated[
        int | None, Parameter(help="Seconds for each cell. By default there is no limit.")
    ] = None,
    allow_errors: Annotated[
        bool, Parameter(negative="", help="Go on after a cell that fails.")
    ] = False,
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
    """Within this block, these signals, as far as the platform has them, do what Ctrl-C does."""
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = [
        (number, signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)))
        for number in signals
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _not_possible(what: str, error: OSError) -> str:
    hint = "; --user or --prefix DIR choose another place" if what == "install" else ""
    return escape(f"can't {what} {error.filename or ''}: {error.strerror or error}{hint}")
