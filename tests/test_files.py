"""Files that a process has made are removed by it, and by nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trio_subshells._files import OwnFile, remove_own_files


def made(path: Path) -> OwnFile:
    path.write_text("ours")
    return OwnFile.at(path)


def test_it_is_removed_once(tmp_path: Path) -> None:
    file = made(tmp_path / "file")
    file.remove()
    assert not file.path.exists()
    file.remove()
    file.path.write_text("somebody else's")
    file.remove()
    assert file.path.exists()


def test_what_took_its_place_is_left_alone(tmp_path: Path) -> None:
    file = made(tmp_path / "file")
    file.path.unlink()
    file.path.write_text("somebody else's")  # with the same inode, on many file systems
    os.utime(file.path, (1, 1))
    file.remove()
    assert file.path.read_text() == "somebody else's"


def test_it_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = made(Path("file"))
    monkeypatch.chdir(tmp_path.anchor)
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_end_by_force_removes_all(tmp_path: Path) -> None:
    files = [made(tmp_path / name) for name in ("one", "two", "three")]
    files[0].remove()
    remove_own_files()
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_removes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(tmp_path / "file")
    with monkeypatch.context() as in_child:
        in_child.setattr(os, "getpid", lambda: -1)
        file.remove()
        remove_own_files()
    assert file.path.exists()
    file.remove()
    assert not file.path.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may remove what it likes")
def test_what_cant_be_removed_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = made(tmp_path / "file")
    tmp_path.chmod(0o500)
    try:
        file.remove()
    finally:
        tmp_path.chmod(0o700)
    (said,) = caplog.messages
    assert f"{file.path} can't be removed" in said
