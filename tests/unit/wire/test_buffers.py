"""Buffers that are given again once nobody holds a view of them."""

from __future__ import annotations

import threading

import numpy as np

from vmferry.units import KIB, MIB
from vmferry.wire.buffers import Buffers


def address(view: memoryview) -> int:
    place: int = np.frombuffer(view, np.uint8).ctypes.data
    return place


def test_a_buffer_has_the_size_asked_for_and_can_be_written() -> None:
    buffers = Buffers()
    for size in (0, 1, 64 * KIB - 1, 64 * KIB, MIB + 1):
        view = buffers.allocate(size)
        assert (view.nbytes, view.format, view.readonly) == (size, "B", False)


def test_a_buffer_nobody_holds_is_given_again_for_less_as_well() -> None:
    buffers = Buffers()
    first = buffers.allocate(MIB)
    place = address(first)
    del first
    assert address(buffers.allocate(MIB)) == place
    assert address(buffers.allocate(512 * KIB)) == place


def test_while_any_view_lives_its_memory_is_nobody_elses() -> None:
    buffers = Buffers()
    whole = buffers.allocate(MIB)
    slices = [whole[100:200], np.frombuffer(whole, np.uint8)[5:]]
    whole[:] = b"\xaa" * MIB
    del whole
    for _ in range(3):
        other = buffers.allocate(MIB)
        other[:] = bytes(MIB)
    assert bytes(slices[0]) == b"\xaa" * 100
    assert (slices[1] == 0xAA).all()


def test_beyond_the_limit_memory_is_new_and_not_kept() -> None:
    buffers = Buffers(most=2 * MIB)
    held = [buffers.allocate(MIB) for _ in range(4)]
    assert len({address(view) for view in held}) == 4
    del held
    assert buffers.kept == 2 * MIB


def test_free_buffers_that_are_too_small_make_room_for_larger_ones() -> None:
    buffers = Buffers(most=2 * MIB)
    small = [buffers.allocate(256 * KIB) for _ in range(8)]
    assert buffers.kept == 2 * MIB
    del small[1:]
    large = buffers.allocate(MIB)
    assert buffers.kept == MIB + 256 * KIB
    place = address(large)
    del large
    assert address(buffers.allocate(MIB)) == place


def test_trimming_gives_back_what_is_free_and_leaves_what_is_held() -> None:
    buffers = Buffers()
    held, free = buffers.allocate(MIB), buffers.allocate(MIB)
    del free
    buffers.trim()
    assert buffers.kept == MIB
    assert address(buffers.allocate(MIB)) != address(held)


def test_threads_never_share_a_buffer() -> None:
    buffers = Buffers(most=4 * MIB)
    broken: list[int] = []

    def use(mark: int) -> None:
        for _ in range(200):
            view = buffers.allocate(128 * KIB)
            view[:8] = view[-8:] = bytes([mark]) * 8
            if bytes(view[:8]) + bytes(view[-8:]) != bytes([mark]) * 16:
                broken.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
