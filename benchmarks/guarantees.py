r"""Put the same attacks to several Jupyter kernels, and print what each of them did.

    python benchmarks/guarantees.py trio-python python3 --results out.json
    python benchmarks/guarantees.py trio-python python3=/path/to/python --only delete limits/hard
    python benchmarks/guarantees.py trio-python python3 --results out.json --table page.md

What FILE of ``--results`` has isn't tried again, so a run can be interrupted and continued. To make
a group of trials, or one, again, keep everything else, and renew the tables of the documentation:

    python benchmarks/guarantees.py trio-python python3 --results out.json --again \
        --only delete limits/hard --table docs/guarantees.md

Without ``--again`` the last line makes what is missing only, and renews the tables in any case,
with the tests that `_rows.py` names. Take a quiet machine: ratios are what the tables are about.

Every trial has processes of its own, which are killed when it is over or its time is. See the
README beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
import psutil  # type: ignore[import-untyped]
import zmq
from _client import ProbeFailed
from _kernels import KernelNotFound, KernelSpec, find_kernel
from _rows import TESTS, TRIALS
from _trials import Effort, Lab, Trial, Verdict
from _verdicts import ABSENT, PageHasNoPlace, Results, insert, tables

#: What a kernel can do to a trial: not answer, answer nonsense (lookups, parsing), vanish.
_FAILURES = (ProbeFailed, LookupError, ValueError, OSError, zmq.ZMQError, psutil.Error)


def try_one(trial: Trial, spec: KernelSpec, effort: Effort) -> Verdict:
    """Make a trial on a kernel; whatever happens, there is a verdict and no process left."""
    with Lab(spec, effort, trial.deadline) as lab:
        try:
            if trial.subshells and not lab.start().has_subshells:
                return Verdict(ABSENT)
            return trial.make(lab)
        except _FAILURES as error:
            reason = str(error) if isinstance(error, ProbeFailed) else repr(error)
            return Verdict(f"failed: {_shortened(reason)}", {"failure": reason})


def _shortened(reason: str, most: int = 90) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _describe(spec: KernelSpec, effort: Effort) -> dict[str, object]:
    with Lab(spec, effort, 30) as lab:
        info = lab.start().info
    names = ("implementation", "implementation_version", "protocol_version", "supported_features")
    return {
        **{name: info.get(name) for name in names},
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "python": info.get("language_info", {}).get("version"),
        "platform": platform.system(),
        "processors": os.cpu_count(),
        "effort": attrs.asdict(effort),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="+", metavar="KERNEL", help="as for compare.py")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TRIAL",
        help="trials, or groups of them by what is before the slash; --list shows them",
    )
    parser.add_argument("--list", action="store_true", help="show the trials, make none")
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: shows that all works"
    )
    parser.add_argument("--rounds", type=int, help="of create, execute, delete (default: 300)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep what was seen in FILE, beside what earlier runs have left there",
    )
    parser.add_argument(
        "--again", action="store_true", help="make trials that FILE has the results of, too"
    )
    parser.add_argument(
        "--table", type=Path, metavar="PAGE", help="put the table into a page of Markdown"
    )
    options = parser.parse_args(arguments)
    known = {trial.key for trial in TRIALS}
    wanted = options.only or sorted(known)
    for name in wanted:
        if not any(_chosen(key, name) for key in known):
            parser.error(f"--only {name}: there is no such trial; --list shows them")
    options.trials = [t for t in TRIALS if any(_chosen(t.key, name) for name in wanted)]
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    try:
        options.specs = [find_kernel(text) for text in options.kernels]
    except KernelNotFound as error:
        parser.error(str(error))
    labels = [spec.label for spec in options.specs]
    if len(set(labels)) < len(labels):
        parser.error(f"every kernel needs a label of its own (LABEL=PATH), these are {labels}")
    return options


def _chosen(key: str, name: str) -> bool:
    return name in (key, key.partition("/")[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the trials that the command line asks for; return the exit code."""
    options = _parse(arguments)
    if options.list:
        for trial in options.trials:
            print(f"{trial.key:34}{trial.group.rstrip('.')} {trial.title}")
        return 0
    effort = Effort.quick() if options.quick else Effort()
    if options.rounds is not None:
        effort = attrs.evolve(effort, rounds=options.rounds)
    results = Results(options.results)
    labels = [spec.label for spec in options.specs]
    interrupted = False
    try:
        _make_all(options, effort, results)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=sys.stderr)
    rows = [(each.key, each.group, each.title, TESTS.get(each.key, "")) for each in TRIALS]
    text = tables(rows, labels, results)
    print(text)
    if options.table is not None:
        try:
            page = insert(options.table.read_text(encoding="utf-8"), text)
        except (OSError, PageHasNoPlace) as error:
            print(f"{options.table}: {error}", file=sys.stderr)
            return 1
        options.table.write_text(page, encoding="utf-8")
    return 130 if interrupted else 0


def _make_all(options: argparse.Namespace, effort: Effort, results: Results) -> None:
    for number, trial in enumerate(options.trials, 1):
        for spec in options.specs:
            if not options.again and results.text(trial.key, spec.label) is not None:
                continue
            if spec.label not in results.content["kernels"]:
                try:
                    results.describe(spec.label, _describe(spec, effort))
                except ProbeFailed as error:
                    print(f"{spec.label}: {error}", file=sys.stderr)
            verdict = try_one(trial, spec, effort)
            results.record(trial.key, spec.label, verdict.text, dict(verdict.facts))
            place = f"{number} of {len(options.trials)}"
            print(
                f"{place}  {trial.key}  {spec.label}: {verdict.text}", file=sys.stderr, flush=True
            )


if __name__ == "__main__":
    sys.exit(main())
