"""Join tokens, from `meshpeer token` to a seat: each command that enters a room takes one."""

from __future__ import annotations

import json
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshpeer import (
    Closed,
    Forbidden,
    Joined,
    PeerManager,
    Relay,
    RelayConfig,
    Unauthorized,
    make_join_token,
)
from tests.cli.processes import Start
from tests.test_manager import event_of

SECRET = "x" * 40


def token(room: str = "lobby", lifetime: float = 3600.0) -> str:
    return make_join_token(secret=SECRET, subject="ann", room=room, lifetime=lifetime)


@pytest.fixture
async def guarded() -> AsyncIterator[Relay]:
    """A relay that takes only who has a join token."""
    async with Relay(RelayConfig(port=0, join_secret=SECRET)) as relay:
        yield relay


async def test_a_token_lets_its_bearer_in_and_is_not_shown(start: Start, guarded: Relay) -> None:
    made = await start(
        *("token", "--subject", "ann", "--room", "lobby"),
        environment={"MESHPEER_JOIN_SECRET": SECRET},
    )
    assert await made.end() == (0, "")
    (printed,) = made.lines
    loud = ("--relay", guarded.url, "--json", "--log-level", "debug", "--exit-after", "0")
    option = await start("chat", "lobby", *loud, "--join-token", printed, stdin=DEVNULL)
    variable = await start(
        *("chat", "lobby", *loud), stdin=DEVNULL, environment={"MESHPEER_JOIN_TOKEN": printed}
    )
    for chat in (option, variable):
        status, logged = await chat.end()
        assert status == 0
        assert chat.events[0]["event"] == "joined"
        assert "seated" in logged
        assert printed not in logged + "".join(chat.lines)


async def test_who_has_none_or_one_for_another_room_is_told_so(
    start: Start, guarded: Relay
) -> None:
    chats = {
        "unauthorized": await start.chat(guarded.url, stdin=DEVNULL),
        "forbidden": await start.chat(guarded.url, "--join-token", token("attic"), stdin=DEVNULL),
    }
    for reason, chat in chats.items():
        status, error = await chat.end()
        assert (status, chat.events) == (1, [{"event": "closed", "reason": reason}])
        assert "join token" in error
        assert error.count("\n") == 1


async def test_what_can_be_no_token_is_not_echoed(start: Start) -> None:
    chat = await start.chat("ws://127.0.0.1:1", "--join-token", "s3cret s3cret", stdin=DEVNULL)
    status, error = await chat.end()
    assert status == 1
    assert "join_token" in error
    assert "s3cret" not in error


async def test_files_go_where_a_token_is_asked_for(
    start: Start, guarded: Relay, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    shared = ("--room", "lobby", "--relay", guarded.url, "--json")
    receiver = await start(
        *("receive", *shared, "--id", "bob", "--once", "--directory", str(tmp_path / "there")),
        stdin=DEVNULL,
        environment={"MESHPEER_JOIN_TOKEN": token()},
    )
    sender = await start(
        *("send", str(tmp_path / "notes.txt"), "bob", *shared, "--join-token", token()),
        stdin=DEVNULL,
    )
    assert (await sender.end())[0] == 0
    assert (await receiver.end())[0] == 0
    assert (tmp_path / "there" / "notes.txt").read_text() == "hello"


async def test_the_demo_s_bots_take_one_too(start: Start, guarded: Relay) -> None:
    bot = await start("demo-bot", guarded.url, "lobby", "a", "--join-token", token())
    assert json.loads(await bot.line())["event"] == "ready"
    bot.say(json.dumps({"do": "start", "peers": []}), json.dumps({"do": "finish"}))
    while json.loads(await bot.line())["event"] != "finished":
        pass
    assert bot.process.stdin is not None
    bot.process.stdin.close()
    assert (await bot.end())[0] == 0


@pytest.mark.parametrize(
    ("given", "said", "refusal"),
    [
        ("*", None, None),
        ("lobby", "The join token is for other rooms.", "forbidden"),
        ("", "This relay takes only who has a join token, and none was given.", "unauthorized"),
    ],
)
async def test_the_doctor_enters_a_room_with_it(
    start: Start, guarded: Relay, given: str, said: str | None, refusal: str | None
) -> None:
    join_token = token(given) if given else ""
    doctor = await start(
        *("doctor", "--json", "--relay", guarded.url),
        environment={"MESHPEER_JOIN_TOKEN": join_token} if given else None,
    )
    await doctor.end()
    (found,) = doctor.events
    assert found["relay"]["refusal"] == refusal
    texts = [each["text"] for each in found["verdicts"] if each["case"] == "relay"]
    assert texts == [said or f"Peers find each other at {guarded.url}."]
    assert any("join token" in each for each in found["changes"]) == (said is not None)


async def test_a_program_may_give_a_new_one_for_each_connection() -> None:
    given: list[str] = []

    async def give() -> str:
        given.append(token() if len(given) < 2 else token("attic"))
        return given[-1]

    config = RelayConfig(port=0, join_secret=SECRET, restart_delay=0)
    async with Relay(config) as relay:
        mesh = PeerManager(relay.url, room="lobby", join_token=give)
        await mesh.start()
        with pytest.raises(Unauthorized, match="none was given"):
            await PeerManager(relay.url, room="lobby").start()
        config = replace(config, port=int(relay.url.rpartition(":")[2]))
        events = mesh.events()
    async with Relay(config):
        assert await event_of(events, Joined)
    async with Relay(config):
        closed = await event_of(events, Closed)
    assert isinstance(closed.error, Forbidden)
    assert len(given) >= 3
    await mesh.close()
