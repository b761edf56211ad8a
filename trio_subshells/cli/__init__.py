"""The command line: ``trio-subshells demo | install | uninstall | list | start | run NOTEBOOK``.

It needs the extra ``cli``; without it, it says so.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that ``sys.argv`` names; the console script ``trio-subshells`` is this.

    It ends in `SystemExit`: 0 if all went well, 1 if the command failed, 2 if it was not
    understood, 130 if the user has interrupted it.
    """
    try:
        from ._app import run_app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == __name__.partition(".")[0]:  # one of our own modules: no question of extras
            raise
        raise SystemExit(
            f"trio-subshells: the command line needs {missing}, which is not installed; "
            "this installs it: pip install 'trio-subshells[cli,ipython]'"
        ) from None
    run_app()
