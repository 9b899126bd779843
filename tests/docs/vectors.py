"""Makes tests/vectors/frames.json (``make docs``): what programs in other languages test against.

The good frames are written down here as what they say, and encoded; the bad ones as bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from meshpeer.core import frames
from meshpeer.core.frames import (
    MAX_COUNT,
    MAX_PART,
    MIN_PART,
    Ack,
    Bye,
    Channel,
    Frame,
    Limit,
    Open,
    Parts,
    Ping,
    Pong,
    Resume,
    Role,
    Start,
    encode_message,
    encode_parts,
    run_head,
)
from meshpeer.core.values import Kind, check_value, encode_value
from meshpeer.errors import ProtocolError

__all__ = ["FRAMES", "described", "main", "render"]

FRAMES = Path(__file__).parents[1] / "vectors" / "frames.json"

_EDGE = (0, 1, 127, 128, 16_383, 16_384, 2**32 - 1, 2**32, MAX_COUNT)


def described(frame: Frame) -> dict[str, Any]:
    """A frame in plain JSON."""
    match frame:
        case Parts(runs):
            return {
                "type": "parts",
                "runs": [
                    {"channel": channel, "seq": seq, "parts": [_part(part) for part in parts]}
                    for channel, seq, parts in runs
                ],
            }
        case Resume():
            return {
                "type": "resume",
                "round": frame.round,
                "ask": frame.ask,
                "max_message": frame.max_message,
                "max_channels": frame.max_channels,
                "window": frame.window,
                "limits": [limit._asdict() for limit in frame.limits],
            }
        case Start():
            channels = [channel._asdict() for channel in frame.channels]
            return {"type": "start", "round": frame.round, "channels": channels}
        case Open():
            return {"type": "open", "channel": frame.channel, "name": frame.name}
        case Ack():
            return {"type": "ack", "limits": [limit._asdict() for limit in frame.limits]}
        case Ping() | Pong():
            return {"type": type(frame).__name__.lower(), "nonce": frame.nonce}
        case Bye():
            return {"type": "bye"}


def _part(part: frames.Part) -> dict[str, Any]:
    first, last = bool(part.flags & frames.FIRST), bool(part.flags & frames.LAST)
    said: dict[str, Any] = {"first": first, "last": last}
    if first:
        said |= {"kind": part.kind.name.lower(), "role": part.role.name.lower()}
        if not last:
            said["total"] = part.total
        if part.role is not Role.PLAIN:
            said["number"] = part.number
    return said | {"payload": part.payload.hex()}


def _parts(*runs: tuple[int, int, list[bytes]]) -> bytes:
    return encode_parts(
        b"".join((run_head(channel, seq, len(parts)), *parts)) for channel, seq, parts in runs
    )


def _message(data: Any, role: Role = Role.PLAIN, number: int = 0) -> list[bytes]:
    return [part for part, _ in encode_message(*encode_value(data), role, number)]


_FIRST_OF_TWO = b"\x05\x81\x08\x80\x08" + b"t" * MIN_PART  # 1025 bytes of text in all

_GOOD: tuple[tuple[str, bytes], ...] = (
    ("text", _parts((0, 0, _message("hi")))),
    ("no bytes", _parts((0, 0, _message(b"")))),
    ("json", _parts((1, 5, _message({"a": 1})))),
    ("127 bytes", _parts((0, 0, _message(b"\x01" * 127)))),
    ("128 bytes", _parts((0, 0, _message(b"\x01" * 128)))),
    ("large numbers", _parts((199, MAX_COUNT, _message("x")))),
    (
        "several messages on several channels",
        _parts((0, 3, [*_message("a"), *_message("b")]), (2, 0, _message(None))),
    ),
    ("two runs of the same channel", _parts((0, 3, _message("a")), (0, 4, _message("b")))),
    ("a request", _parts((0, 0, _message("how much?", Role.REQUEST, 1)))),
    ("a reply", _parts((0, 0, _message(5, Role.REPLY, 128)))),
    ("an error", _parts((0, 0, _message("no", Role.ERROR, MAX_COUNT)))),
    ("the first part of a message", _parts((0, 0, [_FIRST_OF_TWO]))),
    ("the last part of a message", _parts((0, 1, [b"\x02\x01t"]))),
    ("the last part, empty", _parts((0, 1, [b"\x02\x00"]))),
    ("a part between", _parts((0, 1, [b"\x00\x80\x08" + b"u" * MIN_PART]))),
    ("resume, nothing received", frames.encode(Resume(1, False, 16_777_216, 32, 524_288))),
    (
        "resume, and ask",
        frames.encode(Resume(2, True, 1024, 2, 32_768, [Limit(0, 7, 33_664), Limit(1, 0, 32_768)])),
    ),
    (
        "resume, large numbers",
        frames.encode(Resume(MAX_COUNT, False, MAX_COUNT, MAX_COUNT, MAX_COUNT)),
    ),
    ("start, no channels", frames.encode(Start(1))),
    ("start", frames.encode(Start(2, [Channel(0, 7, 1030, "default"), Channel(1, 0, 0, "é😀")]))),
    ("open", frames.encode(Open(2, "chat"))),
    ("open, the longest name", frames.encode(Open(3, "n" * frames.MAX_CHANNEL))),
    ("ack of nothing", frames.encode(Ack([]))),
    ("ack", frames.encode(Ack([Limit(0, 300, 600_000), Limit(1, 1, 524_416)]))),
    *((f"ping {nonce}", frames.encode(Ping(nonce))) for nonce in _EDGE),
    ("pong", frames.encode(Pong(2**31 + 1))),
    ("bye", frames.encode(Bye())),
)


class _Bad(NamedTuple):
    name: str
    data: bytes
    zeros: int = 0
    """Bytes that follow."""


_BAD: tuple[_Bad, ...] = (
    _Bad("nothing", b""),
    _Bad("one byte over the limit", b"\x11", frames.MAX_FRAME),
    _Bad("version 0", b"\x01\x00\x00\x01\x03\x00"),
    _Bad("version 2", b"\x21\x00\x00\x01\x03\x00"),
    _Bad("version 15", b"\xf8"),
    _Bad("type 0", b"\x10"),
    _Bad("type 9", b"\x19"),
    _Bad("type 15", b"\x1f"),
    _Bad("a number that does not end", b"\x16\x80"),
    _Bad("a number of nine bytes", b"\x16" + b"\xff" * 8 + b"\x01"),
    _Bad("a number of 2**53", b"\x16\x80\x80\x80\x80\x80\x80\x80\x10"),
    _Bad("zero in two bytes", b"\x16\x80\x00"),
    _Bad("one in three bytes", b"\x16\x81\x80\x00"),
    _Bad("parts, none", b"\x11"),
    _Bad("parts, no sequence number", b"\x11\x00"),
    _Bad("parts, no count", b"\x11\x00\x00"),
    _Bad("parts, a count of 0", b"\x11\x00\x00\x00\x03\x00"),
    _Bad("parts, one more than there is room for", b"\x11\x00\x00\x02\x03\x00\x03"),
    _Bad("parts, one more than there are", b"\x11\x00\x00\x02\x03\x02ab"),
    _Bad("parts, 2**53 - 1 of them", b"\x11\x00\x00\xff\xff\xff\xff\xff\xff\xff\x0f\x03\x00"),
    _Bad("a part that is longer than the frame", b"\x11\x00\x00\x01\x03\x03ab"),
    _Bad("a part of 16385 bytes", b"\x11\x00\x00\x01\x03\x81\x80\x01", MAX_PART + 1),
    _Bad("kind 3", b"\x11\x00\x00\x01\x0f\x00"),
    _Bad("flag 0x40", b"\x11\x00\x00\x01\x43\x00"),
    _Bad("flag 0x80", b"\x11\x00\x00\x01\x83\x00"),
    _Bad("a kind on a part that is not the first", b"\x11\x00\x00\x01\x06\x00"),
    _Bad("a role on a part that is not the first", b"\x11\x00\x00\x01\x12\x00"),
    _Bad("flag 0x80 on a part that is not the first", b"\x11\x00\x00\x01\x82\x00"),
    _Bad("request 0", b"\x11\x00\x00\x01\x13\x00\x00"),
    _Bad("an error in bytes", b"\x11\x00\x00\x01\x33\x01\x00"),
    _Bad("an error in json", b"\x11\x00\x00\x01\x3b\x01\x02{}"),
    _Bad("an error in json, its first part", b"\x11\x00\x00\x01\x39\x80\x10\x01\x80\x08", MIN_PART),
    _Bad(
        "a part that is not the last, and short",
        b"\x11\x00\x00\x01\x01\xff\x0f\xff\x07",
        MIN_PART - 1,
    ),
    _Bad(
        "a first part that is all of its message", b"\x11\x00\x00\x01\x01\x80\x08\x80\x08", MIN_PART
    ),
    _Bad("bytes that are no run follow", _parts((0, 0, _message("a"))) + b"\x00"),
    _Bad("resume, nothing", b"\x12"),
    _Bad("resume, flag 0x02", b"\x12\x02\x01\x80\x08\x02\x80\x80\x02\x00"),
    _Bad("resume, no limits", b"\x12\x00\x01\x80\x08\x02\x80\x80\x02"),
    _Bad("resume, fewer limits than it says", b"\x12\x00\x01\x80\x08\x02\x80\x80\x02\x02\x00\x00"),
    _Bad("resume, a limit that is cut off", b"\x12\x00\x01\x80\x08\x02\x80\x80\x02\x01\x00\x00"),
    _Bad("resume, too long", b"\x12\x00\x01\x80\x08\x02\x80\x80\x02\x00\x00"),
    _Bad("start, no count", b"\x13\x01"),
    _Bad("start, more channels than there is room for", b"\x13\x01\x7f\x00\x00\x00\x01a"),
    _Bad("start, a channel without a name", b"\x13\x01\x01\x00\x00\x00"),
    _Bad("start, too long", b"\x13\x01\x00\x00"),
    _Bad("open, no name", b"\x14\x00"),
    _Bad("open, an empty name", b"\x14\x00\x00"),
    _Bad("open, a name that is cut off", b"\x14\x00\x03ab"),
    _Bad("open, a name that is not UTF-8", b"\x14\x00\x01\xff"),
    _Bad("open, a surrogate", b"\x14\x00\x03\xed\xa0\x80"),
    _Bad("open, too long", b"\x14\x00\x01ab"),
    _Bad("ack, nothing", b"\x15"),
    _Bad("ack, more limits than there is room for", b"\x15\x02\x00\x00\x00"),
    _Bad("ack, too long", b"\x15\x00\x00"),
    _Bad("ping, no nonce", b"\x16"),
    _Bad("ping, too long", b"\x16\x00\x00"),
    _Bad("pong, no nonce", b"\x17"),
    _Bad("bye, too long", b"\x18\x00"),
)

_MESSAGES: tuple[tuple[str, Kind, Role, int, bytes, int], ...] = (
    ("no bytes", Kind.BYTES, Role.PLAIN, 0, b"", 0),
    ("short text", Kind.TEXT, Role.PLAIN, 0, "é".encode(), 1),
    ("as large as one part may be", Kind.BYTES, Role.PLAIN, 0, b"\x00", MAX_PART),
    ("one byte more", Kind.BYTES, Role.PLAIN, 0, b"\x00", MAX_PART + 1),
    ("three parts of a request", Kind.JSON, Role.REQUEST, 128, b" ", 2 * MAX_PART + 5),
    ("two full parts of an error", Kind.TEXT, Role.ERROR, 1, b"e", 2 * MAX_PART),
)

_VALUES: tuple[tuple[str, Any], ...] = (
    ("text", "hé"),
    ("bytes", b"\x00\xff"),
    ("an object", {"a": [1, 2.5, None, True, "x"]}),
    ("null", None),
)

_BAD_VALUES: tuple[tuple[str, Kind, bytes, int], ...] = (
    ("text that is not UTF-8", Kind.TEXT, b"\xff", 1),
    ("json that is cut short", Kind.JSON, b'{"a":', 1),
    ("two values", Kind.JSON, b"1 2", 1),
    ("no value", Kind.JSON, b"", 1),
    ("a number that is too large", Kind.JSON, b"1e999", 1),
    ("no end of arrays", Kind.JSON, b"[", 1000),
)


def _refused(data: bytes) -> dict[str, str | None]:
    try:
        frames.decode(data)
    except ProtocolError as error:
        return {"code": error.code, "field": error.field}
    raise AssertionError(f"{data[:40].hex()} decodes")


def _refused_value(kind: Kind, payload: bytes) -> dict[str, str | None]:
    try:
        check_value(kind, payload)
    except ProtocolError as error:
        return {"code": error.code, "field": error.field}
    raise AssertionError(f"{payload!r} is taken")


def _cut(parts: tuple[tuple[bytes, int], ...], payload: bytes) -> list[dict[str, Any]]:
    """What stands before the payload of each part, how long that is, and the charge."""
    out = []
    for number, (part, charge) in enumerate(parts):
        size = min(MAX_PART, len(payload) - number * MAX_PART)
        out.append({"head": part[: len(part) - size].hex(), "payload": size, "charge": charge})
    return out


def _value(value: Any) -> dict[str, Any]:
    kind, payload = encode_value(value)
    shown = value.hex() if isinstance(value, bytes) else value
    return {"kind": kind.name.lower(), "payload": payload.hex(), "value": shown}


def render() -> str:
    """The whole file."""
    lists: dict[str, list[dict[str, Any]]] = {
        "good": [
            {"name": name, "hex": data.hex(), "frame": described(frames.decode(data))}
            for name, data in _GOOD
        ],
        "bad": [
            {"name": name, "hex": data.hex(), "zeros": zeros, **_refused(data + bytes(zeros))}
            for name, data, zeros in _BAD
        ],
        "messages": [
            {
                "name": name,
                "kind": kind.name.lower(),
                "role": role.name.lower(),
                "number": number,
                "hex": data.hex(),
                "times": times,
                "parts": _cut(encode_message(kind, data * times, role, number), data * times),
            }
            for name, kind, role, number, data, times in _MESSAGES
        ],
        "values": [{"name": name, **_value(value)} for name, value in _VALUES],
        "bad_values": [
            {
                "name": name,
                "kind": kind.name.lower(),
                "payload": payload.hex(),
                "times": times,
                **_refused_value(kind, payload * times),
            }
            for name, kind, payload, times in _BAD_VALUES
        ],
    }
    shown = (
        f'  "{name}": [\n'
        + ",\n".join("    " + json.dumps(each, ensure_ascii=False) for each in entries)
        + "\n  ]"
        for name, entries in lists.items()
    )
    return "{\n" + ",\n".join(shown) + "\n}\n"


def main() -> None:
    """Write the file when it is not as it should be."""
    new = render()
    if not FRAMES.exists() or FRAMES.read_text(encoding="utf-8") != new:
        FRAMES.write_text(new, encoding="utf-8")
        print(FRAMES.relative_to(FRAMES.parents[2]))
