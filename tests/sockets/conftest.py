"""What the tests of the sockets floor share: a context, and counts of what must not leak."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from trio_subshells.sockets import Context, open_context
from trio_subshells.sockets._ledger import start_lending


@pytest.fixture
def context() -> Iterator[Context]:
    """A context; that nothing of it is left open is checked at its end."""
    with open_context() as context:
        yield context


@pytest.fixture
def count_descriptors() -> Callable[[], int]:
    """How many file descriptors this process has open."""
    if sys.platform == "win32":
        pytest.skip("Windows counts handles of every kind, which come and go by themselves")
    return psutil.Process().num_fds


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Python threads that are there after the test were there before it."""
    start_lending()  # pyzmq's own thread stays, from the first message that is lent
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
