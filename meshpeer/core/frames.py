"""Data frames <-> bytes: what travels in the binary messages of the message channel, and, the same,
through the relay.

The first byte of a frame holds the version (high four bits) and the type (low four bits); whole
numbers are unsigned LEB128. docs/protocol.md specifies the rest byte for byte; tests/vectors has
examples.

A message is cut into parts. They are encoded once, however often they are sent and to however many
peers: what differs, the channel's number and the parts' numbers, stands before a run of parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct

from meshpeer.core.values import Kind
from meshpeer.errors import ProtocolError

__all__ = [
    "FIRST",
    "LAST",
    "MAX_CHANNEL",
    "MAX_CHANNELS",
    "MAX_COUNT",
    "MAX_FRAME",
    "MAX_PART",
    "MIN_PART",
    "OVERHEAD",
    "RESERVED",
    "VERSION",
    "Ack",
    "Bye",
    "Channel",
    "Frame",
    "Limit",
    "Open",
    "Part",
    "Parts",
    "Ping",
    "Pong",
    "Resume",
    "Role",
    "Run",
    "Start",
    "decode",
    "decode_message",
    "encode",
    "encode_message",
    "encode_parts",
    "is_last",
    "request_number",
    "run_head",
]

VERSION = 1
MAX_FRAME = 65_536
"""Bytes of the largest frame: what an endpoint takes that says nothing of its limit (RFC 8841)."""
MAX_PART = 16_384
"""Bytes of a message that one part may have."""
MIN_PART = 1024
"""Bytes that a part has which is not the last of its message, so that parts stay few."""
OVERHEAD = 128
"""What a message is charged beyond its bytes, with its first part: what keeping one takes."""
MAX_CHANNEL = 255
"""Bytes of UTF-8 that the name of a channel may have."""
RESERVED = "meshpeer."
"""What the names of channels begin with that applications can't use."""
MAX_CHANNELS = 200
"""Channels that one side may use: a `Start` that names all of them fits into a frame."""
MAX_COUNT = 2**53 - 1
"""The largest number in a frame: what JavaScript counts without a fault."""

_PARTS, _RESUME, _START, _OPEN, _ACK, _PING, _PONG, _BYE = (
    VERSION << 4 | number for number in range(1, 9)
)
FIRST, LAST = 0x01, 0x02
"""Bits of `Part.flags`: a message begins with it, and ends with it."""
_KIND, _ROLE = 2, 4
_ASK = 0x01
_PARTS_HEAD = bytes((_PARTS,))


class Role(IntEnum):
    """What a message is for."""

    PLAIN = 0
    REQUEST = 1
    REPLY = 2
    ERROR = 3
    """A reply that says why there is no other."""


_KINDS, _ROLES = tuple(Kind), tuple(Role)


class Part(NamedTuple):
    """A piece of a message, as it was read."""

    flags: int
    """Bit 0: the first of its message. Bit 1: the last. Bits 2-3: `Kind`. Bits 4-5: `Role`."""
    total: int
    """Bytes of the whole message; 0 unless it is the first and not the last."""
    number: int
    """Of the request that is made or answered; 0 unless it is the first of such a message."""
    payload: bytes

    @property
    def kind(self) -> Kind:
        """What the bytes of the message stand for. Of the first part only."""
        return _KINDS[self.flags >> _KIND & 3]

    @property
    def role(self) -> Role:
        """What the message is for. Of the first part only."""
        return _ROLES[self.flags >> _ROLE & 3]


class Run(NamedTuple):
    """Parts of one channel that follow each other."""

    channel: int
    seq: int
    """The number of the first of them, from 0."""
    parts: list[Part]


class Parts(Struct, frozen=True, gc=False):
    """What messages are made of."""

    runs: list[Run]


class Limit(NamedTuple):
    """What the receiving side has of a channel, and takes."""

    channel: int
    next: int
    """The number of the part that it waits for: all before it have arrived."""
    limit: int
    """How much of the channel may be sent in all, by what parts are charged."""


class Resume(Struct, frozen=True):
    """I want to receive here from now on. Answer with a `Start` of the same round.

    ``ask``: do the same for me. ``window`` is the limit of every channel that ``limits`` does not
    name.
    """

    round: int
    ask: bool
    max_message: int
    max_channels: int
    window: int
    limits: Sequence[Limit] = ()


class Channel(NamedTuple):
    """A channel of the sender, and where it goes on."""

    channel: int
    seq: int
    """The number of the part that follows."""
    offset: int
    """What all the parts before it were charged."""
    name: str


class Start(Struct, frozen=True):
    """Parts follow here, as the `Resume` of this round asked for. All channels in use are named."""

    round: int
    channels: Sequence[Channel] = ()


class Open(Struct, frozen=True):
    """The sender's next channel."""

    channel: int
    name: str


class Ack(Struct, frozen=True):
    """What has arrived, and new limits."""

    limits: Sequence[Limit]


class Ping(Struct, frozen=True):
    """Asks for an `Ack` of what has arrived, without delay; and, unless the nonce is 0, for a
    `Pong` with the same one behind it."""

    nonce: int


class Pong(Struct, frozen=True):
    """Answers a `Ping`."""

    nonce: int


class Bye(Struct, frozen=True):
    """The sender leaves the room."""


Frame = Parts | Resume | Start | Open | Ack | Ping | Pong | Bye


# --- encoding ---


_SMALL = tuple(bytes((value,)) for value in range(0x80))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_message(
    kind: Kind, payload: bytes, role: Role = Role.PLAIN, number: int = 0
) -> tuple[tuple[bytes, int], ...]:
    """The parts of a message, each with what it is charged."""
    flags = kind << _KIND | role << _ROLE
    size = len(payload)
    if size <= MAX_PART:
        if role is Role.PLAIN and size < 0x80:  # by far the most frequent
            return ((bytes((flags | FIRST | LAST, size)) + payload, size + OVERHEAD),)
        head = (bytes((flags | FIRST | LAST,)), _varint(number) if role else b"", _varint(size))
        return ((b"".join((*head, payload)), size + OVERHEAD),)
    head = (bytes((flags | FIRST,)), _varint(size), _varint(number) if role else b"")
    first = b"".join((*head, _varint(MAX_PART), payload[:MAX_PART]))
    parts = [(first, MAX_PART + OVERHEAD)]
    for at in range(MAX_PART, size, MAX_PART):
        piece = payload[at : at + MAX_PART]
        last = LAST if at + MAX_PART >= size else 0
        parts.append((b"".join((bytes((last,)), _varint(len(piece)), piece)), len(piece)))
    return tuple(parts)


def is_last(part: bytes) -> bool:
    """Whether a message ends with this encoded part."""
    return bool(part[0] & LAST)


def request_number(parts: Sequence[bytes]) -> int:
    """The number of the request that these parts are; 0 when they are none."""
    first = _read_parts(encode_parts((run_head(0, 0, 1), parts[0]))).runs[0].parts[0]
    return first.number if first.role is Role.REQUEST else 0


def decode_message(parts: Sequence[bytes]) -> tuple[Kind, Role, bytes]:
    """What `encode_message` made these of."""
    read = [_read_parts(encode_parts((run_head(0, 0, 1), part))).runs[0].parts[0] for part in parts]
    flags = read[0].flags
    payload = b"".join(part.payload for part in read)
    return Kind(flags >> _KIND & 3), Role(flags >> _ROLE & 3), payload


def run_head(channel: int, seq: int, count: int) -> bytes:
    """What stands before a run of ``count`` encoded parts."""
    return _varint(channel) + _varint(seq) + _varint(count)


def encode_parts(pieces: Iterable[bytes]) -> bytes:
    """A frame of runs: heads by `run_head`, each followed by its parts."""
    return b"".join((_PARTS_HEAD, *pieces))


def _limits(limits: Sequence[Limit]) -> list[bytes]:
    out = [_varint(len(limits))]
    for each in limits:
        out += (_varint(each.channel), _varint(each.next), _varint(each.limit))
    return out


def _name(name: str) -> bytes:
    data = name.encode()
    return bytes((len(data),)) + data


def encode(frame: Resume | Start | Open | Ack | Ping | Pong | Bye) -> bytes:
    """Any frame but `Parts`."""
    match frame:
        case Resume():
            return b"".join(
                (
                    bytes((_RESUME, _ASK if frame.ask else 0)),
                    _varint(frame.round),
                    _varint(frame.max_message),
                    _varint(frame.max_channels),
                    _varint(frame.window),
                    *_limits(frame.limits),
                )
            )
        case Start():
            out = [bytes((_START,)), _varint(frame.round), _varint(len(frame.channels))]
            for each in frame.channels:
                out += (_varint(each.channel), _varint(each.seq), _varint(each.offset))
                out.append(_name(each.name))
            return b"".join(out)
        case Open():
            return bytes((_OPEN,)) + _varint(frame.channel) + _name(frame.name)
        case Ack():
            return b"".join((bytes((_ACK,)), *_limits(frame.limits)))
        case Ping():
            return bytes((_PING,)) + _varint(frame.nonce)
        case Pong():
            return bytes((_PONG,)) + _varint(frame.nonce)
        case Bye():
            return bytes((_BYE,))


# --- decoding ---


def _bad(text: str, field: str) -> ProtocolError:
    return ProtocolError(f"malformed frame: {text}", code="bad_frame", field=field)


class _Reader:
    """Reads the fields of one frame, in order."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def byte(self, field: str) -> int:
        if self._at >= len(self._data):
            raise _bad(f"it ends before {field}", field)
        self._at += 1
        return self._data[self._at - 1]

    def count(self, field: str) -> int:
        value, self._at = _read_count(self._data, self._at, field)
        return value

    def items(self, field: str) -> range:
        """So many items follow, each of which has two bytes at least."""
        count = self.count(field)
        if count * 2 > len(self._data) - self._at:
            raise _bad(f"{count} items can't be in the bytes that are left", field)
        return range(count)

    def limits(self) -> list[Limit]:
        return [
            Limit(self.count("channel"), self.count("next"), self.count("limit"))
            for _ in self.items("limits")
        ]

    def name(self) -> str:
        size = self.byte("name")
        data = self._data[self._at : self._at + size]
        if len(data) < size or not size:
            raise _bad(f"a name of {size} bytes, of which {len(data)} are there", "name")
        self._at += size
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            raise _bad(f"the name of a channel is not UTF-8 ({exc})", "name") from None

    def end(self) -> None:
        if self._at != len(self._data):
            raise _bad(f"{len(self._data) - self._at} bytes follow its end", "size")


def _read_count(data: bytes, at: int, field: str) -> tuple[int, int]:
    """A whole number, and where what follows it begins."""
    value = shift = 0
    for byte in data[at : at + 8]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > MAX_COUNT:
                break
            if not byte and shift:
                raise _bad(f"{field} is written with more bytes than it needs", field)
            return value, at
        shift += 7
    else:
        if shift < 56:
            raise _bad(f"it ends within {field}", field)
    raise _bad(f"{field} is above {MAX_COUNT}", field)


def _read_parts(data: bytes) -> Parts:
    # As plain as can be: of all that is received most passes through here.
    runs: list[Run] = []
    at, end = 1, len(data)
    while at < end:
        if (channel := data[at]) < 0x80:
            at += 1
        else:
            channel, at = _read_count(data, at, "channel")
        seq, at = _read_count(data, at, "seq")
        if at < end and (count := data[at]) < 0x80:
            at += 1
        else:
            count, at = _read_count(data, at, "count")
        if not 0 < count * 2 <= end - at:
            raise _bad(f"{count} parts can't be in the {end - at} bytes that are left", "count")
        parts: list[Part] = []
        for _ in range(count):
            if at + 2 > end:
                raise _bad("it ends within a part", "part")
            flags = data[at]
            size = data[at + 1]
            total = number = 0
            if flags & 0x33 == 0x03 and size < 0x80:  # a whole message, short and plain
                at += 2
            else:
                at += 1
                if flags & FIRST:
                    if not flags & LAST:
                        total, at = _read_count(data, at, "total")
                    if flags >> _ROLE & 3:
                        number, at = _read_count(data, at, "number")
                        if not number:
                            raise _bad("requests are numbered from 1", "number")
                        if flags & 0x30 == 0x30 and flags & 0x0C != 0x04:
                            raise _bad("an error that is no text", "flags")
                elif flags & ~LAST:
                    raise _bad(f"flags {flags:#04x} of a part that is not the first", "flags")
                size, at = _read_count(data, at, "length")
            if flags & 0xC0 or flags & 0x0C == 0x0C:
                raise _bad(f"unknown flags {flags:#04x}", "flags")
            stop = at + size
            if stop > end or size > MAX_PART:
                raise _bad(f"a part of {size} bytes; {end - at} are there", "length")
            if not flags & LAST:
                if size < MIN_PART:
                    raise _bad(f"a part of {size} bytes that is not the last", "length")
                if flags & FIRST and total <= size:
                    raise _bad(f"a part of {size} bytes begins a message of {total}", "total")
            parts.append(Part(flags, total, number, data[at:stop]))
            at = stop
        runs.append(Run(channel, seq, parts))
    if not runs:
        raise _bad("it has no parts", "size")
    return Parts(runs)


def decode(data: bytes) -> Frame:
    """One frame. Raises `ProtocolError` and nothing else."""
    size = len(data)
    if not 0 < size <= MAX_FRAME:
        raise _bad(f"it has {size} bytes, the limits are 1 and {MAX_FRAME}", "size")
    first = data[0]
    if first == _PARTS:
        return _read_parts(data)
    reader = _Reader(data, 1)
    frame: Frame
    if first == _RESUME:
        flags = reader.byte("flags")
        if flags & ~_ASK:
            raise _bad(f"unknown flags {flags:#04x}", "flags")
        frame = Resume(
            ask=bool(flags),
            round=reader.count("round"),
            max_message=reader.count("max_message"),
            max_channels=reader.count("max_channels"),
            window=reader.count("window"),
            limits=reader.limits(),
        )
    elif first == _START:
        frame = Start(
            reader.count("round"),
            [
                Channel(
                    reader.count("channel"),
                    reader.count("seq"),
                    reader.count("offset"),
                    reader.name(),
                )
                for _ in reader.items("channels")
            ],
        )
    elif first == _OPEN:
        frame = Open(reader.count("channel"), reader.name())
    elif first == _ACK:
        frame = Ack(reader.limits())
    elif first in (_PING, _PONG):
        nonce = reader.count("nonce")
        frame = Ping(nonce) if first == _PING else Pong(nonce)
    elif first == _BYE:
        frame = Bye()
    elif first >> 4 != VERSION:
        raise _bad(f"version {first >> 4}, this side speaks {VERSION}", "version")
    else:
        raise _bad(f"unknown type {first & 0x0F}", "type")
    reader.end()
    return frame
