"""What the calls on a running kernel raise."""

from __future__ import annotations


class UnknownSubshell(LookupError):
    """There is no subshell of that id: it was never created, or it has been deleted."""


class TooManySubshells(RuntimeError):
    """There is no room for another subshell; the message says what has run out, and what to do.

    That may be `Kernel.max_subshells`, file descriptors, threads, or memory. Nothing of the new
    subshell is left, the others go on, and deleting one makes room.
    """


class SubshellUnjoinable(TimeoutError):
    """A subshell could not be ended in the time it was given: it is in a call that doesn't return.

    It takes no requests any more, and is joined as soon as that call returns.
    """


class RegistrationFailed(TimeoutError):
    """A kernel that was started with a registration file has told its ports, and nobody said yes.

    It is of no use then, and ends (JEP 66).
    """
