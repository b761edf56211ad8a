"""Whether subshells leave anything behind: a kernel creates, uses and deletes them, and is weighed.

    python benchmarks/soak.py trio-python

A round is one subshell: ``create_subshell_request``, a cell in it, ``delete_subshell_request``,
each waited for. Every now and then, when no subshell lives, the process's threads, descriptors and
resident memory are counted; on Windows the descriptors are handles. ZMQ sockets need no column of
their own: each has a descriptor.

What the first rounds bring (imports, caches, memory that the allocator keeps for the next
subshell) is no leak. So the table starts when these are over, and its last line says what a
thousand rounds have added since.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import attrs
import psutil  # type: ignore[import-untyped]
from _client import ProbeFailed
from _kernels import KernelNotFound, RunningKernel, find_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Seconds for the start of a kernel, and for each round; reached only by a kernel that hangs.
_TIMEOUT = 60.0


@attrs.frozen
class Weight:
    """What a kernel's process has after so many rounds, with no subshell alive.

    Attributes:
        rounds: how many subshells have come and gone.
        seconds: since the first of them.
        threads: of the process, those of ZMQ and other libraries included.
        descriptors: handles, on Windows.
        megabytes: resident memory, in 10⁶ bytes.
    """

    rounds: int
    seconds: float
    threads: int
    descriptors: int
    megabytes: float


def weigh(kernel: RunningKernel, rounds: int, since: float) -> Weight:
    """Weigh the kernel's process."""
    process = kernel.process
    return Weight(
        rounds,
        time.perf_counter() - since,
        process.num_threads(),
        process.num_handles() if psutil.WINDOWS else process.num_fds(),
        process.memory_info().rss / 1e6,
    )


def soak(kernel: RunningKernel, *, rounds: int, every: int, cell: str) -> Iterator[Weight]:
    """Let subshells come and go; yield the kernel's weight before, every so often, and after.

    Raises `ProbeFailed` if the kernel doesn't go along.
    """
    client = kernel.client
    begin = time.perf_counter()
    yield weigh(kernel, 0, begin)
    for number in range(1, rounds + 1):
        with client.within(_TIMEOUT):
            subshell = client.create_subshell()
            client.execute(cell, subshell)
            client.delete_subshell(subshell)
        client.drain()
        if number % every == 0 or number == rounds:
            with client.within(_TIMEOUT):
                client.wait_for_iopub()
            yield weigh(kernel, number, begin)


def _show(weight: Weight) -> None:
    print(
        f"{weight.rounds:>8}{weight.seconds:>9.0f}{weight.threads:>9}{weight.descriptors:>13}"
        f"{weight.megabytes:>12.1f}",
        flush=True,
    )


def _run(options: argparse.Namespace) -> None:
    kernel_spec = find_kernel(options.kernel)
    print(f"{kernel_spec.label}: {options.rounds} rounds, after {options.warm_up} to warm up")
    print("  rounds  seconds  threads  descriptors          MB")
    with RunningKernel(
        kernel_spec, cell=options.cell, store_history=True, timeout=_TIMEOUT
    ) as kernel:
        for _ in soak(kernel, rounds=options.warm_up, every=options.warm_up, cell=options.cell):
            continue
        first = last = None
        for weight in soak(kernel, rounds=options.rounds, every=options.every, cell=options.cell):
            _show(weight)
            first, last = first or weight, weight
    assert first is not None
    assert last is not None
    thousands = options.rounds / 1000
    print(
        f"per 1,000{'':>8}"
        f"{(last.threads - first.threads) / thousands:>9.1f}"
        f"{(last.descriptors - first.descriptors) / thousands:>13.1f}"
        f"{(last.megabytes - first.megabytes) / thousands:>12.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak a kernel, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", help="named as for compare.py: NAME, PATH, NAME=PYTHON...")
    parser.add_argument("--rounds", type=int, default=10_000, help="default: 10000")
    parser.add_argument(
        "--warm-up", type=int, default=500, metavar="N", help="rounds before that (default: 500)"
    )
    parser.add_argument(
        "--every", type=int, default=1000, metavar="N", help="rounds per line (default: 1000)"
    )
    parser.add_argument("--cell", default="pass", metavar="CODE", help="default: pass")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.warm_up < 1 or options.every < 1:
        parser.error("--rounds, --warm-up and --every: at least 1")
    try:
        _run(options)
    except (KernelNotFound, ProbeFailed) as error:
        sys.exit(f"soak.py: {error}")


if __name__ == "__main__":
    main()
