"""The examples, run as their docstrings say."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from meshpeer import PeerManager, Relay

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
    assert NAMES == ["echo_bot.py", "room_logger.py", "two_in_one_process.py"]
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
        for data in ("a line", b"\0\xff", {"a": [1, None]}):
            await bot.send(data)
            assert (await anext(messages)).data == data
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
