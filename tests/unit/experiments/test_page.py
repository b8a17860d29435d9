"""The page is whole, needs nothing else, and the tables can be taken elsewhere."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from pretending import Describe, Pretender, made_up

from vmferry.cli import main
from vmferry.errors import InputError
from vmferry.experiments import extras
from vmferry.experiments.matrix import Run
from vmferry.experiments.records import open_database
from vmferry.experiments.records.export import export
from vmferry.experiments.report.bootstrap import SPREAD
from vmferry.experiments.report.data import load_overview
from vmferry.experiments.report.page import render_page
from vmferry.experiments.results import PhaseTime, Result, Series
from vmferry.experiments.sweep import Sweep

MATRIX = """
[experiment]
description = "sizes & <such>"
repetitions = 3
[matrix]
method = ["vmferry", "cold"]
block_size = [4096, 8192, 16384]
"""
"""Four cells: one of the baseline, which knows no block sizes."""


def one_fails(run: Run) -> Result:
    failed = run.spec.parameters.block_size == 8192 and run.repetition == 2
    return made_up(run, outcome="failed", error="it <broke>") if failed else made_up(run)


@pytest.fixture
async def swept(describe: Describe) -> Path:
    """The file of an experiment that was run."""
    definition = describe(MATRIX)
    await Sweep(definition, Pretender(result=one_fails), lambda *_: None).run()
    return definition.path


@pytest.mark.thorough
def test_the_page_is_whole_and_alone_and_the_same_again(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = swept.with_name("again.html")
    assert main(["experiment", "report", str(swept)]) == 0
    assert main(["experiment", "report", str(swept), "--html", str(again)]) == 0
    assert "wrote" in capsys.readouterr().out
    page = swept.with_suffix(".html").read_text()
    assert again.read_text() == page
    assert not re.findall(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)""", page)
    assert "sizes &amp; &lt;such&gt;" in page
    assert "it &lt;broke&gt;" in page
    for heading in ("Results", "Against the baselines", "Over block size", "Downtime", "Failed"):
        assert heading in page
    assert re.search(r">In all runs: [^<]*memory 64 MiB[^<]*\.<", page)
    assert re.search(r">In all runs of vmferry: [^<]*compression auto[^<]*\.<", page)
    assert f"below each its {SPREAD}." in page
    assert "<small>range of 3: 1.0 s to 3.0 s</small>" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 6
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert identifiers


def test_a_database_is_reported_on_without_its_file(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "report", str(swept.with_suffix(".sqlite")), "--text"]) == 0
    assert "cold" in capsys.readouterr().out
    assert main(["experiment", "status", str(swept), "--json"]) == 0
    assert '"left":0' in capsys.readouterr().out


def test_without_the_libraries_the_extra_is_named(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name=name)

    monkeypatch.setattr(extras, "import_module", missing)
    assert main(["experiment", "report", str(swept), "--text"]) == 0
    assert main(["experiment", "report", str(swept)]) == 2
    assert "vmferry[experiments]" in capsys.readouterr().err
    assert (
        main(["experiment", "export", str(swept), str(swept.parent / "t"), "--format", "parquet"])
        == 2
    )


def test_nothing_to_report_is_said(describe: Describe, capsys: pytest.CaptureFixture[str]) -> None:
    definition = describe(MATRIX)
    assert main(["experiment", "report", str(definition.path)]) == 2
    assert "nothing was run" in capsys.readouterr().err


def test_the_plan_says_what_and_how_long(
    describe: Describe, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = describe(MATRIX)
    assert main(["experiment", "plan", str(definition.path)]) == 0
    assert "12 of 12 runs to do, 4 cells, seed 1" in capsys.readouterr().out
    assert main(["experiment", "plan", str(definition.path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert not definition.database.exists()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_are_exported_with_the_axes_as_columns(
    swept: Path, form: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tables"
    with open_database(swept.with_suffix(".sqlite")) as database:
        paths = export(database, folder, form)
        with pytest.raises(InputError, match="exists"):
            export(database, folder, form)
    assert [path.stem for path in paths] == ["run", "phase", "round", "sample", "event"]
    if form == "csv":
        with paths[0].open() as file:
            rows = list(csv.DictReader(file))
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(paths[0]).to_pylist()
    assert len(rows) == 12
    assert {str(row["block_size"] or "") for row in rows} == {"", "4096", "8192", "16384"}
    assert {row["outcome"] for row in rows} == {"done", "failed"}


async def test_the_guests_pace_is_shown_in_a_baselines_parts_too(describe: Describe) -> None:
    definition = describe(MATRIX)
    await Sweep(definition, Pretender(result=paced), lambda *_: None).run()
    with open_database(definition.database) as database:
        page = render_page(database, load_overview(database), "trial")
    head, ours, *_, cold = rows_below(page, "What the guest feels")
    assert head == ["", "before", "PUSH, disk", "STOP", "PULL", "copy", "after"]
    assert ours[1:] == ["100/s", "100/s", "-", "100/s", "", "100/s"]
    assert cold[1:] == ["100/s", "", "", "", "100/s", "100/s"]


def paced(run: Run) -> Result:
    """100 writes a second, whatever happens, and phases after the method."""
    names = {"push-disk": 1.0, "stop": 0.2, "pull": 0.8}
    if run.spec.parameters.method == "cold":
        names = {"copy": 2.0}
    phases, begin = [], 0.0
    for name, seconds in names.items():
        phases.append(PhaseTime(role="source", name=name, begin=begin, seconds=seconds))
        begin += seconds
    times = [tenth / 10 for tenth in range(-10, 31)]
    writes = Series(times=times, values=[100 * time + 200 for time in times])
    return made_up(run, phases=phases, series={"writes": writes})


def rows_below(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    table = re.search(r"<table>.*?</table>", page[page.index(heading) :], re.DOTALL)
    assert table is not None
    return [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        for row in re.findall(r"<tr>.*?</tr>", table[0], re.DOTALL)
    ]
