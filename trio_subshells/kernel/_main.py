"""A kernel as a whole program: ``python my_kernel.py -f connection.json``, ``... install``."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import trio
import zmq
from trio_util import move_on_when

from .._files import remove_own_files
from ..sockets import bytes_on_their_way
from ..wire import InvalidConnectionInfo, read_startup_file
from ._errors import named
from ._install import install_kernelspec, uninstall_kernelspec
from ._io import LINGER_MS
from ._kernel import Kernel
from ._leftovers import kill_children, leave_at_once, nothing_left_behind, terminate_children
from ._limits import raise_descriptor_limit
from ._memory import give_back_memory
from ._open import serve
from ._raisers import SignalRaiser
from ._running import RunningKernel
from ._terminate import Terminator

_log = logging.getLogger("trio_subshells.kernel")

SWITCH_INTERVAL: Final = 0.0005
"""Seconds. While one thread computes, each hop of a request to another waits for the interpreter's
lock, for as long as this: at Python's default of 5 ms, a busy cell slows all others down."""

INTERRUPTED: Final = 130
"""The exit code, if the start was interrupted: what a shell says of who was ended by SIGINT."""

LAST_WORDS: Final = 0.25
"""Seconds that the last replies have to leave a process that has to be ended by force."""

LINGER: Final = LINGER_MS / 1000
"""The same, if it is known that there is more on its way."""


def main(
    make_kernel: Callable[[], Kernel],
    argv: Sequence[str] | None = None,
    *,
    command: Sequence[str] | None = None,
) -> NoReturn:
    """Run a kernel author's program; in the main thread. It ends by `SystemExit`.

    ``-f FILE`` serves the kernel at a connection file, or as a registration file says; ``install``
    and ``uninstall`` let Jupyter know it. SIGINT interrupts what runs, in every subshell. SIGTERM
    (on Windows Ctrl-Break) shuts the kernel down as a client does; a second one ends it at once.

    Args:
        make_kernel: the `Kernel` subclass, or a function that makes the kernel.
        argv: the command line; that of the process by default.
        command: what starts this program, for the kernelspec; by default this Python with this
            script.
    """
    parser = _parser()
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    match options.action:
        case "install":
            _exit(partial(_install, make_kernel, options, command))
        case "uninstall":
            _exit(partial(_uninstall, make_kernel, options))
        case _ if options.connection_file is None:
            parser.error("Jupyter starts a kernel, with -f FILE; install lets Jupyter know it")
        case _:
            _exit(partial(_serve, make_kernel, options))


def _parser() -> argparse.ArgumentParser:
    program = _program()
    parser = argparse.ArgumentParser(
        prog=program,
        usage=(
            f"{program} -f FILE [--max-subshells N] [--debug]\n"
            f"       {program} install | uninstall [-h]"
        ),
        description="A Jupyter kernel.",
    )
    parser.add_argument(
        "-f",
        dest="connection_file",
        metavar="FILE",
        help="connection file or registration file, as Jupyter writes it",
    )
    parser.add_argument(
        "--max-subshells",
        type=_subshells,
        metavar="N",
        help="how many subshells there may be at once; 0 for none",
    )
    parser.add_argument("--debug", action="store_true", help="log what happens, to stderr")
    actions = parser.add_subparsers(title="commands", dest="action", prog=program)
    for action, text, description in (
        (
            "install",
            "let Jupyter know this kernel",
            (
                "Let Jupyter know this kernel. Without an option it goes where Jupyter looks "
                "first: in a virtual or conda environment that environment, otherwise your own "
                "data."
            ),
        ),
        (
            "uninstall",
            "let Jupyter forget it",
            "Let Jupyter forget this kernel: undo what install did with the same options.",
        ),
    ):
        sub = actions.add_parser(action, help=text, description=description)
        sub.add_argument("--name", help="of the kernelspec; by default the implementation's name")
        where = sub.add_mutually_exclusive_group()
        where.add_argument("--user", action="store_true", help="for this user")
        where.add_argument("--sys-prefix", action="store_true", help="for this environment")
        where.add_argument("--prefix", help="under this directory, in share/jupyter/kernels")
    return parser


def _subshells(text: str) -> int:
    """The value of ``--max-subshells``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a number of subshells, not {text!r}")
    return int(text)


def _program() -> str:
    """What this program was started with, for people."""
    script = Path(sys.argv[0]).name
    package = getattr(getattr(sys.modules["__main__"], "__spec__", None), "parent", None)
    return f"python -m {package}" if script == "__main__.py" and package else script


def _exit(action: Callable[[], None]) -> NoReturn:
    """Run, and exit; what the user can mend is a line, not a traceback."""
    try:
        action()
    except (ValueError, LookupError) as error:
        if hasattr(error, "__notes__"):  # not of the start: an actor has failed of it
            _fail(error)
        _refuse(error)
    except (InvalidConnectionInfo, OSError, zmq.ZMQError) as error:
        _refuse(error)
    except Exception as error:
        _fail(error)
    sys.exit(0)


def _refuse(error: Exception) -> NoReturn:
    _log.debug("the kernel could not start", exc_info=error)
    sys.exit(f"{_program()}: {_in_words(error)}")


def _fail(error: Exception) -> NoReturn:
    _log.debug("the kernel has failed", exc_info=error)
    failures = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    told = "; ".join(named(each) for each in failures)
    sys.exit(f"{_program()}: the kernel has failed: {told} (--debug tells where)")


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {"prefix": options.prefix, "user": options.user, "sys_prefix": options.sys_prefix}


def _install(
    make_kernel: Callable[[], Kernel],
    options: argparse.Namespace,
    command: Sequence[str] | None,
) -> None:
    kernel = make_kernel()
    name = options.name or kernel.implementation.lower()
    script = [sys.executable, str(Path(sys.argv[0]).resolve())]
    spec = {
        "display_name": kernel.implementation,
        "language": kernel.language_info.name,
        "interrupt_mode": "message",
        **kernel.kernelspec,
        "argv": [*(command or script), "-f", "{connection_file}"],
    }
    where = install_kernelspec(name, spec, resources=kernel.resources, **_where(options))
    print(f"Installed {name} in {where}")


def _uninstall(make_kernel: Callable[[], Kernel], options: argparse.Namespace) -> None:
    name = options.name or make_kernel().implementation.lower()
    print(f"Removed {uninstall_kernelspec(name, **_where(options))}")


def _serve(make_kernel: Callable[[], Kernel], options: argparse.Namespace) -> None:
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    connection = read_startup_file(options.connection_file)
    kernel = make_kernel()
    if options.max_subshells is not None:
        kernel.max_subshells = options.max_subshells
    raise_descriptor_limit()
    sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
    raiser = SignalRaiser()
    interrupter = _Interrupter()
    terminator = Terminator()

    async def until() -> None:
        async with move_on_when(terminator.wait):
            await give_back_memory()

    async def serve_until_told() -> None:
        with terminator.installed(), interrupter.starting():
            await serve(
                kernel,
                connection,
                task_status=interrupter,
                make_raiser=lambda: raiser,
                on_unjoinable=_leave_by_force,
                until=until,
            )

    with nothing_left_behind(interrupter.served), raiser.installed(interrupter):
        trio.run(serve_until_told)
    if interrupter.has_ended_the_start:
        _log.warning("the kernel was interrupted before it had started")
        sys.exit(INTERRUPTED)


class _Interrupter(trio.TaskStatus[RunningKernel]):
    """What a user's SIGINT does: the same as an ``interrupt_request``; or it ends the start.

    A signal handler may run in the middle of anything, so it only leaves word with the loop of the
    I/O thread, which trio lets it do.
    """

    def __init__(self) -> None:
        self._interrupt: Callable[[], None] | None = None
        self._end_the_start: Callable[[], None] | None = None
        self.has_ended_the_start = False
        self.served = threading.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """What is interrupted in this block, before the kernel is `started`, cancels the block."""
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            self._end_the_start = partial(token.run_sync_soon, scope.cancel)
            yield
        self.has_ended_the_start = scope.cancelled_caught

    def started(self, value: RunningKernel | None = None) -> None:
        assert value is not None
        self._interrupt = value.interrupt_soon
        self.served.set()

    def __call__(self) -> None:
        if self._interrupt is not None:
            self._interrupt()
            return
        end, self._end_the_start = self._end_the_start, None
        if end is None:
            raise KeyboardInterrupt  # nothing is there yet, or it has not ended by the first one
        end()


async def _leave_by_force(status: int) -> None:
    """The kernel is shut down, but a thread is stuck in a call that doesn't return.

    Shielded, as everything else is about to be cancelled, and would wait for that thread.
    """
    terminate_children()
    with trio.CancelScope(shield=True):
        await trio.sleep(LAST_WORDS)
        with trio.move_on_after(LINGER - LAST_WORDS):
            while bytes_on_their_way():  # noqa: ASYNC110 -- nothing announces that they have left
                await trio.sleep(0.01)
    kill_children(0)
    remove_own_files()
    leave_at_once(status)
