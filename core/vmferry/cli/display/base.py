"""What all displays have in common: they are observers, entered before and left after the work."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from vmferry.api import Phase, Progress, RoundReport, Summary, hookimpl

__all__ = ["Display", "QuietDisplay"]


class Display:
    """Base of the displays. Each overrides the methods without prefix it has something to show for.

    The hooks themselves are marked here, because a method that overrides a marked one is not.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; nothing is shown afterwards. May be called twice."""

    def phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Show that a phase has begun."""

    def round_finished(self, job: str, report: RoundReport) -> None:
        """Show what a round did."""

    def progress(self, job: str, progress: Progress) -> None:
        """Show how far something is; called a few times a second for each disk and memory."""

    def event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Show something worth a log line."""

    def finished(self, summary: Summary) -> None:
        """Show how the migration ended."""

    @hookimpl
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Hook: see ``phase_changed``."""
        self.phase_changed(job, role, phase)

    @hookimpl
    def vmferry_round_finished(self, job: str, report: RoundReport) -> None:
        """Hook: see ``round_finished``."""
        self.round_finished(job, report)

    @hookimpl
    def vmferry_progress(self, job: str, progress: Progress) -> None:
        """Hook: see ``progress``."""
        self.progress(job, progress)

    @hookimpl
    def vmferry_event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Hook: see ``event``."""
        self.event(job, name, facts)

    @hookimpl
    def vmferry_finished(self, summary: Summary) -> None:
        """Hook: see ``finished``."""
        self.finished(summary)


class QuietDisplay(Display):
    """Shows nothing; errors are reported where they end the command."""
