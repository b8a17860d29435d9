"""CURVE keys in files, as ``zmq.auth`` writes them.

A host's key pair is ``NAME.key_secret``, which only its owner may read, and ``NAME.key``, which
is given to the other hosts. ``python -m vmferry_transports.zeromq FOLDER NAME`` makes a pair.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import zmq
import zmq.auth

from vmferry.errors import InputError
from vmferry_transports.zeromq.options import ZeromqOptions

__all__ = ["AllowList", "KeyPair", "make", "public", "secret", "wanted"]


class KeyPair(msgspec.Struct, frozen=True):
    """A host's keys, in Z85."""

    public: bytes
    secret: bytes


def wanted(options: ZeromqOptions) -> bool:
    """True when CURVE is on. Raises ``InputError`` when it is half configured."""
    if not options.curve_key and (options.curve_server_key or options.curve_allow):
        raise InputError("CURVE needs curve_key, the file of this host's secret key")
    if options.curve_key and not zmq.has("curve"):
        raise InputError("curve_key is given, and this build of libzmq has no CURVE")
    return bool(options.curve_key)


def secret(path: str) -> KeyPair:
    """Read this host's keys.

    Raises:
        InputError: the file cannot be read, others may read it, or it has no secret key.

    """
    _check_mode(Path(path), "curve_key", 0o077, "chmod 600 it: others must not read it")
    found = _load(Path(path), "curve_key")
    if found[1] is None:
        raise InputError(f"curve_key {path!r} has no secret key; give NAME.key_secret")
    return KeyPair(found[0], found[1])


def public(path: str, option: str = "curve_server_key") -> bytes:
    """Read a peer's public key.

    Raises:
        InputError: the file cannot be read, or others may change it.

    """
    _check_mode(Path(path), option, 0o022, "chmod go-w it: others must not change it")
    return _load(Path(path), option)[0]


def _load(path: Path, option: str) -> tuple[bytes, bytes | None]:
    try:
        found, hidden = zmq.auth.load_certificate(path)
        for key in (found, hidden):
            if key is not None and len(zmq.utils.z85.decode(key)) != 32:
                raise ValueError("a key has not 32 bytes")
    except (OSError, ValueError, KeyError, ArithmeticError) as error:
        text = getattr(error, "strerror", None) or "it is no key file of ZeroMQ"
        raise InputError(f"{option} {str(path)!r} cannot be used: {text}") from None
    return found, hidden


def _check_mode(path: Path, option: str, mask: int, advice: str) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{option} {str(path)!r} cannot be used: {error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()):
        raise InputError(f"{option} {str(path)!r} belongs to another user; chown it")
    if stat.S_IMODE(found.st_mode) & mask:
        raise InputError(
            f"{option} {str(path)!r} has mode {stat.S_IMODE(found.st_mode):o}; {advice}"
        )


class AllowList:
    """The keys in a folder, read anew for each peer, so that adding a file is enough."""

    def __init__(self, folder: str) -> None:
        if not folder:
            raise InputError(
                "curve_allow is missing: to listen with CURVE, name the folder of the public keys"
                " (NAME.key) that may connect"
            )
        self._folder = Path(folder)
        self.read()

    def read(self) -> dict[bytes, str]:
        """Return the name, that of the file, for each key.

        Raises:
            InputError: the folder or a file in it cannot be used; nobody is let in then.

        """
        _check_mode(self._folder, "curve_allow", 0o022, "chmod go-w it")
        try:
            files = sorted(self._folder.glob("*.key"))
        except OSError as error:
            raise InputError(f"curve_allow {self._folder}: {error.strerror}") from None
        return {public(str(file), "curve_allow"): file.stem for file in files}


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new pair of keys and return the files, the public one first.

    Raises:
        InputError: a file is there already, or cannot be written.

    """
    files = folder / f"{name}.key", folder / f"{name}.key_secret"
    for file in files:
        if file.exists():
            raise InputError(f"{file} exists; keys are not overwritten")
    before = os.umask(0o077)
    try:
        zmq.auth.create_certificates(folder, name)
    except OSError as error:
        raise InputError(f"{folder}: no keys written: {error.strerror}") from None
    finally:
        os.umask(before)
    files[0].chmod(0o644)
    return files
