"""`meshpeer demo`: what it says, and that it leaves no process behind."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import signal
from asyncio.subprocess import DEVNULL
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from meshpeer import PeerManager
from meshpeer.cli import room_bot
from meshpeer.cli.bot import Row
from meshpeer.cli.demo import _Results
from tests.cli.processes import Command, Start


def bots(demo: Command) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(demo.process.pid).children()
        if "demo-bot" in process.cmdline()
    ]


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until all have ended."""
    await asyncio.to_thread(psutil.wait_procs, processes, 60)
    assert [process for process in processes if process.is_running()] == []


async def talking(demo: Command) -> None:
    """Wait until two bots are connected."""
    while "connected direct" not in await demo.line():
        pass


async def test_json_is_the_table_and_nothing_else(start: Start) -> None:
    demo = await start("demo", "--seconds", "1", "--json", stdin=DEVNULL)
    assert await demo.end() == (0, "")
    (line,) = demo.lines
    result = json.loads(line)
    assert result["ok"] is True
    rows = {(row["who"], row["peer"]): row for row in result["connections"]}
    assert len(rows) == 6
    for (who, peer), row in rows.items():
        assert (row["state"], row["path"]) == ("connected", "direct")
        assert row["round_trip"] > 0
        assert row["time_to_connect"] > 0
        assert row["messages_sent"] == rows[peer, who]["messages_received"] > 1
    sent = sum(row["messages_sent"] for row in rows.values())
    assert result["verdict"] == (
        f"All 3 pairs were connected directly, and all {sent} messages arrived, in order."
    )


async def test_without_a_terminal_it_writes_lines_and_a_table(start: Start) -> None:
    demo = await start("demo", "--seconds", "1", "--bots", "2", stdin=DEVNULL)
    assert await demo.end() == (0, "")
    text = "\n".join(demo.lines)
    assert text.count(": connected direct ") == 2
    assert "round trip" in text
    assert "\x1b" not in text
    assert demo.lines[-1].startswith(" The one pair was connected directly, and all ")


async def test_a_bot_that_dies_is_named(start: Start) -> None:
    demo = await start("demo", "--seconds", "60", stdin=DEVNULL)
    await talking(demo)
    processes = bots(demo)
    victim = processes[0]
    victim.kill()
    status, error = await demo.end()
    assert (status, error) == (1, "")
    assert f"(process {victim.pid}) was ended by SIGKILL" in demo.lines[-1]
    await gone(processes)


@pytest.mark.parametrize("words", ["bots start", "They talk", "connected direct"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_its_bots(
    start: Start, number: signal.Signals, words: str
) -> None:
    demo = await start("demo", "--seconds", "60", stdin=DEVNULL)
    url = (await demo.line()).split()[-1]
    while words not in demo.lines[-1]:
        await demo.line()
    demo.process.send_signal(number)
    status, error = await demo.end()
    assert (status, error) == (1, "")
    assert demo.lines[-1] == " This did not go well: it was stopped before the end."
    left = [p for p in psutil.process_iter(["cmdline"]) if url in (p.info["cmdline"] or ())]
    assert left == []


async def test_when_it_is_killed_its_bots_end_by_themselves(start: Start) -> None:
    demo = await start("demo", "--seconds", "60", stdin=DEVNULL)
    await talking(demo)
    children = bots(demo)
    assert len(children) == 3
    await demo.kill()
    await gone(children)


async def test_it_stays_for_people(start: Start) -> None:
    demo = await start("demo", "--seconds", "1", "--bots", "2", "--stay", stdin=DEVNULL)
    url = (await demo.line()).split()[-1]
    while demo.lines[-1] != " Ctrl-C stops it.":
        await demo.line()
    said = dict(line.split(maxsplit=1) for line in demo.lines[-5:-2])
    page = url.replace("ws:", "http:")
    assert said["chat"] == f"{page}/chat/demo"
    assert said["dashboard"] == f"{page}/admin-analytics"
    assert re.fullmatch(r"admin, password \S{20,}", said["admin"])
    async with PeerManager(url, room="demo", name="Ann") as mesh:
        messages = mesh.messages()
        await mesh.wait_for_peers(2)
        greeting = await anext(messages)
        assert greeting.data == {"text": "Hello Ann! I know !ping, !who, !stats and !file."}
        await mesh.broadcast({"text": "!ping"}, "chat")
        answers = [await anext(messages) for _ in range(2)]
        assert {answer.sender.id for answer in answers} == {"bot-1", "bot-2"}
        # One that dies is named, and the other stays.
        victim = bots(demo)[0]
        victim.kill()
        assert f"(process {victim.pid}) was ended by SIGKILL" in await demo.line()
        (left,) = [peer for peer in mesh.peers.values() if peer.id not in demo.lines[-1]]
        await left.send({"text": "!ping"}, "chat")
        assert (await anext(messages)).data["text"].startswith("Pong.")
    demo.process.send_signal(signal.SIGINT)
    assert await demo.end() == (0, "")


async def test_when_all_have_ended_it_ends(start: Start) -> None:
    demo = await start("demo", "--seconds", "1", "--bots", "2", "--stay", "--json", stdin=DEVNULL)
    result = json.loads(await demo.line())
    assert result["ok"] is True
    assert result["chat"].endswith("/chat/demo")
    for process in bots(demo):
        process.kill()
    assert await demo.end() == (1, "meshpeer: all bots have ended\n")
    assert len(demo.lines) == 1


def test_its_bots_are_those_of_the_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "room_bot.py"
    _, _, text = example.read_text().partition("\nHELP = ")
    _, _, ours = inspect.getsource(room_bot).partition("\nHELP = ")
    assert ours
    assert text.partition("\n\n\nasync def stay(")[0] + "\n" == ours


def results() -> _Results:
    """Two bots that got on well."""
    known = _Results(["one", "two"])
    known.trouble = None
    for (who, peer), _ in list(known.rows.items()):
        known.rows[who, peer] = Row(
            peer=peer, state="connected", path="direct", messages_sent=5, messages_received=5
        )
    return known


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "disconnected"}, "one was not connected to two (disconnected)"),
        ({"path": "turn"}, "one was not connected to two directly (turn)"),
        ({"messages_sent": 6}, "1 messages from one to two did not arrive"),
        ({"messages_received": 3}, "2 messages from two to one did not arrive"),
        ({"in_order": False}, "one got messages from two out of order"),
    ],
)
def test_a_fault_is_said_in_words(change: dict[str, object], words: str) -> None:
    known = results()
    assert known.faults() == []
    assert known.as_json()["ok"] is True
    for name, value in change.items():
        setattr(known.rows["one", "two"], name, value)
    assert known.faults() == [words]
    assert known.verdict() == f"This did not go well: {words}."
    assert known.as_json()["ok"] is False


def test_silence_is_a_fault() -> None:
    known = results()
    for row in known.rows.values():
        row.messages_sent = row.messages_received = 0
    assert known.faults() == ["one sent nothing to two", "two sent nothing to one"]
