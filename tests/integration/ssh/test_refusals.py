"""Each way in which ssh does not lead to an agent has its own message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
async def refused(hosts: Any, remote: Any) -> Any:
    """Checks a guest; returns what was complained about."""
    await hosts.start_guest()

    def run(url: str = "", **options: Any) -> str:
        more = options.pop("more", ())
        result = hosts.migrate(
            "check", hosts.guest, url or remote.url, *remote.options(*more, **options)
        )
        assert result.returncode == 7, result.stderr
        assert not remote.login.processes()
        errors: str = result.stderr
        assert "Traceback" not in errors
        return errors

    return run


async def test_nobody_listens(refused: Any, remote: Any) -> None:
    said = refused("ssh://127.0.0.1:1")
    assert "ssh://127.0.0.1:1: no sshd listens there" in said


async def test_no_such_host(refused: Any) -> None:
    assert "ssh://nowhere.invalid: there is no such host" in refused("ssh://nowhere.invalid")


async def test_a_key_that_is_not_authorized(refused: Any, remote: Any) -> None:
    said = refused(ssh=remote.login.ssh(key="stranger"))
    assert f"{remote.url}: login refused: see that `ssh` gets you in" in said


async def test_a_host_whose_key_is_not_known(refused: Any, remote: Any) -> None:
    said = refused(ssh=remote.login.ssh(known="nobody_known"))
    assert "its host key is not known here: connect once by `ssh`" in said


async def test_migrate_is_not_there(refused: Any) -> None:
    said = refused(migrate="/nowhere/migrate")
    assert "`/nowhere/migrate` was not found there: install vmferry on that host" in said
    assert "--remote-command" in said


async def test_migrate_cannot_be_run(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "migrate").write_text("text")
    assert "cannot be run there" in refused(migrate=str(tmp_path / "migrate"))


async def test_migrate_is_too_old(refused: Any, tmp_path: Path) -> None:
    old = script(
        tmp_path / "migrate", "echo \"migrate: error: No such command 'stdio'.\" >&2; exit 2"
    )
    assert "does not know the command 'stdio': its vmferry is older" in refused(migrate=old)


async def test_migrate_speaks_another_version(refused: Any, tmp_path: Path) -> None:
    new = script(tmp_path / "migrate", "echo vmferry-ssh 9 7.0.0; cat >/dev/null")
    said = refused(migrate=new)
    assert "speaks version 9 of the ssh transport (vmferry 7.0.0), this host version 1" in said


async def test_something_else_runs_there(refused: Any) -> None:
    assert "gave no agent (exit code 3): so long" in refused(migrate="echo so long >&2; exit 3;")


async def test_the_agent_cannot_start(refused: Any) -> None:
    said = refused(more=("--volume nonsense",))
    assert "the agent did not start: no volume plugin named 'nonsense'" in said


async def test_an_option_that_serve_does_not_know(refused: Any) -> None:
    said = refused(more=("--nonsense",))
    assert "the agent did not start: No such option" in said
    assert "--nonsense" in said
