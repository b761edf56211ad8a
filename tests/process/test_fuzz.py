"""The fuzzer in short: some thousands of messages, made by hypothesis, to a whole kernel.

What is rightly signed is answered once, between busy and idle, whatever is wrong inside; comm
messages become busy and idle; all else is dropped. ``benchmarks/fuzz.py`` does the same for as many
messages as one likes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import hypothesis
from hypothesis import strategies as st

from ._client import Client, Kernel

DELIMITER = b"<IDS|MSG>"
DATE = "2026-01-01T00:00:00.000000Z"

DEEP = b"[" * 2000 + b"]" * 2000
# Texts to choose from: a strategy for JSON takes longer to make a value than the kernel to read it.
JSON_TEXTS = (
    *(b"null", b"true", b"false", b"0", b"1", b"-1", b"1.5", b"1e400", b"NaN", b"-Infinity"),
    *(b"18446744073709551616", b"9" * 400, b'""', b'"text"', b'"tail"', b'"nobody"', b'"*"'),
    *(b'"\\ud800"', b'"\\u0000"', '"é\U0001f600\u2028"'.encode(), b'"' + b"x" * 5000 + b'"'),
    *(b"[]", b"[[]]", b'[1, "a", null]', b"{}", b'{"": {}}', b'{"a": "b"}', b'{"code": [1]}', DEEP),
)
NO_JSON = (
    b"",
    b"{",
    b"]",
    b"nul",
    b"\xff\xfe",
    b'"\xed\xa0\x80"',
    b"'a'",
    b"{} {}",
    b"\0",
    b"9" * 5000,
)

REQUESTS: dict[tuple[str, str], dict[str, Any]] = {
    ("shell", "execute_request"): {
        "code": "1",
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    },
    ("shell", "complete_request"): {"code": "a", "cursor_pos": 1},
    ("shell", "inspect_request"): {"code": "a", "cursor_pos": 1, "detail_level": 0},
    ("shell", "is_complete_request"): {"code": "a"},
    ("shell", "history_request"): {
        "hist_access_type": "tail",
        "output": False,
        "raw": True,
        "session": 0,
        "start": 0,
        "stop": 1,
        "n": 1,
        "pattern": "*",
        "unique": False,
    },
    ("shell", "comm_info_request"): {"target_name": "t"},
    ("shell", "kernel_info_request"): {},
    ("shell", "unknown_request"): {},
    ("shell", "comm_open"): {"comm_id": "c", "target_name": "t", "data": {}},
    ("shell", "comm_msg"): {"comm_id": "c", "data": {}},
    ("shell", "comm_close"): {"comm_id": "c", "data": {}},
    ("control", "kernel_info_request"): {},
    ("control", "list_subshell_request"): {},
    ("control", "delete_subshell_request"): {"subshell_id": "nobody"},
    ("control", "debug_request"): {"command": "debugInfo", "arguments": {}},
    ("control", "unknown_request"): {},
}


@attrs.frozen
class Shot:
    """What is to be sent, and what is done to the message when it is signed."""

    channel: str
    msg_type: str
    frames: list[bytes]  # parent header, metadata, content
    mangle: Callable[[list[bytes]], list[bytes]] | None

    @property
    def replies(self) -> int:
        return 0 if self.msg_type in {"comm_open", "comm_msg", "comm_close"} else 1


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def without(index: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda frames: frames[:index] + frames[index + 1 :]


def replaced(index: int, frame: bytes) -> Callable[[list[bytes]], list[bytes]]:
    # One byte more than anything signed can have: it is certainly not the frame that was there.
    return lambda frames: [*frames[:index], frame + frames[index] + b" ", *frames[index + 1 :]]


MANGLED = (
    *(without(index) for index in range(6)),
    *(replaced(index, junk) for index in range(6) for junk in (b"", b"junk", b"\xff\0")),
    lambda frames: [b"<ids|msg>", *frames[1:]],
    lambda frames: [b"", b"x" * 2000, b"<IDS|MSG"],
    lambda frames: frames[::-1],
    lambda frames: [b""],
)


def shot(
    request: tuple[str, str],
    field: int,
    value: bytes,
    frame: int,
    text: bytes,
    mangle: Callable[[list[bytes]], list[bytes]] | None,
) -> Shot:
    """A request of which a field is replaced, or a whole frame; or all of it spoilt afterwards."""
    channel, msg_type = request
    content = {name: as_json(value) for name, value in REQUESTS[request].items()}
    names = [*content, "new", "subshell_id"]
    if field:
        content[names[field % len(names)]] = value
    pairs = (as_json(name) + b":" + value for name, value in content.items())
    frames = [b"{}", b"{}", b"{" + b",".join(pairs) + b"}"]
    if frame < len(frames):
        frames[frame] = text
    return Shot(channel, msg_type, frames, mangle)


SHOTS = st.builds(
    shot,
    st.sampled_from(list(REQUESTS)),
    st.integers(0, 20),
    st.sampled_from(JSON_TEXTS),
    st.integers(0, 9),
    st.sampled_from(JSON_TEXTS + NO_JSON),
    st.none() | st.sampled_from(MANGLED),
)


def test_everything_that_is_owed_and_nothing_else(start_kernel: Callable[..., Kernel]) -> None:
    client = start_kernel("echo").connect()
    numbers = itertools.count()
    count = 0

    def send(shot: Shot) -> str:
        msg_id = f"fuzz-{next(numbers)}"
        header = {**client.session.msg_header(shot.msg_type), "msg_id": msg_id}
        signed = [as_json({**header, "date": DATE}), *shot.frames]
        frames = [DELIMITER, client.session.sign(signed), *signed]
        if shot.mangle is not None:
            frames = shot.mangle(frames)
        client.sockets[shot.channel].send_multipart(frames)
        return msg_id

    # The same from run to run: what it finds shall be found by the change that is at fault.
    @hypothesis.settings(
        max_examples=80,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(st.lists(SHOTS, min_size=25, max_size=50))
    def check(volley: list[Shot]) -> None:
        nonlocal count
        client.memory.clear()
        sent = {send(shot): shot for shot in volley}
        count += len(sent)
        check_answers(client, sent)

    check()
    assert count >= 2000
    client.execute("still there").ok()
    subshell = client.create_subshell()
    client.execute("here, too", subshell=subshell).ok()


def check_answers(client: Client, sent: dict[str, Shot]) -> None:
    """After the last request on each channel is idle, all others are, too: they are in order."""
    for channel in ("control", "shell"):
        client.request("kernel_info_request", channel=channel).ok()
    client.execute("").ok()
    owed = {msg_id: shot for msg_id, shot in sent.items() if shot.mangle is None}
    for msg_id in owed:  # comm messages have a way of their own
        client.wait_for(
            lambda message, msg_id=msg_id: message.parent_id == msg_id and message.state == "idle",  # type: ignore[misc]
            f"idle after {sent[msg_id]}",
        )
    got: dict[str, Counter[str]] = {msg_id: Counter() for msg_id in sent}
    for message in client.memory:
        if message.parent_id in got:
            what = message.state or ("reply" if message.channel != "iopub" else "output")
            got[message.parent_id][what] += 1
            if what == "reply":
                expected = sent[message.parent_id].msg_type.removesuffix("_request") + "_reply"
                assert message.type == expected
    for msg_id, shot in sent.items():
        found = {what: count for what, count in got[msg_id].items() if what != "output"}
        expected_counts = {"busy": 1, "idle": 1} | ({"reply": 1} if shot.replies else {})
        assert found == (expected_counts if msg_id in owed else {}), shot
