"""`meshpeer send` and `meshpeer receive`, as processes that are killed and started again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import re
import signal
from asyncio.subprocess import DEVNULL
from contextlib import suppress
from pathlib import Path

import pytest

from meshpeer import PeerManager, Relay
from tests.cli.processes import Command, Start

LARGE = 32 * 1024 * 1024
"""Takes long enough to be broken in the middle."""


class Desk:
    """Starts senders and receivers in the room ``lobby``."""

    def __init__(self, start: Start, url: str, folder: Path) -> None:
        self._start = start
        self._url = url
        self.there = folder / "there"
        self.file = folder / "notes.bin"

    def write(self, size: int) -> bytes:
        """What is to be sent from now on."""
        data = os.urandom(size)
        self.file.write_bytes(data)
        return data

    async def send(self, to: str, *arguments: str, redirect: str = "") -> Command:
        return await self._start(
            *("send", str(self.file), to, "--room", "lobby", "--relay", self._url, *arguments),
            stdin=DEVNULL,
            redirect=redirect,
        )

    async def receive(self, *arguments: str, directory: Path | None = None) -> Command:
        where = str(directory or self.there)
        return await self._start(
            *("receive", "--room", "lobby", "--directory", where, "--relay", self._url),
            *arguments,
            stdin=DEVNULL,
        )


@pytest.fixture
def desk(start: Start, relay: Relay, tmp_path: Path) -> Desk:
    return Desk(start, relay.url, tmp_path)


async def test_a_file_is_sent_and_received(desk: Desk) -> None:
    data = desk.write(1_000_000)
    sender = await desk.send("bob", "--id", "ann", "--json")
    # The sender waits for who is to have it.
    await sender.until(event="joined", peer_id="ann", room="lobby")
    receiver = await desk.receive("--id", "bob", "--json", "--once")
    facts = {
        "name": "notes.bin",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "resumed_from": 0,
    }
    stored = desk.there / "notes.bin"
    assert await sender.end() == (0, "meshpeer: bob is not here yet.\n")
    assert await receiver.end() == (0, "")
    assert sender.events[-2:] == [
        {"event": "sent", "peer_id": "bob", "file": str(desk.file), **facts},
        {"event": "closed", "reason": "closed"},
    ]
    assert receiver.events[-2:] == [
        {"event": "received", "peer_id": "ann", "file": str(stored), **facts},
        {"event": "closed", "reason": "closed"},
    ]
    for side, other in ((sender, "bob"), (receiver, "ann")):
        progress = [event for event in side.events if event["event"] == "progress"]
        assert progress[0]["done"] == 0
        assert progress[-1]["done"] == len(data)
        assert {(p["peer_id"], p["name"], p["size"]) for p in progress} == {
            (other, "notes.bin", len(data))
        }
        assert progress[0]["path"] in ("direct", "relay")
    assert stored.read_bytes() == data
    assert [path.name for path in desk.there.iterdir()] == ["notes.bin"]


async def test_people_read_lines(desk: Desk) -> None:
    desk.write(300_000)
    receiver = await desk.receive("--name", "Bob")
    while "You are in lobby" not in await receiver.line():
        pass
    # By the display name, and twice: it goes on until it is stopped.
    for _ in range(2):
        sender = await desk.send("Bob", "--name", "Ann")
        assert await sender.end() == (0, "")
        assert re.match(r"notes.bin \(300.0 kB\) to Bob \[\w+\]$", sender.lines[-2])
        assert sender.lines[-1] == "✓ notes.bin (300.0 kB) is with Bob, and checked."
        while not (await receiver.line()).startswith("✓"):
            pass
    assert receiver.lines[-1] == f"✓ {desk.there}/notes (2).bin (300.0 kB) from Ann, checked."
    receiver.process.send_signal(signal.SIGINT)
    assert await receiver.end() == (0, "")


async def test_a_terminal_shows_a_bar(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    desk.write(3_000_000)
    await desk.receive("--id", "bob")
    terminal, side = pty.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: shown.extend(os.read(terminal, 65536)))
    try:
        sender = await desk.send("bob", redirect=f">{os.ttyname(side)}")
        assert await sender.end() == (0, "")
    finally:
        loop.remove_reader(terminal)
        os.set_blocking(terminal, False)
        with suppress(BlockingIOError):
            shown += os.read(terminal, 65536)
        os.close(terminal)
        os.close(side)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"notes\.bin .*/3\.0 MB .*(direct|relay)", text)
    assert "✓ notes.bin (3.0 MB) is with bob, and checked." in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_receiver_that_is_started_again_gets_the_rest(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    _, url = await start.relay("--port", "0", "--seat-timeout", "0.2")
    desk = Desk(start, url, tmp_path)
    data = desk.write(LARGE)
    receiver = await desk.receive("--id", "bob", "--json")
    sender = await desk.send("bob", "--json")
    while not (await receiver.until(event="progress"))["done"]:
        pass
    receiver.process.send_signal(number)
    assert await receiver.end() == (0 if number is signal.SIGTERM else -number, "")
    (partial,) = desk.there.iterdir()
    kept = partial.stat().st_size
    assert 0 < kept < LARGE

    again = await desk.receive("--id", "bob", "--json", "--once")
    status, error = await sender.end()
    assert status == 0
    assert "bob is gone" in error
    assert sender.events[-2]["event"] == "sent"
    assert sender.events[-2]["resumed_from"] == kept
    assert (await again.end())[0] == 0
    assert again.events[-2]["resumed_from"] == kept
    (stored,) = desk.there.iterdir()
    assert stored.name == "notes.bin"
    assert stored.read_bytes() == data


async def test_a_sender_that_is_started_again_sends_the_rest(start: Start, tmp_path: Path) -> None:
    _, url = await start.relay("--port", "0", "--seat-timeout", "0.2")
    desk = Desk(start, url, tmp_path)
    data = desk.write(LARGE)
    receiver = await desk.receive("--id", "bob", "--json")
    sender = await desk.send("bob", "--id", "ann", "--json")
    while not (await receiver.until(event="progress"))["done"]:
        pass
    await sender.kill()
    again = await desk.send("bob", "--id", "ann", "--json")
    status, error = await again.end()
    assert (status, error) == (0, "")
    received = await receiver.until(event="received")
    assert received["resumed_from"] == again.events[-2]["resumed_from"] > 0
    assert (desk.there / "notes.bin").read_bytes() == data
    assert len(list(desk.there.iterdir())) == 1
    receiver.process.send_signal(signal.SIGTERM)
    status, error = await receiver.end()
    assert status == 0
    assert error.startswith("meshpeer: A file did not come: peer 'ann' is gone")


async def test_only_files_of_one_sender_are_taken(desk: Desk) -> None:
    desk.write(10)
    receiver = await desk.receive("--id", "bob", "--from", "ann", "--once", "--json")
    await receiver.until(event="joined")
    other = await desk.send("bob", "--id", "eve", "--json")
    await other.until(event="joined")
    sender = await desk.send("bob", "--id", "ann", "--json")
    assert (await sender.end())[0] == 0
    assert (await receiver.end())[0] == 0
    assert receiver.events[-2]["peer_id"] == "ann"
    other.process.send_signal(signal.SIGINT)
    status, error = await other.end()
    assert status == 1
    assert "stopped before the file was sent" in error
    assert other.events[-1] == {"event": "closed", "reason": "stopped"}


async def test_who_is_not_there_or_not_one(desk: Desk, relay: Relay) -> None:
    desk.write(10)
    sender = await desk.send("bob", "--wait", "0", "--json")
    status, error = await sender.end()
    assert status == 1
    assert error.splitlines()[-1] == "meshpeer: 'bob' was not in the room within 0 s"
    assert sender.events[-1] == {"event": "closed", "reason": "no_peer"}
    async with (
        PeerManager(relay.url, room="lobby", peer_id="b1", name="Bob"),
        PeerManager(relay.url, room="lobby", peer_id="b2", name="Bob"),
    ):
        sender = await desk.send("Bob", "--json")
        status, error = await sender.end()
    assert status == 1
    assert error == "meshpeer: 2 peers are called 'Bob': name one by its id (b1, b2)\n"
    assert sender.events[-1] == {"event": "closed", "reason": "ambiguous_name"}


async def test_a_disk_that_takes_nothing_ends_both(desk: Desk) -> None:
    desk.write(10)
    receiver = await desk.receive("--id", "bob", "--json", directory=desk.file / "below")
    sender = await desk.send("bob", "--json")
    status, error = await receiver.end()
    assert status == 1
    assert error == f"meshpeer: files can't be stored in {desk.file}/below: Not a directory\n"
    assert receiver.events[-1] == {"event": "closed", "reason": "unwritable_directory"}
    status, error = await sender.end()
    assert status == 1
    assert error.splitlines()[-1] == "meshpeer: the receiver can't store it: Not a directory"
    assert sender.events[-1] == {"event": "closed", "reason": "transfer_failed"}


@pytest.mark.parametrize("arguments", [("send",), ("send", "missing", "bob", "--room", "lobby")])
async def test_what_can_not_be_meant(start: Start, arguments: tuple[str, ...]) -> None:
    command = await start(*arguments, stdin=DEVNULL)
    status, _ = await command.end()
    assert status == 2


async def test_a_receiver_stopped_before_a_file_came(desk: Desk) -> None:
    receiver = await desk.receive("--once", "--json")
    await receiver.until(event="joined")
    receiver.process.send_signal(signal.SIGINT)
    assert await receiver.end() == (1, "meshpeer: stopped before a file came\n")
    assert receiver.events[-1] == {"event": "closed", "reason": "stopped"}
