import socket
import struct
import threading
from collections import deque

import pytest

from vmferry.api.transport import Limits
from vmferry.errors import ConnectionLost, ProtocolError
from vmferry_transports.tcp.frames import END, FrameParser, data_header
from vmferry_transports.tcp.link import Link

LIMITS = Limits(head=100_000, payload=1 << 20)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


class Reading:
    """Reads frames from a link as a thread does."""

    def __init__(self, link, limits):
        self.link, self.parser, self.frames = link, FrameParser(limits), deque()

    def read(self):
        while not self.frames:
            receive = self.link.fill if self.parser.large else self.link.receive
            self.frames.extend(self.parser.took(receive(self.parser.room)))
        return self.frames.popleft()


def reader(sock, limits=LIMITS):
    return Reading(Link(sock), limits)


@pytest.mark.parametrize("head", [0, 1, 16_371, 16_384, 16_385, 100_000])
@pytest.mark.parametrize("payload", [0, 1, 16_000, 1 << 20])
def test_frames_of_all_sizes(ends, head, payload):
    frame = data_header(head, payload) + b"h" * head + b"p" * payload
    sender = threading.Thread(target=lambda: (ends[1].sendall(frame * 3), ends[1].sendall(END)))
    sender.start()
    reading = reader(ends[0])
    for _ in range(3):
        found = reading.read()
        assert bytes(found.head) == b"h" * head
        assert bytes(found.payload) == b"p" * payload
    assert reading.read() is None
    sender.join()


def test_many_small_frames_in_one_read(ends):
    frames = b"".join(data_header(3, 2) + b"%03d" % n + b"ab" for n in range(900))
    ends[1].sendall(frames + END)
    reading = reader(ends[0])
    assert [bytes(reading.read().head) for _ in range(900)] == [b"%03d" % n for n in range(900)]
    assert reading.read() is None


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (struct.pack("!HHII", 0x5647, 1, 0, 0), "no frame: magic 0x5647, kind 1"),
        (struct.pack("!HHII", 0x5646, 3, 0, 0), "kind 3"),
        (struct.pack("!HHII", 0x5646, 2, 1, 0), "end of a lane with a head"),
        (data_header(100_001, 0), "head of 100001 bytes; the limit is 100000"),
        (data_header(0, (1 << 20) + 1), "payload of 1048577 bytes; the limit is 1048576"),
        (data_header(0, 0xFFFFFFFF), "payload of 4294967295 bytes"),
    ],
)
def test_bad_headers_are_refused_before_anything_is_allocated(ends, header, text):
    def allocate(size):
        raise AssertionError(size)

    ends[1].sendall(header)
    with pytest.raises(ProtocolError, match=text):
        reader(ends[0], Limits(head=100_000, payload=1 << 20, allocate=allocate)).read()


@pytest.mark.parametrize("length", [0, 5, 12, 15, 20, 69_999])
def test_a_stream_that_stops_short_is_lost(ends, length):
    whole = data_header(10, 100_000) + bytes(100_010)
    ends[1].sendall(whole[:length])
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="the peer ended the connection"):
        reader(ends[0]).read()


def test_a_buffer_of_another_size_is_refused(ends):
    ends[1].sendall(data_header(0, 10) + bytes(10))
    limits = Limits(allocate=lambda size: memoryview(bytearray(size + 1)))
    with pytest.raises(ConnectionLost, match=r"allocate\(10\) gave a buffer of 11"):
        reader(ends[0], limits).read()
