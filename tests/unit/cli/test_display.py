from __future__ import annotations

import io
import json
import logging
import re
from typing import Any

import pytest
from rich.console import Console

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.cli.display import (
    Display,
    JsonDisplay,
    PlainDisplay,
    QuietDisplay,
    RichDisplay,
    choose_display,
)
from vmferry.cli.display.words import event_line
from vmferry.plugins import Hooks

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(display: Display, play: Any, caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks()
    with caplog.at_level(logging.WARNING), display:
        hooks.register(display, "display")
        play(hooks)
    assert caplog.text == "", "a display failed"


def move(done: int, what: str = "disk0", total: int = 100) -> Progress:
    return Progress(phase=Phase.PULL, what=what, done=done, total=total, rate=10.0)


def test_json_is_one_described_object_per_line(play: Any, caplog: Any) -> None:
    stream = io.StringIO()
    shown(JsonDisplay(stream, clock=lambda: 1_700_000_000.25), play, caplog)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(list(one)[:3] == ["event", "time", "job"] for one in events)
    assert {one["time"] for one in events} == {"2023-11-14T22:13:20.250Z"}
    assert {one["job"] for one in events} == {"job7"}
    assert [one["event"] for one in events] == [
        *("phase_changed", "progress", "progress", "round_finished", "event", "round_finished"),
        *("phase_changed", "progress", "finished"),
    ]
    assert events[0]["phase"] == "push-disk"
    assert events[1]["done"] == 16 << 20
    assert events[4]["facts"] == {"peer": "tcp://b:7420", "attempt": 2}
    assert events[-1]["rounds"][1]["memory"] is True
    assert events[-1]["downtime"] == 0.042


def test_json_writes_facts_of_any_type() -> None:
    stream = io.StringIO()
    JsonDisplay(stream).event("j", "odd", {"error": OSError("gone"), "bytes": b"x"})
    assert json.loads(stream.getvalue())["facts"]["error"] == "gone"


def test_plain_lines_tell_the_story(play: Any, caplog: Any) -> None:
    stream = io.StringIO()
    shown(PlainDisplay(stream, clock=lambda: 5.0), play, caplog)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[job7] ") for line in lines)
    text = [line.removeprefix("[job7] ") for line in lines]
    assert text[0].startswith("PUSH: copying the disks")
    assert text[1] == "disk0 25% (16.0 MiB of 64.0 MiB) 32.0 MiB/s 1.5 s left"
    assert text[2].startswith("round 0: 64.0 MiB made equal in 2.0 s, 40.0 MiB sent")
    assert text[3] == "reconnect peer=tcp://b:7420 attempt=2"
    assert text[4].startswith("round 1 + memory: ")
    assert "migration of web [1] done; the guest runs at the destination" in text
    assert "  downtime: 42.0 ms" in text
    assert "  downtime the guest saw: 50.0 ms" in text
    assert "  reconnects: 2" in text


def test_plain_progress_comes_once_a_second_and_tells_of_all_that_moved() -> None:
    stream, now = io.StringIO(), [0.0]
    display = PlainDisplay(stream, clock=lambda: now[0])
    for tenth in range(31):
        now[0] = tenth / 10
        display.progress("", move(tenth))
        display.progress("", move(tenth, "memory"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "disk0 0% (0 B of 100 B) 10 B/s 10.0 s left"
    assert "memory 9%" in lines[1]
    assert "disk0 10%" in lines[1]


def test_plain_shows_a_note_and_an_error() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.progress("", Progress(phase=Phase.PULL, what="d", done=0, total=9, rate=0, note="hm"))
    failed = Summary(
        job="", role="source", guest="g", outcome="failed", owner="source", error="no link"
    )
    display.finished(failed)
    assert stream.getvalue().splitlines()[:2] == [
        "d 0% (0 B of 9 B) [hm]",
        "migration of g failed; the guest runs at the source: no link",
    ]


def rich_display(width: int = 100) -> tuple[RichDisplay, io.StringIO]:
    stream = io.StringIO()
    return RichDisplay(Console(file=stream, force_terminal=True, width=width)), stream


def test_rich_shows_bars_rounds_and_summary(play: Any, caplog: Any) -> None:
    display, stream = rich_display()
    shown(display, play, caplog)
    text = ANSI.sub("", stream.getvalue())
    assert "migration of web [1] done; the guest runs at the destination" in text
    assert re.search(r"downtime\s+42\.0 ms", text)
    assert re.search(r"1 \+ memory\s+4\.0 MiB", text)
    assert "reconnect peer=tcp://b:7420 attempt=2" in text
    assert "\x1b[?25h" in stream.getvalue(), "the cursor must be shown again"


def test_rich_draws_each_disk_with_rate_and_time_left() -> None:
    display, stream = rich_display()
    with display:
        display.phase_changed("j", "source", Phase.PUSH_DISK)
        display.progress("j", move(25, "disk[bold]"))
        display.progress("j", move(50, "memory"))
    frame = ANSI.sub("", stream.getvalue())
    (disk,) = {line.strip() for line in frame.splitlines() if "disk[bold]" in line}
    assert re.search(r"disk\[bold\] .*25% +25 B of 100 B +10 B/s +7\.5 s left", disk)
    assert "50%" in frame
    assert "PUSH: copying the disks" in frame


def test_rich_begins_new_bars_in_a_new_phase_and_keeps_other_jobs() -> None:
    display, _ = rich_display()
    for job in ("a", "b"):
        display.progress(job, move(1))
    display.phase_changed("a", "source", Phase.PULL)
    assert list(display._tasks) == [("b", "disk0")]
    assert len(display._bars.tasks) == 1


def test_nothing_to_do_is_all_done() -> None:
    display, stream = rich_display()
    with display:
        display.progress("j", move(0, total=0))
    assert "100%" in ANSI.sub("", stream.getvalue())


def test_a_very_fast_round_is_no_division_by_zero() -> None:
    report = RoundReport(number=0, scanned=0, sent=0, zeroes=0, seconds=0.0, dirty=0)
    stream = io.StringIO()
    PlainDisplay(stream).round_finished("", report)
    display, _ = rich_display()
    with display:
        display.round_finished("j", report)
    assert "0.0 ms" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_display_suits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(choose_display(stream=Terminal()), RichDisplay)
    assert isinstance(choose_display(stream=io.StringIO()), PlainDisplay)
    assert isinstance(choose_display(json=True, stream=Terminal()), JsonDisplay)
    assert isinstance(choose_display(stream=Terminal(), quiet=True), QuietDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(stream=Terminal()), PlainDisplay)


def test_quiet_shows_nothing(play: Any, caplog: Any, capfd: Any) -> None:
    shown(QuietDisplay(), play, caplog)
    assert capfd.readouterr() == ("", "")


def test_the_engines_events_are_sentences_and_others_are_shown_with_their_facts() -> None:
    assert event_line("listening", {"address": "tcp://h:1"}) == "listening at tcp://h:1"
    assert event_line("listening", {"port": 1}) == "listening port=1"
    assert event_line("coffee", {"cups": 2}) == "coffee cups=2"
