"""Registration files, and the handshake by which a kernel says where it listens; without I/O.

With a connection file, who starts a kernel chooses its ports, which somebody else may have taken
by the time the kernel binds them. With a registration file the kernel chooses, and tells
(`JEP 66 <https://github.com/jupyter/enhancement-proposals/tree/master/66-jupyter-handshaking>`__;
messaging specification, "Kernel startup handshake", since protocol 5.6).
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from ._connection import (
    CHANNELS,
    ConnectionInfo,
    check_ip,
    check_key,
    check_text,
    check_transport,
    endpoint,
    fields_of,
    key_bytes,
    read_file,
    require,
    require_object,
    write_file,
)
from ._errors import shown
from ._session import DELIMITER
from ._signing import Signer

_MAX_PORT: Final = 65_535


def _check_port(info: RegistrationInfo, attribute: attrs.Attribute[int], value: int) -> None:
    most = f" and at most {_MAX_PORT}" if info.transport == "tcp" else ""
    require(
        type(value) is int and value >= 1 and (info.transport != "tcp" or value <= _MAX_PORT),
        f"registration_port must be an integer of at least 1{most}, not {shown(value)}",
    )


@attrs.frozen(kw_only=True)
class RegistrationInfo:
    """What a registration file says: where to tell which ports were chosen, and how to sign that.

    No key is ever part of the `repr`.

    Raises:
        InvalidConnectionInfo: an argument isn't what it must be.
    """

    transport: Literal["tcp", "ipc"] = attrs.field(default="tcp", validator=check_transport)
    """That of the registration socket, and of the kernel's own."""
    registration_ip: str = attrs.field(validator=check_ip)
    """The address of the registration socket; with ipc the path, to which the port is appended."""
    registration_port: int = attrs.field(validator=_check_port)
    """Its port."""
    kernel_id: str = attrs.field(default="", validator=check_text)
    """By which the other side tells its kernels apart."""
    ip: str = attrs.field(
        default=attrs.Factory(lambda self: self.registration_ip, takes_self=True),
        validator=check_ip,
    )
    """Where the kernel is to listen; by default at the address of the registration socket, since
    the two are on one machine."""
    key: bytes = attrs.field(default=b"", repr=False, validator=check_key)
    """What the handshake, and then all messages, are signed with. Empty: they aren't."""
    signature_scheme: str = attrs.field(default="hmac-sha256", validator=check_text)
    """How they are signed, see `WireSession`."""
    kernel_name: str = attrs.field(default="", validator=check_text)
    """The name of the kernelspec that the kernel was started from."""
    curve_publickey: bytes | None = attrs.field(default=None, repr=False)
    """For the kernel's channels, as in a connection file; the handshake itself is only signed."""
    curve_secretkey: bytes | None = attrs.field(default=None, repr=False)
    """The secret key that goes with it."""

    def __attrs_post_init__(self) -> None:
        self.connection()  # checks the rest

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RegistrationInfo:
        """Read the fields of a registration file; those that are unknown here are ignored.

        Beyond what the specification has, a port may be a string, as xeus wants it, and the address
        may be called ``ip``, if it is the kernel's own too.

        Raises:
            InvalidConnectionInfo: a field is missing, or isn't what it must be.
        """
        require_object(fields)
        known = {
            field.name: fields[field.name] for field in attrs.fields(cls) if field.name in fields
        }
        known.setdefault("registration_ip", known.get("ip"))
        require(known["registration_ip"] is not None, "registration info must have registration_ip")
        require("registration_port" in known, "registration info must have registration_port")
        port = known["registration_port"]
        if isinstance(port, str) and port.isascii() and port.isdecimal():
            known["registration_port"] = int(port)
        for name in ("key", "curve_publickey", "curve_secretkey"):
            if name in known and not (known[name] is None and name != "key"):
                known[name] = key_bytes(name, known[name])
        return cls(**known)

    def connection(self) -> ConnectionInfo:
        """Return the connection that the kernel is to open: any free ports, the same keys."""
        return ConnectionInfo(
            transport=self.transport,
            ip=self.ip,
            key=self.key,
            signature_scheme=self.signature_scheme,
            kernel_name=self.kernel_name,
            curve_publickey=self.curve_publickey,
            curve_secretkey=self.curve_secretkey,
        )

    @property
    def url(self) -> str:
        """The ZMQ address of the registration socket, a ROUTER."""
        return endpoint(self.transport, self.registration_ip, self.registration_port)

    def announce(self, connection: ConnectionInfo) -> list[bytes]:
        """Return the frames that tell the ports of a connection, for a DEALER.

        Raises:
            ValueError: there is no such signature scheme.
        """
        # As the specification has it, a port is a string here. (In the files, it is a number.)
        ports = {f"{name}_port": str(getattr(connection, f"{name}_port")) for name in CHANNELS}
        content = json.dumps({"kernel_id": self.kernel_id, **ports}).encode("ascii")
        return [DELIMITER, self._signer().sign([content]), content]

    def is_acknowledged_by(self, frames: Sequence[bytes]) -> bool:
        """Whether this is an acknowledgement, and from somebody who has the key.

        What its content says is up to the other side.
        """
        return self._is_signed(frames)

    # ------------------------------------------------------- the side of who starts the kernel

    def to_dict(self) -> dict[str, str | int]:
        """Return the fields of a registration file, which `from_dict` reads back to an equal info.

        Raises:
            InvalidConnectionInfo: the key isn't UTF-8, so that a JSON file can't hold it.
        """
        return fields_of(self)

    def write_file(self, path: str | os.PathLike[str]) -> None:
        """Write a registration file, as `ConnectionInfo.write_file` does a connection file.

        Raises:
            InvalidConnectionInfo: as in `to_dict`.
            OSError: it can't be written; then nothing is left behind.
        """
        write_file(path, self)

    def announced_by(self, frames: Sequence[bytes]) -> ConnectionInfo | None:
        """Read what `announce` returned; None if it isn't that, or not from who has the key."""
        if not self._is_signed(frames):
            return None
        try:
            said = json.loads(frames[frames.index(DELIMITER) + 2])
            if said["kernel_id"] != self.kernel_id:
                return None
            ports: dict[str, Any] = {f"{name}_port": int(said[f"{name}_port"]) for name in CHANNELS}
            return attrs.evolve(self.connection(), **ports)
        except (ValueError, TypeError, LookupError):
            return None

    def acknowledge(self) -> list[bytes]:
        """Return the frames of an acknowledgement, for the ROUTER to put the identity before."""
        content = b"ACK"
        return [DELIMITER, self._signer().sign([content]), content]

    # --------------------------------------------------------------------------------------

    def _is_signed(self, frames: Sequence[bytes]) -> bool:
        if DELIMITER not in frames:
            return False
        after = frames[frames.index(DELIMITER) + 1 :]
        signer = self._signer()
        return len(after) >= 2 and (
            not signer.signs or hmac.compare_digest(signer.sign(after[1:2]), after[0])
        )

    def _signer(self) -> Signer:
        return Signer(self.key, self.signature_scheme)


def read_startup_file(path: str | os.PathLike[str]) -> ConnectionInfo | RegistrationInfo:
    """Read the file that a kernel is started with: a connection file, or a registration file.

    If it isn't the user's alone, a warning is logged that says how to mend that.

    Raises:
        InvalidConnectionInfo: it is neither; the message names the file and what is wrong.
        OSError: it can't be read.
    """
    return read_file(path, _read_either)


def _read_either(fields: Mapping[str, Any]) -> ConnectionInfo | RegistrationInfo:
    require_object(fields)
    if "registration_port" in fields:
        return RegistrationInfo.from_dict(fields)
    return ConnectionInfo.from_dict(fields)
