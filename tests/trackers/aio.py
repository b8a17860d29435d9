"""Writes by io_submit(2): when it has returned, the block layer has the request."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import struct
from typing import NamedTuple

import pytest
from aligned import Aligned

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_PWRITE, _RESFD = 1, 1  # IOCB_CMD_PWRITE, IOCB_FLAG_RESFD
_DEPTH = 128

libc = ctypes.CDLL(None, use_errno=True)


class Flight(NamedTuple):
    offset: int
    length: int
    buffer: Aligned
    address: ctypes.Array[ctypes.c_char]
    told: asyncio.Future[None]


class AsyncWrites:
    """Writes of one open file."""

    def __init__(self, fd: int) -> None:
        if platform.machine() not in _NUMBERS:
            pytest.skip("the system calls for asynchronous I/O are not known for this machine")
        self._setup, self._destroy, self._getevents, self._submit = _NUMBERS[platform.machine()]
        self._fd = fd
        self._context = ctypes.c_ulong(0)
        self._call(self._setup, _DEPTH, ctypes.byref(self._context))
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._flying: dict[int, Flight] = {}
        self._number = 0
        self._room = asyncio.Semaphore(_DEPTH)
        self._loop: asyncio.AbstractEventLoop | None = None

    def in_flight(self) -> list[tuple[int, int]]:
        return [(flight.offset, flight.length) for flight in self._flying.values()]

    async def write(self, offset: int, data: bytes) -> None:
        """Returns when the kernel has said that it is written."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._event, self._reap)
        async with self._room:
            await self._begin(offset, data)

    def _begin(self, offset: int, data: bytes) -> asyncio.Future[None]:
        self._number += 1
        buffer = Aligned(data)
        address = (ctypes.c_char * len(data)).from_buffer(buffer.view)
        flight = Flight(offset, len(data), buffer, address, asyncio.Future())
        self._flying[self._number] = flight
        block = ctypes.create_string_buffer(
            struct.pack(
                "QiiHhIQQqQII",
                *(self._number, 0, 0, _PWRITE, 0, self._fd),
                *(ctypes.addressof(address), len(data), offset, 0, _RESFD, self._event),
            )
        )
        pointer = ctypes.c_void_p(ctypes.addressof(block))
        self._call(self._submit, self._context, 1, ctypes.byref(pointer))
        return flight.told

    def _reap(self) -> None:
        os.eventfd_read(self._event)
        events = ctypes.create_string_buffer(32 * _DEPTH)
        count = self._call(self._getevents, self._context, 0, _DEPTH, events, None)
        for number, _, result, _ in struct.iter_unpack("QQqq", events.raw[: 32 * count]):
            self._end(self._flying.pop(number), result)

    def _end(self, flight: Flight, result: int) -> None:
        if flight.told.cancelled():
            return
        if result == flight.length:
            flight.told.set_result(None)
        else:
            flight.told.set_exception(OSError(-min(result, 0), f"{result} bytes were written"))

    def close(self) -> None:
        """Waits for what is in flight."""
        if self._loop is not None:
            self._loop.remove_reader(self._event)
        self._call(self._destroy, self._context)
        os.close(self._event)

    def _call(self, number: int, *arguments: object) -> int:
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"system call {number} failed")
        return int(result)
