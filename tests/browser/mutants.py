"""Damaged messages, frames and values, and what Python says to them, for the JavaScript client to
say the same: ``python -m tests.browser.mutants --seed N --count N --out FILE``.

A line of JSON each: ``is`` (``client``, ``relay``, ``peer``, ``frame``, ``forward``, ``text``,
``json``), ``data`` (base64), and either ``says``, what it is, or ``error`` (``code``, ``field``,
``text``). Messages are as in tests/browser/traces.py, frames as in tests/vectors.
tests/browser/page/mutants.js compares.
"""

from __future__ import annotations

import argparse
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from meshpeer.core import frames
from meshpeer.core.forward import decode_forward
from meshpeer.core.messages import decode_client, decode_link, decode_relay
from meshpeer.core.values import Kind, check_value, decode_value
from meshpeer.errors import ProtocolError
from tests.docs.vectors import described

__all__ = ["main", "mutants"]

_VECTORS = Path(__file__).parents[1] / "vectors"
_CHARACTERS = (
    "a1 -_:./\t\n\r\x00\x1f\x7f\x85\xa0\xad\u0130\u180e\u2000\u2028\u202e\u2066\u3000\ufeff\uffff"
    "\U0001f600\U0010ffff\u00e9\ufffd\"'\\`"
)
_SHORT_NUMBERS = """
    0 -0 1 -1 01 1.0 -0.0 0.5 1e0 1E+2 1e-2 1. .5 1e - +1 255 256 86400 86400.0 86400.5 2147483647
    2147483648 9007199254740991 9007199254740992 9007199254740993 9007199254740992.0
    123456789012345678 9223372036854775807 9223372036854775808 -9223372036854775808
    -9223372036854775809 18446744073709551615 18446744073709551616 19000000000000000000 1e400 -1e400
    1e-400 2e308 1.7976931348623157e308 1.7976931348623159e308 NaN Infinity
"""
_NUMBERS = (
    *_SHORT_NUMBERS.split(),
    *("9" * 400, "1" + "0" * 308, "1" * 300 + "e30", "1" * 250 + ".5", "0." + "0" * 400 + "1"),
    *("9" * 4300, "9" * 4301, "-" + "9" * 4299, "-" + "9" * 4300),
)
_PIECES = (
    *(bytes((byte,)) for byte in b'[]{}",:\\/0-9.aeEnNtfu \n\t\x00\x1f\x7f\x80\xc3\xed\xf0\xff'),
    *rb"\u \ud800 \udc00 \ud83d\ude00 \u0000 \u12 \x \ null true false nul [] {} ,,".split(),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\xc0\x80"),
    *(b"[" * 33, b"]" * 33, b'{"a":' * 40, b'"type":"leave",', b'"type":5,'),
    *(number.encode() for number in _NUMBERS),
)
_SIZES = (1, 7, 8, 16, 64, 65, 128, 129, 200, 201, 256, 257, 512, 513, 1024, 1025)
_WORDS = ("new", "direct", "reject", "connected", "leave", "offer", "turn:a", "inc-ann1")
_COUNTS = (0, 1, 127, 128, 1024, 16_384, 2**32, 2**53 - 1, 2**53, 2**56 - 1, 2**60)
# So many digits are one number to JavaScript, and do not make metadata too large. Those of an
# exponent are a number of their own to Python.
_LONG_NUMBER = re.compile(rb"[0-9]{3000}")
_LONG_EXPONENT = re.compile(rb"[eE][-+]?[0-9]{3000}")


def mutants(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """So many, always the same for the same seed."""
    random = Random(seed)
    texts = json.loads((_VECTORS / "signaling.json").read_text(encoding="utf-8"))
    forwards = json.loads((_VECTORS / "forward.json").read_text(encoding="utf-8"))
    lists = json.loads((_VECTORS / "frames.json").read_text(encoding="utf-8"))
    messages: list[tuple[str, bytes]] = [
        (each["from"], each["text"].encode() if "text" in each else bytes.fromhex(each["hex"]))
        for each in texts
    ]
    good = [(who, data) for who, data in messages if _is_good(who, data)]
    binary = [("forward", bytes.fromhex(each["hex"])) for each in forwards]
    binary += [("frame", bytes.fromhex(each["hex"])) for each in lists["good"] + lists["bad"]]
    while count:
        match random.randrange(8):
            case 0:
                who, data = random.choice(messages)
                data = _damaged(random, data)
            case 1 | 2 | 3 | 4:
                who, data = random.choice(good)
                data = _changed(random, json.loads(data)).encode("utf-8", "surrogatepass")
                if random.random() < 0.2:
                    data = _damaged(random, data)
            case 5:
                who = random.choice(("json", "json", "text"))
                value = _any(random, 4)
                data = _damaged(random, value.encode("utf-8", "surrogatepass"))
            case _:
                who, data = random.choice(binary)
                data = _bytes_damaged(random, data)
        if (_LONG_NUMBER if who == "client" else _LONG_EXPONENT).search(data):
            continue
        count -= 1
        yield {"is": who, "data": b64encode(data).decode(), **_said(who, data)}


def _is_good(who: str, data: bytes) -> bool:
    return "says" in _said(who, data)


def _damaged(random: Random, data: bytes) -> bytes:
    for _ in range(random.randrange(4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(4):
            case 0:
                data = data[:at] + random.choice(_PIECES) + data[at:]
            case 1:
                data = data[:at] + random.choice(_PIECES) + data[at + random.randrange(4) :]
            case 2:
                data = data[:at] + data[at + random.randrange(1, 9) :]
            case _:
                end = at + random.randrange(40)
                data = data[:end] + data[at:]
    return data


def _bytes_damaged(random: Random, data: bytes) -> bytes:
    for _ in range(random.randrange(4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(5):
            case 0:
                byte = random.choice(b"\0\1\2\3\7\x11\x7f\x80\xff")
                data = data[:at] + bytes((byte,)) + data[at + 1 :]
            case 1:
                data = data[:at] + random.randbytes(random.randrange(1, 4)) + data[at:]
            case 2:
                data = data[:at] + data[at + random.randrange(1, 4) :]
            case 3:
                data = data[:at] + _varint(random.choice(_COUNTS)) + data[at + 1 :]
            case _:
                data += bytes(random.choice((1, 2, 100, 1023, 1024, 16384, 65536)))
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _text(random: Random) -> str:
    match random.randrange(5):
        case 0:
            return random.choice(("a", "\U0001f600", "\u20ac", "x\U0001f600")) * random.choice(
                _SIZES
            )
        case 1:
            return random.choice(_WORDS)
        case _:
            return "".join(random.choices(_CHARACTERS, k=random.randrange(12)))


def _any(random: Random, depth: int) -> str:
    """Some JSON, or nearly."""
    match random.randrange(8 if depth else 5):
        case 0 | 1:
            return random.choice(_NUMBERS)
        case 2 | 3:
            return _string(random, _text(random))
        case 4:
            return random.choice(("null", "true", "false", "[]", "{}", "nul", "[" * 20 + "]" * 20))
        case 5:
            depth = random.choice((31, 34, 550))
            return "[" * depth + _any(random, 0) + "]" * (depth - (random.random() < 0.1))
        case 6:
            return "[" + ",".join(_any(random, depth - 1) for _ in range(random.randrange(5))) + "]"
        case _:
            keys = random.choices(
                ("a", "b", "1", "__proto__", _text(random)), k=random.randrange(5)
            )
            items = (f"{_string(random, key)}:{_any(random, depth - 1)}" for key in keys)
            return "{" + ",".join(items) + "}"


def _string(random: Random, text: str) -> str:
    if random.random() < 0.05:
        text += random.choice("\ud800\udfff")
    return json.dumps(text, ensure_ascii=random.random() < 0.5)


def _changed(random: Random, value: Any) -> str:
    """The JSON of ``value`` with some of it replaced, left out, doubled or added."""
    rate = random.choice((0.02, 0.1, 0.3))
    keys = ("type", "name", "metadata", "sdp", "end", "members", "peer_id", "generation", "a")

    def show(value: Any, is_root: bool = False) -> str:
        if not is_root and random.random() < rate:
            return _any(random, 2)
        if isinstance(value, dict):
            items = [(key, show(each)) for key, each in value.items() if random.random() > rate / 8]
            if random.random() < rate:
                items.append((random.choice((*keys, *value)), _any(random, 1)))
            if random.random() < rate:
                random.shuffle(items)
            said = ",".join(
                f"{_string(random, key) if random.random() > 0.03 else _escaped(key)}:{each}"
                for key, each in items
            )
            return "{" + said + "}"
        if isinstance(value, list):
            shown = [show(each) for each in value if random.random() > rate / 8]
            if shown and random.random() < rate / 4:
                shown *= random.choice((2, 9, 17, 101))
            return "[" + ",".join(shown) + "]"
        return _string(random, value) if isinstance(value, str) else json.dumps(value)

    return show(value, is_root=True)


def _escaped(text: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"'


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def _plain(value: Any) -> Any:
    """As JavaScript has it."""
    match value:
        case msgspec.Struct():
            names = value.__struct_fields__
            fields = {_camel(name): _plain(getattr(value, name)) for name in names}
            return {"kind": type(value).__name__, **fields}
        case msgspec.Raw():
            return bytes(value).decode()
        case list():
            return [_plain(each) for each in value]
        case _:
            return value


def _forward(data: bytes) -> dict[str, str]:
    frame = decode_forward(data)
    return {
        "kind": "FrameIn",
        "sender": frame.sender,
        "incarnation": frame.incarnation,
        "data": frame.data.hex(),
    }


def _value(kind: Kind, data: bytes) -> Any:
    check_value(kind, data)
    return decode_value(kind, data)


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "client": lambda data: _plain(decode_client(data)),
    "relay": lambda data: _plain(decode_relay(data)),
    "peer": lambda data: _plain(decode_link(data)),
    "frame": lambda data: described(frames.decode(data)),
    "forward": _forward,
    "text": lambda data: _value(Kind.TEXT, data),
    "json": lambda data: _value(Kind.JSON, data),
}


def _said(who: str, data: bytes) -> dict[str, Any]:
    try:
        return {"says": _DECODERS[who](data)}
    except ProtocolError as error:
        return {"error": {"code": error.code, "field": error.field, "text": str(error)}}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.out.open("wb") as out:
        for mutant in mutants(options.seed, options.count):
            out.write(msgspec.json.encode(mutant) + b"\n")


if __name__ == "__main__":
    main()
