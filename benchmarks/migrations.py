"""The same migration over every transport: a guest that writes, with a disk of 1 GiB.

    python benchmarks/migrations.py [NAME ...] [--size 1GiB] [--rounds N] [--folder FOLDER]

Names are ``tcp``, ``tcp+tls``, ``zeromq``, ``zeromq+curve``, ``rdma`` (the stub on shared memory),
``ssh`` (bulk data through ssh) and ``ssh+direct`` (over one-time TLS). All of them take turns by
default. The guest is the ``process`` plugin's: a process with memory of its own that writes all
the time and records what it was told has completed; its disk is full of data. Nothing is
compressed. Each migration is ``migrate run`` to an agent in another process, and is checked: a
write that was lost ends the benchmark.

One line of JSON for each round and transport: seconds of the migration (``seconds``), of each of
its ``phases`` and of the full ``copy``, which is the first round of PUSH; ``rate`` of that in bytes
of the disk per second; ``downtime`` as the guest itself measured it, in seconds; ``pending`` bytes
at the switch; ``writes`` that the guest was told had completed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trustme
from sshd import login

from vmferry.api import Trial
from vmferry.plugins import load
from vmferry.units import GIB, parse_size
from vmferry_transports.zeromq import keys

MIGRATE = [sys.executable, "-m", "vmferry"]
Way = Callable[["Place"], contextlib.AbstractContextManager[tuple[str, list[str]]]]


class Place:
    """Folders of one migration, and its agent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pool, self.agent = folder, folder / "pool", folder / "agent"
        self.pool.mkdir()

    @property
    def there(self) -> list[str]:
        """Options of an agent at the destination."""
        host = f"state_dir={self.folder / 'destination'}"
        return ["--state-dir", str(self.agent), "--hypervisor-opt", host]

    @contextlib.contextmanager
    def serve(self, url: str, options: list[str]) -> Iterator[tuple[str, list[str]]]:
        """An agent at ``url``; gives its address, and the options for the source."""
        command = [*MIGRATE, "serve", url, "--json", "--pool", str(self.pool), *self.there]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as agent:
            try:
                yield self._address(agent), options
            finally:
                agent.terminate()

    def _address(self, agent: subprocess.Popen[str]) -> str:
        assert agent.stdout is not None
        for line in agent.stdout:
            event = json.loads(line)
            if event.get("name") == "listening":
                address: str = event["facts"]["address"]
                return address
        raise RuntimeError("the agent did not start")

    def run(self, guest: str, address: str, options: list[str]) -> dict[str, Any]:
        """``migrate run``; returns its last event."""
        state = ["--state-dir", str(self.folder / "here")]
        host = ["--hypervisor-opt", f"state_dir={self.folder / 'source'}"]
        command = [*MIGRATE, "run", guest, address, "--json", "--compression", "none"]
        command += [*state, *host, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return next(event for event in events if event["event"] == "finished")


def transport(**chosen: object) -> list[str]:
    return [word for key, value in chosen.items() for word in ("--transport-opt", f"{key}={value}")]


def plain(scheme: str) -> Way:
    return lambda place: place.serve(f"{scheme}://127.0.0.1:0", [])


def tls(place: Place) -> contextlib.AbstractContextManager[tuple[str, list[str]]]:
    authority, leaf = trustme.CA(), place.folder / "leaf.pem"
    authority.cert_pem.write_to_path(place.folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(leaf)
    options = transport(tls_cert=leaf, tls_key=leaf, tls_ca=place.folder / "ca.pem")
    return place.serve("tcp://127.0.0.1:0", options)


def curve(place: Place) -> contextlib.AbstractContextManager[tuple[str, list[str]]]:
    public, secret = keys.make(place.folder, "one")
    options = transport(curve_key=secret, curve_server_key=public, curve_allow=place.folder)
    return place.serve("zeromq://127.0.0.1:0", options)


def ssh(bulk: str) -> Way:
    @contextlib.contextmanager
    def way(place: Place) -> Iterator[tuple[str, list[str]]]:
        files = place.folder / "sshd"
        files.mkdir()
        with login(files) as account:
            options = transport(
                ssh_command=account.command,
                remote_options=" ".join([*place.there, "--idle", "1s"]),
                bulk=bulk,
            )
            remote = ["--remote-command", " ".join(MIGRATE)]
            yield f"ssh://{account.host}{place.pool}", [*options, *remote]

    return way


WAYS: dict[str, Way] = {
    "tcp": plain("tcp"),
    "tcp+tls": tls,
    "zeromq": plain("zeromq"),
    "zeromq+curve": curve,
    "rdma": plain("rdma"),
    "ssh": ssh("ssh"),
    "ssh+direct": ssh("direct"),
}


async def migrate(way: Way, size: int, place: Place) -> dict[str, Any]:
    trial: Trial[Any] = load("trial", "process", {"memory": "16MiB", "prefill": 1.0})
    try:
        guest = await trial.start(place.folder, size)
        with way(place) as (address, options):
            end = await asyncio.to_thread(place.run, guest, address, options)
        verdict = await trial.verdict(str(place.pool / f"{guest}-disk0.raw"))
        if not verdict.good:
            raise RuntimeError(f"data was lost: {verdict}")
    finally:
        await trial.close()
    copy = end["rounds"][0]
    return {
        "seconds": round(sum(end["phases"].values()), 2),
        "phases": {name: round(seconds, 2) for name, seconds in end["phases"].items()},
        "copy": round(copy["seconds"], 2),
        "rate": round(copy["scanned"] / copy["seconds"]),
        "downtime": round(end["guest_downtime"], 3),
        "pending": end["pending"],
        "writes": verdict.acknowledged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WAYS))
    parser.add_argument("--size", type=parse_size, default=GIB)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where to make the files; default: a temporary folder")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(WAYS):
        parser.error(f"no way {', '.join(unknown)}; there are {', '.join(WAYS)}")
    for _ in range(chosen.rounds):
        for name in chosen.names or WAYS:
            with tempfile.TemporaryDirectory(prefix="vm-", dir=chosen.folder) as folder:
                found = asyncio.run(migrate(WAYS[name], chosen.size, Place(Path(folder))))
            print(json.dumps({"transport": name, **found}), flush=True)


if __name__ == "__main__":
    main()
