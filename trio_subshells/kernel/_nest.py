"""The nest: spawns, in the main shell's loop, the subshells that are to live there too.

A supervisor spawns in its own loop. That of the subshells that are threads is the control handler,
in the I/O thread; of those that are tasks (`Kernel.subshell_host`) it is this actor, on its behalf.
"""

from __future__ import annotations

import math

from ..actors import Actor, Mailbox, Stop, open_supervisor
from ._messages import Spawn


class Nest(Actor):
    """See the module's first lines."""

    async def run(self, mailbox: Mailbox) -> None:
        """Spawn until cancelled."""
        async with open_supervisor() as supervisor:
            async for letter in mailbox:
                match letter.message:
                    case Spawn(subshell, name, host):
                        with letter.answering():
                            letter.reply(
                                await supervisor.spawn(
                                    subshell,
                                    name=name,
                                    host=host,
                                    capacity=math.inf,
                                    on_failure=Stop(),
                                )
                            )
