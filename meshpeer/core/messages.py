"""The signalling schema, version 1, and nothing but it: typed messages <-> bytes of JSON.

Three groups. What a client says to the relay, what the relay says to a client, and what one peer
says to another inside a signal (`LinkMessage`), which the relay forwards without looking inside.
docs/protocol.md explains the exchange; this module is what both ends check it with.

Unknown fields are ignored, so that a later version can add some; of a field given twice the last
counts. Everything else that does not fit the schema raises `ProtocolError`, which names the field.

The relay is strict on behalf of those it forwards to: what it lets through is UTF-8 and nested no
deeper than `MAX_DEPTH`, in the parts that it does not look into as well. Otherwise a message that
one member may send would be one that another can't decode.

Counting: on each direction of a client's seat the messages marked *counted* are numbered by both
ends, from 1, without the number being sent. `Ack` and the ``received`` fields carry such numbers;
they are what lets a dropped socket resume without loss or repetition.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct, field

from meshpeer.errors import ProtocolError

__all__ = [
    "MAX_CANDIDATES",
    "MAX_DEPTH",
    "MAX_JOIN_TOKEN",
    "MAX_MEMBER",
    "MAX_METADATA",
    "MAX_REASON",
    "MAX_REPORTS",
    "MAX_SDP",
    "MAX_TEXT",
    "VERSION",
    "Ack",
    "Answer",
    "Candidates",
    "ClientMessage",
    "Dial",
    "Forwarded",
    "Goodbye",
    "IceCandidate",
    "IceServerInfo",
    "IceServers",
    "Incarnation",
    "Join",
    "JoinToken",
    "Leave",
    "LinkMessage",
    "LinkReport",
    "Member",
    "MemberJoined",
    "MemberLeft",
    "MemberUpdated",
    "Metadata",
    "Notice",
    "Offer",
    "PeerId",
    "Ping",
    "Pong",
    "Refused",
    "RelayMessage",
    "Report",
    "RestartIce",
    "SignalIn",
    "SignalOut",
    "Stale",
    "Update",
    "Welcome",
    "brief",
    "check_metadata",
    "check_sdp",
    "count_candidates",
    "decode_client",
    "decode_link",
    "decode_relay",
    "encode",
    "printable",
]

VERSION = 1
MAX_METADATA = 4096
"""Bytes of JSON that a member's metadata may have."""
MAX_MEMBER = 40 * 1024
"""Bytes of a join or an update. All that one may say fits in, however it is escaped."""
MAX_JOIN_TOKEN = 4096
"""Characters of a token that a join may carry."""
MAX_TEXT = 1024
"""Characters that a text for people may have."""
MAX_SDP = 64 * 1024
"""Characters that a session description may have."""
MAX_CANDIDATES = 100
"""ICE candidates that one message may carry."""
MAX_REPORTS = 100
"""Links that one report may tell about."""
MAX_REASON = 200
"""Bytes of UTF-8 that a reason in a report may have."""
MAX_DEPTH = 32
"""Arrays and objects inside each other that a client's message may have."""

# No control characters, no line or paragraph separators, nothing that turns the direction of text,
# no surrounding white space: a peer id or a name goes into logs and terminals as it is.
_BAD = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
# The end is \Z: $ would let a line feed follow.
_LABEL = rf"^[^\s{_BAD}]([^{_BAD}]*[^\s{_BAD}])?\Z"
_INCARNATION = r"^[A-Za-z0-9_-]{8,64}\Z"
_TOKEN = r"^[A-Za-z0-9_-]{16,128}\Z"
_CODE = r"^[a-z_]{1,64}\Z"
_TEXT = rf"^[^{_BAD}]*\Z"
# RFC 7515, section 7.1, and whatever else an embedding program takes: printable ASCII.
_JOIN_TOKEN = rf"^[!-~]{{1,{MAX_JOIN_TOKEN}}}\Z"
_ICE_URL = rf"^(stun|turns?):[^\s{_BAD}]+\Z"
_PATTERNS = {
    _ICE_URL: "that begins with stun:, turn: or turns:",
    _TEXT: "without control characters",
    _LABEL: "without control characters and without white space around it",
    _INCARNATION: "of 8 to 64 letters, digits, - and _",
    _TOKEN: "of 16 to 128 letters, digits, - and _",
    _CODE: "of 1 to 64 lower-case letters and _",
    _JOIN_TOKEN: f"of 1 to {MAX_JOIN_TOKEN} printable ASCII characters without spaces",
}

PeerId = Annotated[str, Meta(min_length=1, max_length=128, pattern=_LABEL)]
Room = Annotated[str, Meta(min_length=1, max_length=128, pattern=_LABEL)]
DisplayName = Annotated[str, Meta(min_length=1, max_length=128, pattern=_LABEL)]
Incarnation = Annotated[str, Meta(pattern=_INCARNATION)]
Token = Annotated[str, Meta(pattern=_TOKEN)]
JoinToken = Annotated[str, Meta(pattern=_JOIN_TOKEN)]
Epoch = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Generation = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Version = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]
Text = Annotated[str, Meta(max_length=MAX_TEXT, pattern=_TEXT)]
Code = Annotated[str, Meta(pattern=_CODE)]
IceUrl = Annotated[str, Meta(max_length=256, pattern=_ICE_URL)]
Secret = Annotated[str, Meta(max_length=512)]
Metadata = dict[str, Any]


# --- client -> relay ---------------------------------------------------------------------------


class Join(Struct, frozen=True, tag="join"):
    """Ask for a seat, or for the seat one had. The first message on a socket."""

    version: Version
    room: Room
    peer_id: PeerId
    incarnation: Incarnation
    name: DisplayName | None = None
    metadata: Metadata = {}
    on_conflict: Literal["reject", "takeover", "rename"] = "reject"
    token: Token | None = None
    """The resume token of an earlier `Welcome`; absent at the first join."""
    session: Token | None = None
    """`Welcome.session` of the latest `Welcome` that arrived here; absent before the first."""
    received: Count = 0
    """How many counted messages this incarnation has received in that session."""
    attempt: Count = 0
    """Rises with every join of an incarnation, so that one that was long on its way is not taken
    for the latest."""
    join_token: JoinToken | None = None
    """What shows that this client may join, where the relay asks for it (a JWT, RFC 7519)."""

    def __repr__(self) -> str:
        return f"Join(room={self.room!r}, peer_id={self.peer_id!r})"


class SignalOut(Struct, frozen=True, tag="signal"):
    """Forward ``body`` to a member of the same room. Counted."""

    to: PeerId
    to_incarnation: Incarnation
    epoch: Epoch
    body: Raw


class Update(Struct, frozen=True, tag="update"):
    """Change the display name or the metadata; a field that is absent stays as it is. Counted."""

    name: DisplayName | None = None
    metadata: Metadata | None = None


class Leave(Struct, frozen=True, tag="leave"):
    """Give the seat up."""


class LinkReport(Struct, frozen=True, array_like=True, gc=False):
    """How a link stands, as one of its ends sees it; an array on the wire, to be short.

    What is counted is counted from the beginning of this pair of incarnations, and goes on when
    they meet again after ``closed``. A figure that was not measured is None. Reasons have
    `MAX_REASON` bytes of UTF-8 at most.
    """

    peer_id: PeerId
    """The other end."""
    incarnation: Incarnation
    state: Literal["new", "connecting", "connected", "disconnected", "failed", "closed"]
    ice_state: Annotated[str, Meta(pattern=_CODE)]
    path: Literal["direct", "turn", "relay"] | None = None
    rtt: Seconds | None = None
    """The latest round trip."""
    reason: Annotated[str, Meta(max_length=MAX_REASON, pattern=_TEXT)] = ""
    """Why it is in this state."""
    failure: Annotated[str, Meta(max_length=MAX_REASON, pattern=_TEXT)] = ""
    """Why the latest attempt, restart or path that failed did."""
    restarts: Count = 0
    """ICE restarts that took over."""
    attempts: Count = 0
    """Connections that were begun (epochs)."""
    successes: Count = 0
    """How many of them connected."""
    failures: Count = 0
    """How many of them ended without that. The rest is under way."""
    connect_time: Annotated[float, Meta(ge=0)] | None = None
    """Seconds from the beginning of an attempt to its success, of all successes together."""
    fallbacks: Count = 0
    """How often data went over to the relay."""
    messages: Count = 0
    """Messages that this end sent over a direct or a TURN path."""
    bytes_sent: Count = 0
    """Bytes of messages that this end sent, over any path."""
    bytes_received: Count = 0


class Report(Struct, frozen=True, tag="report"):
    """How these links stand now; of others what was last said holds. ``closed`` ends one. No
    incarnation is told about twice.

    Sent where `Welcome.report_interval` asks for it: every link after each welcome, then those that
    changed, soon after they did and at least so often. Not counted: the next one mends a loss.
    """

    links: Annotated[list[LinkReport], Meta(max_length=MAX_REPORTS)]


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there? The answer is a `Pong`. For who can't send WebSocket pings, as a browser."""


# --- both ways ---------------------------------------------------------------------------------


class Ack(Struct, frozen=True, tag="ack"):
    """So many counted messages have arrived here in all."""

    received: Count


# --- relay -> client ---------------------------------------------------------------------------


class Member(Struct, frozen=True):
    """Somebody who has a seat in the room."""

    peer_id: PeerId
    incarnation: Incarnation
    name: DisplayName | None = None
    metadata: Metadata = {}


class IceServerInfo(Struct, frozen=True):
    """A STUN or TURN server (W3C WebRTC, RTCIceServer)."""

    urls: Annotated[list[IceUrl], Meta(min_length=1, max_length=8)]
    username: Secret | None = None
    credential: Secret | None = None

    def __repr__(self) -> str:
        return f"IceServerInfo(urls={self.urls!r})"


class IceServers(Struct, frozen=True, tag="ice_servers"):
    """The servers to use from now on, in place of those that an earlier one named. Sent again
    before credentials expire, ``expires_in`` seconds after it was sent at the earliest."""

    servers: Annotated[list[IceServerInfo], Meta(max_length=16)]
    expires_in: Seconds | None = None


class Welcome(Struct, frozen=True, tag="welcome"):
    """The seat is yours. ``resumed``: it is the one you had, and nothing was missed.

    After a welcome that is not resumed both counts begin again at zero and ``members`` (everybody
    else in the room) replaces what was known. After a resumed one ``members`` is empty: what
    changed meanwhile follows as the messages that were missed.

    A welcome may be lost with its socket. So each that is not resumed begins a ``session`` with a
    name of its own, and a join shows the session that its count belongs to; a count of another
    session, or of none, is never resumed from.
    """

    version: Version
    room: Room
    peer_id: PeerId
    incarnation: Incarnation
    token: Token
    seat_timeout: Seconds
    session: Token | None = None
    """None: this service can't resume."""
    resumed: bool = False
    received: Count = 0
    """How many of the client's counted messages the relay has, by the count of the session that the
    join named (0 when that one is over). The client sends the rest again: after a resumed welcome
    under the numbers they had, else from 1."""
    members: list[Member] = []
    forward_window: Count = 0
    """Bytes of data that a member may have on its way to one other; 0: no data is forwarded."""
    report_interval: Seconds = 0
    """Seconds between two `Report`s at most; 0: none are wanted."""
    ice_servers: IceServers | None = None
    """The STUN and TURN servers to use from the first moment."""
    name: DisplayName | None = None
    """The display name that the others see, where the relay gives one whatever the client says of
    itself; None: it is what the client says."""

    def __repr__(self) -> str:
        return f"Welcome(room={self.room!r}, peer_id={self.peer_id!r}, resumed={self.resumed})"


class MemberJoined(Struct, frozen=True, tag="joined"):
    """Somebody has a seat now. Known id, other incarnation: the earlier one is gone. Counted."""

    member: Member


class MemberLeft(Struct, frozen=True, tag="left"):
    """A seat was given up (``left``) or ran out (``timeout``). Counted."""

    peer_id: PeerId
    incarnation: Incarnation
    reason: Code


class MemberUpdated(Struct, frozen=True, tag="updated"):
    """A member changed its name or metadata; both are given as they are now. Counted."""

    peer_id: PeerId
    incarnation: Incarnation
    name: DisplayName | None = None
    metadata: Metadata = {}


class SignalIn(Struct, frozen=True, tag="signal"):
    """A forwarded signal. ``sender`` (``from`` on the wire) and ``incarnation`` are the relay's
    word, not the sender's. Counted."""

    sender: PeerId = field(name="from")
    incarnation: Incarnation
    to_incarnation: Incarnation
    epoch: Epoch
    body: Raw


class Refused(Struct, frozen=True, tag="refused"):
    """The relay did not do what was asked. Counted when the client has a seat.

    ``message`` is the number of the counted message that is meant, 0 when it was none. ``to`` is
    the addressee of a signal that could not be forwarded.
    """

    code: Code
    text: Text
    field: Text | None = None
    message: Count = 0
    to: PeerId | None = None
    retry_after: Seconds | None = None


class Forwarded(Struct, frozen=True, tag="forwarded"):
    """So many more bytes of data for this member (whole messages, as they came) are no longer on
    their way: written to its socket, or dropped."""

    to: PeerId
    size: Count


class Notice(Struct, frozen=True, tag="notice"):
    """The operator of the relay has something to say to this room. Counted."""

    text: Text


class RestartIce(Struct, frozen=True, tag="restart_ice"):
    """The operator asks for an ICE restart with this member, or with all. Counted."""

    peer_id: PeerId | None = None


class Goodbye(Struct, frozen=True, tag="goodbye"):
    """The relay closes this socket. ``replaced``: a newer incarnation has the seat, do not come
    back. ``removed``: the operator took the seat away, do not come back. ``shutdown``: come back
    after ``retry_after`` seconds."""

    reason: Code
    retry_after: Seconds | None = None


class Pong(Struct, frozen=True, tag="pong"):
    """I am. One for each `Ping`, after all that was said before."""


# --- peer -> peer, inside a signal --------------------------------------------------------------


class Offer(Struct, frozen=True, tag="offer"):
    """A session description (RFC 8829) that begins an epoch, or with a generation above 0 an ICE
    restart within it."""

    sdp: str
    generation: Generation = 0


class Answer(Struct, frozen=True, tag="answer"):
    """The session description that answers the offer of the same epoch and generation."""

    sdp: str
    generation: Generation = 0


class IceCandidate(Struct, frozen=True, rename="camel"):
    """One candidate (RFC 8839, section 5.1), as W3C WebRTC's RTCIceCandidateInit writes it."""

    candidate: Annotated[str, Meta(max_length=1024)]
    sdp_mid: Annotated[str, Meta(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, Meta(ge=0, le=255)] | None = field(
        name="sdpMLineIndex", default=None
    )


class Candidates(Struct, frozen=True, tag="candidates"):
    """More candidates for a generation of this epoch; ``end`` when there will be no others."""

    candidates: Annotated[list[IceCandidate], Meta(max_length=MAX_CANDIDATES)] = []
    end: bool = False
    generation: Generation = 0


class Dial(Struct, frozen=True, tag="dial"):
    """From the side that waits to the side that dials: this epoch is dead here, dial again."""

    reason: Text = ""


class Stale(Struct, frozen=True, tag="stale"):
    """What you sent was for an incarnation or an epoch that is over; these are the current ones."""

    incarnation: Incarnation
    epoch: Epoch


ClientMessage = Join | SignalOut | Update | Leave | Ack | Report | Ping
RelayMessage = (
    Welcome
    | MemberJoined
    | MemberLeft
    | MemberUpdated
    | SignalIn
    | Refused
    | IceServers
    | Forwarded
    | Notice
    | RestartIce
    | Goodbye
    | Pong
    | Ack
)
LinkMessage = Offer | Answer | Candidates | Dial | Stale
Message = ClientMessage | RelayMessage | LinkMessage

_encoder = msgspec.json.Encoder()
_client_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_relay_decoder: msgspec.json.Decoder[RelayMessage] = msgspec.json.Decoder(RelayMessage)
_link_decoder: msgspec.json.Decoder[LinkMessage] = msgspec.json.Decoder(LinkMessage)
_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
_KEY = re.compile(r"missing required field `(?P<name>[^`]*)`")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
# What a bracket does to the depth: one more, or (as a signed byte) one less.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_ECHO = 200

T = TypeVar("T")


def encode(message: Message) -> bytes:
    """The bytes of one message: JSON in UTF-8, without white space."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | str, who: str) -> T:
    try:
        # The decoder does not look at the UTF-8 of parts that it skips.
        if isinstance(data, bytes) and not data.isascii():
            data.decode()
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        text = str(exc)
        at = _AT.search(text)
        path = at["path"] if at else "$"
        if missing := _KEY.search(text):
            path = f"{path}.{missing['name']}"
        said = text[: at.start()] if at else text
        if "matching regex" in said:
            said = next(
                (
                    f"Expected `str` {words}"
                    for regex, words in _PATTERNS.items()
                    if repr(regex) in said
                ),
                said,
            )
        # A value that is echoed is the sender's; this text goes into logs and back over the wire.
        said = printable(said, _ECHO)
        raise ProtocolError(
            f"malformed message from {who}: {said} (field {path})", code="malformed", field=path
        ) from None
    except RecursionError:
        raise _too_deep(who) from None
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise ProtocolError(
            f"message from {who} is not JSON: {exc}", code="not_json", field="$"
        ) from None


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """At most ``limit`` characters of ``text``, each fit for a log, a terminal and the wire."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:limit])


def brief(text: str) -> str:
    """A reason as a report may have it: `printable`, and cut off at `MAX_REASON` bytes."""
    return printable(text, MAX_REASON).encode()[:MAX_REASON].decode(errors="ignore")


def _too_deep(who: str) -> ProtocolError:
    return ProtocolError(
        f"message from {who} is nested deeper than {MAX_DEPTH} arrays and objects",
        code="too_deep",
        field="$",
    )


def _is_too_deep(data: bytes) -> bool:
    """Whether ``data``, which is JSON, is nested deeper than `MAX_DEPTH`."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    # Whole passes at the speed of C: this is all that a relay does with most of a message, and a
    # message may be nothing but brackets. First what is escaped, so that every quote left begins or
    # ends a string; then all but brackets and quotes; then what is inside of strings.
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    data = data.translate(None, _NO_STRUCTURE)
    if b'"' in data:
        data = b"".join(data.replace(b'""', b"").split(b'"')[::2])
    return MAX_DEPTH + 1 in accumulate(array("b", data.translate(_STEPS)))


def decode_client(data: bytes | str) -> ClientMessage:
    """What a client said to the relay. Raises `ProtocolError` and nothing else."""
    if len(data) > MAX_MEMBER:
        _check_kind(data)
    message = _decode(_client_decoder, data, "the client")
    if _is_too_deep(data.encode() if isinstance(data, str) else data):
        raise _too_deep("the client")
    match message:
        case Join():
            if message.version != VERSION:
                raise ProtocolError(
                    f"this relay speaks version {VERSION} of the protocol, "
                    f"the client {message.version}",
                    code="unsupported_version",
                    field="$.version",
                )
            check_metadata(message.metadata)
        case Update(metadata=dict() as metadata):
            check_metadata(metadata)
        case Report(links):
            _check_links(links)
        case _:
            pass
    return message


class _Kind(Struct):
    type: str = ""


_kind_decoder = msgspec.json.Decoder(_Kind)


def _check_kind(data: bytes | str) -> None:
    """Refuse a large message that has no reason to be one before its metadata is made of it, which
    takes many times as long as all else."""
    kind = _decode(_kind_decoder, data, "the client").type
    if kind in ("join", "update"):
        raise ProtocolError(
            f"this {kind} has {len(data)} bytes, the limit is {MAX_MEMBER}",
            code="too_large",
            field="$",
        )


def _check_links(links: list[LinkReport]) -> None:
    """What the types don't tell of a report."""
    if len({(link.peer_id, link.incarnation) for link in links}) < len(links):
        raise ProtocolError(
            "malformed message from the client: it tells twice about the same incarnation "
            "(field $.links)",
            code="malformed",
            field="$.links",
        )
    for number, link in enumerate(links):
        for place, text in ((6, link.reason), (7, link.failure)):
            if not text.isascii() and len(text.encode()) > MAX_REASON:
                field = f"$.links[{number}][{place}]"
                raise ProtocolError(
                    "malformed message from the client: Expected `str` of at most "
                    f"{MAX_REASON} bytes of UTF-8 (field {field})",
                    code="malformed",
                    field=field,
                )


def decode_relay(data: bytes | str) -> RelayMessage:
    """What the relay said to a client. Raises `ProtocolError` and nothing else."""
    return _decode(_relay_decoder, data, "the relay")


def decode_link(body: bytes | Raw) -> LinkMessage:
    """What one peer said to another inside a signal. Raises `ProtocolError` and nothing else."""
    message = _decode(_link_decoder, bytes(body), "the peer")
    if isinstance(message, Offer | Answer):
        check_sdp(message.sdp)
    return message


def check_metadata(metadata: Metadata) -> None:
    """Raise `ProtocolError` when ``metadata`` is larger than `MAX_METADATA` bytes of JSON."""
    size = len(_encoder.encode(metadata))
    if size > MAX_METADATA:
        raise ProtocolError(
            f"metadata has {size} bytes of JSON, the limit is {MAX_METADATA}",
            code="too_large",
            field="$.metadata",
        )


_SDP_NEEDS = {
    "m=application ": "a data channel section",
    "a=ice-ufrag:": "ICE credentials",
    "a=ice-pwd:": "ICE credentials",
    "a=fingerprint:": "a DTLS fingerprint",
}


def check_sdp(sdp: str) -> None:
    """Raise `ProtocolError` unless ``sdp`` could describe a data channel (RFC 8841).

    This is what can be told before anything is changed for it: the shape of each line (RFC 8866,
    section 5), and that no part is missing without which there is no connection.
    """
    if len(sdp) > MAX_SDP:
        raise ProtocolError(
            f"the session description has {len(sdp)} characters, the limit is {MAX_SDP}",
            code="too_large",
            field="$.sdp",
        )
    lines = sdp.splitlines()
    for number, line in enumerate(lines, 1):
        if len(line) < 2 or line[1] != "=" or not line[0].isalpha():
            raise ProtocolError(
                f"line {number} of the session description is not of the form <type>=<value>: "
                f"{line[:40]!r}",
                code="bad_sdp",
                field="$.sdp",
            )
    if not lines or lines[0] != "v=0":
        raise ProtocolError(
            "the session description does not begin with v=0", code="bad_sdp", field="$.sdp"
        )
    if (count := count_candidates(sdp)) > MAX_CANDIDATES:
        raise ProtocolError(
            f"the session description has {count} candidates, the limit is {MAX_CANDIDATES}",
            code="too_many_candidates",
            field="$.sdp",
        )
    for prefix, what in _SDP_NEEDS.items():
        if not any(line.startswith(prefix) for line in lines):
            raise ProtocolError(
                f"the session description lacks {what} (no line {prefix!r})",
                code="bad_sdp",
                field="$.sdp",
            )


def count_candidates(sdp: str) -> int:
    """How many candidates there are in a session description (RFC 8839, section 5.1)."""
    return sum(line.startswith("a=candidate:") for line in sdp.splitlines())
