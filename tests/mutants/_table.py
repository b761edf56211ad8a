"""The table of docs/testing.md: in how many schedules, and how fast, each mutant is caught.

What was measured is kept in ``measured.json`` beside this file; the table is made of it, and of the
corpus. It is about the machine that it was measured on, a quiet one.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import _corpus, _run
from ._corpus import HERE, ROOT, SAFEGUARD, Mutant

PAGE = ROOT / "docs" / "testing.md"
MEASURED = HERE / "measured.json"
BEGIN = "<!-- The mutants; made by: python tests/mutants table -->"
END = "<!-- The end of the mutants -->"
SCHEDULES, SECONDS = 1_000, 5

Row = dict[str, list[Any]]
"""For each strategy: schedules, seconds, deviations; or nothing: not caught."""


def write(names: Sequence[str]) -> None:
    """Measure mutants, and write the table. A row that was never measured has empty cells.

    Args:
        names: which to measure; none: all. ``-``: none, only write.
    """
    mutants = _corpus.load()
    measured: dict[str, Row] = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    wanted = [] if list(names) == ["-"] else [_corpus.find(name) for name in names] or mutants
    with ThreadPoolExecutor(2) as pool:
        for mutant, row in zip(wanted, pool.map(_measure, wanted), strict=True):
            measured[mutant.name] = row
            print(mutant.name, row, flush=True)
            _save(mutants, measured)
    _save(mutants, measured)


def tell_steadiness(names: Sequence[str], seeds: int) -> int:
    """Print which mutants are not caught with each seed; returns 1 if there are any.

    A test that catches its mutant with few of the seeds catches it by luck: the next change of the
    code that it runs may be enough for it to miss it.

    Args:
        names: of which mutants; none: all.
        seeds: how many to try, besides the test's own.
    """
    mutants = [_corpus.find(name) for name in names] or _corpus.load()
    unsteady = 0
    with ThreadPoolExecutor(2) as pool:
        told = pool.map(lambda mutant: _run.steadiness(mutant, seeds), mutants)
        for mutant, caught in zip(mutants, told, strict=True):
            if not all(caught):
                unsteady += 1
                count = f"{sum(caught)} of {seeds} seeds"
                print(f"{mutant.name:40} {count:16} {mutant.caught_by}", flush=True)
    print(f"{unsteady} of {len(mutants)} are not caught with each seed")
    return min(unsteady, 1)


def _save(mutants: list[Mutant], measured: dict[str, Row]) -> None:
    rows = {each.name: measured.get(each.name, {}) for each in mutants}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    MEASURED.write_text(f"{{\n{lines}\n}}\n", "utf-8")
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{PAGE} lacks the lines {BEGIN!r} and {END!r}")
    table = "\n".join(_table(mutants, rows))
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")


def _measure(mutant: Mutant) -> Row:
    row: Row = {}
    for strategy, result in _run.measure(mutant, SCHEDULES, SECONDS).items():
        if not result.caught and not result.passed:
            print(f"{mutant.name}, {strategy}: {result.failure}\n{result.output}")
            continue
        found = [result.schedules, round(result.seconds, 3), result.deviations]
        row[strategy] = found if result.caught else []
    return row


def names_in_the_table() -> list[str]:
    """Whose rows the page has."""
    table = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    return [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]


def _table(mutants: list[Mutant], rows: dict[str, Row]) -> Iterator[str]:
    yield (
        "| mutant | default | random | PCT, depth 3 | POS | exhaustive | deviations |\n"
        "|:---|---:|---:|---:|---:|---:|---:|"
    )
    for mutant in mutants:
        row = rows[mutant.name]
        cells = [_cell(row.get(strategy)) for strategy in _run.STRATEGIES]
        first = row.get(_run.STRATEGIES[0])
        deviations = str(first[2]) if first and first[0] else ""
        about = f"`{mutant.name}`: {mutant.what} {_sources(mutant)}"
        yield f"| {' | '.join([about, *cells, deviations])} |"
    medians = [_median(rows, strategy) for strategy in _run.STRATEGIES]
    found = [row.get(_run.STRATEGIES[0]) for row in rows.values()]
    deviations = [each[2] for each in found if each and each[0]]
    median = f"{statistics.median(deviations or [0]):g}"
    yield f"| **Caught, and the median number of schedules** | {' | '.join(medians)} | {median} |"


def _cell(found: list[Any] | None) -> str:
    if found is None:
        return ""
    if not found:
        return "–"
    schedules, seconds, _ = found
    milliseconds = f"{max(1, round(seconds * 1000)):,} ms"
    return f"{schedules:,} in {milliseconds}" if schedules else milliseconds


def _median(rows: dict[str, Row], strategy: str) -> str:
    found = [row[strategy] for row in rows.values() if strategy in row]
    explored = [each for each in found if not each or each[0]]
    if not explored:
        return "–"
    schedules = statistics.median(each[0] if each else math.inf for each in explored)
    caught = sum(bool(each) for each in explored)
    return f"{caught} of {len(explored)}; {schedules:,g}"


def _sources(mutant: Mutant) -> str:
    safeguard = mutant.source == SAFEGUARD
    parts = ["our safeguard" if safeguard else _link("shipped", mutant.source)]
    if mutant.see:
        parts.append(f"see {_link('', mutant.see)}")
    return f"({', '.join(parts)})"


def _link(word: str, address: str) -> str:
    """For a thread on GitHub, the repository's name and the number."""
    parts = address.removeprefix("https://github.com/").split("/")
    text = f"{parts[1]} {parts[3]}" if len(parts) == 4 else address.split("/")[2]
    return f"{word} [{text}]({address})".strip()
