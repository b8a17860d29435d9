"""What is found to speak against a guest's leaving, by a monitor made of a few answers."""

import pytest

from vmferry.api.findings import Severity
from vmferry_hypervisors.qemu.checks import check_source


class Answers:
    """A QEMU in which all is well, but for what is given."""

    def __init__(self, version=(10, 0, 2), **answers):
        self.version = version
        names = ("events", "pause-before-switchover", "return-path", "multifd", "postcopy-ram")
        self._answers = {
            "query-status": {"running": True, "status": "running"},
            "query-kvm": {"enabled": False, "present": True},
            "query-migrate": {},
            "query-migrate-capabilities": [{"capability": each, "state": False} for each in names],
            "query-jobs": [],
            "query-block": [],
        } | {name.replace("_", "-"): answer for name, answer in answers.items()}

    async def execute(self, command):
        return self._answers[command]


async def codes(qmp):
    return [each.code for each in await check_source(qmp, "web1")]


@pytest.mark.parametrize(
    ("version", "kvm", "warned"),
    [
        ((7, 2, 22), False, True),
        ((8, 2, 0), False, True),
        ((8, 2, 0), True, False),
        ((9, 0, 0), False, False),
        ((10, 0, 2), False, False),
    ],
)
async def test_a_qemu_that_may_lose_memory_is_warned_of(version, kvm, warned):
    qmp = Answers(version, query_kvm={"enabled": kvm, "present": True})
    found = await check_source(qmp, "web1")
    assert [each.code for each in found] == ["qemu-loses-memory"] * warned
    for each in found:
        assert each.severity is Severity.WARNING
        assert ".".join(map(str, version)) in each.text
        assert "9.0" in each.remedy


async def test_an_old_qemu_is_refused_whatever_else_it_says():
    assert await codes(Answers((5, 1, 0))) == ["qemu-old"]


@pytest.mark.parametrize("name", ["x-colo", "postcopy-ram"])
async def test_a_setting_that_cannot_be_carried_is_refused(name):
    said = [{"capability": each, "state": True} for each in ("events", "return-path", name)]
    found = await codes(Answers(query_migrate_capabilities=said))
    assert found == ["qemu-lacks", "qemu-setting"]
