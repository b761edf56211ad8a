"""Compare Jupyter kernels: any kernelspecs side by side, in interleaved rounds of one run.

    python benchmarks/compare.py trio-python python3
    python benchmarks/compare.py trio-python python3=/path/to/other/venv/bin/python --rounds 9
    python benchmarks/compare.py a=one/kernel.json b=two/kernel.json --only execute pipelined

Each round measures every kernel once, in an order drawn anew, one process at a time. A kernel that
hangs or dies under a probe costs that probe, and the run goes on with a new process. See the README
beside this file for what is measured and how to read the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psutil  # type: ignore[import-untyped]
import zmq
from _client import ProbeFailed
from _kernels import KernelNotFound, KernelSpec, RunningKernel, find_kernel
from _probes import PROBE_TIMEOUT, PROBES, Effort, Probe
from _report import Outcome, as_json, show, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A probe that failed that often on a kernel in a row is not tried on it again: it costs a timeout.
_GIVE_UP = 2

#: How busy the processors may be before the first kernel starts, in percent.
_QUIET = 15.0

#: What a kernel can do to a probe: not answer, answer nonsense (lookups, parsing), vanish.
_FAILURES = (ProbeFailed, LookupError, ValueError, OSError, zmq.ZMQError, psutil.Error)


class Bench:
    """One kernel in one run: its process in the current round, and what was found so far."""

    def __init__(self, spec: KernelSpec, probes: Sequence[Probe], effort: Effort) -> None:
        self.spec = spec
        self.info: dict[str, Any] = {}
        self.outcomes: dict[str, list[Outcome]] = {
            metric.key: [] for probe in probes for metric in probe.metrics
        }
        self._probes = probes
        self._effort = effort
        self._failures: Counter[str] = Counter()
        self._reason: dict[str, str] = {}
        self._broken: str | None = None
        self._kernel: RunningKernel | None = None

    def round(self) -> None:
        """Make every probe once; each metric gets one more outcome, whatever happens."""
        try:
            for probe in self._probes:
                self._record(probe)
        finally:
            self._stop()

    def describe(self) -> dict[str, Any]:
        """Return what the kernel says about itself."""
        names = ("implementation", "implementation_version", "protocol_version", "language_info")
        return {
            "argv": list(self.spec.argv),
            "display_name": self.spec.display_name,
            **{name: self.info.get(name) for name in names},
        }

    def _record(self, probe: Probe) -> None:
        try:
            samples = self._measure(probe)
        except _FAILURES as error:
            self._stop()
            self._failures[probe.name] += 1
            reason = str(error) if isinstance(error, ProbeFailed) else repr(error)
            self._reason[probe.name] = reason
            self._say(f"{probe.name} failed: {reason}")
            outcomes = {metric.key: Outcome(failure=reason) for metric in probe.metrics}
        else:
            self._failures[probe.name] = 0
            outcomes = {
                key: Outcome(tuple(values), absent=not values) for key, values in samples.items()
            }
        for metric in probe.metrics:
            self.outcomes[metric.key].append(outcomes[metric.key])

    def _measure(self, probe: Probe) -> dict[str, list[float]]:
        if self._failures[probe.name] >= _GIVE_UP:
            raise ProbeFailed(self._reason[probe.name])
        kernel = self._start(fresh=probe.fresh)
        if (probe.subshells and not kernel.has_subshells) or (
            probe.python and kernel.language != "python"
        ):
            return {metric.key: [] for metric in probe.metrics}
        kernel.client.drain()
        gc.collect()
        gc.disable()  # the client's collector must not pause in the middle of a round trip
        try:
            with kernel.client.within(PROBE_TIMEOUT):
                return probe.measure(kernel, self._effort)
        finally:
            gc.enable()

    def _start(self, *, fresh: bool) -> RunningKernel:
        if fresh:
            self._stop()
        if self._kernel is None:
            self._kernel = self._launch()
            self.info = self._kernel.info
        return self._kernel

    def _launch(self) -> RunningKernel:
        if self._broken is None:
            reason = ""
            for _ in range(2):  # twice, as another process may have taken one of the ports
                try:
                    return RunningKernel(
                        self.spec,
                        cell=self._effort.cell,
                        store_history=self._effort.store_history,
                        timeout=PROBE_TIMEOUT,
                    )
                except ProbeFailed as error:
                    reason = str(error)
            self._broken = reason
        raise ProbeFailed(self._broken)

    def _stop(self) -> None:
        if self._kernel is not None:
            kernel, self._kernel = self._kernel, None
            kernel.close()

    def _say(self, text: str) -> None:
        print(f"  {self.spec.label}: {text}", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [probe.name for probe in PROBES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kernels",
        nargs="+",
        metavar="KERNEL",
        help="a kernelspec's name; a kernel.json or its directory, if you like with LABEL= before "
        "it; NAME=PYTHON for the kernelspec of that name in the environment of that interpreter",
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="what ratios refer to (default: the last kernel)"
    )
    parser.add_argument("--rounds", type=int, help="how many rounds (default: 5, --quick: 2)")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="PROBE", help=f"of: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="few samples: shows that all works")
    parser.add_argument("--cell", default="pass", help="the cell that is executed (default: pass)")
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="execute with store_history off: without the share of IPython's SQLite history",
    )
    parser.add_argument("--seed", type=int, help="fixes the order of the kernels in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    try:
        options.specs = [find_kernel(text) for text in options.kernels]
    except KernelNotFound as error:
        parser.error(str(error))
    labels = [spec.label for spec in options.specs]
    if len(set(labels)) < len(labels):
        parser.error(f"every kernel needs a label of its own (LABEL=PATH), these are {labels}")
    if options.baseline is None:
        options.baseline = labels[-1]
    elif options.baseline not in labels:
        parser.error(f"--baseline {options.baseline}: no kernel has that label, only {labels}")
    return options


def _facts(options: argparse.Namespace, effort: Effort) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "busy": psutil.cpu_percent(interval=2),
        "client": {
            "python": platform.python_version(),
            "pyzmq": zmq.pyzmq_version(),
            "libzmq": zmq.zmq_version(),
        },
        "seed": options.seed,
        "effort": attrs.asdict(effort),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    options = _parse(arguments)
    make = Effort.quick if options.quick else Effort
    effort = make(cell=options.cell, store_history=not options.no_history)
    probes = [probe for probe in PROBES if not options.only or probe.name in options.only]
    benches = [Bench(spec, probes, effort) for spec in options.specs]
    facts = _facts(options, effort)
    if facts["busy"] > _QUIET:
        print(
            f"the processors are {facts['busy']:.0f} % busy with something else: loops and loaded "
            "kernels behave otherwise then, expect wide spreads",
            file=sys.stderr,
        )
    choose = random.Random(options.seed)
    done = 0
    try:
        for number in range(options.rounds):
            order = choose.sample(benches, len(benches))
            names = ", ".join(bench.spec.label for bench in order)
            print(f"round {number + 1} of {options.rounds}: {names}", file=sys.stderr)
            for bench in order:
                bench.round()
            done += 1
    except KeyboardInterrupt:
        print(f"interrupted: {done} complete rounds", file=sys.stderr)
    if not done:
        return 130
    outcomes = {
        (key, bench.spec.label): rounds[:done]
        for bench in benches
        for key, rounds in bench.outcomes.items()
    }
    labels = [bench.spec.label for bench in benches]
    metrics = [metric for probe in probes for metric in probe.metrics]
    lines = summarise(metrics, labels, options.baseline, outcomes)
    show(lines, options.baseline, done, sys.stdout)
    if options.json:
        content = {
            **facts,
            "rounds": done,
            "baseline": options.baseline,
            "kernels": {bench.spec.label: bench.describe() for bench in benches},
            "metrics": as_json(lines),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if done == options.rounds else 130


if __name__ == "__main__":
    sys.exit(main())
