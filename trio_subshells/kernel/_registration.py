"""The startup handshake: a kernel that chose its own ports tells them to who started it (JEP 66).

What is said is `trio_subshells.wire.RegistrationInfo`'s business; here are the socket, the patience
and the connection file that such a kernel writes for other clients.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Final

import trio
import zmq

from ..sockets import SocketOptions, open_context
from ..wire import ConnectionInfo, RegistrationInfo
from ._errors import RegistrationFailed
from ._install import runtime_dir

_log = logging.getLogger("trio_subshells.kernel")

REGISTRATION_TIMEOUT: Final = 60.0
"""Seconds until a kernel that nobody acknowledges gives up. JEP 66 leaves it to us; who starts many
kernels at once may take its time."""


async def register(
    registration: RegistrationInfo,
    connection: ConnectionInfo,
    *,
    timeout: float,
) -> None:
    """Tell where a kernel listens, and wait until that is acknowledged.

    What arrives without a valid signature is no acknowledgement. Cancelled, the other side may have
    been told, or not.

    Args:
        registration: whom to tell.
        connection: where the kernel listens.
        timeout: in seconds.

    Raises:
        RegistrationFailed: the time is over; it says what came instead.
        zmq.ZMQError: the registration socket's address can't be one.
    """
    refused = 0
    options: SocketOptions = {"linger": 0, "ipv6": ":" in registration.registration_ip}
    with open_context() as context, context.socket(zmq.DEALER, **options) as socket:
        socket.connect(registration.url)
        with trio.move_on_after(timeout):
            await socket.send(registration.announce(connection))
            while not registration.is_acknowledged_by(await socket.receive()):
                refused += 1
                if refused == 1:
                    _log.warning(
                        "dropped an answer of the registration socket %s: "
                        "it isn't signed with the key of the registration file",
                        registration.url,
                    )
            _log.debug("registered at %s", registration.url)
            return
    seen = f"{refused} answers, none with a valid signature" if refused else "no answer at all"
    raise RegistrationFailed(
        f"the registration socket {registration.url} has not acknowledged this kernel "
        f"within {timeout:g} s; there was {seen}"
    )


def connection_file(registration: RegistrationInfo) -> Path:
    """Return where to write the connection file: where Jupyter's clients look, and nothing is yet.

    The id in its name is what they find it by. It comes from somebody else, so it can't be a path.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", registration.kernel_id) or str(os.getpid())
    path = runtime_dir() / f"kernel-{name}.json"
    if path.exists():  # the registration file itself, perhaps
        path = path.with_stem(f"{path.stem}-{os.getpid()}")
    return path
