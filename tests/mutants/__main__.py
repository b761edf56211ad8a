"""Shows, runs and measures mutants: ``python tests/mutants --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):  # started by its path: make a package of it, for relative imports
    tests = Path(__file__).resolve().parent.parent
    sys.path[:] = [str(tests.parent), str(tests), *(each for each in sys.path[1:])]
    __package__ = "mutants"
    import mutants  # noqa: F401

from . import _corpus, _run, _table


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all mutants, with the test that catches each")
    commands.add_parser("check", help="whether each patch fits today's source")
    show = commands.add_parser("show", help="one mutant: what is wrong, its source, its patch")
    show.add_argument("name")
    one = commands.add_parser("run", help="run the test that must catch a mutant, with it")
    one.add_argument("name")
    one.add_argument("--test", help="another test, or several: what pytest is to run")
    one.add_argument("--strategy", choices=_run.STRATEGIES, help="another than the test's own")
    one.add_argument("--schedules", type=int, help="how many, at most")
    one.add_argument("--seconds", type=float, help="for how long, at most")
    one.add_argument("--all", action="store_true", help="by the other strategies as well")
    one.add_argument("--seeds", type=int, default=0, help="with these, from 1 on, as well")
    one.add_argument("--json", action="store_true", help="a line of JSON at the end, no pictures")
    table = commands.add_parser("table", help="measure them all, and write docs/testing.md's table")
    table.add_argument("names", nargs="*", help="only these; the other rows stay; -: none, write")
    steady = commands.add_parser("steady", help="which are caught with some seeds only")
    steady.add_argument("names", nargs="*", help="only these")
    steady.add_argument("--seeds", type=int, default=10, help="how many; the default: 10")
    given = parser.parse_args()
    try:
        match given.command:
            case "list":
                for mutant in _corpus.load():
                    print(f"{mutant.name:40} {mutant.caught_by}")
            case "check":
                return _check()
            case "show":
                mutant = _corpus.find(given.name)
                source = " ".join(filter(None, [mutant.source, mutant.see]))
                print(f"{mutant.what}\n{source}\ncaught by {mutant.caught_by}\n\n{mutant.diff()}")
            case "run":
                return _run_one(given)
            case "steady":
                return _table.tell_steadiness(given.names, given.seeds)
            case "table":
                _table.write(given.names)
    except _corpus.InvalidMutant as error:
        return str(error)
    return 0


def _check() -> int:
    stale = 0
    for mutant in _corpus.load():
        try:
            mutant.patched()
        except _corpus.InvalidMutant as error:
            stale += 1
            print(f"{error}\n")
    print(f"{stale} stale")
    return min(stale, 1)


def _run_one(given: argparse.Namespace) -> int:
    mutant = _corpus.find(given.name)
    options = []
    if given.schedules is not None:
        options += ["--schedules", str(given.schedules)]
    if given.seconds is not None:
        options += ["--schedule-seconds", str(given.seconds)]
    test = given.test or mutant.caught_by
    with tempfile.TemporaryDirectory() as pictures:
        if given.json:
            options += ["--schedule-dir", pictures]
        others = [*(_run.STRATEGIES[1:] if given.all else ()), *range(1, given.seeds + 1)]
        result, found = _run.run_here(mutant, test, options, given.strategy, others)
    print(_run.as_json(result, found) if given.json else result)
    return 0 if result.caught else 1


if __name__ == "__main__":
    sys.exit(main())
