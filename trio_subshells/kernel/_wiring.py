"""What a subshell is given: whom it talks to; and by what the code in it finds its kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs
import trio

from ..actors import ActorRef, ActorTerminated
from ..wire import WireSession
from ._ground import Ground
from ._guard import Raiser
from ._messages import FlushLater
from ._output import OutputPort
from ._types import SubshellInfo

if TYPE_CHECKING:
    from ._cell import Cell
    from ._running import RunningKernel


@attrs.frozen
class Wiring:
    """Whom a subshell talks to, and with what.

    Attributes:
        session: makes its messages.
        ground: for its sockets.
        publisher_url: where the iopub device takes messages.
        shell: the shell channel.
        control: the control handler.
        stdin: the stdin channel.
        iopub: the iopub actor.
        nest: spawns subshells in the main shell's loop.
        running: what `trio_subshells.current_kernel` tells the code that runs in it.
        make_main_raiser: how what computes in the main shell's loop is interrupted.
    """

    session: WireSession
    ground: Ground
    publisher_url: str
    shell: ActorRef
    control: ActorRef
    stdin: ActorRef
    iopub: ActorRef
    nest: ActorRef
    running: RunningKernel
    make_main_raiser: Callable[[], Raiser]

    def flush_later(self, output: OutputPort) -> None:
        """Have the port's streams sent in time; from any thread."""
        try:
            self.iopub.tell_nowait(FlushLater(output))
        except (ActorTerminated, trio.WouldBlock):  # then there is nobody to gather for
            output.time_is_up()


@attrs.frozen
class Place:
    """Where the running code is: found by context."""

    running: RunningKernel
    subshell: SubshellInfo
    cell: Cell | None = None


place: ContextVar[Place] = ContextVar("trio_subshells_place")
