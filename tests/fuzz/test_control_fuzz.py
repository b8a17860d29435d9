"""Whatever is said to the control socket of a migration: one line of JSON, and it goes on."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.cli.control import ask, controlled
from vmferry.engine.throttle import Throttle

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""
fuzzed = settings(max_examples=60 * EFFORT, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
WISHES = st.dictionaries(st.sampled_from(["bandwidth", "switch", "x"]), JSON, max_size=3)
LINES = st.one_of(
    st.binary(max_size=4096),
    WISHES.map(lambda wish: json.dumps(wish).encode()),
    st.just(b"[" * 60_000),
    st.just(b"{" * 200_000),
)


class Job:
    """A migration that only counts what is asked of it."""

    job = "a1b2c3d4"
    committed = False
    owner = "source"

    def __init__(self) -> None:
        self.throttle = Throttle(0)

    def switch_now(self) -> None:
        return

    async def run(self) -> None:
        return


async def say(path: Path, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                writer.write(line + b"\n")
                writer.write_eof()
                return await reader.read()
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return b""


@fuzzed
@given(LINES)
def test_any_line(line: bytes) -> None:
    async def body(folder: Path) -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        job = Job()
        async with controlled(job, folder):  # type: ignore[arg-type]
            answer = await say(folder / "a1b2c3d4.sock", line)
            if answer:
                assert isinstance(json.loads(answer), dict)
            told = await ask(folder, "a1b2c3d4", {"bandwidth": 4096})
            assert told["bandwidth"] == job.throttle.rate == 4096
        assert not complaints

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(body(Path(folder)))
