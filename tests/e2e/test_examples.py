"""The examples, run as their docstrings say."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from meshpeer import (
    MeshConfig,
    Message,
    Peer,
    PeerManager,
    Relay,
    RelayConfig,
    TransferFailed,
)
from tests.relay.test_admin_relay import dashboard

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


@asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[Process]:
    """Run an example; it is killed when it has not ended by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *arguments), stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    text = (await process.stdout.readline()).decode()
    if not text:
        _, error = await process.communicate()
        pytest.fail(f"it ended: {error.decode()}")
    return text


async def interrupt(process: Process) -> None:
    """Ctrl-C ends it, without a word of complaint."""
    process.send_signal(signal.SIGINT)
    _, error = await process.communicate()
    assert (process.returncode, error) == (0, b"")


def test_each_says_how_it_is_run() -> None:
    assert NAMES == ["echo_bot.py", "room_bot.py", "room_logger.py", "two_in_one_process.py"]
    for name in NAMES:
        text = (EXAMPLES / name).read_text()
        assert f"python examples/{name} [relay-url] [room]" in text
    assert len((EXAMPLES / "echo_bot.py").read_text().splitlines()) <= 30


async def test_echo_bot(relay: Relay) -> None:
    async with (
        example("echo_bot.py", relay.url, "attic") as process,
        PeerManager(relay.url, room="attic") as mesh,
    ):
        assert "attic" in await line(process)
        (bot,) = await mesh.wait_for_peers()
        assert bot.name == "echo bot"
        messages = mesh.messages()
        # What the chat page says comes back where it looks for it.
        said: list[tuple[Any, str]] = [("a line", "default"), (b"\0\xff", "else")]
        for data, channel in (*said, ({"text": "hello"}, "chat")):
            await bot.send(data, channel)
            answer = await anext(messages)
            assert (answer.data, answer.channel) == (data, channel)
        await interrupt(process)


async def test_room_logger(relay: Relay) -> None:
    async with example("room_logger.py", relay.url, "attic") as process:
        assert json.loads(await line(process))["what"] == "logging"
        async with PeerManager(relay.url, room="attic", peer_id="guest", name="Guest") as mesh:
            (logger,) = await mesh.wait_for_peers()
            await logger.send("good evening")
            await logger.send(b"\0")
            await logger.flush()
        records: list[dict[str, str]] = []
        while not records or records[-1]["what"] != "left":
            records.append(json.loads(await line(process)))
        assert all(record.pop("at") for record in records)
        assert all(record["peer"] == "guest" for record in records)
        assert records[0] == {"what": "joined", "peer": "guest", "name": "Guest"}
        assert [r["state"] for r in records if r["what"] == "state"] == [
            "connecting",
            "connected",
            "closed",
        ]
        assert [r["data"] for r in records if r["what"] == "message"] == [
            "good evening",
            "b'\\x00'",
        ]
        assert records[-1] == {"what": "left", "peer": "guest", "why": "left"}
        await interrupt(process)


async def ask(messages: AsyncIterator[Message], bot: Peer, *questions: str) -> str:
    """Put questions to the bot, as the chat page does; the answer to the first."""
    for question in questions:
        await bot.send({"text": question}, "chat")
    return await said(messages)


async def said(messages: AsyncIterator[Message]) -> str:
    message = await anext(messages)
    assert message.channel == "chat"
    assert list(message.data) == ["text"]
    text: str = message.data["text"]
    return text


def guest(relay: Relay, name: str, **more: Any) -> PeerManager:
    return PeerManager(relay.url, room="attic", peer_id=name.lower(), name=name, **more)


async def test_room_bot(relay: Relay, tmp_path: Path) -> None:
    gift = tmp_path / "gift.txt"
    gift.write_text("a gift")
    async with (
        example("room_bot.py", relay.url, "attic", str(gift)) as process,
        guest(relay, "Ann") as ann,
    ):
        assert "attic" in await line(process)
        messages = ann.messages()
        (bot,) = await ann.wait_for_peers()
        assert bot.name == "room bot"
        assert await said(messages) == "Hello Ann! I know !ping, !who, !stats and !file."
        assert re.fullmatch(
            r"Pong\. The round trip to you is (\d+ ms|not measured yet), the path direct\.",
            await ask(messages, bot, "!ping"),
        )
        assert await ask(messages, bot, "!who") == "I see Ann (direct)."
        assert await ask(messages, bot, "!stats") == (
            "Peers: 1 direct. Received: 3 messages. Answered: 2 in 0 min."
        )
        # What is no question has no answer, and a plain line is answered by a plain line.
        for data, channel in ((b"!ping", "default"), ({"text": 3}, "chat"), ("!ping", "else")):
            await bot.send(data, channel)
        await bot.send("!sing", "default")
        answer = await anext(messages)
        assert (answer.channel, answer.data) == (
            "default",
            "I know !ping, !who, !stats and !file.",
        )
        assert await ask(messages, bot, "!file", "!file") == "Here is gift.txt."
        assert "One file at a time" in await said(messages)
        received = await ann.receive_file(tmp_path / "downloads")
        assert received.path.read_text() == "a gift"
        assert await said(messages) == "You have gift.txt: 6 bytes, checked."
        gift.unlink()
        assert await ask(messages, bot, "!file") == "Here is gift.txt."
        assert (await said(messages)).startswith("No file for you: ")
        await interrupt(process)


async def test_room_bot_takes_a_file_and_keeps_none(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    small, large = tmp_path / "small.txt", tmp_path / "large.bin"
    small.write_text("a present")
    with large.open("wb") as file:
        file.truncate(16 * 1024**2 + 1)
    async with (
        example("room_bot.py", relay.url, "attic") as process,
        guest(relay, "Ann") as ann,
    ):
        await line(process)
        messages = ann.messages()
        (bot,) = await ann.wait_for_peers()
        await said(messages)
        text = "I had small.txt: 9 bytes, SHA-256 {}… It is gone now."
        for _ in range(2):
            sent = await bot.send_file(small)
            assert await said(messages) == text.format(sent.sha256[:16])
            assert [path for path in scratch.rglob("*") if path.is_file()] == []
        with pytest.raises(TransferFailed, match="a file for me has 16 MiB at most"):
            await bot.send_file(large)
        assert await said(messages) == "No file for me: a file for me has 16 MiB at most."
        # The next one is taken all the same.
        await bot.send_file(small)
        assert (await said(messages)).startswith("I had small.txt")
        await interrupt(process)
    assert list(scratch.iterdir()) == []


async def test_room_bot_serves_each_guest_by_itself(relay: Relay) -> None:
    # Who asks without end and reads nothing is no matter for the others.
    deaf = MeshConfig(channel_window=32 * 1024)
    async with (
        example("room_bot.py", relay.url, "attic") as process,
        guest(relay, "Deaf", config=deaf) as mute,
        guest(relay, "Ann") as ann,
    ):
        await line(process)
        messages = ann.messages("chat")
        (bot,) = [peer for peer in await ann.wait_for_peers(2) if peer.name == "room bot"]
        assert await said(messages) == "Hello Ann! I know !ping, !who, !stats and !file."
        same = await mute.wait_for_peer(bot.id)
        for _ in range(2000):
            await same.send({"text": "!file"}, "chat")
        await same.flush()
        assert (await ask(messages, bot, "!ping")).startswith("Pong.")
        # Who comes back with its id has been greeted.
        await mute.close()
        async with guest(relay, "Deaf") as back:
            again = await back.wait_for_peer(bot.id)
            heard = back.messages("chat")
            assert (await ask(heard, again, "!ping")).startswith("Pong.")
        await interrupt(process)


async def test_room_bots_greet_with_one_voice(relay: Relay) -> None:
    async with (
        example("room_bot.py", relay.url, "attic") as one,
        example("room_bot.py", relay.url, "attic") as other,
    ):
        ids = {(await line(process)).split()[-4].rstrip(".") for process in (one, other)}
        async with guest(relay, "Ann") as ann:
            messages = ann.messages("chat")
            bots = {peer.id: peer for peer in await ann.wait_for_peers(2)}
            assert set(bots) == ids
            first = min(ids)
            greeting = await anext(messages)
            assert (greeting.sender.id, greeting.data["text"][:10]) == (first, "Hello Ann!")
            for question in ("!who", "!ping"):
                await ann.broadcast({"text": question}, "chat")
            heard = sorted([(await anext(messages)).sender.id for _ in range(3)])
            assert heard == sorted([first, *ids])
        for process in (one, other):
            await interrupt(process)


async def test_room_bot_waits_for_its_relay() -> None:
    async with Relay(RelayConfig(port=0)) as relay:
        port = int(relay.url.rpartition(":")[2])
        async with example("room_bot.py", relay.url, "attic") as process:
            await line(process)
            await relay.close()
            async with (
                Relay(RelayConfig(port=port)) as again,
                guest(again, "Ann") as ann,
            ):
                messages = ann.messages()
                (bot,) = await ann.wait_for_peers()
                assert (await said(messages)).startswith("Hello Ann!")
                assert (await ask(messages, bot, "!ping")).startswith("Pong.")
            await interrupt(process)


async def test_room_bot_that_was_removed_does_not_come_back(relay: Relay) -> None:
    async with example("room_bot.py", relay.url, "attic") as process:
        peer_id = (await line(process)).split()[-4].rstrip(".")
        async with dashboard(relay) as page:
            await page.say(type="act", id=1, room="attic", action="remove", peerId=peer_id)
            assert (await page.until("done", id=1))["ok"]
        _, error = await process.communicate()
        assert process.returncode == 1
        assert f"removed '{peer_id}' from the room" in error.decode()


@pytest.mark.parametrize("at_a_relay", [False, True])
async def test_two_in_one_process(relay: Relay, at_a_relay: bool) -> None:
    arguments = (relay.url, "attic") if at_a_relay else ()
    async with example("two_in_one_process.py", *arguments) as process:
        output, error = await process.communicate()
        assert (process.returncode, error) == (0, b"")
        assert output.decode().splitlines() == [
            "there heard {'question': 'how far is it?'} from here",
            "here heard 'not far' (direct)",
        ]
