"""Data frames <-> bytes: what travels in the binary messages of the message channel.

The first byte of a frame holds the version (high four bits) and the type (low four bits);
docs/protocol.md specifies the rest byte for byte. A message that does not fit into one frame is cut
into a `Data` frame and as many `More` frames, in order, with nothing of another message between.
"""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Any

import msgspec

from meshpeer.errors import InvalidData, ProtocolError

__all__ = [
    "MAX_CHANNEL",
    "MAX_FRAME",
    "MAX_VALUE_DEPTH",
    "VERSION",
    "Bye",
    "Credit",
    "Data",
    "Frame",
    "Kind",
    "More",
    "Ping",
    "Pong",
    "check_value",
    "decode",
    "decode_value",
    "encode_bye",
    "encode_credit",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_value",
]

VERSION = 1
MAX_FRAME = 65_536
"""Bytes of the largest frame: what an endpoint takes that says nothing of its limit (RFC 8841)."""
MAX_CHANNEL = 255
"""Bytes of UTF-8 that the name of a channel may have."""
MAX_VALUE_DEPTH = 512
"""Arrays and objects inside each other in a JSON value: half of what Python's stack allows, so that
what one side may send the other can decode, wherever in its program it does."""

_DATA, _MORE, _PING, _PONG, _CREDIT, _BYE = (VERSION << 4 | number for number in range(1, 7))
_LAST = 0x80
_NONCE = struct.Struct("!BI")
_CREDIT_FORMAT = struct.Struct("!BQQ")


class Kind(IntEnum):
    """What the bytes of a message stand for."""

    BYTES = 0
    TEXT = 1
    JSON = 2


@dataclass(slots=True)
class Data:
    """The beginning of a message, or all of it when ``last``."""

    kind: Kind
    channel: str
    payload: bytes
    last: bool


@dataclass(slots=True)
class More:
    """The next part of the message that a `Data` frame began."""

    payload: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a `Pong` with the same nonce."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a `Ping`; everything sent before that ping has arrived."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Credit:
    """How many bytes may be sent in all on this connection, and how large a message may be."""

    limit: int
    max_message: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves the room."""


Frame = Data | More | Ping | Pong | Credit | Bye


def encode_value(data: Any) -> tuple[Kind, bytes]:
    """The kind and the bytes of str, bytes or JSON-able data. Raises `InvalidData`."""
    match data:
        case str():
            try:
                return Kind.TEXT, data.encode()
            except UnicodeEncodeError as exc:
                raise InvalidData(f"text that is not valid Unicode can't be sent: {exc}") from None
        case bytes() | bytearray() | memoryview():
            return Kind.BYTES, bytes(data)
    try:
        payload = msgspec.json.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as exc:
        raise InvalidData(
            f"{type(data).__name__} can't be sent ({exc}): give str, bytes or JSON-able data"
        ) from None
    if _is_too_deep(payload):
        raise InvalidData(
            f"{type(data).__name__} can't be sent: it is nested deeper than "
            f"{MAX_VALUE_DEPTH} arrays and objects"
        )
    return Kind.JSON, payload


def check_value(kind: Kind, payload: bytes) -> None:
    """Raise `ProtocolError` unless `decode_value` can decode ``payload``.

    Nothing is built for it: the objects of a JSON value may take many times the memory of its
    bytes, and that is to be spent when the application takes it.
    """
    try:
        if kind is not Kind.BYTES and not payload.isascii():
            payload.decode()
        if kind is Kind.JSON:
            _structure.decode(payload)
            _check_numbers(payload)
            too_deep = _is_too_deep(payload)
        else:
            too_deep = False
    except RecursionError:
        too_deep = True
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolError(
            f"a message of kind {kind.name.lower()} does not decode: {exc}",
            code="bad_message",
            field="payload",
        ) from None
    if too_deep:
        raise ProtocolError(
            f"a JSON value is nested deeper than {MAX_VALUE_DEPTH} arrays and objects",
            code="too_deep",
            field="payload",
        )


def decode_value(kind: Kind, payload: bytes) -> Any:
    """The data that `encode_value` was given. ``payload`` has passed `check_value`."""
    match kind:
        case Kind.BYTES:
            return payload
        case Kind.TEXT:
            return payload.decode()
        case Kind.JSON:
            return msgspec.json.decode(payload)


# Finds the end of the value, as it does of a field that nobody wants: its syntax is checked, its
# UTF-8 and the range of its numbers are not.
_structure = msgspec.json.Decoder(msgspec.Raw)
_CHUNK = 65_536
_STEP = bytes(1 if c in b"[{" else 255 if c in b"]}" else 0 for c in range(256))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DIGITS = bytes(ord("0") if c in b"0123456789." else 0 for c in range(256))
# A number that may be out of range has as many digits, or an exponent of three.
_LONG = 200
_LONG_DIGITS = b"0" * _LONG
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_LARGE_NUMBER = re.compile(
    rb"(?<![0-9.])-?(?:[0-9.]{%d,}+(?:[eE][-+]?[0-9]+)?|[0-9.]++[eE]\+?[0-9]{3,})" % _LONG
)


def _without_strings(payload: bytes) -> bytes:
    """``payload``, whose syntax is that of JSON, without the strings in it."""
    plain = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts: list[bytes] = []
    inside = False
    # In chunks: a list of all the pieces could take many times the memory of the payload.
    for at in range(0, len(plain), _CHUNK):
        pieces = plain[at : at + _CHUNK].split(b'"')
        parts.append(b"".join(pieces[inside::2]))
        inside ^= len(pieces) % 2 == 0
    return b"".join(parts)


def _is_too_deep(payload: bytes) -> bool:
    """Whether ``payload``, whose syntax is that of JSON, is over `MAX_VALUE_DEPTH`."""
    if payload.count(b"[") + payload.count(b"{") <= MAX_VALUE_DEPTH:
        return False
    steps = array("b", _without_strings(payload).translate(_STEP, _NOT_BRACKETS))
    return max(accumulate(steps), default=0) > MAX_VALUE_DEPTH


def _check_numbers(payload: bytes) -> None:
    """Raise `msgspec.DecodeError` for a number that a decoder refuses for its size."""
    if (
        _LARGE_EXPONENT.search(payload) is None
        and payload.translate(_DIGITS).find(_LONG_DIGITS) < 0
    ):
        return
    for number in _LARGE_NUMBER.finditer(_without_strings(payload)):
        msgspec.json.decode(number[0])


def encode_message(kind: Kind, channel: str, payload: bytes) -> list[bytes]:
    """The frames of one message."""
    name = channel.encode()
    room = MAX_FRAME - 3 - len(name)
    if len(payload) <= room:
        return [b"".join((bytes((_DATA, kind | _LAST, len(name))), name, payload))]
    frames = [b"".join((bytes((_DATA, kind, len(name))), name, payload[:room]))]
    at, room = room, MAX_FRAME - 2
    while at < len(payload):
        end = at + room
        frames.append(bytes((_MORE, _LAST if end >= len(payload) else 0)) + payload[at:end])
        at = end
    return frames


def encode_ping(nonce: int) -> bytes:
    """A `Ping`; ``nonce`` is of 32 bits."""
    return _NONCE.pack(_PING, nonce)


def encode_pong(nonce: int) -> bytes:
    """A `Pong`."""
    return _NONCE.pack(_PONG, nonce)


def encode_credit(limit: int, max_message: int) -> bytes:
    """A `Credit`."""
    return _CREDIT_FORMAT.pack(_CREDIT, limit, max_message)


def encode_bye() -> bytes:
    """A `Bye`."""
    return bytes((_BYE,))


def _bad(text: str, field: str) -> ProtocolError:
    return ProtocolError(f"malformed frame: {text}", code="bad_frame", field=field)


def decode(data: bytes) -> Frame:
    """One frame. Raises `ProtocolError` and nothing else."""
    size = len(data)
    if not 0 < size <= MAX_FRAME:
        raise _bad(f"it has {size} bytes, the limits are 1 and {MAX_FRAME}", "size")
    first = data[0]
    if first == _DATA:
        if size < 3 or size < 3 + data[2]:
            raise _bad(f"{size} bytes can't hold its header", "size")
        flags, end = data[1], 3 + data[2]
        if flags & ~_LAST > Kind.JSON:
            raise _bad(f"unknown flags {flags:#04x}", "flags")
        try:
            channel = data[3:end].decode()
        except UnicodeDecodeError as exc:
            raise _bad(f"the name of the channel is not UTF-8 ({exc})", "channel") from None
        return Data(Kind(flags & ~_LAST), channel, data[end:], bool(flags & _LAST))
    if first == _MORE:
        if size < 2:
            raise _bad("1 byte can't hold its header", "size")
        if data[1] & ~_LAST:
            raise _bad(f"unknown flags {data[1]:#04x}", "flags")
        return More(data[2:], bool(data[1] & _LAST))
    if first in (_PING, _PONG):
        if size != _NONCE.size:
            raise _bad(f"a ping or pong has {_NONCE.size} bytes, not {size}", "size")
        nonce = _NONCE.unpack(data)[1]
        return Ping(nonce) if first == _PING else Pong(nonce)
    if first == _CREDIT:
        if size != _CREDIT_FORMAT.size:
            raise _bad(f"a credit has {_CREDIT_FORMAT.size} bytes, not {size}", "size")
        _, limit, max_message = _CREDIT_FORMAT.unpack(data)
        return Credit(limit, max_message)
    if first == _BYE:
        if size != 1:
            raise _bad(f"a bye has 1 byte, not {size}", "size")
        return Bye()
    if first >> 4 != VERSION:
        raise _bad(f"version {first >> 4}, this side speaks {VERSION}", "version")
    raise _bad(f"unknown type {first & 0x0F}", "type")
