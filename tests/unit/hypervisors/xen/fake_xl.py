"""A program that plays ``xl migrate`` and ``xl migrate-receive``: their words, and what they do.

``FAKE_XL`` names a folder. What happened is told by files in it; ``config`` is what is migrated.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_XL"])
BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
PRECOPY, LAST = b"p" * 3_000_000, b"s" * 200_000


def note(word: str) -> None:
    (FOLDER / word).touch()


def take(stream, word: bytes) -> bool:
    return stream.read(len(word)) == word


def header() -> bytes:
    config = (FOLDER / "config").read_bytes() + b"\0"
    body = struct.pack("<I", len(config)) + config
    magic = b"Xen saved domain, xl format\n \0 \r"
    return magic + struct.pack("<IIII", 0x01020304, 3, 0, len(body)) + body


def migrate(command: str) -> int:
    child = subprocess.Popen(
        ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    out, into = child.stdin, os.fdopen(child.stdout.fileno(), "rb", closefd=False)
    try:
        if not take(into, BANNER):
            raise BrokenPipeError
        for piece in (header(), PRECOPY):
            out.write(piece)
        note("asked")
        while not (FOLDER / "suspended").exists():
            if child.poll() is not None:
                raise BrokenPipeError
        out.write(LAST)
        if not take(into, READY):
            raise BrokenPipeError
    except BrokenPipeError:
        out.close()
        child.wait()
        sys.stderr.write("Migration failed, resuming at sender.\n")
        (FOLDER / "suspended").unlink(missing_ok=True)
        note("resumed")
        return 1
    note("away")
    out.write(GO)
    if not take(into, REPORT) or into.read(1) != b"\0":
        sys.stderr.write("Domain state is now undefined !\n")
        return 1
    note("destroyed")
    return 0


def receive() -> int:
    stdin, stdout = os.fdopen(0, "rb", closefd=False), os.fdopen(1, "wb", 0, closefd=False)
    stdout.write(BANNER)
    start = stdin.read(48)
    length = struct.unpack("<IIII", start[32:])[3]
    body = stdin.read(length)
    if length != len(body) or struct.unpack("<I", body[:4])[0] != length - 4:
        sys.stderr.write("lengths\n")
        return 1
    (FOLDER / "received").write_bytes(body[4:-1])
    if stdin.read(len(PRECOPY)) != PRECOPY or stdin.read(len(LAST)) != LAST:
        sys.stderr.write("Domain creation failed\n")
        return 1
    stdout.write(READY)
    if not take(stdin, GO):
        note("copy-destroyed")
        return 1
    note("running")
    stdout.write(REPORT)
    stdout.write(b"\1" if (FOLDER / "unpause-fails").exists() else b"\0")
    return 0


if sys.argv[1] == "migrate":
    assert sys.argv[2:4] == ["-s", ""], sys.argv
    sys.exit(migrate(sys.argv[5]))
if sys.argv[1] == "migrate-receive":
    sys.exit(receive())
note("-".join(["asked-xl", *sys.argv[1:]]))
