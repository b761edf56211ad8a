"""What is in requests: what a client may leave out, and what it must not say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trio_subshells.kernel._ladder import GIVE_UP_AFTER
from trio_subshells.kernel._requests import read_comm, read_execute, read_timeout
from trio_subshells.kernel._types import SubshellInfo
from trio_subshells.wire import MalformedMessage, Message, WireSession


def cell(metadata: dict[str, Any] | None = None, **content: Any) -> Message:
    session = WireSession(b"")
    return session.message("execute_request", {"code": "", **content}, metadata=metadata or {})


@pytest.mark.parametrize("silent", [False, True])
def test_a_cell_needs_nothing_but_its_code(silent: bool) -> None:
    """The rest is what the messaging specification says."""
    assert read_execute(cell(silent=silent)) == {
        "code": "",
        "silent": silent,
        "store_history": not silent,
        "user_expressions": {},
        "allow_stdin": True,
    }


def test_a_timeout_needs_no_second_one() -> None:
    assert read_timeout(cell()) is None
    assert read_timeout(cell({"give_up_after": 3})) is None
    assert read_timeout(cell({"timeout": 2})) == (2, GIVE_UP_AFTER)
    assert read_timeout(cell({"timeout": 2, "give_up_after": 3})) == (2, 3)


@pytest.mark.parametrize("field", ["timeout", "give_up_after"])
@pytest.mark.parametrize("wrong", [0, -1, True, "5", math.nan, [1]])
def test_a_timeout_is_a_positive_number(field: str, wrong: object) -> None:
    """There is no NaN in JSON, but Python's clients write it."""
    with pytest.raises(MalformedMessage, match=field):
        read_timeout(cell({"timeout": 1, field: wrong}))


def test_a_comm_message_needs_no_data() -> None:
    message = WireSession(b"").message("comm_close", {"comm_id": "c"})
    comm = read_comm(SubshellInfo(None), None, message)
    assert (comm.comm_id, comm.data, comm.target_name) == ("c", {}, "")
