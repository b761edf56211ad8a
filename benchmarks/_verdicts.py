"""The table of guarantees: what is kept of a run, its Markdown, and its place in a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEGIN = "<!-- benchmarks/guarantees.py writes from here -->"
END = "<!-- to here -->"

#: What a kernel gets that doesn't have what a trial is about.
ABSENT = "–"


class PageHasNoPlace(ValueError):
    """A page lacks the two lines that the table goes between; the message says which."""


class Results:
    """What was seen, kept in a file as it comes, so that no interruption costs what is there.

    Args:
        path: the file; what it has already is kept until it is seen anew. Without it, nothing is
            kept.

    Raises `ValueError` if the file is there and isn't one of ours.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.content: dict[str, Any] = {"kernels": {}, "verdicts": {}}
        if path is not None and path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not {"kernels", "verdicts"} <= content.keys():
                raise ValueError(
                    f"{path} has no results of this program; remove it or name another"
                )
            self.content = content

    def describe(self, kernel: str, facts: dict[str, Any]) -> None:
        """Note what a kernel is."""
        self.content["kernels"][kernel] = facts
        self._save()

    def record(self, trial: str, kernel: str, text: str, facts: dict[str, Any]) -> None:
        """Note what a kernel did in a trial."""
        verdicts = self.content["verdicts"].setdefault(trial, {})
        verdicts[kernel] = {"text": text, "facts": facts}
        self._save()

    def text(self, trial: str, kernel: str) -> str | None:
        """Return what is known of a kernel in a trial, ``None`` if it wasn't made."""
        verdict = self.content["verdicts"].get(trial, {}).get(kernel)
        return None if verdict is None else str(verdict["text"])

    def _save(self) -> None:
        if self._path is not None:
            text = json.dumps(self.content, indent=1, default=str) + "\n"
            self._path.write_text(text, encoding="utf-8")


def tables(
    rows: Sequence[tuple[str, str, str, str]], kernels: Sequence[str], results: Results
) -> str:
    """Return Markdown: a heading and a table for each group.

    A row is a trial's key, its group, its title, and its test as ``path::name``. Rows that no
    kernel was tried on are left out, and groups without rows.
    """
    groups: dict[str, list[str]] = {}
    for key, group, title, test in rows:
        cells = [results.text(key, kernel) for kernel in kernels]
        if all(cell is None for cell in cells):
            continue
        test = f"`{test}`" if test else ABSENT
        said = ["not tried" if cell is None else cell for cell in cells]
        groups.setdefault(group, []).append(_row([title, *said, test]))
    head = ["", *kernels, "test"]
    parts = []
    for group, lines in groups.items():
        rule = "|".join(["", *("---" for _ in head), ""])
        parts.append("\n".join([f"### {group}", "", _row(head), rule, *lines, ""]))
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def insert(page: str, text: str) -> str:
    """Return a page with what is between the two marking lines replaced.

    Raises `PageHasNoPlace` unless each of the two is there once, in their order.
    """
    for mark in (BEGIN, END):
        if page.count(mark) != 1:
            raise PageHasNoPlace(f"the page needs this line once: {mark}")
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise PageHasNoPlace(f"in the page, {BEGIN} has to come before {END}")
    return f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}"
