"""Measure transports between two processes: bulk rate, and round trips on the control lane.

Run ``python benchmarks/transports.py [NAME ...] [--lanes N ...] [--size BYTES] [--total BYTES]
[--rounds N]``. Names are ``tcp``, ``tcp+tls``, ``zeromq``, ``zeromq+curve``, ``rdma`` and
``memory``, which has both ends in one process; all of them take turns by default.
One line of JSON for each round, transport and number of bulk lanes::

    transport            its name
    bulk_lanes, size     what was sent
    rate                 bytes per second of payload, until the receiver has all
    cpu                  seconds of processor time per GiB at each end
    idle_us, busy_us     median and 99th percentile of a round trip of 64 bytes on the control
                         lane, with nothing else going on and with all bulk lanes full
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as PipeEnd
from pathlib import Path
from typing import Any

from vmferry.api.transport import Address, Connection, Lane, Limits, Listener, Transport
from vmferry.units import GIB, MIB, parse_size
from vmferry_transports.memory import MemoryTransport
from vmferry_transports.rdma import RdmaTransport
from vmferry_transports.tcp import TcpOptions, TcpTransport
from vmferry_transports.zeromq import ZeromqOptions, ZeromqTransport, keys

_STOP = b"stop"


class Pool:
    """Payload buffers that are used again, as a receiver that writes them to a disk would."""

    def __init__(self, size: int) -> None:
        self._free = [memoryview(bytearray(size)) for _ in range(64)]
        self._next = 0

    def __call__(self, size: int) -> memoryview:
        self._next += 1
        return self._free[self._next % len(self._free)][:size]


async def round_trips(lane: Lane, count: int) -> list[float]:
    found = []
    for _ in range(count):
        start = time.perf_counter()
        await lane.send(bytes(64))
        await lane.receive()
        found.append(time.perf_counter() - start)
    return found


def summary(found: list[float]) -> list[int]:
    """Median and 99th percentile in microseconds."""
    found = sorted(found)
    return [round(found[int(len(found) * part)] * 1e6) for part in (0.5, 0.99)]


async def push(lane: Lane, count: int, payload: memoryview) -> None:
    for number in range(count):
        await lane.send(b"%d" % number, payload)
    await lane.send(_STOP)
    await lane.receive()


async def bulk(connection: Connection, size: int, total: int) -> None:
    payload = memoryview(bytes(range(256)) * (size // 256))
    count = total // size // (len(connection.lanes) - 1)
    async with asyncio.TaskGroup() as group:
        for lane in connection.lanes[1:]:
            group.create_task(push(lane, count, payload))


async def busy_round_trips(connection: Connection, size: int, total: int) -> list[float]:
    found: list[float] = []
    done = asyncio.Event()

    async def run() -> None:
        while not done.is_set():
            found.extend(await round_trips(connection.lanes[0], 5))
            await asyncio.sleep(0.002)

    running = asyncio.create_task(run())
    await bulk(connection, size, total)
    done.set()
    await running
    return found


async def answer(lane: Lane) -> None:
    """Answer each frame that has no payload, until the peer closes."""
    while (frame := await lane.receive()) is not None:
        if not frame.payload:
            await lane.send(bytes(frame.head))


async def serve_all(listener: Listener) -> None:
    connection = await listener.accept()
    async with asyncio.TaskGroup() as group:
        for lane in connection.lanes:
            group.create_task(answer(lane))
    await connection.close()
    await listener.close()


async def serve(transport: Transport[Any], size: int, pipe: PipeEnd) -> None:
    limits = Limits(allocate=Pool(size))
    address = Address.parse(f"{transport.name}://127.0.0.1")
    listener = await transport.listen(address, limits=limits)
    pipe.send(str(listener.address))
    await serve_all(listener)
    pipe.send(time.process_time())


def serve_process(transport: Transport[Any], size: int, pipe: PipeEnd) -> None:
    asyncio.run(serve(transport, size, pipe))


async def measure(
    transport: Transport[Any], address: Address, lanes: int, size: int, total: int
) -> dict[str, Any]:
    connection = await transport.connect(address, lanes=lanes + 1, limits=Limits())
    await round_trips(connection.lanes[0], 200)
    idle = await round_trips(connection.lanes[0], 2000)
    cpu, start = time.process_time(), time.perf_counter()
    await bulk(connection, size, total)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    busy = await busy_round_trips(connection, size, total)
    await connection.close()
    return {
        "bulk_lanes": lanes,
        "size": size,
        "rate": round(total / took),
        "cpu": [round(cpu / total * GIB, 3)],
        "idle_us": summary(idle),
        "busy_us": summary(busy),
    }


async def measure_apart(
    transport: Transport[Any], lanes: int, size: int, total: int, pipe: PipeEnd
) -> dict[str, Any]:
    """Measure with the listener in another process."""
    address = Address.parse(await asyncio.to_thread(pipe.recv))
    found = await measure(transport, address, lanes, size, total)
    there = await asyncio.to_thread(pipe.recv)
    found["cpu"].append(round(there / total / 2 * GIB, 3))
    return found


async def measure_here(
    transport: Transport[Any], lanes: int, size: int, total: int
) -> dict[str, Any]:
    """Measure with both ends on one loop."""
    limits = Limits(allocate=Pool(size))
    listener = await transport.listen(Address.parse(f"{transport.name}://"), limits=limits)
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_all(listener))
        return await measure(transport, listener.address, lanes, size, total)


def run(transport: Transport[Any], lanes: int, size: int, total: int) -> dict[str, Any]:
    if transport.name == "memory":
        return asyncio.run(measure_here(transport, lanes, size, total))
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_process, args=(transport, size, theirs))
    server.start()
    with contextlib.closing(ours), contextlib.closing(theirs):
        found = asyncio.run(measure_apart(transport, lanes, size, total, ours))
        server.join()
    return found


def with_tls(folder: Path) -> TcpTransport:
    import trustme

    authority, leaf = trustme.CA(), str(folder / "leaf.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(leaf)
    return TcpTransport(TcpOptions(tls_cert=leaf, tls_key=leaf, tls_ca=str(folder / "ca.pem")))


def with_curve(folder: Path) -> ZeromqTransport:
    (folder / "curve").mkdir(exist_ok=True)
    public, secret = folder / "curve" / "here.key", folder / "curve" / "here.key_secret"
    if not public.exists():
        keys.make(folder / "curve", "here")
    return ZeromqTransport(
        ZeromqOptions(
            curve_key=str(secret), curve_server_key=str(public), curve_allow=str(public.parent)
        )
    )


TRANSPORTS: dict[str, Callable[[Path], Transport[Any]]] = {
    "tcp": lambda _: TcpTransport(),
    "tcp+tls": with_tls,
    "zeromq": lambda _: ZeromqTransport(),
    "zeromq+curve": with_curve,
    "rdma": lambda _: RdmaTransport(),
    "memory": lambda _: MemoryTransport(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TRANSPORTS))
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=parse_size, default=MIB)
    parser.add_argument("--total", type=parse_size, default=2 * GIB)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(TRANSPORTS):
        parser.error(f"no transport {', '.join(unknown)}; there are {', '.join(TRANSPORTS)}")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.rounds):
            for lanes in chosen.lanes:
                for name in chosen.names or TRANSPORTS:
                    transport = TRANSPORTS[name](Path(folder))
                    found = run(transport, lanes, chosen.size, chosen.total)
                    print(json.dumps({"transport": name, **found}), flush=True)


if __name__ == "__main__":
    main()
