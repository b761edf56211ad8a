"""The small immutable types of a kernel author's API: what it is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

Json = Mapping[str, Any]
"""A JSON object, as content and metadata are."""

MimeBundle = Mapping[str, Any]
"""Representations of one thing, by mimetype: ``{"text/plain": "42", "text/html": "<b>42</b>"}``."""


@attrs.frozen
class LanguageInfo:
    """What frontends are told of the language, in ``kernel_info_reply``.

    Attributes:
        name: of the language: ``"python"``.
        version: of the language.
        mimetype: of a script.
        file_extension: of a script, with its dot.
        pygments_lexer: if it differs from `name`.
        codemirror_mode: for highlighting in a notebook, if it differs from `name`.
        nbconvert_exporter: if not the general ``script``.
    """

    name: str
    version: str = ""
    mimetype: str = "text/plain"
    file_extension: str = ".txt"
    pygments_lexer: str | None = None
    codemirror_mode: str | Mapping[str, Any] | None = None
    nbconvert_exporter: str | None = None

    def content(self) -> dict[str, Any]:
        """The ``language_info`` of a ``kernel_info_reply``."""
        return attrs.asdict(self, filter=lambda _, value: value is not None)


@attrs.frozen
class HelpLink:
    """An entry of a frontend's help menu."""

    text: str
    url: str


@attrs.frozen
class SubshellInfo:
    """Which subshell something belongs to.

    Attributes:
        id: its id; None is the main shell (the *parent subshell* of JEP 91).
    """

    id: str | None

    @property
    def is_main(self) -> bool:
        """Whether it is the main shell."""
        return self.id is None

    @property
    def name(self) -> str:
        """For people: ``main`` or the id."""
        return "main" if self.id is None else self.id


@attrs.frozen
class Request:
    """What every request tells: where it came from, and the subshell that serves it.

    Attributes:
        subshell: the subshell.
        state: what the kernel's `Kernel.subshell` yielded for that subshell.
        content: the request's content as it came, for fields that have no attribute here.
    """

    subshell: SubshellInfo
    state: Any = attrs.field(repr=False)
    content: Json = attrs.field(repr=False)


@attrs.frozen
class CompleteRequest(Request):
    """A ``complete_request``: what could the code at the cursor become?

    Attributes:
        code: all of it.
        cursor_pos: in Unicode code points, 0 to ``len(code)``.
    """

    code: str
    cursor_pos: int


@attrs.frozen
class InspectRequest(Request):
    """An ``inspect_request``: what is the thing at the cursor?

    Attributes:
        code: all of it.
        cursor_pos: in Unicode code points, 0 to ``len(code)``.
        detail_level: 0, or 1 for more (source code, say).
    """

    code: str
    cursor_pos: int
    detail_level: int = 0


@attrs.frozen
class IsCompleteRequest(Request):
    """An ``is_complete_request``: can this code be executed, or does it need another line?

    Attributes:
        code: what has been typed so far.
    """

    code: str


@attrs.frozen
class HistoryRequest(Request):
    """A ``history_request``.

    Attributes:
        access: ``range``, ``tail`` or ``search``.
        output: whether outputs are wanted too.
        raw: the raw input, rather than the transformed one.
        session: for ``range``: which session; 0 is the current one, negative counts back.
        start: for ``range``: the first line.
        stop: for ``range``: the line after the last; None for all.
        n: for ``tail`` and ``search``: how many.
        pattern: for ``search``: a glob.
        unique: for ``search``: no duplicates.
    """

    access: Literal["range", "tail", "search"]
    output: bool = False
    raw: bool = True
    session: int = 0
    start: int = 0
    stop: int | None = None
    n: int | None = None
    pattern: str = "*"
    unique: bool = False


@attrs.frozen
class Completion:
    """What a completion offers.

    Attributes:
        matches: the texts that could stand between `cursor_start` and `cursor_end`.
        cursor_start: in Unicode code points.
        cursor_end: in Unicode code points.
        metadata: more, such as ``_jupyter_types_experimental``.
    """

    matches: Sequence[str]
    cursor_start: int
    cursor_end: int
    metadata: Json = attrs.field(factory=dict)


@attrs.frozen
class Inspection:
    """What is known of a thing.

    Attributes:
        found: whether there is such a thing.
        data: its description.
        metadata: of the representations.
    """

    found: bool = False
    data: MimeBundle = attrs.field(factory=dict)
    metadata: Json = attrs.field(factory=dict)


@attrs.frozen
class Completeness:
    """Whether code is complete.

    Attributes:
        status: ``complete``, ``incomplete``, ``invalid`` or ``unknown``.
        indent: for ``incomplete``: what the next line should begin with.
    """

    status: Literal["complete", "incomplete", "invalid", "unknown"]
    indent: str = ""


@attrs.frozen
class HistoryEntry:
    """One line of history.

    Attributes:
        session: number of the session.
        line: number of the line in it.
        input: what was executed.
        output: what came out, if that was asked for and is known.
    """

    session: int
    line: int
    input: str
    output: str | None = None


@attrs.frozen
class CommMessage(Request):
    """A ``comm_open``, ``comm_msg`` or ``comm_close``.

    Attributes:
        comm_id: of the comm.
        data: what it says.
        target_name: for ``comm_open``: what it is meant for.
        metadata: of the message.
        buffers: binary data.
        message: all of it, as the packages on top of `comm` expect it.
    """

    comm_id: str
    data: Json
    target_name: str = ""
    metadata: Json = attrs.field(factory=dict)
    buffers: Sequence[bytes] = ()
    message: Json = attrs.field(factory=dict, repr=False)


class CellError(Exception):
    """Raised by `Kernel.execute` to choose what the error reply says.

    Args:
        ename: the error's name.
        evalue: what it says.
        traceback: lines for people, which may have ANSI colours.
    """

    def __init__(self, ename: str, evalue: str, traceback: Sequence[str] = ()) -> None:
        super().__init__(f"{ename}: {evalue}")
        self.ename = ename
        self.evalue = evalue
        self.traceback = list(traceback)


class InputNotAllowed(Exception):
    """Input was asked for on behalf of a client that has said it can't give any."""


@attrs.frozen
class ExecuteReply:
    """What became of an execution that was asked for through a `SubshellHandle`.

    Attributes:
        status: ``ok``, ``error`` or ``aborted``.
        content: of the ``execute_reply``, all of it.
    """

    status: Literal["ok", "error", "aborted"]
    content: Json

    @property
    def ename(self) -> str:
        """The error's name, or an empty string."""
        return str(self.content.get("ename", ""))

    @property
    def evalue(self) -> str:
        """What the error says, or an empty string."""
        return str(self.content.get("evalue", ""))
