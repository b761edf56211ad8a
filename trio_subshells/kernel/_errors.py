"""What the calls on a running kernel raise, and how any exception is told to people."""

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


def text_of(error: BaseException) -> str:
    """The text of an exception; that of a kernel author's own classes may fail, too."""
    try:
        return str(error)
    except BaseException as worse:
        return f"<its text can't be had: {type(worse).__name__}>"


def named(error: BaseException) -> str:
    """The kind and the text of an exception, on one line."""
    first, *more = text_of(error).splitlines() or [""]
    return f"{type(error).__name__}{': ' if first else ''}{first}{' ...' if more else ''}"
