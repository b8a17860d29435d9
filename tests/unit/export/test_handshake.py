from __future__ import annotations

import asyncio
import struct

import pytest

from vmferry.export.nbd import Limits

ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG = (0x80000000 + n for n in (1, 2, 3, 6, 9))


def name_data(name, rest=b""):
    encoded = name.encode()
    return struct.pack(">I", len(encoded)) + encoded + rest


def queries(name, *wanted):
    body = b"".join(name_data(query) for query in wanted)
    return name_data(name, struct.pack(">I", len(wanted)) + body)


async def test_go_tells_size_flags_and_block_sizes(serve, make_disk):
    async with serve({"d": make_disk(sector_size=4096)}) as bench, bench.client() as client:
        await client.greet()
        answers = await client.go("d", 1, 3)
        assert [answer.kind for answer in answers] == [INFO, INFO, INFO, ACK]
        kind, size, flags = struct.unpack(">HQH", answers[0].data)
        assert (kind, size, flags) == (0, 1 << 20, 0b101101101)
        assert struct.unpack(">HIII", answers[1].data) == (3, 4096, 4096, 32 << 20)
        assert answers[2].data == b"\x00\x01d"
        client.request(3)
        assert await client.simple() == (0, 1)


async def test_structured_replies_offer_the_flag_against_fragments(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        await client.option(8)
        answers = await client.go("d")
        assert struct.unpack(">HQH", answers[0].data)[2] == 0b111101101


async def test_a_read_only_export_offers_no_way_to_write(serve, make_disk):
    async with serve({"d": make_disk()}, read_only=True) as bench, bench.client() as client:
        await client.greet()
        answers = await client.go("d")
        assert struct.unpack(">HQH", answers[0].data)[2] == 0b100001111


async def test_info_does_not_begin_transmission(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        assert (await client.go("d", option=6))[-1].kind == ACK
        assert (await client.go("d"))[-1].kind == ACK


async def test_export_name_without_and_with_padding(serve, make_disk):
    async with serve({"d": make_disk()}) as bench:
        for flags, padding in ((3, 0), (1, 124)):
            async with bench.client() as client:
                await client.greet(flags)
                client.send_option(1, b"d")
                assert await client.unpack(">QH") == (1 << 20, 0b101101101)
                assert await client.reader.readexactly(padding) == bytes(padding)
                client.request(3)
                assert await client.simple() == (0, 1)


async def test_the_empty_name_is_the_only_export(serve, make_disk):
    async with serve({"d": make_disk()}) as bench:
        async with bench.client() as client:
            await client.enter("")
        bench.server.add("e", make_disk())
        async with bench.client() as client:
            await client.greet()
            assert (await client.go(""))[-1].kind == UNKNOWN


async def test_list(serve, make_disk):
    async with serve({"d": make_disk(), "é": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        answers = await client.option(3)
        assert answers[:2] == [(SERVER, name_data("d")), (SERVER, name_data("é"))]
        assert answers[-1].kind == ACK
        assert (await client.option(3, b"x"))[0].kind == INVALID


async def test_abort_ends_the_connection_politely(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        assert (await client.option(2))[0].kind == ACK
        assert await client.gone()


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (5, b"", POLICY),
        (99, b"anything", UNSUP),
        (11, b"", UNSUP),
        (7, name_data("nobody", b"\0\0"), UNKNOWN),
        (7, name_data("d"), INVALID),
        (7, name_data("d", b"\0\1"), INVALID),
        (7, name_data("d", b"\0\0x"), INVALID),
        (7, struct.pack(">I", 4097) + bytes(4099), TOO_BIG),
        (7, struct.pack(">I", 2) + b"\xff\xff\0\0", INVALID),
        (8, b"x", INVALID),
        (9, queries("d"), INVALID),
        (10, queries("d", "base:allocation"), INVALID),
        (99, bytes(65537), TOO_BIG),
    ],
)
async def test_a_refused_option_leaves_the_handshake_going(serve, make_disk, option, data, error):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        assert [answer.kind for answer in await client.option(option, data)] == [error]
        assert (await client.go("d"))[-1].kind == ACK


async def test_meta_contexts(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        await client.option(8)
        for wanted in ((), ("base:",), ("other:", "base:allocation")):
            answers = await client.option(9, queries("d", *wanted))
            assert [a.kind for a in answers] == [META, ACK]
            assert answers[0].data[4:] == b"base:allocation"
        assert [a.kind for a in await client.option(9, queries("d", "x:"))] == [ACK]
        assert [a.kind for a in await client.option(10, queries("d"))] == [ACK]
        assert [a.kind for a in await client.option(9, queries("e"))] == [UNKNOWN]
        lying = name_data("d", struct.pack(">I", 0xFFFFFFFF))
        assert [a.kind for a in await client.option(10, lying)] == [INVALID]


async def test_a_context_counts_for_the_export_it_was_set_for(serve, make_disk):
    async with serve({"d": make_disk(), "e": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        await client.option(8)
        assert len(await client.option(10, queries("e", "base:allocation"))) == 2
        await client.go("d")
        client.request(7, 0, 4096)
        assert await client.error() == 22


@pytest.mark.parametrize(
    "flags", [0, 2, 5, 0x80000001], ids=["oldstyle", "no fixed", "unknown", "high"]
)
async def test_wrong_client_flags_end_the_connection(serve, make_disk, flags):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet(flags)
        assert await client.gone()


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage instead of the magic of an option",
        struct.pack(">QII", 0x49484156454F5054, 7, (1 << 20) + 1),
        struct.pack(">QII", 0x49484156454F5054, 1, 65537),
        struct.pack(">QII", 0x49484156454F5054, 1, 6) + b"nobody",
    ],
    ids=["magic", "huge option", "huge name", "unknown name"],
)
async def test_what_cannot_be_answered_ends_the_connection(serve, make_disk, sent):
    async with serve({"d": make_disk()}) as bench:
        async with bench.client() as client:
            await client.greet()
            client.writer.write(sent)
            assert await client.gone()
        async with bench.client() as client:
            await client.enter()


async def test_endless_options_end_the_connection(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.greet()
        client.writer.write(struct.pack(">QII", 0x49484156454F5054, 99, 0) * 1025)
        assert len(await client.reader.read(-1)) < 1025 * 100


async def test_a_silent_client_is_dropped(serve, make_disk):
    limits = Limits(handshake=0.05)
    async with serve({"d": make_disk()}, limits=limits) as bench, bench.client() as client:
        await client.greet()
        async with asyncio.timeout(60):
            assert await client.gone()


async def test_too_many_clients(serve, make_disk):
    async with serve({"d": make_disk()}, limits=Limits(connections=1)) as bench:
        async with bench.client() as first, bench.client() as second:
            await first.enter()
            assert await second.gone()
        async with asyncio.timeout(60):
            while bench.server._connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with bench.client() as third:
            await third.enter()
