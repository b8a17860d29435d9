"""The ``ssh`` transport: the agent at the other end is reached through the user's own ``ssh``."""

from vmferry_transports.ssh.options import SshOptions
from vmferry_transports.ssh.transport import SshTransport

__all__ = ["SshOptions", "SshTransport"]
