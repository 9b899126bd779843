"""What every signalling transport must do, as tests: the guarantees of `SignalingTransport`.

Subclass the parts that your service can be tested for in a pytest module, and say how to make one::

    class TestMine(TransportConformance, CutConformance, RestartConformance):
        @asynccontextmanager
        async def service(self):
            async with MyService() as service:
                yield service

`TransportConformance` needs `Service`, `CutConformance` a service whose connections can be cut,
`RestartConformance` one that can forget everything, `DataConformance` one that carries data as
well, and whose connections can be cut. The tests need pytest-asyncio. Each has a
service of its own, and fails after ``timeout`` seconds rather than hang.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from random import Random
from typing import Any, Literal, Protocol, TypeVar

import pytest
from msgspec import Raw

from meshpeer.config import MeshConfig
from meshpeer.core.forward import ForwardRoom, FrameIn
from meshpeer.core.messages import (
    VERSION,
    Join,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Metadata,
    Refused,
    SignalIn,
    SignalOut,
    Welcome,
)
from meshpeer.errors import (
    IdentityReplaced,
    InvalidData,
    MeshClosed,
    MeshError,
    MessageTooLarge,
    PeerIdTaken,
    SignalingBacklog,
)
from meshpeer.signaling.base import SignalingEvent, SignalingLost, SignalingTransport

__all__ = [
    "CutConformance",
    "CuttableService",
    "DataConformance",
    "RestartConformance",
    "RestartableService",
    "Service",
    "TransportConformance",
]


class Service(Protocol):
    """A signalling service, and how to reach it."""

    def transport(self, config: MeshConfig) -> SignalingTransport:
        """A new transport to it, with the limits and retry times of ``config``."""
        ...


class CuttableService(Service, Protocol):
    """A service whose connections can be cut."""

    def cut(self, transport: SignalingTransport) -> None:
        """Drop the connection of ``transport`` now, without a word to either end; another one can
        be made at once."""
        ...


class RestartableService(Service, Protocol):
    """A service that can be started again."""

    async def restart(self) -> None:
        """End it and start it again at the same place; no seat is known any more."""
        ...


E = TypeVar("E")
_numbers = itertools.count(1)


class _Member:
    """A transport with its seat, and what came from it."""

    def __init__(self, transport: SignalingTransport, join: Join, welcome: Welcome) -> None:
        self.transport = transport
        self.join = join
        self.welcome = welcome
        self.peer_id = welcome.peer_id
        self.incarnation = welcome.incarnation

    def say(self, to: _Member, number: int, body: bytes = b"{}") -> None:
        self.transport.send(
            SignalOut(to=to.peer_id, to_incarnation=to.incarnation, epoch=number, body=Raw(body))
        )

    def forward(self, to: _Member, frame: bytes) -> None:
        self.transport.forward(to.peer_id, to.incarnation, frame)

    async def pour(self, to: _Member, frames: Iterable[bytes]) -> list[SignalingEvent]:
        """Forward within the room there is; what happens here meanwhile."""
        happened: list[SignalingEvent] = []
        for frame in frames:
            while self.transport.forward_room(to.peer_id) < len(frame):
                happened.append(await self.transport.receive())
            self.forward(to, frame)
        return happened

    async def numbers(self, count: int) -> list[int]:
        """The numbers of the next ``count`` frames; nothing else may happen meanwhile."""
        return [_number((await self.next(FrameIn)).data) for _ in range(count)]

    def failure(self) -> MeshError | None:
        return self.transport.last_failure

    async def next(self, kind: type[E]) -> E:
        """The next thing that happens, which must be a ``kind``."""
        event = await self.transport.receive()
        assert isinstance(event, kind), f"{kind.__name__} expected, got {event!r}"
        return event

    async def until(self, wanted: Callable[[SignalingEvent], bool]) -> list[SignalingEvent]:
        """Everything that happens up to what is ``wanted``."""
        events = []
        while True:
            events.append(await self.transport.receive())
            if wanted(events[-1]):
                return events

    async def hear(self, count: int) -> list[int]:
        """The numbers of the next ``count`` signals. Nobody else may come or go meanwhile."""
        heard: list[int] = []
        while len(heard) < count:
            event = await self.transport.receive()
            if isinstance(event, SignalIn):
                heard.append(event.epoch)
            else:
                assert isinstance(event, SignalingLost | Welcome), f"unexpected {event!r}"
                assert isinstance(event, SignalingLost) or event.resumed
        return heard


def _join(
    peer_id: str,
    *,
    room: str = "lobby",
    name: str | None = None,
    metadata: Metadata | None = None,
    on_conflict: Literal["reject", "takeover", "rename"] = "reject",
    token: str | None = None,
) -> Join:
    return Join(
        version=VERSION,
        room=room,
        peer_id=peer_id,
        incarnation=f"incarnation-{next(_numbers)}",
        name=name,
        metadata=metadata or {},
        on_conflict=on_conflict,
        token=token,
    )


def _seen_as(member: _Member) -> Member:
    """How the others see a member that has not changed since it came."""
    return Member(
        peer_id=member.peer_id,
        incarnation=member.incarnation,
        name=member.join.name,
        metadata=member.join.metadata,
    )


class _Suite:
    timeout = 30.0
    """Seconds after which a test fails."""
    config = MeshConfig(
        signaling_retry_first=0.01, signaling_retry_max=0.1, max_pending_signals=200
    )
    """What the transports are made with; what counts is that retries are quick."""

    @asynccontextmanager
    async def _room(self, service: Service) -> AsyncIterator[_Room]:
        room = _Room(service, self.config)
        try:
            async with asyncio.timeout(self.timeout):
                yield room
        finally:
            await room.close()


class _Room:
    """Makes transports and closes them."""

    def __init__(self, service: Service, config: MeshConfig) -> None:
        self._service = service
        self._config = config
        self._transports: list[SignalingTransport] = []

    def transport(self) -> SignalingTransport:
        self._transports.append(self._service.transport(self._config))
        return self._transports[-1]

    async def enter(self, join: Join | str) -> _Member:
        if isinstance(join, str):
            join = _join(join)
        transport = self.transport()
        return _Member(transport, join, await transport.open(join))

    async def pair(self) -> tuple[_Member, _Member]:
        """Two members that know each other."""
        ann = await self.enter("ann")
        bob = await self.enter("bob")
        await ann.next(MemberJoined)
        return ann, bob

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


@pytest.mark.asyncio
class TransportConformance(_Suite):
    """What holds for every transport."""

    def service(self) -> AbstractAsyncContextManager[Service]:
        """A service of its own for one test."""
        raise NotImplementedError

    # --- 1: presence

    async def test_a_welcome_lists_everybody_else(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter(_join("ann", name="Ann", metadata={"colour": ["red", 1]}))
            assert ann.welcome.members == []
            assert (ann.welcome.peer_id, ann.welcome.room) == ("ann", "lobby")
            assert ann.welcome.incarnation == ann.join.incarnation
            assert not ann.welcome.resumed
            bob = await room.enter("bob")
            assert bob.welcome.members == [_seen_as(ann)]
            eve = await room.enter("eve")
            assert sorted(eve.welcome.members, key=lambda m: m.peer_id) == [
                _seen_as(ann),
                _seen_as(bob),
            ]

    async def test_every_change_is_told_in_order(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter("ann")
            bob = await room.enter(_join("bob", name="Bob"))
            bob.transport.update("Bobby", None)
            bob.transport.update(None, {"mood": "fine"})
            bob.transport.update("Rob", {})
            assert await ann.next(MemberJoined) == MemberJoined(member=_seen_as(bob))
            for name, metadata in (("Bobby", {}), ("Bobby", {"mood": "fine"}), ("Rob", {})):
                assert await ann.next(MemberUpdated) == MemberUpdated(
                    peer_id="bob", incarnation=bob.incarnation, name=name, metadata=metadata
                )
            await bob.transport.close()
            assert await ann.next(MemberLeft) == MemberLeft(
                peer_id="bob", incarnation=bob.incarnation, reason="left"
            )
            eve = await room.enter("eve")
            assert eve.welcome.members == [_seen_as(ann)]
            assert await ann.next(MemberJoined) == MemberJoined(member=_seen_as(eve))

    async def test_nobody_hears_of_its_own_updates(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter("ann")
            ann.transport.update("Ann", None)
            ann.transport.update(None, None)
            bob = await room.enter("bob")
            await ann.next(MemberJoined)
            bob.say(ann, 1)
            await ann.next(SignalIn)

    async def test_a_member_is_known_before_its_signals_come(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter("ann")
            bob = await room.enter("bob")
            bob.say(ann, 1)
            bob.transport.update("Bob", None)
            bob.say(ann, 2)
            await ann.next(MemberJoined)
            assert (await ann.next(SignalIn)).epoch == 1
            assert (await ann.next(MemberUpdated)).name == "Bob"
            assert (await ann.next(SignalIn)).epoch == 2

    async def test_rooms_know_nothing_of_each_other(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter("ann")
            other = await room.enter(_join("bob", room="another room"))
            assert other.welcome.members == []
            other.say(ann, 1)
            refused = await other.next(Refused)
            assert (refused.code, refused.to) == ("no_such_peer", "ann")
            bob = await room.enter("bob")  # the id is free in this room
            assert (await ann.next(MemberJoined)).member.incarnation == bob.incarnation

    # --- 2: signals

    async def test_signals_arrive_unchanged(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            body = '{"type": "ä\\u0000","n":[1.50, null ]}'.encode()
            ann.say(bob, 2**31 - 1, body)
            signal = await bob.next(SignalIn)
            assert bytes(signal.body) == body
            assert signal.epoch == 2**31 - 1
            assert signal.to_incarnation == bob.incarnation

    async def test_signals_arrive_in_order(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            count = self.config.max_pending_signals
            for number in range(count):
                ann.say(bob, number)
                bob.say(ann, number)
            assert await bob.hear(count) == list(range(count))
            assert await ann.hear(count) == list(range(count))

    async def test_a_signal_to_nobody_is_refused(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            await bob.transport.close()
            await ann.next(MemberLeft)
            ann.say(bob, 1)
            refused = await ann.next(Refused)
            assert (refused.code, refused.to) == ("no_such_peer", "bob")

    # --- 3: senders are stamped

    async def test_the_sender_is_the_service_s_word(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            ann.say(bob, 1, b'{"from":"eve","sender":"eve","incarnation":"incarnation-0"}')
            signal = await bob.next(SignalIn)
            assert (signal.sender, signal.incarnation) == ("ann", ann.incarnation)

    # --- 5: an end is an exception

    async def test_an_id_in_use_is_refused(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            for on_conflict in ("reject", "takeover"):
                second = room.transport()
                with pytest.raises(PeerIdTaken) as refused:
                    await second.open(_join("ann", on_conflict=on_conflict, token="x" * 32))
                assert refused.value.code == "peer_id_taken"
                for _ in range(2):
                    with pytest.raises(PeerIdTaken):
                        await second.receive()
            ann.say(bob, 1)  # nothing has changed for those who are there
            assert (await bob.next(SignalIn)).incarnation == ann.incarnation

    async def test_the_owner_of_an_id_takes_it_over(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            again = await room.enter(_join("ann", token=ann.welcome.token))
            assert again.welcome.peer_id == "ann"
            assert again.welcome.members == [_seen_as(bob)]
            for _ in range(2):
                with pytest.raises(IdentityReplaced):
                    await ann.transport.receive()
            with pytest.raises(MeshClosed):
                ann.say(bob, 1)
            assert await bob.next(MemberJoined) == MemberJoined(member=_seen_as(again))
            again.say(bob, 1)
            assert (await bob.next(SignalIn)).incarnation == again.incarnation

    async def test_an_id_in_use_is_given_another_name_on_demand(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            second = await room.enter(_join("ann", on_conflict="rename"))
            assert second.peer_id not in ("ann", "bob")
            assert (await ann.next(MemberJoined)).member == _seen_as(second)
            assert (await bob.next(MemberJoined)).member == _seen_as(second)
            bob.say(second, 1)
            bob.say(ann, 2)
            assert (await second.next(SignalIn)).epoch == 1
            assert (await ann.next(SignalIn)).epoch == 2

    # --- receive, close

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            count = self.config.max_pending_signals
            for number in range(count):
                ann.say(bob, number)
            heard: list[int] = []
            for turn in itertools.count():
                task = asyncio.ensure_future(bob.next(SignalIn))
                if turn % 2:  # every other call is given up, sooner or later
                    for _ in range(turn % 7):
                        await asyncio.sleep(0)
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    heard.append((await task).epoch)
                if len(heard) == count:
                    break
            assert heard == list(range(count))

    async def test_after_close_nothing_works_and_nothing_is_left(self) -> None:
        async with self.service() as service:
            with _tasks_made_here() as tasks:
                async with self._room(service) as room:
                    ann, bob = await room.pair()
                    bob.say(ann, 1)
                    waiting = asyncio.ensure_future(bob.transport.receive())
                    await asyncio.sleep(0)
                    tasks.discard(waiting)
                    await bob.transport.close()
                    with pytest.raises(MeshClosed):
                        await waiting
                    await bob.transport.close()
                    await ann.until(lambda event: isinstance(event, MemberLeft))
                    ann.say(bob, 1)
                    await ann.transport.close()
                    assert _running(tasks) == []
                    for member in (ann, bob):
                        with pytest.raises(MeshClosed):
                            await member.transport.receive()
                        with pytest.raises(MeshClosed):
                            member.say(ann, 2)
                        with pytest.raises(MeshClosed):
                            member.transport.update("name", None)
                        with pytest.raises(MeshClosed):
                            await member.transport.open(member.join)

    async def test_it_can_be_closed_before_it_is_open(self) -> None:
        async with self.service() as service:
            with _tasks_made_here() as tasks:
                async with self._room(service) as room:
                    await room.transport().close()
                    for turns in range(6):
                        transport = room.transport()
                        opening = asyncio.ensure_future(transport.open(_join(f"p{turns}")))
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        opening.cancel()
                        with suppress(asyncio.CancelledError):
                            await opening
                        await transport.close()
                        assert _running(tasks) == []

    async def test_a_cancelled_close_closes_all_the_same(self) -> None:
        async with self.service() as service:
            with _tasks_made_here() as tasks:
                async with self._room(service) as room:
                    for turns in range(4):
                        member = await room.enter(f"p{turns}")
                        closing = asyncio.ensure_future(member.transport.close())
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        closing.cancel()
                        with suppress(asyncio.CancelledError):
                            await closing
                        await member.transport.close()
                        assert _running(tasks) == []
                        with pytest.raises(MeshClosed):
                            await member.transport.receive()


@pytest.mark.asyncio
class CutConformance(_Suite):
    """What holds when a connection drops."""

    def service(self) -> AbstractAsyncContextManager[CuttableService]:
        """A service of its own for one test."""
        raise NotImplementedError

    async def test_a_lost_connection_is_told_and_mended(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            for number in range(3):
                service.cut(ann.transport)
                lost = await ann.next(SignalingLost)
                assert lost.reason
                assert ann.failure()
                welcome = await ann.next(Welcome)
                assert welcome.resumed
                assert (welcome.peer_id, welcome.incarnation) == ("ann", ann.incarnation)
                assert ann.failure() is None
                ann.say(bob, number)
                bob.say(ann, number)
                assert (await ann.next(SignalIn)).epoch == number
                # The others have seen nothing of it.
                assert (await bob.next(SignalIn)).epoch == number

    async def test_what_happened_meanwhile_follows(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            service.cut(ann.transport)
            bob.say(ann, 1)
            eve = await room.enter("eve")
            bob.transport.update("Bob", None)
            bob.say(ann, 2)
            eve.say(ann, 3)
            await eve.until(lambda event: isinstance(event, MemberUpdated))
            events = await ann.until(lambda e: isinstance(e, SignalIn) and e.epoch == 3)
            happened = [e for e in events if not isinstance(e, SignalingLost | Welcome)]
            assert all(event.resumed for event in events if isinstance(event, Welcome))
            of_bob = [e for e in happened if isinstance(e, SignalIn | MemberUpdated)]
            assert [type(e) for e in of_bob if _is_of(e, "bob")] == [
                SignalIn,
                MemberUpdated,
                SignalIn,
            ]
            assert [type(e) for e in happened if _is_of(e, "eve")] == [MemberJoined, SignalIn]

    async def test_signals_arrive_exactly_once_whatever_is_cut(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            random = Random(7)  # noqa: S311 - the same cuts each time
            count = 3 * self.config.max_pending_signals

            async def talk(sender: _Member, addressee: _Member) -> None:
                for number in range(count):
                    while True:
                        try:
                            sender.say(addressee, number)
                            break
                        except SignalingBacklog:
                            await asyncio.sleep(0.005)
                    if random.random() < 0.02:
                        service.cut(random.choice((ann, bob)).transport)
                    if random.random() < 0.2:
                        await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(talk(ann, bob))
                group.create_task(talk(bob, ann))
                hearing = [group.create_task(member.hear(count)) for member in (ann, bob)]
            for task in hearing:
                assert task.result() == list(range(count))

    async def test_what_waits_has_a_bound(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            service.cut(ann.transport)
            await ann.next(SignalingLost)
            limit = self.config.max_pending_signals
            sent = 0
            while sent <= limit:
                try:
                    ann.say(bob, sent)
                except SignalingBacklog:
                    break
                sent += 1
            with pytest.raises(SignalingBacklog):
                ann.transport.update("Ann", None)
            assert sent <= limit
            assert await bob.hear(sent) == list(range(sent))

    async def test_it_can_be_closed_while_the_connection_is_away(self) -> None:
        async with self.service() as service:
            with _tasks_made_here() as tasks:
                async with self._room(service) as room:
                    for turns in range(4):
                        member = await room.enter(f"p{turns}")
                        service.cut(member.transport)
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        await member.transport.close()
                        assert _running(tasks) == []


@pytest.mark.asyncio
class RestartConformance(_Suite):
    """What holds when the service forgets everything."""

    def service(self) -> AbstractAsyncContextManager[RestartableService]:
        """A service of its own for one test."""
        raise NotImplementedError

    async def test_the_room_fills_again_by_itself(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            ann.transport.update("Ann", {"n": 1})
            await bob.next(MemberUpdated)
            await service.restart()
            for member, other in ((ann, "bob"), (bob, "ann")):
                events = await member.until(lambda e, other=other: _knows(e, other))  # type: ignore[misc]
                assert isinstance(events[0], SignalingLost)
                welcome = next(event for event in events if isinstance(event, Welcome))
                assert not welcome.resumed
                assert welcome.peer_id == member.peer_id
                assert welcome.incarnation == member.incarnation
                if other == "ann":
                    assert _member(events[-1], "ann").name == "Ann"
                    assert _member(events[-1], "ann").metadata == {"n": 1}
            ann.say(bob, 1)
            bob.say(ann, 2)
            assert (await bob.next(SignalIn)).epoch == 1
            assert (await ann.next(SignalIn)).epoch == 2

    async def test_a_token_is_good_after_a_restart(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann = await room.enter("ann")
            await service.restart()
            await ann.until(lambda event: isinstance(event, Welcome))
            again = await room.enter(_join("ann", token=ann.welcome.token))
            assert again.peer_id == "ann"
            with pytest.raises(IdentityReplaced):
                await ann.transport.receive()


@pytest.mark.asyncio
class DataConformance(_Suite):
    """What holds where data is carried (7). A `Welcome` without ``forward_window`` fails."""

    def service(self) -> AbstractAsyncContextManager[CuttableService]:
        """A service of its own for one test."""
        raise NotImplementedError

    async def test_frames_arrive_in_order_and_all_of_them(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            assert ann.welcome.forward_window
            random = Random(5)  # noqa: S311 - the same sizes each time
            count = 300
            sizes = [random.choice((4, 100, 16384, 65536)) for _ in range(count)]

            async def talk(sender: _Member, addressee: _Member) -> list[int]:
                """Send and hear at once, as the answers may fill what is on the way."""
                heard: list[int] = []
                sent = 0
                while sent < count or len(heard) < count:
                    while (
                        sent < count
                        and sender.transport.forward_room(addressee.peer_id) >= sizes[sent]
                    ):
                        sender.forward(addressee, _frame(sent, sizes[sent]))
                        sent += 1
                    if sent < count or len(heard) < count:
                        event = await sender.transport.receive()
                        if isinstance(event, FrameIn):
                            assert len(event.data) == sizes[len(heard)]
                            heard.append(_number(event.data))
                        else:
                            assert event == ForwardRoom(addressee.peer_id)
                return heard

            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(talk(ann, bob)),
                    group.create_task(talk(bob, ann)),
                ]
            for task in tasks:
                assert task.result() == list(range(count))

    async def test_the_sender_of_a_frame_is_stamped(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            ann.forward(bob, b"frame")
            assert await bob.next(FrameIn) == FrameIn("ann", ann.incarnation, b"frame")

    async def test_room_is_counted_for_each_member_and_comes_back(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            window = ann.transport.forward_room("bob")
            assert window == ann.welcome.forward_window
            eve = await room.enter("eve")
            await ann.next(MemberJoined)
            await bob.next(MemberJoined)
            count = 0
            while ann.transport.forward_room("bob") >= 16384:
                before = ann.transport.forward_room("bob")
                ann.forward(bob, _frame(count, 16384))
                count += 1
                assert ann.transport.forward_room("bob") <= before - 16384
            assert ann.transport.forward_room("eve") == window
            assert await bob.numbers(count) == list(range(count))
            assert await ann.next(ForwardRoom) == ForwardRoom("bob")
            assert ann.transport.forward_room("bob") >= window / 2
            ann.forward(eve, b"frame")
            await eve.next(FrameIn)

    async def test_one_that_does_not_take_its_frames_holds_up_nobody(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            eve = await room.enter("eve")
            await ann.next(MemberJoined)
            # As much as goes without being read: until nothing has come back for the whole window.
            sent = 0
            while ann.transport.forward_room("eve") >= 65536:
                ann.forward(eve, _frame(sent, 65536))
                sent += 1
            count = 200
            async with asyncio.TaskGroup() as group:
                pouring = group.create_task(
                    ann.pour(bob, (_frame(number, 16384) for number in range(count)))
                )
                await bob.next(MemberJoined)
                assert await bob.numbers(count) == list(range(count))
            assert all(isinstance(event, ForwardRoom) for event in pouring.result())
            ann.say(eve, 1)
            bob.say(eve, 2)
            frames = 0
            signals: set[int] = set()
            while len(signals) < 2 or frames < sent:
                event = await eve.transport.receive()
                if isinstance(event, SignalIn):
                    signals.add(event.epoch)
                else:
                    assert isinstance(event, FrameIn)
                    assert _number(event.data) == frames
                    frames += 1

    async def test_frames_for_nobody_are_dropped_and_leave_the_room_as_it_was(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            window = ann.transport.forward_room("nobody")
            for incarnation, to in ((ann.incarnation, "nobody"), ("another-one-1", "bob")):
                sent = 0
                while sent < 2 * window:
                    while ann.transport.forward_room(to) < 65536:
                        await ann.next(ForwardRoom)
                    ann.transport.forward(to, incarnation, bytes(65536))
                    sent += 65536
            ann.say(bob, 1)
            assert (await bob.next(SignalIn)).epoch == 1

    async def test_a_frame_of_no_size_is_refused(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            window = ann.transport.forward_room("bob")
            with pytest.raises(MessageTooLarge):
                ann.forward(bob, bytes(65537))
            with pytest.raises(InvalidData):
                ann.forward(bob, b"")
            assert ann.transport.forward_room("bob") == window
            ann.forward(bob, bytes(65536))
            assert len((await bob.next(FrameIn)).data) == 65536

    async def test_while_the_service_is_away_there_is_no_room(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            service.cut(ann.transport)
            await ann.next(SignalingLost)
            assert ann.transport.forward_room("bob") == 0
            ann.forward(bob, _frame(1, 100))
            welcome = await ann.next(Welcome)
            assert ann.transport.forward_room("bob") == welcome.forward_window
            ann.forward(bob, _frame(2, 100))
            assert await bob.numbers(1) == [2]

    async def test_what_comes_after_a_loss_was_sent_after_it(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            for side in (ann, bob):
                number = 0
                while ann.transport.forward_room("bob") >= 16384:
                    ann.forward(bob, _frame(number, 16384))
                    number += 1
                service.cut(side.transport)
                if side is bob:
                    # What is there already may still be taken; then nothing until the frame below.
                    before = await bob.until(lambda event: isinstance(event, Welcome))
                    heard = [_number(e.data) for e in before if isinstance(e, FrameIn)]
                    assert heard == list(range(len(heard)))
                else:
                    await ann.until(lambda event: isinstance(event, Welcome))
                    heard = []
                ann.forward(bob, _frame(1000, 100))
                while not heard or heard[-1] != 1000:
                    event = await bob.transport.receive()
                    if isinstance(event, FrameIn):
                        heard.append(_number(event.data))
                assert heard[:-1] == list(range(len(heard) - 1))
                # The connection of the sender gets its window back.
                while ann.transport.forward_room("bob") < 65536:
                    assert await ann.next(ForwardRoom) == ForwardRoom("bob")

    async def test_after_close_frames_are_dropped(self) -> None:
        async with self.service() as service, self._room(service) as room:
            ann, bob = await room.pair()
            ann.forward(bob, b"the last words")
            await ann.transport.close()
            assert ann.transport.forward_room("bob") == 0
            ann.forward(bob, b"too late")
            assert (await bob.next(FrameIn)).data == b"the last words"
            await bob.next(MemberLeft)


def _frame(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(size - 4)


def _number(frame: bytes) -> int:
    return int.from_bytes(frame[:4], "big")


def _is_of(event: SignalingEvent, peer_id: str) -> bool:
    match event:
        case MemberJoined(member=member):
            return member.peer_id == peer_id
        case MemberUpdated() | MemberLeft():
            return event.peer_id == peer_id
        case SignalIn():
            return event.sender == peer_id
        case _:
            return False


def _knows(event: SignalingEvent, peer_id: str) -> bool:
    """After this event ``peer_id`` is in the room."""
    if isinstance(event, Welcome):
        return any(member.peer_id == peer_id for member in event.members)
    return isinstance(event, MemberJoined) and event.member.peer_id == peer_id


def _member(event: SignalingEvent, peer_id: str) -> Member:
    if isinstance(event, MemberJoined):
        return event.member
    assert isinstance(event, Welcome)
    return next(member for member in event.members if member.peer_id == peer_id)


_here: ContextVar[bool] = ContextVar("_here", default=False)


@contextmanager
def _tasks_made_here() -> Iterator[set[asyncio.Task[Any]]]:
    """Collect the tasks that are made inside, not those that a service makes for itself."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()
    before = loop.get_task_factory()

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **kwargs)
        if _here.get():
            tasks.add(task)
        return task

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    token = _here.set(True)
    try:
        yield tasks
    finally:
        _here.reset(token)
        loop.set_task_factory(before)


def _running(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    return [task for task in tasks if not task.done()]
