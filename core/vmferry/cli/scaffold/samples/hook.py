"""A hook plugin with an observer and a policy: it tells what happened, and may say no."""

from __future__ import annotations

import logging
import os

from vmferry.api import Guest, Summary, hookimpl
from vmferry.errors import Veto

_log = logging.getLogger(__name__)


class Curfew:
    """Tells of each migration; keeps the guests that ``CURFEW`` names from moving."""

    name = "curfew"

    @hookimpl
    def vmferry_finished(self, summary: Summary) -> None:
        """Observer: an exception here is logged, and the migration goes on."""
        downtime = "unknown" if summary.downtime is None else f"{summary.downtime:.3f} s"
        _log.info("%s: %s, downtime %s", summary.guest, summary.outcome, downtime)

    @hookimpl
    def vmferry_before_switch(self, guest: Guest) -> None:
        """Policy: an exception here stops the migration; the guest runs on at the source."""
        if guest.name in os.environ.get("CURFEW", "").split(","):
            raise Veto(f"{guest.name} is to stay; take it out of CURFEW to let it move")
