"""How many subshells there may be: what one costs, what is left, what to say if it isn't enough.

The control handler asks before it starts a subshell. Not that every shortage is seen in advance:
others take descriptors too, and nobody can tell how many threads the machine would start. What
fails all the same is taken down again, and its error put into words (`shortage`). But there is no
second chance for whoever else needs a descriptor: a client that connects can't be let in, and
libzmq tries again as fast as it can; a cell can't open a file. So some are kept free for them. And
address space is, where that is limited: libzmq aborts the process if it gets no memory.
"""

from __future__ import annotations

import errno
import logging
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import zmq

from ..sockets._descriptors import what_to_raise
from ._errors import TooManySubshells

_log = logging.getLogger("trio_subshells.kernel")

DESCRIPTORS: Final = 6 if sys.platform == "linux" else 7
"""What a subshell in a thread takes. Its trio loop: a poller, and two pairs of sockets by which
other threads wake it. Its publisher: an eventfd, where there is none a pair of sockets."""

RESERVE: Final = 32
"""Descriptors that are left to others. A client's connections are five."""

RESERVED_BYTES: Final = 1 << 27
"""Of address space: a thread's stack (8 MB), what glibc sets aside for a new thread's allocations
(64 MB, less if there is less), and as much again for the others."""

MOST_DESCRIPTORS: Final = 1 << 20
"""What the soft limit is raised to, if the hard one is higher still or there is none. It is Linux's
own ceiling. Programs that close all they might have inherited try every number up to the limit."""


def check_maximum(maximum: Any) -> None:
    """Refuse what `Kernel.max_subshells` can't be.

    Raises:
        ValueError: it is neither None nor a number of subshells.
    """
    if maximum is None or (type(maximum) is int and maximum >= 0):
        return
    raise ValueError(
        "max_subshells must be a number of subshells, 0 or more, or None for as many as the "
        f"machine has room for, not {maximum!r}"
    )


class Room:
    """Is there room for another subshell? Asked, in its own loop, by whoever starts one.

    Args:
        maximum: `Kernel.max_subshells`.
        check_descriptors: raises `OSError` if so many aren't left, for that purpose.
    """

    def __init__(self, maximum: int | None, check_descriptors: Callable[[int, str], None]) -> None:
        self._maximum = maximum
        self._check_descriptors = check_descriptors
        self._starting = 0
        self._most = 0  # that there have been at once

    @contextmanager
    def taken(self, existing: int) -> Iterator[None]:
        """A block in which a subshell is started.

        Args:
            existing: how many there are, the main shell not counted.

        Raises:
            TooManySubshells: there is no room, as one sees in advance, or as the block finds out.
        """
        self._starting += 1
        try:
            self._check(existing)
            yield
            self._most = max(self._most, existing + self._starting)
        except Exception as error:
            reason = shortage(error)
            if reason is None:
                raise
            raise reason from error
        finally:
            self._starting -= 1

    def _check(self, existing: int) -> None:
        wanted = existing + self._starting
        if self._maximum is not None and wanted > self._maximum:
            raise TooManySubshells(
                f"this kernel may have {self._maximum} subshells, and has {existing}: delete some, "
                "or raise the maximum (--max-subshells where the kernel is started, "
                "Kernel.max_subshells in its code)"
            )
        self._check_descriptors(self._starting * DESCRIPTORS + RESERVE, "another subshell")
        if wanted > self._most:
            # If there have been as many before, their addresses are there: glibc keeps the stacks
            # of threads that have ended for those to come, and doesn't give them back.
            _check_addresses()


def _check_addresses() -> None:
    try:
        mmap.mmap(-1, RESERVED_BYTES).close()  # never touched, so it costs nothing but addresses
    except OSError as error:
        raise MemoryError(f"no {RESERVED_BYTES} bytes of address space left") from error


def shortage(error: BaseException | None) -> TooManySubshells | None:
    """What to say if a subshell couldn't be started; None if it isn't for want of anything."""
    if isinstance(error, (OSError, zmq.ZMQError)) and error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManySubshells(
            f"no room for another subshell: {what_to_raise(error.errno)}. A subshell takes "
            f"{DESCRIPTORS} of them, and {RESERVE} are kept for clients and files; deleting one "
            "makes room"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return TooManySubshells(
            "the machine can't start another thread for a subshell: delete subshells, or raise the "
            "limit on processes and threads (ulimit -u; in a container, pids.max) or on memory "
            "(ulimit -v), whichever is met"
        )
    if isinstance(error, MemoryError):
        return TooManySubshells(
            "there is no memory left for another subshell: delete subshells or data, or raise the "
            "limit on memory (ulimit -v; in a container, memory.max)"
        )
    return None


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit on file descriptors to the hard one, as far as it goes.

    For the program of a kernel, at its start. A shell's usual 1,024 is there for programs that wait
    with ``select()``, which can't handle higher numbers; neither trio nor libzmq does that. What
    cells start inherits the limit. It harms a child only if that uses ``select()`` and itself opens
    more than 1,024 descriptors, which before would have been an error too, though a clearer one.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    highest = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    # macOS claims to have no hard limit, and refuses what its kern.maxfilesperproc doesn't allow;
    # older ones refuse all beyond OPEN_MAX, 10,240.
    for limit in (highest, 1 << 16, 10_240):
        if not soft < limit <= highest:
            continue
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError) as error:
            _log.debug("no more than %d file descriptors: %s", limit, error)
        else:
            return
