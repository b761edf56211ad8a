"""install, list, uninstall; and what happens without the extra."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from .conftest import Run


def test_install_where_jupyter_finds_it(command: Run, jupyter_directories: Path) -> None:
    done = command("install", "--prefix", jupyter_directories)
    assert (done.code, done.stderr) == (0, "")
    manager = KernelSpecManager()
    directory = Path(manager.find_kernel_specs()["trio-python"])
    assert str(directory) in done.stdout
    spec = manager.get_kernel_spec("trio-python")
    assert spec.argv == [sys.executable, "-m", "trio_subshells", "-f", "{connection_file}"]
    assert (spec.display_name, spec.language) == ("Python 3 (trio)", "python")
    assert spec.interrupt_mode == "message"
    assert spec.metadata["debugger"] is False


def test_installed_logos_are_images(command: Run, jupyter_directories: Path) -> None:
    command("install", "--prefix", jupyter_directories)
    directory = Path(KernelSpecManager().find_kernel_specs()["trio-python"])
    for size in (32, 64):
        png = (directory / f"logo-{size}x{size}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)] == [size, size]
    assert (directory / "logo-svg.svg").read_text().startswith("<svg ")


def test_install_under_another_name(command: Run, jupyter_directories: Path) -> None:
    where = ("--prefix", jupyter_directories, "--name", "Mine")
    done = command("install", *where, "--display-name", "My [own] Python")
    assert done.code == 0
    assert "My [own] Python is installed as mine" in done.stdout
    file = jupyter_directories / "share" / "jupyter" / "kernels" / "mine" / "kernel.json"
    assert json.loads(file.read_text())["display_name"] == "My [own] Python"
    assert command("uninstall", *where).code == 0
    assert not file.parent.exists()


def test_list_tells_what_is_ours(command: Run, jupyter_directories: Path) -> None:
    assert "trio-subshells install" in command("list").stdout
    command("install", "--prefix", jupyter_directories)
    kernels = jupyter_directories / "share" / "jupyter" / "kernels"
    for name, text in {
        "foreign": json.dumps({"argv": ["ir"], "display_name": "R", "language": "R"}),
        "broken": "{",
        "odd": "[]",
        "old": json.dumps({"argv": ["/gone/python", "-m", "trio_subshells", "-f", "x"]}),
    }.items():
        (kernels / name).mkdir()
        (kernels / name / "kernel.json").write_text(text)
    lines = [line.split("\t") for line in command("list").stdout.splitlines()]
    assert lines == [
        ["old", str(kernels / "old"), "/gone/python", "its interpreter is gone"],
        ["trio-python", str(kernels / "trio-python"), sys.executable, "ok"],
    ]


def test_list_tells_which_is_shadowed(command: Run, jupyter_directories: Path) -> None:
    command("install", "--user")
    command("install", "--prefix", jupyter_directories)  # JUPYTER_PATH comes first
    states = [line.split("\t")[3] for line in command("list").stdout.splitlines()]
    assert states == ["ok", "shadowed by another kernelspec of that name"]


def test_list_for_people_keeps_a_path_in_one_piece(
    command: Run, jupyter_directories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("install", "--prefix", jupyter_directories)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    shown = command("list").stdout
    assert "\t" not in shown
    assert str(jupyter_directories / "share" / "jupyter" / "kernels" / "trio-python") in shown
    assert sys.executable in shown


def test_install_tells_where_jupyter_does_not_look(
    command: Run, jupyter_directories: Path, tmp_path: Path
) -> None:
    assert "JUPYTER_PATH" not in command("install", "--prefix", jupyter_directories).stdout
    shown = command("install", "--prefix", tmp_path / "elsewhere").stdout
    assert f"JUPYTER_PATH has {tmp_path / 'elsewhere' / 'share' / 'jupyter'}" in shown


def test_uninstall_says_where_else_there_is_one(command: Run, jupyter_directories: Path) -> None:
    command("install", "--prefix", jupyter_directories)
    done = command("uninstall", "--user")
    assert done.code == 1
    assert "there is no kernelspec" in done.stderr
    assert str(jupyter_directories) in done.stderr
    assert command("uninstall", "--prefix", jupyter_directories).code == 0
    assert command("uninstall", "--prefix", jupyter_directories).code == 1


def test_a_place_that_cannot_be_written_is_a_clear_error(command: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("install", "--prefix", tmp_path / "file")
    assert done.code == 1
    assert "can't install" in done.stderr
    assert str(tmp_path / "file") in done.stderr
    assert "--user" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["install", "--user", "--sys-prefix"], "choose one of --user and --sys-prefix"),
        (["install", "--name", "a/b"], "'a/b' is no name for a kernelspec"),
        (["uninstall", "--name", ".."], "'..' is no name for a kernelspec"),
    ],
)
def test_bad_input_is_a_clear_error(command: Run, arguments: list[str], complaint: str) -> None:
    done = command(*arguments)
    assert done.code == 1
    assert complaint in done.stderr


def test_a_command_that_does_not_exist(command: Run) -> None:
    done = command("dmeo")
    assert done.code != 0
    assert "demo" in done.stderr + done.stdout


def test_help_shows_every_command(command: Run) -> None:
    done = command("--help")
    assert done.code == 0
    for name in ("demo", "install", "uninstall", "list", "start", "run"):
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("name", ["demo", "install", "uninstall", "list", "start", "run"])
def test_the_documentation_has_every_command_and_option(command: Run, name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = {
        heading: text
        for heading, _, text in (part.partition("\n") for part in page.split("\n## "))
        if f"`{name}`" in heading or f"`{name} " in heading
    }
    [section] = sections.values()
    options = set(re.findall(r"--[a-z-]+", command(name, "--help").stdout)) - {"--help"}
    assert options <= set(re.findall(r"--[a-z-]+", section))


@pytest.mark.parametrize("package", ["cyclopts", "rich", "jupyter_client"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from trio_subshells.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr
    assert "pip install 'trio-subshells[cli,ipython]'" in done.stderr


@pytest.mark.parametrize("arguments", [["install", "--user"], ["demo"], ["start"]])
def test_without_ipython_it_says_what_to_install(
    arguments: list[str], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_subshells.cli._specs.find_spec", {}.get)
    done = command(*arguments)
    assert done.code == 1
    assert "pip install 'trio-subshells[cli,ipython]'" in done.stderr
    assert "trio-python" not in KernelSpecManager().find_kernel_specs()
