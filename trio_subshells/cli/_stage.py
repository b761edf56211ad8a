"""Where the demo is seen: one section per step, with a line for each shell, live in a terminal.

A line doesn't hold its state: it is asked for it (how far, in which words) whenever the screen is
drawn, so that what is shown is what has been received, not what somebody expected. Without a
terminal a section is printed once, when its step has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ._console import mark


@attrs.frozen
class Lane:
    """What happens in one shell.

    Attributes:
        name: of the shell.
        code: what it executes, in one line.
        note: tells how it is going.
        done: tells how far it is, from 0 to 1; None where nobody can say.
    """

    name: str
    code: str
    note: Callable[[], str]
    done: Callable[[], float] | None = None


class Section:
    """One step of the demo on the screen."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.lanes: list[Lane] = []
        self.verdict: str | None = None
        self.is_good = True

    def lane(
        self,
        name: str,
        code: str,
        note: Callable[[], str],
        *,
        done: Callable[[], float] | None = None,
    ) -> None:
        """Add a line."""
        self.lanes.append(Lane(name, code, note, done))

    def conclude(self, verdict: str) -> None:
        """Say what was seen."""
        self.verdict = verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="title")
        if self.lanes:
            lanes = Table.grid(padding=(0, 2, 0, 0), expand=True)
            lanes.add_column(style="shell", no_wrap=True, width=10)
            lanes.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
            if any(lane.done for lane in self.lanes):
                lanes.add_column(width=18)
            lanes.add_column(no_wrap=True, justify="right", style="note", min_width=15)
            for lane in self.lanes:
                cells: list[str | Text | ProgressBar] = [lane.name, Text(lane.code)]
                if lane.done is not None:
                    cells.append(ProgressBar(total=1, completed=lane.done(), width=18))
                elif any(other.done for other in self.lanes):
                    cells.append("")
                lanes.add_row(*cells, Text.from_markup(lane.note()))
            yield Padding(lanes, (0, 0, 0, 2))
        if self.verdict is not None:
            sign = mark(console, good=self.is_good)
            yield Padding(Text.from_markup(f"{sign} {self.verdict}"), (0, 0, 0, 2), expand=False)


@contextmanager
def section(console: Console, title: str) -> Iterator[Section]:
    """Show a section while the block runs, and leave its last state on the screen."""
    shown = Section(title)
    with ExitStack() as stack:
        if console.is_terminal:
            stack.enter_context(
                Live(shown, console=console, refresh_per_second=12, vertical_overflow="visible")
            )
        else:
            stack.callback(console.print, shown)
        try:
            yield shown
        except BaseException as error:
            shown.is_good = False
            shown.conclude(escape(str(error)) or "this was not finished")
            raise
    console.print()
