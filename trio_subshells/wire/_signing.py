"""Signatures: making and checking them, and remembering those that were seen.

A message is signed with an HMAC of its four JSON frames (messaging specification, "The Wire
Protocol"). Idents and buffers are not covered: the specification leaves them out.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

_PREFIX: Final = "hmac-"


class Signer:
    """Makes signatures with one key. Safe to use from any number of threads at once.

    Args:
        key: the key that both sides have. Empty: nothing is signed, and `scheme` doesn't matter.
        scheme: ``hmac-`` and the name of one of hashlib's functions.

    Raises:
        TypeError: `key` isn't bytes.
        ValueError: there is no such scheme here.
    """

    def __init__(self, key: bytes, scheme: str) -> None:
        if not isinstance(key, bytes):
            raise TypeError(f"the key must be bytes, not {type(key).__name__}")
        # Keyed once and copied for each message: for a short one that takes a quarter less time
        # than keying anew. The original is never updated, so threads may copy it at the same time.
        self._keyed = _keyed_digest(key, scheme) if key else None

    @property
    def signs(self) -> bool:
        """Whether there is a key, and so anything to verify."""
        return self._keyed is not None

    def digest(self, frames: Iterable[bytes]) -> bytes:
        """Return the HMAC of `frames`, or nothing (``b""``) if there is no key."""
        if self._keyed is None:
            return b""
        running = self._keyed.copy()
        for frame in frames:
            running.update(frame)
        return running.digest()

    def sign(self, frames: Iterable[bytes]) -> bytes:
        """Return the signature of `frames` as it travels: the digest in lower-case hexadecimal."""
        return self.digest(frames).hex().encode("ascii")


def _keyed_digest(key: bytes, scheme: object) -> hmac.HMAC:
    if not isinstance(scheme, str) or not scheme.startswith(_PREFIX):
        raise ValueError(
            f"the signature scheme must be 'hmac-' and the name of a hash function, such as "
            f"'hmac-sha256', not {scheme!r}"
        )
    name = scheme.removeprefix(_PREFIX)
    try:
        keyed = hmac.new(key, digestmod=name)
        keyed.copy().digest()  # the shake functions fail only here: their length is up to the user
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"no HMAC can be made with the hash function {name!r} of the signature scheme "
            f"{scheme!r}; those that exist everywhere are {_everywhere()}"
        ) from error
    return keyed


def _everywhere() -> str:
    names = (name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))
    return ", ".join(sorted(names))


class ReplayMemory:
    """The digests of the last messages, so that none is accepted twice.

    Bounded: when it is full, the oldest is forgotten. Safe to use from several threads; its lock is
    held for one look-up in a set, and no code of anybody else's runs under it.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"the number of signatures to remember can't be negative: {size}")
        self._size = size
        self._known: set[bytes] = set()
        self._in_order: deque[bytes] = deque()
        self._lock = threading.Lock()

    def add(self, digest: bytes) -> bool:
        """Remember `digest`, and return whether it is new."""
        if self._size == 0:
            return True
        with self._lock:
            if digest in self._known:
                return False
            if len(self._in_order) == self._size:
                self._known.remove(self._in_order.popleft())
            self._known.add(digest)
            self._in_order.append(digest)
            return True
