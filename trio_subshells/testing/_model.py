"""The protocol as a sequential specification: what every client may expect of every kernel.

`check_protocol` compares what a client has sent and received with it. It holds for a simulated
kernel as for a real one, whatever happened meanwhile: subshells deleted, cells interrupted.

1. Every request has exactly one reply, of its type; a comm message has none.
2. For every request the kernel is busy once, then idle once; what is published for it comes in
   between, and each channel keeps its order.
3. In a shell, one execute request is served after the other, in the order of their arrival, and
   each counts one further; aborted ones don't count.
4. An execute request is aborted for a reason only: one before it in the same shell has failed (and
   wanted that), or its shell has been ended.
5. A subshell's id is never given twice. It is in the list from its creation to its deletion; after
   the reply to its deletion, there is nothing more of it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from ..wire import Message
from ._client import Client, Exchange

_SILENT: Final = frozenset({"comm_open", "comm_msg", "comm_close"})


class ProtocolViolation(AssertionError):
    """A kernel has done what the protocol doesn't allow; the message tells all of it."""


def check_protocol(*clients: Client, complete: bool = True) -> None:
    """Compare what clients have seen with what the protocol says.

    Args:
        clients: all clients of one kernel that have done what matters here.
        complete: whether everything has come: each request its reply, and its idle. Otherwise what
            is missing may still come.

    Raises:
        ProtocolViolation: it isn't so.
    """
    problems = [
        problem for client in clients for problem in _problems_of(client, complete=complete)
    ]
    problems += _problems_of_subshells(clients)
    if problems:
        raise ProtocolViolation("\n".join(problems))


def _problems_of(client: Client, *, complete: bool) -> Iterator[str]:
    for message in client.second_replies:
        yield f"a reply that nobody has asked for: {message.header.msg_type}"
    for exchange in client.exchanges:
        yield from _problems_of_exchange(exchange, complete=complete)
    shells: dict[str | None, list[Exchange]] = defaultdict(list)
    for exchange in client.exchanges:
        if exchange.message.header.msg_type == "execute_request":
            shells[exchange.message.header.subshell_id].append(exchange)
    for name, exchanges in shells.items():
        yield from _problems_of_shell(name or "the main shell", exchanges, client)


def _problems_of_exchange(exchange: Exchange, *, complete: bool) -> Iterator[str]:
    """Rules 1 and 2."""
    name = _named(exchange)
    request = exchange.message.header.msg_type
    expected = 0 if request in _SILENT else 1
    count = len(exchange.replies)
    if count > expected or (complete and count < expected):
        yield f"{name} has {count} replies, not {expected}"
    wanted = f"{request.removesuffix('_request')}_reply"
    for reply in exchange.replies:
        if reply.header.msg_type != wanted:
            yield f"{name} was answered by a {reply.header.msg_type}"
        if reply.content.get("status") not in {"ok", "error", "aborted"}:
            yield f"{name} was answered with the status {reply.content.get('status')!r}"
    states = exchange.states
    if states != ["busy", "idle"] and (complete or states not in ([], ["busy"])):
        yield f"{name} made the kernel {', '.join(states) or 'neither busy nor idle'}"
    types = exchange.types
    if types and types[0] != "status":
        yield f"{name} has published {types[0]} before it was busy"
    if len(states) == 2 and types[-1] != "status":
        yield f"{name} has published {types[-1]} after it was idle"


def _problems_of_shell(name: str, exchanges: list[Exchange], client: Client) -> Iterator[str]:
    """Rules 3 and 4."""
    ended = name != "the main shell"  # it may have been deleted; that is for rule 5
    may_abort = ended or _kernel_was_shut_down(client)
    failed = False
    count = 0
    for exchange in exchanges:
        if not exchange.replies:
            continue
        content = exchange.replies[0].content
        status = content.get("status")
        if status == "aborted":
            if not (failed or may_abort):
                yield f"{_named(exchange)} was aborted, and nothing before it in {name} has failed"
            if "execute_input" in exchange.types:
                yield f"{_named(exchange)} was aborted, and has been executed"
            continue
        stop_on_error = exchange.message.content.get("stop_on_error", True)
        failed = failed or (status == "error" and stop_on_error)
        if "execute_input" not in exchange.types:
            continue
        executed = int(content.get("execution_count") or 0)
        if executed < count:
            yield f"{_named(exchange)} has the execution count {executed}, after {count}"
        count = executed
    served = [each for each in exchanges if "execute_input" in each.types]
    for first, second in itertools.pairwise(served):
        if _position(client, first, "idle") > _position(client, second, "busy") >= 0:
            yield f"{_named(second)} was begun in {name} before {_named(first)} was done"


def _kernel_was_shut_down(client: Client) -> bool:
    return any(each.message.header.msg_type == "shutdown_request" for each in client.exchanges)


def _position(client: Client, exchange: Exchange, state: str) -> int:
    """Where among all that the client has got from iopub; -1 if it hasn't."""
    for message in exchange.published:
        if message.content.get("execution_state") == state:
            return client.heard.index(message)
    return -1


def _problems_of_subshells(clients: Iterable[Client]) -> Iterator[str]:
    """Rule 5."""
    created: set[str] = set()
    deleted: dict[str, Message] = {}
    for client in clients:
        for exchange in client.exchanges:
            request = exchange.message
            for reply in exchange.replies:
                if reply.content.get("status") != "ok":
                    continue
                match request.header.msg_type:
                    case "create_subshell_request":
                        subshell = str(reply.content["subshell_id"])
                        if subshell in created:
                            yield f"the id {subshell} was given twice"
                        created.add(subshell)
                    case "delete_subshell_request":
                        subshell = str(request.content["subshell_id"])
                        # Who asks for it while it is being deleted gets the same answer.
                        if subshell in deleted and exchange in client.after(deleted[subshell]):
                            yield f"the subshell {subshell} was deleted again after its end"
                        deleted.setdefault(subshell, reply)
    for client in clients:
        for exchange in client.exchanges:
            subshell_id = exchange.message.header.subshell_id
            if subshell_id in deleted and exchange in client.after(deleted[subshell_id]):
                for reply in exchange.replies:
                    if reply.content.get("status") != "error":
                        yield f"{_named(exchange)} was sent after the end of its subshell, and done"


def _named(exchange: Exchange) -> str:
    request = exchange.message.header.msg_type.removesuffix("_request")
    code = exchange.message.content.get("code")
    where = exchange.message.header.subshell_id
    what = f"{request} {code!r}" if code is not None else request
    return f"{what} (for {where[-6:]})" if where else what
