"""Tables and devices as dmsetup prints them, and what is made of its complaints."""

import pytest

from vmferry_support import dm
from vmferry_support.commands import CommandFailed
from vmferry_support.dm import DmDevice, DmError, DmInfo, DmMissing, Segment, linear

TABLE = "0 2048 linear 7:0 0\n2048 8 linear 43:0 2048\n2056 522232 linear 7:0 2056\n"
ERA = "0 524288 era 8 34/2048 7 -\n"
INFO = "vmferry-a|VMFERRY-a|254|3|2|LIsw\n"


def test_a_table_is_parsed_and_printed_as_it_was() -> None:
    segments = dm.parse_table(TABLE)
    assert segments == (
        linear(0, 2048, "7:0", 0),
        linear(2048, 8, "43:0", 2048),
        linear(2056, 522232, "7:0", 2056),
    )
    assert dm.format_table(segments) == TABLE


def test_a_status_keeps_what_the_target_says() -> None:
    assert dm.parse_table(ERA) == (Segment(0, 524288, "era", "8 34/2048 7 -"),)


def test_a_segment_without_arguments_prints_without_a_trailing_blank() -> None:
    assert dm.format_table([Segment(0, 8, "zero")]) == "0 8 zero\n"


@pytest.mark.parametrize("line", ["0 2048", "a 1 linear", "error"])
def test_what_is_no_table_is_named(line: str) -> None:
    with pytest.raises(DmError, match=line):
        dm.parse_table(line)


class Program:
    """Stands for dmsetup: records what it is asked, answers or complains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[tuple[str, ...], str]] = []
        self.answer, self.complaint = "", ""
        monkeypatch.setattr(dm, "run", self.run)

    async def run(self, *argv: str, stdin: str = "", timeout: float = 0) -> str:
        self.calls.append((argv, stdin))
        if self.complaint:
            raise CommandFailed(argv, 1, "", self.complaint)
        return self.answer


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(monkeypatch)


async def test_create_hands_the_table_over_on_stdin(program: Program) -> None:
    await DmDevice("vmferry-a").create([linear(0, 8, "/dev/loop0", 0)], uuid="VMFERRY-a")
    argv = ("dmsetup", "create", "vmferry-a", "--uuid", "VMFERRY-a")
    assert program.calls == [(argv, "0 8 linear /dev/loop0 0\n")]


async def test_info_is_understood(program: Program) -> None:
    program.answer = INFO
    expected = DmInfo("vmferry-a", "VMFERRY-a", "254:3", 2, live=True, loaded=True, suspended=True)
    assert await DmDevice("vmferry-a").info() == expected


async def test_only_devices_with_the_prefix_are_listed(program: Program) -> None:
    program.answer = INFO + "vg-root||254|0|1|L--w\n"
    assert [each.name for each in await dm.list_devices("vmferry-")] == ["vmferry-a"]


async def test_no_devices_at_all(program: Program) -> None:
    program.answer = "No devices found\n"
    assert await dm.list_devices() == []


async def test_a_missing_device_is_named_and_told_from_other_failures(program: Program) -> None:
    program.complaint = "Device vmferry-a does not exist.\nCommand failed."
    with pytest.raises(DmMissing, match="vmferry-a"):
        await DmDevice("vmferry-a").suspend()
    assert not await DmDevice("vmferry-a").exists()
    await DmDevice("vmferry-a").remove()
    with pytest.raises(DmMissing):
        await DmDevice("vmferry-a").remove(missing_ok=False)


async def test_a_refusal_names_device_and_reason(program: Program) -> None:
    program.complaint = "device-mapper: reload ioctl on vmferry-a  failed: Invalid argument"
    with pytest.raises(DmError, match=r"device vmferry-a: load: .*Invalid argument") as caught:
        await DmDevice("vmferry-a").load([linear(0, 8, "7:0", 0)])
    assert not isinstance(caught.value, DmMissing)
