"""The kernel's NBD client by generic netlink: devices made from a socket that is connected.

``include/uapi/linux/nbd-netlink.h``. Unlike nbd-client(8) this lets requests wait for as long as
need be when the server is gone (``NBD_ATTR_DEAD_CONN_TIMEOUT``) instead of failing them, and gives
the device a name of our own that sysfs shows (``/sys/block/nbdN/backend``, kernel 5.14), so that
it can be found again.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from vmferry.errors import HypervisorError

__all__ = ["connect_nbd", "disconnect_nbd", "nbd_devices", "reconnect_nbd", "size_nbd"]

_MESSAGE, _GENERIC, _ATTRIBUTE = (
    struct.Struct("=IHHII"),
    struct.Struct("=BBH"),
    struct.Struct("=HH"),
)
_NETLINK_GENERIC, _CONTROL, _ERROR = 16, 16, 2
_REQUEST, _ACK = 1, 4
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS = 1, 2, 3, 4, 5
_SOCKETS, _DEAD_TIMEOUT, _IDENTIFIER = 7, 8, 10
_SOCK_ITEM, _SOCK_FD = 1, 1
_NESTED = 0x8000
_PATIENCE = 365 * 24 * 3600
"""Seconds that requests wait for a server that is gone."""


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _number(kind: int, value: int, size: str = "=Q") -> bytes:
    return _attribute(kind, struct.pack(size, value))


def _attributes(data: bytes) -> Mapping[int, bytes]:
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & ~_NESTED] = data[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, length + (-length % 4))
    return found


class _Family:
    """A generic netlink socket that speaks to the ``nbd`` family."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        self._socket.settimeout(60)
        try:
            name = _attribute(_FAMILY_NAME, b"nbd\0")
            reply = self._ask(_CONTROL, _GET_FAMILY, name)
            (self._family,) = struct.unpack("=H", reply[_FAMILY_ID][:2])
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> _Family:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(self, command: int, attributes: bytes) -> Mapping[int, bytes]:
        """Do a command; returns what it answered. Raises ``OSError`` with the kernel's number."""
        return self._ask(self._family, command, attributes)

    def _ask(self, family: int, command: int, attributes: bytes) -> Mapping[int, bytes]:
        body = _GENERIC.pack(command, 1, 0) + attributes
        head = _MESSAGE.pack(_MESSAGE.size + len(body), family, _REQUEST | _ACK, 1, 0)
        self._socket.send(head + body)
        answer: Mapping[int, bytes] = {}
        while True:
            data = self._socket.recv(1 << 16)
            at = 0
            while at + _MESSAGE.size <= len(data):
                length, kind, _, _, _ = _MESSAGE.unpack_from(data, at)
                payload = data[at + _MESSAGE.size : at + length]
                at += length + (-length % 4)
                if kind != _ERROR:
                    answer = _attributes(payload[_GENERIC.size :])
                    continue
                (code,) = struct.unpack_from("=i", payload)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return answer


def _sockets(connection: socket.socket) -> bytes:
    item = _attribute(_SOCK_ITEM | _NESTED, _number(_SOCK_FD, connection.fileno(), "=I"))
    return _attribute(_SOCKETS | _NESTED, item)


def connect_nbd(
    connection: socket.socket, *, size: int, sector_size: int, flags: int, identifier: str
) -> str:
    """A device, e.g. ``/dev/nbd3``, that sends its requests over ``connection``; blocks.

    The kernel keeps the connection: the caller closes its own descriptor.

    Args:
        connection: past the NBD negotiation.
        size: bytes; 0 for a device that nobody can read until ``size_nbd``.
        sector_size: logical sector of the device, bytes.
        flags: transmission flags that the server gave.
        identifier: shown by ``nbd_devices``.

    Raises:
        HypervisorError: the module is not loaded, or no device is free.

    """
    attributes = (
        _number(_SIZE, size)
        + _number(_BLOCK_SIZE, sector_size)
        + _number(_TIMEOUT, 0)
        + _number(_SERVER_FLAGS, flags)
        + _sockets(connection)
        + _number(_DEAD_TIMEOUT, _PATIENCE)
        + _attribute(_IDENTIFIER, identifier.encode() + b"\0")
    )
    connection.settimeout(None)
    try:
        with _Family() as family:
            (index,) = struct.unpack("=I", family.call(_CONNECT, attributes)[_INDEX])
    except OSError as error:
        raise HypervisorError(f"nbd: {_explain(error)}") from error
    return f"/dev/nbd{index}"


def reconnect_nbd(path: str, connection: socket.socket, identifier: str) -> None:
    """Give a device whose server has gone a new connection: requests that wait go on; blocks.

    Raises:
        HypervisorError: its connection is not dead, or it is another device than ``identifier``.

    """
    connection.settimeout(None)
    _reconfigure(path, _sockets(connection), identifier)


def size_nbd(path: str, size: int, identifier: str) -> None:
    """Give a device another size, in bytes; blocks.

    Raises:
        HypervisorError: it is not connected, or it is another device than ``identifier``.

    """
    _reconfigure(path, _number(_SIZE, size), identifier)


def _reconfigure(path: str, change: bytes, identifier: str) -> None:
    index = int(path.removeprefix("/dev/nbd"))
    attributes = (
        _number(_INDEX, index, "=I") + change + _attribute(_IDENTIFIER, identifier.encode() + b"\0")
    )
    try:
        with _Family() as family:
            family.call(_RECONFIGURE, attributes)
    except OSError as error:
        raise HypervisorError(f"nbd: {path}: {_explain(error)}") from error


def disconnect_nbd(path: str) -> None:
    """End the device's connection; requests that wait fail. One that has none is no error; blocks.

    Raises:
        HypervisorError: the kernel refuses.

    """
    index = int(path.removeprefix("/dev/nbd"))
    try:
        with _Family() as family:
            family.call(_DISCONNECT, _number(_INDEX, index, "=I"))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTCONN):
            raise HypervisorError(f"nbd: {path}: {_explain(error)}") from error


def nbd_devices(prefix: str, sysfs: Path = Path("/sys/block")) -> dict[str, str]:
    """Paths of connected devices by identifier, for those that begin with ``prefix``."""
    found = {}
    for backend in sorted(sysfs.glob("nbd*/backend")):
        identifier = backend.read_text().strip()
        if identifier.startswith(prefix):
            found[identifier] = f"/dev/{backend.parent.name}"
    return found


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "the kernel's module is not loaded; run `modprobe nbd max_part=0`"
    return error.strerror or str(error)
