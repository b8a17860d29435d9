"""xl(1) asked once, and its answers taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from vmferry.errors import HypervisorError
from vmferry.units import MIB
from vmferry_support.commands import CommandFailed, CommandMissing, run

__all__ = [
    "DomainRow",
    "HostInfo",
    "Listed",
    "find_domain",
    "list_domains",
    "parse_info",
    "parse_listed",
    "parse_rows",
    "xl",
]

_INVALID = "invalid domain identifier"


async def xl(*arguments: str, timeout: float = 60.0) -> str:
    """What ``xl ARGUMENTS`` prints.

    Raises:
        HypervisorError: it failed, or is not installed; with what it said.

    """
    try:
        return await run("xl", *arguments, timeout=timeout)
    except CommandMissing as error:
        raise HypervisorError(f"{error}; install xen-utils and boot Xen") from error
    except CommandFailed as error:
        raise HypervisorError(str(error)) from error


class Listed(NamedTuple):
    """A domain and its configuration as ``xl list -l`` prints it."""

    domid: int
    config: dict[str, Any]


class DomainRow(NamedTuple):
    """A line of ``xl list``: memory in MiB."""

    name: str
    domid: int
    memory: int
    vcpus: int
    state: str


async def find_domain(name: str) -> Listed | None:
    """The domain of that name; ``None`` if there is none."""
    try:
        answer = await xl("list", "-l", name)
    except HypervisorError as error:
        if _INVALID in str(error):
            return None
        raise
    return parse_listed(answer)


def parse_listed(answer: str) -> Listed | None:
    """The first domain of what ``xl list -l`` printed.

    Raises:
        HypervisorError: it is no JSON as xl prints it.

    """
    try:
        found = msgspec.json.decode(answer or "[]")
        if isinstance(found, Mapping):
            found = [found] if found else []
        if not found:
            return None
        return Listed(int(found[0]["domid"]), dict(found[0]["config"]))
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError, ValueError) as error:
        raise HypervisorError(f"`xl list -l` printed what is not understood: {error}") from error


async def list_domains() -> tuple[DomainRow, ...]:
    """All domains, dom0 first, without configuration."""
    return parse_rows(await xl("list"))


def parse_rows(answer: str) -> tuple[DomainRow, ...]:
    """The lines of ``xl list``; names may contain blanks."""
    rows = []
    for line in answer.splitlines()[1:]:
        words = line.rsplit(None, 5)
        if len(words) != 6:
            raise HypervisorError(f"`xl list` printed what is not understood: {line!r}")
        name, domid, memory, vcpus, state, _ = words
        rows.append(DomainRow(name, int(domid), int(memory), int(vcpus), state))
    return tuple(rows)


class HostInfo(NamedTuple):
    """What ``xl info`` says of a host.

    Attributes:
        version: of Xen, major and minor.
        free: bytes of memory that belong to nobody.
        total: bytes of the machine's memory.
        abilities: words of ``virt_caps`` such as ``hap`` and ``shadow``.

    """

    version: tuple[int, int]
    free: int
    total: int
    abilities: frozenset[str]


def parse_info(answer: str) -> HostInfo:
    """What ``xl info`` printed.

    Raises:
        HypervisorError: something that is needed is not there.

    """
    pairs = re.findall(r"^(\w+) *: *(.*)$", answer, re.MULTILINE)
    fields = {name: value.strip() for name, value in pairs}
    try:
        return HostInfo(
            version=(int(fields["xen_major"]), int(fields["xen_minor"])),
            free=int(fields["free_memory"]) * MIB,
            total=int(fields["total_memory"]) * MIB,
            abilities=frozenset(fields.get("virt_caps", "").split()),
        )
    except (KeyError, ValueError) as error:
        raise HypervisorError(f"`xl info` does not say {error}") from error
