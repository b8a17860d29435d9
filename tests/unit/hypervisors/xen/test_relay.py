"""The relay hands its pipes over, and ends with the migration, unless it was told to hold on."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry_hypervisors.xen import relay

PROGRAM = [sys.executable, "-I", str(Path(relay.__file__))]


class Meeting:
    """A relay that has been met, with xl's ends of its pipes."""

    def __init__(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            server.settimeout(30)
            self.process = subprocess.Popen(
                [*PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self.peer, _ = server.accept()
        self.peer.settimeout(30)
        _, self.fds, _, _ = socket.recv_fds(self.peer, 1, 2)

    def close(self) -> None:
        self.peer.close()
        for fd in self.fds:
            os.close(fd)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    made = Meeting(tmp_path / "s")
    yield made
    made.close()


def test_what_xl_sends_and_is_told_goes_through_the_pipes_themselves(meeting: Meeting) -> None:
    assert meeting.process.stdin is not None
    assert meeting.process.stdout is not None
    meeting.process.stdin.write(b"memory")
    meeting.process.stdin.flush()
    assert os.read(meeting.fds[0], 100) == b"memory"
    os.write(meeting.fds[1], b"banner")
    assert os.read(meeting.process.stdout.fileno(), 100) == b"banner"


def test_it_ends_when_told(meeting: Meeting) -> None:
    meeting.peer.sendall(relay.HOLD + relay.QUIT)
    assert meeting.process.wait(30) == 0


def test_it_ends_when_the_migration_dies(meeting: Meeting) -> None:
    meeting.peer.close()
    assert meeting.process.wait(30) == 1


def test_it_holds_on_once_the_commit_may_have_been_made(meeting: Meeting) -> None:
    meeting.peer.sendall(relay.HOLD)
    meeting.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(subprocess.TimeoutExpired):
        meeting.process.wait(1)


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, str(tmp_path / "none")], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"none" in done.stderr
