"""The same migration over every transport, chosen by the URL's scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmferry_transports.zeromq import keys

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.mark.parametrize("scheme", ["tcp", "zeromq", "rdma"])
async def test_a_guest_that_writes_migrates(hosts: Any, scheme: str) -> None:
    await hosts.start_guest()
    address = hosts.start_agent(url=f"{scheme}://127.0.0.1:0")
    assert address.startswith(f"{scheme}://127.0.0.1:")
    result = hosts.migrate("run", hosts.guest, address)
    assert result.returncode == 0, result.stderr
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert verdict.acknowledged


async def test_a_guest_migrates_over_zeromq_with_curve(hosts: Any, tmp_path: Path) -> None:
    """Also the second connection, which the source makes at the end, is let in."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    listener, listener_secret = keys.make(tmp_path, "there")
    _, source_secret = keys.make(allowed, "here")
    await hosts.start_guest()
    address = hosts.start_agent(
        *options(curve_key=listener_secret, curve_allow=allowed), url="zeromq://127.0.0.1:0"
    )
    refused = hosts.migrate("run", hosts.guest, address, *options(connect_timeout="3s"))
    assert refused.returncode != 0
    assert "CURVE must be on at both ends" in refused.stderr
    result = hosts.migrate(
        "run",
        hosts.guest,
        address,
        *options(curve_key=source_secret, curve_server_key=listener),
    )
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good


def options(**given: Any) -> list[str]:
    return [
        word for name, value in given.items() for word in ("--transport-opt", f"{name}={value}")
    ]
