"""When the process that started this one dies, so does the kernel: nobody could end it any more.

jupyter_client says which process that is, in the environment variable ``JPY_PARENT_PID``: by its
id, on Windows by a handle that becomes signalled at its end.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import trio

_log = logging.getLogger("trio_subshells.kernel")

VARIABLE: Final = "JPY_PARENT_PID"
INTERVAL: Final = 1.0
"""Seconds between two looks, where there is nothing to wait for."""


async def parent_death() -> None:
    """Return when the process that started this kernel has ended; never, if nobody said which."""
    told = os.environ.get(VARIABLE, "")
    if not told.isdecimal() or told in ("0", "1"):
        await trio.sleep_forever()
    if sys.platform == "win32":
        await trio.lowlevel.WaitForSingleObject(int(told))
    else:
        # Not compared with what was told: a script may have started us on the client's behalf.
        # The id of whoever adopts orphans is 1, or that of a subreaper.
        parent = os.getppid()
        while os.getppid() == parent != 1:  # noqa: ASYNC110 -- nothing announces that it changes
            await trio.sleep(INTERVAL)
    _log.warning("the process that started this kernel has ended, and so does the kernel")
