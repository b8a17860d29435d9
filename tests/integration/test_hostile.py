"""A whole agent among strangers, and what others on its machine can see of it."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import ssl
import stat
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmferry.api import Address

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

CROWD = 300
MOST_GROWTH = 64 << 20
"""Bytes that so many strangers may cost an agent."""
Certificates = dict[str, list[str]]


def heard(sock: socket.socket, said: bytes) -> bytes:
    """All that the agent answers until it hangs up."""
    answer = b""
    try:
        sock.sendall(said)
        while piece := sock.recv(65536):
            answer += piece
    except OSError:
        return answer
    return answer


def stranger(place: tuple[str, int], authority: str) -> bytes:
    """What a peer gets that speaks TLS and has no certificate."""
    context = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection(place, timeout=300) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        return heard(sock, b"vmferry" * 20)


async def test_a_peer_without_a_certificate_gets_nothing(
    hosts: Any, certificates: Certificates, tmp_path: Path
) -> None:
    await hosts.start_guest(size=4 << 20, timeout="60")
    address = Address.parse(hosts.start_agent(*certificates["destination"]))
    place = (address.host, address.port)
    assert await asyncio.to_thread(stranger, place, str(tmp_path / "ca.pem")) == b""
    with socket.create_connection(place, timeout=300) as plain:
        answer = await asyncio.to_thread(heard, plain, b"\x00" * 64)
    assert len(answer) <= 7  # one TLS alert
    checked = hosts.migrate("check", hosts.guest, str(address), *certificates["source"])
    assert checked.returncode == 0, checked.stderr


async def test_a_crowd_that_says_nothing_costs_little_and_holds_up_nobody(hosts: Any) -> None:
    await hosts.start_guest(size=4 << 20, timeout="60")
    address = Address.parse(hosts.start_agent("--transport-opt", "handshake_timeout=20"))
    agent = psutil.Process(hosts._agents[0].pid)
    before = agent.memory_info().rss
    with ExitStack() as crowd:
        for _ in range(CROWD):
            place = (address.host, address.port)
            crowd.enter_context(socket.create_connection(place, timeout=300))
        checked = await asyncio.to_thread(hosts.migrate, "check", hosts.guest, str(address))
        assert checked.returncode == 0, checked.stderr
        assert agent.memory_info().rss - before < MOST_GROWTH
        assert agent.num_threads() < 64
        async with asyncio.timeout(120):  # nobody waits for them for ever
            while len(agent.net_connections("tcp")) > CROWD // 10:  # noqa: ASYNC110
                await asyncio.sleep(0.2)


def tokens(folder: Path) -> set[bytes]:
    """The secrets of all jobs that both journals know."""
    found: set[bytes] = set()
    for path in folder.glob("*/*.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            found |= {bytes(row[0]) for row in db.execute("SELECT token FROM job")}
    return found - {b""}


def modes(folder: Path) -> dict[str, int]:
    """Everything in a folder that others than its owner may use, with its mode."""
    inside = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {
        str(path): stat.S_IMODE(found.st_mode)
        for path, found in inside.items()
        if found.st_mode & 0o077 and not stat.S_ISLNK(found.st_mode)
    }


async def test_logs_hold_no_secret_and_others_may_read_nothing(
    hosts: Any, certificates: Certificates, phase_reached: Any, tmp_path: Path
) -> None:
    await hosts.start_guest(size=16 << 20, prefill="1.0", write_rate="0", timeout="60")
    logs = {role: hosts.folder / f"{role}.log" for role in ("source", "destination")}
    address = hosts.start_agent(*certificates["destination"], log=logs["destination"])
    options = ["--bandwidth", "8MiB/s", "--compression", "none", "--threshold", "1GiB"]
    source = hosts.start(
        "run", hosts.guest, address, *options, *certificates["source"], log=logs["source"]
    )
    await asyncio.to_thread(phase_reached, source, "pull")
    for state in (hosts.folder / "here", hosts.folder / "there"):
        assert not modes(state)  # journal, scratch, exports, sockets: while all of it is in use
    said, complained = await asyncio.to_thread(source.communicate, timeout=300)
    assert source.returncode == 0, complained
    secrets = tokens(hosts.folder)
    assert len(secrets) == 1
    told = said + complained + "".join(log.read_text() for log in logs.values())
    for secret in secrets:
        for form in (secret.hex(), repr(secret), secret.decode("latin-1")):
            assert form not in told
    for key in tmp_path.glob("*.key"):
        assert key.read_text().splitlines()[1] not in told
