"""The messages of one connection: put together from frames, and kept within the receiver's credit.

The receiver says how many bytes it takes in all; the sender stays below. What was received counts
as long as the application has not taken it, so an application that does not read stops its sender,
and memory stays within the window.

What an application has not taken counts for the peer, not for the connection: the next connection
begins with a first credit that is smaller by it. Since `INITIAL_CREDIT` may be sent before that
credit arrives, connections that come and go could still heap it up: beyond `RECONNECT_SLACK` more
than its credit a peer is refused.

New credit is given when a sixteenth of the window has been taken, not for each message. What is
not given yet comes on top of the window: once all is taken, a message as large as the window can
always be sent, and no sender waits for a credit that waits for the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshpeer.config import MeshConfig
from meshpeer.core.frames import (
    Credit,
    Data,
    Kind,
    More,
    check_value,
    decode_value,
    encode_credit,
)
from meshpeer.errors import MessageTooLarge, ProtocolError

__all__ = [
    "INITIAL_CREDIT",
    "MIN_MAX_MESSAGE",
    "MIN_PART",
    "OVERHEAD",
    "RECONNECT_SLACK",
    "Delivery",
    "Received",
]

INITIAL_CREDIT = 64 * 1024
"""Bytes that may be sent before the other side's first credit has come."""
OVERHEAD = 128
"""What every message costs on top of the bytes of its frames: what keeping an empty one takes."""
RECONNECT_SLACK = 16 * INITIAL_CREDIT
"""Bytes that a peer may have unread here beyond what it has credit for, by connecting again."""
MIN_MAX_MESSAGE = 1024
"""Bytes of the largest message that a side must take at least, as `MeshConfig` has it."""
MIN_PART = 1024
"""Bytes of the smallest frame that is not the last of its message, so that parts stay few."""


@dataclass(slots=True)
class Received:
    """A whole message. ``charge`` is to be given back with `Delivery.taken`.

    It is kept as the bytes that came, which are what ``charge`` counts; they are known to decode.
    """

    kind: Kind
    channel: str
    payload: bytes
    charge: int

    def value(self) -> Any:
        """The data that was sent, built anew by each call: text, bytes, or what JSON says."""
        return decode_value(self.kind, self.payload)


class Delivery:
    """Both directions of one connection. A new connection begins with a new object.

    ``after`` is that of the connection before, with the same incarnation: what is unread of it
    still counts here. A message that was half received is forgotten.
    """

    __slots__ = (
        "_charge",
        "_config",
        "_granted",
        "_limit",
        "_max_message",
        "_parts",
        "_received",
        "_sent",
        "_size",
        "_step",
        "_taken",
        "window",
    )

    def __init__(self, config: MeshConfig, *, after: Delivery | None = None) -> None:
        self._config = config
        # Sending.
        self._sent = 0
        self._limit = INITIAL_CREDIT
        self.window: int = 0 if after is None else after.window
        """What the other side may take at once, as far as it is known."""
        self._max_message: int | None = None
        # Receiving. One step may be taken and not given back yet; the other pays for what the
        # frames and the keeping of the largest message cost beyond its own bytes.
        self._step = config.receive_window // 16
        self._received = 0
        self._taken = 0 if after is None else -after.unread
        self._granted = max(INITIAL_CREDIT, self._may_have())
        self._parts: list[Data | More] = []
        self._size = 0
        self._charge = 0

    # --- sending ---

    def check(self, charge: int, size: int) -> None:
        """Raise `MessageTooLarge` for a message that the other side will never take."""
        if self._max_message is not None and size > self._max_message:
            raise MessageTooLarge(
                f"the message has {size} bytes, the other side takes {self._max_message}: "
                "send it in parts"
            )
        if self._max_message is not None and charge > self.window:
            raise MessageTooLarge(
                f"the message costs {charge} bytes of credit, the other side's window has "
                f"{self.window}: send it in parts"
            )

    def may_send(self, charge: int) -> bool:
        """Whether the credit suffices now."""
        return self._sent + charge <= self._limit

    def sent(self, charge: int) -> None:
        """So much was sent."""
        self._sent += charge

    def credited(self, credit: Credit) -> None:
        """The other side's credit arrived.

        Raises `ProtocolError` when it takes some back, or less than every side must take.
        """
        if credit.max_message < MIN_MAX_MESSAGE:
            raise ProtocolError(
                f"credit for messages of {credit.max_message} bytes, the least is "
                f"{MIN_MAX_MESSAGE}",
                code="bad_credit",
                field="max_message",
            )
        if credit.limit < self._limit:
            raise ProtocolError(
                f"credit went back from {self._limit} to {credit.limit}",
                code="bad_credit",
                field="limit",
            )
        if self._max_message is None:
            # The first of a connection is the window, less what was unread when it opened.
            self.window = max(self.window, credit.limit)
        self._limit = credit.limit
        self._max_message = credit.max_message

    # --- receiving ---

    @property
    def unread(self) -> int:
        """What the application has not taken, of earlier connections too, without half messages."""
        return self._received - self._charge - self._taken

    def _may_have(self) -> int:
        return self._taken + self._config.receive_window + 2 * self._step

    def first_credit(self) -> bytes:
        """The frame to begin with."""
        return encode_credit(self._granted, self._config.max_message_size)

    def received(self, frame: Data | More, size: int) -> Received | None:
        """A frame of ``size`` bytes arrived; the message, when it is whole now.

        Raises `ProtocolError` for what is out of place, too large, beyond the credit, or does not
        decode.
        """
        begins = isinstance(frame, Data)
        if begins == bool(self._parts):
            text = "a message begins inside another" if begins else "a part of no message"
            raise ProtocolError(text, code="unexpected_frame", field="type")
        if not frame.last and size < MIN_PART:
            raise ProtocolError(
                f"a part of {size} bytes that is not the last, the least is {MIN_PART}",
                code="bad_frame",
                field="size",
            )
        charge = size + (OVERHEAD if begins else 0)
        self._received += charge
        if self._received > self._granted:
            raise ProtocolError(
                f"{self._received} bytes were sent, the credit is {self._granted}",
                code="beyond_credit",
                field="payload",
            )
        unread = self._received - self._taken
        if unread > self._config.receive_window + 2 * self._step + RECONNECT_SLACK:
            raise ProtocolError(
                f"{unread} bytes are unread, by connecting again and again beyond the credit",
                code="beyond_credit",
                field="payload",
            )
        whole = self._size + len(frame.payload)
        if whole > self._config.max_message_size:
            raise ProtocolError(
                f"a message of {whole} bytes or more, the limit is {self._config.max_message_size}",
                code="too_large",
                field="payload",
            )
        self._parts.append(frame)
        self._size = whole
        self._charge += charge
        if not frame.last:
            return None
        parts, charge = self._parts, self._charge
        self._parts, self._size, self._charge = [], 0, 0
        head = parts[0]
        assert isinstance(head, Data)
        payload = head.payload if len(parts) == 1 else b"".join(part.payload for part in parts)
        check_value(head.kind, payload)
        return Received(head.kind, head.channel, payload, charge)

    def taken(self, charge: int) -> bytes | None:
        """The application took so much, of this connection or of one before.

        Returns the frame with new credit, when it is time for one.
        """
        self._taken = min(self._taken + charge, self._received)
        limit = self._may_have()
        if limit - self._granted < self._step:
            return None
        self._granted = limit
        return encode_credit(limit, self._config.max_message_size)
