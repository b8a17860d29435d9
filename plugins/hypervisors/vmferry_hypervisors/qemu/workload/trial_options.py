"""Options of the ``qemu`` trial: the guest, and what it does."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmferry.errors import InputError
from vmferry_hypervisors.qemu.two_hosts import GuestOptions
from vmferry_hypervisors.qemu.workload.image import SECTOR
from vmferry_hypervisors.qemu.workload.program import FIRST_BLOCK, SIZE, TICKS, Program

__all__ = ["QemuTrialOptions", "make_program"]

_DIVISOR = 4772
_TABLE = 2 << 20
_FIRMWARE = 1 << 20


class QemuTrialOptions(GuestOptions, frozen=True, kw_only=True):
    """What is started, and what the guest does with its disks and its memory."""

    disks: Annotated[int, Meta(ge=1, le=2, description="disks of the guest, all of one size")] = 1
    prefill: Annotated[
        float, Meta(ge=0, le=1, description="share of each disk that holds data at the start")
    ] = 0.25
    working_set: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 37,
            description="bytes of each disk that are used; 0: all",
            extra={"unit": "bytes"},
        ),
    ] = 0
    write_rate: Annotated[
        float,
        Meta(ge=0, le=100000, description="disk requests per second; 0: as fast as they go"),
    ] = 200.0
    idle: Annotated[bool, Meta(description="no disk requests at all")] = False
    read_ratio: Annotated[
        float, Meta(ge=0, le=0.99, description="share of requests that read and verify")
    ] = 0.2
    part_ratio: Annotated[
        float, Meta(ge=0, le=0.99, description="share of requests for a part of a 4 KiB block")
    ] = 0.3
    memory_rate: Annotated[
        float, Meta(ge=0, le=1e6, description="memory pages touched per second, if paced")
    ] = 500.0
    memory_set: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 30,
            multiple_of=4096,
            description="bytes of memory that are touched",
            extra={"unit": "bytes"},
        ),
    ] = 8 << 20
    memory_fill: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 31,
            multiple_of=4096,
            description="bytes of memory that hold numbers besides",
            extra={"unit": "bytes"},
        ),
    ] = 8 << 20
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="start of the random numbers")] = 1


def make_program(options: QemuTrialOptions, disk_size: int) -> Program:
    """The guest's parameters.

    Raises:
        InputError: the disk has no whole blocks or too many, or the memory is too small.

    """
    if disk_size % SIZE or not 16 * SIZE <= disk_size <= 1 << 36:
        raise InputError(f"disk size {disk_size}: whole 4 KiB blocks, 64 KiB to 64 GiB, are needed")
    sectors = disk_size // SECTOR
    touch = _TABLE + -(-4 * sectors * options.disks // 4096) * 4096
    noise = touch + options.memory_set
    end = noise + options.memory_fill
    if end > options.memory - _FIRMWARE:
        raise InputError(
            f"memory {options.memory}: for such disks and such memory_set and memory_fill "
            f"{end + _FIRMWARE} bytes are needed"
        )
    ticks = TICKS / _DIVISOR
    touched = -int(-options.memory_rate // ticks)
    full_speed = not options.write_rate and not options.idle
    blocks = (options.working_set or disk_size) // SIZE - FIRST_BLOCK
    return Program(
        sectors=sectors,
        blocks=max(1, min(blocks, disk_size // SIZE - FIRST_BLOCK)),
        seed=options.seed,
        filled=int(sectors * options.prefill),
        disks=options.disks,
        reads=int(256 * options.read_ratio),
        parts=int(256 * options.part_ratio),
        touch=(touch, noise),
        noise=end,
        table=_TABLE,
        divisor=_DIVISOR,
        full_speed=full_speed,
        rate=0 if options.idle else int(options.write_rate / ticks * 65536),
        touched=min(1, touched) if full_speed else touched,
    )
