"""The recorder's process: it keeps what guests say, and passes on what they are told."""

import asyncio

import pytest

from vmferry_hypervisors.qemu.workload.recorder import read_frames
from vmferry_hypervisors.qemu.workload.recording import Recording


async def _heard(path, text):
    async with asyncio.timeout(60):
        while True:
            if text in b"".join(said.data for said, _ in read_frames(path.read_bytes())):
                return
            await asyncio.sleep(0.01)


@pytest.mark.real
async def test_what_is_said_goes_to_where_the_guest_spoke_last(tmp_path):
    recording = await Recording.start(tmp_path / "serial.sock", tmp_path / "record")
    try:
        hosts = [await asyncio.open_unix_connection(tmp_path / "serial.sock") for _ in range(2)]
        for number, (reader, writer) in enumerate(hosts):
            writer.write(b"here %d\n" % number)
            await _heard(tmp_path / "record", b"here %d\n" % number)
            recording.say(b"check %d\n" % number)
            assert await asyncio.wait_for(reader.readline(), 60) == b"check %d\n" % number
        for _, writer in hosts:
            writer.close()
            await writer.wait_closed()
    finally:
        await recording.stop()
        await recording.stop()
