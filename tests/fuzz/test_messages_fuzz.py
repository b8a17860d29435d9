"""Hostile heads: whatever bytes come, the answer is a message or a ``ProtocolError``."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import ProtocolError
from vmferry.wire.codec import decode, summed
from vmferry.wire.extents import unseal
from vmferry.wire.messages import MESSAGES, Extent, Message

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""

NAMES = [message.__name__ for message in MESSAGES]
FIELDS = sorted({field for message in MESSAGES for field in message.__struct_fields__})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.binary(max_size=300))
@settings(max_examples=400 * EFFORT, deadline=None)
def test_any_bytes(head: bytes) -> None:
    for given_head in (head, summed(head)):
        with contextlib.suppress(ProtocolError):
            assert isinstance(decode(given_head), Message)


@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8))
@settings(max_examples=600 * EFFORT, deadline=None)
def test_any_fields(name: str, fields: dict[str, Any]) -> None:
    head = summed(msgpack.packb({"t": name, **fields}))
    with contextlib.suppress(ProtocolError):
        assert type(decode(head)).__name__ == name


@given(
    st.builds(
        Extent,
        disk=st.integers(0, 3),
        offset=st.integers(0, 1 << 20),
        length=st.integers(1, 1 << 30),
        digest=st.binary(max_size=32),
        codec=st.integers(0, 255),
        zero=st.booleans(),
    ),
    st.binary(max_size=200),
)
@settings(max_examples=400 * EFFORT, deadline=None)
def test_any_payload(extent: Extent, payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert unseal(extent, payload) is None
