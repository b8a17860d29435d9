"""Steps of a clean-up, each of which is tried whatever became of the others."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

__all__ = ["attempt"]

_log = logging.getLogger(__name__)


async def attempt(complaint: str, step: Awaitable[Any]) -> bool:
    """Do ``step``; whether it succeeded. A failure is logged with ``complaint``."""
    try:
        await step
    except Exception:
        _log.exception(complaint)
        return False
    return True
