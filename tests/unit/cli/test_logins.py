"""When the agent of logins ends, and what a login finds."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmferry.cli.logins import Logins, alone, until_idle
from vmferry.cli.stdio import _introduction, _socket_path, _why
from vmferry.errors import InputError


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


def agent(*, active: bool = False, busy: bool = False) -> Any:
    return SimpleNamespace(active=active, busy=busy)


async def ends(agent: Any, logins: Logins | None, patience: float = 0.5) -> bool:
    try:
        async with asyncio.timeout(patience):
            await until_idle(agent, 0.05, logins)
    except TimeoutError:
        return False
    return True


async def test_an_agent_that_nobody_needs_ends(socket: str) -> None:
    assert await ends(agent(), None, 20)
    assert await ends(agent(), Logins(socket), 20)


@pytest.mark.parametrize("why", ["active", "busy"])
async def test_an_agent_that_is_needed_stays(socket: str, why: str) -> None:
    assert not await ends(agent(**{why: True}), Logins(socket))


async def test_a_login_keeps_the_agent_and_its_end_lets_it_go(socket: str) -> None:
    login = Logins(socket)
    login.enter()
    mine = Logins(socket)
    assert not await ends(agent(), mine)
    login.allow()
    assert await ends(agent(), mine, 20)


async def test_a_login_waits_while_an_agent_leaves(socket: str) -> None:
    leaving = Logins(socket)
    assert await ends(agent(), leaving, 20)
    login = threading.Thread(target=Logins(socket).enter)
    login.start()
    login.join(0.2)
    assert login.is_alive()
    leaving.allow()
    login.join(20)
    assert not login.is_alive()


def test_two_logins_do_not_start_an_agent_each(socket: str) -> None:
    order: list[str] = []

    def start() -> None:
        with alone(socket):
            order.append("other")

    with alone(socket):
        other = threading.Thread(target=start)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(20)
    assert order == ["first", "other"]


def test_other_options_are_another_agent(tmp_path: Path) -> None:
    assert _socket_path(tmp_path, ["--pool", "a"]) == _socket_path(tmp_path, ["--pool", "a"])
    assert _socket_path(tmp_path, ["--pool", "a"]) != _socket_path(tmp_path, ["--pool", "b"])


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose a shorter --state-dir"):
        _socket_path(tmp_path / ("x" * 100), [])


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("migrate: error: no pool\nTry 'migrate serve --help'.\n", "no pool"),
        ("Killed\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_the_agents_own_words(tmp_path: Path, log: str, said: str) -> None:
    path = tmp_path / "log"
    path.write_text("migrate: error: of yesterday\n" + log)
    assert _why(path, len("migrate: error: of yesterday\n")) == f"the agent did not start: {said}"


def test_the_introduction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 22")
    assert _introduction() == b'{"client": "10.0.0.1", "server": "10.0.0.2"}\n'
    monkeypatch.setenv("SSH_CONNECTION", "nonsense")
    assert _introduction() == b"{}\n"
