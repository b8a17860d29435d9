from __future__ import annotations

import lzma
import struct

import pytest

from vmferry_lab.errors import LabError
from vmferry_lab.guestkernel import unpacked

ELF = b"\x7fELF" + bytes(range(256)) * 40


def bzimage(payload: bytes, setup_sectors: int = 3) -> bytes:
    head = bytearray(((setup_sectors or 4) + 1) * 512)
    head[0x1F1] = setup_sectors
    struct.pack_into("<II", head, 0x248, 64, len(payload) + 4)
    return bytes(head) + bytes(64) + payload + struct.pack("<I", len(ELF)) + b"more"


@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
def test_the_kernel_comes_out_as_it_went_in(setup_sectors: int) -> None:
    assert unpacked(bzimage(lzma.compress(ELF), setup_sectors)) == ELF


@pytest.mark.parametrize("packed", [b"", bytes(2000), bzimage(lzma.compress(b"no kernel"))])
def test_what_holds_no_kernel_is_refused(packed: bytes) -> None:
    with pytest.raises(LabError, match="the guests' kernel"):
        unpacked(packed)
