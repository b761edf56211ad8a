"""``trio-subshells start``: the kernel, in this process."""

from __future__ import annotations

import atexit
import sys
import uuid
from pathlib import Path

from jupyter_client.connect import write_connection_file
from jupyter_core.paths import jupyter_runtime_dir
from rich.console import Console
from rich.markup import escape

from ..ipython import IPythonKernel
from ..kernel import main
from . import _specs
from ._console import CommandError


def start(console: Console, file: Path | None, max_subshells: int | None) -> None:
    """Serve the IPython kernel at a connection file; it ends in `SystemExit`.

    Without a file, one is written where Jupyter's clients look, and removed at the end.
    """
    _specs.trio_python()  # says what is missing, if something is
    options = [] if max_subshells is None else ["--max-subshells", str(max_subshells)]
    if file is not None:
        main(IPythonKernel, ["-f", str(file), *options])
    directory = Path(jupyter_runtime_dir())
    own = directory / f"kernel-{uuid.uuid4().hex[:8]}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_connection_file(str(own), kernel_name=_specs.NAME)
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(
            f"can't write a connection file: {error.filename or own}: {reason}; "
            "JUPYTER_RUNTIME_DIR chooses another place"
        ) from None
    ends_it = "Ctrl-Break" if sys.platform == "win32" else "Ctrl-\\"
    atexit.register(own.unlink, missing_ok=True)  # it runs also at an end by force
    console.print(
        f"The kernel listens at {escape(str(own))}\n\n"
        f"    jupyter console --existing {own.name}\n\n"
        "connects to it. Ctrl-C interrupts what it runs. It ends when a client shuts it down,\n"
        f"as `exit` does in the console, or by {ends_it} here.",
        soft_wrap=True,
    )
    main(IPythonKernel, ["-f", str(own), *options])
