"""Where a running QEMU's disk is: ``qmp:PATH?node=NAME``, percent-encoded."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from vmferry.errors import VolumeError

__all__ = ["NodeLocation"]

_SCHEME = "qmp:"


class NodeLocation(NamedTuple):
    """A block node of a QEMU.

    Attributes:
        qmp: path of a monitor socket.
        node: name of the block node.
        nbd: unix socket of the NBD server that the user runs in that QEMU; ``""`` if none.

    """

    qmp: str
    node: str
    nbd: str = ""

    def __str__(self) -> str:
        given = {"node": self.node, **({"nbd": self.nbd} if self.nbd else {})}
        return f"{_SCHEME}{quote(self.qmp)}?{urlencode(given, quote_via=quote)}"

    @classmethod
    def parse(cls, text: str) -> NodeLocation:
        """Read what ``str`` writes; raises ``VolumeError`` that says what is wrong."""
        path, _, query = text.removeprefix(_SCHEME).partition("?")
        given = parse_qsl(query, keep_blank_values=True)
        fields = dict(given)
        if (
            not text.startswith(_SCHEME)
            or not path
            or not fields.get("node")
            or len(fields) != len(given)
            or fields.keys() - {"node", "nbd"}
        ):
            raise VolumeError(
                f"{text!r} is no disk of a running QEMU; write qmp:/PATH/OF/MONITOR?node=NAME, "
                "and &nbd=/PATH if its NBD server runs already"
            )
        return cls(unquote(path), fields["node"], fields.get("nbd", ""))
