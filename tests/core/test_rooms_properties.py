"""Rooms and clients that keep to the protocol, over sockets that fail whenever Hypothesis says so.

What is in flight is lost with its socket, and the relay may hear of that at once or much later.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from meshpeer.config import RelayConfig
from meshpeer.core.messages import (
    VERSION,
    Ack,
    Goodbye,
    Join,
    Leave,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Notice,
    Refused,
    RestartIce,
    SignalIn,
    SignalOut,
    Update,
    Welcome,
    decode_client,
    decode_relay,
    encode,
)
from meshpeer.core.rooms import ConnId, Output, Rooms, Send

ROOMS = ["one", "one", "two"]
IDS = ["ann", "bob", "ann-2"]
JUNK = [b"{", b"\xff", b'{"type":"dance"}', b'{"type":"signal"}', encode(Ack(received=10**6))]


@dataclass(eq=False)
class Client:
    """The client's end of the protocol, as short as it can be."""

    join: Join
    conn: ConnId | None = None
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes | None] = field(default_factory=deque)
    """None: the relay has closed the socket."""
    seated: bool = False
    over: bool = False
    unacked: deque[bytes] = field(default_factory=deque)
    acked: int = 0
    received: int = 0
    roster: dict[str, Member] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    inbox: defaultdict[str | None, list[int]] = field(default_factory=lambda: defaultdict(list))
    certain: bool = True
    """No seat of this client was ever lost together with the relay's count of its messages."""

    def say(self, message: SignalOut | Update) -> None:
        self.unacked.append(encode(message))
        if self.seated:
            self.up.append(self.unacked[-1])

    def drop_acked(self, received: int) -> None:
        assert self.acked <= received <= self.acked + len(self.unacked)
        while self.acked < received:
            self.unacked.popleft()
            self.acked += 1

    def hear(self, data: bytes) -> None:
        message = decode_relay(data)
        match message:
            case Welcome():
                assert not self.seated
                self.seated = True
                if message.resumed:
                    assert message.session == self.join.session
                if message.resumed or message.received:
                    self.drop_acked(message.received)
                if not message.resumed:
                    self.acked = self.received = 0
                    self.roster = {member.peer_id: member for member in message.members}
                self.join = msgspec.structs.replace(
                    self.join,
                    peer_id=message.peer_id,
                    token=message.token,
                    session=message.session,
                )
                self.up.extend(self.unacked)
                return
            case Goodbye() | Refused() if not self.seated:
                self.over = True
                return
            case Goodbye(reason=reason):
                self.over = reason in ("replaced", "removed")
                return
            case Ack(received=received):
                self.drop_acked(received)
                return
        assert self.seated
        self.received += 1
        match message:
            case MemberJoined(member=member):
                assert self.roster.get(member.peer_id) != member
                self.roster[member.peer_id] = member
            case MemberLeft():
                assert self.roster.pop(message.peer_id).incarnation == message.incarnation
            case MemberUpdated():
                before = self.roster[message.peer_id]
                assert before.incarnation == message.incarnation
                self.roster[message.peer_id] = msgspec.structs.replace(
                    before, name=message.name, metadata=message.metadata
                )
            case SignalIn():
                assert self.roster[message.sender].incarnation == message.incarnation
                self.inbox[self.join.session].append(msgspec.json.decode(message.body))
            case _:
                assert isinstance(message, Refused | Notice | RestartIce)


def some_client() -> st.SearchStrategy[int]:
    return st.integers(min_value=0, max_value=5)


class RoomsMachine(RuleBasedStateMachine):
    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        self.config = RelayConfig(max_replay=4 if small else 1000, max_members=5)
        tokens = itertools.count()
        self.rooms = Rooms(self.config, new_token=lambda: f"token-{next(tokens):016}")
        self.now = 0.0
        self.numbers = itertools.count()
        self.conns = itertools.count(1)
        self.open: set[ConnId] = set()
        self.late: list[ConnId] = []
        self.clients: list[Client] = []
        self.by_conn: dict[ConnId, Client] = {}
        # By session: the signals that the relay has taken for it.
        self.expected: defaultdict[str | None, list[int]] = defaultdict(list)
        # By incarnation: the signals that the relay has taken from it.
        self.taken: defaultdict[str, list[int]] = defaultdict(list)
        for peer_id in ("ann", "bob"):
            self.start("one", peer_id, "reject", None)
        self.carry_all()

    def client(self, number: int) -> Client:
        return self.clients[number % len(self.clients)]

    def apply(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.conn in self.open, "an output for a socket that is not open"
            client = self.by_conn.get(output.conn)
            if isinstance(output, Send):
                data: bytes | None = output.data
            else:
                self.open.discard(output.conn)
                data = None
            if client is not None:
                client.down.append(data)

    # --- what clients do -------------------------------------------------------------------------

    @rule(
        room=st.sampled_from(ROOMS),
        peer_id=st.sampled_from(IDS),
        policy=st.sampled_from(["reject", "takeover", "rename"]),
        heir_of=st.none() | some_client(),
    )
    def start(self, room: str, peer_id: str, policy: Any, heir_of: int | None) -> None:
        """A new process; perhaps one that has the token of an earlier one."""
        join = Join(
            version=VERSION,
            room=room,
            peer_id=peer_id,
            incarnation=f"incarnation-{len(self.clients)}",
            on_conflict=policy,
        )
        if heir_of is not None:
            before = self.client(heir_of).join
            join = msgspec.structs.replace(
                join, room=before.room, peer_id=before.peer_id, token=before.token
            )
        client = Client(join)
        self.clients.append(client)
        self.connect(client)

    def connect(self, client: Client) -> None:
        client.conn = next(self.conns)
        self.by_conn[client.conn] = client
        self.open.add(client.conn)
        self.rooms.opened(client.conn, self.now)
        client.up.append(encode(msgspec.structs.replace(client.join, received=client.received)))

    @rule(number=some_client())
    def come_back(self, number: int) -> None:
        client = self.client(number)
        if client.conn is None and not client.over:
            self.connect(client)

    @rule(
        number=some_client(),
        to=st.sampled_from(IDS),
        count=st.integers(min_value=1, max_value=6),
    )
    def signal(self, number: int, to: str, count: int) -> None:
        client = self.client(number)
        for _ in range(0 if client.over else count):
            signal = next(self.numbers)
            client.sent.append(signal)
            body = msgspec.Raw(b"%d" % signal)
            client.say(SignalOut(to=to, to_incarnation="whatever", epoch=0, body=body))

    @rule(number=some_client(), name=st.sampled_from(["Ann", "Bob"]))
    def update(self, number: int, name: str) -> None:
        client = self.client(number)
        if client.seated:
            client.join = msgspec.structs.replace(client.join, name=name)
            client.say(Update(name=name))

    @rule(number=some_client(), what=st.sampled_from(["ack", "leave", "join", *JUNK]))
    def say(self, number: int, what: str | bytes) -> None:
        client = self.client(number)
        if client.seated:
            match what:
                case "ack":
                    client.up.append(encode(Ack(received=client.received)))
                case "leave":
                    client.up.append(encode(Leave()))
                    client.over = True
                case "join":
                    client.up.append(encode(client.join))
                case bytes():
                    client.up.append(what)

    # --- what the operator does ------------------------------------------------------------------

    @rule(number=some_client(), what=st.sampled_from(["remove", "restart", "notice"]))
    def act(self, number: int, what: str) -> None:
        client = self.client(number)
        if (seat := self.rooms._seated.get(client.conn or 0)) is None:
            return
        match what:
            case "remove":
                self.apply(self.rooms.remove(seat.room, seat.peer_id, self.now))
            case "restart":
                self.apply(self.rooms.restart_ice(seat.room, seat.peer_id, None, self.now))
            case _:
                self.apply(self.rooms.notice(seat.room, "hello", self.now))

    # --- what the network does -------------------------------------------------------------------

    @rule(number=some_client(), count=st.integers(min_value=1, max_value=40))
    def carry_up(self, number: int, count: int) -> None:
        client = self.client(number)
        while client.up and client.conn is not None and count:
            data = client.up.popleft()
            count -= 1
            seat = self.rooms._seated.get(client.conn)
            try:
                message = decode_client(data)
            except Exception:
                message = None
            if isinstance(message, Join) and seat is None and message.session is not None:
                held = self.rooms._rooms.get(message.room, {}).get(message.peer_id)
                if held is None or held.session != message.session:
                    client.certain = False
            if isinstance(message, SignalOut) and seat is not None:
                signal = msgspec.json.decode(message.body)
                self.taken[client.join.incarnation].append(signal)
                to = self.rooms._rooms[seat.room].get(message.to)
                if to is not None and to is not seat:
                    self.expected[to.session].append(signal)
            self.apply(self.rooms.received(client.conn, data, self.now))

    @rule(number=some_client(), count=st.integers(min_value=1, max_value=40))
    def carry_down(self, number: int, count: int) -> None:
        client = self.client(number)
        while client.down and count:
            count -= 1
            data = client.down.popleft()
            if data is None:
                self.lose(client)
            else:
                client.hear(data)

    @rule()
    def carry_all(self) -> None:
        while any(c.down or (c.up and c.conn is not None) for c in self.clients):
            for number in range(len(self.clients)):
                self.carry_up(number, 1000)
                self.carry_down(number, 1000)

    def lose(self, client: Client) -> None:
        if client.conn is not None:
            del self.by_conn[client.conn]
        client.conn = None
        client.seated = False
        client.up.clear()
        client.down.clear()

    @rule(number=some_client(), noticed=st.booleans())
    def drop(self, number: int, noticed: bool) -> None:
        client = self.client(number)
        if (conn := client.conn) is not None:
            self.lose(client)
            self.late.append(conn)
            if noticed:
                self.notice()

    @rule()
    def notice(self) -> None:
        """The relay hears of the sockets that are gone."""
        for conn in self.late:
            self.open.discard(conn)
            self.apply(self.rooms.dropped(conn, self.now))
        self.late.clear()

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.rooms.tick(self.now))
        at = self.rooms.next_deadline()
        assert at is None or at > self.now

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def the_tables_fit_together(self) -> None:
        rooms = self.rooms
        seats = [seat for room in rooms._rooms.values() for seat in room.values()]
        assert all(rooms._rooms.values()), "an empty room"
        assert len(seats) == rooms.members
        assert rooms.connections == len(self.open)
        assert not rooms._strangers.keys() & rooms._seated.keys()
        assert len(rooms._away) + len(rooms._seated) == len(seats)
        for seat in seats:
            assert rooms._rooms[seat.room][seat.peer_id] is seat
            if seat.conn is None:
                assert seat in rooms._away
            else:
                assert rooms._seated[seat.conn] is seat
            replay = seat.replay or ()
            assert len(replay) <= min(seat.sent, self.config.max_replay)
            assert seat.replay_bytes == sum(map(len, replay))
        assert rooms._held == sum(seat.replay_bytes for seat in seats)

    @invariant()
    def what_is_tracked_is_who_is_there(self) -> None:
        tracked = {
            (room.room_id, member.peer_id): (member.incarnation, member.presence)
            for room in self.rooms.tracking.status(0.0).topology
            for member in room.members
        }
        assert tracked == {
            (name, peer_id): (seat.incarnation, "away" if seat.conn is None else "present")
            for name, room in self.rooms._rooms.items()
            for peer_id, seat in room.items()
        }

    @invariant()
    def nothing_arrives_twice_or_out_of_order(self) -> None:
        for client in self.clients:
            for session, numbers in client.inbox.items():
                assert numbers == self.expected[session][: len(numbers)]
            taken = self.taken[client.join.incarnation]
            if client.certain:
                assert taken == client.sent[: len(taken)]

    def teardown(self) -> None:
        """Left alone, everybody comes to know everything."""
        if not hasattr(self, "rooms"):
            return
        self.notice()
        for client in self.clients:
            if client.conn is None and not client.over:
                self.connect(client)
        self.carry_all()
        self.the_tables_fit_together()
        self.nothing_arrives_twice_or_out_of_order()
        for client in self.clients:
            if not client.seated:
                continue
            assert client.conn is not None
            seat = self.rooms._seated[client.conn]
            members = self.rooms._rooms[seat.room].values()
            assert client.roster == {m.peer_id: m.member() for m in members if m is not seat}
            assert client.received == seat.sent
            assert client.inbox[seat.session] == self.expected[seat.session]
            if client.certain:
                assert self.taken[seat.incarnation] == client.sent


TestRooms = RoomsMachine.TestCase
TestRooms.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
