"""What a check before a migration found."""

from __future__ import annotations

import enum

import msgspec

__all__ = ["Finding", "Severity"]


class Severity(enum.StrEnum):
    """How much a finding weighs."""

    ERROR = "error"
    """The migration is refused."""
    WARNING = "warning"
    """The migration is possible; the operator should know."""
    INFO = "info"
    """A fact worth showing, e.g. a capability that will be emulated."""


class Finding(msgspec.Struct, frozen=True):
    """One result of a check.

    Attributes:
        severity: error, warning or info.
        code: a stable short name such as ``disk-exists``, for scripts.
        text: what was found, naming the object (disk, option, host).
        remedy: what to do about it; empty when there is nothing to do.

    """

    severity: Severity
    code: str
    text: str
    remedy: str = ""

    @classmethod
    def error(cls, code: str, text: str, remedy: str = "") -> Finding:
        """A reason to refuse."""
        return cls(Severity.ERROR, code, text, remedy)

    @classmethod
    def warning(cls, code: str, text: str, remedy: str = "") -> Finding:
        """Something the operator should know."""
        return cls(Severity.WARNING, code, text, remedy)

    @classmethod
    def info(cls, code: str, text: str, remedy: str = "") -> Finding:
        """A fact worth showing."""
        return cls(Severity.INFO, code, text, remedy)
