"""What the conformance classes share: patterns, comparisons, and quotes from the contracts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

from vmferry.api import hooks, hypervisor, plugin, tracker, transport, trial, volume

__all__ = ["check", "check_same", "pattern", "quote", "refuses"]


@functools.cache
def _text(module: ModuleType) -> str:
    return " ".join(inspect.getsource(module).split())


@functools.cache
def quote(sentence: str) -> str:
    """``sentence``, which must stand in a contract word for word, as a failure shows it."""
    for module in (volume, tracker, transport, hypervisor, trial, hooks, plugin):
        if sentence in _text(module):
            return f'{module.__name__} says: "{sentence}"'
    raise LookupError(f"no contract says: {sentence}")


def pattern(length: int, seed: int = 1) -> bytes:
    """``length`` bytes that repeat nowhere in sector-sized steps and hold no zero sector."""
    return hashlib.shake_128(b"vmferry %d" % seed).digest(length)


def check(holds: object, sentence: str, found: str) -> None:
    """Fail with what was ``found`` and the contract's ``sentence`` unless it ``holds``."""
    said = quote(sentence)
    if not holds:
        pytest.fail(f"{found}\n{said}")


def check_same(
    found: bytes | bytearray, wanted: bytes | bytearray, sentence: str, where: int = 0
) -> None:
    """Fail unless both are the same bytes; ``where`` is the disk's offset of the first."""
    said = quote(sentence)
    if found == wanted:
        return
    if len(found) != len(wanted):
        pytest.fail(f"{len(found)} bytes were found, not {len(wanted)}\n{said}")
    first = next(k for k in range(len(wanted)) if found[k] != wanted[k])
    pytest.fail(f"byte {where + first} is 0x{found[first]:02x}, not 0x{wanted[first]:02x}\n{said}")


@contextlib.contextmanager
def refuses(kinds: type[Exception] | tuple[type[Exception], ...], sentence: str) -> Iterator[None]:
    """Fail unless the block raises one of ``kinds``."""
    said = quote(sentence)
    try:
        yield
    except kinds:
        return
    except Exception as failure:
        pytest.fail(f"it raised {failure!r}\n{said}")
    pytest.fail(f"it was not refused\n{said}")
