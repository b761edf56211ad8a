"""Renew the reports of failing schedules that the pages show: ``python docs/reports.py``.

The code of a page is run as its tests run it. The first failure that it prints becomes the page's
first output, without what is another one with each change of a strategy, and its picture.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
PICTURES = {"testing.md": "schedule.svg", "testing_tutorial.md": "testing_tutorial.svg"}
UNSTABLE = (
    (r"Found by schedule .*", "Found by schedule ... of seed 0 (...). ..."),
    (r"strategy=Replay\(.*\)", "strategy=Replay(...))"),
    (r"((?: _\w+|kernel/_\w+\.py):)\d+", r"\1..."),  # lines of our own code
    # How a kernel starts takes a context switch more or less.
    (r"(?s)(\ntime [^\n]*\n).*?(\n[^\n]* one = )", r"\1...\2"),
)


class Printed(Exception):
    """The failure that we are after; the rest of the page needn't be run."""


def report(page: Path) -> tuple[str, str]:
    """The text and the picture of the first failing schedule that a page prints."""
    from tests.test_docs import run_page
    from trio_subshells.testing import ScheduleFailed

    def printed(error: ScheduleFailed) -> str:
        raise Printed(error)

    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    told = ScheduleFailed.__str__
    ScheduleFailed.__str__ = printed  # type: ignore[method-assign]
    try:
        run_page(page.read_text(encoding="utf-8"), str(page), module)
    except Printed as found:
        error = found.args[0]
    else:
        raise AssertionError(f"{page} prints no failing schedule")
    finally:
        ScheduleFailed.__str__ = told  # type: ignore[method-assign]
    return error.report.text, error.report.svg


def renew(page: Path, picture: Path) -> None:
    """Put both into their places."""
    text, svg = report(page)
    for pattern, stable in UNSTABLE:
        text = re.sub(pattern, stable, text)
    before, mark, rest = page.read_text(encoding="utf-8").partition("```output\n")
    after = rest.partition("\n```")[2]
    page.write_text(f"{before}{mark}{text}\n```{after}", encoding="utf-8")
    picture.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    for name, picture in PICTURES.items():
        renew(HERE / name, HERE / "images" / picture)
