"""`benchmarks/guarantees.py`: it makes its trials whatever a kernel does, and tells what it saw.

Other kernels aren't needed for that, only some that can't be used.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def benchmarks() -> Iterator[None]:
    """Make the modules beside the program importable, as they are for the program."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None)
        if path is not None and Path(path).parent == ROOT / "benchmarks":
            del sys.modules[name]  # names like `_client` are others' too


@pytest.fixture
def program() -> ModuleType:
    import guarantees

    return guarantees


def kernelspec(directory: Path, *argv: str) -> str:
    """Write a ``kernel.json``; return what names it on the command line."""
    directory.mkdir()
    spec = {"argv": list(argv), "display_name": "", "language": "python"}
    (directory / "kernel.json").write_text(json.dumps(spec | {"interrupt_mode": "message"}))
    return f"{directory.name}={directory}"


ROWS = [
    ("one/a", "First group", "does *this*", "tests/test_x.py::test_y"),
    ("one/b", "First group", "does that", ""),
    ("two/a", "Second group", "nobody tried", ""),
]


def test_a_table_has_what_was_tried_and_says_what_was_not() -> None:
    from _verdicts import Results, tables

    results = Results(None)
    results.record("one/a", "ours", "4 ms | twice", {})
    results.record("one/a", "theirs", "no reply in 8 s", {})
    results.record("one/b", "ours", "ok\nthen", {})
    assert tables(ROWS, ["ours", "theirs"], results) == (
        "### First group\n"
        "\n"
        "|  | ours | theirs | test |\n"
        "|---|---|---|---|\n"
        "| does *this* | 4 ms \\| twice | no reply in 8 s | `tests/test_x.py::test_y` |\n"
        "| does that | ok then | not tried | – |\n"
    )


def test_a_page_gets_a_new_table_and_keeps_the_rest() -> None:
    from _verdicts import BEGIN, END, insert

    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n"
    once = insert(page, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n\n| new |\n\n{END}\n\nThe end.\n"
    assert insert(once, "| new |\n") == once


@pytest.mark.parametrize("missing", ["BEGIN", "END"])
def test_a_page_without_a_place_is_refused(missing: str) -> None:
    import _verdicts

    marks = {"BEGIN": _verdicts.BEGIN, "END": _verdicts.END}
    mark = marks.pop(missing)
    with pytest.raises(_verdicts.PageHasNoPlace, match=mark):
        _verdicts.insert("\n".join(marks.values()), "")
    with pytest.raises(_verdicts.PageHasNoPlace, match="before"):
        _verdicts.insert(f"{_verdicts.END}\n{_verdicts.BEGIN}", "")


def test_results_outlast_the_program(tmp_path: Path) -> None:
    from _verdicts import Results

    file = tmp_path / "results.json"
    Results(file).record("one/a", "ours", "4 ms", {"seconds": [0.004]})
    later = Results(file)
    later.record("one/b", "ours", "5 ms", {})
    assert Results(file).text("one/a", "ours") == "4 ms"
    assert Results(file).text("one/b", "ours") == "5 ms"
    assert Results(file).text("one/b", "theirs") is None
    file.write_text("[]")
    with pytest.raises(ValueError, match="no results of this program"):
        Results(file)


def test_times_are_written_as_people_do() -> None:
    from _trials import duration

    words = [duration(seconds) for seconds in (0.0042, 0.0464, 0.25, 3.73)]
    assert words == ["4.2 ms", "46 ms", "250 ms", "3.7 s"]


def test_one_long_pause_is_not_lost_among_many_short_times() -> None:
    from _desk import Latency
    from _trials import _others

    idle = [Latency(0.002)] * 2
    assert _others("control", [Latency(0.002), Latency(0.004)], idle) == "control 1.5×"
    assert _others("control", [Latency(0.002)] * 9 + [Latency(3.7)], idle) == "control waited 3.7 s"
    silent = [Latency(0.002), Latency(3, answered=False)]
    assert _others("control", silent, idle) == "control: no reply in 3.0 s"


def test_every_trial_has_a_key_of_its_own_and_a_test_that_exists(program: ModuleType) -> None:
    from _rows import TESTS

    keys = [trial.key for trial in program.TRIALS]
    assert len(set(keys)) == len(keys)
    assert TESTS.keys() == set(keys)
    for test in set(TESTS.values()):
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = [
            node.name
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        assert name in names, f"{path} has no test {name}"


@pytest.mark.process
def test_a_kernel_that_ends_at_once_is_a_row_like_any_other(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = kernelspec(tmp_path / "short-lived", sys.executable, "-c", "raise SystemExit('sorry')")
    assert program.main([spec, "--quick", "--only", "interrupt/one"]) == 0
    table = capsys.readouterr().out
    assert "| failed: did not start: the process ended with exit code 1; it said: sorry |" in table


@pytest.mark.process
def test_a_kernel_that_hangs_is_killed_and_the_run_goes_on(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import _trials

    monkeypatch.setattr(_trials, "START", 0.2)
    spec = kernelspec(tmp_path / "hung", sys.executable, "-c", "import time; time.sleep(3600)")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert program.main([spec, "--quick", "--only", "interrupt/one", "interrupt/sigint"]) == 0
    table = capsys.readouterr().out
    assert table.count("| failed: did not start: no answer within 0.2 s |") == 2
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


@pytest.mark.process
def test_what_a_real_kernel_did_gets_into_the_page(program: ModuleType, tmp_path: Path) -> None:
    from _verdicts import BEGIN, END

    argv = (sys.executable, "-m", "trio_subshells", "-f", "{connection_file}")
    spec = kernelspec(tmp_path / "trio-python", *argv)
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    arguments = [spec, "--quick", "--results", str(results), "--table", str(page)]
    assert program.main([*arguments, "--only", "interrupt/all-await", "delete/await"]) == 0
    text = page.read_text(encoding="utf-8")
    assert " of 3 ended" in text
    seen = json.loads(results.read_text())
    facts = seen["verdicts"]["delete/await"]["trio-python"]["facts"]
    assert facts["reply"] == "ok"
    assert facts["seconds while others work"]
    # What is known isn't tried again, and stays in the page.
    assert program.main([*arguments, "--only", "interrupt/all-await"]) == 0
    assert page.read_text(encoding="utf-8") == text
