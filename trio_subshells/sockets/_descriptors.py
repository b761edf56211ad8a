"""Whether there are file descriptors left: asked before libzmq is, which may abort the process.

A socket that finds no descriptor is an ordinary error. But with the first socket of a context
libzmq starts its threads, and if one of these finds none, it calls ``abort()`` (4.3.5). So it does
if it finds none to look for network interfaces with, when a socket is bound.
"""

from __future__ import annotations

import errno
import os
import sys

# What libzmq opens with the first socket of a context, at most: for each of its threads (the reaper
# and the I/O threads) a poller and a way to wake it, and the socket's own.
_PER_THREAD = 3
_PER_SOCKET = 2


def check_descriptors(count: int, purpose: str) -> None:
    """Make sure that the process can open so many more file descriptors, by doing it for a moment.

    That is exact whatever holds the others, costs about a microsecond each, and needs no ``/proc``.
    On Windows, where sockets aren't limited like that, it does nothing.

    Args:
        count: how many.
        purpose: what for, for people: "the socket 'shell'".

    Raises:
        OSError: ``EMFILE`` (the process may not open that many) or ``ENFILE`` (nor may anybody);
            the message says which limit to raise.
    """
    if sys.platform == "win32":
        return
    taken: list[int] = []
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
        while len(taken) < count:
            taken.append(os.dup(taken[0]))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise OSError(
            error.errno, f"no room for {purpose}: {what_to_raise(error.errno)}"
        ) from error
    finally:
        for descriptor in taken:
            os.close(descriptor)


def check_room_for_threads(io_threads: int, purpose: str) -> None:
    """Make sure that libzmq finds the descriptors it needs for a context's first socket.

    Raises:
        OSError: it doesn't; the message says which limit to raise.
    """
    check_descriptors(_PER_THREAD * (1 + io_threads) + _PER_SOCKET, purpose)


def what_to_raise(number: int) -> str:
    """Which limit on file descriptors was met, and how it is raised.

    Args:
        number: ``errno.EMFILE`` or ``errno.ENFILE``.
    """
    if number == errno.ENFILE:
        return (
            "the machine has no file descriptor left for any process; close some, or raise its "
            "limit (Linux: sysctl fs.file-max)"
        )
    return (
        f"this process may have {_allowed()} file descriptors open, and has too few of them left; "
        "close some, or start it with a higher limit (ulimit -n)"
    )


def _allowed() -> str:
    """How many descriptors this process may have open, for people."""
    if sys.platform == "win32":
        return "only so many"
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return str(allowed)
