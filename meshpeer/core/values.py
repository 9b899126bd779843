"""What applications send <-> bytes: str, bytes, or anything that JSON can say.

The kind of a value goes with its bytes; docs/protocol.md says how. JSON is decoded where it is
taken, not where it arrives: there its syntax is checked only, since the objects of a value may take
many times the memory of its bytes.
"""

from __future__ import annotations

import re
from array import array
from enum import IntEnum
from itertools import accumulate
from typing import Any

import msgspec

from meshpeer.errors import InvalidData, ProtocolError

__all__ = ["MAX_VALUE_DEPTH", "Kind", "check_value", "decode_value", "encode_value"]

MAX_VALUE_DEPTH = 512
"""Arrays and objects inside each other in a JSON value: half of what Python's stack allows, so that
what one side may send the other can decode, wherever in its program it does."""


class Kind(IntEnum):
    """What the bytes of a message stand for."""

    BYTES = 0
    TEXT = 1
    JSON = 2


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
