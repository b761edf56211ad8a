"""The life of one subshell, as the control handler drives it and everybody may see it."""

from __future__ import annotations

import enum
import math

import attrs
import trio

from ..actors import ActorRef, ActorState, ActorStatistics, ActorTerminated
from ._errors import text_of
from ._guard import SubshellGuards
from ._limits import shortage
from ._messages import AreYouReady
from ._types import SubshellInfo


class SubshellState(enum.Enum):
    """What a subshell is doing.

    An idle one waits for requests, a busy one serves one. One that is being deleted takes no
    requests any more; it is unjoinable if it has not ended in the time it was given, until the call
    that it is stuck in returns. Then its thread is joined, and it is deleted.
    """

    IDLE = "idle"
    BUSY = "busy"
    DELETING = "deleting"
    UNJOINABLE = "unjoinable"
    DELETED = "deleted"


@attrs.frozen
class SubshellStatistics:
    """A snapshot of a subshell.

    Attributes:
        id: its id; None is the main shell.
        state: what it is doing.
        served: how many requests it has begun to serve.
        actor: of its actor.
    """

    id: str | None
    state: SubshellState
    served: int
    actor: ActorStatistics


class SubshellLife:
    """Written by the control handler, in its own loop; what it tells is for any thread.

    Args:
        info: which subshell it is.
        ref: its actor.
        guards: by which what it runs is ended.
    """

    def __init__(self, info: SubshellInfo, ref: ActorRef, guards: SubshellGuards) -> None:
        self.info = info
        self.ref = ref
        self.guards = guards
        self.unjoinable = False
        self.gone = trio.Event()

    @property
    def state(self) -> SubshellState:
        """At this moment."""
        if self.ref.state.ended:
            return SubshellState.DELETED
        if self.unjoinable:
            return SubshellState.UNJOINABLE
        if self.guards.closed is not None or self.ref.state is ActorState.CANCELLING:
            return SubshellState.DELETING
        return SubshellState.BUSY if self.guards.running else SubshellState.IDLE

    async def wait_set_up(self) -> None:
        """Wait until it serves requests; in any loop.

        Raises:
            TooManySubshells: it has ended before, as something had run out.
            RuntimeError: it has ended before; the message says why, and its cause is what raised.
        """
        try:
            await self.ref.ask(AreYouReady(), timeout=math.inf)
        except ActorTerminated as error:
            cause = error if error.__cause__ is None else error.__cause__
            raise shortage(cause) or RuntimeError(
                f"the subshell could not be set up: {text_of(cause)}"
            ) from error

    def statistics(self) -> SubshellStatistics:
        """At this moment."""
        return SubshellStatistics(
            self.info.id, self.state, self.guards.requests.generation, self.ref.statistics()
        )
