"""A laboratory for the session: the one that is up in VMFERRY_LAB, else one booted there.

Where it cannot run, its tests are skipped, unless VMFERRY_LAB_REQUIRED is set: then they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry_lab import Host, Lab
from vmferry_lab.errors import BootFailed, LabError, Missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="VMFERRY_LAB names no folder of a laboratory")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(1800))
            if not os.environ.get("VMFERRY_LAB"):
                item.add_marker(absent)


def _boot(lab: Lab) -> None:
    """Boot, once more if a host did not come up; its console's last lines are printed."""
    try:
        lab.up(flavours=["fio"])
    except BootFailed as failed:
        print(f"once more, since {failed}")
        lab.up(flavours=["fio"])
    except Missing as missing:
        if os.environ.get("VMFERRY_LAB_REQUIRED"):
            raise
        pytest.skip(f"no laboratory can run here: {missing}")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    lab = Lab(say=print)
    found = lab.is_up()
    if not found and os.environ.get("PYTEST_XDIST_WORKER"):
        pytest.skip("several workers cannot boot one laboratory: boot it first, or use no -n")
    _boot(lab)
    yield lab
    if not found:
        lab.down()


@pytest.fixture(scope="session")
def hosta(lab: Lab) -> Host:
    return lab.host("hosta")


@pytest.fixture(scope="session")
def hostb(lab: Lab) -> Host:
    return lab.host("hostb")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show with a test that failed what its hosts had to say."""
    report = yield
    if report.when == "call" and report.failed:
        funcargs = getattr(item, "funcargs", {})
        for name in ("hosta", "hostb"):
            if name in funcargs:
                report.sections.append((f"{name}: last words", _last_words(funcargs[name])))
    return report


_LAST_WORDS = """\
xl list
dmsetup table
cat /proc/drbd 2>/dev/null
tail -n 15 /var/log/xen/xl-*.log 2>/dev/null
tail -n 40 /root/ferry-*/log 2>/dev/null | cut -c1-400
dmesg | tail -n 15
"""


def _last_words(host: Host) -> str:
    try:
        return host.run(_LAST_WORDS + "true", timeout=120)
    except LabError as error:
        return str(error)
