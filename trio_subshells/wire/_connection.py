"""Connection files: where a kernel's channels are, and the keys to them.

The format is described in jupyter_client's documentation, "Making kernels for Jupyter", "Connection
files"; the two keys for CurveZMQ since jupyter_client 8.9. This is the only module of this package
that touches the file system: `read_file` and `write_file` do.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

import attrs

from ._errors import shown

Channel: TypeAlias = Literal["shell", "iopub", "stdin", "control", "hb"]
"""The name of one of a kernel's five channels."""

CHANNELS: Final[tuple[Channel, ...]] = get_args(Channel)
"""The names of the five channels."""

_log = logging.getLogger("trio_subshells.wire")

_Info = TypeVar("_Info")

_TRANSPORTS: Final = ("tcp", "ipc")
_MAX_PORT: Final = 65_535
_CURVE_KEY_LENGTH: Final = 40


class InvalidConnectionInfo(ValueError):
    """A connection file, or what is to become one, lacks something or has something wrong in it.

    The message names the field and says what it must be; it never contains a key.
    """


def require(right: bool, message: str) -> None:
    """Refuse what isn't right."""
    if not right:
        raise InvalidConnectionInfo(message)


def _check_port(info: ConnectionInfo, attribute: attrs.Attribute[int], value: int) -> None:
    most = f" and at most {_MAX_PORT}" if info.transport == "tcp" else ""
    require(
        type(value) is int and value >= 0 and (info.transport != "tcp" or value <= _MAX_PORT),
        f"{attribute.name} must be an integer of at least 0{most}, not {shown(value)}",
    )


def check_transport(info: object, attribute: attrs.Attribute[str], value: str) -> None:
    require(value in _TRANSPORTS, f"transport must be 'tcp' or 'ipc', not {shown(value)}")


def check_text(info: object, attribute: attrs.Attribute[str], value: object) -> None:
    require(
        isinstance(value, str), f"{attribute.name} must be a string, not {type(value).__name__}"
    )


def check_ip(info: object, attribute: attrs.Attribute[str], value: object) -> None:
    require(
        isinstance(value, str) and bool(value),
        f"{attribute.name} must be an address (with ipc: a path), not {shown(value)}",
    )


def check_key(info: object, attribute: attrs.Attribute[bytes], value: object) -> None:
    require(isinstance(value, bytes), f"key must be bytes, not {type(value).__name__}")


def _check_curve_key(
    info: ConnectionInfo, attribute: attrs.Attribute[bytes | None], value: object
) -> None:
    require(
        value is None
        or (isinstance(value, bytes) and len(value) == _CURVE_KEY_LENGTH and value.isascii()),
        f"{attribute.name} must be {_CURVE_KEY_LENGTH} ASCII characters: a CurveZMQ key in Z85",
    )


def require_object(fields: object) -> None:
    """Refuse what isn't a JSON object; without a word of what it is: there may be a key in it."""
    require(
        isinstance(fields, Mapping),
        f"connection info must be a JSON object, not {type(fields).__name__}",
    )


def read_file(path: str | os.PathLike[str], read: Callable[[Any], _Info]) -> _Info:
    """Read a JSON file that has a key in it, and warn if it isn't the user's alone.

    Raises:
        InvalidConnectionInfo: it isn't JSON, or as `read` raises it; the message names the file.
        OSError: it can't be read.
    """
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        text = file.read()
    try:
        info = read(json.loads(text))
    except InvalidConnectionInfo as error:
        raise InvalidConnectionInfo(f"{os.fspath(path)}: {error}") from None
    except (ValueError, RecursionError) as error:
        # Not as its cause: that one holds the text of the file, and so the key.
        raise InvalidConnectionInfo(f"{os.fspath(path)}: it isn't a JSON file: {error}") from None
    _warn_of_others(path, status)
    return info


def _warn_of_others(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Say who else has the key. Windows has no such bits: there it is up to the folder."""
    if os.name != "posix":
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (os.geteuid(), 0):  # root can read everything anyway
        _log.warning(
            "%s belongs to another user (uid %d), who has the key in it and can run code in this "
            "kernel; connection files should be the user's own",
            os.fspath(path),
            status.st_uid,
        )
    if mode & 0o077:
        _log.warning(
            "%s is open to other users (mode %03o): who has the key in it can run code in this "
            "kernel; this mends it: chmod 600 %s",
            os.fspath(path),
            mode,
            shlex.quote(os.fspath(path)),
        )


@attrs.frozen(kw_only=True)
class ConnectionInfo:
    """What a connection file says: the addresses of a kernel's channels and how to sign messages.

    A port of 0 stands for one that isn't known yet: the kernel binds to whichever is free, and
    `attrs.evolve` makes the info that can be published. No key is ever part of the `repr`.

    Raises:
        InvalidConnectionInfo: an argument isn't what it must be.
    """

    transport: Literal["tcp", "ipc"] = attrs.field(default="tcp", validator=check_transport)
    """How clients connect: by the network, or by sockets in the file system (not on Windows)."""
    ip: str = attrs.field(default="127.0.0.1", validator=check_ip)
    """With tcp the address to bind to; with ipc the path, to which each port is appended."""
    shell_port: int = attrs.field(default=0, validator=_check_port)
    """The port of the shell channel (ROUTER)."""
    iopub_port: int = attrs.field(default=0, validator=_check_port)
    """The port of the iopub channel (XPUB, or PUB)."""
    stdin_port: int = attrs.field(default=0, validator=_check_port)
    """The port of the stdin channel (ROUTER)."""
    control_port: int = attrs.field(default=0, validator=_check_port)
    """The port of the control channel (ROUTER)."""
    hb_port: int = attrs.field(default=0, validator=_check_port)
    """The port of the heartbeat (REP)."""
    key: bytes = attrs.field(default=b"", repr=False, validator=check_key)
    """What messages are signed with. Empty: they aren't."""
    signature_scheme: str = attrs.field(default="hmac-sha256", validator=check_text)
    """How they are signed, see `WireSession`, which checks it."""
    kernel_name: str = attrs.field(default="", validator=check_text)
    """The name of the kernelspec that the kernel was started from."""
    jupyter_session: str = attrs.field(default="", validator=check_text)
    """The path of the notebook that the kernel was started for, if jupyter_server did it."""
    curve_publickey: bytes | None = attrs.field(
        default=None, repr=False, validator=_check_curve_key
    )
    """The kernel's public CurveZMQ key, Z85-encoded, if the connection is encrypted. It is all that
    a client needs to connect (JEP 145), so it is kept as secret as the others."""
    curve_secretkey: bytes | None = attrs.field(
        default=None, repr=False, validator=_check_curve_key
    )
    """The secret key that goes with it."""

    def __attrs_post_init__(self) -> None:
        require(
            (self.curve_publickey is None) == (self.curve_secretkey is None),
            "curve_publickey and curve_secretkey come together, or not at all",
        )

    @classmethod
    def local(cls, *, kernel_name: str = "") -> ConnectionInfo:
        """Return an info for a new kernel on this machine: any free ports, a key of its own."""
        return cls(key=secrets.token_hex(32).encode("ascii"), kernel_name=kernel_name)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ConnectionInfo:
        """Read the fields of a connection file; those that are unknown here are ignored.

        The five ports must be there. What else is missing has its default; keys are strings.

        Raises:
            InvalidConnectionInfo: a port is missing, or a field isn't what it must be.
        """
        require_object(fields)
        require(
            "registration_port" not in fields,
            "this is a registration file, for the kernel startup handshake of protocol 5.6; "
            "a kernel takes it in place of a connection file, but it is none",
        )
        missing = [f"{name}_port" for name in CHANNELS if f"{name}_port" not in fields]
        require(not missing, f"connection info must have {', '.join(missing)}")
        known = {
            field.name: fields[field.name] for field in attrs.fields(cls) if field.name in fields
        }
        for name in ("key", "curve_publickey", "curve_secretkey"):
            if name in known and not (known[name] is None and name != "key"):
                known[name] = key_bytes(name, known[name])
        return cls(**known)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ConnectionInfo:
        """Read a connection file.

        If it isn't the user's alone, a warning is logged that says how to mend that.

        Raises:
            InvalidConnectionInfo: it isn't JSON, or as in `from_dict`; the message names the file.
            OSError: it can't be read.
        """
        return read_file(path, cls.from_dict)

    def to_dict(self) -> dict[str, str | int]:
        """Return the fields of a connection file, which `from_dict` reads back to an equal info.

        Raises:
            InvalidConnectionInfo: the key isn't UTF-8, so that a JSON file can't hold it.
        """
        return fields_of(self)

    def write_file(self, path: str | os.PathLike[str]) -> None:
        """Write a connection file that only the current user can read.

        A file that exists is replaced, in one step: a client that waits for it never reads half of
        it. On Windows, who can read it is up to the folder.

        Raises:
            InvalidConnectionInfo: as in `to_dict`.
            OSError: it can't be written; then nothing is left behind.
        """
        write_file(path, self)

    def url(self, channel: Channel) -> str:
        """Return the ZMQ address of a channel.

        Raises:
            ValueError: there is no such channel.
        """
        if channel not in CHANNELS:
            raise ValueError(f"a kernel's channels are {', '.join(CHANNELS)}; not {channel!r}")
        return endpoint(self.transport, self.ip, getattr(self, f"{channel}_port"))


def fields_of(info: attrs.AttrsInstance) -> dict[str, str | int]:
    """Return what is to be written into a JSON file: all that is known, with keys as text."""
    fields: dict[str, str | int] = {}
    for name, value in attrs.asdict(info).items():
        if value is None or (name == "jupyter_session" and not value):
            continue
        fields[name] = _key_text(name, value) if isinstance(value, bytes) else value
    return fields


def write_file(path: str | os.PathLike[str], info: attrs.AttrsInstance) -> None:
    """Write what `fields_of` returns to a file that only the current user can read.

    See `ConnectionInfo.write_file`.
    """
    target = Path(path)
    text = json.dumps(fields_of(info), indent=2)
    # mkstemp makes it private from the first moment, whatever the umask.
    handle, draft = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink()
        raise


def endpoint(transport: Literal["tcp", "ipc"], ip: str, port: int) -> str:
    """Return the ZMQ address of a port."""
    if transport == "ipc":
        return f"ipc://{ip}-{port}"
    host = f"[{ip}]" if ":" in ip else ip  # IPv6
    return f"tcp://{host}:{port}"


def key_bytes(name: str, value: object) -> bytes:
    if isinstance(value, bytes):  # jupyter_client's own dicts have the key as bytes
        return value
    if not isinstance(value, str):
        raise InvalidConnectionInfo(f"{name} must be a string, not {type(value).__name__}")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidConnectionInfo(f"{name} must be valid Unicode") from None


def _key_text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidConnectionInfo(f"{name} must be UTF-8 to be written to a file") from None
