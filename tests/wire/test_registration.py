"""Registration files and the handshake's frames, against a registration service of the test's own.

The service computes its signatures by itself, as the messaging specification describes them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_subshells.wire import (
    CHANNELS,
    ConnectionInfo,
    InvalidConnectionInfo,
    RegistrationInfo,
    read_startup_file,
)

FIELDS: dict[str, Any] = {  # as in the documentation
    "kernel_id": "unique_kernel_id",
    "transport": "tcp",
    "registration_ip": "127.0.0.1",
    "registration_port": 51587,
    "signature_scheme": "hmac-sha256",
    "key": "a0436f6c-1916-498b-8eb9-e81ab9368e84",
}
CURVE = {"curve_publickey": "p" * 40, "curve_secretkey": "s" * 40}


def signature(content: bytes, key: str = FIELDS["key"]) -> bytes:
    return hmac.new(key.encode(), content, hashlib.sha256).hexdigest().encode()


def test_a_registration_file_is_read() -> None:
    info = RegistrationInfo.from_dict(FIELDS | CURVE | {"later": 1})
    assert info.url == "tcp://127.0.0.1:51587"
    assert info.kernel_id == "unique_kernel_id"
    connection = info.connection()
    assert connection == ConnectionInfo(
        ip="127.0.0.1",
        key=FIELDS["key"].encode(),
        curve_publickey=b"p" * 40,
        curve_secretkey=b"s" * 40,
    )


def test_the_kernel_may_be_at_another_address() -> None:
    info = RegistrationInfo.from_dict(FIELDS | {"registration_ip": "10.0.0.1", "ip": "10.0.0.2"})
    assert info.url == "tcp://10.0.0.1:51587"
    assert info.connection().ip == "10.0.0.2"
    ipc = RegistrationInfo.from_dict(FIELDS | {"transport": "ipc", "registration_ip": "/run/hub"})
    assert ipc.url == "ipc:///run/hub-51587"
    assert ipc.connection().url("hb") == "ipc:///run/hub-0"
    assert (
        RegistrationInfo.from_dict(FIELDS | {"registration_ip": "::1"}).url == "tcp://[::1]:51587"
    )


def test_what_others_write_is_read_too() -> None:
    """xeus has the port as a string, and the kernel's address; some have one address for both."""
    xeus = RegistrationInfo.from_dict(FIELDS | {"registration_port": "51587", "ip": "127.0.0.1"})
    assert xeus == RegistrationInfo.from_dict(FIELDS)
    fields = {"ip": "127.0.0.1", **FIELDS}
    del fields["registration_ip"], fields["kernel_id"]
    info = RegistrationInfo.from_dict(fields)
    assert info.url == "tcp://127.0.0.1:51587"
    assert json.loads(info.announce(ConnectionInfo())[2])["kernel_id"] == ""


def test_no_secret_is_shown() -> None:
    shown = repr(RegistrationInfo.from_dict(FIELDS | CURVE))
    assert "a0436f6c" not in shown
    assert "s" * 40 not in shown
    assert "p" * 40 not in shown


def test_the_ports_are_told_as_specified() -> None:
    info = RegistrationInfo.from_dict(FIELDS)
    ports = {f"{name}_port": 5000 + n for n, name in enumerate(CHANNELS)}
    delimiter, signed, content = info.announce(attrs.evolve(info.connection(), **ports))
    assert delimiter == b"<IDS|MSG>"
    assert signed == signature(content)
    assert json.loads(content) == {
        "kernel_id": "unique_kernel_id",
        **{name: str(port) for name, port in ports.items()},
    }


@pytest.mark.parametrize(
    "frames",
    [
        [b"<IDS|MSG>", signature(b"ACK"), b"ACK"],
        [b"<IDS|MSG>", signature(b'{"status": "ok"}'), b'{"status": "ok"}'],
        [b"", b"<IDS|MSG>", signature(b""), b"", b"more"],
    ],
)
def test_an_acknowledgement_says_what_it_likes(frames: list[bytes]) -> None:
    assert RegistrationInfo.from_dict(FIELDS).is_acknowledged_by(frames)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"ACK"],
        [b"<IDS|MSG>"],
        [b"<IDS|MSG>", signature(b"ACK")],
        [b"<IDS|MSG>", b"", b"ACK"],
        [b"<IDS|MSG>", signature(b"ACK", "another key"), b"ACK"],
        [b"<IDS|MSG>", signature(b"ACK"), b"NAK"],
    ],
)
def test_what_isnt_signed_with_the_key_is_none(frames: list[bytes]) -> None:
    assert not RegistrationInfo.from_dict(FIELDS).is_acknowledged_by(frames)


def test_without_a_key_nothing_is_signed() -> None:
    info = RegistrationInfo.from_dict(FIELDS | {"key": ""})
    assert info.announce(ConnectionInfo())[1] == b""
    assert info.is_acknowledged_by([b"<IDS|MSG>", b"", b"ACK"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registration_port": "a"}, "registration_port must be an integer of at least 1.*'a'"),
        ({"registration_port": 0}, "registration_port must be an integer of at least 1 .*not 0"),
        ({"registration_port": 65_536}, "at most 65535, not 65536"),
        ({"registration_port": True}, "registration_port must be an integer.*not True"),
        ({"registration_port": None}, "registration_port must be an integer.*not None"),
        ({"registration_ip": None}, "must have registration_ip"),
        ({"registration_ip": ""}, "registration_ip must be an address"),
        ({"ip": 7}, "ip must be an address"),
        ({"transport": "udp"}, "transport must be 'tcp' or 'ipc'"),
        ({"kernel_id": 7}, "kernel_id must be a string, not int"),
        ({"key": 7}, "key must be a string, not int"),
        ({"curve_publickey": "p" * 40}, "curve_publickey and curve_secretkey come together"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConnectionInfo, match=words):
        RegistrationInfo.from_dict(FIELDS | change)


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, *CURVE, "ip"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
    )
)
@settings(deadline=None, max_examples=200)
def test_any_json_object_is_read_or_refused_in_words(change: dict[str, Any]) -> None:
    try:
        RegistrationInfo.from_dict(FIELDS | change)
    except InvalidConnectionInfo as caught:
        words = str(caught)
        assert any(name in words for name in change), "which field was it?"


def test_a_kernel_is_started_with_either_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    connection = ConnectionInfo.local()
    connection.write_file(path)
    assert read_startup_file(path) == connection
    path.write_text(json.dumps(FIELDS))
    assert read_startup_file(path) == RegistrationInfo.from_dict(FIELDS)
    path.write_text(json.dumps(FIELDS | {"transport": 1}))
    with pytest.raises(InvalidConnectionInfo, match=r"kernel\.json: transport must be"):
        read_startup_file(path)


# The side of who starts the kernel.


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    for more in ({}, CURVE, {"kernel_name": "some", "ip": "127.0.0.2"}):
        info = RegistrationInfo.from_dict(FIELDS | more)
        info.write_file(tmp_path / "it.json")
        assert read_startup_file(tmp_path / "it.json") == info
        assert RegistrationInfo.from_dict(info.to_dict()) == info


PORTS = {f"{name}_port": 50000 + number for number, name in enumerate(CHANNELS)}


def test_what_a_kernel_announces_is_understood_and_acknowledged() -> None:
    kernel, launcher = (RegistrationInfo.from_dict(FIELDS) for _ in range(2))
    connection = attrs.evolve(kernel.connection(), **PORTS)
    assert launcher.announced_by(kernel.announce(connection)) == connection
    assert kernel.is_acknowledged_by(launcher.acknowledge())


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_id": "another"},
        {"key": "another"},
        {"key": ""},
    ],
)
def test_what_others_announce_is_nothing(change: dict[str, Any]) -> None:
    launcher = RegistrationInfo.from_dict(FIELDS)
    other = RegistrationInfo.from_dict(FIELDS | change)
    connection = attrs.evolve(other.connection(), **PORTS)
    assert launcher.announced_by(other.announce(connection)) is None
    if "key" in change:
        assert not launcher.is_acknowledged_by(other.acknowledge())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"nothing",
        b"\xff",
        b"{}",
        b'{"kernel_id": "unique_kernel_id"}',
        json.dumps({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": "x"}).encode(),
        json.dumps({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": 70000}).encode(),
        json.dumps({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": None}).encode(),
    ],
)
def test_an_announcement_that_is_none_is_nothing(content: bytes) -> None:
    launcher = RegistrationInfo.from_dict(FIELDS)
    assert launcher.announced_by([b"<IDS|MSG>", signature(content), content]) is None


@given(st.lists(st.binary()))
def test_no_frames_are_too_strange_to_be_an_announcement(frames: list[bytes]) -> None:
    assert RegistrationInfo.from_dict(FIELDS).announced_by(frames) is None
    assert RegistrationInfo.from_dict(FIELDS).announced_by([b"<IDS|MSG>", *frames]) is None
