"""The files of ipc sockets: private from the first moment, nobody else's touched, gone at the end.

Left to itself, libzmq deletes whatever file is at the address it is to bind to, lets the umask say
who may connect, and leaves its own file behind. So the file is made here, and libzmq is given the
socket that listens there (``ZMQ_USE_FD``).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zmq

from .._files import OwnFile

_log = logging.getLogger("trio_subshells.sockets")


def is_ours_to_make(url: str) -> bool:
    """Whether an address is one of a file with a name, on a platform where Python has such sockets.

    ``ipc://*`` lets libzmq choose, in a private directory, and ``ipc://@name`` is no file.
    """
    return (
        sys.platform != "win32"
        and url.startswith("ipc://")
        and not url.startswith(("ipc://*", "ipc://@"))
    )


@contextmanager
def listening(url: str) -> Iterator[tuple[socket.socket, OwnFile]]:
    """Make a socket file that only this user can connect to, and listen there.

    If the block fails, the socket is closed and the file removed. Otherwise they are the caller's.

    Raises:
        zmq.ZMQError: that can't be; the message names the path and says why.
    """
    path = Path(url.removeprefix("ipc://"))
    _check_length(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        _bind(listener, path)
        file = OwnFile.at(path)
        try:
            path.chmod(0o600)  # before it listens: until then nobody can connect
            _check_directory(path.parent)
            listener.listen(100)
            listener.setblocking(False)  # a client may be gone before libzmq accepts it
            yield listener, file
        except BaseException:
            file.remove()
            raise
    except OSError as error:
        listener.close()
        raise _refusal(error.errno or 0, path, error.strerror or str(error)) from error
    except BaseException:
        listener.close()
        raise


def _check_length(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > zmq.IPC_PATH_MAX_LEN:
        raise _refusal(
            errno.ENAMETOOLONG,
            path,
            f"the path has {length} bytes, and that of an ipc socket can have no more than "
            f"{zmq.IPC_PATH_MAX_LEN} here: choose a shorter one",
        )


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind, also in the place of a socket that nobody listens at: its process was killed."""
    with suppress(FileExistsError):
        return _bind_new(listener, path)
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EADDRINUSE, "there is a file already, and it is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        with suppress(ConnectionRefusedError):
            with suppress(BlockingIOError):  # somebody listens, and is busy
                probe.connect(str(path))
            raise FileExistsError(errno.EADDRINUSE, "somebody listens there already")
    path.unlink(missing_ok=True)
    return _bind_new(listener, path)


def _bind_new(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise FileExistsError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        raise


def _check_directory(directory: Path) -> None:
    """Warn of a directory where others can put a socket of theirs in the place of ours."""
    mode = directory.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        _log.warning(
            "other users can put sockets of theirs in the place of those in %s (mode %03o); "
            "this mends it: chmod go-w %s",
            directory,
            stat.S_IMODE(mode),
            directory,
        )


def _refusal(number: int, path: Path, reason: str) -> zmq.ZMQError:
    return zmq.ZMQError(number, f"can't listen at ipc://{path}: {reason}")
