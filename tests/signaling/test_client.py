"""The shell alone, on a wire that the test holds both ends of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from msgspec import Raw

from meshpeer.config import MeshConfig
from meshpeer.core import session as session_module
from meshpeer.core.forward import MARK, FrameIn, decode_forward, encode_forward
from meshpeer.core.messages import (
    VERSION,
    Goodbye,
    Join,
    Leave,
    LinkReport,
    Member,
    MemberJoined,
    Refused,
    RelayMessage,
    Report,
    SignalIn,
    SignalOut,
    Welcome,
    decode_client,
    encode,
)
from meshpeer.errors import (
    ConfigError,
    Forbidden,
    IdentityReplaced,
    MeshClosed,
    Removed,
    RoomFull,
    SignalingUnavailable,
    Unauthorized,
    UnexpectedInput,
)
from meshpeer.signaling import client as client_module
from meshpeer.signaling.base import SignalingLost
from meshpeer.signaling.client import MAX_EVENTS, MAX_UNREAD, JoinTokenSource, RelayTransport

JOIN = Join(version=VERSION, room="lobby", peer_id="ann", incarnation="ann-one-1", token="t" * 32)
WELCOME = Welcome(
    version=VERSION,
    room="lobby",
    peer_id="ann",
    incarnation="ann-one-1",
    token="t" * 32,
    session="s" * 32,
    seat_timeout=30.0,
    forward_window=256 * 1024,
    report_interval=15.0,
)
SIGNAL = SignalOut(to="bob", to_incarnation="bob-one-1", epoch=1, body=Raw(b"{}"))
JOINED = MemberJoined(member=Member(peer_id="bob", incarnation="bob-one-1"))


def signal_in(number: int) -> SignalIn:
    return SignalIn(
        sender="bob",
        incarnation="bob-one-1",
        to_incarnation="ann-one-1",
        epoch=number,
        body=Raw(b"{}"),
    )


class FakeWire:
    """The test is the relay: ``say`` something, see what was ``heard``."""

    def __init__(self) -> None:
        self._incoming: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.taken = 0
        self.open = asyncio.Event()
        """Cleared: the relay does not read."""
        self.open.set()
        self.stuck = asyncio.Event()
        self.elsewhere = False
        self.checked = asyncio.Event()
        self.answers = asyncio.Event()
        """Set: a check gets its answer, or fails when the wire is gone."""
        self.closed = False
        self.aborted = False
        self.gone = False

    def say(self, message: RelayMessage | bytes | Exception) -> None:
        is_raw = isinstance(message, bytes | Exception)
        self._incoming.put_nowait(message if is_raw else encode(message))  # type: ignore[arg-type]

    def breaks(self) -> None:
        self.gone = True
        self.open.set()
        self.say(SignalingUnavailable("it broke"))

    async def send(self, data: bytes) -> None:
        if not self.open.is_set():
            self.stuck.set()
            await self.open.wait()
        if self.gone:
            raise SignalingUnavailable("it broke")
        for _ in range(3):  # as a real one, it is not done at once
            await asyncio.sleep(0)
        is_data = data[:1] == MARK
        self.heard.put_nowait(decode_forward(data) if is_data else decode_client(data))

    async def recv(self) -> bytes:
        item = await self._incoming.get()
        self.taken += 1
        if isinstance(item, Exception):
            raise item
        return item

    def moved(self) -> bool:
        return self.elsewhere

    async def check(self) -> None:
        self.checked.set()
        await self.answers.wait()
        if self.gone:
            raise SignalingUnavailable("it does not answer")

    async def close(self) -> None:
        await self.open.wait()
        self.closed = True

    async def abort(self) -> None:
        self.aborted = True
        self.say(SignalingUnavailable("it was aborted"))


class FakeTransport(RelayTransport):
    def __init__(self, join_token: JoinTokenSource | None = None, **config: Any) -> None:
        super().__init__(MeshConfig(signaling_retry_first=0.01, **config), join_token=join_token)
        self.asked = asyncio.Event()
        self.answers: asyncio.Queue[FakeWire | Exception] = asyncio.Queue()
        self.cancelled = 0

    def connects(self) -> FakeWire:
        """The next connection is made, to the wire that is returned."""
        wire = FakeWire()
        self.answers.put_nowait(wire)
        return wire

    async def _connect(self) -> FakeWire:
        self.asked.set()
        try:
            answer = await self.answers.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


SECRET = "a-join-token-that-nobody-may-read"


async def seated(**config: Any) -> tuple[FakeTransport, FakeWire]:
    transport = FakeTransport(**config)
    wire = transport.connects()
    wire.say(WELCOME)
    assert await transport.open(JOIN) == WELCOME
    assert isinstance(await wire.heard.get(), Join)
    return transport, wire


async def test_open_tries_until_it_succeeds() -> None:
    transport = FakeTransport()
    transport.answers.put_nowait(SignalingUnavailable("connection refused"))
    opening = asyncio.create_task(transport.open(JOIN))
    await transport.asked.wait()
    transport.asked.clear()
    await transport.asked.wait()
    assert "connection refused" in str(transport.last_failure)
    wire = transport.connects()
    join = await wire.heard.get()
    assert (join.peer_id, join.token, join.received) == ("ann", JOIN.token, 0)
    wire.say(WELCOME)
    assert await opening == WELCOME
    assert transport.last_failure is None
    await transport.close()


async def test_a_join_without_a_token_gets_one() -> None:
    tokens = set()
    for _ in range(2):
        transport = FakeTransport()
        wire = transport.connects()
        wire.say(WELCOME)
        await transport.open(Join(version=1, room="lobby", peer_id="ann", incarnation="ann-one-1"))
        tokens.add((await wire.heard.get()).token)
        await transport.close()
    assert len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens)


async def test_close_says_leave_and_then_closes() -> None:
    transport, wire = await seated()
    transport.send(SIGNAL)
    await transport.close()
    assert await wire.heard.get() == SIGNAL
    assert await wire.heard.get() == Leave()
    assert wire.closed
    assert wire.aborted


async def test_close_does_not_wait_for_a_relay_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "CLOSE_TIMEOUT", 0.01)
    transport, wire = await seated()
    wire.open.clear()
    transport.send(SIGNAL)
    await wire.stuck.wait()
    await transport.close()
    assert not wire.closed
    assert wire.aborted


async def test_a_cancelled_close_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CLOSE_TIMEOUT", 3600.0)
    transport, wire = await seated()
    wire.open.clear()
    transport.send(SIGNAL)
    await wire.stuck.wait()
    closing = asyncio.create_task(transport.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert wire.aborted
    await transport.close()


async def test_close_in_the_moment_of_being_connected() -> None:
    transport = FakeTransport()
    opening = asyncio.create_task(transport.open(JOIN))
    await transport.asked.wait()
    wire = transport.connects()
    await transport.close()
    with pytest.raises(MeshClosed):
        await opening
    assert wire.aborted
    assert wire.heard.empty()


async def test_what_was_not_received_before_close_never_is() -> None:
    transport, wire = await seated()
    wire.say(JOINED)
    wire.say(signal_in(1))
    assert await transport.receive() == JOINED
    for _ in range(10):
        await asyncio.sleep(0)
    await transport.close()
    with pytest.raises(MeshClosed):
        await transport.receive()


async def test_a_connection_that_sticks_does_not_keep_the_next_one_from_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "CLOSE_TIMEOUT", 0.01)
    transport, wire = await seated()
    wire.open.clear()
    transport.send(SIGNAL)
    await wire.stuck.wait()
    wire.say(b"junk")
    again = transport.connects()
    assert isinstance(await again.heard.get(), Join)
    assert wire.aborted
    await transport.close()


async def test_a_connection_that_is_never_made_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "ANSWER_TIMEOUT", 0.01)
    transport = FakeTransport()
    opening = asyncio.create_task(transport.open(JOIN))
    for _ in range(3):
        await transport.asked.wait()
        transport.asked.clear()
    assert transport.cancelled >= 2
    assert "did not accept a connection" in str(transport.last_failure)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await transport.close()


async def test_a_join_that_is_never_answered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "ANSWER_TIMEOUT", 0.01)
    transport = FakeTransport()
    silent = transport.connects()
    opening = asyncio.create_task(transport.open(JOIN))
    await transport.asked.wait()
    transport.asked.clear()
    await transport.asked.wait()
    assert silent.closed
    assert silent.aborted
    # However long this machine takes now, this one is not given up.
    monkeypatch.setattr(session_module, "ANSWER_TIMEOUT", 3600.0)
    wire = transport.connects()
    wire.say(WELCOME)
    assert await opening == WELCOME
    await transport.close()


async def test_bad_input_costs_the_connection_only() -> None:
    transport, wire = await seated()
    transport.send(SIGNAL)
    assert await wire.heard.get() == SIGNAL
    wire.say(b"junk")
    wire.say(JOINED)  # of the connection that was given up: must not be looked at
    again = transport.connects()
    lost = await transport.receive()
    assert isinstance(lost, SignalingLost)
    assert "not JSON" in lost.reason
    assert (await again.heard.get()).token == WELCOME.token
    assert wire.closed
    resumed = Welcome(
        **{f: getattr(WELCOME, f) for f in WELCOME.__struct_fields__} | {"resumed": True}
    )
    again.say(resumed)
    again.say(signal_in(1))
    assert await transport.receive() == resumed
    assert isinstance(await transport.receive(), SignalIn)
    assert await again.heard.get() == SIGNAL
    await transport.close()


async def test_who_does_not_receive_stops_the_reading() -> None:
    transport, wire = await seated()
    for number in range(3 * MAX_EVENTS):
        wire.say(signal_in(number))
    # What it acknowledges, it has taken: one less often than every 16th.
    while (await wire.heard.get()).received < MAX_EVENTS:
        pass
    for _ in range(100):
        await asyncio.sleep(0)
    assert wire.taken == 1 + MAX_EVENTS
    for number in range(3 * MAX_EVENTS):
        event = await transport.receive()
        assert isinstance(event, SignalIn)
        assert event.epoch == number
    await transport.close()


async def test_a_relay_that_does_not_read_stops_the_reading_too() -> None:
    """Or the acknowledgements that it asks for would pile up."""
    transport, wire = await seated(max_pending_signals=2 * MAX_EVENTS)
    wire.open.clear()
    for _ in range(MAX_EVENTS + 1):  # one is being written
        transport.send(SIGNAL)
    await wire.stuck.wait()
    wire.say(signal_in(1))  # was being waited for when it began to pile up
    assert isinstance(await transport.receive(), SignalIn)
    wire.say(signal_in(2))
    for _ in range(100):
        await asyncio.sleep(0)
    assert wire.taken == 2
    wire.open.set()
    event = await transport.receive()
    assert isinstance(event, SignalIn)
    assert event.epoch == 2
    await transport.close()


async def test_signals_overtake_frames_that_wait_but_a_goodbye_does_not() -> None:
    transport, wire = await seated()
    wire.open.clear()
    for number in range(3):
        transport.forward("bob", "bob-one-1", bytes([number]))
    await wire.stuck.wait()  # with the first
    transport.send(SIGNAL)
    closing = asyncio.create_task(transport.close())
    await asyncio.sleep(0)
    assert transport._line is None, "it is hung up"
    wire.open.set()
    await closing
    heard = [wire.heard.get_nowait() for _ in range(wire.heard.qsize())]
    assert [m.data for m in heard if isinstance(m, FrameIn)] == [b"\0", b"\1", b"\2"]
    assert isinstance(heard[-1], Leave)

    transport, wire = await seated()
    wire.open.clear()
    for number in range(3):
        transport.forward("bob", "bob-one-1", bytes([number]))
    await wire.stuck.wait()
    transport.send(SIGNAL)
    wire.open.set()
    said = [await wire.heard.get() for _ in range(4)]
    assert [type(each) for each in said] == [FrameIn, SignalOut, FrameIn, FrameIn]
    await transport.close()


async def test_who_does_not_receive_frames_stops_the_reading_by_their_size() -> None:
    transport, wire = await seated()
    size = 64 * 1024
    for number in range(2 * MAX_UNREAD // size):
        wire.say(encode_forward("bob", "bob-one-1", bytes([number]) * size))
    for _ in range(200):
        await asyncio.sleep(0)
    assert wire.taken == 1 + MAX_UNREAD // size
    for number in range(2 * MAX_UNREAD // size):
        event = await transport.receive()
        assert isinstance(event, FrameIn)
        assert event.data[0] == number
    await transport.close()


async def test_frames_that_wait_end_with_the_wire() -> None:
    transport, wire = await seated()
    wire.open.clear()
    for number in range(3):
        transport.forward("bob", "bob-one-1", bytes([number]))
    await wire.stuck.wait()
    again = transport.connects()
    wire.breaks()
    assert isinstance(await transport.receive(), SignalingLost)
    again.say(WELCOME)
    assert await transport.receive() == WELCOME
    assert isinstance(await again.heard.get(), Join)
    transport.forward("bob", "bob-one-1", b"new")
    assert await again.heard.get() == FrameIn("bob", "bob-one-1", b"new")
    await transport.close()


async def test_a_wire_that_breaks_while_much_waits_to_be_sent() -> None:
    transport, wire = await seated(max_pending_signals=4 * MAX_EVENTS)
    wire.open.clear()
    for _ in range(2 * MAX_EVENTS):
        transport.send(SIGNAL)
    await wire.stuck.wait()
    wire.say(signal_in(1))
    assert isinstance(await transport.receive(), SignalIn)
    again = transport.connects()
    wire.breaks()
    lost = await transport.receive()
    assert isinstance(lost, SignalingLost)
    assert lost.reason == "it broke"
    assert isinstance(await again.heard.get(), Join)
    assert wire.aborted
    assert not wire.closed
    await transport.close()


async def test_what_ends_it_is_raised_after_what_happened_before() -> None:
    transport, wire = await seated()
    wire.say(JOINED)
    wire.say(Goodbye(reason="replaced"))
    assert await transport.receive() == JOINED
    for _ in range(2):
        with pytest.raises(IdentityReplaced):
            await transport.receive()
    with pytest.raises(IdentityReplaced):
        transport.send(SIGNAL)
    await transport.close()
    assert wire.closed
    with pytest.raises(IdentityReplaced):
        await transport.receive()


async def test_after_a_refusal_send_says_that_it_is_over() -> None:
    transport = FakeTransport()
    wire = transport.connects()
    wire.say(Refused(code="room_full", text="the room is full"))
    with pytest.raises(RoomFull, match="the room is full"):
        await transport.open(JOIN)
    with pytest.raises(MeshClosed, match="has ended: the room is full"):
        transport.send(SIGNAL)
    transport.forward("bob", "bob-one-1", b"frame")
    assert transport.forward_room("bob") == 0
    await transport.close()


async def test_an_error_that_nobody_expected_is_not_swallowed() -> None:
    transport, wire = await seated()
    receiving = asyncio.create_task(transport.receive())
    wire.say(ValueError("a bug of the wire"))
    with pytest.raises(ExceptionGroup) as raised:
        await receiving
    assert raised.group_contains(ValueError, match="a bug of the wire")
    assert wire.aborted
    with pytest.raises(ExceptionGroup):
        await transport.close()


async def test_calls_before_open() -> None:
    transport = FakeTransport()
    with pytest.raises(UnexpectedInput, match="open it first"):
        await transport.receive()
    with pytest.raises(UnexpectedInput):
        transport.send(SIGNAL)
    await transport.close()


async def test_it_is_opened_once() -> None:
    transport, _ = await seated()
    with pytest.raises(UnexpectedInput):
        await transport.open(JOIN)
    await transport.close()


# --- doubt ---------------------------------------------------------------------------------------


async def test_a_connection_in_doubt_that_does_not_answer_is_replaced_at_once() -> None:
    transport, wire = await seated()
    transport.doubt(network_changed=True)
    await wire.checked.wait()
    wire.gone = True
    second = transport.connects()
    wire.answers.set()
    assert isinstance(await second.heard.get(), Join)
    assert wire.aborted
    await transport.close()


async def test_a_connection_in_doubt_that_answers_stays() -> None:
    transport, wire = await seated()
    wire.answers.set()
    for _ in range(3):
        transport.doubt(network_changed=True)
        await wire.checked.wait()
        wire.checked.clear()
    transport.send(SIGNAL)
    assert await wire.heard.get() == SIGNAL
    await transport.close()


async def test_doubt_tries_at_once_what_waits_and_begins_anew_what_hangs() -> None:
    transport, wire = await seated(signaling_retry_max=3600.0)
    transport._session._backoff.first = 3600.0
    wire.breaks()
    assert isinstance(await transport.receive(), SignalingLost)
    transport.asked.clear()
    transport.doubt(network_changed=True)
    await transport.asked.wait()
    transport.asked.clear()
    transport.doubt(network_changed=True)
    await transport.asked.wait()
    assert transport.cancelled == 1
    await transport.close()
    transport.doubt(network_changed=True)


# --- join tokens ---------------------------------------------------------------------------------


async def test_a_join_token_is_in_every_join() -> None:
    transport, wire = await seated(join_token=SECRET)
    again = transport.connects()
    wire.breaks()
    assert (await again.heard.get()).join_token == SECRET
    await transport.close()


async def test_who_gives_join_tokens_is_asked_before_each_connection() -> None:
    given: list[str] = []

    async def give() -> str:
        assert not transport.asked.is_set(), "the connection is made when the token is there"
        await asyncio.sleep(0)
        given.append(f"token-{len(given)}")
        return given[-1]

    transport = FakeTransport(give)
    wire = transport.connects()
    opening = asyncio.create_task(transport.open(JOIN))
    for number in range(3):
        assert (await wire.heard.get()).join_token == f"token-{number}"
        transport.asked.clear()
        later = transport.connects()
        wire.breaks()
        wire = later
    wire.say(WELCOME)
    await opening
    await transport.close()


async def raises_what_has_the_token() -> str:
    raise ValueError(f"could not sign {SECRET}")


async def is_cancelled_by_itself() -> str:
    raise asyncio.CancelledError


async def times_out() -> str:
    raise TimeoutError


async def gives_no_text() -> Any:
    return 7


async def gives_what_can_not_be_one() -> str:
    return f"{SECRET}\n"


def is_not_async() -> Any:
    return SECRET


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (raises_what_has_the_token, "no join token: join_token raised ValueError"),
        (is_cancelled_by_itself, "no join token: join_token raised CancelledError"),
        (times_out, "no join token: join_token raised TimeoutError"),
        (is_not_async, "no join token: join_token raised TypeError"),
        (gives_no_text, "what join_token returned is no join token: it must be a str"),
        (gives_what_can_not_be_one, "what join_token returned is no join token"),
    ],
)
async def test_without_a_join_token_the_attempt_has_failed_and_another_follows(
    source: Callable[[], Awaitable[str]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tries = 0
    twice = asyncio.Event()

    async def give() -> str:
        nonlocal tries
        tries += 1
        if tries == 3:
            twice.set()
            return SECRET
        return await source()

    transport = FakeTransport(give)
    with structlog.testing.capture_logs() as entries:
        opening = asyncio.create_task(transport.open(JOIN))
        await twice.wait()
        assert isinstance(transport.last_failure, SignalingUnavailable)
        failure = str(transport.last_failure)
        assert failure.startswith(said)
        wire = transport.connects()
        wire.say(WELCOME)
        assert await opening == WELCOME
        await transport.close()
    for text in (failure, str(entries), caplog.text, repr(transport), str(vars(wire))):
        assert SECRET not in text


async def test_a_join_token_that_never_comes_costs_one_attempt() -> None:
    asked: asyncio.Queue[int] = asyncio.Queue()
    given_up = 0

    async def give() -> str:
        nonlocal given_up
        await asked.put(given_up)
        if given_up < 2:
            try:
                await asyncio.Event().wait()
            finally:
                given_up += 1
        return SECRET

    transport = FakeTransport(give)
    wire = transport.connects()
    opening = asyncio.create_task(transport.open(JOIN))
    for number in range(2):
        assert await asked.get() == number
        transport.doubt(network_changed=True)  # what is being tried is begun anew
    wire.say(WELCOME)
    assert await opening == WELCOME
    assert given_up == 2
    assert (await wire.heard.get()).join_token == SECRET
    await transport.close()


async def test_a_join_token_that_comes_too_late_makes_no_connection() -> None:
    asked, late = asyncio.Event(), asyncio.Event()

    async def give() -> str:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await late.wait()
        return SECRET

    transport = FakeTransport(give)
    opening = asyncio.create_task(transport.open(JOIN))
    await asked.wait()
    closing = asyncio.create_task(transport.close())
    await asyncio.sleep(0)
    late.set()
    await closing
    assert not transport.asked.is_set()
    with pytest.raises(MeshClosed):
        await opening


@pytest.mark.parametrize("token", ["", "two words", "x" * 4097, b"bytes", 7])
def test_what_can_not_be_a_join_token(token: Any) -> None:
    with pytest.raises(ConfigError, match="join_token is no join token: it must be") as caught:
        FakeTransport(token)
    assert not token or str(token) not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "error"), [("unauthorized", Unauthorized), ("forbidden", Forbidden)]
)
async def test_who_may_not_join_any_more_does_not_come_back(
    code: str, error: type[Exception]
) -> None:
    async def give() -> str:
        return SECRET

    transport, wire = await seated(join_token=give)
    again = transport.connects()
    again.say(Refused(code=code, text="the join token has expired"))
    wire.breaks()
    assert isinstance(await transport.receive(), SignalingLost)
    for _ in range(2):
        with pytest.raises(error, match="has expired"):
            await transport.receive()
    await transport.close()


async def test_who_was_removed_is_told_so() -> None:
    transport, wire = await seated()
    wire.say(Goodbye(reason="removed"))
    with pytest.raises(Removed):
        await transport.receive()
    with pytest.raises(Removed):
        transport.send(SIGNAL)
    await transport.close()


# --- reports -------------------------------------------------------------------------------------

LINK = LinkReport(peer_id="bob", incarnation="bob-one-1", state="connected", ice_state="connected")


async def test_reports_go_out_while_there_is_a_seat() -> None:
    transport = FakeTransport()
    transport.report([LINK])
    wire = transport.connects()
    wire.say(WELCOME)
    await transport.open(JOIN)
    assert isinstance(await wire.heard.get(), Join)
    transport.report([LINK])
    assert await wire.heard.get() == Report([LINK])
    wire.breaks()
    assert isinstance(await transport.receive(), SignalingLost)
    transport.report([LINK])
    again = transport.connects()
    assert isinstance(await again.heard.get(), Join)
    again.say(WELCOME)
    assert await transport.receive() == WELCOME
    transport.send(SIGNAL)
    assert await again.heard.get() == SIGNAL, "what was told meanwhile is dropped"
    await transport.close()
    transport.report([LINK])
