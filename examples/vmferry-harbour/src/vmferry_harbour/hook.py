"""A log of all trips, and a list of guests that stay."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec

from vmferry.api import Guest, RoundReport, Summary, hookimpl
from vmferry.errors import Veto

__all__ = ["Logbook"]


class Logbook:
    """Writes rounds and outcomes to the file ``$VMFERRY_LOGBOOK``; ``$VMFERRY_MOORED`` stay.

    Both are read at each call. Without them it does nothing.
    """

    @hookimpl
    def vmferry_round_finished(self, job: str, report: RoundReport) -> None:
        """Observer: a line for a round."""
        _write({"job": job, "round": report.number, "dirty": report.dirty})

    @hookimpl
    def vmferry_finished(self, summary: Summary) -> None:
        """Observer: a line for a migration."""
        _write(msgspec.to_builtins(summary))

    @hookimpl
    def vmferry_before_switch(self, guest: Guest) -> None:
        """Policy: guests named in ``$VMFERRY_MOORED``, separated by commas, stay."""
        if guest.name in os.environ.get("VMFERRY_MOORED", "").split(","):
            raise Veto(f"{guest.name} is moored; take it out of VMFERRY_MOORED to let it move")


def _write(entry: dict[str, Any]) -> None:
    """A few hundred bytes to a local file: quick enough for the event loop."""
    path = os.environ.get("VMFERRY_LOGBOOK")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
