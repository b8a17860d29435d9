"""``migrate experiment``: comparative experiments from one file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmferry.cli.exits import ExitCode
from vmferry.cli.experiment_display import choose_progress
from vmferry.cli.interrupt import run_interruptible
from vmferry.errors import InputError
from vmferry.experiments.definition import Definition, read_definition
from vmferry.units import format_duration

if TYPE_CHECKING:
    from vmferry.experiments.executors import Executor
    from vmferry.experiments.records import Database
    from vmferry.experiments.report.data import Overview

__all__ = ["experiment"]

_WIDE = 200
_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


@click.group(
    invoke_without_command=True, short_help="Run comparative experiments and report on them."
)
@click.pass_context
def experiment(context: click.Context) -> ExitCode | None:
    """Run comparative experiments that a TOML file describes, and report on them.

    \b
    Examples:
      migrate experiment plan sizes.toml
      migrate experiment run sizes.toml
      migrate experiment report sizes.toml
    """
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help(), err=True)
    return ExitCode.USAGE


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


@experiment.command()
@_FILE
@click.option("--all", "everything", is_flag=True, help="Also what was done already.")
@_JSON
def plan(file: Path, everything: bool, as_json: bool) -> None:
    """List the runs of FILE in their order and estimate the time; nothing is run."""
    from vmferry.experiments.matrix import make_cells, order
    from vmferry.experiments.planning import estimate
    from vmferry.experiments.sweep import remaining

    definition = read_definition(file)
    cells = make_cells(definition)
    runs = order(definition, cells)
    with _maybe(definition) as database:
        left = runs if everything or database is None else remaining(database, runs)
        expected = estimate(cells, left, database)
    if as_json:
        for run in left:
            seconds = expected.by_cell[run.cell.spec.cell]
            _print_json(
                position=run.position,
                repetition=run.repetition,
                cell=run.cell.spec.cell,
                seconds=seconds,
                parameters=run.cell.shown,
                notes=run.cell.notes,
            )
        return
    console = _console()
    console.print(_plan_table(cells, left, expected.by_cell))
    for note in sorted({note for cell in cells for note in cell.notes}):
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(
        f"{len(left)} of {len(runs)} runs to do, {len(cells)} cells, "
        f"seed {definition.head.seed}, about {format_duration(expected.seconds)} "
        f"({expected.known} runs known from earlier ones)"
    )


def _print_json(**facts: Any) -> None:
    import msgspec

    click.echo(msgspec.json.encode(facts, enc_hook=str).decode())


def _plan_table(cells: Any, runs: Any, seconds: dict[str, float]) -> Table:
    from vmferry.experiments.parameters import AXES, show_value

    varied = [axis for axis in AXES if len({cell.shown[axis] for cell in cells} - {None}) > 1]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "repetition", *(axis.replace("_", " ") for axis in varied), "about"):
        table.add_column(heading)
    for run in runs:
        values = (show_value(axis, run.cell.shown[axis]) for axis in varied)
        about = format_duration(seconds[run.cell.spec.cell])
        table.add_row(str(run.position), str(run.repetition), *values, about)
    return table


@contextmanager
def _maybe(definition: Definition) -> Iterator[Database | None]:
    """The experiment's database if there is one."""
    from vmferry.experiments.records import open_database

    if not definition.database.exists():
        yield None
        return
    with open_database(definition.database) as database:
        yield database


@experiment.command()
@_FILE
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where runs make their disks, each removed at its end. Default: the temporary folder.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Where runs are done; dask: by the workers of a cluster, one at a time each.",
)
@click.option("--scheduler", metavar="URL", help="The cluster's scheduler, e.g. tcp://head:8786.")
@click.option("--retry-failed", is_flag=True, help="Try runs again that have failed.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each beginning and end.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def run(
    file: Path,
    folder: Path | None,
    executor: str,
    scheduler: str | None,
    retry_failed: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Run what is left of FILE.

    Every run is stored as it ends, in FILE's name with .sqlite unless the file names another
    database. Stop with Ctrl-C at any time, or kill it; the same command goes on where it was. The
    run under way is then done anew. Runs that failed are results, and not tried again unless asked.

    \b
    Examples:
      migrate experiment run sizes.toml
      migrate experiment run sizes.toml --folder /var/tmp --retry-failed
      migrate experiment run scale.toml --executor dask --scheduler tcp://head:8786
    """
    from vmferry.experiments.sweep import Sweep

    definition = read_definition(file)
    place = str(folder.resolve()) if folder else ""
    chosen = _executor(executor, scheduler)
    with choose_progress(as_json, quiet=quiet) as progress:
        sweep = Sweep(definition, chosen, progress.observe, folder=place, retry_failed=retry_failed)
        try:
            tally = asyncio.run(run_interruptible(sweep.run(), lambda: ""))
        except asyncio.CancelledError:
            click.echo("migrate: stopped; the same command goes on", err=True)
            return ExitCode.INTERRUPTED
        progress.end(tally)
    return ExitCode.FAILURE if tally.failed else ExitCode.OK


def _executor(name: str, scheduler: str | None) -> Executor:
    if name == "dask":
        from vmferry.experiments.executors.dask import DaskExecutor

        if not scheduler:
            raise InputError("--executor dask needs the cluster's --scheduler")
        return DaskExecutor(scheduler)
    from vmferry.experiments.executors import LocalExecutor

    if scheduler:
        raise InputError("--scheduler is for --executor dask")
    return LocalExecutor()


@experiment.command()
@_FILE
@_JSON
def status(file: Path, as_json: bool) -> None:
    """Show how far FILE is."""
    from vmferry.experiments.matrix import make_cells, order
    from vmferry.experiments.sweep import remaining

    definition = read_definition(file)
    runs = order(definition, make_cells(definition))
    with _maybe(definition) as database:
        left = len(runs) if database is None else len(remaining(database, runs))
        counts: dict[str, int] = {}
        if database is not None:
            wanted = {run.cell.spec.cell for run in runs}
            for (cell, _), attempts in database.outcomes().items():
                for outcome in attempts if cell in wanted else ():
                    counts[outcome or "running"] = counts.get(outcome or "running", 0) + 1
    facts = {"runs": len(runs), "left": left, **counts}
    if as_json:
        _print_json(name=definition.name, database=str(definition.database), **facts)
        return
    click.echo(f"experiment {definition.name} in {definition.database}")
    for name, count in facts.items():
        click.echo(f"  {name:12}{count:6}")


@contextmanager
def _results(file: Path) -> Iterator[tuple[str, Database, Overview]]:
    """Name, database and cells of an experiment's file, or of a database itself."""
    from vmferry.experiments.matrix import make_cells
    from vmferry.experiments.records import open_database
    from vmferry.experiments.report.data import load_overview

    if file.suffix == ".toml":
        definition = read_definition(file)
        cells = [cell.spec.cell for cell in make_cells(definition)]
        with open_database(definition.database) as database:
            yield definition.name, database, load_overview(database, cells)
        return
    with open_database(file) as database:
        yield file.stem, database, load_overview(database)


@experiment.command()
@_FILE
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="FILE's name with .html",
    help="Where to write the page.",
)
@click.option("--text", is_flag=True, help="Print the tables only; write no page.")
def report(file: Path, html: Path | None, text: bool) -> None:
    """Report on FILE, an experiment's file or its database.

    Prints tables, and writes a page with plots that needs nothing but itself. The page needs
    matplotlib and jinja2: pip install 'vmferry[experiments]'.

    \b
    Examples:
      migrate experiment report sizes.toml
      migrate experiment report sizes.sqlite --html /var/www/sizes.html
    """
    from vmferry.experiments.report.terminal import terminal_report

    with _results(file) as (name, database, overview):
        if not any(group.runs or group.failed for group in overview.groups):
            raise InputError(f"no run of {name} has ended yet")
        _console().print(terminal_report(overview, name))
        if not text:
            from vmferry.experiments.report.page import render_page

            where = html or file.with_suffix(".html")
            _write(where, render_page(database, overview, name))
            click.echo(f"wrote {where}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


@experiment.command()
@_FILE
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Parquet needs pyarrow: pip install 'vmferry[experiments]'.",
)
def export(file: Path, folder: Path, form: str) -> None:
    """Write the tables of FILE's database into FOLDER, a file for each.

    \b
    Examples:
      migrate experiment export sizes.toml tables
      migrate experiment export sizes.sqlite tables --format parquet
    """
    from vmferry.experiments.records import open_database
    from vmferry.experiments.records.export import export as export_tables

    database = read_definition(file).database if file.suffix == ".toml" else file
    with open_database(database) as opened:
        for path in export_tables(opened, folder, form):
            click.echo(f"wrote {path}")
