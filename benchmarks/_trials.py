"""What the guarantees are tried with: black-box trials of one kernel, each with its own processes.

A trial knows nothing of the kernel that it is made on. It returns what it saw, in a few words for
the table and in figures; it never judges. What a kernel can do to it (not answer, die, talk
nonsense) is an observation like any other, so a trial never waits without a limit.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import attrs
from _cells import Cell, Kind
from _client import Client, Message, ProbeFailed
from _desk import Desk, Latency, Pending, Pulse, ratio
from _kernels import KernelSpec, RunningKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

#: Seconds until a kernel has to be there.
START = 20.0

#: Seconds until a pool's threads that have nothing to do are gone: trio's live on for ten.
THREADS = 12.0

#: A reply that took more seconds than this counts as a pause rather than as slow.
PAUSE = 0.25


@attrs.frozen
class Effort:
    """How much is tried: `repeats` of what is timed, and how often other things are done."""

    repeats: int = 5
    #: replies of an idle kernel, to compare with
    beats: int = 60
    rounds: int = 300
    malformed: int = 20_000
    subshells: int = 1000
    clients: int = 1000

    @classmethod
    def quick(cls) -> Effort:
        """Return the effort that shows whether everything works."""
        return cls(repeats=2, beats=15, rounds=50, malformed=2000, subshells=200, clients=100)


@attrs.frozen
class Verdict:
    """What a kernel did: `text` is its cell of the table, `facts` are the figures behind it."""

    text: str
    facts: Mapping[str, Any] = attrs.field(factory=dict)


class Lab:
    """Where one trial is made on one kernel: starts processes, and ends them however it goes.

    All that the trial waits for has to come within `deadline` seconds, each kernel's start aside.
    """

    def __init__(self, spec: KernelSpec, effort: Effort, deadline: float) -> None:
        self.spec = spec
        self.effort = effort
        self.deadline = deadline
        self._stack = ExitStack()

    def start(self, *, launcher: Sequence[str] = (), curve: bool = False) -> RunningKernel:
        """Start a kernel, which ends with the trial.

        Raises `ProbeFailed` if it doesn't start; tried again, as its ports may have been taken.
        """
        for last in (False, False, True):
            try:
                kernel = RunningKernel(
                    self.spec,
                    cell="pass",
                    store_history=False,
                    timeout=START,
                    launcher=launcher,
                    curve=curve,
                )
            except ProbeFailed:
                if last:
                    raise
            else:
                break
        self._stack.callback(kernel.close)
        self.admit(kernel.client)
        return kernel

    def connect(self, kernel: RunningKernel) -> Client:
        """Return a further client."""
        return self.admit(kernel.connect())

    def admit(self, client: Client) -> Client:
        """Give a client's waits the time that the trial has."""
        self._stack.enter_context(client.within(self.deadline))
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


@attrs.frozen
class Trial:
    """A row of the table.

    `key` names it on the command line, `group` is the table it belongs to, `title` its first cell.
    All that it waits for comes within `deadline` seconds. Kernels without subshells are left out if
    it needs `subshells`.
    """

    key: str
    group: str
    title: str
    make: Callable[[Lab], Verdict]
    deadline: float = 60.0
    subshells: bool = False


# In words


def duration(seconds: float) -> str:
    """Return a time as people write it."""
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def growth(megabytes: float) -> str:
    """Return a change of memory."""
    return f"{megabytes:+.0f} MB" if abs(megabytes) >= 9.5 else f"{megabytes:+.1f} MB"


def outcome(reply: Message | None) -> str:
    """Return the status of a reply, with the error's name if it has one."""
    if reply is None:
        return "no reply"
    content = reply.content
    status = str(content.get("status"))
    return str(content.get("ename", status)) if status == "error" else status


def _said(reply: Message | None) -> str:
    return f"{reply.content.get('evalue', '')}" if reply is not None else ""


def _others(name: str, during: list[Latency], idle: list[Latency]) -> str:
    longest = max(during)
    # One long pause hides among many short times: it says more than any median.
    if longest.seconds <= PAUSE:
        return f"{name} {ratio(during, idle):.1f}×"
    if longest.answered:
        return f"{name} waited {duration(longest.seconds)}"
    return f"{name}: no reply in {duration(longest.seconds)}"


# Delete


def deleting(kind: Kind, lab: Lab, timeout: float | None = None) -> Verdict:
    """Delete a subshell that runs a cell, while another subshell and control are being used.

    The times of the others are compared with those that the same kernel had when it was idle.
    """
    patience = 8.0
    kernel = lab.start()
    client, neighbour = kernel.client, lab.connect(kernel)
    other = client.create_subshell()
    client.execute("pass", other)
    client.delete_subshell(client.create_subshell())
    desk = Desk()
    pulses = {
        "others": Pulse(
            desk, neighbour, neighbour.shell, partial(neighbour.execute_request, "pass", other)
        ),
        "control": Pulse(
            desk,
            neighbour,
            neighbour.control,
            partial(neighbour.request, "kernel_info_request", {}),
        ),
    }
    begin = _beat(desk, pulses, lab.effort.beats)
    idle = {name: pulse.latencies(begin, time.perf_counter()) for name, pulse in pulses.items()}
    threads = kernel.process.num_threads()
    times: dict[bool, list[float]] = {True: [], False: []}
    during: dict[str, list[Latency]] = {name: [] for name in pulses}
    before: dict[str, list[Latency]] = {name: [] for name in pulses}
    cleaned = True
    stuck = ""
    for number in range(2 * lab.effort.repeats):
        try:
            with client.within(10):
                subshell = client.create_subshell()
                cell = Cell.start(kernel, client, kind, subshell)
        except ProbeFailed as error:
            if not number:
                raise
            stuck = str(error)  # by what the deletion has left running
            break
        content: dict[str, Any] = {"subshell_id": subshell}
        if timeout is not None:
            content["timeout"] = timeout
        request = client.request("delete_subshell_request", content)
        running = desk.expect(client.shell, cell.request)
        pulsed = number % 2 == 0  # every other time nobody else is there, and the time is its own
        start = time.perf_counter()
        if pulsed:
            start = _beat(desk, pulses, 3, stop=False)
        begin = time.perf_counter()
        deletion = desk.send(client.control, request)
        desk.wait(deletion, seconds=patience)
        end = time.perf_counter()
        if deletion.reply is not None:
            times[pulsed].append(deletion.seconds)
        if pulsed:
            _stop(pulses)
            for name, pulse in pulses.items():
                before[name] += pulse.latencies(start, begin)
                during[name] += pulse.latencies(begin, end)
        desk.wait(running, seconds=1)
        cleaned = cell.cleaned.exists()
        if outcome(deletion.reply) != "ok" or deletion.seconds > 1:
            break
    ended = outcome(deletion.reply) == "ok"
    facts: dict[str, Any] = {
        "seconds": times[False],
        "seconds while others work": times[True],
        "reply": outcome(deletion.reply),
        "message": _said(deletion.reply),
        "cell": outcome(running.reply),
        "afterwards": stuck,
        "others": {
            name: {
                "idle": _seconds(idle[name]),
                "cell runs": _seconds(before[name]),
                "deletion": _seconds(during[name]),
            }
            for name in pulses
        },
    }
    words = [
        f"{duration(statistics.median(times[False] or times[True]))}, {outcome(deletion.reply)}"
        if times[True]
        else f"no reply in {patience:.0f} s",
        f"cell: {outcome(running.reply)}",
    ]
    if stuck:
        words.append("afterwards no other subshell works")
    if kind.cleans:
        words.append("`finally` completed" if cleaned else "`finally` cut short")
    if ended:
        facts["threads left"] = left = _settled(
            lambda: kernel.process.num_threads() - threads, THREADS
        )
        if left > 0:
            words.append(f"{left} thread{'s' * (left > 1)} left")
    if kind.key == "children":
        facts["children left"] = left = len(kernel.strays())
        words.append(f"{left} child{'ren' * (left != 1)} left")
    words += [_others(name, during[name], idle[name]) for name in pulses if during[name]]
    return Verdict("; ".join(words), facts)


def _seconds(latencies: list[Latency]) -> list[float]:
    return [each.seconds for each in latencies]


def _beat(desk: Desk, pulses: Mapping[str, Pulse], beats: int, *, stop: bool = True) -> float:
    """Start the pulses, and return when it was, once each has beaten so often, or in 2 s."""
    begin = time.perf_counter()
    for pulse in pulses.values():
        pulse.start()
    desk.run_until(
        lambda: all(pulse.answered(begin, float("inf")) >= beats for pulse in pulses.values()), 2
    )
    if stop:
        _stop(pulses)
    return begin


def _stop(pulses: Mapping[str, Pulse]) -> None:
    for pulse in pulses.values():
        pulse.stop(1)


def _settled(count: Callable[[], int], seconds: float = 1.0) -> int:
    """Return a count that should go down to 0, once it has or after a time."""
    limit = time.monotonic() + seconds
    while (left := count()) > 0 and time.monotonic() < limit:
        time.sleep(0.01)
    return left


# Interrupt, timeout


def interrupting(kind: Kind, lab: Lab, *, subshell: bool, again: bool = False) -> Verdict:
    """Interrupt the kernel, as Jupyter does it, while a cell runs in the main shell or another.

    `again`: once more after a second, as people do when nothing has happened.
    """
    kernel = lab.start()
    client = kernel.client
    where = client.create_subshell() if subshell else None

    def interrupt() -> None:
        kernel.interrupt()
        if again:
            time.sleep(1)
            kernel.interrupt()

    return _ending(kind, lab, kernel, where, interrupt, 0)


def timing_out(kind: Kind, lab: Lab, *, subshell: bool) -> Verdict:
    """Execute a cell with a timeout in its metadata."""
    kernel = lab.start()
    client = kernel.client
    where = client.create_subshell() if subshell else None
    return _ending(kind, lab, kernel, where, lambda: None, 0.5, timeout=0.5)


def _ending(
    kind: Kind,
    lab: Lab,
    kernel: RunningKernel,
    where: str | None,
    end: Callable[[], None],
    expected: float,
    **metadata: float,
) -> Verdict:
    """Start cells of a kind, end each, and see whether the next cell in that shell works.

    A time counts beyond what is `expected` anyway.
    """
    patience = 7.0
    client = kernel.client
    client.execute("pass", where)
    times: list[float] = []
    following: Pending | None = None
    for _ in range(lab.effort.repeats):
        desk = Desk()
        cell = Cell.start(kernel, client, kind, where, **metadata)
        running = desk.expect(client.shell, cell.request)
        end()
        desk.wait(running, seconds=patience + expected)
        if running.reply is None:
            break
        times.append(running.seconds - expected)
        following = desk.send(client.shell, client.execute_request("pass", where))
        desk.wait(following, seconds=3)
        if outcome(following.reply) != "ok" or running.seconds > 1 + expected:
            break
    facts: dict[str, Any] = {
        "seconds": times,
        "cell": outcome(running.reply),
        "message": _said(running.reply),
        "next cell": outcome(following.reply) if following else None,
    }
    if running.reply is None:
        return Verdict(f"no end in {patience:.0f} s", facts)
    words = [f"{duration(statistics.median(times))}, {outcome(running.reply)}"]
    if kind.cleans:
        complete = cell.cleaned.exists()
        words.append("`finally` completed" if complete else "`finally` cut short")
    if facts["next cell"] != "ok":
        words.append(f"next cell: {facts['next cell']}")
    if kind.key == "children":
        facts["children left"] = left = len(kernel.strays())
        words.append(f"{left} child{'ren' * (left != 1)} left")
    return Verdict("; ".join(words), facts)


def interrupting_all(kind: Kind, lab: Lab, how: Callable[[RunningKernel], None]) -> Verdict:
    """Interrupt the kernel while the main shell and two subshells run a cell each."""
    kernel = lab.start()
    client = kernel.client
    shells = [None, client.create_subshell(), client.create_subshell()]
    desk = Desk()
    cells = [Cell.start(kernel, client, kind, shell) for shell in shells]
    pending = [desk.expect(client.shell, cell.request) for cell in cells]
    how(kernel)
    desk.wait(*pending, seconds=5)
    ended = [each for each in pending if each.reply is not None]
    text = f"{len(ended)} of 3 ended"
    if ended:
        text += f", the last after {duration(max(each.seconds for each in ended))}"
    if pending[0].reply is None:
        text += "; not the main shell's"
    return Verdict(text, {"cells": [outcome(each.reply) for each in pending]})


def interrupt_request(kernel: RunningKernel) -> None:
    """Interrupt by a message, whatever the kernelspec says."""
    client = kernel.client
    client.control.send_multipart(client.request("interrupt_request", {}).frames)


def sigint(kernel: RunningKernel) -> None:
    """Interrupt by a signal, whatever the kernelspec says."""
    import signal

    kernel.process.send_signal(signal.SIGINT)


def interrupting_one(kind: Kind, lab: Lab) -> Verdict:
    """Interrupt one of three running cells by the id of its subshell."""
    kernel = lab.start()
    client = kernel.client
    aim, *rest = client.create_subshell(), client.create_subshell(), None
    desk = Desk()
    cells = [Cell.start(kernel, client, kind, shell) for shell in (aim, *rest)]
    pending = [desk.expect(client.shell, cell.request) for cell in cells]
    request = client.request("interrupt_request", {"subshell_id": aim})
    answer = desk.send(client.control, request)
    desk.wait(pending[0], seconds=5)
    desk.wait(*pending, seconds=0.5)
    replies = [outcome(each.reply) for each in pending]
    features = [
        str(name) for name in kernel.info.get("supported_features", ()) if "interrupt" in str(name)
    ]
    facts = {"request": outcome(answer.reply), "cells": replies, "supported_features": features}
    hit = [each.reply is not None for each in pending]
    if hit == [True, False, False]:
        text = f"{duration(pending[0].seconds)}, that one alone"
    elif not any(hit):
        text = "none ended in 5 s"
    else:
        text = f"ended: {'that one' if hit[0] else 'not that one'}, and {sum(hit[1:])} of 2 others"
    text += f"; advertised as {', '.join(map(repr, features))}" if features else "; not advertised"
    return Verdict(text, facts)


# Shutdown, the parent's death


def shutting_down(kind: Kind | None, lab: Lab, *, subshell: bool, restart: bool = False) -> Verdict:
    """Shut the kernel down while a cell runs and another one waits behind it."""
    patience = 12.0
    kernel = lab.start()
    client = kernel.client
    where = client.create_subshell() if subshell else None
    desk = Desk()
    owed: list[Pending] = []
    if kind is not None:
        running = Cell.start(kernel, client, kind, where).request
        queued = client.execute_request("pass", where)
        client.shell.send_multipart(queued.frames)
        owed = [desk.expect(client.shell, request) for request in (running, queued)]
    begin = time.perf_counter()
    goodbye = desk.send(client.control, client.request("shutdown_request", {"restart": restart}))
    limit = begin + patience
    ended = 0.0
    while not ended and time.perf_counter() < limit:
        desk.run_until(lambda: False, 0.005)
        if kernel.exit_code(0) is not None:
            ended = time.perf_counter() - begin
    desk.wait(goodbye, *owed, seconds=0.2)
    code = kernel.exit_code(0)
    facts: dict[str, Any] = {
        "seconds": ended,
        "exit code": code,
        "reply": outcome(goodbye.reply),
        "restart": goodbye.reply and goodbye.reply.content.get("restart"),
        "owed": [outcome(each.reply) for each in owed],
        "processes left": _settled(lambda: len(kernel.strays())) if ended else None,
        "files left": kernel.temporary_files(),
    }
    words = [f"exit {code} after {duration(ended)}" if ended else f"runs on after {patience:.0f} s"]
    if facts["reply"] != "ok":
        words.append(f"shutdown: {facts['reply']}")
    if owed:
        words.append(f"cell: {facts['owed'][0]}, queued: {facts['owed'][1]}")
    if ended and facts["processes left"]:
        words.append(f"{facts['processes left']} processes left")
    if ended and facts["files left"]:
        words.append(f"{len(facts['files left'])} temporary files left")
    return Verdict("; ".join(words), facts)


#: Starts a kernel as its child, leaves word of its process id, and lives on.
_PARENT = """\
import os, pathlib, subprocess, sys, time
os.environ["JPY_PARENT_PID"] = str(os.getpid())
child = subprocess.Popen(sys.argv[1:])
pathlib.Path("child.tmp").write_text(str(child.pid))
os.replace("child.tmp", "child")
sys.exit(child.wait())
"""


def orphaning(kind: Kind | None, lab: Lab, *, subshell: bool) -> Verdict:
    """Kill the process that has started the kernel, and see what becomes of that."""
    import sys

    patience = 15.0
    kernel = lab.start(launcher=(sys.executable, "-c", _PARENT))
    child = kernel.directory / "child"
    pid = int(child.read_text())
    where = kernel.client.create_subshell() if subshell else None
    if kind is not None:
        Cell.start(kernel, kernel.client, kind, where)
    begin = time.perf_counter()
    kernel.process.kill()
    kernel.exit_code(5)
    limit = begin + patience
    while (alive := [each.pid for each in kernel.strays()]) and time.perf_counter() < limit:
        time.sleep(0.05)
    seconds = time.perf_counter() - begin
    facts = {"seconds": seconds, "kernel lives": pid in alive, "processes left": len(alive)}
    if pid in alive:
        return Verdict(f"runs on after {patience:.0f} s", facts)
    if alive:
        return Verdict(f"has ended; {len(alive)} processes left after {patience:.0f} s", facts)
    return Verdict(f"gone after {duration(seconds)}", facts)


def ask_both(client: Client, patience: float) -> dict[str, Any]:
    """Ask on shell (for a cell) and on control (for information); return how long each took.

    A cell that is aborted, as one before it has failed, is sent again. ``None`` stands for no
    success within that time.
    """
    desk = Desk()
    limit = time.perf_counter() + patience
    begin = time.perf_counter()
    control = desk.send(client.control, client.request("kernel_info_request", {}))
    shell = desk.send(client.shell, client.execute_request("pass"))
    while desk.wait(shell, seconds=limit - time.perf_counter()) and outcome(shell.reply) != "ok":
        shell = desk.send(client.shell, client.execute_request("pass"))
    desk.wait(control, seconds=limit - time.perf_counter())
    return {
        "shell": shell.received - begin if shell.reply is not None else None,
        "control": control.seconds if control.reply is not None else None,
    }


def in_words(answers: Mapping[str, float | None], patience: float) -> str:
    """Say what `ask_both` has found."""
    dead = [name for name, seconds in answers.items() if seconds is None]
    if dead:
        return f"no answer on {' and '.join(dead)} in {patience:.0f} s"
    slowest = max(seconds for seconds in answers.values() if seconds is not None)
    return f"answers after {duration(slowest)}"
