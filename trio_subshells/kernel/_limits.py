"""How many subshells there may be: what one costs, what is left, what to say if it isn't enough.

The control handler asks before it starts a subshell. Not that every shortage is seen in advance:
others take descriptors too, and nobody can tell how many threads the machine would start. What
fails all the same is taken down again, and its error put into words (`shortage`). But there is no
second chance for whoever else needs a descriptor: a client that connects can't be let in, and
libzmq tries again as fast as it can; a cell can't open a file. So some are kept free for them.
"""

from __future__ import annotations

import errno
import logging
import sys
from typing import Any, Final

import zmq

from ..sockets._descriptors import check_descriptors, what_to_raise
from ._errors import TooManySubshells

_log = logging.getLogger("trio_subshells.kernel")

DESCRIPTORS: Final = 6 if sys.platform == "linux" else 7
"""What a subshell in a thread takes. Its trio loop: a poller, and two pairs of sockets by which
other threads wake it. Its publisher: an eventfd, where there is none a pair of sockets."""

RESERVE: Final = 32
"""Descriptors that are left to others. A client's connections are five."""

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


def check_room(existing: int, starting: int, maximum: int | None) -> None:
    """Make sure that there is room for the subshells that are being started.

    Args:
        existing: how many subshells there are, the main shell not counted.
        starting: how many are being started, this one included.
        maximum: `Kernel.max_subshells`.

    Raises:
        TooManySubshells: there isn't.
        OSError: there are too few descriptors; `shortage` has words for it.
    """
    if maximum is not None and existing + starting > maximum:
        raise TooManySubshells(
            f"this kernel may have {maximum} subshells, and has {existing}: delete some, or raise "
            "the maximum (--max-subshells where the kernel is started, Kernel.max_subshells in its "
            "code)"
        )
    check_descriptors(starting * DESCRIPTORS + RESERVE, "another subshell")


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
