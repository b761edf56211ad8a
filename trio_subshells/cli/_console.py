"""What the commands have in common: the console they write to, and how they fail."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.theme import Theme

THEME = Theme(
    {
        "title": "bold",
        "shell": "cyan",
        "good": "green",
        "bad": "bold red",
        "note": "dim",
        "bar.back": "grey23",
        "bar.complete": "cyan",
        "bar.finished": "green",
    }
)


class CommandError(Exception):
    """A command can't do what it was asked for; its plain text tells the user why. Exit code 1."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for a standard stream.

    A stream that can't encode what is written gets replacement characters, never an exception:
    output that is piped on Windows is in the code page of the machine.
    """
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return Console(stderr=stderr, theme=THEME, highlight=False)


def mark(console: Console, *, good: bool) -> str:
    """Return the mark in front of what went well or wrong, with its style as console markup."""
    if console.options.ascii_only:
        return "[good]ok[/]" if good else "[bad]failed:[/]"
    return "[good]✓[/]" if good else "[bad]✗[/]"


def duration(seconds: float) -> str:
    """Return a duration for people: ``0.8 ms``, ``12 ms``, ``1.25 s``."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s"
