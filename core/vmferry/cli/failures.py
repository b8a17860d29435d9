"""How errors are shown: one clear line on stderr, findings with remedies, an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from vmferry.cli.exits import ExitCode, exit_code_of
from vmferry.errors import CheckFailed, MigrationError, VmferryError

if TYPE_CHECKING:
    from vmferry.api.findings import Finding

__all__ = ["finding_lines", "guarded"]

_log = logging.getLogger("vmferry.cli")
_GRAVITY = ("error", "warning", "info")


def guarded(run: Callable[[], Any]) -> ExitCode:
    """Call ``run`` and give the exit code for what became of it; prints the error, if any.

    An integer that ``run`` returns is the exit code. The traceback is logged at debug level.
    """
    try:
        result = run()
        sys.stdout.flush()
        return ExitCode(result) if isinstance(result, int) else ExitCode.OK
    except (KeyboardInterrupt, click.Abort) as error:
        _log.debug("interrupted", exc_info=error)
        _say("interrupted")
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        return _usage(error)
    except BrokenPipeError as error:
        return _broken_pipe(error)
    except Exception as error:
        return _failure(_essence(error))


def _say(message: str) -> None:
    click.echo(f"migrate: {message}", err=True)


def _usage(error: click.ClickException) -> ExitCode:
    _say(f"error: {error.format_message()}")
    context = getattr(error, "ctx", None)
    if context is not None:
        click.echo(f"Try '{context.command_path} --help'.", err=True)
    return ExitCode.USAGE


def _broken_pipe(error: BrokenPipeError) -> ExitCode:
    """Nobody reads the output any more: end quietly, also when the interpreter flushes it."""
    _log.debug("output was closed", exc_info=error)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as failure:
        if getattr(failure, "errno", errno.EBADF) != errno.EBADF:
            _log.debug("cannot silence the output", exc_info=failure)
    return ExitCode.FAILURE


def _essence(error: Exception) -> Exception:
    """What a group of exceptions is about: its first one of ours, or its first."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, VmferryError)), leaves[0])


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _failure(error: Exception) -> ExitCode:
    _log.debug("failed", exc_info=error)
    if isinstance(error, CheckFailed) and error.findings:
        _say(f"error: the check found {_count(error.findings)}")
        click.echo("\n".join(finding_lines(error.findings)), err=True)
    elif isinstance(error, MigrationError):
        _say(f"error: in {error.phase}: {str(error).removeprefix(f'{error.phase}: ')}")
    elif isinstance(error, VmferryError):
        _say(f"error: {error}")
    else:
        _say(f"error: unexpected {type(error).__name__}: {error} (migrate -vv shows where)")
    return exit_code_of(error)


def _count(findings: tuple[Finding, ...]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    return "1 reason not to start" if errors == 1 else f"{errors} reasons not to start"


def finding_lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    """Findings as lines for people, gravest first, each with its remedy below it."""
    for finding in sorted(findings, key=lambda finding: _GRAVITY.index(finding.severity)):
        yield f"  {finding.severity.value:<8}{finding.text} [{finding.code}]"
        if finding.remedy:
            yield f"          {finding.remedy}"
