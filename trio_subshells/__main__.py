"""``python -m trio_subshells``: the IPython kernel. ``-f FILE`` serves it, as Jupyter does."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from .kernel import main


def start() -> None:
    """Run the IPython kernel's command line; without IPython, say what to install."""
    if find_spec("IPython") is None:
        sys.exit(
            "trio_subshells: the IPython kernel needs IPython, which isn't installed here: "
            "pip install 'trio-subshells[ipython]'"
        )
    from .ipython import IPythonKernel

    main(IPythonKernel, command=[sys.executable, "-m", "trio_subshells"])


if __name__ == "__main__":
    start()
