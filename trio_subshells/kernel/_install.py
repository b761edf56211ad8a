"""Kernelspecs: the small folders by which Jupyter finds and starts kernels, written and removed.

A kernelspec is a folder ``NAME`` with a ``kernel.json`` in it, in ``kernels`` under one of
Jupyter's data directories (`jupyter_client's page on kernels
<https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs>`__). A kernel doesn't
need jupyter_client or jupyter_core to run, so it doesn't need them to be installed either: the
rules for where these directories are have been written down here once more. The tests compare them
with jupyter_core's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from ..wire import PROTOCOL_VERSION

MARK = "trio_subshells"
"""What a kernelspec's metadata has if we wrote it: by it, `trio-subshells list` knows it again."""

# What jupyter_client accepts, without what is no name for a folder (".", "..", ".hidden").
_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]*")


def install_kernelspec(
    name: str,
    spec: Mapping[str, Any],
    *,
    prefix: str | os.PathLike[str] | None = None,
    user: bool = False,
    sys_prefix: bool = False,
    resources: Path | None = None,
) -> Path:
    """Write a kernelspec, in place of one that may be there under the same name.

    What every kernel of this package can do is added to it, see `with_abilities`.

    Where it goes is said by at most one of `prefix`, `user` and `sys_prefix`; see `kernels_dir`.

    Args:
        name: of the kernelspec. For Jupyter upper and lower case are the same; it becomes lower.
        spec: what to write into ``kernel.json``: at least ``argv``, ``display_name``, ``language``.
        prefix: below this directory, in ``share/jupyter``.
        user: among the user's own data.
        sys_prefix: in the environment of the running Python.
        resources: a folder with the files that belong next to ``kernel.json``: logos.

    Returns:
        The kernelspec's folder.

    Raises:
        ValueError: the name is no name for a kernelspec, the spec lacks something, or more than one
            place is named.
        OSError: it can't be written there.
    """
    directory = kernels_dir(prefix=prefix, user=user, sys_prefix=sys_prefix) / _checked_name(name)
    _check_spec(spec)
    able = with_abilities(spec)
    marked = {**able, "metadata": {**able["metadata"], MARK: True}}
    text = json.dumps(marked, indent=2) + "\n"
    _remove(directory)
    if resources is None:
        directory.mkdir(parents=True)
    else:
        ignored = shutil.ignore_patterns("__pycache__", "*.py")
        shutil.copytree(resources, directory, ignore=ignored)
    # Last: a folder without kernel.json is no kernelspec, so Jupyter never sees half of one.
    (directory / "kernel.json").write_text(text, encoding="utf-8")
    return directory


def with_abilities(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kernelspec that also says what Jupyter has to know before it starts the kernel.

    That is which encryption the connection file may ask for (JEP 145), and since which version of
    the protocol a registration file may take its place (JEP 66). What the spec says of that itself
    remains.
    """
    encryption = {"supported_encryption": ["curve"]} if zmq.has("curve") else {}
    return {
        "kernel_protocol_version": PROTOCOL_VERSION,
        **spec,
        "metadata": {**encryption, **spec.get("metadata", {})},
    }


def uninstall_kernelspec(
    name: str,
    *,
    prefix: str | os.PathLike[str] | None = None,
    user: bool = False,
    sys_prefix: bool = False,
) -> Path:
    """Remove a kernelspec from where `install_kernelspec` puts it with the same arguments.

    Returns:
        The folder that is gone.

    Raises:
        ValueError: the name is no name for a kernelspec, or more than one place is named.
        FileNotFoundError: there is no such kernelspec.
        OSError: it can't be removed.
    """
    directory = kernels_dir(prefix=prefix, user=user, sys_prefix=sys_prefix) / _checked_name(name)
    if not (directory / "kernel.json").is_file():
        raise FileNotFoundError(f"there is no kernelspec {directory}")
    _remove(directory)
    return directory


def find_kernelspec(name: str) -> tuple[Path, dict[str, Any]]:
    """Find a kernelspec where Jupyter does, by the name that it has there.

    Returns:
        Its folder, and what is in ``kernel.json``.

    Raises:
        LookupError: there is none; the message says which there are.
        ValueError: its ``kernel.json`` can't be read.
    """
    found: dict[str, Path] = {}
    for data in jupyter_path():
        for file in sorted(data.glob("kernels/*/kernel.json")):
            found.setdefault(file.parent.name.lower(), file)
    if name.lower() not in found:
        known = ", ".join(sorted(found)) or "none"
        raise LookupError(
            f"there is no kernelspec {name!r} where Jupyter looks; there are: {known}. A kernel's "
            "own `install` command makes one"
        )
    file = found[name.lower()]
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} can't be read: {error}") from None
    return file.parent, spec


def jupyter_path() -> list[Path]:
    """Return the directories with Jupyter's data, as ``jupyter_core.paths.jupyter_path`` does."""
    told = [each for each in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if each]
    user = [user_data_dir()]
    base = site.getuserbase() if site.ENABLE_USER_SITE else None
    if base:
        user.append(Path(base) / "share" / "jupyter")
    environment = [Path(sys.prefix) / "share" / "jupyter"]
    own = [*environment, *user] if _prefers_environment() else [*user, *environment]
    return list(dict.fromkeys([*map(Path, told), *own, *_system_data_dirs()]))


def _system_data_dirs() -> list[Path]:
    platform: str = sys.platform  # as a plain str: type checkers look at all branches
    if platform == "win32":
        data = os.environ.get("PROGRAMDATA") if _is_set("JUPYTER_USE_PROGRAMDATA") else None
        return [Path(data) / "jupyter"] if data else []
    if not _is_set("JUPYTER_PLATFORM_DIRS"):
        return [Path("/usr/local/share/jupyter"), Path("/usr/share/jupyter")]
    if platform == "darwin":
        return [Path("/Library/Application Support/Jupyter")]
    told = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [Path(each) / "jupyter" for each in told.split(os.pathsep) if each]


def kernels_dir(
    *,
    prefix: str | os.PathLike[str] | None = None,
    user: bool = False,
    sys_prefix: bool = False,
) -> Path:
    """Return the directory that kernelspecs are installed into.

    With no place named it is the one that Jupyter prefers: within a virtual or conda environment
    that environment, otherwise the user's. ``JUPYTER_PREFER_ENV_PATH`` decides if it is set.

    Raises:
        ValueError: more than one place is named.
    """
    named = [("--prefix", prefix is not None), ("--user", user), ("--sys-prefix", sys_prefix)]
    chosen = [option for option, is_chosen in named if is_chosen]
    if len(chosen) > 1:
        raise ValueError(f"a kernelspec goes to one place: choose one of {' and '.join(chosen)}")
    if prefix is not None:
        data = Path(prefix).expanduser().absolute() / "share" / "jupyter"
    elif sys_prefix or (not user and _prefers_environment()):
        data = Path(sys.prefix) / "share" / "jupyter"
    else:
        data = user_data_dir()
    return data / "kernels"


def user_data_dir() -> Path:
    """Return where the user's Jupyter data is, as ``jupyter_core.paths.jupyter_data_dir`` does."""
    environ = os.environ
    platform: str = sys.platform  # as a plain str: type checkers look at all branches
    home = Path.home().resolve()
    if environ.get("JUPYTER_DATA_DIR"):
        return Path(environ["JUPYTER_DATA_DIR"])
    # The rules of the platform itself, which Jupyter follows on demand.
    by_platform = _is_set("JUPYTER_PLATFORM_DIRS")
    if platform == "darwin":
        if not by_platform:
            return home / "Library" / "Jupyter"
        homebrew = sys.prefix.startswith("/opt/homebrew")
        return home / "Library" / "Application Support" / ("jupyter" if homebrew else "Jupyter")
    if platform == "win32":
        if by_platform:
            local = environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
            return Path(local) / "Jupyter"
        if environ.get("APPDATA"):
            return (Path(environ["APPDATA"]) / "jupyter").resolve()
        return Path(environ.get("JUPYTER_CONFIG_DIR") or home / ".jupyter") / "data"
    return Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "jupyter"


def runtime_dir() -> Path:
    """Return where connection files are, as ``jupyter_core.paths.jupyter_runtime_dir`` does."""
    told = os.environ.get("JUPYTER_RUNTIME_DIR")
    return Path(told) if told else user_data_dir() / "runtime"


def _prefers_environment() -> bool:
    if "JUPYTER_PREFER_ENV_PATH" in os.environ:
        return _is_set("JUPYTER_PREFER_ENV_PATH")
    if sys.prefix != sys.base_prefix:
        return True
    conda = os.environ.get("CONDA_PREFIX")
    is_base = os.environ.get("CONDA_DEFAULT_ENV", "base") == "base"
    return bool(conda) and sys.prefix.startswith(str(conda)) and not is_base


def _is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes: by Jupyter's rule, it is there and no no."""
    no = {"no", "n", "false", "off", "0", "0.0"}
    return variable in os.environ and os.environ[variable].lower() not in no


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name.lower()):
        raise ValueError(
            f"{name!r} is no name for a kernelspec: it takes ASCII letters, digits, "
            "'-', '_' and '.', and begins with a letter, a digit or '_', as in 'trio-python'"
        )
    return name.lower()


def _check_spec(spec: Mapping[str, Any]) -> None:
    missing = [key for key in ("argv", "display_name", "language") if not spec.get(key)]
    if missing:
        raise ValueError(f"a kernelspec needs {', '.join(missing)} too; this one has {dict(spec)}")
    if not any("{connection_file}" in argument for argument in spec["argv"]):
        raise ValueError(
            "a kernelspec's argv needs '{connection_file}', which Jupyter replaces, "
            f"as in ['my-kernel', '-f', '{{connection_file}}']; this one is {list(spec['argv'])}"
        )


def _remove(directory: Path) -> None:
    if directory.is_symlink():  # what it points to is somebody's working copy
        directory.unlink()
    elif directory.exists():
        try:
            shutil.rmtree(directory)
        except OSError as error:
            # It names a file by what that is called within a folder, and not always the folder.
            raise OSError(error.errno, error.strerror, str(directory)) from error
