"""The protocol as a sequential specification: what every client may expect of every kernel.

`check_protocol` compares what clients have sent and received with it. It holds for a simulated
kernel as for a real one, whatever happened meanwhile: subshells deleted, cells interrupted.

1. Every request has exactly one reply, of its type, on its channel; a comm message has none.
2. For every request the kernel is busy once, then idle once; what is published for it comes in
   between, whoever answers it. All clients hear the same, in the same order.
3. A shell serves one request after the other, in the order of their arrival, and counts the cells
   that are to be counted: one further each.
4. An execute request is aborted for a reason only: the one served before it in its shell has failed
   (and wanted that), and it was not sent in the knowledge of that; or its shell was ended. Once one
   has been served again, the failure is forgotten. Other requests are aborted at the end only.
5. What ended a cell from outside had been asked for: each interrupt ends one request of a shell at
   most, and none that was sent after the interrupt had been answered; a timeout had passed; a
   subshell was being deleted, the kernel being shut down.
6. A subshell's id is never given twice. Lists, creates and deletes are as if each had happened at
   one moment between its request and its reply (`_registry`). Before the reply to a delete, all
   that the subshell was asked has been answered; after it, there is nothing more of it.
7. A prompt is its own client's, for a cell that allows it, and comes before that cell's reply.
8. After a shutdown was asked for, a request may stay unanswered if it may never have arrived. What
   was begun before the shutdown is answered has been answered before that, too.

Where the kernel's own order matters (in 6, 7 and 8) it is known in the simulator only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from ..wire import Message
from ._client import Client, Exchange, Moment
from ._registry import Lifetime, Look, contradictions

_UNANSWERED: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
_STATUSES: Final = frozenset({"ok", "error", "aborted"})
_MORE_STATUSES: Final = {
    "is_complete_request": frozenset({"complete", "incomplete", "invalid", "unknown"}),
}
_OF_EXECUTE: Final = {
    "ok": ("execution_count", "user_expressions", "payload"),
    "error": ("ename", "evalue", "traceback"),
    "aborted": (),
}
_BY_THE_CHANNEL: Final = frozenset({"kernel_info_request", "connect_request", "shutdown_request"})
"""Requests on the shell channel that no shell serves."""
_NOT_SERVED: Final = frozenset(
    {"UnknownSubshell", "ShellOccupied", "TooManyRequests", "MalformedMessage"}
)
"""Errors of requests that were not even begun."""
_IN_TIME: Final = 0.001
"""Seconds by which a client's clock may seem to be ahead of a kernel's."""
_TOLD: Final = 3
"""Of so many problems it is known which requests they are about."""


SubshellId = str | None
"""None is the main shell."""


class ProtocolViolation(AssertionError):
    """A kernel has done what the protocol doesn't allow; the message tells all of it.

    Attributes:
        requests: the ids of the requests that it is about.
    """

    def __init__(self, message: str = "", requests: Collection[str] = ()) -> None:
        super().__init__(message)
        self.requests = frozenset(requests)


def check_protocol(
    *clients: Client, complete: bool = True, died: Collection[SubshellId] = ()
) -> None:
    """Compare what clients have seen with what the protocol says.

    Args:
        clients: all clients of one kernel that have done what matters here.
        complete: whether everything has come: each request its reply, and its idle, as far as the
            client has read. Otherwise what is missing may still come.
        died: the ids of subshells that may have died of themselves, of which clients aren't told;
            None for the main shell: `SimulatedKernel.died`.

    Raises:
        ProtocolViolation: it isn't so.
    """
    history = _History(clients, complete=complete, died=died)
    problems = list(history.problems())
    if problems:
        raise ProtocolViolation("\n".join(problems), history.named_in(problems[:_TOLD]))


class _Request:
    """A request, and what is known of it."""

    def __init__(self, client: Client, exchange: Exchange) -> None:
        self.client = client
        self.exchange = exchange
        self.id = exchange.id
        self.type = exchange.message.header.msg_type
        self.content = exchange.message.content
        self.shell = exchange.message.header.subshell_id
        self.asked: Moment = exchange.asked
        self.types = exchange.types
        self.states = exchange.states
        self.reply: Message | None = exchange.replies[0] if exchange.replies else None
        answer = {} if self.reply is None else self.reply.content
        self.status: str | None = answer.get("status")
        self.ename: str | None = answer.get("ename") if self.status == "error" else None
        self.replied: Moment | None = None
        self.sent: int | None = None
        if self.reply is not None:
            self.replied, _ = client.received[self.reply.header.msg_id]
            self.sent = client.sent.get(self.reply.header.msg_id)
        self.executes = self.type == "execute_request" and exchange.channel == "shell"
        self.executed = "execute_input" in self.types

    @property
    def is_for_a_shell(self) -> bool:
        """Whether a shell has to serve it."""
        return self.exchange.channel == "shell" and self.type not in _BY_THE_CHANNEL

    @property
    def was_served(self) -> bool:
        """Whether its shell has served it, and answered it by itself."""
        if not self.is_for_a_shell or self.type in _UNANSWERED or self.status in {None, "aborted"}:
            return False
        if self.status == "error":
            return self.ename == "KeyboardInterrupt" or (
                self.executed and self.ename not in _BY_OTHERS
            )
        return True

    def was_asked_before_the_end_of(self, other: _Request) -> bool:
        """Whether it may have to do with how the other one has ended."""
        return other.replied is None or self.asked < other.replied

    def was_over_before(self, other: _Request) -> bool:
        """Whether it was answered before the other one was asked."""
        return self.replied is not None and self.replied < other.asked

    def __str__(self) -> str:
        return str(self.exchange)


_BY_OTHERS: Final = frozenset(
    {"CellTimeout", "SubshellDeleted", "KernelShutdown", "KernelDied", "SubshellDied"}
)
"""Errors that may have been answered on a shell's behalf, so in any order."""


class _History:
    """All that the clients of one kernel have seen."""

    def __init__(
        self, clients: Sequence[Client], *, complete: bool, died: Collection[SubshellId]
    ) -> None:
        self._died = died
        self._clients = clients
        self._complete = complete
        self._requests = sorted(
            (_Request(client, exchange) for client in clients for exchange in client.exchanges),
            key=lambda request: request.asked,
        )
        self._by_id = {request.id: request for request in self._requests}
        self._shutdowns = self._of_type("shutdown_request")
        self._deletes = self._of_type("delete_subshell_request")
        self._interrupts = self._of_type("interrupt_request")
        self._created: dict[str, _Request] = {}

    def _of_type(self, msg_type: str) -> list[_Request]:
        return [each for each in self._requests if each.type == msg_type]

    def problems(self) -> Iterator[str]:
        """What isn't as it should be."""
        for client in self._clients:
            for message in client.second_replies:
                yield f"a reply that nobody has asked for: {message.header.msg_type}"
            yield from self._of_prompts(client)
        for request in self._requests:
            yield from self._of_reply(request)
            yield from self._of_published(request)
            yield from self._of_reason(request)
        yield from self._of_what_is_heard()
        for _, requests in _grouped(self._requests, lambda request: request.shell):
            yield from self._of_shell([each for each in requests if each.is_for_a_shell])
        yield from self._of_interrupts()
        yield from self._of_subshells()
        yield from self._of_shutdown()

    def named_in(self, problems: Iterable[str]) -> frozenset[str]:
        """The ids of the requests that these are about."""
        texts = list(problems)
        return frozenset(
            each.id
            for each in self._requests
            for text in texts
            if re.search(rf"{re.escape(str(each))}(?! \(for)", text)
        )

    # ------------------------------------------------------------------------ one request (1, 2)

    def _is_owed(self, request: _Request) -> bool:
        """Whether everything must have come that there is for this request."""
        if not self._complete:
            return False
        if not any(each.was_asked_before_the_end_of(request) for each in self._shutdowns):
            return True
        # It has arrived for sure if the kernel was busy with it, or has answered a later one.
        return "busy" in request.states or any(
            each.replied is not None
            for each in self._requests
            if each.client is request.client
            and each.exchange.channel == request.exchange.channel
            and each.asked > request.asked
        )

    def _of_reply(self, request: _Request) -> Iterator[str]:
        expected = 0 if request.type in _UNANSWERED else 1
        replies = request.exchange.replies
        owed = self._is_owed(request) and request.exchange.channel not in request.client.unread
        if len(replies) > expected or (owed and len(replies) < expected):
            yield f"{request} has {len(replies)} replies, not {expected}"
        wanted = f"{request.type.removesuffix('_request')}_reply"
        for reply in replies:
            channel = request.client.received[reply.header.msg_id][1]
            if channel != request.exchange.channel:
                yield f"{request} was answered on {channel}"
            if reply.header.msg_type != wanted:
                yield f"{request} was answered by a {reply.header.msg_type}"
            status = reply.content.get("status")
            if status not in _STATUSES | _MORE_STATUSES.get(request.type, frozenset()):
                yield f"{request} was answered with the status {status!r}"
            elif status == "aborted" and not request.is_for_a_shell:
                yield f"{request} was aborted, which is for shells"
            elif status == "aborted" and not (
                request.executes
                or self._was_ended(request, self._shutdowns)
                or self._was_ended(request, self._deletes)
                or self._has_died(request.shell)
            ):
                yield f"{request} was aborted, which is for cells, or for the end of a shell"
            elif request.executes:
                missing = [each for each in _OF_EXECUTE[status] if each not in reply.content]
                if missing:
                    yield f"the reply to {request}, {status}, lacks {', '.join(missing)}"

    def _of_published(self, request: _Request) -> Iterator[str]:
        types, states = request.types, request.states
        if request.client.late is not None and request.asked < request.client.late:
            return  # of that, it may have missed anything: also the busy before an idle
        owed = self._is_owed(request) and "iopub" not in request.client.unread
        if states != ["busy", "idle"] and (owed or states not in ([], ["busy"])):
            yield f"{request} made the kernel {', '.join(states) or 'neither busy nor idle'}"
        if types and types[0] != "status":
            yield f"{request} has published {types[0]} before it was busy"
        if len(states) == 2 and types[-1] != "status":
            yield f"{request} has published {types[-1]} after it was idle"
        if not request.executes or len(states) < 2:
            return
        silent = bool(request.content.get("silent"))
        if (silent or request.status == "aborted") and len(types) > len(states):
            why = "silent" if silent else "aborted"
            others = ", ".join(each for each in types if each != "status")
            yield f"{request} was {why}, and has published {others}"
        elif request.status == "ok" and not silent and not request.executed:
            yield f"{request} is done, and was never begun: there is no execute_input"
        elif request.status == "error" and request.executed:
            shown = [
                each.content.get("ename")
                for each in request.exchange.published
                if each.header.msg_type == "error"
            ]
            if request.ename not in shown:
                yield f"{request} has failed with {request.ename}, and has published {shown}"

    # --------------------------------------------------------------------------- all clients (2)

    def _of_what_is_heard(self) -> Iterator[str]:
        for client in self._clients:
            for message in client.strays:
                state = message.content.get("execution_state")
                if message.parent_header is None and state != "starting":
                    yield f"a {message.header.msg_type} is the child of nothing"
        for one, other in itertools.combinations(self._clients, 2):
            ids = [[each.header.msg_id for each in client.heard] for client in (one, other)]
            common = set(ids[0]) & set(ids[1])
            if not common:
                continue
            # Each has heard all, from when it came until it has read no more.
            first, second = ([each for each in of_one if each in common] for of_one in ids)
            if first != second:
                yield "two clients have heard the same in different orders"
            for of_one in ids:
                known = [each in common for each in of_one]
                span = known[known.index(True) : len(known) - known[::-1].index(True)]
                if not all(span):
                    yield "a client has not heard what another has, in the midst of the rest"

    # --------------------------------------------------------------------------- one shell (3, 4)

    def _of_shell(self, requests: list[_Request]) -> Iterator[str]:
        for client in self._clients:
            mine = [each for each in requests if each.client is client]
            yield from self._of_aborts(mine, requests)
            served = [each for each in mine if each.was_served]
            for first, second in itertools.pairwise(served):
                if _answer_order(first) > _answer_order(second):
                    yield f"{second} was answered before {first}, which was sent before it"
        listeners = [client for client in self._clients if "iopub" not in client.unread]
        if listeners:
            yield from self._of_order(requests, listeners[0])

    def _of_order(self, requests: list[_Request], listener: Client) -> Iterator[str]:
        """By one client's ears: one at a time, and the numbers of cells."""
        name = "the main shell" if requests and requests[0].shell is None else "a subshell"
        begun: dict[str, int] = {}
        ended: dict[str, int] = {}
        for number, message in enumerate(listener.heard):
            parent = message.parent_header
            if parent is not None and message.header.msg_type == "status":
                where = begun if message.content["execution_state"] == "busy" else ended
                where[parent.msg_id] = number
        served = [each for each in requests if each.was_served and each.id in begun]
        for first, second in itertools.pairwise(sorted(served, key=lambda each: begun[each.id])):
            if ended.get(first.id, -1) > begun[second.id]:
                yield f"{second} was begun in {name} before {first} was done"
            if first.client is second.client and first.asked > second.asked:
                yield f"{first} was begun in {name} before {second}, which was sent before it"
        if requests:
            yield from self._of_counts(requests[0].shell, listener)

    def _of_counts(self, shell: str | None, listener: Client) -> Iterator[str]:
        previous = 0
        seen = set()
        for message in listener.heard:
            parent = message.parent_header
            if message.header.msg_type != "execute_input" or parent is None:
                continue
            if parent.subshell_id != shell or parent.msg_id in seen:
                continue  # a cell may execute others, somewhere else
            seen.add(parent.msg_id)
            count = message.content.get("execution_count")
            request = self._by_id.get(parent.msg_id)
            if request is not None:
                if count != previous + bool(request.content.get("store_history", True)):
                    yield f"{request} has the execution count {count}, after {previous}"
                replied = (
                    count
                    if request.reply is None
                    else request.reply.content.get("execution_count", count)
                )
                if replied != count:
                    yield f"{request} has the execution count {count}, and {replied} in its reply"
            previous = int(count or 0)

    def _of_aborts(self, mine: list[_Request], requests: list[_Request]) -> Iterator[str]:
        """Of one client in one shell; what others have asked of that shell may have failed, too."""
        before: _Request | None = None
        for request in mine:
            if not request.executes or request.reply is None:
                continue
            if request.status != "aborted":
                if request.ename not in _NOT_SERVED:
                    before = request
                continue
            causes = [each for each in requests if each.client is not request.client]
            if before is not None:
                causes.append(before)
            if not (
                any(_aborts(each, request) for each in causes)
                or self._was_ended(request, self._shutdowns)
                or self._was_ended(request, self._deletes)
                or any(each.ename in {"KernelDied", "SubshellDied"} for each in requests)
                or self._has_died(request.shell)
            ):
                shell = "the main shell" if request.shell is None else "its subshell"
                yield f"{request} was aborted, and nothing before it in {shell} has failed"

    # ----------------------------------------------------------------- what has ended a cell (5)

    def _was_ended(self, request: _Request, ends: list[_Request]) -> bool:
        """Whether one of these may have ended what the request's shell served."""
        return any(
            each.was_asked_before_the_end_of(request)
            for each in ends
            if each.type != "delete_subshell_request"
            or each.content.get("subshell_id") == request.shell
        )

    def _of_reason(self, request: _Request) -> Iterator[str]:
        if not request.is_for_a_shell or request.ename is None:
            return
        match request.ename:
            case "CellTimeout":
                timeout = request.exchange.message.metadata.get("timeout")
                if timeout is None:
                    yield f"{request} was ended by a timeout that it doesn't have"
                elif request.replied is not None:
                    took = request.replied.time - request.asked.time
                    if took < timeout - _IN_TIME:
                        yield f"{request} was ended after {took:.3f} s, before {timeout} s"
            case "SubshellDeleted":
                if not self._was_ended(request, self._deletes):
                    yield f"{request} was ended by a delete that nobody has asked for"
            case "KernelShutdown":
                if not self._was_ended(request, self._shutdowns):
                    yield f"{request} was ended by a shutdown that nobody has asked for"
            case "ShellOccupied":
                occupants = [each for each in self._requests if each.ename == "CellTimeout"]
                if not any(each.shell == request.shell for each in occupants):
                    yield f"{request} was refused by a shell that nothing occupies"
            case "UnknownSubshell":
                created = self._creates.get(request.shell or "")
                if self._was_ended(request, self._shutdowns):
                    return
                if request.shell is None and not self._has_died(None):
                    yield f"{request} was refused by the main shell"
                elif (
                    created is not None
                    and created.was_over_before(request)
                    and not self._was_ended(request, self._deletes)
                    and not self._has_died(request.shell)
                ):
                    yield f"{request} was refused, and its subshell was there"

    def _of_interrupts(self) -> Iterator[str]:
        """Find an interrupt of its own for each request of a shell that one has ended."""
        ended = [
            each
            for each in self._requests
            if each.is_for_a_shell and each.ename == "KeyboardInterrupt"
        ]
        for shell, requests in _grouped(ended, lambda request: request.shell):
            left = [
                each
                for each in self._interrupts
                if each.content.get("subshell_id") in (None, shell)
            ]
            for request in sorted(requests, key=_end):
                possible = [
                    each
                    for each in left
                    if each.was_asked_before_the_end_of(request)
                    and not each.was_over_before(request)
                ]
                if not possible:
                    yield f"{request} was interrupted, and by nothing that was meant for it"
                else:
                    left.remove(min(possible, key=_end))

    # ------------------------------------------------------------------------------ subshells (6)

    @property
    def _creates(self) -> dict[str, _Request]:
        if not self._created:
            self._created = {
                str(each.reply.content["subshell_id"]): each
                for each in self._of_type("create_subshell_request")
                if each.reply is not None and each.status == "ok"
            }
        return self._created

    def _has_died(self, shell: str | None) -> bool:
        if shell in self._died:
            return True
        return any(each.ename == "SubshellDied" and each.shell == shell for each in self._requests)

    def _of_subshells(self) -> Iterator[str]:
        creates = [each for each in self._of_type("create_subshell_request") if each.status == "ok"]
        ids = [str(each.reply.content["subshell_id"]) for each in creates if each.reply is not None]
        for subshell in sorted({each for each in ids if ids.count(each) > 1}):
            yield f"the id {subshell} was given twice"
        lifetimes = {}
        for subshell, create in self._creates.items():
            of_it = [each for each in self._deletes if each.content.get("subshell_id") == subshell]
            done = [each for each in of_it if each.status == "ok"]
            ends = [each.asked for each in of_it if each.ename != "UnknownSubshell"]
            ends += [each.asked for each in self._shutdowns]
            if self._has_died(subshell):
                ends.append(create.asked)
            over = [each.replied for each in done if each.replied is not None]
            lifetimes[subshell] = Lifetime(
                create.asked, create.replied, min(ends, default=None), min(over, default=None)
            )
            for each in done:
                yield from self._of_delete(subshell, each)
        yield from contradictions(lifetimes, list(self._looks()))

    def _looks(self) -> Iterator[Look]:
        """Answers that tell which subshells there are."""
        for each in self._requests:
            if each.replied is None or each.reply is None or each.exchange.channel != "control":
                continue
            subshell = each.content.get("subshell_id")
            if each.type == "list_subshell_request" and each.status == "ok":
                seen = frozenset(each.reply.content["subshell_id"])
                yield Look(str(each), each.asked, each.replied, seen, None)
            elif isinstance(subshell, str) and each.ename == "UnknownSubshell":
                of = frozenset({subshell})
                yield Look(f"{each}, which knows no", each.asked, each.replied, frozenset(), of)

    def _of_delete(self, subshell: str, delete: _Request) -> Iterator[str]:
        """After the reply to a delete, there is nothing more."""
        for each in self._deletes:
            if (
                each.content.get("subshell_id") == subshell
                and each.status == "ok"
                and delete.was_over_before(each)
            ):
                yield f"the subshell {subshell} was deleted again after its end"
        for request in self._requests:
            if request.shell != subshell or request.exchange.channel != "shell":
                continue
            if delete.was_over_before(request) and request.status not in {None, "error"}:
                yield f"{request} was sent after the end of its subshell, and done"
                continue
            if delete.sent is None or request.ename == "UnknownSubshell":
                continue
            came = [*request.exchange.published, *request.exchange.replies]
            sent = [request.client.sent.get(each.header.msg_id, 0) for each in came]
            if request.type in _UNANSWERED and sent and min(sent) > delete.sent:
                continue  # it has come too late, and there is no reply to say so
            for message, number in zip(came, sent, strict=True):
                if number > delete.sent:
                    what = message.header.msg_type
                    yield f"{request}: its {what} was sent after the reply to the delete"
                    break

    # --------------------------------------------------------------------- prompts, shutdown (7, 8)

    def _of_prompts(self, client: Client) -> Iterator[str]:
        for prompt in client.prompts:
            parent = prompt.parent_header
            request = None if parent is None else self._by_id.get(parent.msg_id)
            if request is None or request.client is not client:
                yield "a client was asked for input by a cell that isn't its own"
            elif not request.executes or not request.content.get("allow_stdin", True):
                yield f"{request} has asked for input, and was not allowed to"
            elif client.sent.get(prompt.header.msg_id, 0) > (request.sent or math.inf):
                yield f"{request} has asked for input after it was answered"

    def _of_shutdown(self) -> Iterator[str]:
        first = min((each.sent for each in self._shutdowns if each.sent is not None), default=None)
        if first is None:
            return
        for request in self._requests:
            if request.type == "shutdown_request" or request.sent is None:
                continue
            published = request.exchange.published
            busy = request.client.sent.get(published[0].header.msg_id) if published else None
            if busy is not None and busy < first < request.sent:
                yield f"{request} was answered after the shutdown, and begun before that"


def _aborts(cause: _Request, request: _Request) -> bool:
    """Whether the failure of one is a reason to abort another."""
    return (
        cause.executes
        and cause.status in {"error", None}
        and cause.ename not in _NOT_SERVED
        and bool(cause.content.get("stop_on_error", True))
        and not cause.was_over_before(request)
        and cause.was_asked_before_the_end_of(request)
    )


def _answer_order(request: _Request) -> float:
    """In the kernel's order, where that is known; else in the client's."""
    return request.sent if request.sent is not None else _end(request)


def _end(request: _Request) -> float:
    return math.inf if request.replied is None else request.replied.number


def _grouped(
    requests: Iterable[_Request], key: Callable[[_Request], Any]
) -> Iterator[tuple[Any, list[_Request]]]:
    groups: dict[Any, list[_Request]] = {}
    for request in requests:
        groups.setdefault(key(request), []).append(request)
    yield from groups.items()
