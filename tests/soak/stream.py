"""A numbered stream of messages: how they are made, and what a receiver finds wrong with it.

The numbers are 1, 2, 3, … and a message tells by itself whether it is whole: so a receiver knows
what was lost, repeated, reordered or damaged without asking the sender anything but how many.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["HEADER", "LARGE", "Ledger", "decode", "encode"]

LARGE = 100_000
"""Bytes of the largest message."""

_HEAD = struct.Struct(">QI")
HEADER = _HEAD.size
"""Bytes of the smallest message."""

# Twice as long as a message, so that messages of one size differ in all their bytes.
_FILL = random.Random(1).randbytes(2 * LARGE)


def encode(number: int, size: int) -> bytes:
    """The message of this number, ``size`` bytes long (`HEADER` to `LARGE`)."""
    start = number % LARGE
    body = _FILL[start : start + size - HEADER]
    return _HEAD.pack(number, _check(number, body)) + body


def _check(number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(number.to_bytes(8, "big")))


def decode(data: Any) -> int:
    """The number of a message. Raises ValueError when it is not as it was made."""
    if not isinstance(data, bytes) or len(data) < HEADER:
        raise ValueError("not a message of the stream")
    number, check = _HEAD.unpack_from(data)
    if _check(number, data[HEADER:]) != check:
        raise ValueError("damaged")
    return int(number)


@dataclass(slots=True)
class Ledger:
    """What has come of one stream."""

    received: int = 0
    highest: int = 0
    repeated: int = 0
    reordered: int = 0
    """Came after one with a higher number."""
    damaged: int = 0
    missing: set[int] = field(default_factory=set)
    """Below ``highest``, and not there yet."""

    def take(self, data: Any) -> None:
        """A message has come."""
        self.received += 1
        try:
            number = decode(data)
        except ValueError:
            self.damaged += 1
            return
        if number > self.highest:
            self.missing.update(range(self.highest + 1, number))
            self.highest = number
        elif number in self.missing:
            self.missing.remove(number)
            self.reordered += 1
        else:
            self.repeated += 1

    def lost(self, sent: int) -> int:
        """How many of so many have not come."""
        return len(self.missing) + sent - self.highest

    def faults(self, sent: int) -> dict[str, int]:
        """Of a stream of so many that has ended: what is wrong with it; empty when nothing is."""
        found = {
            "lost": self.lost(sent),
            "repeated": self.repeated,
            "out of order": self.reordered,
            "damaged": self.damaged,
        }
        return {what: count for what, count in found.items() if count}
