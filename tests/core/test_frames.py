"""Data frames: there and back, test vectors, and nothing but `ProtocolError` for the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from meshpeer.core import frames
from meshpeer.core.frames import (
    FIRST,
    LAST,
    MAX_CHANNEL,
    MAX_CHANNELS,
    MAX_COUNT,
    MAX_FRAME,
    MAX_PART,
    MIN_PART,
    OVERHEAD,
    Ack,
    Bye,
    Channel,
    Frame,
    Limit,
    Open,
    Part,
    Parts,
    Ping,
    Pong,
    Resume,
    Role,
    Run,
    Start,
    decode,
    decode_message,
    encode,
    encode_message,
    encode_parts,
    is_last,
    run_head,
)
from meshpeer.core.values import Kind
from meshpeer.errors import ProtocolError
from tests.docs.vectors import FRAMES, described, render

VECTORS = json.loads(FRAMES.read_text(encoding="utf-8"))


def varint(value: int) -> bytes:
    """As docs/protocol.md has it."""
    out = b""
    while value >= 128:
        out, value = out + bytes((value % 128 + 128,)), value // 128
    return out + bytes((value,))


def part_bytes(part: Part) -> bytes:
    """As docs/protocol.md has it."""
    out = bytes((part.flags,))
    if part.flags & FIRST and not part.flags & LAST:
        out += varint(part.total)
    if part.flags & FIRST and part.role is not Role.PLAIN:
        out += varint(part.number)
    return out + varint(len(part.payload)) + part.payload


def encoded(frame: Frame) -> bytes:
    """The bytes of any frame."""
    if isinstance(frame, Parts):
        return encode_parts(
            run_head(channel, seq, len(parts)) + b"".join(map(part_bytes, parts))
            for channel, seq, parts in frame.runs
        )
    return encode(frame)


def refused(data: bytes) -> tuple[str | None, str | None]:
    """Code and field."""
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    return caught.value.code, caught.value.field


# --- test vectors ---------------------------------------------------------------------------------


def test_the_vectors_are_what_the_code_makes() -> None:
    assert FRAMES.read_text(encoding="utf-8") == render(), "run `make docs`"


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_good_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frame = decode(data)
    assert described(frame) == vector["frame"]
    assert encoded(frame) == data


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_bad_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"]) + bytes(vector["zeros"])
    assert refused(data) == (vector["code"], vector["field"])


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["name"])
def test_message_vectors(vector: dict[str, Any]) -> None:
    kind, role = Kind[vector["kind"].upper()], Role[vector["role"].upper()]
    payload = bytes.fromhex(vector["hex"]) * vector["times"]
    at = 0
    for (part, charge), told in zip(
        encode_message(kind, payload, role, vector["number"]), vector["parts"], strict=True
    ):
        piece = payload[at : at + told["payload"]]
        assert (part, charge) == (bytes.fromhex(told["head"]) + piece, told["charge"])
        at += len(piece)
    assert at == len(payload)


def test_every_type_has_vectors() -> None:
    types = {vector["frame"]["type"] for vector in VECTORS["good"]}
    assert types == {"parts", "resume", "start", "open", "ack", "ping", "pong", "bye"}


# --- there and back -------------------------------------------------------------------------------

counts = st.integers(0, MAX_COUNT) | st.sampled_from((0, 127, 128, 2**32, MAX_COUNT))
names = st.text(min_size=1, max_size=MAX_CHANNEL).filter(
    lambda name: len(name.encode()) <= MAX_CHANNEL
)
limits = st.lists(st.builds(Limit, counts, counts, counts), max_size=5)
others: st.SearchStrategy[Resume | Start | Open | Ack | Ping | Pong | Bye] = st.one_of(
    st.builds(Resume, counts, st.booleans(), counts, counts, counts, limits),
    st.builds(Start, counts, st.lists(st.builds(Channel, counts, counts, counts, names))),
    st.builds(Open, counts, names),
    st.builds(Ack, limits),
    st.builds(Ping, counts),
    st.builds(Pong, counts),
    st.just(Bye()),
)
roles = st.sampled_from([(Role.PLAIN, 0)]) | st.tuples(
    st.sampled_from((Role.REQUEST, Role.REPLY, Role.ERROR)), st.integers(1, MAX_COUNT)
)


@given(others)
@example(Start(MAX_COUNT, [Channel(n, MAX_COUNT, MAX_COUNT, "x" * 255) for n in range(200)]))
def test_frames_there_and_back(frame: Resume | Start | Open | Ack | Ping | Pong | Bye) -> None:
    data = encode(frame)
    if len(data) > MAX_FRAME:
        assert isinstance(frame, Start)
        assert len(frame.channels) > MAX_CHANNELS
    else:
        assert decode(data) == frame


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(Kind),
    roles,
    st.sampled_from((0, 1, 126, 127, 128, MAX_PART - 1, MAX_PART, MAX_PART + 1, 3 * MAX_PART)),
    st.integers(0, 3),
)
def test_messages_there_and_back(
    kind: Kind, role_and_number: tuple[Role, int], size: int, more: int
) -> None:
    role, number = role_and_number
    assume(role is not Role.ERROR or kind is Kind.TEXT)
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256 + more)
    made = encode_message(kind, payload, role, number)
    assert decode_message([part for part, _ in made]) == (kind, role, payload)
    assert sum(charge for _, charge in made) == len(payload) + OVERHEAD
    assert [is_last(part) for part, _ in made] == [False] * (len(made) - 1) + [True]
    read: list[Part] = []
    for seq, (data, charge) in enumerate(made):
        frame = decode(encode_parts((run_head(7, seq, 1), data)))
        assert isinstance(frame, Parts)
        ((channel, at, (part,)),) = frame.runs
        assert (channel, at) == (7, seq)
        assert charge == len(part.payload) + (OVERHEAD if part.flags & FIRST else 0)
        assert part_bytes(part) == data
        read.append(part)
    first = read[0]
    assert (first.kind, first.role, first.number) == (kind, role, number)
    assert first.total == (len(payload) if len(read) > 1 else 0)
    assert all(len(part.payload) == MAX_PART for part in read[:-1]), "as few as may be"
    assert [part.flags for part in read[1:]] == [0] * (len(read) - 2) + [LAST] * (len(read) > 1)


@pytest.mark.parametrize("kind", [Kind.BYTES, Kind.JSON])
@pytest.mark.parametrize("size", [2, MAX_PART + 1])
def test_an_error_is_text(kind: Kind, size: int) -> None:
    part = encode_message(kind, b"x" * size, Role.ERROR, 1)[0][0]
    assert refused(encode_parts((run_head(0, 0, 1), part))) == ("bad_frame", "flags")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(counts, counts, st.lists(st.binary(max_size=300), min_size=1, max_size=200)),
        min_size=1,
        max_size=4,
    )
)
def test_runs_there_and_back(runs: list[tuple[int, int, list[bytes]]]) -> None:
    pieces: list[bytes] = []
    for channel, seq, payloads in runs:
        pieces.append(run_head(channel, seq, len(payloads)))
        pieces += [encode_message(Kind.BYTES, payload)[0][0] for payload in payloads]
    data = encode_parts(pieces)
    if len(data) > MAX_FRAME:
        assert refused(data) == ("bad_frame", "size")
        return
    frame = decode(data)
    assert frame == Parts(
        [
            Run(channel, seq, [Part(FIRST | LAST, 0, 0, payload) for payload in payloads])
            for channel, seq, payloads in runs
        ]
    )


def test_as_many_channels_as_one_side_may_use_fit_into_a_start() -> None:
    longest = Channel(MAX_CHANNELS - 1, MAX_COUNT, MAX_COUNT, "n" * MAX_CHANNEL)
    assert len(encode(Start(MAX_COUNT, [longest] * MAX_CHANNELS))) <= MAX_FRAME


# --- what is malformed ----------------------------------------------------------------------------


def several(size: int = MIN_PART) -> bytes:
    """A frame with every kind of part in it."""
    return encoded(
        Parts(
            [
                Run(0, 300, [Part(0x03, 0, 0, b"abc"), Part(0x17, 0, 9, b"de")]),
                Run(200, 5, [Part(0x01, 2 * size, 0, b"x" * size), Part(0x02, 0, 0, b"x" * size)]),
                Run(1, 0, [Part(0x35, 999_999, 300, b"y" * size), Part(0x00, 0, 0, b"y" * size)]),
            ]
        )
    )


WHOLE: list[bytes] = [
    several(),
    encode(Resume(300, True, 1 << 24, 200, 1 << 19, [Limit(0, 500, 70_000), Limit(1, 0, 1 << 19)])),
    encode(Start(300, [Channel(0, 500, 70_000, "default"), Channel(1, 0, 0, "chännel")])),
    encode(Open(300, "chännel")),
    encode(Ack([Limit(0, 500, 70_000), Limit(300, 0, 1 << 19)])),
    encode(Ping(2**31)),
    encode(Pong(2**31)),
    encode(Bye()),
]


@pytest.mark.parametrize("data", WHOLE, ids=lambda data: f"{data[0]:#x}")
def test_a_frame_cut_anywhere_is_refused(data: bytes) -> None:
    decode(data)
    # A frame of parts has no count of its runs: one that ends between two is whole.
    whole = {len(encoded(Parts(runs))) for runs in _beginnings(decode(data))}
    for size in range(len(data)):
        if size in whole:
            decode(data[:size])
        else:
            assert refused(data[:size])[0] == "bad_frame", size


def _beginnings(frame: Frame) -> list[list[Run]]:
    return [frame.runs[:n] for n in range(1, len(frame.runs))] if isinstance(frame, Parts) else []


@pytest.mark.parametrize("data", WHOLE, ids=lambda data: f"{data[0]:#x}")
def test_bytes_behind_a_frame_are_refused(data: bytes) -> None:
    for more in (b"\x00", b"\x01", b"\x80", b"\xff"):
        assert refused(data + more)[0] == "bad_frame"


@pytest.mark.parametrize("data", WHOLE, ids=lambda data: f"{data[0]:#x}")
def test_of_every_frame_there_is_one_spelling(data: bytes) -> None:
    """Whatever byte is another one: it is another frame, or none."""
    for at in range(len(data)):
        if data[at : at + 1] in (b"x", b"y"):
            continue  # what the application sent
        for value in {0, 1, 2, 3, 0x40, 0x7F, 0x80, 0xFF, data[at] ^ 0x80, data[at] ^ 1}:
            other = data[:at] + bytes((value,)) + data[at + 1 :]
            try:
                frame = decode(other)
            except ProtocolError:
                continue
            assert encoded(frame) == other


@pytest.mark.parametrize(
    ("number", "taken"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\x80\x01", 128),
        (b"\xff\xff\xff\xff\xff\xff\xff\x0f", MAX_COUNT),
        (b"\x80\x80\x80\x80\x80\x80\x80\x10", None),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", None),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"\xff" * 30, None),
        (b"\x80" * 7 + b"\x00", None),
        (b"\x80\x00", None),
        (b"\xff\x00", None),
        (b"\x80", None),
        (b"", None),
    ],
    ids=repr,
)
def test_numbers(number: bytes, taken: int | None) -> None:
    fields = [
        (bytes((0x16,)), b""),
        (bytes((0x17,)), b""),
        (bytes((0x12, 0x00)), b"\x01\x01\x01\x00"),
        (bytes((0x13,)), b"\x00"),
        (bytes((0x14,)), b"\x01a"),
        (bytes((0x15, 0x01)), b"\x00\x00"),
        (bytes((0x15, 0x01, 0x00)), b"\x00"),
        (bytes((0x15, 0x01, 0x00, 0x00)), b""),
        (bytes((0x11,)), b"\x00\x01\x03\x00"),
        (bytes((0x11, 0x00)), b"\x01\x03\x00"),
    ]
    for before, behind in fields:
        if taken is None:
            assert refused(before + number + behind)[0] == "bad_frame"
        else:
            decode(before + number + behind)
    if taken is not None:
        assert decode(b"\x16" + number) == Ping(taken)


@pytest.mark.parametrize(
    "first", [b"\x11\x00\x00", b"\x12\x00\x01\x01\x01\x01", b"\x13\x01", b"\x15"]
)
@pytest.mark.parametrize("count", [1000, 2**31, MAX_COUNT])
def test_a_count_that_lies_costs_nothing(
    first: bytes, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is read, or made room for."""
    read: list[int] = []
    real = frames._read_count

    def counted(data: bytes, at: int, field: str) -> tuple[int, int]:
        read.append(at)
        return real(data, at, field)

    monkeypatch.setattr(frames, "_read_count", counted)
    code, field = refused(first + varint(count) + b"\x00" * 1998)
    assert (code, field) in {("bad_frame", name) for name in ("count", "limits", "channels")}
    assert len(read) <= 5


@settings(max_examples=800, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.integers(0x11, 0x18), st.binary(max_size=40)).map(
            lambda pair: bytes((pair[0],)) + pair[1]
        ),
        st.tuples(st.sampled_from(WHOLE), st.integers(0, 3000), st.binary(max_size=4)).map(
            lambda it: it[0][: it[1]] + it[2] + it[0][it[1] + len(it[2]) :]
        ),
    )
)
@example(b"")
@example(b"\x11" * (MAX_FRAME + 1))
@example(b"\x11\x00\x00\x80\x80\x02" + b"\x03\x00" * 32_000)
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    try:
        frame = decode(data)
    except ProtocolError:
        assert refused(data)[0] == "bad_frame"
    else:
        assert encoded(frame) == data
