"""Starts a kernel's program in a process of its own, and ends it.

The program is given a registration file (JEP 66), and tells by it where it listens: its ports are
its own choice, so nobody else can have taken them.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any, Final, Self

import attrs
import trio
import zmq

from ..kernel._install import find_kernelspec
from ..kernel._open import one_as_itself
from ..kernel._parent import VARIABLE as PARENT
from ..sockets import Context, Socket, open_context
from ..wire import ConnectionInfo, RegistrationInfo, WireSession

START_TIMEOUT: Final = 60.0
"""Seconds until a program has to listen: Python may have to compile everything first."""

PATIENCE: Final = 30.0
"""Seconds that a program has to end."""

_MOST_OF_LOG: Final = 4000


class KernelDied(Exception):
    """A kernel's program has ended by itself, had to be killed, or doesn't listen.

    Attributes:
        code: the exit code of its process; negative for a signal.
        log: what it has written to its standard output and error.
    """

    def __init__(self, what: str, code: int | None, log: str) -> None:
        super().__init__(f"{what}; {_written(log)}")
        self.code = code
        self.log = log


def _written(log: str) -> str:
    if not log.strip():
        return "it has written nothing"
    return f"it has written:\n{log.strip()[-_MOST_OF_LOG:]}"


class LaunchedKernel:
    """A kernel's process. `launch_kernel` makes it.

    Attributes:
        process: the process.
        connection: where it listens; from its registration on.
        ended: set once the process has ended.
    """

    connection: ConnectionInfo

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process = process
        self.ended = trio.Event()
        self._is_up = False
        self._is_leaving = False
        self._fault: str | None = None
        self._log_file = log
        self._log: str | None = None

    @property
    def log(self) -> str:
        """What the process has written to its standard output and error; to its end, after that."""
        if self._log is None:
            return self._log_file.read_text(encoding="utf-8", errors="replace")
        return self._log

    async def watch(self) -> None:
        """Wait until the process has ended; raise `KernelDied` if it shouldn't have."""
        with trio.CancelScope(shield=True):
            code = await self.process.wait()
        self._log = self.log
        self.ended.set()
        how = _in_words(code)
        if self._fault is not None:
            raise KernelDied(f"the kernel's process {self._fault}", code, self.log)
        if not self._is_up and not self._is_leaving:
            what = f"the kernel's process has ended, {how}, before it could be used"
            raise KernelDied(what, code, self.log)
        if self._is_up and code:
            raise KernelDied(f"the kernel's process has ended, {how}", code, self.log)

    async def start(self, service: Service, timeout: float) -> None:
        """Wait until it listens. If it doesn't, this is cancelled by what `watch` raises."""
        with trio.move_on_after(timeout):
            self.connection = await service.registered()
            self._is_up = True
            return
        self._fault = (
            f"doesn't listen, {timeout:g} s after its start: it hasn't registered, as a program of "
            "trio_subshells.main() does"
        )
        self._kill()
        await trio.sleep_forever()

    async def end(self, control: Socket, patience: float) -> None:
        """Shut it down, if that has not been done; kill it, if it takes too long."""
        self._is_leaving = True
        if self._is_up and not self.ended.is_set():
            session = WireSession(
                self.connection.key, signature_scheme=self.connection.signature_scheme
            )
            control.connect(self.connection.url("control"))
            control.send_nowait(session.serialize("shutdown_request", {"restart": False}))
            with trio.move_on_after(patience):
                await self.ended.wait()
        if not self.ended.is_set():
            if self._is_up:
                self._fault = f"had to be killed: it was to end, and hadn't after {patience:g} s"
            self._kill()
            await self.ended.wait()

    def _kill(self) -> None:
        """With its children: nobody else would end them."""
        if sys.platform == "win32":
            self.process.kill()
        else:
            # It may be over already; macOS says so by forbidding it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


@attrs.frozen
class _Program:
    """What to start.

    Attributes:
        argv: its arguments, with placeholders.
        env: what the kernelspec adds to the environment.
        names: what stands for the placeholders.
        name: of the kernelspec.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    names: Mapping[str, str]
    name: str

    @classmethod
    def of(cls, program: str | Sequence[str]) -> _Program:
        if isinstance(program, str):
            directory, spec = find_kernelspec(program)
            names = {"prefix": sys.prefix, "resource_dir": str(directory)}
            env = {
                name: Template(value).safe_substitute(os.environ)
                for name, value in spec.get("env", {}).items()
            }
            return cls(spec["argv"], env, names, program)
        argv = [os.fspath(each) for each in program]
        if not argv:
            raise ValueError("a program has a name at least, and this list is empty")
        if not any("{connection_file}" in each for each in argv):
            argv += ["-f", "{connection_file}"]
        return cls(argv, {}, {}, "")

    def command(self, file: Path) -> list[str]:
        """The command line, for a connection file or registration file."""
        names = {**self.names, "connection_file": str(file)}

        def name(match: re.Match[str]) -> str:
            return names.get(match[1], match[0])

        first, *others = [re.sub(r"\{(\w+)\}", name, each) for each in self.argv]
        major, minor = sys.version_info[:2]
        if first in {"python", f"python{major}", f"python{major}.{minor}"}:
            first = sys.executable  # as Jupyter does
        return [first, *others]


@asynccontextmanager
async def launch_kernel(
    program: str | Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    start_timeout: float = START_TIMEOUT,
    patience: float = PATIENCE,
) -> AsyncIterator[LaunchedKernel]:
    """Run a kernel's program for the time of a block; see `real_kernel`."""
    what = _Program.of(program)
    with (
        one_as_itself(),
        # Windows doesn't remove a file that a child of the kernel still has.
        tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as directory,
        open_context() as context,
        Service(context, what.name) as service,
        context.socket(zmq.DEALER, name="control of the test", linger=0) as control,
    ):
        file = Path(directory, "registration.json")
        service.registration.write_file(file)
        environment = {
            **os.environ,
            **what.env,
            **(env or {}),
            # Its connection file is nobody else's.
            "JUPYTER_RUNTIME_DIR": directory,
        }
        if sys.platform != "win32":  # there, it would have to be a handle
            environment[PARENT] = str(os.getpid())
        log = Path(directory, "log")
        process = await _start(what.command(file), log, env=environment, cwd=cwd)
        launched = LaunchedKernel(process, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(launched.watch)
            try:
                await launched.start(service, start_timeout)
                yield launched
            except Exception as error:
                error.add_note(f"the kernel's process: {_written(launched.log)}")
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await launched.end(control, patience)


async def _start(command: list[str], log: Path, **options: Any) -> trio.Process:
    """Start a process whose output goes to a file."""
    with log.open("wb") as output:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the tests, not for the kernel
            **options,
        )


class Service:
    """Where the kernel registers."""

    def __init__(self, context: Context, kernel_name: str) -> None:
        self._socket = context.socket(zmq.ROUTER, name="registration")
        url = self._socket.bind("tcp://127.0.0.1:0")
        self.registration = RegistrationInfo(
            registration_ip="127.0.0.1",
            registration_port=int(url.rpartition(":")[2]),
            kernel_id=str(uuid.uuid4()),
            key=secrets.token_hex(32).encode("ascii"),
            kernel_name=kernel_name,
        )

    async def registered(self) -> ConnectionInfo:
        """Wait for the kernel to say where it listens, and acknowledge it."""
        while True:
            identity, *frames = await self._socket.receive()
            connection = self.registration.announced_by(frames)
            if connection is not None:
                await self._socket.send([identity, *self.registration.acknowledge()])
                return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
