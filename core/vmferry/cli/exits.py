"""Exit codes of ``migrate``: they say where the guest runs and what to do next."""

from __future__ import annotations

import enum

from vmferry.errors import (
    CheckFailed,
    InputError,
    LinkError,
    MigrationError,
    PeerError,
    ProtocolError,
    Veto,
    VolumeBusy,
    VolumeExists,
    VolumeGeometry,
    VolumeMissing,
)

__all__ = ["MEANINGS", "ExitCode", "exit_code_of"]


class ExitCode(enum.IntEnum):
    """What the process tells its caller. A command may return one."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    REFUSED = 3
    BEFORE_SWITCH = 4
    AFTER_SWITCH = 5
    DATA = 6
    PEER = 7
    UNDECIDED = 8
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "unexpected failure; nothing is known about where the guest runs",
    ExitCode.USAGE: "wrong usage or bad input; nothing was changed",
    ExitCode.REFUSED: "refused by the check; nothing was changed",
    ExitCode.BEFORE_SWITCH: "failed before the switch; the guest runs on at the source",
    ExitCode.AFTER_SWITCH: "failed after the switch; the guest runs at the destination, "
    "the job is not finished",
    ExitCode.DATA: "verification found lost or wrong data",
    ExitCode.PEER: "the peer cannot be reached, failed or broke the protocol",
    ExitCode.UNDECIDED: "it cannot be known who has the guest; nothing was changed",
    ExitCode.INTERRUPTED: "interrupted; the guest runs on at the source",
}
"""One line on each code, as shown by ``migrate --help``."""

_BY_CLASS: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (CheckFailed, ExitCode.REFUSED),
    (Veto, ExitCode.BEFORE_SWITCH),
    (InputError, ExitCode.USAGE),
    (VolumeMissing, ExitCode.USAGE),
    (VolumeExists, ExitCode.USAGE),
    (VolumeBusy, ExitCode.USAGE),
    (VolumeGeometry, ExitCode.USAGE),
    (LinkError, ExitCode.PEER),
    (ProtocolError, ExitCode.PEER),
    (PeerError, ExitCode.PEER),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
)
_BY_GUEST = {"source": ExitCode.BEFORE_SWITCH, "destination": ExitCode.AFTER_SWITCH}


def exit_code_of(error: BaseException) -> ExitCode:
    """The code that says what ``error`` means to the caller."""
    if isinstance(error, MigrationError):
        return _BY_GUEST.get(error.guest, ExitCode.FAILURE)
    codes = (code for kind, code in _BY_CLASS if isinstance(error, kind))
    return next(codes, ExitCode.FAILURE)
