"""The ``tcp`` transport: one TCP socket per lane, plain or with mutual TLS 1.3."""

from vmferry_transports.tcp.options import TcpOptions
from vmferry_transports.tcp.transport import TcpTransport

__all__ = ["TcpOptions", "TcpTransport"]
