"""Signatures: making and checking them, and remembering those that were seen.

A message is signed with an HMAC of its four JSON frames (messaging specification, "The Wire
Protocol"). Idents and buffers are not covered: the specification leaves them out.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from array import array
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
    held for one look-up, and no code of anybody else's runs under it.

    It takes all its room at once, 24 bytes a digest, so that a kernel doesn't grow with every
    request until it is full; objects in a set would be six times that. Digests are numbered in
    their order, and number n is kept in place n modulo the size until the one that comes a size
    later overwrites it. Those that fall into one bucket are chained, each to the one before it. So
    numbers only get smaller along a chain, and it ends where they are those of forgotten digests.

    What is kept of a digest is its first 8 bytes. Nobody without the key can make two that agree in
    them; that it happens by chance, and costs a message, has odds of one in 10¹⁴ for each.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"the number of signatures to remember can't be negative: {size}")
        self._size = size
        self._last = 0  # number of the newest; there is no number 0
        self._kept = array("Q", bytes(8 * size))
        self._before = array("Q", bytes(8 * size))  # number of the one before it in its bucket
        self._newest = array("Q", bytes(8 * size))  # by bucket: number of its newest
        self._lock = threading.Lock()

    def add(self, digest: bytes) -> bool:
        """Remember `digest`, and return whether it is new."""
        if self._size == 0:
            return True
        short = int.from_bytes(digest[:8])
        bucket = short % self._size
        with self._lock:
            newest = number = self._newest[bucket]
            forgotten = max(0, self._last - self._size)
            while number > forgotten:
                place = number % self._size
                if self._kept[place] == short:
                    return False
                number = self._before[place]
            self._last += 1
            place = self._last % self._size
            self._kept[place] = short
            self._before[place] = newest
            self._newest[bucket] = self._last
            return True
