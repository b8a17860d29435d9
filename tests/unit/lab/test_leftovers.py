"""What a migration that was killed has left: found by its name, removed, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmferry_lab import leftovers
from vmferry_lab.errors import LabError
from vmferry_lab.ferry import clear_host
from vmferry_lab.lab import Lab
from vmferry_lab.leftovers import one_migration, remove_leftovers

OTHERS = """\
guest Name                                        ID   Mem VCPUs\tState\tTime(s)
guest Domain-0                                     0  1024     1     r-----     100.0
guest web                                          1   128     1     -b----       1.0
guest ferry-12345                                  2   128     1     -b----       1.0
guest my-ferry-abc123                              3   128     1     -b----       1.0
guest ferry-abc123-mine                            4   128     1     -b----       1.0
disk No devices found
disk data
disk ferry-abc123-data
disk ferry-zzzzzz
disk my-ferry-abc123
"""
"""What is on a host that no migration of ours has made."""


class Host:
    def __init__(self, name: str, found: str = "") -> None:
        self.name, self.found, self.guests = name, found, self
        self.said: list[str] = []

    def run(self, command: Any, **_: Any) -> str:
        self.said.append(command if isinstance(command, str) else " ".join(command))
        return self.found if "ls /srv/disks |" in self.said[-1] else ""

    def destroy(self, name: str) -> None:
        self.said.append(f"destroy {name}")

    def remove_disk(self, name: str) -> None:
        self.said.append(f"remove {name}")


def removed(*found: str, storage: str | None = None) -> list[Host]:
    """The hosts, which have this to say when they are looked at."""
    hosts: list[Any] = [Host(f"host{letter}", one) for letter, one in zip("ab", found, strict=True)]
    third: list[Any] = [] if storage is None else [Host("hostc", storage)]
    remove_leftovers(hosts, third, "xenbr7")
    return hosts + third


def test_where_nothing_is_left_each_host_gets_one_command() -> None:
    hosts = removed(OTHERS, OTHERS, storage="disk data\ndisk data.conf\n")
    assert [len(host.said) for host in hosts] == [1, 1, 1]
    assert "tc qdisc show dev xenbr7 |" in hosts[0].said[0]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("word", ["ferry-abc123", "ferry-abc123--incoming  7", "ferry-abc123 9"])
def test_a_guest_is_ended_on_both_hosts_whichever_has_it(place: int, word: str) -> None:
    found = [OTHERS, OTHERS]
    found[place] += f"guest {word}\n"
    for host in removed(*found):
        assert "destroy ferry-abc123" in host.said
        assert "destroy ferry-abc123--incoming" in host.said
        assert host.said[-1] == "rm -rf /root/ferry-abc123"


def test_disks_are_removed_where_they_are_after_their_guest() -> None:
    source = "disk ferry-abc123-0\ndisk ferry-abc123-1\ndisk ferry-abc123-1\n"
    here, there = removed(OTHERS + source, OTHERS)
    assert here.said[-2:] == ["remove ferry-abc123-0", "remove ferry-abc123-1"]
    assert "destroy ferry-abc123" in here.said
    assert not [one for one in there.said if one.startswith("remove")]


def test_netem_is_removed_from_the_host_that_has_it() -> None:
    here, there = removed(f"{OTHERS}netem root\n", OTHERS)
    assert here.said[1:] == ["tc qdisc del dev xenbr7 root"]
    assert len(there.said) == 1


def test_mirrored_disks_are_removed_from_both_hosts() -> None:
    found = "disk ferry-abc123\ndisk ferry-abc123-meta\ndisk ferry-abc123-writer-meta\n"
    for host in removed(found, ""):
        down = [one for one in host.said if "drbdsetup down" in one]
        assert ["down ferry-abc123 " in one for one in down] == [True, False]
        gone = [one for one in host.said if one.startswith("remove")]
        assert gone == [
            "remove ferry-abc123",
            "remove ferry-abc123-meta",
            "remove ferry-abc123-writer",
            "remove ferry-abc123-writer-meta",
        ]


def test_shared_disks_are_detached_and_no_longer_exported() -> None:
    exported = "disk ferry-abc123\ndisk ferry-abc123.conf\ndisk ferry-abc123.pid\ndisk data\n"
    here, there, third = removed("disk ferry-abc123\n", "", storage=exported)
    for host in (here, there):
        assert "nbd-client -d" in host.said[-1]
        assert not [one for one in host.said if one.startswith("remove")]
    assert "rm -f /srv/disks/ferry-abc123 " in third.said[-1]
    assert len(third.said) == 2


@pytest.mark.real
@pytest.mark.parametrize("netem", ["1: root refcnt 2 limit 1000", "1: parent 2:1 limit 1000"])
def test_a_host_tells_what_it_has(tmp_path: Path, netem: str) -> None:
    for name in ("root/ferry-abc123", "root/notes", "disks/ferry-abc123-0.img", "disks/x.cfg"):
        (tmp_path / name).mkdir(parents=True)
    said = {
        "xl": "Name  ID\\nferry-def456--incoming   7  128",
        "dmsetup": "ferry-abc123-1\\t(254:0)",
        "tc": f"qdisc fq 8: root\\nqdisc netem {netem}",
    }
    for program, text in said.items():
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\nprintf "{text}\\n"\n')
        path.chmod(0o755)
    script = leftovers._LOOK.format(interface="xenbr0")
    script = script.replace("/srv/disks", f"{tmp_path}/disks").replace("/root", f"{tmp_path}/root")
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = leftovers._Found.of(done.stdout)
    assert found.guests == {"ferry-abc123", "ferry-def456"}
    assert found.disks == {"ferry-abc123-0", "ferry-abc123-1"}
    assert found.netem == ("root" in netem)


def test_the_programs_of_a_migration_are_ended_but_not_the_shell_that_does_so() -> None:
    host: Any = Host("hosta")
    clear_host(host, "ferry-abc123")
    match = re.search(r"-f '(.*)'", host.said[0])
    assert match is not None
    assert not re.search(match[1], host.said[0])
    for program in (
        "sh -c migrate serve tcp://x --pool /root/ferry-abc123/pool; echo CODE=$?",
        "python /opt/vmferry/bin/migrate run ferry-abc123 --state-dir /root/ferry-abc123/state",
        "xl migrate ferry-abc123 hostb",
    ):
        assert re.search(match[1], program)
    for program in ("xl migrate ferry-abc1234 hostb", "xl list", "migrate run web tcp://x"):
        assert not re.search(match[1], program)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "run").mkdir()
    ports = {"hosta": 2201, "hostb": 2202, "hostc": 2203}
    (tmp_path / "run/lab.json").write_text(json.dumps({"ports": ports}))
    return Lab(tmp_path)


def test_one_migration_at_a_time_and_nothing_of_an_earlier_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(hosts: Any, storage: Any, interface: str) -> None:
        seen.append(([one.name for one in hosts], [one.name for one in storage], interface))

    monkeypatch.setattr(leftovers, "remove_leftovers", note)
    with one_migration(lab, "xenbr0"):
        assert seen == [(["hosta", "hostb"], ["hostc"], "xenbr0")]
        with (
            pytest.raises(LabError, match="another migration is under way"),
            one_migration(lab, "xenbr0"),
        ):
            pass
        assert len(seen) == 1, "what is under way is not taken for a leftover"
    with one_migration(lab, "xenbr0"):
        assert len(seen) == 2
