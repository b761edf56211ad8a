"""Fixtures of the black-box tests: Jupyter's directories without the user's, kernels, clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ._client import Client, Kernel, run_kernel

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is in this folder, so that `-m "not process"` leaves it out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("process")


@pytest.fixture(scope="package", autouse=True)
def jupyter_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give Jupyter and IPython directories of their own; nothing of the user's own setup leaks in.

    The kernelspec ``trio-python`` is put there by the command line that users type, and the one of
    the example kernel, ``echo``, by that kernel's own ``install``.
    """
    root = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "prefix" / "share" / "jupyter"))
        patch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "runtime"))
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        for command in (
            ["-c", "from trio_subshells.cli import main; main()", "install"],
            [str(EXAMPLES / "echo_kernel.py"), "install"],
        ):
            subprocess.run(
                [sys.executable, *command, "--prefix", str(root / "prefix")],
                check=True,
                capture_output=True,
                text=True,
            )
        yield root


@pytest.fixture
def start_kernel(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Start kernels, ``trio-python`` unless told otherwise; end them with the test."""
    with ExitStack() as stack:
        started = 0

        def start(name: str = "trio-python") -> Kernel:
            nonlocal started
            started += 1
            return stack.enter_context(run_kernel(name, tmp_path / f"kernel-{started}.log"))

        yield start


@pytest.fixture
def kernel(start_kernel: Callable[..., Kernel]) -> Kernel:
    """A fresh ``trio-python`` in a process of its own."""
    return start_kernel()


@pytest.fixture
def client(kernel: Kernel) -> Client:
    """A client of the fresh ``trio-python``, ready to be used."""
    return kernel.connect()
