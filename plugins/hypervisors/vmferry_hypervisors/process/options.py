"""Options of the ``process`` hypervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["ProcessOptions"]


class ProcessOptions(Options, frozen=True, kw_only=True):
    """Where the host is, and how memory is copied."""

    state_dir: Annotated[
        str, Meta(min_length=1, description="folder that plays the host; best on a tmpfs")
    ] = "~/.local/state/vmferry/guests"
    host_memory: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="memory of the host for its guests; 0: what the machine has available",
            extra={"unit": "bytes"},
        ),
    ] = 0
    stop_below: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="dirty memory that is little enough to suspend the guest",
            extra={"unit": "bytes"},
        ),
    ] = 1 << 20
    max_rounds: Annotated[int, Meta(ge=1, le=1000, description="pre-copy rounds at most")] = 30
    digest: Annotated[
        bool, Meta(description="compare a digest of all memory while the guest stands still")
    ] = True
    timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="how long a guest may take to obey",
            extra={"unit": "seconds"},
        ),
    ] = 30.0

    @property
    def state(self) -> Path:
        """The folder that plays the host."""
        return Path(self.state_dir).expanduser().absolute()
