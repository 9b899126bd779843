"""`meshpeer relay`, `--help` and `--version`, as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest

from meshpeer import Joined, MeshState, PeerManager, Relay, SignalingChanged, __version__
from tests.cli.processes import Start


async def healthz(url: str) -> bytes:
    host, port = url.removeprefix("http://").removesuffix("/healthz").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_it_prints_the_addresses_it_serves(start: Start) -> None:
    relay, url = await start.relay()
    health = (await relay.line()).split()
    assert health[0] == "health"
    answer = await healthz(health[1])
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["status"] == "ok"
    async with PeerManager(url, room="lobby"):
        pass
    relay.process.send_signal(signal.SIGINT)
    status, error = await relay.end()
    assert status == 0
    assert "warning" not in error


async def test_sigterm_says_goodbye_and_the_members_come_back(start: Start) -> None:
    relay, url = await start.relay()
    async with PeerManager(url, room="lobby") as mesh:
        events = mesh.events()
        relay.process.send_signal(signal.SIGTERM)
        assert (await relay.end())[0] == 0
        async for event in events:
            if isinstance(event, SignalingChanged) and event.state is MeshState.RECONNECTING:
                assert event.retry_in is not None
                break
        await start.relay("--port", url.rsplit(":", 1)[1])
        async for event in events:
            if isinstance(event, Joined):
                break
    assert mesh.state is MeshState.CLOSED


async def test_a_port_in_use_is_one_sentence(start: Start, relay: Relay) -> None:
    second = await start("relay", "--port", str(relay.port))
    status, error = await second.end()
    assert (status, second.lines) == (1, [])
    assert error.startswith(f"meshpeer: can't listen on 127.0.0.1 port {relay.port}")
    assert error.count("\n") == 1


async def test_an_address_that_others_reach_is_warned_of(start: Start) -> None:
    relay, url = await start.relay("--host", "0.0.0.0", "--port", "0", "--log-json")
    relay.process.send_signal(signal.SIGTERM)
    status, error = await relay.end()
    assert status == 0
    (warning,) = [line for line in error.splitlines() if "warning" in line]
    assert f"port {url.rsplit(':', 1)[1]} " in warning
    logged = [json.loads(line) for line in error.splitlines() if line != warning]
    assert [(line["event"], line["level"]) for line in logged] == [
        ("relay listens", "info"),
        ("relay closes", "info"),
    ]


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "65536"), ("--max-rooms", "0"), ("--seat-timeout", "-1")]
)
async def test_a_limit_out_of_its_range_is_wrong_usage(
    start: Start, option: str, value: str
) -> None:
    relay = await start("relay", option, value)
    status, error = await relay.end()
    assert (status, relay.lines) == (2, [])
    assert option in error


async def test_help_and_version(start: Start) -> None:
    command = await start("--version")
    assert await command.end() == (0, "")
    assert command.lines == [f"meshpeer {__version__}"]
    command = await start("--help")
    assert await command.end() == (0, "")
    text = "\n".join(command.lines)
    assert all(word in text for word in ("relay", "chat", "demo"))
    assert "bot" not in text.replace("bots", "")


async def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from meshpeer.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert b"pip install 'meshpeer[cli]'" in error
    assert error.count(b"\n") == 1
