"""Runs the instructions that the assembler writes, with the kernel's maps played by dicts.

Written from the instruction set's documentation, not from the assembler, so that both would have
to be wrong in the same way.
"""

from __future__ import annotations

import struct

U64 = (1 << 64) - 1


class Bad(Exception):
    """The program did what the verifier would have refused."""


class Array:
    """Words of 8 bytes."""

    def __init__(self, words):
        self.words = [0] * words

    def lookup(self, key):
        index = int.from_bytes(key[:4], "little")
        return ("word", self, index) if index < len(self.words) else 0


class ArrayOfMaps:
    def __init__(self, inner):
        self.inner = inner

    def lookup(self, key):
        return ("map", self.inner, 0) if int.from_bytes(key[:4], "little") == 0 else 0


class Table:
    """From 8 bytes to two words; full at ``room``."""

    def __init__(self, room=1 << 30):
        self.entries, self.room = {}, room

    def lookup(self, key):
        found = self.entries.get(key)
        return ("word", found, 0) if found else 0


class Machine:
    """Runs programs. ``memory`` has the kernel's structs: address to value."""

    def __init__(self, maps, memory=None):
        self.maps, self.memory = maps, memory or {}
        self.turns = 0

    def run(self, code, arguments):
        self.regs = [0] * 11
        self.regs[1], self.regs[10] = (
            ("context", list(arguments), 0),
            ("stack", bytearray(512), 512),
        )
        at = 0
        while True:
            self.turns += 1
            if self.turns > 200_000:
                raise Bad("the program does not end")
            op, regs, offset, constant = struct.unpack_from("<BBhi", code, 8 * at)
            target, source = regs & 15, regs >> 4
            at += 1
            if op == 0x95:
                return self.regs[0]
            if op == 0x18:
                high = struct.unpack_from("<i", code, 8 * at + 4)[0]
                at += 1
                value = (constant & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
                self.regs[target] = ("map", self.maps[value], 0) if source == 1 else value
            elif op == 0x85:
                self.call(constant)
            elif op & 7 in (4, 7):
                self.alu(op, target, source, constant)
            elif op & 7 == 5:
                if self.taken(op, target, source, constant):
                    at += offset
            else:
                self.move(op, target, source, offset, constant)

    def operand(self, op, source, constant):
        return self.regs[source] if op & 8 else constant & U64

    def alu(self, op, target, source, constant):
        right = self.operand(op, source, constant)
        left = self.regs[target]
        kind = op >> 4
        if kind == 0xB:
            value = right
        elif isinstance(left, tuple):
            delta = right if right < 1 << 63 else right - (1 << 64)
            if kind != 0:
                raise Bad("arithmetic with a pointer")
            value = (left[0], left[1], left[2] + delta)
        else:
            value = {
                0: lambda: left + right,
                1: lambda: left - right,
                4: lambda: left | right,
                5: lambda: left & right,
                6: lambda: left << (right & 63),
                7: lambda: left >> (right & 63),
            }[kind]() & U64
        if op & 7 == 4 and not isinstance(value, tuple):
            value &= 0xFFFFFFFF
        self.regs[target] = value

    def taken(self, op, target, source, constant):
        if op == 0x05:
            return True
        left, right = self.regs[target], self.operand(op, source, constant)
        if isinstance(left, tuple):
            left = 1 << 62  # a pointer is compared with 0 only
        return {
            1: left == right, 2: left > right, 3: left >= right, 4: bool(left & right),
            5: left != right, 0xA: left < right, 0xB: left <= right,
        }[op >> 4]  # fmt: skip

    def move(self, op, target, source, offset, constant):
        if op in (0x61, 0x79):
            self.regs[target] = self.read(self.regs[source], offset, 4 if op == 0x61 else 8)
        elif op in (0x62, 0x7A):
            self.write(self.regs[target], offset, constant & U64, 4 if op == 0x62 else 8)
        elif op in (0x63, 0x7B):
            self.write(self.regs[target], offset, self.regs[source], 4 if op == 0x63 else 8)
        elif op == 0xDB:
            old = self.read(self.regs[target], offset, 8)
            if constant == 0x40:
                self.write(self.regs[target], offset, old | self.regs[source], 8)
            elif constant == 0x01:
                self.write(self.regs[target], offset, (old + self.regs[source]) & U64, 8)
                self.regs[source] = old
            else:
                raise Bad(f"atomic operation {constant:#x}")
        else:
            raise Bad(f"opcode {op:#x}")

    def read(self, base, offset, width):
        if not isinstance(base, tuple):
            return self.memory.get(base + offset, 0)  # a struct of the kernel
        kind, thing, at = base
        if kind == "context":
            return thing[(at + offset) // 8]
        if kind == "stack":
            return int.from_bytes(thing[at + offset : at + offset + width], "little")
        if kind == "word":
            return self.words(thing)[at + offset // 8]
        raise Bad(f"load from a {kind}")

    def write(self, base, offset, value, width):
        kind, thing, at = base
        if kind == "stack":
            thing[at + offset : at + offset + width] = (value & (1 << 8 * width) - 1).to_bytes(
                width, "little"
            )
        elif kind == "word":
            self.words(thing)[at + offset // 8] = value
        else:
            raise Bad(f"store to a {kind}")

    def words(self, thing):
        return thing.words if isinstance(thing, Array) else thing

    def bytes_at(self, pointer, count):
        kind, thing, at = pointer
        if kind != "stack" or not 0 <= at <= 512 - count:
            raise Bad(f"a {kind} as argument of a helper")
        return bytes(thing[at : at + count])

    def call(self, number):
        kind, found, _ = self.regs[1]
        if kind != "map":
            raise Bad("no map in register 1")
        key = self.bytes_at(self.regs[2], 8 if isinstance(found, Table) else 4)
        result = 0
        if number == 1:
            result = found.lookup(key)
        elif number == 2:
            if len(found.entries) >= found.room and key not in found.entries:
                result = -7 & U64
            else:
                value = self.bytes_at(self.regs[3], 16)
                found.entries[key] = list(struct.unpack("<QQ", value))
        elif number == 3:
            found.entries.pop(key, None)
        else:
            raise Bad(f"helper {number}")
        self.regs[0] = result
        self.regs[1:6] = [("gone", None, 0)] * 5
