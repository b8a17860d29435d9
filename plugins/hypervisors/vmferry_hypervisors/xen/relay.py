"""The program that xl(1) runs in place of ssh: ``python relay.py SOCKET``.

It hands its stdin and stdout, which are xl's pipes, to the migration at the other end of a unix
socket, and waits. Nothing passes through it. What it is good for is its end: xl takes the end of
its pipes for a failed migration and lets the guest run on. So once the migration has said ``HOLD``
- the destination has all, the commit may be made at any moment - the end of the migration's own
process no longer ends the relay, and the guest stays suspended until somebody decides: ending the
relay then lets the guest go on here.

Needs the standard library alone, so that it starts quickly.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

__all__ = ["HOLD", "QUIT", "main"]

HOLD = b"H"
"""From here on outlive the migration's process."""
QUIT = b"Q"
"""End, and with it the pipes."""


def main(path: str) -> int:
    """Hand over the pipes, and end when told so or when the other end is gone unless held."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held = False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(path)
        socket.send_fds(peer, [b"F"], [0, 1])
        while word := peer.recv(1):
            if word == QUIT:
                return 0
            held = held or word == HOLD
    while held:
        signal.pause()
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OSError as error:
        os.write(2, f"relay: {sys.argv[1]}: {error}\n".encode())
        sys.exit(2)
