"""Whether anything wedges a kernel: cells of every kind are ended at random moments, from a seed.

    python benchmarks/stress.py trio-python --minutes 20 --seed 1

Several lanes work at the same time, one in the main shell, each of the others in one subshell after
the other. A lane starts a cell that doesn't end by itself, or that ends just about now, lets others
queue behind it, and then deletes the subshell, interrupts the kernel, waits for a timeout, or does
several of these, before the cell has begun or after. Meanwhile the control channel and a subshell
of their own are asked all the time. Every now and then the kernel is shut down in the middle of it
all, and a new one is started. It is checked that

- nothing that is asked on control waits for longer than 10 s, other than for the end of a cell;
- every request gets exactly one reply, one busy and one idle;
- what can be ended is ended, and then no subshell is left;
- a shutdown ends the kernel, with exit code 0, and leaves no process.

If something waits too long, the stacks of all of the kernel's threads are shown. The exit code says
whether all was as it should be. A kernel is named as in ``compare.py``.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import attrs
import psutil  # type: ignore[import-untyped]
import zmq
from _cells import KINDS, Cell, Kind
from _client import Client, Message, ProbeFailed, Request
from _kernels import KernelNotFound, KernelSpec, RunningKernel, find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Seconds for a request on control that ends nothing, and for the end of a kernel.
LONG = 10.0
#: Seconds for everything else. What a cell does that can't be ended lasts less.
LONGER = 60.0
#: Seconds between two questions on a channel that is watched.
BEAT = 0.01

#: Kinds of cells that take more than one interrupt to end.
STUBBORN = frozenset({"base-exception", "base-exception-await", "shield"})
#: Kinds that nothing ends before their time is over.
DEAF = frozenset({"call", "gil"})

#: They end by themselves, or do what those of the guarantees don't.
FURTHER = (
    Kind("short", "ends about now", "_begun()\nfor _ in range(20_000): pass"),
    Kind("fails", "fails", "_begun()\n1 / 0"),
    Kind("prints", "prints", "_begun()\nwhile True:\n    print('x' * 100)"),
    Kind(
        "garbage",
        "makes garbage that runs code when it is collected",
        "class _Garbage:\n"
        "    def __init__(self): self.cycle = self\n"
        "    def __del__(self): pass\n"
        "_begun()\n"
        "while True:\n"
        "    _Garbage()",
    ),
    Kind(
        "threads",
        "starts threads",
        "import threading\n"
        "def _threads():\n"
        "    while True:\n"
        "        thread = threading.Thread(target=int)\n"
        "        thread.start()\n"
        "        thread.join()\n"
        "_begun()\n"
        "_threads()",
    ),
    Kind("programs", "runs programs", "_begun()\nwhile True:\n    subprocess.run(['true'])"),
)

#: Lets a kernel show all of its threads, even if none of them can run.
STACKS = """\
import faulthandler as _faulthandler, signal as _signal
_stacks = open({path!r}, "w")
_faulthandler.register(_signal.SIGUSR1, _stacks, all_threads=True)
"""


class Wrong(Exception):
    """The kernel did what it must not; the message says what."""


class Owed:
    """A request, and what has come for it.

    `patience` is how many seconds it may take until the reply.
    """

    def __init__(self, name: str, patience: float) -> None:
        self.name = name
        self.patience = patience
        self.sent = time.monotonic()
        self.received = 0.0
        self.reply: Message | None = None
        self.states: list[str] = []

    @property
    def is_answered(self) -> bool:
        return self.reply is not None

    @property
    def is_done(self) -> bool:
        return self.reply is not None and self.states == ["busy", "idle"]

    @property
    def status(self) -> str:
        """The reply's, or its error's name."""
        assert self.reply is not None
        content = self.reply.content
        return str(content.get("ename", content.get("status")))


class Account:
    """Sends requests to one kernel, and knows what it owes for each of them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._poller = zmq.Poller()
        for socket in (client.shell, client.control, client.stdin, client.iopub):
            self._poller.register(socket, zmq.POLLIN)
        self._owed: dict[bytes, Owed] = {}
        self._unanswered: dict[bytes, Owed] = {}
        self.count = 0

    def send(
        self,
        socket: zmq.Socket[bytes],
        request: Request,
        name: str,
        patience: float = LONGER,
    ) -> Owed:
        """Send a request."""
        owed = Owed(name, patience)
        self._owed[request.msg_id] = self._unanswered[request.msg_id] = owed
        self.count += 1
        socket.send_multipart(request.frames)
        return owed

    def receive(self, milliseconds: int) -> None:
        """Take what has come, wait for so long if that is nothing; see whether it is in time."""
        for socket, _ in self._poller.poll(milliseconds):
            for _ in range(100):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(Message.of(frames), published=socket is self.client.iopub)
        now = time.monotonic()
        for owed in self._unanswered.values():
            if now - owed.sent > owed.patience:
                raise Wrong(f"no reply in {now - owed.sent:.1f} s to {owed.name}")

    def _take(self, message: Message, *, published: bool) -> None:
        owed = self._owed.get(message.parent_id)
        msg_type = message.msg_type
        if owed is None or msg_type == "input_request":
            return
        if published:
            if msg_type == "status":
                owed.states.append(message.content["execution_state"])
                if owed.states != ["busy", "idle"][: len(owed.states)]:
                    raise Wrong(f"{owed.states} for {owed.name}")
            elif owed.states != ["busy"] and msg_type != "stream":  # threads may write later
                raise Wrong(f"{msg_type} after {owed.states} for {owed.name}")
            return
        if owed.reply is not None:
            raise Wrong(f"a second reply, {message.raw_content!r:.200}, to {owed.name}")
        owed.reply, owed.received = message, time.monotonic()
        del self._unanswered[message.parent_id]

    def unfinished(self) -> list[str]:
        """Return what lacks its reply, its busy or its idle; all of it, if none."""
        return [
            f"{owed.name} ({'answered' if owed.is_answered else 'no reply'}, {owed.states})"
            for owed in self._owed.values()
            if not owed.is_done
        ]

    def forget(self) -> None:
        """Everything is there: from now on only what comes too much for later requests is seen."""
        self._owed.clear()


@attrs.define
class Watch:
    """One question after the other to one place; `worst` is the longest time an answer took."""

    ask: Callable[[], Owed]
    worst: float = 0.0
    stopped: bool = False

    def steps(self) -> Iterator[Callable[[], bool]]:
        """Be a lane."""
        while not self.stopped:
            owed = self.ask()
            yield partial(getattr, owed, "is_answered")
            self.worst = max(self.worst, owed.received - owed.sent)
            yield after(BEAT)


def after(seconds: float) -> Callable[[], bool]:
    """Return what is true once these seconds are over."""
    limit = time.monotonic() + seconds
    return lambda: time.monotonic() >= limit


class Stage:
    """One kernel, and the lanes that work on it."""

    def __init__(
        self, kernel: RunningKernel, rng: random.Random, kinds: Sequence[Kind], lanes: int
    ) -> None:
        self.kernel = kernel
        self.kinds = kinds
        self.client = kernel.client
        self.rng = rng
        self.account = Account(kernel.client)
        self.stacks = kernel.directory / "stacks"
        self.did: Counter[str] = Counter()
        self.replies: Counter[str] = Counter()
        self.rounds = 0
        self.is_over = False
        self._begun: dict[Owed, Path] = {}
        with self.client.within(LONGER):
            self.client.execute(STACKS.format(path=str(self.stacks)))
            self.neighbour = self.client.create_subshell()
            self.client.execute("pass", self.neighbour)
            self.client.wait_for_iopub()
        self.control = Watch(partial(self._control, "kernel_info_request", {}))
        self.others = Watch(
            lambda: self.account.send(
                self.client.shell,
                self.client.execute_request("pass", self.neighbour),
                "a cell in the neighbour",
                LONG,
            )
        )
        self._watches = [self.control.steps(), self.others.steps()]
        self._lanes = [self._main_lane(), *(self._lane(number) for number in range(lanes))]

    # ------------------------------------------------------------------------------ running

    def run(self, rounds: int) -> None:
        """Make so many rounds, then let what is under way come to its end.

        Raises `Wrong`.
        """
        waiting: dict[Iterator[Callable[[], bool]], Callable[[], bool]] = {}
        for lane in (*self._lanes, *self._watches):
            waiting[lane] = lambda: True
        while any(lane in waiting for lane in self._lanes):
            self.account.receive(1)
            if reason := self.kernel.why_dead():
                raise Wrong(reason)
            self.is_over = self.is_over or self.rounds >= rounds
            for lane, condition in list(waiting.items()):
                if condition():
                    try:
                        waiting[lane] = next(lane)
                    except StopIteration:
                        del waiting[lane]
        self.control.stopped = self.others.stopped = True

    def settle(self) -> None:
        """Wait until nothing is owed, and no subshell is left."""
        self._until(lambda: not self.account.unfinished(), self.account.unfinished)
        self.account.forget()
        left: list[str] = []

        def is_clean() -> bool:
            with self.client.within(LONG):
                content = self.client.ask(self.client.control, "list_subshell_request", {})
            left[:] = [each for each in content["subshell_id"] if each != self.neighbour]
            return not left

        self._until(is_clean, lambda: left)

    def _until(self, satisfied: Callable[[], bool], what: Callable[[], list[str]]) -> None:
        limit = time.monotonic() + LONGER
        while not satisfied():
            self.account.receive(10)
            if time.monotonic() > limit:
                raise Wrong(f"after {LONGER:g} s there is still {', '.join(what())[:1000]}")

    def shut_down(self) -> None:
        """Shut the kernel down while cells of all kinds run."""
        subshells = [self._created(), self._created()]
        for where in (None, *subshells):
            kind = self._kind()
            self._execute(kind, where, f"{kind.key} at the shutdown")
            self._queue(where)
        if self.rng.random() < 0.7:
            limit = time.monotonic() + self.rng.random() * 0.3
            while time.monotonic() < limit:
                self.account.receive(1)
        restart = self.rng.random() < 0.5
        self._control("shutdown_request", {"restart": restart}, LONGER)
        limit = time.monotonic() + LONG
        while (code := self.kernel.exit_code(0)) is None:
            self.account.receive(5)
            if time.monotonic() > limit:
                raise Wrong(f"the kernel is still there {LONG:g} s after shutdown_request")
        self.account.receive(100)
        if code != 0:
            raise Wrong(f"exit code {code}: {self.kernel.why_dead()}")
        self._until(lambda: not self.account.unfinished(), self.account.unfinished)
        self._until(lambda: not self.kernel.strays(), lambda: [str(self.kernel.strays())])

    def show_stacks(self) -> str:
        """Return where all threads are, as far as can be known from outside."""
        if self.kernel.exit_code(0) is not None:
            return "the kernel has ended"
        for _ in range(3):  # a list of threads that changes is cut off
            self.kernel.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
        return self.stacks.read_text(encoding="utf-8", errors="replace")

    # -------------------------------------------------------------------------------- lanes

    def _lane(self, number: int) -> Iterator[Callable[[], bool]]:
        """One subshell after the other."""
        while not self.is_over:
            created = self._control("create_subshell_request", {})
            yield partial(getattr, created, "is_answered")
            assert created.reply is not None
            subshell = str(self.client.checked(created.reply)["subshell_id"])
            kind = self._kind()
            name = f"{kind.key} in lane {number}, round {self.rounds}"
            timeout = self.rng.random() * 0.1 if self.rng.random() < 0.2 else None
            cell = self._execute(kind, subshell, name, timeout)
            queued = self._queue(subshell)
            yield from self._moment(cell, kind)
            for _ in range(self.rng.choice((0, 0, 0, 1, 2))):
                self._interrupt(self.rng.choice((None, subshell)))
                yield after(self.rng.choice((0, self.rng.random() * 0.05)))
            content: dict[str, object] = {"subshell_id": subshell}
            if kind.key in DEAF and self.rng.random() < 0.7:
                content["timeout"] = self.rng.random() * 0.5
            deletes = [
                self._control("delete_subshell_request", content, LONGER)
                for _ in range(self.rng.choice((1, 1, 1, 2)))
            ]
            for owed in (cell, *queued, *deletes):
                yield partial(getattr, owed, "is_answered")
            self._judge(kind, name, deletes)
            self._count(kind, cell, "delete")

    def _main_lane(self) -> Iterator[Callable[[], bool]]:
        """One cell after the other in the main shell."""
        while not self.is_over:
            kind = self._kind()
            by_timeout = self.rng.random() < 0.3
            timeout = self.rng.random() * 0.1 if by_timeout else None
            cell = self._execute(kind, None, f"{kind.key} in main", timeout)
            queued = self._queue(None)
            yield from self._moment(cell, kind)
            if not by_timeout:
                for _ in range(2 if kind.key in STUBBORN else 1):
                    self._interrupt(None)
                # One that came too early hit nothing.
                again = after(0.5)
                while not cell.is_answered:
                    yield lambda cell=cell, again=again: cell.is_answered or again()
                    if again() and not cell.is_answered:
                        self._interrupt(None)
                        again = after(0.5)
            for owed in (cell, *queued):
                yield partial(getattr, owed, "is_answered")
            self._count(kind, cell, "timeout" if by_timeout else "interrupt")

    def _kind(self) -> Kind:
        kind = self.rng.choice(self.kinds)
        if kind.key == "call":
            count = self.rng.randrange(1, 2_000_000)  # a second or two, at most
            code = f"_begun()\nhashlib.pbkdf2_hmac('sha256', b'', b'', {count})"
            return attrs.evolve(kind, code=code)
        return kind

    def _moment(self, cell: Owed, kind: Kind) -> Iterator[Callable[[], bool]]:
        begun: Path = self._begun[cell]
        if self.rng.random() < 0.7:
            # Not for ever: the namespace is common, and another cell may have replaced `_begun`.
            enough = after(1)
            yield lambda: begun.exists() or cell.is_answered or enough()
        yield after(self.rng.choice((0, 0.003, 0.02, 0.1)) * self.rng.random())

    def _judge(self, kind: Kind, name: str, deletes: list[Owed]) -> None:
        """Deleted is deleted; the second to ask may come too late; a deaf cell may be there yet."""
        statuses = sorted(delete.status for delete in deletes)
        allowed = [["ok"], ["ok", "ok"], ["UnknownSubshell", "ok"]]
        if kind.key in DEAF:
            allowed += [["SubshellUnjoinable"], ["SubshellUnjoinable"] * 2]
            allowed += [["SubshellUnjoinable", "ok"], ["SubshellUnjoinable", "UnknownSubshell"]]
        if statuses not in allowed:
            said = [delete.reply.content for delete in deletes if delete.reply is not None]
            raise Wrong(f"{statuses} for the deletion of {name}: {said}")

    # ----------------------------------------------------------------------------- requests

    def _execute(
        self, kind: Kind, where: str | None, name: str, timeout: float | None = None
    ) -> Owed:
        metadata = {} if timeout is None else {"timeout": timeout}
        hold = 0.1 + 0.3 * self.rng.random()
        cell = Cell.of(self.kernel, self.client, kind, where, hold=hold, **metadata)
        owed = self.account.send(self.client.shell, cell.request, name)
        self._begun[owed] = cell.begun
        return owed

    def _queue(self, where: str | None) -> list[Owed]:
        requests = [
            ("execute_request", self.client.execute_request("pass", where)),
            (
                "complete_request",
                self.client.request("complete_request", {"code": "pri", "cursor_pos": 3}, where),
            ),
            ("kernel_info_request", self.client.request("kernel_info_request", {}, where)),
        ]
        chosen = self.rng.sample(requests, self.rng.choice((0, 0, 1, 2, 3)))
        return [
            self.account.send(self.client.shell, request, f"a queued {name}")
            for name, request in chosen
        ]

    def _control(self, msg_type: str, content: dict[str, object], patience: float = LONG) -> Owed:
        request = self.client.request(msg_type, content)
        return self.account.send(self.client.control, request, f"{msg_type} {content}", patience)

    def _interrupt(self, subshell: str | None) -> None:
        if subshell is None and self.rng.random() < 0.2:
            self.kernel.process.send_signal(signal.SIGINT)
            self.did["SIGINT"] += 1
            return
        content: dict[str, object] = {} if subshell is None else {"subshell_id": subshell}
        self._control("interrupt_request", content, LONGER)
        self.did["interrupt_request"] += 1

    def _created(self) -> str:
        with self.client.within(LONG):
            return self.client.create_subshell()

    def _count(self, kind: Kind, cell: Owed, what: str) -> None:
        self.rounds += 1
        self.did[what] += 1
        self.replies[f"{kind.key}: {cell.status}"] += 1
        self._begun.pop(cell).unlink(missing_ok=True)


def stress(spec: KernelSpec, options: argparse.Namespace) -> bool:
    """Stress one kernel after the other; return whether all was as it should be."""
    rng = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    did: Counter[str] = Counter()
    replies: Counter[str] = Counter()
    number = 0
    print("  kernel  rounds  requests  control  others  threads  descriptors       MB")
    while time.monotonic() < end:
        number += 1
        with RunningKernel(spec, cell="pass", store_history=False, timeout=LONGER) as kernel:
            stage = Stage(kernel, rng, options.kinds, options.lanes)
            try:
                stage.run(options.rounds)
                stage.settle()
                process = kernel.process
                print(
                    f"{number:>8}{stage.rounds:>8}{stage.account.count:>10}"
                    f"{stage.control.worst:>7.2f} s{stage.others.worst:>6.2f} s"
                    f"{process.num_threads():>9}{process.num_fds():>13}"
                    f"{process.memory_info().rss / 1e6:>9.1f}",
                    flush=True,
                )
                stage.shut_down()
            except (Wrong, ProbeFailed, psutil.Error) as error:
                print(f"WRONG, with seed {options.seed}, kernel {number}: {error}")
                print(stage.show_stacks())
                print((kernel.directory / "output.txt").read_text(errors="replace"))
                return False
            finally:
                did += stage.did
                replies += stage.replies
    print("done:    ", dict(did.most_common()))
    print("answered:", dict(sorted(replies.items())))
    return True


def main() -> None:
    """Stress a kernel, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", help="named as for compare.py: NAME, PATH, NAME=PYTHON...")
    parser.add_argument("--minutes", type=float, default=5, help="default: 5")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--lanes", type=int, default=3, help="in subshells (default: 3)")
    parser.add_argument(
        "--rounds", type=int, default=200, help="until a kernel is shut down (default: 200)"
    )
    known = {kind.key: kind for kind in (*KINDS, *FURTHER)}
    parser.add_argument(
        "--only", nargs="+", metavar="KIND", choices=known, help=f"of {', '.join(known)}"
    )
    options = parser.parse_args()
    options.kinds = [known[key] for key in options.only or known]
    if options.minutes <= 0 or options.lanes < 1 or options.rounds < 1:
        parser.error("--minutes has to be positive, --lanes and --rounds at least 1")
    try:
        sys.exit(0 if stress(find_kernel(options.kernel), options) else 1)
    except (KernelNotFound, ProbeFailed) as error:
        sys.exit(f"stress.py: {error}")


if __name__ == "__main__":
    main()
