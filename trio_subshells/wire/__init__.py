"""The Jupyter wire protocol without I/O: frames in, messages out, and back.

Nothing here knows a socket or an event loop. A kernel's sending side is one `WireSession`, which
every thread may use; its receiving side is one `Receiver`, made by the session::

    session = WireSession(info.key, signature_scheme=info.signature_scheme)
    receiver = session.receiver()

    envelope = receiver.receive(frames)        # verified; its header says where it goes
    request = envelope.open()                  # wherever it is handled
    frames = session.serialize(
        "execute_reply", {"status": "ok"}, parent=request, idents=request.idents
    )

Whatever is wrong with what arrives is a `MalformedMessage`. What can't be sent is an `EncodeError`.
`ConnectionInfo` is the file that tells both sides where to meet; with a `RegistrationInfo`, the
kernel chooses that, and tells.

Everything is synchronous: nothing blocks, nothing is a checkpoint, and nothing needs to be closed.
"""

from ._codec import EncodeError as EncodeError
from ._codec import encode as encode
from ._connection import CHANNELS as CHANNELS
from ._connection import Channel as Channel
from ._connection import ConnectionInfo as ConnectionInfo
from ._connection import InvalidConnectionInfo as InvalidConnectionInfo
from ._errors import MalformedMessage as MalformedMessage
from ._errors import MalformedReason as MalformedReason
from ._messages import Envelope as Envelope
from ._messages import Header as Header
from ._messages import JSONObject as JSONObject
from ._messages import Message as Message
from ._registration import RegistrationInfo as RegistrationInfo
from ._registration import read_startup_file as read_startup_file
from ._session import DELIMITER as DELIMITER
from ._session import PROTOCOL_VERSION as PROTOCOL_VERSION
from ._session import Buffer as Buffer
from ._session import Receiver as Receiver
from ._session import WireSession as WireSession

__all__ = [
    "CHANNELS",
    "DELIMITER",
    "PROTOCOL_VERSION",
    "Buffer",
    "Channel",
    "ConnectionInfo",
    "EncodeError",
    "Envelope",
    "Header",
    "InvalidConnectionInfo",
    "JSONObject",
    "MalformedMessage",
    "MalformedReason",
    "Message",
    "Receiver",
    "RegistrationInfo",
    "WireSession",
    "encode",
    "read_startup_file",
]
