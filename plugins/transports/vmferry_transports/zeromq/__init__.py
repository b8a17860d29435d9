"""The ``zeromq`` transport: one DEALER per lane to the listener's ROUTER, with credits.

**Pattern.** The listener has one ROUTER socket, so one port, for all connections; the connecting
end has a DEALER for every lane, so that lanes have TCP streams of their own. PAIR would need a
port for every lane; PUSH and PULL two sockets for each; PUB drops. A ROUTER by itself has no
back-pressure for one peer (it drops, or refuses to send), and the high-water mark of a socket
counts messages rather than bytes; therefore the receiver of a lane grants bytes (``lane``).

**Reconnection.** ZeroMQ would replace a broken stream silently. Here a stream that breaks loses
the connection: the connecting end does not reconnect and watches its sockets' monitors, the
listener probes its lanes when its monitor tells of a stream that ended, and every message carries
its number in the lane (``messages``), so that whatever else goes missing is noticed.
"""

from vmferry_transports.zeromq.options import ZeromqOptions
from vmferry_transports.zeromq.transport import ZeromqTransport

__all__ = ["ZeromqOptions", "ZeromqTransport"]
