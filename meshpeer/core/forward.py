"""Data frames through the relay: one binary message <-> a member's name and an opaque frame.

::

    byte 0      1, which no JSON text begins with
    2 bytes     length of the peer id, then the peer id in UTF-8
    1 byte      length of the incarnation, then the incarnation in ASCII
    the rest    the frame, 1 to `MAX_FORWARD` bytes

To the relay the member is the addressee, from the relay the sender, as the relay knows it. What is
before the frame is the *head*: the same bytes for a member in both directions, so that a relay can
look it up, and put another in its place, without taking it apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from meshpeer.core.messages import Incarnation, PeerId
from meshpeer.errors import InvalidData, MessageTooLarge, ProtocolError

__all__ = [
    "FORWARD_SLACK",
    "MARK",
    "MAX_FORWARD",
    "MAX_HEAD",
    "ForwardRoom",
    "FrameIn",
    "decode_forward",
    "encode_forward",
    "forward_head",
    "head_size",
    "names",
]

MARK: Final = b"\x01"
"""The first byte of a message that carries a frame."""
MAX_FORWARD: Final = 64 * 1024
"""Bytes that a forwarded frame may have."""
MAX_HEAD: Final = 3 + 4 * 128 + 1 + 64
"""Bytes that may stand before the frame."""
FORWARD_SLACK: Final = 64 * 1024
"""Bytes beyond the window that a member may have on its way, for frames that must not wait."""


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A data frame that another member sent through the service, which stamped the sender."""

    sender: str
    incarnation: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ForwardRoom:
    """There is room again for data to this member: half of the window at least."""

    peer_id: str


@lru_cache(maxsize=1024)
def forward_head(peer_id: str, incarnation: str) -> bytes:
    """What comes before a frame to or from this member."""
    name, number = peer_id.encode(), incarnation.encode("ascii")
    return b"%b%b%b%c%b" % (MARK, len(name).to_bytes(2, "big"), name, len(number), number)


def encode_forward(peer_id: str, incarnation: str, frame: bytes) -> bytes:
    """The message that carries ``frame`` to this member, or from it.

    Raises `InvalidData` for an empty frame, `MessageTooLarge` for more than `MAX_FORWARD` bytes.
    """
    if not frame:
        raise InvalidData("a frame has at least one byte")
    if len(frame) > MAX_FORWARD:
        raise MessageTooLarge(f"the frame has {len(frame)} bytes, the limit is {MAX_FORWARD}")
    return forward_head(peer_id, incarnation) + frame


def head_size(data: bytes) -> int:
    """Where the frame begins in ``data``; the names before it are not looked at.

    Raises `ProtocolError` when a length lies, or the frame is empty or too large.
    """
    try:
        middle = 3 + (data[1] << 8 | data[2])
        start = middle + 1 + data[middle]
    except IndexError:
        raise _malformed("is cut off in the names before its frame") from None
    if not 1 <= len(data) - start <= MAX_FORWARD:
        raise _malformed(f"must have a frame of 1 to {MAX_FORWARD} bytes behind its names")
    return start


@lru_cache(maxsize=1024)
def names(head: bytes) -> tuple[str, str]:
    """Peer id and incarnation in a head that `head_size` found. Raises `ProtocolError`."""
    middle = 3 + (head[1] << 8 | head[2])
    try:
        return (
            msgspec.convert(head[3:middle].decode(), PeerId),
            msgspec.convert(head[middle + 1 :].decode("ascii"), Incarnation),
        )
    except (UnicodeDecodeError, msgspec.ValidationError):
        raise _malformed("does not begin with a peer id and an incarnation") from None


def decode_forward(data: bytes) -> FrameIn:
    """A forwarded frame and whose it is. Raises `ProtocolError` and nothing else."""
    if data[:1] != MARK:
        raise _malformed("must begin with the byte 1")
    start = head_size(data)
    sender, incarnation = names(data[:start])
    return FrameIn(sender, incarnation, data[start:])


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"a message with data {what}", code="bad_forward")
