"""What can go wrong between actors, and whose fault it is.

`ActorTerminated` and `AskTimeout` are siblings: with the first, no answer will ever come, because
the actor is gone; with the second, it lives, but didn't answer in the time that the asker gave it.
"""

from __future__ import annotations

import trio


class ActorError(Exception):
    """The base of what this package raises by itself."""


class ActorTerminated(ActorError):
    """The actor has ended, or has failed while it handled the request: no answer will come.

    Its `__cause__` is what the actor died of, if it died of an exception.
    """


def described(error: BaseException) -> str:
    """The repr of an exception; that of the caller's own classes may fail, too."""
    try:
        return repr(error)
    except BaseException as worse:
        return f"<{type(error).__name__}, whose repr raises {type(worse).__name__}>"


class AskTimeout(ActorError, trio.TooSlowError):
    """The actor didn't answer within the asker's deadline. It may still handle the request."""
