from __future__ import annotations

import random

import msgspec
import pytest

from vmferry.errors import DigestMismatch, ProtocolError
from vmferry.wire.compress import Codec
from vmferry.wire.extents import is_zero, seal, unseal

RANDOM = random.Random(1).randbytes(65536)
TEXT = b"all work and no play " * 4000


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("data", [RANDOM, TEXT, b"\x00" * 4095 + b"\x01"])
def test_what_was_sealed_is_unsealed(data: bytes, codec: Codec) -> None:
    extent, payload = seal(2, 8192, memoryview(data), codec)
    assert (extent.disk, extent.offset, extent.length) == (2, 8192, len(data))
    opened = unseal(extent, payload)
    assert opened is not None
    assert bytes(opened) == data


def test_compression_that_does_not_pay_is_not_used() -> None:
    extent, payload = seal(0, 0, memoryview(RANDOM), Codec.ZSTD)
    assert extent.codec == 0
    assert payload == RANDOM
    extent, payload = seal(0, 0, memoryview(TEXT), Codec.ZSTD)
    assert extent.codec == Codec.ZSTD.value
    assert len(payload) < len(TEXT) // 10


@pytest.mark.parametrize("size", [512, 513, 4096, 1 << 20])
def test_zeroes_need_no_payload(size: int) -> None:
    extent, payload = seal(0, 0, memoryview(bytes(size)), Codec.NONE)
    assert extent.zero
    assert payload == b""
    assert unseal(extent, payload) is None


@pytest.mark.parametrize("place", [0, 63, 64, 4088, 4095])
def test_a_single_bit_is_no_zero(place: int) -> None:
    data = bytearray(4096)
    data[place] = 1
    assert not is_zero(memoryview(data))


def test_a_flipped_bit_is_found_before_anything_is_written() -> None:
    extent, payload = seal(1, 4096, memoryview(RANDOM), Codec.NONE)
    flipped = bytearray(payload)
    flipped[777] ^= 1
    with pytest.raises(DigestMismatch, match="disk 1, offset 4096"):
        unseal(extent, memoryview(flipped))


def test_payloads_that_do_not_fit_are_refused() -> None:
    extent, payload = seal(0, 0, memoryview(RANDOM), Codec.NONE)
    with pytest.raises(ProtocolError, match="payload of 65535 bytes where length says 65536"):
        unseal(extent, payload[:-1])
    with pytest.raises(ProtocolError, match="codec 9"):
        unseal(msgspec.structs.replace(extent, codec=9), payload)
    zero, _ = seal(0, 0, memoryview(bytes(512)), Codec.NONE)
    with pytest.raises(ProtocolError, match="zero extent"):
        unseal(zero, b"x")
