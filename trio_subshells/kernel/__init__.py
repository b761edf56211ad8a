"""The runtime of a Jupyter kernel: its actors, and what a kernel's author subclasses.

Which actor owns what (each is one module)::

    thread     actor             module       owns
    ---------  ----------------  -----------  ------------------------------------------------------
    io         I/O thread        _io          the sockets' lives; supervises the four below
    io         shell channel     _shell       shell ROUTER, routes, the table of unanswered requests
    io         control handler   _control     control ROUTER, the lives of the subshells
    io         stdin channel     _stdin       stdin ROUTER, the prompts that wait for an answer
    io         iopub             _iopub       welcomes, and the timer of the output streams
    main       main shell        _subshell    one shell's cells, counter, output
    its own    each subshell     _subshell    the same code, in a thread of its own

A request's way: client → shell channel (verifies, reads the header, notes that an answer is owed) →
the subshell's mailbox → its queue → `Kernel.execute` → back to the shell channel → client. Output
doesn't take that way: every subshell publishes into a native device (`trio_subshells.sockets`).

The messages between the actors are in `_messages`; how a running cell is ended is told in `_guard`
(the mechanism) and `_ladder` (the policy).
"""

from __future__ import annotations

from ._cell import Cell
from ._errors import SubshellUnjoinable, UnknownSubshell
from ._install import install_kernelspec, uninstall_kernelspec
from ._kernel import Kernel
from ._life import SubshellState, SubshellStatistics
from ._main import main
from ._running import (
    KernelStatistics,
    RunningKernel,
    SubshellHandle,
    current_kernel,
    open_kernel,
    serve,
    spawn_subshell,
)
from ._types import (
    CellError,
    CommMessage,
    Completeness,
    CompleteRequest,
    Completion,
    ExecuteReply,
    HelpLink,
    HistoryEntry,
    HistoryRequest,
    InputNotAllowed,
    Inspection,
    InspectRequest,
    IsCompleteRequest,
    LanguageInfo,
    MimeBundle,
    Request,
    SubshellInfo,
)

__all__ = [
    "Cell",
    "CellError",
    "CommMessage",
    "CompleteRequest",
    "Completeness",
    "Completion",
    "ExecuteReply",
    "HelpLink",
    "HistoryEntry",
    "HistoryRequest",
    "InputNotAllowed",
    "InspectRequest",
    "Inspection",
    "IsCompleteRequest",
    "Kernel",
    "KernelStatistics",
    "LanguageInfo",
    "MimeBundle",
    "Request",
    "RunningKernel",
    "SubshellHandle",
    "SubshellInfo",
    "SubshellState",
    "SubshellStatistics",
    "SubshellUnjoinable",
    "UnknownSubshell",
    "current_kernel",
    "install_kernelspec",
    "main",
    "open_kernel",
    "serve",
    "spawn_subshell",
    "uninstall_kernelspec",
]
