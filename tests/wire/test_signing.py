"""Signature schemes: those of hashlib, and clear words for those that can't be."""

from __future__ import annotations

import hashlib
import hmac
import threading
from typing import Any

import pytest

from trio_subshells.wire import WireSession
from trio_subshells.wire._signing import ReplayMemory, Signer

FRAMES = [b'{"msg_id":"1"}', b"{}", b"{}", b'{"code":""}']
FUNCTIONS = sorted(
    name for name in hashlib.algorithms_guaranteed if not name.startswith(("shake", "md5"))
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_hash_function_signs(function: str) -> None:
    signer = Signer(b"key", f"hmac-{function}")
    expected = hmac.new(b"key", b"".join(FRAMES), function).hexdigest().encode()
    assert signer.sign(FRAMES) == expected
    assert signer.sign(FRAMES) == expected, "one message leaves nothing behind for the next"


def test_a_known_signature() -> None:
    # RFC 4231, test case 2: not from the code that is tested
    signer = Signer(b"Jefe", "hmac-sha256")
    assert signer.sign([b"what do ya want ", b"for nothing?"]) == (
        b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("sha256", "must be 'hmac-' and the name of a hash function.*not 'sha256'"),
        ("", "must be 'hmac-'"),
        (None, "must be 'hmac-'.*not None"),
        ("hmac-sha1024", "no HMAC can be made with the hash function 'sha1024'.*sha256, sha384"),
        ("hmac-shake_128", "no HMAC can be made with the hash function 'shake_128'"),
        ("hmac-", "no HMAC can be made"),
    ],
)
def test_a_scheme_that_does_not_exist_is_refused(scheme: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WireSession(b"key", signature_scheme=scheme)


def test_without_a_key_the_scheme_does_not_matter() -> None:
    assert Signer(b"", "").sign(FRAMES) == b""


def test_a_key_is_bytes() -> None:
    with pytest.raises(TypeError, match="the key must be bytes, not str"):
        WireSession("key")  # type: ignore[arg-type]


def test_nobody_else_gets_between_looking_a_digest_up_and_adding_it() -> None:
    """Two channels that get the same message at the same time: both must not find it new.

    The gap is too narrow to be hit by chance. So a table that tells when it is read, which is at
    the look-up, and when it is written to has another thread try to get in at these very moments.
    """
    memory = ReplayMemory(8)
    got_in: list[bool] = []

    def try_to_get_in() -> None:
        entered = memory._lock.acquire(blocking=False)
        if entered:
            memory._lock.release()
        got_in.append(entered)

    def have_somebody_try() -> None:
        intruder = threading.Thread(target=try_to_get_in)
        intruder.start()
        intruder.join()

    class Table(list[int]):
        def __getitem__(self, place: Any) -> Any:
            have_somebody_try()
            return super().__getitem__(place)

        def __setitem__(self, place: Any, value: Any) -> None:
            have_somebody_try()
            super().__setitem__(place, value)

    memory._newest = Table([0] * 8)  # type: ignore[assignment]
    assert memory.add(bytes(32))
    assert len(got_in) == 2
    assert not any(got_in)
    try_to_get_in()
    assert got_in[-1], "afterwards the way is free"
