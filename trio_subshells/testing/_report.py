"""What is made of a failing schedule: the story, the picture, and the files they are kept in."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from . import _diagram
from ._record import Recorder, is_users_file
from ._story import Finding, compose_story, tell

if TYPE_CHECKING:
    from ._runs import Run

_LONGEST_NAME: Final = 100


@attrs.frozen
class Report:
    """A failing schedule, told. ``str()`` is its text.

    Attributes:
        text: for people: a screen of lines of at most 110 characters.
        svg: its sequence diagram, as the text of an SVG file.
        mermaid: the same, as Mermaid text.
        file: where `svg` has been written; None if nowhere.
    """

    text: str
    svg: str = attrs.field(repr=False)
    mermaid: str = attrs.field(repr=False)
    file: Path | None = None

    def __str__(self) -> str:
        return self.text


def make_report(
    run: Callable[[Recorder], Run],
    finding: Finding,
    *,
    directory: Path | None,
    name: str | None,
    details: bool = False,
) -> Report | None:
    """Run a failing schedule once more, and tell what happens.

    Args:
        run: runs it, recorded.
        finding: how it was found.
        directory: where the picture is to be written, if anywhere. It is made if it isn't there,
            with a ``.gitignore`` in it.
        name: what the files' names are made of.
        details: whether a kernel's own code is told of, too.

    Returns:
        None if the schedule doesn't fail when it is recorded.
    """
    with Recorder(details=details) as recorder:
        failure = run(recorder).failure
    if failure is not None and any(not is_users_file(each) for each in recorder.stopped_in):
        with Recorder(details=details, watched=recorder.stopped_in) as recorder:
            failure = run(recorder).failure  # once more, with what was done where they were stopped
    if failure is None:
        return None
    file = None
    if directory is not None and name is not None:
        file = directory / f"{file_name(name)}.svg"
        finding = attrs.evolve(finding, picture=_near(file))
    scene = compose_story(recorder, failure, finding)
    report = Report(
        tell(scene, finding), _diagram.svg(scene, finding), _diagram.mermaid(scene), file
    )
    if file is not None:
        _write(file, report.svg)
        _write(file.with_suffix(".mmd"), report.mermaid)
    return report


def file_name(name: str) -> str:
    """A name that every file system takes, and that no other test's is made into."""
    plain = re.sub(r"[^\w.\[\]-]+", "-", name, flags=re.ASCII).strip("-.")
    if plain != name or len(plain) > _LONGEST_NAME:
        short = plain[-_LONGEST_NAME:].strip("-.") or "test"
        plain = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return plain


def _near(file: Path) -> Path:
    """The path from where we are, if that is shorter."""
    try:
        return file.relative_to(Path.cwd())
    except ValueError:
        return file


def _write(file: Path, text: str) -> None:
    """Write a file in one step: several processes may do so."""
    directory = file.parent
    directory.mkdir(parents=True, exist_ok=True)
    ignore = directory / ".gitignore"
    if not ignore.exists():
        ignore.write_text("# reports of failing schedules: made again by the next failure\n*\n")
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
