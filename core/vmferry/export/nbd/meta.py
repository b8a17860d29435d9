"""Metadata contexts: ``base:allocation`` is the one there is."""

from __future__ import annotations

from typing import Final

import msgspec

from vmferry.export.nbd.options import OptionData

__all__ = ["ALLOCATION", "MetaQuery", "parse_meta"]

ALLOCATION: Final = "base:allocation"


class MetaQuery(msgspec.Struct, frozen=True):
    """Data of ``LIST_META_CONTEXT`` and ``SET_META_CONTEXT``.

    Attributes:
        name: the export.
        queries: contexts asked for; none means all when listing, and nothing when setting.

    """

    name: str
    queries: tuple[str, ...]

    @property
    def lists_allocation(self) -> bool:
        """``base:allocation`` is to be listed; ``base:`` asks for everything of that namespace."""
        return not self.queries or "base:" in self.queries or self.sets_allocation

    @property
    def sets_allocation(self) -> bool:
        """``base:allocation`` is asked for by its full name."""
        return ALLOCATION in self.queries


def parse_meta(data: bytes) -> MetaQuery:
    """Read the query; raises ``OptionRefused`` when it is malformed."""
    fields = OptionData(data)
    name = fields.text()
    queries = tuple(fields.text() for _ in range(fields.u32()))
    fields.end()
    return MetaQuery(name, queries)
