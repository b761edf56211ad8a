"""Floor 2: ZMQ for trio programs.

- `open_context` and `Socket`: ZMQ sockets that a trio task can send on and receive from.
- `InprocTransport`: wakes actors of other threads (`trio_subshells.actors`) through inproc sockets.
- `open_iopub_device`, `open_publisher`, `open_heartbeat_device`: the two Jupyter channels that need
  no Python, and so no GIL, once they run.
- `Ledger`: how many bytes libzmq holds for those who don't read; `SubscriberLimits`: how many of
  them an iopub device puts up with; `bytes_on_their_way`: how many it holds in all.

A `Context` may be shared by threads. Everything else here belongs to the thread that opened it.
"""

from trio_subshells.actors import open_channel

from ._context import Context, ContextStatistics, SocketsLeftOpenError, open_context
from ._device import HeartbeatDevice, IOPubDevice, open_heartbeat_device, open_iopub_device
from ._ledger import Ledger, bytes_on_their_way
from ._options import SocketOptions
from ._publisher import Publisher, PublisherStatistics, Subscription, open_publisher
from ._refusals import Refusals, open_refusals
from ._socket import Socket, SocketStatistics
from ._subscribers import SubscriberLimits
from ._transport import InprocBell, InprocTransport

__all__ = [
    "Context",
    "ContextStatistics",
    "HeartbeatDevice",
    "IOPubDevice",
    "InprocBell",
    "InprocTransport",
    "Ledger",
    "Publisher",
    "PublisherStatistics",
    "Refusals",
    "Socket",
    "SocketOptions",
    "SocketStatistics",
    "SocketsLeftOpenError",
    "SubscriberLimits",
    "Subscription",
    "bytes_on_their_way",
    "open_channel",
    "open_context",
    "open_heartbeat_device",
    "open_iopub_device",
    "open_publisher",
    "open_refusals",
]
