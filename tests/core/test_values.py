"""Values: there and back, and nothing but `ProtocolError` for what is no value."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshpeer.core.values import MAX_VALUE_DEPTH, Kind, check_value, decode_value, encode_value
from meshpeer.errors import InvalidData, ProtocolError
from tests.docs.vectors import FRAMES

VECTORS = json.loads(FRAMES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["name"])
def test_value_vectors(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"])
    kind = Kind[vector["kind"].upper()]
    check_value(kind, payload)
    value = bytes.fromhex(vector["value"]) if kind is Kind.BYTES else vector["value"]
    assert decode_value(kind, payload) == value
    assert encode_value(value) == (kind, payload)


@pytest.mark.parametrize("vector", VECTORS["bad_values"], ids=lambda vector: vector["name"])
def test_bad_value_vectors(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"]) * vector["times"]
    with pytest.raises(ProtocolError) as caught:
        check_value(Kind[vector["kind"].upper()], payload)
    assert (caught.value.code, caught.value.field) == (vector["code"], vector["field"])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
).filter(lambda value: not isinstance(value, str))


@given(st.one_of(st.text(), st.binary(), json_values))
def test_values_there_and_back(value: Any) -> None:
    kind, payload = encode_value(value)
    check_value(kind, payload)
    assert decode_value(kind, payload) == value


def decodes(kind: Kind, payload: bytes) -> bool:
    """What `check_value` is to tell without decoding."""
    try:
        decode_value(kind, payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


TOKENS = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\u", b"d800", b" ", b"null", b"true"]
TOKENS += [b"0", b"-", b"1", b".", b"e", b"E+", b"400", b"9" * 300, b"\xc3", b"\xa9", b'"a"', b"\n"]


@settings(max_examples=1000)
@given(
    st.sampled_from(Kind),
    st.binary(max_size=30) | st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join),
)
@example(Kind.JSON, b"1e999")
@example(Kind.JSON, b"[0,-10E308]")
@example(Kind.JSON, b"[1e308,1e-999,-1e+0100]")
@example(Kind.JSON, b'{"1e999":"' + b"9" * 5_000 + b'"}')
@example(Kind.JSON, b'["\\\\",1e999,"\\"",""]')
@example(Kind.JSON, b'["\\"1e999",1]')
@example(Kind.JSON, b"9" * 4_300)
@example(Kind.JSON, b"9" * 4_301)
@example(Kind.JSON, b"[" + b"9" * 250 + b"e90]")
@example(Kind.JSON, b"0." + b"1" * 5_000)
@example(Kind.JSON, b'"\\ud800"')
@example(Kind.JSON, b'"\xff"')
@example(Kind.JSON, b'{"\xed\xa0\x80":1}')
@example(Kind.JSON, b'{"a":1}{"b":2}')
@example(Kind.JSON, b"[" * 60_000)
@example(Kind.TEXT, b"\xed\xa0\x80")
def test_what_is_checked_decodes_and_the_rest_is_a_protocol_error(
    kind: Kind, payload: bytes
) -> None:
    try:
        check_value(kind, payload)
    except ProtocolError:
        assert not decodes(kind, payload)
    else:
        assert decodes(kind, payload)


def nested(depth: int, inner: bytes = b"") -> bytes:
    return b'{"a":' * (depth - 1) + b"[" + inner + b"]" + b"}" * (depth - 1)


@pytest.mark.parametrize(
    "inner",
    [b"", b'"' + b"[" * 1000 + b'\\"{"', b"[]," * 1000 + b"{}", b'"' + b"x" * 65_530 + b'","[]"'],
    ids=["plain", "brackets in a string", "brackets beside", "over two chunks"],
)
def test_a_json_value_may_be_nested_so_deep_and_no_deeper(inner: bytes) -> None:
    room = 1 if inner.startswith(b"[") else 0
    deepest = nested(MAX_VALUE_DEPTH - room, inner)
    check_value(Kind.JSON, deepest)
    data = decode_value(Kind.JSON, deepest)
    assert decode_value(*encode_value(data)) == data
    for deeper in (nested(MAX_VALUE_DEPTH - room + 1, inner), b"[" * 100_000 + b"]" * 100_000):
        with pytest.raises(ProtocolError, match="nested deeper than 512") as caught:
            check_value(Kind.JSON, deeper)
        assert (caught.value.code, caught.value.field) == ("too_deep", "payload")
    with pytest.raises(InvalidData, match="nested deeper than 512"):
        encode_value([data])


def test_a_check_takes_no_more_memory_than_a_few_times_the_payload() -> None:
    payload = b"[" + b'{"":1},[],' * 100_000 + b"1e300]"
    tracemalloc.start()
    try:
        check_value(Kind.JSON, payload)
        checked = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        decode_value(Kind.JSON, payload)
        decoded = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert checked < 4 * len(payload) < decoded


@pytest.mark.parametrize(
    "data",
    [
        object(),
        {"a": object()},
        "\ud800",
        ["\ud800"],
        10**5000,
        {1: {("a", "b"): 1}},
    ],
    ids=lambda data: type(data).__name__,
)
def test_what_cannot_be_sent_is_refused_when_it_is_sent(data: object) -> None:
    with pytest.raises(InvalidData, match="can't be sent"):
        encode_value(data)


def test_nested_without_end_is_refused_when_it_is_sent() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidData):
        encode_value(loop)
