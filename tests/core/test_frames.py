"""Data frames: there and back, golden vectors, and nothing but `ProtocolError` for the rest."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshpeer.core.frames import (
    MAX_CHANNEL,
    MAX_FRAME,
    MAX_VALUE_DEPTH,
    Bye,
    Credit,
    Data,
    Frame,
    Kind,
    More,
    Ping,
    Pong,
    check_value,
    decode,
    decode_value,
    encode_bye,
    encode_credit,
    encode_message,
    encode_ping,
    encode_pong,
    encode_value,
)
from meshpeer.errors import InvalidData, ProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text())


def described(frame: Frame) -> dict[str, Any]:
    """A frame in the words of the vectors."""
    match frame:
        case Data(kind, channel, payload, last):
            return {
                "type": "data",
                "kind": kind.name.lower(),
                "channel": channel,
                "payload": payload.hex(),
                "last": last,
            }
        case More(payload, last):
            return {"type": "more", "payload": payload.hex(), "last": last}
        case Ping(nonce):
            return {"type": "ping", "nonce": nonce}
        case Pong(nonce):
            return {"type": "pong", "nonce": nonce}
        case Credit(limit, max_message):
            return {"type": "credit", "limit": limit, "max_message": max_message}
        case Bye():
            return {"type": "bye"}


def encoded(frame: Frame) -> bytes:
    """The bytes of a frame that is not part of a message."""
    match frame:
        case Ping(nonce):
            return encode_ping(nonce)
        case Pong(nonce):
            return encode_pong(nonce)
        case Credit(limit, max_message):
            return encode_credit(limit, max_message)
        case Bye():
            return encode_bye()
        case Data(kind, channel, payload, True):
            (only,) = encode_message(kind, channel, payload)
            return only
    raise AssertionError(frame)


# --- golden vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_good_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frame = decode(data)
    assert described(frame) == vector["frame"]
    if not isinstance(frame, More) and vector["frame"].get("last", True):
        assert encoded(frame) == data


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_bad_vectors(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(bytes.fromhex(vector["hex"]) * vector.get("times", 1))
    assert caught.value.code == "bad_frame"
    assert caught.value.field == vector["field"]


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["name"])
def test_message_vectors(vector: dict[str, Any]) -> None:
    """What a message is cut into: of each frame its size, and its beginning up to the payload."""
    payload = bytes.fromhex(vector["payload"]) * vector["times"]
    frames = list(encode_message(Kind[vector["kind"].upper()], vector["channel"], payload))
    assert [
        (len(f), f[: len(v["head"]) // 2].hex())
        for f, v in zip(frames, vector["frames"], strict=True)
    ] == [(v["size"], v["head"]) for v in vector["frames"]]


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["name"])
def test_value_vectors(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"])
    kind = Kind[vector["kind"].upper()]
    if vector.get("bad"):
        with pytest.raises(ProtocolError) as caught:
            check_value(kind, payload)
        assert caught.value.code == "bad_message"
        return
    check_value(kind, payload)
    value = bytes.fromhex(vector["value"]) if kind is Kind.BYTES else vector["value"]
    assert decode_value(kind, payload) == value
    assert encode_value(value) == (kind, payload)


# --- there and back -------------------------------------------------------------------------------

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


@settings(max_examples=50)
@given(
    st.sampled_from(Kind),
    st.text(max_size=MAX_CHANNEL).filter(lambda name: len(name.encode()) <= MAX_CHANNEL),
    st.sampled_from((0, 1, 65_000, 65_273, 65_278, 65_532, 65_533, 65_534, 131_067, 300_000)),
    st.integers(0, 10),
)
def test_messages_there_and_back(kind: Kind, channel: str, size: int, more: int) -> None:
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256 + more)
    frames = list(encode_message(kind, channel, payload))
    assert all(len(frame) <= MAX_FRAME for frame in frames)
    assert all(len(frame) == MAX_FRAME for frame in frames[:-1]), "as few as may be"
    first, *rest = (decode(frame) for frame in frames)
    assert isinstance(first, Data)
    assert (first.kind, first.channel) == (kind, channel)
    parts = [first.payload]
    for frame in rest:
        assert isinstance(frame, More)
        parts.append(frame.payload)
    assert b"".join(parts) == payload
    lasts = [frame.last for frame in (first, *rest) if isinstance(frame, Data | More)]
    assert lasts == [False] * (len(frames) - 1) + [True]


@given(
    st.one_of(
        st.builds(Ping, st.integers(0, 2**32 - 1)),
        st.builds(Pong, st.integers(0, 2**32 - 1)),
        st.builds(Credit, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
        st.just(Bye()),
    )
)
def test_frames_there_and_back(frame: Frame) -> None:
    assert decode(encoded(frame)) == frame


# --- what is malformed ----------------------------------------------------------------------------


@settings(max_examples=2000)
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda b: b"\x11" + b)))
@example(b"")
@example(b"\x11\x81\x03ab")
@example(bytes(MAX_FRAME + 1))
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    try:
        frame = decode(data)
    except ProtocolError:
        return
    # What is taken has one spelling only.
    match frame:
        case Data(kind, channel, payload, last):
            name = channel.encode()
            head = bytes((0x11, kind | (0x80 if last else 0), len(name)))
            assert data == head + name + payload
        case More(payload, last):
            assert data == bytes((0x12, 0x80 if last else 0)) + payload
        case _:
            assert data == encoded(frame)


@pytest.mark.parametrize(
    "frame", [Ping(1), Pong(2**32 - 1), Credit(1 << 40, 1 << 20), Bye()], ids=type
)
def test_cut_short_or_too_long_is_refused_at_every_byte(frame: Frame) -> None:
    data = encoded(frame)
    for wrong in [data[:size] for size in range(len(data))] + [data + b"\x00"]:
        with pytest.raises(ProtocolError) as caught:
            decode(wrong)
        assert caught.value.field == "size"


def test_a_message_frame_cut_within_its_header_is_refused() -> None:
    (data,) = encode_message(Kind.TEXT, "chännel", b"payload")
    header = 3 + len("chännel".encode())
    for size in range(len(data)):
        if size < header:
            with pytest.raises(ProtocolError):
                decode(data[:size])
        else:
            cut = decode(data[:size])
            assert isinstance(cut, Data)
            assert cut.payload == b"payload"[: size - header]


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
