"""Files that this process has made for as long as it runs: sockets and connection files.

They are removed by who made them, and only if they are still what was made. A forked child, which
inherits everything that knows of them, removes none.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Self

import attrs

_log = logging.getLogger("trio_subshells")


@attrs.frozen
class OwnFile:
    """One of them. Made by `OwnFile.at`.

    Attributes:
        path: where it is; absolute, as the process may go to another directory.
    """

    path: Path
    _status: os.stat_result = attrs.field(repr=False)
    _process: int = attrs.field(repr=False)

    @classmethod
    def at(cls, path: Path) -> Self:
        """Take note of a file that this process has just made there."""
        file = cls(path.absolute(), path.lstat(), os.getpid())
        _files.add(file)
        return file

    def remove(self) -> None:
        """Remove it, if it is still there, and still ours. Removing it again does nothing."""
        if os.getpid() != self._process or self not in _files:
            return
        _files.remove(self)
        try:
            if self._is(self.path.lstat()):
                self.path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s can't be removed: %s", self.path, error.strerror)

    def _is(self, status: os.stat_result) -> bool:
        # The time, too, as file systems give the number of a file that has gone to the next one.
        return (
            os.path.samestat(status, self._status)
            and status.st_mtime_ns == self._status.st_mtime_ns
        )


_files: set[OwnFile] = set()


def remove_own_files() -> None:
    """Remove all that are left, in a process that is about to end by force."""
    for file in list(_files):
        file.remove()
