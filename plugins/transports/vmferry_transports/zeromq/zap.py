"""Who may connect: a handler of ZeroMQ's authentication protocol, https://rfc.zeromq.org/spec/27/.

libzmq asks it for every peer that has proved to hold the secret key of the public one it shows.
"""

from __future__ import annotations

import logging

import zmq
import zmq.utils.z85

from vmferry.errors import ConnectionLost, InputError
from vmferry_transports.zeromq.keys import AllowList
from vmferry_transports.zeromq.port import Parts, Port, Station

__all__ = ["DOMAIN", "Doorkeeper"]

DOMAIN = b"vmferry"

_log = logging.getLogger("vmferry_transports.zeromq")
_ENDPOINT = "inproc://zeromq.zap.01"
_PARTS = 7
_MOST = 4096


class Doorkeeper:
    """Answers libzmq for the sockets of one station; bind them only when it is there."""

    def __init__(self, station: Station, allowed: AllowList) -> None:
        self._allowed = allowed
        sock = station.socket(zmq.REP, _MOST)
        sock.bind(_ENDPOINT)
        self._port: Port = station.add(sock, self._asked)

    def _asked(self, parts: Parts) -> None:
        question = [part.bytes for part in parts]
        name = self._name(question)
        answer = [b"200", b"OK", name.encode()] if name else [b"400", b"not allowed", b""]
        try:
            self._port.send([question[0], question[1], *answer, b""])
        except (ConnectionLost, IndexError) as error:
            _log.error("authentication: %s", error)

    def _name(self, question: list[bytes]) -> str:
        """Return the peer's name, ``""`` when it may not connect."""
        if len(question) != _PARTS or question[2] != DOMAIN or question[5] != b"CURVE":
            return ""
        try:
            allowed = self._allowed.read()
        except InputError as error:
            _log.error("nobody is let in: %s", error)
            return ""
        key = zmq.utils.z85.encode(question[6])
        if key not in allowed:
            address = question[3].decode(errors="replace")
            _log.warning("%s: key %s is not in curve_allow", address, key.decode())
        return allowed.get(key, "")
