"""What is measured, and how: one function per probe, each of which fills one or more metrics.

A probe gets a kernel that is up and idle, and leaves it so. It returns raw samples; what they say
together is the business of ``_report``. Latencies are those of a client that waits for one answer
before it asks again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import attrs
from _client import Client, Message, ProbeFailed, Request
from _report import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import zmq
    from _kernels import RunningKernel

#: Seconds for everything that one probe waits for: reached only by a kernel that hangs.
PROBE_TIMEOUT = 60.0


@attrs.frozen
class Effort:
    """How much one round measures of everything."""

    cell: str
    store_history: bool
    latencies: int = 100
    pipelined: int = 500
    subshells: int = 20
    #: subshells that are kept at once, to see what one costs in memory
    kept: int = 32
    #: executes in each of the eight subshells
    each: int = 50
    #: requests while the main shell is occupied, and for how many seconds it is at most
    occupied: int = 40
    seconds: float = 6.0
    lines: int = 100_000

    @classmethod
    def quick(cls, cell: str, *, store_history: bool) -> Effort:
        """Return the effort that shows whether everything works, with ratios of little weight."""
        return cls(
            cell=cell,
            store_history=store_history,
            latencies=30,
            pipelined=100,
            subshells=6,
            kept=16,
            each=15,
            occupied=10,
            seconds=3.0,
        )


Samples = dict[str, list[float]]


@attrs.frozen
class Probe:
    """A measurement that is chosen, made, and fails as a whole."""

    name: str
    metrics: tuple[Metric, ...]
    measure: Callable[[RunningKernel, Effort], Samples]
    #: the kernel has to offer JEP 91
    subshells: bool = False
    #: the probe's cells are written in Python
    python: bool = False
    #: what was measured before would change the figure: the kernel is started anew
    fresh: bool = False


def start_up(kernel: RunningKernel, effort: Effort) -> Samples:
    return {"start-reply": [kernel.first_reply], "start-cell": [kernel.first_cell]}


def memory(kernel: RunningKernel, effort: Effort) -> Samples:
    time.sleep(1)  # what a kernel still loads in the background after its first cell belongs to it
    return {"memory": [kernel.resident_megabytes()]}


def subshell_memory(kernel: RunningKernel, effort: Effort) -> Samples:
    """Measure what a subshell keeps that has executed a cell, as long as it lives."""
    client = kernel.client
    # The first subshell brings in code and caches that are not its own.
    with _subshell(client, effort):
        pass
    before = kernel.resident_megabytes()
    subshells = [client.create_subshell() for _ in range(effort.kept)]
    for subshell in subshells:
        client.execute(effort.cell, subshell)
    grown = kernel.resident_megabytes() - before
    for subshell in subshells:
        client.delete_subshell(subshell)
    return {"subshell-memory": [grown / effort.kept]}


def control(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    samples = []
    for request in [client.request("kernel_info_request", {}) for _ in range(effort.latencies)]:
        client.drain()
        reply, seconds = client.round_trip(client.control, request)
        client.checked(reply)
        samples.append(seconds * 1e3)
    return {"control": samples}


def execute(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    samples: Samples = {"execute-reply": [], "execute-idle": []}
    for request in [client.execute_request(effort.cell) for _ in range(effort.latencies)]:
        begin = time.perf_counter()
        reply, seconds = client.round_trip(client.shell, request)
        client.wait_for_idle(request)
        end = time.perf_counter()
        client.checked(reply)
        samples["execute-reply"].append(seconds * 1e3)
        samples["execute-idle"].append((end - begin) * 1e3)
    return samples


def pipelined(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    rate = _pipelined(
        client, [client.execute_request(effort.cell) for _ in range(effort.pipelined)]
    )
    return {"pipelined": [rate]}


def eight_subshells(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    subshells = [client.create_subshell() for _ in range(8)]
    for subshell in subshells:
        client.execute(effort.cell, subshell)
    requests = [
        client.execute_request(effort.cell, subshell)
        for _ in range(effort.each)
        for subshell in subshells
    ]
    rate = _pipelined(client, requests)
    for subshell in subshells:
        client.delete_subshell(subshell)
    return {"eight-subshells": [rate]}


def _pipelined(client: Client, requests: list[Request]) -> float:
    """Send all requests at once; return how many were replied to per second.

    The clock stops at the last reply; that every request becomes idle too is seen to afterwards.
    """
    client.drain()
    replies: list[list[bytes]] = []
    begin = time.perf_counter()
    for request in requests:
        client.shell.send_multipart(request.frames)
    while len(replies) < len(requests):
        try:
            replies.append(client.receive(client.shell))
        except ProbeFailed as error:
            raise ProbeFailed(f"{len(replies)} of {len(requests)} replies: {error}") from error
    seconds = time.perf_counter() - begin
    waiting = {request.msg_id for request in requests}
    for frames in replies:
        message = Message.of(frames)
        client.checked(message)
        waiting.remove(message.parent_id)
    idle = {request.msg_id for request in requests}
    while idle:
        try:
            message = Message.of(client.receive(client.iopub))
        except ProbeFailed as error:
            raise ProbeFailed(f"{len(idle)} of {len(requests)} never idle: {error}") from error
        if b'"idle"' in message.raw_content:
            idle.discard(message.parent_id)
    return len(requests) / seconds


def subshell_life(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    samples: Samples = {"subshell-create": [], "subshell-first": [], "subshell-delete": []}
    for _ in range(effort.subshells):
        client.drain()
        reply, create = client.round_trip(
            client.control, client.request("create_subshell_request", {})
        )
        subshell = str(client.checked(reply)["subshell_id"])
        first_cell = client.execute_request(effort.cell, subshell)
        end_of_life = client.request("delete_subshell_request", {"subshell_id": subshell})
        reply, first = client.round_trip(client.shell, first_cell)
        client.checked(reply)
        client.wait_for_idle(first_cell)
        reply, delete = client.round_trip(client.control, end_of_life)
        client.checked(reply)
        samples["subshell-create"].append(create * 1e3)
        samples["subshell-first"].append(first * 1e3)
        samples["subshell-delete"].append(delete * 1e3)
    return samples


@contextmanager
def _subshell(client: Client, effort: Effort) -> Iterator[str]:
    """Give a subshell that has executed a cell; delete it at the end, unless the probe failed."""
    subshell = client.create_subshell()
    client.execute(effort.cell, subshell)
    yield subshell
    client.delete_subshell(subshell)


# The main shell is occupied

#: Nothing here gives up the GIL by itself: the main shell does so when it is told to, not before.
LOOP = "pass"
SLEEP = "time.sleep(0.05)"
#: Top-level await, in the event loop that the kernel runs its cells in.
AWAIT = "await sleep(0.05)"

# `sys` holds the flag, as a namespace need not be common to all subshells.
_OCCUPY = """\
import pathlib, sys, time
if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
    from trio import sleep
else:
    from asyncio import sleep
sys.benchmark_goes_on = True
limit = time.monotonic() + {seconds}
pathlib.Path({marker!r}).touch()
while sys.benchmark_goes_on and time.monotonic() < limit:
    {step}
"""
_RELEASE = "import sys; sys.benchmark_goes_on = False"


def _while_occupied(
    kernel: RunningKernel,
    effort: Effort,
    step: str,
    socket: zmq.Socket[bytes],
    requests: list[Request],
    subshell: str | None,
) -> list[float]:
    """Return the round trips in ms of those `requests` that ended while the main shell was busy.

    `subshell` is where the main shell's cell is ended from; without one, it ends by itself.

    Raises `ProbeFailed` when there is none of them.
    """
    client = kernel.client
    # The cell itself says when it begins, past everything that a kernel does before it (writing the
    # history takes 30 ms at times), and not by a message, which might be held up.
    marker = kernel.directory / "occupied"
    marker.unlink(missing_ok=True)
    code = _OCCUPY.format(seconds=effort.seconds, marker=str(marker), step=step)
    cell = client.execute_request(code)
    client.shell.send_multipart(cell.frames)
    while not marker.exists():
        client.check()
        time.sleep(0.001)
    # Left alone, the cell ends that long after it began: what is answered later, it didn't delay.
    limit = time.perf_counter() + effort.seconds * 0.95
    samples: list[float] = []
    replies: list[Message] = []
    for request in requests:
        begin = time.perf_counter()
        socket.send_multipart(request.frames)
        message = client.receive_for(socket, request, cell)
        end = time.perf_counter()
        replies.append(message)
        if message.answers(cell):
            replies.append(client.receive_for(socket, request))
            break
        if end > limit or (socket is not client.shell and client.shell.poll(0)):
            break
        samples.append((end - begin) * 1e3)
    if not any(message.answers(cell) for message in replies):
        replies += _release(client, cell, subshell)
    client.wait_for_idle(cell)
    for message in replies:
        client.checked(message)
    if not samples:
        raise ProbeFailed("no reply until the main shell's cell ended")
    return samples


def _release(client: Client, cell: Request, subshell: str | None) -> list[Message]:
    """End the main shell's `cell`, or await its end where there is no `subshell` to do it from."""
    requests = [cell]
    if subshell is not None:
        requests.append(client.execute_request(_RELEASE, subshell))
        client.shell.send_multipart(requests[1].frames)
    return [client.receive_for(client.shell, *requests) for _ in requests]


def _subshell_while(name: str, step: str) -> Callable[[RunningKernel, Effort], Samples]:
    def measure(kernel: RunningKernel, effort: Effort) -> Samples:
        client = kernel.client
        with _subshell(client, effort) as subshell:
            requests = [
                client.execute_request(effort.cell, subshell) for _ in range(effort.occupied)
            ]
            samples = _while_occupied(kernel, effort, step, client.shell, requests, subshell)
        return {name: samples}

    return measure


def control_while_looping(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    requests = [client.request("kernel_info_request", {}) for _ in range(effort.occupied)]
    if not kernel.has_subshells:
        samples = _while_occupied(kernel, effort, LOOP, client.control, requests, None)
    else:
        with _subshell(client, effort) as subshell:
            samples = _while_occupied(kernel, effort, LOOP, client.control, requests, subshell)
    return {"control-while-looping": samples}


# Output

_PRINT = "for i in range({lines}): print(i)"


def printed_lines(kernel: RunningKernel, effort: Effort) -> Samples:
    client = kernel.client
    request = client.execute_request(_PRINT.format(lines=effort.lines))
    client.drain()
    lines = messages = 0
    idle = False
    first = 0.0
    begin = time.perf_counter()
    client.shell.send_multipart(request.frames)
    with ExitStack() as patience:
        while lines < effort.lines or not idle:
            try:
                content = client.receive_for(client.iopub, request).raw_content
            except ProbeFailed as error:
                raise ProbeFailed(f"{lines:,} of {effort.lines:,} lines came: {error}") from error
            if b'"text"' in content:
                first = first or time.perf_counter() - begin
                # The cell prints digits only: JSON's escape for a line's end can't mean anything
                # else.
                lines += content.count(b"\\n")
                messages += 1
            elif b'"idle"' in content:
                idle = True
                # Output should not come behind it. Where some was dropped, don't wait for long.
                patience.enter_context(client.within(3))
    seconds = time.perf_counter() - begin
    client.checked(client.receive_for(client.shell, request))
    if lines > effort.lines:
        raise ProbeFailed(f"{lines:,} lines came out where {effort.lines:,} were printed")
    return {
        "print-lines": [seconds],
        "print-first-line": [first * 1e3],
        "print-messages": [float(messages)],
    }


PROBES: tuple[Probe, ...] = (
    Probe(
        "start",
        (
            Metric("start-reply", "start-up to the first reply", "s"),
            Metric("start-cell", "start-up to the first executed cell", "s"),
        ),
        start_up,
        fresh=True,
    ),
    Probe("memory", (Metric("memory", "memory at rest", "MB"),), memory, fresh=True),
    Probe("control", (Metric("control", "control round trip (kernel_info)", "ms"),), control),
    Probe(
        "execute",
        (
            Metric("execute-reply", "execute to reply", "ms"),
            Metric("execute-idle", "execute to reply and idle", "ms"),
        ),
        execute,
    ),
    Probe(
        "pipelined",
        (Metric("pipelined", "pipelined executes", "per second", higher_is_better=True),),
        pipelined,
    ),
    Probe(
        "print",
        (
            Metric("print-lines", "100,000 printed lines", "s"),
            Metric("print-first-line", "  until the first line is there", "ms"),
            Metric("print-messages", "  messages they came in", "messages"),
        ),
        printed_lines,
        python=True,
    ),
    Probe(
        "subshell",
        (
            Metric("subshell-create", "create a subshell", "ms"),
            Metric("subshell-first", "first execute in it", "ms"),
            Metric("subshell-delete", "delete it", "ms"),
        ),
        subshell_life,
        subshells=True,
    ),
    Probe(
        "eight-subshells",
        (
            Metric(
                "eight-subshells",
                "8 subshells at once, executes",
                "per second",
                higher_is_better=True,
            ),
        ),
        eight_subshells,
        subshells=True,
    ),
    Probe(
        "subshell-while-looping",
        (Metric("subshell-while-looping", "subshell's reply, main shell loops", "ms"),),
        _subshell_while("subshell-while-looping", LOOP),
        subshells=True,
        python=True,
    ),
    Probe(
        "subshell-while-sleeping",
        (Metric("subshell-while-sleeping", "subshell's reply, main shell sleeps", "ms"),),
        _subshell_while("subshell-while-sleeping", SLEEP),
        subshells=True,
        python=True,
    ),
    Probe(
        "subshell-while-awaiting",
        (Metric("subshell-while-awaiting", "subshell's reply, main shell awaits", "ms"),),
        _subshell_while("subshell-while-awaiting", AWAIT),
        subshells=True,
        python=True,
    ),
    Probe(
        "control-while-looping",
        (Metric("control-while-looping", "control round trip, main shell loops", "ms"),),
        control_while_looping,
        python=True,
    ),
    Probe(
        "subshell-memory",
        (Metric("subshell-memory", "memory per subshell", "MB"),),
        subshell_memory,
        subshells=True,
        fresh=True,
    ),
)
