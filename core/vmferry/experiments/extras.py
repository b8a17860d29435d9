"""Libraries that only some of this needs: they are imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vmferry.errors import InputError

__all__ = ["need"]


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional extra.

    Raises ``InputError`` that says what to install if it is not there or does not fit.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        reason = f"{purpose} needs {error.name or module}, which is not installed"
        raise InputError(f"{reason}: pip install 'vmferry[{extra}]'") from error
    except ImportError as error:
        reason = f"{purpose} needs {module}, which cannot be used: {error}"
        raise InputError(f"{reason}; pip install --upgrade 'vmferry[{extra}]'") from error
