"""What happens when an actor of a kernel fails.

=================  =====================================================================
who fails          what follows
=================  =====================================================================
a subshell         it is gone, the others go on. What it ran gets an error reply,
                   ``SubshellDied``, which says of what; what it had queued is aborted.
stdin, iopub       restarted. Prompts that wait get an error, which ends their cells;
                   later ones are asked. What streams have gathered is still sent.
any other, and     the kernel ends: every cell is ended by the ladder, what is queued is
those two, if it   aborted, every thread is joined. Then `open_kernel` raises what it was;
happens too often  a program says so on stderr and exits with status 1.
=================  =====================================================================

The end of a kernel that fails needs no one in particular to be alive. The control handler ends what
runs however its own life ends, as it knows all subshells. The shell channel goes on to pass on
their answers until that is done, even if it was the one that failed; it reads no more requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ..actors import ActorTerminated
from ._errors import named

_log = logging.getLogger("trio_subshells.kernel")


@contextmanager
def ends_the_kernel(who: str) -> Iterator[None]:
    """Around the work of an actor that the kernel can't do without: log, at once, that it fails.

    The exception itself arrives only after everything has been ended, which may take a while.
    """
    try:
        yield
    except Exception as error:
        failure = without_cancelled(error)
        # That an actor which we asked has failed is but an echo of what it failed with.
        if failure is not None and not isinstance(failure, ActorTerminated):
            _log.error("the kernel ends, as %s has failed: %s", who, named(failure))
            _log.debug("%s has failed", who, exc_info=failure)
        raise


def without_cancelled(error: BaseException) -> BaseException | None:
    """What has failed, out of the groups and the cancellations that came with it; None: nothing."""
    if isinstance(error, BaseExceptionGroup):
        failure = error.split(trio.Cancelled)[1]
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        return failure
    return None if isinstance(error, trio.Cancelled) else error
