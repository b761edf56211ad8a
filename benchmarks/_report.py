"""What the samples say: percentiles, ratios to a baseline with their spread, and their table.

Absolute times of one machine mean little, and those of two runs can't be compared. What holds is
the ratio of two kernels that were measured within the same round: each round yields one ratio, the
report gives the median of these and their quartiles. An interval around 1 says that there is no
difference that this run could see.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TextIO

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError:
    _RICH = False
else:
    _RICH = True

#: With fewer samples in a round its 99th percentile is its maximum, and a ratio of those is noise.
_FEWEST_FOR_P99 = 20


@attrs.frozen
class Metric:
    """One figure of the report."""

    key: str
    title: str
    unit: Literal["µs", "ms", "s", "MB", "per second", "messages"]
    higher_is_better: bool = False


@attrs.frozen
class Outcome:
    """What one round measured of one metric of one kernel: samples, or why there are none."""

    samples: tuple[float, ...] = ()
    failure: str | None = None
    #: the kernel doesn't have the feature
    absent: bool = False


@attrs.frozen
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of `values`, ``None`` if there is none of them."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the given percentile of `values`, interpolated between neighbours."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@attrs.frozen
class Line:
    """One metric of one kernel, summed up over all rounds."""

    metric: Metric
    kernel: str
    rounds: tuple[Outcome, ...]
    ratio: Spread | None
    ratio_p99: Spread | None

    @property
    def samples(self) -> list[float]:
        """The samples of all rounds together."""
        return [sample for outcome in self.rounds for sample in outcome.samples]

    @property
    def absent(self) -> bool:
        """Whether there is nothing to measure on this kernel."""
        return all(outcome.absent for outcome in self.rounds)

    @property
    def remark(self) -> str:
        """What went wrong, most frequent first, with the number of rounds if it wasn't all."""
        failures = Counter(outcome.failure for outcome in self.rounds if outcome.failure)
        total = sum(failures.values())
        if not failures:
            return ""
        often = (
            " in every round"
            if total == len(self.rounds)
            else f" in {total} of {len(self.rounds)} rounds"
        )
        return f"failed{often}: {'; '.join(reason for reason, _ in failures.most_common())}"

    def as_json(self) -> dict[str, Any]:
        """Return everything that is known, the samples of each round included."""
        samples = self.samples
        return {
            "samples": [list(outcome.samples) for outcome in self.rounds],
            "failures": [outcome.failure for outcome in self.rounds],
            "absent": self.absent,
            "p50": percentile(samples, 50) if samples else None,
            "p99": percentile(samples, 99) if samples else None,
            "ratio": attrs.asdict(self.ratio) if self.ratio else None,
            "ratio_p99": attrs.asdict(self.ratio_p99) if self.ratio_p99 else None,
        }


def _ratio(
    ours: Sequence[Outcome],
    theirs: Sequence[Outcome],
    percent: int,
    fewest: int = 1,
) -> Spread | None:
    """Return the spread of the rounds' ratios, over those rounds that measured both kernels."""
    return Spread.of(
        [
            percentile(mine.samples, percent) / reference
            for mine, other in zip(ours, theirs, strict=True)
            if min(len(mine.samples), len(other.samples)) >= fewest
            and (reference := percentile(other.samples, percent)) > 0
        ]
    )


def summarise(
    metrics: Sequence[Metric],
    kernels: Sequence[str],
    baseline: str,
    outcomes: dict[tuple[str, str], list[Outcome]],
) -> list[Line]:
    """Return a line for each metric and kernel; `outcomes` has the rounds of each."""
    lines = []
    for metric in metrics:
        reference = outcomes[metric.key, baseline]
        for kernel in kernels:
            rounds = outcomes[metric.key, kernel]
            other = kernel != baseline
            lines.append(
                Line(
                    metric,
                    kernel,
                    tuple(rounds),
                    _ratio(rounds, reference, 50) if other else None,
                    _ratio(rounds, reference, 99, _FEWEST_FOR_P99) if other else None,
                )
            )
    return lines


def as_json(lines: Sequence[Line]) -> dict[str, Any]:
    """Return everything that `lines` know, by metric and kernel."""
    content: dict[str, Any] = {}
    for line in lines:
        metric = content.setdefault(line.metric.key, {**attrs.asdict(line.metric), "kernels": {}})
        metric["kernels"][line.kernel] = line.as_json()
    return content


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.4f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.count == 1:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} [{spread.low:.2f}–{spread.high:.2f}]"


def _cells(line: Line, baseline: str) -> list[str]:
    samples = line.samples
    if not samples:
        return [line.kernel, "–" if line.absent else "failed", "", "", ""]
    several = len(samples) > len(line.rounds)
    is_baseline = line.kernel == baseline
    return [
        line.kernel,
        _figure(percentile(samples, 50)),
        _figure(percentile(samples, 99)) if several else "",
        "1" if is_baseline else _spread(line.ratio),
        "1" if is_baseline and several else _spread(line.ratio_p99),
    ]


def show(lines: Sequence[Line], baseline: str, rounds: int, file: TextIO) -> None:
    """Write the report to `file`, as a table of Rich's where Rich is installed."""
    head = ["", "", "p50", "p99", f"p50 ÷ {baseline}", f"p99 ÷ {baseline}"]
    groups: dict[str, list[list[str]]] = {}
    for line in lines:
        arrow = "↑" if line.metric.higher_is_better else "↓"
        rows = groups.setdefault(line.metric.key, [])
        title = "" if rows else f"{line.metric.title} [{line.metric.unit} {arrow}]"
        rows.append([title, *_cells(line, baseline)])
    legend = (
        "p50, p99: over the samples of all rounds. ÷: the median of the rounds' ratios "
        "[their quartiles]. ↓ ↑: what is better. –: the kernel doesn't have it. "
        f"Interleaved rounds: {rounds}."
    )
    notes = [legend]
    failed: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line.remark:
            failed.setdefault((line.kernel, line.remark), []).append(line.metric.key)
    notes += [
        f"{kernel} {remark} ({', '.join(metrics)})" for (kernel, remark), metrics in failed.items()
    ]
    if _RICH:
        _show_rich(head, list(groups.values()), notes, file)
    else:
        _show_plain(head, list(groups.values()), notes, file)


def _show_rich(
    head: list[str], groups: list[list[list[str]]], notes: list[str], file: TextIO
) -> None:
    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, markup=False, width=140)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number > 0)
    for rows in groups:
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        table.add_section()
    console.print(table)
    for note in notes:
        console.print(f"\n{note}")


def _show_plain(
    head: list[str], groups: list[list[list[str]]], notes: list[str], file: TextIO
) -> None:
    rows = [head, *(row for group in groups for row in group)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join([*names, *figures]).rstrip(), file=file)
    for note in notes:
        print(f"\n{note}", file=file)
