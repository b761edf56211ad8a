"""``trio-subshells start``: the kernel, in this process."""

from __future__ import annotations

import uuid
from pathlib import Path

from jupyter_client.connect import write_connection_file
from jupyter_core.paths import jupyter_runtime_dir
from rich.console import Console
from rich.markup import escape

from ..ipython import IPythonKernel
from ..kernel import main
from . import _specs


def start(console: Console, file: Path | None) -> None:
    """Serve the IPython kernel at a connection file; it ends in `SystemExit`.

    Without a file, one is written where Jupyter's clients look, and removed at the end.
    """
    _specs.trio_python()  # says what is missing, if something is
    if file is not None:
        main(IPythonKernel, ["-f", str(file)])
    directory = Path(jupyter_runtime_dir())
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = directory / f"kernel-{uuid.uuid4().hex[:8]}.json"
    write_connection_file(str(own), kernel_name=_specs.NAME)
    try:
        console.print(
            f"The kernel listens at {escape(str(own))}\n\n"
            f"    jupyter console --existing {own.name}\n\n"
            "connects to it. Ctrl-C interrupts what it runs; it ends when a client shuts it down.",
            soft_wrap=True,
        )
        main(IPythonKernel, ["-f", str(own)])
    finally:
        own.unlink(missing_ok=True)
