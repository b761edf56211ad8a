"""What is in requests: their contents, checked, as the types of a kernel author's API, and back.

What a field must be is in the messaging specification, under "Messages on the shell
(ROUTER/DEALER) channel". What is wrong with one is told by the `MalformedMessage` that is raised,
which becomes the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from ..wire import MalformedMessage, MalformedReason, Message
from ._kernel import Kernel
from ._ladder import GIVE_UP_AFTER
from ._types import (
    CommMessage,
    CompleteRequest,
    HistoryEntry,
    HistoryRequest,
    InspectRequest,
    IsCompleteRequest,
    SubshellInfo,
)


def read_execute(message: Message) -> dict[str, Any]:
    """The content of an ``execute_request``, every field there and of its type."""
    silent = message.field("silent", bool, False)
    expressions = message.field("user_expressions", dict, {})
    for name, expression in expressions.items():
        if not isinstance(expression, str):
            raise MalformedMessage(
                MalformedReason.BAD_CONTENT,
                f"the user expression {name!r} must be a string, not {expression!r}",
                message.header,
            )
    return {
        "code": message.field("code", str),
        "silent": silent,
        "store_history": message.field("store_history", bool, not silent),
        "user_expressions": expressions,
        "allow_stdin": message.field("allow_stdin", bool, True),
    }


def read_timeout(message: Message) -> tuple[float, float] | None:
    """The deadline that a client sets for a cell: ``metadata: {"timeout": seconds}``.

    With it, the seconds after which it is given up if it can't be ended: ``give_up_after``.
    """
    timeout = _seconds(message, "timeout", None)
    give_up_after = _seconds(message, "give_up_after", GIVE_UP_AFTER)
    return None if timeout is None or give_up_after is None else (timeout, give_up_after)


def _seconds(message: Message, field: str, default: float | None) -> float | None:
    seconds = message.metadata.get(field)
    if seconds is None:
        return default
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise MalformedMessage(
            MalformedReason.BAD_METADATA,
            f"the metadata's field {field!r} must be a positive number of seconds, not {seconds!r}",
            message.header,
        )
    return float(seconds)


def read_comm(info: SubshellInfo, state: Any, message: Message) -> CommMessage:
    """What a comm message says."""
    return CommMessage(
        info,
        state,
        message.content,
        comm_id=message.field("comm_id", str),
        data=message.field("data", dict, {}),
        target_name=message.field("target_name", str, ""),
        metadata=message.metadata,
        buffers=message.buffers,
        message={
            "header": attrs.asdict(message.header, filter=attrs.filters.exclude("raw")),
            "content": message.content,
            "metadata": message.metadata,
            "buffers": list(message.buffers),
        },
    )


async def look_up(
    kernel: Kernel,
    info: SubshellInfo,
    state: Any,
    executed: Sequence[HistoryEntry],
    message: Message,
) -> dict[str, Any]:
    """Serve a request that executes nothing; return its reply's content.

    Args:
        kernel: the author's object, which is asked.
        info: the subshell.
        state: what `Kernel.subshell` yielded for it.
        executed: its history.
        message: the request.

    Raises:
        MalformedMessage: the request's content isn't what it should be.
        BaseException: what the kernel's method raises.
    """
    common = (info, state, message.content)
    match message.header.msg_type:
        case "complete_request":
            code, position = _code_and_cursor(message)
            found = await kernel.complete(CompleteRequest(*common, code, position))
            return {
                "status": "ok",
                "matches": list(found.matches),
                "cursor_start": found.cursor_start,
                "cursor_end": found.cursor_end,
                "metadata": found.metadata,
            }
        case "inspect_request":
            code, position = _code_and_cursor(message)
            detail = message.field("detail_level", int, 0)
            seen = await kernel.inspect(InspectRequest(*common, code, position, detail))
            return {
                "status": "ok",
                "found": seen.found,
                "data": seen.data,
                "metadata": seen.metadata,
            }
        case "is_complete_request":
            code = message.field("code", str)
            completeness = await kernel.is_complete(IsCompleteRequest(*common, code))
            answer: dict[str, Any] = {"status": completeness.status}
            if completeness.status == "incomplete":
                answer["indent"] = completeness.indent
            return answer
        case "history_request":
            asked = _history_request(message, common)
            entries = await kernel.history(asked, tuple(executed))
            return {"status": "ok", "history": [_history_item(asked, each) for each in entries]}
        case "comm_info_request":
            comms = await kernel.comm_info(message.field("target_name", str, None))
            return {"status": "ok", "comms": comms}
        case other:
            raise AssertionError(f"the shell channel doesn't pass on {other}")


def _code_and_cursor(message: Message) -> tuple[str, int]:
    code = message.field("code", str)
    position = message.field("cursor_pos", int, len(code))
    return code, min(max(position, 0), len(code))


def _history_request(
    message: Message, common: tuple[SubshellInfo, Any, Mapping[str, Any]]
) -> HistoryRequest:
    access = message.field("hist_access_type", str)
    if access not in ("range", "tail", "search"):
        raise MalformedMessage(
            MalformedReason.BAD_CONTENT,
            "the content's field 'hist_access_type' must be 'range', 'tail' or 'search', "
            f"not {access!r}",
            message.header,
        )
    return HistoryRequest(
        *common,
        access=cast("Literal['range', 'tail', 'search']", access),
        output=message.field("output", bool, False),
        raw=message.field("raw", bool, True),
        session=message.field("session", int, 0),
        start=message.field("start", int, 0),
        stop=message.field("stop", int, None),
        n=message.field("n", int, None),
        pattern=message.field("pattern", str, "*"),
        unique=message.field("unique", bool, False),
    )


def _history_item(request: HistoryRequest, entry: HistoryEntry) -> tuple[int, int, Any]:
    what = (entry.input, entry.output) if request.output else entry.input
    return (entry.session, entry.line, what)
