"""What goes wrong in a laboratory."""

from __future__ import annotations

from vmferry.errors import VmferryError

__all__ = ["BootFailed", "CommandFailed", "LabError", "LabNotUp", "Missing"]


class LabError(VmferryError):
    """The laboratory cannot do what was asked; the message says why."""


class LabNotUp(LabError):
    """No laboratory is running in this state folder."""


class Missing(LabError):
    """Programs or files that the laboratory needs are not installed; names their packages."""


class BootFailed(LabError):
    """A host did not come up; the message ends with the last lines of its log."""


class CommandFailed(LabError):
    """A command ended badly or took too long.

    Attributes:
        code: its exit code; ``None`` if it was ended for taking too long.
        output: what it wrote to stdout.
        complaint: what it wrote to stderr.

    """

    def __init__(self, what: str, code: int | None, output: str, complaint: str) -> None:
        reason = "took too long" if code is None else f"ended with code {code}"
        said = (complaint.strip() or output.strip())[-2000:]
        super().__init__(f"`{what}` {reason}{f': {said}' if said else ''}")
        self.code, self.output, self.complaint = code, output, complaint
