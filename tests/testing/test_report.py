"""Where a report goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_subshells.testing import ScheduleFailed, _explore, explore
from trio_subshells.testing._explore import Settings, settings
from trio_subshells.testing._report import file_name

from .bugs import lost_update


def explored(outside: Settings) -> ScheduleFailed:
    token = settings.set(outside)
    try:
        with pytest.raises(ScheduleFailed) as raised:
            explore(lost_update)
    finally:
        settings.reset(token)
    return raised.value


def test_no_file_is_written_unless_somebody_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = explored(Settings())
    assert error.report is not None
    assert error.diagram is None
    assert list(tmp_path.iterdir()) == []
    assert str(error) == str(error.report)


def test_files_are_written_where_it_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / ".schedules"
    error = explored(Settings(directory=directory, name="test_x.py::test_it"))
    assert error.report is not None
    assert error.diagram is not None
    assert error.diagram.parent == directory
    assert error.diagram.read_text(encoding="utf-8") == error.report.svg
    mermaid = error.diagram.with_suffix(".mmd")
    assert mermaid.read_text(encoding="utf-8") == error.report.mermaid
    assert "*" in (directory / ".gitignore").read_text().splitlines()
    assert len(list(directory.iterdir())) == 3
    assert str(error.diagram) in error.report.text


def test_a_report_that_fails_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(_explore, "make_report", fail)
    error = explored(Settings())
    assert error.report is None
    assert isinstance(error.__cause__, AssertionError)
    assert error.__notes__ == ["it can't be told: OSError: no space left"]
    assert "two additions made 1" in str(error)


def test_names_of_files_are_plain_and_distinct() -> None:
    names = ["test_x.py::test_a", "test_x.py::test-a", "test_x.py::test[a/b]", "é", "..", "x" * 300]
    files = [file_name(name) for name in names]
    assert len({name.lower() for name in files}) == len(names)
    for name in files:
        assert name.isascii()
        assert len(name) <= 110
        assert not set(name) & set('/\\:*?"<>| ')
        assert not name.startswith((".", "-"))
    assert file_name("plain.name") == "plain.name"
