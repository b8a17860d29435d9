"""The era tools: thin-provisioning-tools, whose command line and output differ by version."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry.errors import TrackerError
from vmferry_support.commands import CommandFailed, run

__all__ = ["EraTools", "Ranges", "parse_blocks", "parse_help"]

_PROGRAM = "era_invalidate"
_OPTION = re.compile(r"--metadata-snapshot\b(?P<value>[ =]*[<\[])?")
_RANGE = re.compile(r'<range\s+begin\s*=\s*"(\d+)"\s+end\s*=\s*"(\d+)"\s*/>')
_BLOCK = re.compile(r'<block\s+block\s*=\s*"(\d+)"\s*/>')


class Ranges(NamedTuple):
    """Ranges of blocks, in the order of the tool.

    Attributes:
        first: first block of each.
        blocks: how many each has.

    """

    first: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]


class EraTools(NamedTuple):
    """``era_invalidate`` as it is installed.

    Attributes:
        snapshot: its arguments that make it read the metadata snapshot. The option takes no value
            in 0.9 and in current releases, but one, of no meaning, in early ones of 1.x.

    """

    snapshot: tuple[str, ...]

    @classmethod
    async def probe(cls) -> EraTools:
        """Ask the installed program.

        Raises:
            CommandMissing: it is not installed.
            TrackerError: it cannot read a metadata snapshot.

        """
        try:
            text = await run(_PROGRAM, "--help")
        except CommandFailed as error:
            text = error.output + error.complaint
        return parse_help(text)

    async def written_since(self, metadata: str, era: int, timeout: float) -> Ranges:
        """Blocks written in ``era`` or later, by the metadata snapshot on the device ``metadata``.

        Raises:
            CommandFailed: the program failed.
            TrackerError: it said what is not understood.

        """
        arguments = *self.snapshot, "--written-since", str(era), metadata
        return parse_blocks(await run(_PROGRAM, *arguments, timeout=timeout))


def parse_help(text: str) -> EraTools:
    """What the program's help says of its options.

    Raises:
        TrackerError: there is no option to read a metadata snapshot.

    """
    found = _OPTION.search(text)
    if not found:
        raise TrackerError(
            f"the installed {_PROGRAM} cannot read a metadata snapshot; "
            "install thin-provisioning-tools 0.9 or later"
        )
    name = "--metadata-snapshot"
    return EraTools((f"{name}=1",) if found["value"] else (name,))


def parse_blocks(text: str) -> Ranges:
    """The blocks in the XML that ``era_invalidate`` prints; an ``end`` is not of the range.

    Raises:
        TrackerError: the text is cut short, or has something else in it.

    """
    ranges, blocks = _RANGE.findall(text), _BLOCK.findall(text)
    whole = "<blocks>" in text and "</blocks>" in text
    if not whole or text.count("<") != 2 + len(ranges) + len(blocks):
        raise TrackerError(f"{_PROGRAM} printed no list of blocks: {text[:200]!r}")
    edges = np.array(ranges, np.int64).reshape(-1, 2)
    single = np.array(blocks, np.int64)
    return Ranges(
        first=np.concatenate((edges[:, 0], single)),
        blocks=np.concatenate((edges[:, 1] - edges[:, 0], np.ones_like(single))),
    )
