"""Connection files: ours and jupyter_client's, and clear words about bad ones."""

from __future__ import annotations

import json
import os
import stat
import traceback
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.connect import ConnectionFileMixin, write_connection_file

from trio_subshells.wire import (
    CHANNELS,
    ConnectionInfo,
    InvalidConnectionInfo,
    read_startup_file,
)

PORTS = {f"{name}_port": 5000 + n for n, name in enumerate(CHANNELS)}
CURVE = {"curve_publickey": "p" * 40, "curve_secretkey": "s" * 40}
FIELDS: dict[str, Any] = {
    **PORTS,
    "transport": "tcp",
    "ip": "127.0.0.1",
    "key": "secret-é",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "trio-python",
}


def test_a_connection_file_is_read() -> None:
    info = ConnectionInfo.from_dict(FIELDS | CURVE | {"jupyter_session": "a.ipynb", "later": 1})
    assert info.shell_port == PORTS["shell_port"]
    assert info.key == "secret-é".encode()
    assert info.kernel_name == "trio-python"
    assert info.jupyter_session == "a.ipynb"
    assert info.curve_secretkey == b"s" * 40
    assert [info.url(name) for name in CHANNELS] == [
        f"tcp://127.0.0.1:{5000 + n}" for n in range(5)
    ]


def test_only_the_ports_are_needed() -> None:
    info = ConnectionInfo.from_dict(PORTS)
    assert (info.transport, info.ip, info.key) == ("tcp", "127.0.0.1", b"")
    assert info.signature_scheme == "hmac-sha256"
    assert info.curve_publickey is None


@pytest.mark.parametrize("fields", [FIELDS, FIELDS | CURVE, PORTS | {"jupyter_session": "x"}])
def test_what_is_written_reads_back(fields: dict[str, Any], tmp_path: Path) -> None:
    info = ConnectionInfo.from_dict(fields)
    assert ConnectionInfo.from_dict(info.to_dict()) == info
    info.write_file(tmp_path / "kernel.json")
    assert ConnectionInfo.from_file(tmp_path / "kernel.json") == info


def test_addresses() -> None:
    assert ConnectionInfo(ip="::1", hb_port=1).url("hb") == "tcp://[::1]:1"
    ipc = ConnectionInfo(transport="ipc", ip="/run/kernel", iopub_port=99_999)
    assert ipc.url("iopub") == "ipc:///run/kernel-99999"
    with pytest.raises(ValueError, match=r"channels are shell, iopub.*; not 'heartbeat'"):
        ipc.url("heartbeat")  # type: ignore[arg-type]


def test_a_new_local_connection_has_a_key_of_its_own() -> None:
    one, other = ConnectionInfo.local(kernel_name="k"), ConnectionInfo.local()
    assert len(one.key) == 64
    assert one.key != other.key
    assert one.kernel_name == "k"
    assert attrs.evolve(one, shell_port=7).url("shell") == "tcp://127.0.0.1:7"


def test_no_secret_is_shown() -> None:
    shown = repr(ConnectionInfo.from_dict(FIELDS | CURVE))
    assert "secret" not in shown
    assert "s" * 40 not in shown
    assert "p" * 40 not in shown, "with the public key alone one can listen on iopub"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shell_port": "5555"}, "shell_port must be an integer of at least 0.*, not '5555'"),
        ({"hb_port": True}, "hb_port must be an integer.*, not True"),
        ({"hb_port": -1}, "hb_port must be an integer of at least 0 and at most 65535, not -1"),
        ({"iopub_port": 65_536}, "iopub_port must be .* at most 65535, not 65536"),
        ({"transport": "udp"}, "transport must be 'tcp' or 'ipc', not 'udp'"),
        ({"transport": ["tcp"]}, "transport must be 'tcp' or 'ipc', not"),
        ({"ip": ""}, "ip must be an address"),
        ({"ip": 127}, "ip must be an address .*, not 127"),
        ({"key": None}, "key must be a string, not NoneType"),
        ({"key": 7}, "key must be a string, not int"),
        ({"key": "\ud800"}, "key must be valid Unicode"),
        ({"signature_scheme": 256}, "signature_scheme must be a string, not int"),
        ({"kernel_name": {}}, "kernel_name must be a string, not dict"),
        ({"curve_publickey": "p" * 40}, "curve_publickey and curve_secretkey come together"),
        (CURVE | {"curve_secretkey": "short"}, "curve_secretkey must be 40 ASCII characters"),
        (CURVE | {"curve_publickey": "é" * 20}, "curve_publickey must be 40 ASCII characters"),
        ({"registration_port": 1}, "this is a registration file"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConnectionInfo, match=words) as caught:
        ConnectionInfo.from_dict(FIELDS | change)
    assert "short" not in str(caught.value), "no key in a log"


def test_missing_ports_are_named() -> None:
    with pytest.raises(InvalidConnectionInfo, match=r"must have iopub_port, hb_port$"):
        ConnectionInfo.from_dict({"shell_port": 1, "stdin_port": 2, "control_port": 3})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it isn't a JSON file: Expecting value"),
        (b"\xff\xff", "it isn't a JSON file: "),
        (b'["the key"]', "connection info must be a JSON object, not list"),
        (b"{}", "connection info must have shell_port, iopub_port"),
        (b"[" * 100_000, "it isn't a JSON file: "),
    ],
)
def test_a_bad_file_is_named(text: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel-bad.json"
    path.write_bytes(text)
    with pytest.raises(InvalidConnectionInfo, match=f"kernel-bad.json: {words}"):
        ConnectionInfo.from_file(path)
    with pytest.raises(FileNotFoundError):
        ConnectionInfo.from_file(tmp_path / "absent.json")


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, *CURVE, "jupyter_session"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
    )
)
@settings(deadline=None, max_examples=200)
def test_any_json_object_is_read_or_refused_in_words(change: dict[str, Any]) -> None:
    try:
        info = ConnectionInfo.from_dict(FIELDS | change)
    except InvalidConnectionInfo as caught:
        words = str(caught)
        assert any(name in words for name in change), "which field was it?"
    else:
        assert ConnectionInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


@pytest.mark.parametrize("text", ['{"key": "the-key",', '["the-key"]', '{"key": "the-key"}'])
def test_no_key_is_in_what_is_said_of_a_bad_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(text)
    path.chmod(0o600)
    for read in (ConnectionInfo.from_file, read_startup_file):
        with pytest.raises(InvalidConnectionInfo) as caught:
            read(path)
        assert "the-key" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.skipif(os.name != "posix", reason="file modes say who can read only on POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_is_open_to_others_is_read_with_a_warning(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a kernel.json"
    info = ConnectionInfo.from_dict(FIELDS | CURVE)
    info.write_file(path)
    assert ConnectionInfo.from_file(path) == info
    assert caplog.messages == []
    path.chmod(mode)
    assert ConnectionInfo.from_file(path) == info
    (said,) = caplog.messages
    assert said.startswith(f"{path} is open to other users (mode {mode:03o})")
    assert said.endswith(f"chmod 600 '{path}'")
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.skipif(os.name != "posix", reason="files have owners with numbers only on POSIX")
def test_a_file_of_another_user_is_read_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kernel.json"
    ConnectionInfo.from_dict(FIELDS).write_file(path)
    owner = os.geteuid()
    if owner == 0:  # nobody minds what root has, so let it be somebody
        owner = 12_345
        os.chown(path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    ConnectionInfo.from_file(path)
    (said,) = caplog.messages
    assert f"{path} belongs to another user (uid {owner})" in said


@pytest.mark.skipif(os.name != "posix", reason="file modes say who can read only on POSIX")
def test_it_is_private_before_the_key_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, there is no moment at which somebody else could open it."""
    modes = []
    fdopen = os.fdopen

    def look(handle: int, *args: Any, **options: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return fdopen(handle, *args, **options)

    monkeypatch.setattr(os, "fdopen", look)
    before = os.umask(0)
    try:
        ConnectionInfo.from_dict(FIELDS).write_file(tmp_path / "kernel.json")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "kernel.json").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="file modes say who can read only on POSIX")
def test_only_the_user_can_read_it_even_if_others_could_before(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text("old")
    path.chmod(0o666)
    ConnectionInfo.from_dict(FIELDS).write_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kernel.json").mkdir()  # a folder can't be replaced by a file
    with pytest.raises(OSError, match=r"kernel\.json"):
        ConnectionInfo.from_dict(FIELDS).write_file(tmp_path / "kernel.json")
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.json"]
    info = attrs.evolve(ConnectionInfo.from_dict(FIELDS), key=b"\xff")
    with pytest.raises(InvalidConnectionInfo, match="key must be UTF-8"):
        info.write_file(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("curve", [{}, {k: v.encode() for k, v in CURVE.items()}])
def test_we_read_what_jupyter_client_writes(curve: dict[str, bytes], tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.json")
    _, fields = write_connection_file(path, key=b"the key", kernel_name="k", **PORTS, **curve)
    info = ConnectionInfo.from_file(path)
    assert info.key == b"the key"
    assert info.to_dict() == fields


@pytest.mark.parametrize("extra", [{}, CURVE, {"transport": "ipc", "ip": "kernel-ipc"}])
def test_jupyter_client_reads_what_we_write(extra: dict[str, Any], tmp_path: Path) -> None:
    info = ConnectionInfo.from_dict(FIELDS | extra)
    info.write_file(tmp_path / "ours.json")
    theirs = ConnectionFileMixin(connection_file=str(tmp_path / "ours.json"))
    theirs.load_connection_file()
    assert theirs.session.key == info.key
    assert theirs.session.signature_scheme == info.signature_scheme
    assert theirs.curve_secretkey == info.curve_secretkey
    for channel in CHANNELS:
        assert theirs._make_url(channel) == info.url(channel)
