"""Kernelspecs are written where Jupyter looks for them, and removed again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jupyter_core.paths
import pytest
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from trio_subshells.kernel import install_kernelspec, uninstall_kernelspec
from trio_subshells.kernel._install import (
    find_kernelspec,
    jupyter_path,
    kernels_dir,
    runtime_dir,
    user_data_dir,
)
from trio_subshells.wire import PROTOCOL_VERSION

SPEC: dict[str, Any] = {
    "argv": [sys.executable, "kernel.py", "-f", "{connection_file}"],
    "display_name": "Some kernel",
    "language": "some",
    "interrupt_mode": "message",
    "metadata": {"debugger": False},
}
VARIABLES = [
    *("JUPYTER_DATA_DIR", "JUPYTER_PLATFORM_DIRS", "JUPYTER_PREFER_ENV_PATH", "JUPYTER_CONFIG_DIR"),
    *(
        "JUPYTER_RUNTIME_DIR",
        "JUPYTER_NO_CONFIG",
        "XDG_DATA_HOME",
        "APPDATA",
        "LOCALAPPDATA",
        "CONDA_PREFIX",
    ),
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# What is written


def test_jupyter_reads_what_was_installed(tmp_path: Path) -> None:
    directory = install_kernelspec("Some-Kernel", SPEC, prefix=tmp_path)
    assert directory == tmp_path / "share" / "jupyter" / "kernels" / "some-kernel"
    manager = KernelSpecManager(kernel_dirs=[str(directory.parent)])
    spec = manager.get_kernel_spec("some-kernel")
    assert (spec.argv, spec.display_name, spec.language) == (
        SPEC["argv"],
        "Some kernel",
        "some",
    )
    assert spec.interrupt_mode == "message"
    assert spec.metadata == {
        "debugger": False,
        "trio_subshells": True,
        "supported_encryption": ["curve"],
    }
    assert spec.kernel_protocol_version == PROTOCOL_VERSION


def test_jupyter_knows_that_it_can_be_encrypted(tmp_path: Path) -> None:
    """This is how jupyter_client decides whether to provide keys, and refuses to start a kernel."""
    directory = install_kernelspec("some", SPEC, prefix=tmp_path)
    specs = KernelSpecManager(kernel_dirs=[str(directory.parent)])
    manager = KernelManager(kernel_name="some", kernel_spec_manager=specs)
    assert manager._kernel_supports_curve_encryption()


def test_what_the_author_says_of_it_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "kernel_protocol_version": "5.3",
        "metadata": {"supported_encryption": ["rot13"], "debugger": True},
    }
    directory = install_kernelspec("some", SPEC | own, prefix=tmp_path)
    written = json.loads((directory / "kernel.json").read_text())
    assert written["kernel_protocol_version"] == "5.3"
    assert written["metadata"]["supported_encryption"] == ["rot13"]
    assert written["metadata"]["debugger"] is True
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    directory = install_kernelspec("some", SPEC, prefix=tmp_path)
    written = json.loads((directory / "kernel.json").read_text())
    assert "supported_encryption" not in written["metadata"]


def test_resources_lie_beside_it(tmp_path: Path) -> None:
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "logo-svg.svg").write_text("<svg/>")
    directory = install_kernelspec("some", SPEC, prefix=tmp_path, resources=resources)
    assert names(directory) == ["kernel.json", "logo-svg.svg"]


def test_it_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    directory = install_kernelspec("some", SPEC, prefix=tmp_path)
    (directory / "leftover").touch()
    install_kernelspec("some", SPEC | {"display_name": "Newer"}, prefix=tmp_path)
    assert names(directory) == ["kernel.json"]
    assert json.loads((directory / "kernel.json").read_text())["display_name"] == "Newer"


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks need a privilege there")
def test_what_a_symlink_points_to_is_left_alone(tmp_path: Path) -> None:
    working_copy = tmp_path / "working_copy"
    working_copy.mkdir()
    (working_copy / "kernel.json").write_text("{}")
    kernels = tmp_path / "share" / "jupyter" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "some").symlink_to(working_copy)
    install_kernelspec("some", SPEC, prefix=tmp_path)
    assert not (kernels / "some").is_symlink()
    assert (working_copy / "kernel.json").read_text() == "{}"


def test_uninstall_removes_that_one_only(tmp_path: Path) -> None:
    first = install_kernelspec("first", SPEC, prefix=tmp_path)
    second = install_kernelspec("second", SPEC, prefix=tmp_path)
    assert uninstall_kernelspec("first", prefix=tmp_path) == first
    assert names(second.parent) == ["second"]
    with pytest.raises(FileNotFoundError, match="first"):
        uninstall_kernelspec("first", prefix=tmp_path)


def test_uninstall_removes_nothing_that_is_no_kernelspec(tmp_path: Path) -> None:
    other = tmp_path / "share" / "jupyter" / "kernels" / "some"
    other.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        uninstall_kernelspec("some", prefix=tmp_path)
    assert other.is_dir()


# What is refused


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "with space", "ä", ".hidden"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name for a kernelspec"):
        install_kernelspec(name, SPEC, prefix=tmp_path)
    with pytest.raises(ValueError, match="no name for a kernelspec"):
        uninstall_kernelspec(name, prefix=tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"argv": []}, "needs argv"),
        ({"display_name": ""}, "needs display_name"),
        ({"argv": ["kernel"]}, "needs '{connection_file}'"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        install_kernelspec("some", SPEC | change, prefix=tmp_path)
    assert names(tmp_path) == []


def test_the_connection_file_may_be_a_part_of_an_argument(tmp_path: Path) -> None:
    argv = ["kernel", "--file={connection_file}"]
    directory = install_kernelspec("some", SPEC | {"argv": argv}, prefix=tmp_path)
    assert json.loads((directory / "kernel.json").read_text())["argv"] == argv


def test_a_spec_that_json_cannot_hold_leaves_the_old_one(tmp_path: Path) -> None:
    directory = install_kernelspec("some", SPEC, prefix=tmp_path)
    with pytest.raises(TypeError):
        install_kernelspec("some", SPEC | {"env": {"A": object()}}, prefix=tmp_path)
    assert json.loads((directory / "kernel.json").read_text())["display_name"] == "Some kernel"


def test_one_place_at_most(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of --prefix and --user"):
        kernels_dir(prefix=tmp_path, user=True)


# Where it goes: held against jupyter_core


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "freebsd14"])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"JUPYTER_DATA_DIR": "elsewhere"},
        {"JUPYTER_RUNTIME_DIR": "elsewhere"},
        {"XDG_DATA_HOME": "xdg"},
        {"APPDATA": "roaming"},
        {"JUPYTER_CONFIG_DIR": "config"},
        {"JUPYTER_PLATFORM_DIRS": "0"},
        {"JUPYTER_PLATFORM_DIRS": "No"},
        {"JUPYTER_DATA_DIR": "", "JUPYTER_RUNTIME_DIR": "", "XDG_DATA_HOME": "", "APPDATA": ""},
    ],
    ids=lambda variables: "-".join(variables) or "plain",
)
def test_user_data_is_where_jupyter_core_has_it(
    platform: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, value in variables.items():
        path = variable.endswith(("DIR", "HOME", "APPDATA"))
        monkeypatch.setenv(variable, str(tmp_path / value) if path and value else value)
    monkeypatch.setattr(sys, "platform", platform)
    assert str(user_data_dir()) == jupyter_core.paths.jupyter_data_dir()
    assert str(runtime_dir()) == jupyter_core.paths.jupyter_runtime_dir()


def test_platform_directories_are_where_jupyter_core_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # platformdirs decides when it is imported: only the platform of the tests can be compared
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    assert str(user_data_dir()) == jupyter_core.paths.jupyter_data_dir()
    assert str(runtime_dir()) == jupyter_core.paths.jupyter_runtime_dir()


@pytest.mark.parametrize("prefers", ["0", "1"])
def test_the_default_is_where_jupyter_looks_first(
    prefers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", prefers)
    assert str(kernels_dir()) == jupyter_core.paths.jupyter_path("kernels")[0]
    assert kernels_dir() == kernels_dir(user=prefers == "0", sys_prefix=prefers == "1")


def test_in_a_virtual_environment_the_default_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert kernels_dir() == kernels_dir(user=True)
    monkeypatch.setattr(sys, "base_prefix", "/somewhere/else")
    assert kernels_dir() == kernels_dir(sys_prefix=True)
    assert kernels_dir(user=True) == user_data_dir() / "kernels"


def test_in_a_conda_environment_the_default_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setenv("CONDA_PREFIX", sys.prefix)
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    assert kernels_dir() == kernels_dir(user=True)
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "work")
    assert kernels_dir() == kernels_dir(sys_prefix=True)


# Where it is found


@pytest.mark.parametrize("prefers", ["0", "1"])
@pytest.mark.parametrize("told", [None, "", "one", "one:two"])
def test_the_directories_are_those_of_jupyter_core(
    prefers: str, told: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", prefers)
    if told is not None:
        paths = [str(tmp_path / each) for each in told.split(":") if each]
        monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(paths))
    assert [str(each) for each in jupyter_path()] == jupyter_core.paths.jupyter_path()


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="the XDG base directories")
@pytest.mark.parametrize("told", [None, ""])
def test_no_directories_of_the_system_are_the_usual_ones(
    told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.delenv("XDG_DATA_DIRS", raising=False)
    if told is not None:
        monkeypatch.setenv("XDG_DATA_DIRS", told)
    usual = [Path("/usr/local/share/jupyter"), Path("/usr/share/jupyter")]
    assert jupyter_path()[-2:] == usual


def test_a_kernelspec_is_found_as_jupyter_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(map(str, (first, second))))
    for directory, display_name in ((second, "Hidden"), (first, "Shown")):
        folder = directory / "kernels" / "Some"
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(SPEC | {"display_name": display_name}))
    directory, spec = find_kernelspec("sOmE")
    specs = KernelSpecManager(kernel_dirs=jupyter_core.paths.jupyter_path("kernels"))
    theirs = specs.get_kernel_spec("some")
    assert (str(directory), spec["display_name"]) == (theirs.resource_dir, theirs.display_name)
    assert spec["display_name"] == "Shown"


def test_a_kernelspec_that_cant_be_found_or_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(LookupError, match="there is no kernelspec 'some' where Jupyter looks"):
        find_kernelspec("some")
    folder = tmp_path / "kernels" / "some"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text("{")
    with pytest.raises(ValueError, match=r"kernel\.json can't be read"):
        find_kernelspec("some")
