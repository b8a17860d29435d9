"""Makes type information as a kernel would show it, for kernels that do not exist."""

from __future__ import annotations

import struct

INT, PTR, STRUCT, UNION, TYPEDEF, CONST, PROTO = 1, 2, 4, 5, 8, 10, 13


class BtfMaker:
    def __init__(self):
        self.types = []
        self.strings = b"\0"

    def name(self, text):
        if not text:
            return 0
        wanted = b"\0" + text.encode() + b"\0"
        if wanted not in self.strings:
            self.strings += wanted[1:]
        return self.strings.index(wanted) + 1

    def add(self, kind, name, third, rest=b"", count=0):
        self.types.append(struct.pack("<III", self.name(name), kind << 24 | count, third) + rest)
        return len(self.types)

    def int(self, name="int"):
        return self.add(INT, name, 4, struct.pack("<I", 32))

    def pointer(self, to):
        return self.add(PTR, "", to)

    def struct(self, name, members, kind=STRUCT):
        """Members: name, type and offset in bytes."""
        rows = [struct.pack("<III", self.name(m), t, 8 * o) for m, t, o in members]
        return self.add(kind, name, 64, b"".join(rows), len(rows))

    def tracepoint(self, name, parameters):
        rows = [struct.pack("<II", 0, kind) for kind in [self.pointer(0), *parameters]]
        proto = self.add(PROTO, "", 0, b"".join(rows), len(rows))
        return self.add(TYPEDEF, f"btf_trace_{name}", self.pointer(proto))

    def bytes(self):
        types = b"".join(self.types)
        sizes = (0, len(types), len(types), len(self.strings))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + types + self.strings


def small_kernel():
    """A kernel whose structs have their fields at odd places."""
    made = BtfMaker()
    number = made.int()
    disk = made.struct("gendisk", [("major", number, 4), ("first_minor", number, 12)])
    queue = made.struct("request_queue", [("disk", made.pointer(disk), 40)])
    request = made.struct(
        "request",
        [
            ("q", made.pointer(made.add(CONST, "", queue)), 8),
            ("cmd_flags", number, 20),
            ("__sector", number, 32),
        ],
    )
    part = made.struct("block_device", [("bd_disk", made.pointer(disk), 24)])
    iterator = made.struct("bvec_iter", [("bi_sector", number, 0), ("bi_size", number, 8)])
    inner = made.struct("", [("bi_opf", number, 4)], UNION)
    bio = made.struct(
        "bio",
        [("bi_bdev", made.pointer(part), 8), ("", inner, 12), ("bi_iter", iterator, 24)],
    )
    made.tracepoint("block_rq_complete", [made.pointer(request), number, number])
    made.tracepoint("block_bio_queue", [made.pointer(bio)])
    made.tracepoint("block_bio_complete", [made.pointer(queue), made.pointer(bio)])
    return made.bytes()
