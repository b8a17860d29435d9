"""A file that describes an experiment is read whole, or refused with what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretending import Describe

from vmferry.errors import InputError
from vmferry.experiments.definition import read_definition
from vmferry.units import KIB, MIB

FULL = """
[experiment]
name = "sizes"
repetitions = 5
seed = 7
before = "500ms"
database = "here.sqlite"

[matrix]
block_size = ["8 sectors", "64KiB", 8192]
bandwidth = "1Gbit/s"
latency = "5ms"
loss = "0.5%"
workload = ["idle", "mine"]
policy = "eager"

[[exclude]]
workload = "mine"
block_size = "8 sectors"

[workload.mine]
based_on = "web"
request = "16KiB"

[policy.eager]
threshold = "1MiB"

[plugins.trial.process]
queue_depth = 8
"""


def test_everything_is_read_with_its_units(describe: Describe, tmp_path: Path) -> None:
    found = describe(FULL)
    assert (found.name, found.head.repetitions, found.head.before) == ("sizes", 5, 0.5)
    assert found.database == tmp_path / "here.sqlite"
    (product,) = found.products
    assert product["block_size"] == (4 * KIB, 64 * KIB, 8 * KIB)
    assert product["bandwidth"] == (125_000_000,)
    assert (product["latency"], product["loss"]) == ((0.005,), (0.005,))
    assert found.workloads["mine"].request == 16 * KIB
    assert found.workloads["mine"].write_rate == found.workloads["web"].write_rate
    assert found.policies["eager"].threshold == MIB
    assert found.exclude == ({"workload": ("mine",), "block_size": (4096,)},)


WRONG = {
    "[matrx]\na = 1": ("table 'matrx'", "'matrix'"),
    "[experiment]\nrepetition = 3\n[matrix]": ("'repetition'", "'repetitions'"),
    "[experiment]\nrepetitions = 0\n[matrix]": ("repetitions", ">= 1"),
    "[matrix]\nblocksize = 4096": ("'blocksize'", "'block_size'"),
    "[matrix]\nblock_size = 8": ("block_size", "'8 sectors'"),
    "[matrix]\nblock_size = '7 sectors'": ("'7 sectors'", "power of two"),
    "[matrix]\nblock_size = '4 sectors'": ("'4 sectors'", "from 8 sectors"),
    "[matrix]\ncompression = 'lz5'": ("'lz5'", "'lz4'"),
    "[matrix]\nloss = 1.5": ("loss", "1.5"),
    "[matrix]\nloss = true": ("loss", "True"),
    "[matrix]\nlatency = '5 parsecs'": ("latency", "'5 parsecs'"),
    "[matrix]\nbandwidth = -1": ("bandwidth", "negative"),
    "[matrix]\nworkload = []": ("workload", "no value"),
    "[matrix]\n[workload.a]\nwriterate = 3": ("'writerate'", "'write_rate'"),
    "[matrix]\n[workload.a]\nbased_on = 'wbe'": ("'wbe'", "'web'"),
    "[matrix]\n[workload.a]\npattern = 'spiral'": ("pattern", "'spiral'"),
    "[matrix]\n[policy.a]\nmax_round = 3": ("'max_round'", "'max_rounds'"),
    "[matrix]\n[plugins.trail.process]\na = 1": ("'trail'", "'trial'"),
    "[matrix]\n[plugins.trial]\nprocess = 1": ("'process'", "table"),
    "matrix = 3": ("'matrix'", "[matrix]"),
    "": ("[matrix]", "nothing"),
    "[matrix": ("not valid TOML", ""),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_what_is_near(describe: Describe, text: str) -> None:
    with pytest.raises(InputError) as refused:
        describe(text)
    assert "trial.toml" in str(refused.value)
    for word in WRONG[text]:
        assert word in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_definition(tmp_path / "nowhere.toml")


def test_without_a_name_the_file_gives_it_and_the_database(describe: Describe) -> None:
    found = describe("[matrix]\n")
    assert found.name == "trial"
    assert found.database.name == "trial.sqlite"
