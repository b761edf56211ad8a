"""The stdin channel: pairs every ``input_request`` with its ``input_reply``.

Several subshells may ask at once, even on behalf of one client. A reply belongs to the request that
its parent header names. A client that sends replies without a parent header (jupyter_client's do)
answers in the order in which it was asked.
"""

from __future__ import annotations

import math

import attrs
import trio

from ..actors import Actor, ActorRef, ActorTerminated, Letter, Mailbox
from ..actors._promise import BlockingPromise
from ..wire import Header, MalformedMessage, WireSession
from ._channels import ClientSocket
from ._drops import DropReason
from ._messages import Prompt
from ._output import Outlet
from ._raisers import like_the_users
from ._types import InputNotAllowed


@attrs.frozen
class _Asked:
    letter: Letter
    prompt: Prompt


class StdinChannel(Actor):
    """Owns the stdin ROUTER.

    Args:
        session: makes the requests.
        clients: the ROUTER. It outlives this actor, which may be restarted.
    """

    def __init__(self, session: WireSession, clients: ClientSocket) -> None:
        self._session = session
        self._clients = clients

    async def run(self, mailbox: Mailbox) -> None:
        """Serve until cancelled."""
        asked: dict[str, _Asked] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive_replies, asked)
            async for letter in mailbox:
                match letter.message:
                    case Prompt() as prompt:
                        self._ask(letter, prompt, asked)

    def _ask(self, letter: Letter, prompt: Prompt, asked: dict[str, _Asked]) -> None:
        for msg_id in [key for key, each in asked.items() if not each.letter.wants_reply]:
            del asked[msg_id]  # its cell was interrupted meanwhile
        if not letter.wants_reply:
            return  # so was this one, and has been answered, perhaps: it must not ask any more
        if prompt.outlet.is_shut:
            letter.fail(InputNotAllowed("input was asked for by a cell that was given up before"))
            return
        request = self._session.message(
            "input_request",
            {"prompt": prompt.text, "password": prompt.password},
            parent=prompt.outlet.parent,
            idents=prompt.idents,
            subshell_id=prompt.outlet.parent.subshell_id,
        )
        asked[request.header.msg_id] = _Asked(letter, prompt)
        if not self._clients.send(self._session.serialize_message(request)):
            del asked[request.header.msg_id]
            letter.fail(ConnectionError("the client doesn't read its stdin channel"))

    async def _receive_replies(self, asked: dict[str, _Asked]) -> None:
        while True:
            envelope = await self._clients.receive()
            try:
                reply = envelope.open()
                value = reply.field("value", str)
            except MalformedMessage as error:
                self._clients.drop(error.reason, str(error))
                continue
            msg_id = _belongs_to(reply.parent_header, reply.idents, asked)
            if msg_id is None:
                self._clients.drop(
                    DropReason.NOBODY_WAITS, "it is an input_reply that nobody waits for"
                )
                continue
            asked.pop(msg_id).letter.reply(value)


def _belongs_to(
    parent: Header | None, idents: tuple[bytes, ...], asked: dict[str, _Asked]
) -> str | None:
    """The id of the ``input_request`` that a reply answers, if there is one."""
    waiting = [key for key, each in asked.items() if each.letter.wants_reply]
    if parent is not None:
        if parent.msg_id in waiting:
            return parent.msg_id
        # Some clients' parent is the request whose cell asks.
        mine = [key for key in waiting if asked[key].prompt.outlet.parent.msg_id == parent.msg_id]
    else:
        mine = [key for key in waiting if asked[key].prompt.idents == idents]
    return mine[0] if mine else None


# It is made to be struck: only so does an interrupt get through to a cell that blocks in `input()`.
like_the_users(BlockingPromise.wait)


class Prompter:
    """A cell's way to the stdin channel.

    Args:
        stdin: the actor.
        idents: the client.
        outlet: of the cell.
    """

    def __init__(self, stdin: ActorRef, idents: tuple[bytes, ...], outlet: Outlet) -> None:
        self._stdin = stdin
        self._idents = idents
        self._outlet = outlet

    async def ask(self, text: str, *, password: bool) -> str:
        """Ask the client; the prompt is withdrawn if this is cancelled."""
        try:
            answer: str = await self._stdin.ask(self._prompt(text, password), timeout=math.inf)
        except ActorTerminated as error:
            raise _lost() from error
        return answer

    def blocking_ask(self, text: str, *, password: bool) -> str:
        """Ask the client, blocking this thread; an interrupt raises `KeyboardInterrupt`."""
        try:
            answer: str = self._stdin.ask_blocking(self._prompt(text, password), timeout=math.inf)
        except trio.WouldBlock:
            raise ConnectionError("too many cells ask for input at the same time") from None
        except ActorTerminated as error:
            raise _lost() from error
        return answer

    def _prompt(self, text: str, password: bool) -> Prompt:
        return Prompt(self._idents, self._outlet, str(text), password)


def _lost() -> ConnectionError:
    return ConnectionError(
        "the prompt is lost, as the kernel's stdin channel has failed; ask again"
    )
