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
from vmferry.experiments.report.derived import curves, fares
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


def test_curves_and_fares_are_what_the_counters_say() -> None:
    times = [float(second) for second in range(11)]
    series = {
        "moved": Series(times=times, values=[second * (1 << 20) for second in times]),
        "writes": Series(times=times, values=[min(second, 5) * 100 for second in times]),
        "busy": Series(times=times, values=[min(second, 5) * 0.2 for second in times]),
    }
    found = curves(series)
    assert found["moved"].values == pytest.approx([1.0] * 11)
    assert max(found["requests"].values) == pytest.approx(100)
    assert found["latency"].values == pytest.approx([2.0] * len(found["latency"].values))
    phases = [
        PhaseTime(role="source", name="stop", begin=5, seconds=2),
        PhaseTime(role="source", name="push-disk", begin=1, seconds=4),
    ]
    fared = fares(series, phases)
    assert fared["push-disk"] == (pytest.approx(100), pytest.approx(0.002))
    assert fared["stop"] == (0.0, None)
