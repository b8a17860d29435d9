"""Extents on the wire: digest, zero detection, compression.

Both functions are pure and release the GIL where it matters, so they run on worker threads. The
digest is BLAKE3 of the uncompressed bytes and is verified after decompression, before anything is
written.
"""

from __future__ import annotations

import numpy as np

from vmferry.errors import ProtocolError
from vmferry.wire.compress import Codec, expand, shrink
from vmferry.wire.digests import check_digest, digest_of
from vmferry.wire.messages import Extent

__all__ = ["is_zero", "seal", "unseal"]

_PROBE = bytes(64)


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero. Data that begins otherwise costs nothing."""
    if data[: len(_PROBE)] != _PROBE[: len(data)]:
        return False
    whole = len(data) & ~7
    words = np.frombuffer(data[:whole], np.uint64)
    return not words.any() and not any(data[whole:])


def seal(
    disk: int, offset: int, data: memoryview, codec: Codec
) -> tuple[Extent, memoryview | bytes]:
    """Head and payload for ``data`` found at ``offset``.

    Zeroes become a zero extent. ``codec`` is used only where it makes the payload smaller.
    """
    if is_zero(data):
        return Extent(disk=disk, offset=offset, length=len(data), zero=True), b""
    used, payload = shrink(codec, data)
    head = Extent(
        disk=disk, offset=offset, length=len(data), digest=digest_of(data), codec=used.value
    )
    return head, payload


def unseal(extent: Extent, payload: memoryview | bytes) -> memoryview | None:
    """The bytes of ``extent``, verified; ``None`` means all zeroes.

    Raises:
        DigestMismatch: the bytes are not those that were sent.
        ProtocolError: the payload does not have the announced length, codec or shape.

    """
    if extent.zero:
        if payload:
            raise ProtocolError("Extent: a zero extent has no payload")
        return None
    data = memoryview(expand("Extent", extent.codec, payload, extent.length))
    what = f"Extent: disk {extent.disk}, offset {extent.offset}, length {extent.length}"
    check_digest(what, data, extent.digest)
    return data
