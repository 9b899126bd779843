"""All messages between two incarnations: each exactly once, in order, whatever path they take.

Every channel numbers its parts. The sender keeps them until they are acknowledged; the receiver
takes them in order, each once, and says how many more it takes. Neither begins anew with a new
connection or another path: a `Delivery` lives as long as both processes and what they know of each
other.

**The receiver chooses the path.** On the one it wants it sends a `Resume`, with what it has of each
channel and a *round*, which rises with each. The sender obeys the latest round: it answers `Start`
on that path and goes on from there, whatever it had sent elsewhere. What arrives on another path,
or before that answer, is of an earlier round and not looked at. So on each path, within a round,
parts follow each other without a gap, and nothing depends on what else a path lost.

**Credit** is given by channel: `MeshConfig.channel_window` beyond what the application has taken.
What of a large message does not fit into that is reserved from `MeshConfig.receive_window`, which
all channels share: all that it needs, as soon as there is so much, so that no two messages wait for
each other half received.

Among the channels that have something to send the one goes first that has had least, by its
priority (start-time fair queueing): a large message lets others pass between its parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from meshpeer.config import PRIORITIES, MeshConfig
from meshpeer.core import frames
from meshpeer.core.events import UndeliveredMessage
from meshpeer.core.frames import FIRST, LAST, OVERHEAD, Ack, Limit, Open, Parts, Resume, Role, Start
from meshpeer.core.values import Kind, check_value, decode_value
from meshpeer.errors import MessageTooLarge, ProtocolError, TooManyChannels

__all__ = [
    "ACK_EVERY",
    "MIN_MAX_MESSAGE",
    "MIN_WINDOW",
    "RELAY",
    "Delivery",
    "Mark",
    "Outgoing",
    "Received",
]

RELAY = 0
"""The path over the relay. Every other path is the epoch of its connection, from 1."""
ACK_EVERY = 64 * 1024
"""What may arrive, by its charge, before it is acknowledged without delay."""
MIN_MAX_MESSAGE = 1024
"""Bytes of the largest message that a side must take at least, as `MeshConfig` has it."""
MIN_WINDOW = 32 * 1024
"""The credit that a side must give each channel at least: the largest part fits into it, even if
what the sender knows of it is an eighth behind."""
_RUN_HEAD = 24
"""Bytes that the head of a run may have, and a part that is worth another run."""

Mark = tuple[tuple[int, int], ...]
"""A moment in what was accepted: for some channels, how many parts had been accepted by then."""


class Outgoing(Struct, frozen=True, gc=False):
    """A message ready to be sent; made once, however many peers get it."""

    channel: str
    size: int
    """Bytes of the message."""
    parts: tuple[tuple[bytes, int], ...]
    """As `frames.encode_message` makes them."""


class Received(Struct, gc=False):
    """A whole message. ``charge`` is to be given back with `Delivery.taken`.

    It is kept as the bytes that came, which are what ``charge`` counts; they are known to decode.
    """

    kind: Kind
    channel: str
    number: int
    """Of the channel, among those of the sender."""
    payload: bytes
    charge: int
    role: Role
    request: int
    """The number of the request that this is, or answers; 0 when it is neither."""

    def value(self) -> Any:
        """The data that was sent, built anew by each call: text, bytes, or what JSON says."""
        return decode_value(self.kind, self.payload)


class _Sending:
    """What is to go out on one channel."""

    __slots__ = (
        "acked",
        "half",
        "limit",
        "lost",
        "most",
        "name",
        "next",
        "number",
        "offset",
        "queue",
        "removed",
        "share",
        "turn",
        "unacked",
        "waiting",
    )

    def __init__(self, number: int, name: str, share: int, limit: int) -> None:
        self.number = number
        self.name = name
        self.share = share
        self.turn = 0.0
        """The virtual time at which it has had its share; the lowest goes next."""
        self.limit = limit
        self.acked = 0
        """All parts before this one have arrived."""
        self.next = 0
        """The first that is in the queue; those between are in ``unacked``."""
        self.most = 0
        """Beyond the highest that was ever sent."""
        self.offset = 0
        """What all parts before ``next`` are charged."""
        self.unacked: deque[tuple[bytes, int]] = deque()
        self.queue: deque[tuple[bytes, int]] = deque()
        self.half: list[bytes] = []
        """Parts that have arrived, of a message of which others have not."""
        self.waiting = 0
        """What all that is unacknowledged is charged."""
        self.removed: list[tuple[int, int]] = []
        """Where, and how many, parts were taken out of the queue: marks before count without."""
        self.lost = range(0)
        """The parts that were given up last: they have not arrived, though ``acked`` is beyond."""

    @property
    def ready(self) -> bool:
        return bool(self.queue) and self.offset + self.queue[0][1] <= self.limit

    @property
    def end(self) -> int:
        """Beyond the last that was accepted."""
        return self.next + len(self.queue)

    def acknowledge(self, arrived: int) -> int:
        """All before this part have arrived; how many more messages that are."""
        half = self.half
        messages = 0
        for _ in range(arrived - self.acked):
            if self.unacked:
                part, charge = self.unacked.popleft()
            else:  # it arrived over the path before, and was to be sent again
                part, charge = self.queue.popleft()
                self.next += 1
                self.offset += charge
            self.waiting -= charge
            if not frames.is_last(part):
                half.append(part)
                continue
            messages += 1
            if half:
                half.clear()
        self.acked = max(self.acked, arrived)
        return messages

    def rewind(self) -> None:
        """Send what is unacknowledged once more."""
        self.offset -= sum(charge for _, charge in self.unacked)
        self.queue.extendleft(reversed(self.unacked))
        self.unacked.clear()
        self.next = self.acked

    def messages(self) -> list[list[bytes]]:
        """The parts of each message that has not arrived whole."""
        out: list[list[bytes]] = []
        message = list(self.half)
        for part, _ in (*self.unacked, *self.queue):
            message.append(part)
            if frames.is_last(part):
                out.append(message)
                message = []
        return out

    def clear(self) -> None:
        """Give up what has not arrived; what is accepted from now on follows it."""
        self.offset += sum(charge for _, charge in self.queue)
        self.lost = range(self.acked, self.end) or self.lost
        self.acked = self.next = self.most = self.end
        self.unacked.clear()
        self.queue.clear()
        self.half.clear()
        self.waiting = 0


class _Receiving:
    """What arrives on one channel."""

    __slots__ = (
        "charge",
        "head",
        "limit",
        "name",
        "next",
        "number",
        "pieces",
        "received",
        "size",
        "stale",
        "taken",
        "told",
    )

    def __init__(self, number: int, name: str, limit: int) -> None:
        self.number = number
        self.name = name
        self.next = 0
        """The part that is waited for."""
        self.received = 0
        """What all parts before it were charged."""
        self.taken = 0
        """How much of that the application has taken."""
        self.limit = limit
        self.told = limit
        """The limit that the sender knows."""
        self.stale = False
        """Whether the sender knows less than there is to know."""
        self.head: frames.Part | None = None
        """The first part of a message that has not arrived whole."""
        self.pieces: list[bytes] = []
        self.size = 0
        """Bytes of the pieces."""
        self.charge = 0
        """What they were charged."""

    def forget_half(self) -> None:
        self.taken += self.charge
        self.head = None
        self.pieces.clear()
        self.size = self.charge = 0


class Delivery:
    """Both directions between two incarnations. No I/O, no clock.

    `attach` and `detach` say which path is wanted and which is gone; what arrives goes in by
    `received`; what is to go out on path `out` comes from `pull`.
    """

    __slots__ = (
        "_ack_at",
        "_ack_now",
        "_answer",
        "_asked",
        "_channels",
        "_config",
        "_control",
        "_hungry",
        "_in",
        "_incoming",
        "_max_channels",
        "_max_message",
        "_now_turn",
        "_numbered",
        "_out",
        "_pong",
        "_refused",
        "_refused_requests",
        "_round",
        "_sent_on",
        "_since_ack",
        "_started",
        "_their_round",
        "_to_ask",
        "_window",
        "bytes_received",
        "bytes_sent",
        "messages_direct",
        "messages_received",
        "messages_sent",
    )

    def __init__(self, config: MeshConfig) -> None:
        self._config = config
        self.messages_sent = 0
        """Messages that were accepted."""
        self.messages_direct = 0
        """How many of them arrived over a connection, direct or through TURN, and not over the
        relay: each counts once, when it is acknowledged, for the path that is used then."""
        self.messages_received = 0
        self.bytes_sent = 0
        """What the messages have that were accepted."""
        self.bytes_received = 0
        # Sending.
        self._channels: dict[str, _Sending] = {}
        self._numbered: list[_Sending] = []
        self._out: int | None = None
        self._sent_on: int | None = None
        """The latest `out` there was."""
        self._their_round = 0
        self._max_message: int | None = None
        self._max_channels = config.max_channels
        self._window = 0
        # What waits for room on the path. Of what the other side can ask for again and again, only
        # the latest answer does.
        self._control: deque[bytes] = deque()
        self._answer: bytes | None = None
        self._pong: int | None = None
        self._now_turn = 0.0
        self._to_ask = False
        self._asked: Mark | None = None
        self._refused: list[UndeliveredMessage] = []
        self._refused_requests: list[int] = []
        # Receiving.
        self._incoming: list[_Receiving] = []
        self._in: int | None = None
        self._round = 0
        self._started = False
        self._hungry: deque[_Receiving] = deque()
        self._since_ack = 0
        self._ack_at: float | None = None
        self._ack_now = False

    # --- paths ---

    @property
    def out(self) -> int | None:
        """The path that the other side wants to receive on; None while there is none."""
        return self._out

    @property
    def inbound(self) -> int | None:
        """The path that we asked to receive on."""
        return self._in

    def attach(self, path: int, *, ask: bool) -> bytes:
        """Receive on this path from now on: the frame that says so, to be sent on it.

        ``ask``: the other side is to do the same, as we want to send there.
        """
        self._in, self._started = path, False
        self._round += 1
        for channel in self._incoming:
            channel.stale, channel.told = False, channel.limit
        self._acknowledged()
        return frames.encode(
            Resume(
                round=self._round,
                ask=ask,
                max_message=self._config.max_message_size,
                max_channels=self._config.max_channels,
                window=self._config.channel_window,
                limits=[Limit(c.number, c.next, c.limit) for c in self._incoming],
            )
        )

    def answer(self, path: int) -> None:
        """Receive on path `out` from now on, as the other side asked: `pull` has the frame."""
        assert path == self._out
        self._answer = self.attach(path, ask=False)

    @property
    def answering(self) -> bool:
        """Whether an answer waits for room."""
        return self._answer is not None

    def pong(self, nonce: int) -> None:
        """Answer a ping; of several that wait for room, the latest is."""
        self._pong = nonce

    def detach(self, path: int) -> None:
        """This path is gone."""
        if self._out == path:
            self._out = self._answer = self._pong = None
            self._control.clear()
        if self._in == path:
            self._in, self._started = None, False

    # --- sending ---

    def has_room(self, channel: str) -> bool:
        """Whether another message of this channel is accepted now."""
        sending = self._channels.get(channel)
        return sending is None or sending.waiting < self._config.send_window

    def accept(self, message: Outgoing) -> tuple[int, int]:
        """Take a message on; it goes out as soon as it may. The place it has, for `arrived`.

        Raises `MessageTooLarge`, `TooManyChannels`.
        """
        if self._max_message is not None and message.size > self._max_message:
            raise MessageTooLarge(
                f"the message has {message.size} bytes, the other side takes "
                f"{self._max_message}: send it in parts"
            )
        channel = self._channels.get(message.channel) or self._open(message.channel)
        if not channel.queue:
            # Who had nothing to send has no claim to what the others had meanwhile.
            channel.turn = max(channel.turn, self._now_turn)
        channel.queue.extend(message.parts)
        for _, charge in message.parts:
            channel.waiting += charge
        self.messages_sent += 1
        self.bytes_sent += message.size
        return channel.number, channel.end + sum(count for _, count in channel.removed)

    def _open(self, name: str) -> _Sending:
        number = len(self._channels)
        if number >= self._max_channels:
            raise TooManyChannels(
                f"{number} channels are in use already, as many as the other side takes: {name!r} "
                "would be one more"
            )
        share = PRIORITIES[self._config.channel_priorities.get(name, "low")]
        channel = self._channels[name] = _Sending(number, name, share, self._window)
        self._numbered.append(channel)
        if self._out is not None:
            self._control.append(frames.encode(Open(number, name)))
        return channel

    def mark(self) -> Mark:
        """All that was accepted so far."""
        return tuple(
            (c.number, c.end + sum(count for _, count in c.removed))
            for c in self._numbered
            if c.waiting
        )

    def arrived(self, mark: Mark) -> bool:
        """Whether the other side has acknowledged all of it."""
        channels = self._numbered
        for number, place in mark:
            if number >= len(channels):
                continue  # refused, with all that was accepted for it
            channel = channels[number]
            end = place - sum(count for at, count in channel.removed if at < place)
            if end > channel.acked or end - 1 in channel.lost:
                return False
        return True

    def ask(self) -> None:
        """Somebody waits for acknowledgements: they are not to be delayed."""
        self._to_ask = True

    @property
    def unsent(self) -> bool:
        """Whether something accepted has not gone out."""
        return any(channel.queue for channel in self._numbered)

    @property
    def unacknowledged(self) -> int:
        """What was accepted and has not arrived as far as is known, by its charge."""
        return sum(channel.waiting for channel in self._numbered)

    @property
    def due(self) -> bool:
        """Whether `pull` has something that is not a message."""
        return self._out is not None and (
            self._ack_now
            or bool(self._control)
            or self._answer is not None
            or self._pong is not None
        )

    def pull(self, size: int) -> bytes | None:
        """The next frame for path `out`, of at most ``size`` bytes unless it is one part; None
        when there is none to be sent now."""
        if self._out is None:
            return None
        if self._answer is not None:
            answer, self._answer = self._answer, None
            return answer
        if self._control:
            return self._control.popleft()
        if self._ack_now:
            return self._acks()
        if self._pong is not None:
            nonce, self._pong = self._pong, None
            return frames.encode(frames.Pong(nonce))
        pieces: list[bytes] = []
        room = min(size, frames.MAX_FRAME) - 1
        while (channel := self._next()) is not None:
            used = self._run(channel, room, pieces)
            if not used:
                break
            room -= used
            self._now_turn = channel.turn
            channel.turn += used / channel.share
            if room < 2 * _RUN_HEAD:
                break
        if pieces:
            return frames.encode_parts(pieces)
        return self._question()

    def _next(self) -> _Sending | None:
        """The channel whose turn it is."""
        best: _Sending | None = None
        for channel in self._numbered:
            if channel.queue and channel.ready and (best is None or channel.turn < best.turn):
                best = channel
        return best

    @staticmethod
    def _run(channel: _Sending, room: int, pieces: list[bytes]) -> int:
        """Put a run of parts behind ``pieces``; the bytes that it takes."""
        queue, unacked = channel.queue, channel.unacked
        offset, limit = channel.offset, channel.limit
        left = room - _RUN_HEAD
        run: list[bytes] = []
        while queue:
            part, charge = item = queue[0]
            left -= len(part)
            # A part that is too large for what was asked still goes when it is alone.
            if (left < 0 and (run or pieces)) or offset + charge > limit:
                break
            offset += charge
            queue.popleft()
            unacked.append(item)
            run.append(part)
        if not run:
            return 0
        seq = channel.next
        channel.next += len(run)
        channel.offset = offset
        channel.most = max(channel.most, channel.next)
        head = frames.run_head(channel.number, seq, len(run))
        pieces.append(head)
        pieces += run
        return len(head) + sum(map(len, run))

    def _question(self) -> bytes | None:
        """A ping behind all that was sent, once, when somebody waits for it to arrive."""
        if not self._to_ask or self.unsent:
            return None
        self._to_ask = False
        mark = tuple((c.number, c.next) for c in self._numbered if c.unacked)
        if not mark or mark == self._asked:
            return None
        self._asked = mark
        return frames.encode(frames.Ping(0))

    def give_up(self) -> list[UndeliveredMessage]:
        """The other side is gone: what has not arrived. Nothing of it is sent any more."""
        messages: list[UndeliveredMessage] = []
        for channel in self._numbered:
            messages += _decoded(channel.messages(), channel.name)
            channel.clear()
        return messages

    def refused(self) -> tuple[list[UndeliveredMessage], list[int]]:
        """What was accepted before it was known that the other side does not take messages so
        large, or so many channels; and the numbers of the requests among it. Told once."""
        refused = self._refused, self._refused_requests
        self._refused, self._refused_requests = [], []
        return refused

    # --- what arrives ---

    def received(
        self, path: int, frame: frames.Frame, now: float, messages: list[Received]
    ) -> None:
        """A frame arrived on a path. Adds the messages that are whole now to ``messages``.

        Raises `ProtocolError` for what is out of place, too large, beyond the credit, or does not
        decode; what was added before counts.
        """
        match frame:
            case Parts():
                if self._started and path == self._in:
                    self._parts(frame, now, messages)
            case Ack():
                for limit in frame.limits:
                    self._limited(limit)
            case Open():
                if self._started and path == self._in:
                    self._opened(frame.channel, frame.name)
            case Start():
                if frame.round == self._round and path == self._in and not self._started:
                    self._start(frame)
            case Resume():
                raise AssertionError("a resume goes to `resumed`")
            case frames.Ping():
                if self._since_ack or any(c.stale for c in self._incoming):
                    self._ack_now = True
            case _:
                pass

    def resumed(self, path: int, resume: Resume) -> bool:
        """The other side wants to receive on this path. False when a later round is known.

        Raises `ProtocolError`, and changes nothing, when it says what can't be.
        """
        if resume.round <= self._their_round:
            return False
        if resume.max_message < MIN_MAX_MESSAGE:
            raise ProtocolError(
                f"it takes messages of {resume.max_message} bytes, the least is {MIN_MAX_MESSAGE}",
                code="bad_limit",
                field="max_message",
            )
        if resume.window < MIN_WINDOW:
            raise ProtocolError(
                f"it gives a channel {resume.window} of credit, the least is {MIN_WINDOW}",
                code="bad_limit",
                field="window",
            )
        channels = self._numbered
        for limit in resume.limits:
            self._check(limit)
        if path != self._out:
            self._answer = None
        for limit in resume.limits:  # of what went over the path before
            self._limited(limit)
        self._their_round, self._out, self._sent_on = resume.round, path, path
        self._window = resume.window
        if self._max_message is None:
            self._set_limits(resume)
        for channel in channels:
            self._raise(channel, resume.window)
            channel.rewind()
            channel.turn = max(channel.turn, self._now_turn)
        for incoming in self._incoming:
            # What was last said of it may be lost with the path before.
            incoming.stale = self._ack_now = True
        self._asked = None
        self._to_ask = True  # somebody may wait whose question was lost with the path before
        start = Start(
            resume.round, [frames.Channel(c.number, c.next, c.offset, c.name) for c in channels]
        )
        self._pong = None
        self._control.clear()
        self._control.append(frames.encode(start))
        return True

    def _set_limits(self, resume: Resume) -> None:
        """They are those of the other side's program, so the first that are told hold."""
        self._max_message = resume.max_message
        self._max_channels = min(resume.max_channels, frames.MAX_CHANNELS)
        for channel in self._numbered[self._max_channels :]:
            self._refuse(channel.messages(), channel.name)
            del self._channels[channel.name]
        del self._numbered[self._max_channels :]
        for channel in self._numbered:
            self._refuse_larger(channel, resume.max_message)

    def _refuse_larger(self, channel: _Sending, most: int) -> None:
        """Nothing of this channel was sent yet."""
        place = channel.next  # what was given up before has its numbers
        channel.lost = range(0)
        for parts in channel.messages():
            items = [channel.queue.popleft() for _ in parts]
            place += len(parts)
            if len(frames.decode_message(parts)[2]) <= most:
                channel.queue.extend(items)  # behind the others, so that all are where they were
            else:
                self._refuse([parts], channel.name)
                channel.waiting -= sum(charge for _, charge in items)
                channel.removed.append((place - 1, len(parts)))

    def _refuse(self, messages: Sequence[Sequence[bytes]], channel: str) -> None:
        self._refused += _decoded(messages, channel)
        self._refused_requests += filter(None, map(frames.request_number, messages))

    def _check(self, limit: Limit) -> _Sending:
        channels = self._numbered
        if limit.channel >= len(channels):
            raise ProtocolError(
                f"channel {limit.channel} is acknowledged, {len(channels)} are in use",
                code="bad_ack",
                field="channel",
            )
        channel = channels[limit.channel]
        if limit.next > channel.most:
            raise ProtocolError(
                f"{limit.next} parts of channel {channel.name!r} are acknowledged, "
                f"{channel.most} were sent",
                code="bad_ack",
                field="next",
            )
        return channel

    def _limited(self, limit: Limit) -> None:
        channel = self._check(limit)
        messages = channel.acknowledge(limit.next)
        if self._sent_on not in (None, RELAY):
            self.messages_direct += messages
        self._raise(channel, limit.limit)

    def _raise(self, channel: _Sending, limit: int) -> None:
        if limit <= channel.limit:
            return  # overtaken, by another path
        if not channel.ready:
            channel.turn = max(channel.turn, self._now_turn)
        channel.limit = limit

    # --- the receiving side ---

    def _opened(self, number: int, name: str) -> _Receiving:
        known = len(self._incoming)
        if number < known and self._incoming[number].name == name:
            return self._incoming[number]
        if number != known or any(channel.name == name for channel in self._incoming):
            raise ProtocolError(
                f"channel {number} can't be {name!r}, {known} are in use",
                code="bad_channel",
                field="channel",
            )
        if known >= self._config.max_channels:
            raise ProtocolError(
                f"channel {name!r} would be one more than {known}, the limit",
                code="too_many_channels",
                field="channel",
            )
        channel = _Receiving(number, name, self._config.channel_window)
        self._incoming.append(channel)
        return channel

    def _start(self, start: Start) -> None:
        for number, seq, offset, name in start.channels:
            channel = self._opened(number, name)
            if seq <= channel.next and offset <= channel.received:
                continue
            if seq <= channel.next or offset <= channel.received:
                raise ProtocolError(
                    f"channel {name!r} can't go on at part {seq}, {offset}: it is at "
                    f"{channel.next}, {channel.received}",
                    code="bad_sequence",
                    field="seq",
                )
            # The sender gave up what is between.
            channel.forget_half()
            channel.taken += offset - channel.received
            channel.next, channel.received = seq, offset
            self._extend(channel)
            channel.stale = self._ack_now = True
        self._started = True
        self._feed()

    def _parts(self, frame: Parts, now: float, out: list[Received]) -> None:
        since, first = self._since_ack, len(out)
        try:
            for number, seq, parts in frame.runs:
                if number >= len(self._incoming):
                    raise ProtocolError(
                        f"parts of channel {number}, {len(self._incoming)} are open",
                        code="bad_channel",
                        field="channel",
                    )
                channel = self._incoming[number]
                if seq > channel.next:
                    raise ProtocolError(
                        f"part {seq} of channel {channel.name!r}, {channel.next} is the next",
                        code="bad_sequence",
                        field="seq",
                    )
                channel.stale = True
                for part in parts if seq == channel.next else parts[channel.next - seq :]:
                    self._part(channel, part, out)
        finally:
            charges = [message.charge for message in out[first:]]
            self.messages_received += len(charges)
            self.bytes_received += sum(charges) - OVERHEAD * len(charges)
            if self._since_ack >= ACK_EVERY:
                self._ack_now = True
            elif not since:
                self._ack_at = now + self._config.ack_delay

    def _part(self, channel: _Receiving, part: frames.Part, out: list[Received]) -> None:
        flags, total, request, payload = part
        begins, ends = flags & FIRST, flags & LAST
        head = channel.head
        charge = len(payload)
        if begins:
            charge += OVERHEAD
            if head is not None:
                raise _out_of_place("a message begins inside another")
            if total > self._config.max_message_size:
                raise ProtocolError(
                    f"a message of {total} bytes, the limit is {self._config.max_message_size}",
                    code="too_large",
                    field="total",
                )
        elif head is None:
            raise _out_of_place("a part of no message")
        received = channel.received + charge
        if received > channel.limit:
            raise ProtocolError(
                f"{received} was sent on channel {channel.name!r}, the credit is {channel.limit}",
                code="beyond_credit",
                field="payload",
            )
        if begins and ends:
            if len(payload) > self._config.max_message_size:
                raise ProtocolError(
                    f"a message of {len(payload)} bytes, the limit is "
                    f"{self._config.max_message_size}",
                    code="too_large",
                    field="length",
                )
            kind = part.kind
            check_value(kind, payload)
            out.append(
                Received(kind, channel.name, channel.number, payload, charge, part.role, request)
            )
        elif begins:
            channel.head = part
            channel.pieces.append(payload)
            channel.size, channel.charge = len(payload), charge
        else:
            assert head is not None
            size = channel.size + len(payload)
            if size > head.total or (ends and size < head.total):
                raise ProtocolError(
                    f"a message of {head.total} bytes has {size}", code="bad_frame", field="total"
                )
            if ends:
                whole = b"".join((*channel.pieces, payload))
                check_value(head.kind, whole)
                charges = channel.charge + charge
                channel.charge = 0
                channel.forget_half()
                out.append(
                    Received(
                        head.kind,
                        channel.name,
                        channel.number,
                        whole,
                        charges,
                        head.role,
                        head.number,
                    )
                )
            else:
                channel.pieces.append(payload)
                channel.size = size
                channel.charge += charge
        channel.received = received
        channel.next += 1
        self._since_ack += charge
        if begins and not ends and received + total - len(payload) > channel.limit:
            if channel not in self._hungry:
                self._hungry.append(channel)
            self._feed()

    def taken(self, number: int, charge: int) -> None:
        """The application took a message; `due` says whether that is worth a frame."""
        if number >= len(self._incoming):
            return  # of an incarnation that is back, after all of it was forgotten
        channel = self._incoming[number]
        channel.taken = min(channel.taken + charge, channel.received)
        self._extend(channel)
        if self._hungry:
            self._feed()

    def _beyond(self, channel: _Receiving) -> int:
        """How much the channel has reserved of what all share."""
        return max(0, channel.limit - channel.taken - self._config.channel_window)

    def _extend(self, channel: _Receiving) -> None:
        """Give the channel what it may have by itself."""
        window = self._config.channel_window
        limit = channel.taken + window
        if limit > channel.limit:
            channel.limit = limit
            # Not for each message: an eighth of the window is worth a frame.
            if limit - channel.told >= window >> 3:
                channel.stale = self._ack_now = True

    def _feed(self) -> None:
        """Reserve what half received messages need, the one that waits longest first."""
        while self._hungry:
            channel = self._hungry[0]
            if channel.head is not None:
                whole = channel.received - channel.charge + OVERHEAD + channel.head.total
                more = whole - channel.limit
                if more > 0:
                    reserved = sum(map(self._beyond, self._incoming))
                    if reserved + more > self._config.receive_window:
                        return
                    channel.limit = whole
                    channel.stale = self._ack_now = True
            self._hungry.popleft()

    @property
    def unread(self) -> int:
        """What has arrived and the application has not taken, by its charge."""
        return sum(channel.received - channel.taken for channel in self._incoming)

    @property
    def half(self) -> int:
        """Bytes that have arrived of messages that are not complete."""
        return sum(channel.size for channel in self._incoming)

    # --- acknowledgements and time ---

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        return self._ack_at

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._ack_at is not None and self._ack_at <= now:
            self._ack_at = None
            self._ack_now = True

    def last_ack(self) -> bytes | None:
        """What has arrived and was not acknowledged, before we leave: to be sent on any path."""
        return self._acks() if any(channel.stale for channel in self._incoming) else None

    def _acks(self) -> bytes:
        limits = []
        for channel in self._incoming:
            if channel.stale:
                channel.stale, channel.told = False, channel.limit
                limits.append(Limit(channel.number, channel.next, channel.limit))
        self._acknowledged()
        return frames.encode(Ack(limits))

    def _acknowledged(self) -> None:
        self._ack_now, self._ack_at, self._since_ack = False, None, 0


def _out_of_place(text: str) -> ProtocolError:
    return ProtocolError(text, code="unexpected_frame", field="flags")


def _decoded(messages: Sequence[Sequence[bytes]], channel: str) -> list[UndeliveredMessage]:
    """What applications sent, of messages by their parts."""
    if channel.startswith(frames.RESERVED):
        return []
    decoded = (frames.decode_message(parts) for parts in messages)
    return [
        UndeliveredMessage(decode_value(kind, payload), channel)
        for kind, role, payload in decoded
        if role is Role.PLAIN
    ]
