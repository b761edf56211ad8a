"""The nest: spawns, in the main shell's loop, the subshells that are to live there too.

A supervisor spawns in its own loop. That of the subshells that are threads is the control handler,
in the I/O thread; of those that are tasks (`Kernel.subshell_host`) it is this actor, on its behalf.
"""

from __future__ import annotations

import math

from ..actors import Actor, ActorRef, Mailbox, Stop, Supervisor, open_supervisor
from ._faults import ends_the_kernel
from ._messages import Spawn


class Nest(Actor):
    """See the module's first lines."""

    async def run(self, mailbox: Mailbox) -> None:
        """Spawn until cancelled."""
        async with open_supervisor() as supervisor:
            with ends_the_kernel("the nest"):
                async for letter in mailbox:
                    match letter.message:
                        case Spawn() as spawn:
                            with letter.answering():
                                letter.reply(await self._spawn(supervisor, spawn))

    async def _spawn(self, supervisor: Supervisor, spawn: Spawn) -> ActorRef:
        return await supervisor.spawn(
            spawn.subshell,
            name=spawn.name,
            host=spawn.host,
            capacity=math.inf,
            on_failure=Stop(),
        )
