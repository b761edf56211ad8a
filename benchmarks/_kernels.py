"""Find the kernels that are to be compared, start their processes, and end them without a trace.

A kernel is named as Jupyter names it, or by its ``kernel.json``, or by the Python whose environment
has it, so that kernels of several virtual environments can meet in one run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import attrs
import psutil  # type: ignore[import-untyped]
import zmq
from _client import Client, ProbeFailed
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

#: The interpreters that a kernelspec may leave open, as jupyter_client understands them.
_BARE_PYTHON = re.compile(r"python(3(\.\d+)?)?(\.exe)?")

_KERNELS = Path("share", "jupyter", "kernels")


class KernelNotFound(ValueError):
    """A kernel that the command line names isn't there; the message says where it was sought."""


@attrs.frozen
class KernelSpec:
    """What starts a kernel, under the label that the report gives it."""

    label: str
    argv: tuple[str, ...]
    env: dict[str, str]
    resource_dir: Path
    display_name: str
    #: how Jupyter interrupts the kernel: ``signal`` or ``message``
    interrupt_mode: str = "signal"


def find_kernel(text: str) -> KernelSpec:
    """Return the kernel that `text` names: ``NAME``, ``PATH``, ``LABEL=PATH`` or ``NAME=PYTHON``.

    ``NAME`` is looked up as Jupyter does. ``PATH`` is a ``kernel.json`` or its directory.
    ``PYTHON`` is an interpreter: its environment's kernelspec ``NAME`` is taken.

    Raises `KernelNotFound`.
    """
    label, equals, location = text.partition("=")
    if not equals:
        path = Path(text)
        if path.name == "kernel.json" or (path / "kernel.json").is_file():
            directory = path.parent if path.name == "kernel.json" else path
            return _read_spec(directory.resolve().name, directory)
        try:
            found = KernelSpecManager().get_kernel_spec(text)
        except NoSuchKernel:
            known = ", ".join(sorted(KernelSpecManager().find_kernel_specs())) or "none"
            raise KernelNotFound(
                f"no kernelspec {text!r}; Jupyter knows: {known}. Another environment's kernel is "
                f"named {text}=/path/to/its/python, any other LABEL=/path/to/kernel.json"
            ) from None
        return _read_spec(text, Path(found.resource_dir))
    path = Path(location)
    if path.name == "kernel.json":
        return _read_spec(label, path.parent)
    if path.is_dir():
        return _read_spec(label, path)
    if not path.is_file():
        raise KernelNotFound(f"{text}: {location} is no kernel.json, no directory, and no Python")
    kernels = _prefix_of(path) / _KERNELS
    if not (kernels / label / "kernel.json").is_file():
        there = ", ".join(sorted(child.name for child in kernels.glob("*"))) or "none"
        raise KernelNotFound(f"{text}: {kernels} has no kernelspec {label!r}; it has: {there}")
    return _read_spec(label, kernels / label)


def _prefix_of(python: Path) -> Path:
    try:
        output = subprocess.run(
            [python, "-c", "import sys; print(sys.prefix)"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelNotFound(f"{python} doesn't run as a Python interpreter: {error}") from error
    return Path(output.strip())


def _read_spec(label: str, directory: Path) -> KernelSpec:
    path = directory / "kernel.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        argv = [str(argument) for argument in content["argv"]]
        env = {str(name): str(value) for name, value in content.get("env", {}).items()}
        display_name = str(content.get("display_name", label))
        interrupt_mode = str(content.get("interrupt_mode", "signal"))
    except OSError as error:
        raise KernelNotFound(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelNotFound(f"{path} is no kernelspec: {error!r}") from error
    if not argv:
        raise KernelNotFound(f"{path} is no kernelspec: its argv is empty")
    if _BARE_PYTHON.fullmatch(argv[0]):
        argv[0] = str(_environment_python(directory.resolve()))
    return KernelSpec(label, tuple(argv), env, directory.resolve(), display_name, interrupt_mode)


def _environment_python(directory: Path) -> Path:
    """Return the interpreter that a bare ``python`` means in the kernelspec at `directory`.

    Jupyter takes its own; a kernelspec that lies in another environment is meant for that one's.
    """
    if directory.parts[-4:-1] == _KERNELS.parts:
        prefix = directory.parents[3]
        for candidate in ("bin/python", "Scripts/python.exe", "python.exe"):
            if (prefix / candidate).is_file():
                return prefix / candidate
    return Path(sys.executable)


class RunningKernel:
    """A kernel's process with a client that is connected to it; a context manager that ends both.

    Making one starts the process and returns when a first cell has been executed and iopub is known
    to arrive: `first_reply` and `first_cell` are the seconds from the process's start to the first
    ``kernel_info_reply`` on shell and to the first cell's ``execute_reply``.

    The process gets directories of its own for IPython, Jupyter and temporary files, so that
    neither the user's configuration nor the history of earlier runs has a part in the figures, and
    so that what it leaves can be seen.

    `launcher` is put before the kernel's command line: a program that prepares its process, or that
    starts it. With `curve` the connection file carries the keys for an encrypted connection.

    Raises `ProbeFailed`, with the end of the kernel's own output, if the kernel does not start;
    there is nothing left to close then.
    """

    def __init__(
        self,
        spec: KernelSpec,
        *,
        cell: str,
        store_history: bool,
        timeout: float,
        launcher: Sequence[str] = (),
        curve: bool = False,
    ) -> None:
        self.spec = spec
        self._launcher = launcher
        self._store_history = store_history
        self._clients: list[Client] = []
        self._directory = tempfile.TemporaryDirectory(
            prefix="kernel-benchmark-", ignore_cleanup_errors=True
        )
        #: belongs to this process, and goes with it
        self.directory = home = Path(self._directory.name)
        self._log: IO[bytes] = (home / "output.txt").open("w+b")
        # write_connection_file finds free ports and lets go of them: another process may take one
        # in between. The kernel then doesn't start, and the caller tries again.
        self._keys = zmq.curve_keypair() if curve else None
        public, secret = self._keys or (None, None)
        connection_file, connection = write_connection_file(
            str(home / "connection.json"),
            key=os.urandom(16).hex().encode(),
            curve_publickey=public,
            curve_secretkey=secret,
        )
        self.connection = cast("dict[str, Any]", connection)
        self.client = self.connect()
        begin = time.perf_counter()
        try:
            self._process = self._popen(home, connection_file)
        except OSError as error:
            self._clean_up()
            raise ProbeFailed(f"{spec.argv[0]} doesn't start: {error.strerror}") from error
        try:
            with self.client.within(timeout):
                self.info = self.client.first_reply()
                self.first_reply = time.perf_counter() - begin
                self.client.execute(cell)
                self.first_cell = time.perf_counter() - begin
                self.client.wait_for_iopub()
        except BaseException as error:
            output = "" if self.why_dead() else self._last_output()
            self.close()
            if isinstance(error, ProbeFailed):
                raise ProbeFailed(f"did not start: {error}{output}") from error
            raise

    @property
    def has_subshells(self) -> bool:
        """Whether the kernel says that it supports JEP 91."""
        return "kernel subshells" in self.info.get("supported_features", ())

    @property
    def language(self) -> str:
        """The ``language_info.name`` of the kernel."""
        return str(self.info.get("language_info", {}).get("name", ""))

    def connect(self) -> Client:
        """Return a further client, which is closed with the kernel."""
        return self._connect(self.connection, self._keys)

    def connect_strangers(self) -> dict[str, Client]:
        """Return clients that have no business at an encrypted kernel, by what they come with."""
        keys = zmq.curve_keypair()
        other = {**self.connection, "curve_publickey": keys[0].decode()}
        return {
            "no encryption": self._connect(self.connection, None),
            "another kernel's key": self._connect(other, keys),
        }

    def interrupt(self) -> None:
        """Interrupt the kernel as Jupyter does: by a signal or a message, as the kernelspec says.

        A message isn't waited for.
        """
        if self.spec.interrupt_mode == "message":
            request = self.client.request("interrupt_request", {})
            self.client.control.send_multipart(request.frames)
        else:  # to the process group, as jupyter_client's provisioner sends it
            os.killpg(self._process.pid, signal.SIGINT)

    @property
    def process(self) -> psutil.Process:
        """The process that was started: the kernel's, or that of the `launcher`."""
        return psutil.Process(self._process.pid)

    def exit_code(self, seconds: float) -> int | None:
        """Wait for the end of the process; ``None`` if it doesn't come within that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def strays(self) -> list[psutil.Process]:
        """Return all living processes that the kernel has started, adopted by others or not."""
        mine = ("JUPYTER_RUNTIME_DIR", str(self.directory / "jupyter_runtime_dir"))
        strays = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(mine[0]) == mine[1] and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    strays.append(process)
            except psutil.Error:  # somebody else's, or gone meanwhile
                continue
        return [process for process in strays if process.pid != self._process.pid]

    def temporary_files(self) -> list[str]:
        """Return the names of what is in the kernel's directory for temporary files."""
        return sorted(path.name for path in (self.directory / "tmp").iterdir())

    def resident_megabytes(self) -> float:
        """Return the resident memory of the process and of its children, in MB (10⁶ bytes)."""
        family = self._family()
        return float(sum(process.memory_info().rss for process in family)) / 1e6

    def close(self) -> None:
        """Kill the process and its children, wait for their end, and remove what they left."""
        family = [*self._family(), *self.strays()]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it went by itself meanwhile: just what is wanted
        psutil.wait_procs(family, timeout=10)
        self._process.wait(timeout=10)
        self._clean_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _popen(self, home: Path, connection_file: str) -> subprocess.Popen[bytes]:
        places = {"connection_file": connection_file, "resource_dir": str(self.spec.resource_dir)}
        argv = [
            re.sub(r"\{(\w+)\}", lambda found: places.get(found[1], found[0]), argument)
            for argument in (*self._launcher, *self.spec.argv)
        ]
        env = os.environ | {
            name: string.Template(value).safe_substitute(os.environ)
            for name, value in self.spec.env.items()
        }
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            env[name] = str(home / name.lower())
            Path(env[name]).mkdir()
        (home / "tmp").mkdir()
        env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(home / "tmp"))
        # Kernels watch this process and end with it, should this one be killed.
        env["JPY_PARENT_PID"] = str(os.getpid())
        return subprocess.Popen(
            argv,
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # A terminal's Ctrl-C is for the benchmark, which then ends its kernels itself.
            start_new_session=True,
        )

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def why_dead(self) -> str | None:
        """Return why the process will never answer, or None while it lives."""
        code = self._process.poll()
        if code is None:
            return None
        return f"the process ended with exit code {code}{self._last_output()}"

    def _last_output(self) -> str:
        self._log.flush()
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip()
        return f"; it said: {text[-300:]}" if text else ""

    def _connect(self, connection: Mapping[str, Any], keys: tuple[bytes, bytes] | None) -> Client:
        client = Client(connection, self.why_dead, store_history=self._store_history, keys=keys)
        self._clients.append(client)
        return client

    def _clean_up(self) -> None:
        for client in self._clients:
            client.close()
        self._log.close()
        self._directory.cleanup()
