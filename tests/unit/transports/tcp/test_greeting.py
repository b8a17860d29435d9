"""The greeting's layout."""

import struct

from vmferry.api.transport import Address
from vmferry_transports.tcp.frames import data_header
from vmferry_transports.tcp.greeting import Greeting

LOCAL = Address.parse("tcp://127.0.0.1")


def test_the_greetings_layout_is_kept():
    greeting = Greeting(session=bytes(range(16)), lane=1, lanes=3)
    assert greeting.encode() == b"vmferry\0\0\1\0\0" + bytes(range(16)) + b"\0\1\0\3"
    assert Greeting.decode(greeting.encode()) == greeting
    assert data_header(5, 7) == struct.pack("!HHII", 0x5646, 1, 5, 7)
