"""The runtime of a Jupyter kernel: its actors, and what a kernel's author subclasses.

Which actor owns what (each is one module)::

    thread     actor             module       owns
    ---------  ----------------  -----------  ------------------------------------------------------
    io         I/O thread        _io          the sockets' lives; supervises the four below
    io         shell channel     _shell       shell ROUTER, routes, the table of unanswered requests
    io         control handler   _control     control ROUTER, the lives of all subshells; supervises
                                              those that are threads
    io         stdin channel     _stdin       stdin ROUTER, the prompts that wait for an answer
    io         iopub             _iopub       welcomes, and the timer of the output streams
    main       main shell        _subshell    one shell's queue, counter, output
    its own    each subshell     _subshell    the same code, in a thread of its own
    main       nest              _nest        supervises the subshells that are tasks of that loop

"main" is the thread and trio loop that calls `open_kernel` (`_open`), which is the root: it starts
the I/O thread, the nest and the main shell, and ends them.

A request's way: client → shell channel (verifies, reads the header, notes that an answer is owed) →
the subshell's mailbox → its queue → `Kernel.execute` (`_cell` is what that is given) → back to the
shell channel → client. Output doesn't take that way: every subshell publishes (`_output`) into a
native device (`trio_subshells.sockets`). What creates, deletes, interrupts or shuts down is a
request to the control handler, which asks the shell channel to add or remove a route and to answer
what is owed. A call on `RunningKernel` or `SubshellHandle` (`_running`) is a message to one of the
two.

What the first three of these take from clients comes through a `_channels.ClientSocket`; what is
dropped anywhere is entered in `_drops`.

What the actors say to each other is in `_messages`; how a running cell is ended is told in `_guard`
(the mechanism) and `_ladder` (the policy); who answers a request, when several could, is told in
`_pending`. How a process that is a kernel ends is in `_terminate` and `_leftovers`.
"""

from __future__ import annotations

from ._cell import Cell
from ._drops import DropCount, DropReason
from ._errors import RegistrationFailed, SubshellUnjoinable, TooManySubshells, UnknownSubshell
from ._install import install_kernelspec, uninstall_kernelspec
from ._kernel import Kernel
from ._life import SubshellState, SubshellStatistics
from ._main import main
from ._open import open_kernel, serve
from ._running import (
    KernelStatistics,
    RunningKernel,
    SubshellHandle,
    current_kernel,
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
    "DropCount",
    "DropReason",
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
    "RegistrationFailed",
    "Request",
    "RunningKernel",
    "SubshellHandle",
    "SubshellInfo",
    "SubshellState",
    "SubshellStatistics",
    "SubshellUnjoinable",
    "TooManySubshells",
    "UnknownSubshell",
    "current_kernel",
    "install_kernelspec",
    "main",
    "open_kernel",
    "serve",
    "spawn_subshell",
    "uninstall_kernelspec",
]
