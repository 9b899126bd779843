"""`meshpeer chat`, as processes that people start, kill and start again."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest

from meshpeer import PeerLeft, PeerManager, Relay
from tests.cli.processes import Command, Event, Start


async def connected(*commands: Command) -> None:
    """Wait until each has connected to one more peer."""
    for command in commands:
        await command.until(event="peer_state", state="connected", path="direct")


def states(command: Command, peer_id: str) -> list[tuple[str, str]]:
    """What it saw of a peer: states, and the reasons of the last ones."""
    return [
        (event["state"], event["reason"] if event["state"] == "closed" else "")
        for event in command.events
        if event["event"] == "peer_state" and event["peer_id"] == peer_id
    ]


async def test_lines_written_at_once_arrive_on_the_direct_path(start: Start, relay: Relay) -> None:
    chats = [await start.chat(relay.url, "--id", name, "--name", name * 3) for name in "abc"]
    for chat, name in zip(chats, "abc", strict=True):
        chat.say(f"one of {name}", f"two of {name}: grüß dich")
    for chat, name in zip(chats, "abc", strict=True):
        assert await chat.until(event="joined") == {
            "event": "joined",
            "peer_id": name,
            "room": "lobby",
        }
        while sum(event["event"] == "message" for event in chat.events) < 4:
            await chat.until(event="message")
        # Messages and states are read side by side: of two that come at once either may be first.
        while sum(event.get("state") == "connected" for event in chat.events) < 2:
            await chat.until(event="peer_state")
        for other in {*"abc"} - {name}:
            messages = [event for event in chat.events if event.get("from") == other]
            assert messages == [
                {
                    "event": "message",
                    "from": other,
                    "name": other * 3,
                    "data": data,
                    "channel": "default",
                    "path": "direct",
                }
                for data in (f"one of {other}", f"two of {other}: grüß dich")
            ]
            assert states(chat, other) == [("connecting", ""), ("connected", "")]


async def test_a_killed_process_has_its_id_back_at_once(
    start: Start, relay: Relay, tmp_path: Path
) -> None:
    seat = str(tmp_path / "seat")
    a = await start.chat(relay.url, "--id", "a")
    b = await start.chat(relay.url, "--id", "b", "--seat", seat)
    await connected(a, b)
    a.say("said once")
    assert (await b.until(event="message"))["data"] == "said once"
    await b.kill()
    # The id from the seat file, which is as good as the one on the command line.
    again = await start.chat(relay.url, "--seat", seat)
    assert (await again.until(event="joined"))["peer_id"] == "b"
    await connected(a, again)
    again.say("here again")
    message = await a.until(event="message")
    assert (message["from"], message["data"]) == ("b", "here again")
    # Who enters hears what was said just before, but no id twice.
    a.say("said later")
    assert (await again.until(event="message"))["data"] == "said later"
    # At any time one: the old one is closed before the new one is seen.
    assert [s for s in states(a, "b") if s[0] != "disconnected"] == [
        ("connecting", ""),
        ("connected", ""),
        ("closed", "superseded"),
        ("connecting", ""),
        ("connected", ""),
    ]
    again.process.send_signal(signal.SIGTERM)
    await a.until(event="peer_state", peer_id="b", state="closed", reason="left")
    third = await start.chat(relay.url, "--id", "b")
    await connected(a, third)
    a.say("said last")
    assert (await third.until(event="message"))["data"] == "said last"


async def test_a_relay_that_is_killed_and_started_again_is_hardly_missed(
    start: Start, tmp_path: Path
) -> None:
    relay, url = await start.relay()
    a = await start.chat(url, "--id", "a", "--seat", str(tmp_path / "a"))
    b = await start.chat(url, "--id", "b")
    await connected(a, b)
    await relay.kill()
    a.say("without a relay")
    message = await b.until(event="message")
    assert (message["data"], message["path"]) == ("without a relay", "direct")

    await start.relay("--port", url.rsplit(":", 1)[1])
    await a.until(event="joined", peer_id="a")
    await b.until(event="joined", peer_id="b")
    token = json.loads((tmp_path / "a").read_text())["resume_token"]

    c = await start.chat(url, "--id", "c")
    await connected(c, c)
    await a.until(event="peer_state", peer_id="c", state="connected")
    await b.until(event="peer_state", peer_id="c", state="connected")
    b.say("with three")
    assert (await a.until(event="message"))["data"] == "with three"
    assert (await c.until(event="message", data="with three"))["from"] == "b"
    # The two never lost each other.
    assert states(a, "b") == states(b, "a") == [("connecting", ""), ("connected", "")]

    # The seat file is of the new relay's seat.
    async with PeerManager(url, room="lobby", peer_id="a", resume_token=token):
        closed = await a.until(event="closed")
    assert closed == {"event": "closed", "reason": "replaced"}
    status, error = await a.end()
    assert status == 1
    # Once: the log at its default level says nothing of what the sentence is about.
    assert error == "meshpeer: a newer process has the peer id 'a'\n"


async def test_an_id_in_use_is_refused_or_another_one_given(start: Start, relay: Relay) -> None:
    a = await start.chat(relay.url, "--id", "a")
    await a.until(event="joined")
    second = await start.chat(relay.url, "--id", "a", stdin=DEVNULL)
    status, error = await second.end()
    assert status == 1
    assert second.events == [{"event": "closed", "reason": "peer_id_taken"}]
    assert error.startswith("meshpeer: ")
    assert "'a'" in error
    assert error.count("\n") == 1
    third = await start.chat(relay.url, "--id", "a", "--on-conflict", "rename")
    assert (await third.until(event="joined"))["peer_id"] == "a-2"


async def test_without_a_seat_file_an_id_is_free_when_its_owner_is_known_dead(
    start: Start,
) -> None:
    _, url = await start.relay("--port", "0", "--seat-timeout", "0.2")
    a = await start.chat(url, "--id", "a")
    b = await start.chat(url, "--id", "b")
    await connected(a, b)
    await b.kill()
    await a.until(event="peer_state", peer_id="b", state="closed", reason="timeout")
    again = await start.chat(url, "--id", "b")
    assert (await again.until(event="joined"))["peer_id"] == "b"
    await connected(a, again)


async def test_a_full_room_and_a_relay_that_is_not_there(start: Start) -> None:
    relay, url = await start.relay("--port", "0", "--max-members", "1")
    a = await start.chat(url)
    await a.until(event="joined")
    second = await start.chat(url, stdin=DEVNULL)
    status, error = await second.end()
    assert (status, second.events) == (1, [{"event": "closed", "reason": "room_full"}])
    assert "1" in error
    assert error.count("\n") == 1
    await relay.kill()
    third = await start.chat(url, stdin=DEVNULL)
    status, error = await third.end()
    assert (status, third.events) == (1, [{"event": "closed", "reason": "signaling_unavailable"}])
    assert url in error
    assert "meshpeer relay" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_leave_the_room(start: Start, relay: Relay, number: signal.Signals) -> None:
    async with PeerManager(relay.url, room="lobby") as other:
        chat = await start.chat(relay.url, "--id", "a")
        peer = await other.wait_for_peer("a")
        await connected(chat)
        chat.process.send_signal(number)
        assert await chat.end() == (0, "")
        assert chat.events[-1] == {"event": "closed", "reason": "closed"}
        assert peer.closed_reason == "left"


async def test_the_end_of_a_file_is_the_end_of_the_stay(
    start: Start, relay: Relay, tmp_path: Path
) -> None:
    """And everything in it arrives, more than may wait at once."""
    path = tmp_path / "lines"
    lines = [f"line {n}" for n in range(500)]
    path.write_text("\n\n".join(lines))
    async with PeerManager(relay.url, room="lobby") as other:
        with path.open() as file:
            chat = await start.chat(relay.url, stdin=file)
        heard: list[str] = []
        async for message in other.messages():
            heard.append(message.data)
            if len(heard) == len(lines):
                break
        assert heard == lines
        assert await chat.end() == (0, "")


async def test_what_was_heard_holds_nobody_up(start: Start, relay: Relay) -> None:
    async with PeerManager(relay.url, room="lobby") as other:
        chat = await start.chat(relay.url)
        messages = other.messages()
        chat.say("one", "two")
        assert [(await anext(messages)).data, (await anext(messages)).data] == ["one", "two"]
    await chat.until(event="peer_state", state="closed")
    assert chat.process.stdin is not None
    chat.process.stdin.close()
    # Had it waited for somebody else to come, it would say that nobody did.
    assert await chat.end() == (0, "")


async def test_without_input_it_listens(start: Start, relay: Relay) -> None:
    async with PeerManager(relay.url, room="lobby", peer_id="other") as other:
        chat = await start.chat(relay.url, "--id", "a", "--exit-after", "3600", stdin=DEVNULL)
        peer = await other.wait_for_peer("a")
        await peer.send({"n": [1, None]})
        await peer.send(b"\xff", channel="raw")
        await chat.until(event="message", channel="raw")
        chat.process.send_signal(signal.SIGTERM)
        assert await chat.end() == (0, "")
    messages = [e for e in chat.events if e["event"] == "message"]
    assert [(m["data"], m["channel"]) for m in messages] == [
        ({"n": [1, None]}, "default"),
        ({"base64": "/w=="}, "raw"),
    ]


async def test_exit_after_ends_it_while_its_input_is_open(start: Start, relay: Relay) -> None:
    chat = await start.chat(relay.url, "--exit-after", "0.1")
    assert await chat.end() == (0, "")
    assert chat.events[-1] == {"event": "closed", "reason": "closed"}


@pytest.mark.parametrize("redirect", ["<&-", "<&- >&- 2>&-", "</dev/null"])
async def test_closed_standard_streams_are_no_trap(
    start: Start, relay: Relay, redirect: str
) -> None:
    chat = await start.chat(relay.url, "--exit-after", "0", redirect=redirect)
    assert await chat.end() == (0, "")
    events = [] if ">" in redirect else ["joined", "closed"]
    assert [event["event"] for event in chat.events] == events


async def test_people_read_lines_that_can_not_steer_their_terminal(
    start: Start, relay: Relay
) -> None:
    terminal, side = pty.openpty()
    try:
        async with PeerManager(relay.url, room="lobby", name="Kitchen") as other:
            chat = await start(*("chat", "lobby", "--relay", relay.url, "--id", "a"), stdin=side)
            (peer,) = await other.wait_for_peers()
            messages = other.messages()
            await peer.send("soup\x1b]0;title\x07 is\nready")
            while not (line := await chat.line()).endswith("is"):
                pass
            assert line[8:] == " Kitchen [direct] soup\ufffd]0;title\ufffd is"
            assert (await chat.line()).strip() == "ready"
            os.write(terminal, b"coming\n")
            assert (await anext(messages)).data == "coming"
            os.write(terminal, b"\x04")  # the end of a terminal's input
            assert await chat.end() == (0, "")
        shown = [line[9:] for line in chat.lines]
        assert shown[0] == "You are in lobby as a."
        assert f"→ Kitchen ({other.peer_id}) is here" in shown
        assert "· Kitchen connected (direct)" in shown
        assert shown[-1] == "You left."
        assert not any("coming" in line for line in shown)
    finally:
        os.close(terminal)
        os.close(side)


def _seat(**changes: object) -> str:
    seat: Event = {"peer_id": "a", "resume_token": "t" * 20, "room": "lobby", "relay": "ws://x:1"}
    return json.dumps(seat | changes)


@pytest.mark.parametrize(
    ("content", "arguments", "reason", "words"),
    [
        ("{", (), "bad_seat", "not a seat file"),
        ("\xff", (), "bad_seat", "not a seat file"),
        (_seat(room=1), (), "bad_seat", "$.room"),
        (_seat(room="attic"), (), "foreign_seat", "room 'attic', not 'lobby'"),
        (_seat(relay="ws://y:1"), (), "foreign_seat", "relay 'ws://y:1', not 'ws://x:1'"),
        (
            _seat(relay="ws://u:hunter2@y:1"),
            (),
            "foreign_seat",
            "relay 'ws://y:1', not 'ws://x:1'",
        ),
        (_seat(), ("--id", "b"), "foreign_seat", "id 'a', not 'b'"),
    ],
)
async def test_a_seat_file_that_is_none_of_ours_is_refused(
    start: Start,
    tmp_path: Path,
    content: str,
    arguments: tuple[str, ...],
    reason: str,
    words: str,
) -> None:
    path = tmp_path / "seat"
    path.write_bytes(content.encode("latin-1"))
    chat = await start.chat("ws://x:1", "--seat", str(path), *arguments, stdin=DEVNULL)
    status, error = await chat.end()
    assert (status, chat.events) == (1, [{"event": "closed", "reason": reason}])
    assert words in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert path.read_bytes() == content.encode("latin-1")


async def test_a_seat_is_for_its_owner_to_read(start: Start, relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "seat"
    chat = await start.chat(relay.url, "--seat", str(path))
    joined = await chat.until(event="joined")
    chat.process.send_signal(signal.SIGTERM)
    assert await chat.end() == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) | {"resume_token": ""} == {
        "peer_id": joined["peer_id"],
        "resume_token": "",
        "room": "lobby",
        "relay": relay.url,
    }
    assert [entry.name for entry in os.scandir(tmp_path)] == ["seat"]


async def test_a_seat_that_can_not_be_kept_ends_it(
    start: Start, relay: Relay, tmp_path: Path
) -> None:
    path = tmp_path / "missing" / "seat"
    chat = await start.chat(relay.url, "--seat", str(path))
    status, error = await chat.end()
    assert status == 1
    assert [event["event"] for event in chat.events] == ["joined", "closed"]
    assert chat.events[-1]["reason"] == "bad_seat"
    assert error == f"meshpeer: the seat can't be kept in {path}: No such file or directory\n"


async def test_a_reader_that_goes_away_ends_it_without_a_word(start: Start, relay: Relay) -> None:
    async with PeerManager(relay.url, room="lobby", peer_id="b") as other:
        chat = await start.chat(relay.url, "--id", "a")
        peer = await other.wait_for_peer("a")
        await connected(chat)
        transport = chat.process._transport  # type: ignore[attr-defined]
        transport.get_pipe_transport(1).close()
        assert chat.process.stdout is not None
        await chat.process.stdout.read()  # closing is done when this has ended
        await peer.send("anybody?")
        async for event in other.events():
            if isinstance(event, PeerLeft):
                break
    assert await chat.end() == (1, "")
