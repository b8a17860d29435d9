"""``migrate run`` between two hosts on one machine: what an operator does to it while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], Any], dict[str, Any]]
SLOW = ("--bandwidth", "2MiB/s", "--compression", "none")


async def progress(hosts: Any) -> int:
    """Writes the guest makes in a while; 0 if it makes none in a very long one."""
    before = (await hosts.trial.status()).writes
    for _ in range(600):
        await asyncio.sleep(0.1)
        if more := int((await hosts.trial.status()).writes - before):
            return more
    return 0


async def undone(hosts: Any) -> None:
    """Return when nothing is left at the destination."""
    async with asyncio.timeout(300):
        while list((hosts.folder / "pool").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_ctrl_c_before_the_switch_leaves_the_guest_at_the_source(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest()
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *SLOW)
    phase_reached(process, "push-disk")
    await asyncio.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert await progress(hosts) > 0
    await undone(hosts)
    assert list((hosts.folder / "destination").iterdir()) == []
    assert not list((hosts.folder / "here").glob("*.sock"))


async def test_after_a_failure_the_same_guest_migrates(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest()
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, *SLOW)
    phase_reached(process, "push-disk")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    await undone(hosts)
    result = hosts.migrate("run", hosts.guest, address)
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good


async def test_an_agent_that_dies_in_push_costs_nothing(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest()
    given_up = (*SLOW, "--reconnect", "1s")
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *given_up)
    phase_reached(process, "push-disk")
    hosts._agents[0].kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4, errors
    assert await progress(hosts) > 0


async def test_the_bandwidth_changes_while_it_runs(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest(size=64 << 20, prefill="1.0")
    slow = ("--bandwidth", "128KiB/s", "--compression", "none")
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *slow)
    event = phase_reached(process, "push-disk")
    changed = hosts.set(event["job"], "--bandwidth", "0")
    assert "unlimited" in changed.stdout, changed.stderr
    process.communicate(timeout=300)  # without the change it takes 512 s
    assert process.returncode == 0
    assert (await hosts.trial.verdict(hosts.arrived)).good


async def test_the_operator_can_switch_in_the_middle_of_the_full_copy(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0")
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *SLOW)
    event = phase_reached(process, "push-disk")
    assert hosts.set(event["job"], "--switch-now", "--bandwidth", "0").returncode == 0
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    summary = next(e for e in map(json.loads, output.splitlines()) if e["event"] == "finished")
    assert summary["pending"] > 8 << 20
    assert (await hosts.trial.verdict(hosts.arrived)).good


class Proxy:
    """A TCP relay whose connections can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut, and let nobody in any more."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxied(hosts: Any) -> AsyncIterator[Proxy]:
    port = int(hosts.start_agent().rpartition(":")[2])
    async with Proxy(port) as proxy:
        yield proxy


async def test_a_link_cut_in_push_is_mended_and_what_has_come_is_not_sent_again(
    hosts: Any, proxied: Proxy, copied: Reached
) -> None:
    size = 64 << 20
    await hosts.start_guest(size=size, prefill="1.0", write_rate="20")
    options = ("--bandwidth", "8MiB/s", "--compression", "none", "--block-size", "4KiB")
    url = f"tcp://127.0.0.1:{proxied.port}"
    process = hosts.start("run", hosts.guest, url, *options)
    await asyncio.to_thread(copied, process, 0.8)
    proxied.cut()
    output, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    (again,) = [event for event in events if event.get("name") == "reconnected"]
    assert again["facts"]["pushing"]
    assert again["facts"]["left"] < size // 2
    assert events[-1]["sent"] < 1.7 * size
    status = await hosts.trial.status()
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert status.errors == 0


async def test_what_was_kept_for_a_source_that_gives_up_is_removed(
    hosts: Any, proxied: Proxy, copied: Reached
) -> None:
    await hosts.start_guest(prefill="1.0")
    url = f"tcp://127.0.0.1:{proxied.port}"
    process = hosts.start("run", hosts.guest, url, *SLOW, "--reconnect", "2s")
    await asyncio.to_thread(copied, process, 0.1)
    await proxied.close()
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 4, errors
    assert await progress(hosts) > 0
    await undone(hosts)


async def test_a_link_cut_in_pull_is_mended_and_the_guest_waits_without_errors(
    hosts: Any, proxied: Proxy, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0", read_ratio="0.5")
    options = ("--bandwidth", "4MiB/s", "--compression", "none", "--threshold", "1GiB")
    url = f"tcp://127.0.0.1:{proxied.port}"
    process = hosts.start("run", hosts.guest, url, *options)
    loop = asyncio.get_running_loop()
    job = await loop.run_in_executor(None, phase_reached, process, "push-disk")
    await loop.run_in_executor(None, hosts.set, job["job"], "--switch-now")
    await loop.run_in_executor(None, phase_reached, process, "pull")
    await asyncio.sleep(0.5)
    proxied.cut()
    output, errors = await loop.run_in_executor(None, process.communicate)
    assert process.returncode == 0, errors
    assert '"reconnected"' in output
    status = await hosts.trial.status()
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert status.errors == 0


async def test_over_tls_with_certificates_on_both_sides(
    hosts: Any, certificates: dict[str, list[str]]
) -> None:
    options = certificates
    await hosts.start_guest()
    address = hosts.start_agent(*options["destination"])
    naked = hosts.migrate("run", hosts.guest, address)
    assert naked.returncode == 7, naked.stderr
    assert await progress(hosts) > 0
    lanes = ("--lanes", "8", "--stall-timeout", "30s")  # several streams over TLS do not stall
    result = hosts.migrate("run", hosts.guest, address, *lanes, *options["source"])
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good
