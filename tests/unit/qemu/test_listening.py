"""Whether a socket listens, by a table that lacks one now and then."""

from __future__ import annotations

import socket

from vmferry_support import qemu_exports


def looked(monkeypatch, answers):
    left = list(answers)
    monkeypatch.setattr(qemu_exports, "_in_table", lambda _: left.pop(0))
    return left


def test_a_socket_that_is_missed_is_looked_for_again(tmp_path, monkeypatch):
    place = tmp_path / "server"
    place.touch()
    left = looked(monkeypatch, [False, False, True, False])
    assert qemu_exports._listens(str(place))
    assert left == [False]


def test_one_that_is_not_there_is_looked_for_once(tmp_path, monkeypatch):
    left = looked(monkeypatch, [False, True])
    assert not qemu_exports._listens(str(tmp_path / "server"))
    assert left == [True]


def test_the_table_of_the_kernel(tmp_path):
    place = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        assert not qemu_exports._listens(place)
        server.listen()
        assert qemu_exports._listens(place)
    assert not qemu_exports._listens(place)
