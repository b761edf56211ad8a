"""Kernelspecs: ``trio-python``, and which of those that Jupyter finds are ours."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_core.paths import jupyter_path

from ..ipython import IPythonKernel
from ..kernel._install import MARK, with_abilities
from ._console import CommandError

NAME = "trio-python"
DISPLAY_NAME: str = IPythonKernel.kernelspec["display_name"]


def trio_python(display_name: str = DISPLAY_NAME) -> dict[str, Any]:
    """Return the ``kernel.json`` of the IPython kernel, run by the running Python.

    Raises:
        CommandError: this environment has no IPython, so that the kernel couldn't start.
    """
    if find_spec("IPython") is None:
        raise CommandError(
            "the kernel needs IPython, which is not installed in this environment; "
            "this installs it: pip install 'trio-subshells[cli,ipython]'"
        )
    return with_abilities(
        {
            **IPythonKernel.kernelspec,
            "argv": [sys.executable, "-m", "trio_subshells", "-f", "{connection_file}"],
            "display_name": display_name,
        }
    )


class OwnKernelSpecManager(KernelSpecManager):
    """Jupyter's kernelspecs, of which ``trio-python`` is always there, and of this environment.

    So our commands run the kernel of the environment they were started from, whether it has been
    installed or not, and whatever else may have been installed under its name.
    """

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return a kernelspec by its name; see `jupyter_client.kernelspec.KernelSpecManager`."""
        if kernel_name == NAME:
            return KernelSpec(**trio_python())
        return super().get_kernel_spec(kernel_name)

    def check(self, kernel_name: str) -> None:
        """Refuse a kernel that can't be started.

        Raises:
            CommandError: there is no such kernelspec, or not the program that it runs.
        """
        try:
            spec = self.get_kernel_spec(kernel_name)
        except NoSuchKernel:
            known = ", ".join(sorted({*self.find_kernel_specs(), NAME}))
            raise CommandError(
                f"there is no kernelspec {kernel_name!r}; there are: {known}"
            ) from None
        if not spec.argv or shutil.which(spec.argv[0]) is None:
            program = spec.argv[0] if spec.argv else "nothing"
            raise CommandError(
                f"the kernelspec {kernel_name!r} runs {program}, which isn't there (any more)"
            )


@attrs.frozen
class InstalledSpec:
    """A kernelspec of trio_subshells, as it was found.

    Attributes:
        name: of the kernelspec.
        directory: where it is.
        interpreter: the program that it runs.
        state: ``ok``, or what is wrong with it.
    """

    name: str
    directory: Path
    interpreter: str
    state: str


def installed() -> list[InstalledSpec]:
    """Return all kernelspecs where Jupyter looks that run trio_subshells, in the order it looks.

    Of two with one name Jupyter takes the first; the other one's state says so.
    """
    found: list[InstalledSpec] = []
    taken: set[str] = set()
    for kernels in jupyter_path("kernels"):
        for file in sorted(Path(kernels).glob("*/kernel.json")):
            name = file.parent.name.lower()
            spec = _read(file)
            if _is_ours(spec):
                interpreter = str(spec["argv"][0])
                state = "ok"
                if shutil.which(interpreter) is None:
                    state = "its interpreter is gone"
                elif name in taken:
                    state = "shadowed by another kernelspec of that name"
                found.append(InstalledSpec(name, file.parent, interpreter, state))
            taken.add(name)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # somebody else's, and broken: not ours to judge
        return {}
    return spec if isinstance(spec, dict) else {}


def _is_ours(spec: dict[str, Any]) -> bool:
    argv = spec.get("argv")
    if not isinstance(argv, list) or not argv:
        return False
    metadata = spec.get("metadata")
    return (isinstance(metadata, dict) and MARK in metadata) or "trio_subshells" in argv
