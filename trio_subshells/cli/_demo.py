"""``trio-subshells demo``: what subshells are good for, shown on a real kernel with real messages.

Each step checks what it shows, and fails the demo if it wasn't so. No step compares with a clock on
the wall: what is claimed is an order (an answer came before the cell ended), a number (four cells
were inside at once) or an absence (no thread is left), so that it holds on a slow machine too.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from ._client import DrivenKernel, KernelDied, Request, RequestFailed, run_kernel
from ._console import CommandError, duration, mark
from ._specs import OwnKernelSpecManager
from ._stage import Section, section

#: Seconds until a step counts as hanging. None takes more than some seconds.
PATIENCE = 60
#: Seconds for which something is left on the screen before it changes.
PAUSE = 0.5

LONG_CELL = """\
import random
points = inside = 0
while points < 6_000_000:
    points += 1
    inside += random.random() ** 2 + random.random() ** 2 < 1
"""

WORK = """\
import threading, time
barrier = threading.Barrier(4)
def work():
    barrier.wait(20)        # lets nobody pass until all four are here
    start = time.monotonic()
    for part in range(10):
        time.sleep(0.1)     # waits, as for a database or a download
        print(part)
    return time.monotonic() - start
"""

_THREADS = "sum(each.name.startswith('trio ') for each in threading.enumerate())"
"""Of the kernel's actors. Others come and go: libraries have theirs, too."""


class StepFailed(Exception):
    """Something that a step shows did not happen."""


def check(is_so: bool, otherwise: str) -> None:
    """Raise `StepFailed` with a text unless something is so."""
    if not is_so:
        raise StepFailed(otherwise)


@attrs.frozen
class Demo:
    """The steps.

    Attributes:
        console: where they are seen.
        kernel: which they drive.
        measured: what they have measured, in seconds.
    """

    console: Console
    kernel: DrivenKernel
    measured: dict[str, Sequence[float]]

    async def watched_cell(self) -> None:
        """A long cell in the main shell, its progress read from a subshell."""
        kernel = self.kernel
        total = 6_000_000
        points, inside = 0, 0
        reads: list[float] = []
        await kernel.execute("points = inside = 0").ok()
        with section(self.console, "1 A long cell, and a look into it while it runs") as shown:
            subshell = await kernel.create_subshell()
            cell = kernel.execute(LONG_CELL)
            shown.lane(
                "main",
                "while points < 6_000_000: …",
                lambda: "done" if cell.is_answered else "busy",
                done=lambda: points / total,
            )
            shown.lane(
                "subshell",
                "points, inside",
                lambda: f"π ≈ {4 * inside / points:.4f}" if points else "",
            )
            while not cell.is_answered:
                look = kernel.execute("points, inside", subshell=subshell)
                seen = await look.value()
                check(seen[0] >= points, f"progress went back from {points} to {seen[0]}")
                points, inside = seen
                if not cell.is_answered:
                    reads.append(look.seconds)
                    check(points < total, "the cell was at its end, but had not been answered")
                    await asyncio.sleep(0.05)
            await cell.ok()
            points, inside = await kernel.execute("points, inside", subshell=subshell).value()
            check(points == total, f"the cell has ended, but at {points} of {total}")
            check(len(reads) >= 3, f"only {len(reads)} answers came while the cell ran")
            check(max(reads) < cell.seconds / 2, "an answer had to wait for the cell")
            await kernel.delete_subshell(subshell).ok()
            shown.conclude(
                f"{len(reads)} reads answered while the main shell ran its pure-Python loop"
            )
        self.measured["a subshell's reply, main shell in a pure-Python loop"] = reads

    async def four_at_once(self) -> None:
        """Four subshells at work at once."""
        kernel = self.kernel
        created: list[float] = []
        subshells: list[str] = []
        with section(self.console, "2 Four subshells at work at once") as shown:
            await kernel.execute(WORK).ok()
            for _ in range(4):
                request = kernel.request("create_subshell_request", channel="control")
                subshells.append((await request.ok())["subshell_id"])
                created.append(request.seconds)
            cells = [kernel.execute("work()", subshell=subshell) for subshell in subshells]
            for number, cell in enumerate(cells, 1):
                _work_lane(shown, f"subshell {number}", cell)
            taken = [await cell.value() for cell in cells]
            wall = max(cell.answered for cell in cells) - cells[0].sent
            check(
                all(cell.stdout == "".join(f"{part}\n" for part in range(10)) for cell in cells),
                "the output of one cell is not what that cell has written",
            )
            check(wall < sum(taken) / 2, f"they took {wall:.2f} s, almost as if one by one")
            for subshell in subshells:
                await kernel.delete_subshell(subshell).ok()
            shown.conclude(
                f"{duration(sum(taken))} of waiting, done in {duration(wall)}: a barrier let them "
                "pass only together"
            )
        self.measured["create a subshell"] = created
        self.measured["four cells of one second, at once"] = [wall]

    async def one_queue_aborted(self) -> None:
        """An error that aborts one queue and not the others."""
        kernel = self.kernel
        with section(self.console, "3 An error stops its own queue, no other") as shown:
            await kernel.execute("import threading, time; gate = threading.Event()").ok()
            first, second = await kernel.create_subshell(), await kernel.create_subshell()
            failing = [
                kernel.execute(code, subshell=first)
                for code in ("gate.wait(20); 1 / 0", "'two'", "'three'")
            ]
            working = [
                kernel.execute(code, subshell=second)
                for code in (
                    "gate.wait(20); 'one'",
                    "time.sleep(0.3); 'two'",
                    "time.sleep(0.3); 'three'",
                )
            ]
            shown.lane("subshell 1", "1 / 0 · 'two' · 'three'", _states(failing))
            shown.lane("subshell 2", "'one' · 'two' · 'three'", _states(working))
            await asyncio.sleep(PAUSE)
            # The kernel takes requests in the order they were sent: when it takes this one, all six
            # are in their queues.
            await kernel.execute("gate.set()").ok()
            for cell in failing + working:
                await cell.finished()
            ended = [cell.state for cell in failing]
            check(ended == ["error", "aborted", "aborted"], f"the first queue ended {ended}")
            check(
                (await failing[0].reply())["ename"] == "ZeroDivisionError",
                "the error is not the one that the cell has raised",
            )
            ended = [cell.state for cell in working]
            check(ended == ["ok", "ok", "ok"], f"the second queue ended {ended}")
            after = await kernel.execute("6 * 7", subshell=first).value()
            check(after == 42, f"the first subshell now says that 6 * 7 is {after}")
            for subshell in (first, second):
                await kernel.delete_subshell(subshell).ok()
            shown.conclude("2 cells aborted behind the error; the other queue ran to its end")

    async def busy_deleted(self) -> None:
        """Busy subshells deleted, their neighbours undisturbed."""
        kernel = self.kernel
        with section(self.console, "4 Busy subshells deleted, a neighbour undisturbed") as shown:
            await kernel.execute("import trio; spins = 0").ok()
            neighbour = await kernel.create_subshell()
            threads = await kernel.execute(_THREADS).value()
            awaiting, looping = await kernel.create_subshell(), await kernel.create_subshell()
            latencies: dict[str, list[float]] = {"before": [], "during": []}

            async def probe(phase: str) -> None:
                request = kernel.execute("2 + 2", subshell=neighbour)
                check(await request.value() == 4, "the neighbour can't add any more")
                latencies[phase].append(request.seconds)

            async def delete(subshell: str, cell: Request) -> Request:
                request = kernel.delete_subshell(subshell)
                await request.ok()
                check(cell.is_answered, "a subshell was deleted before its cell was answered")
                return request

            for _ in range(20):
                await probe("before")
            cells = {
                awaiting: kernel.execute(
                    "print('there'); await trio.sleep_forever()", subshell=awaiting
                ),
                looping: kernel.execute("print('there')\nwhile True: spins += 1", subshell=looping),
            }

            def state(subshell: str) -> Callable[[], str]:
                return lambda: "deleted" if cells[subshell].is_answered else "busy"

            shown.lane("subshell 1", "await trio.sleep_forever()", state(awaiting))
            shown.lane("subshell 2", "while True: spins += 1", state(looping))
            shown.lane("neighbour", "2 + 2", lambda: f"{sum(map(len, latencies.values()))} replies")
            for cell in cells.values():
                await cell.wait_stdout("there")
            deletions: list[asyncio.Task[Request]] = []
            while not (deletions and all(deletion.done() for deletion in deletions)):
                await probe("during")
                if len(latencies["during"]) == 40:  # enough has been seen of the loop
                    deletions = [asyncio.create_task(delete(*item)) for item in cells.items()]
                elif not deletions:
                    await asyncio.sleep(0.02)
            deleted = [await deletion for deletion in deletions]
            for cell in cells.values():
                status = (await cell.finished())["status"]
                check(status != "ok", f"a deleted cell was answered {status!r}")
            check(
                await kernel.list_subshells() == [neighbour], "a deleted subshell is still listed"
            )
            spins = await kernel.execute("spins").value()
            check(await kernel.execute("spins").value() == spins, "the deleted loop still runs")
            left = await kernel.execute(_THREADS).value() - threads
            check(left == 0, f"{left} more threads than before are left")
            await kernel.delete_subshell(neighbour).ok()
            shown.conclude(
                f"both gone, their threads joined; {len(latencies['during'])} replies meanwhile"
            )
        self.measured["delete a subshell that awaits"] = [deleted[0].seconds]
        self.measured["delete a subshell in a pure-Python loop"] = [deleted[1].seconds]
        self.measured["the neighbour's reply before"] = latencies["before"]
        self.measured["the neighbour's reply beside the loop and its end"] = latencies["during"]

    async def nothing_left(self) -> None:
        """A clean shutdown with nothing left over."""
        kernel = self.kernel
        with section(self.console, "5 A clean shutdown, in the middle of work") as shown:
            code: int | None = None
            busy = []
            for number in (1, 2):
                subshell = await kernel.create_subshell()
                cell = kernel.execute(
                    "print('there'); await trio.sleep_forever()", subshell=subshell
                )
                shown.lane(
                    f"subshell {number}",
                    "await trio.sleep_forever()",
                    lambda: "busy" if code is None else "gone",
                )
                busy.append(cell)
            for cell in busy:
                await cell.wait_stdout("there")
            await asyncio.sleep(PAUSE)
            pid, file = kernel.pid, kernel.manager.connection_file
            start = time.perf_counter()
            code = await kernel.shut_down()
            taken = time.perf_counter() - start
            check(code == 0, f"the process ended with exit code {code}")
            for cell in busy:
                async with asyncio.timeout(5):  # the messages may still be on their way
                    check((await cell.reply())["status"] != "ok", "a cell that was ended is ok")
            check("Traceback" not in kernel.log, "the process complained while it ended")
            await kernel.manager.cleanup_resources()
            check(not _exists(file), f"{file} is left")
            group = _group_is_empty(pid)
            check(group is not False, "a child process of the kernel is left")
            shown.conclude(
                "both cells answered, exit code 0" + (", no process left" if group else "")
            )
        self.measured["shutdown, until the process is gone"] = [taken]


def _states(cells: list[Request]) -> Callable[[], str]:
    styles = {"ok": "good", "error": "bad", "busy": "shell"}

    def text() -> str:
        return " · ".join(f"[{styles.get(c.state, 'note')}]{c.state}[/]" for c in cells)

    return text


def _work_lane(shown: Section, name: str, cell: Request) -> None:
    shown.lane(
        name,
        "work()",
        lambda: duration(cell.seconds) if cell.is_answered else "busy",
        done=lambda: cell.stdout.count("\n") / 10,
    )


def _group_is_empty(leader: int) -> bool | None:
    """Whether the process group that a kernel had led is gone. None where there are no groups."""
    if sys.platform == "win32":
        return None
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def _exists(file: str) -> bool:
    return Path(file).exists()


async def demo(console: Console, kernel_name: str) -> None:
    """Run the demo.

    Raises:
        CommandError: something that it shows did not happen. It has been said on the console.
    """
    specs = OwnKernelSpecManager()
    specs.check(kernel_name)
    began = time.perf_counter()
    console.print(
        "[title]trio_subshells:[/] [note]a real kernel, a real client, and what happened "
        "between them[/]\n"
    )
    measured: dict[str, Sequence[float]] = {}
    try:
        async with run_kernel(kernel_name, specs) as kernel:
            measured["start of the kernel, until its first reply"] = [time.perf_counter() - began]
            language = kernel.info["language_info"]
            console.print(
                f"{mark(console, good=True)} {kernel.info['implementation']} is there: "
                f"process {kernel.pid}, "
                f"{language['name'].capitalize()} {language['version']}, "
                f"protocol {kernel.info['protocol_version']}\n"
            )
            check(
                "kernel subshells" in kernel.info.get("supported_features", []),
                f"{kernel_name} has no subshells: its supported_features are "
                f"{kernel.info.get('supported_features', [])}",
            )
            show = Demo(console, kernel, measured)
            steps: list[Callable[[], Awaitable[None]]] = [
                show.watched_cell,
                show.four_at_once,
                show.one_queue_aborted,
                show.busy_deleted,
                show.nothing_left,
            ]
            for step in steps:
                try:
                    async with asyncio.timeout(PATIENCE):
                        await step()
                except TimeoutError:
                    raise StepFailed(f"nothing happened for {PATIENCE} s") from None
    except KernelDied as death:
        raise CommandError(f"{death}\n{death.log}") from None
    except (StepFailed, RequestFailed) as failure:
        raise CommandError(f"the demo has failed: {failure}") from None

    table = Table(box=None, header_style="title", pad_edge=False)
    table.add_column("Measured")
    for title in ("median", "at most"):
        table.add_column(title, justify="right", no_wrap=True, style="shell")
    for what, seconds in measured.items():
        most = duration(max(seconds)) if len(seconds) > 1 else ""
        table.add_row(what, duration(statistics.median(seconds)), most)
    console.print(table)
    console.print(
        f"[note]as a client saw it; Python {platform.python_version()}, {sys.platform}, "
        f"{os.cpu_count()} cores; {time.perf_counter() - began:.0f} s in all[/]\n\n"
        "Next: [shell]trio-subshells install[/], then [shell]jupyter lab[/]; or "
        "[shell]trio-subshells run NOTEBOOK[/]."
    )
