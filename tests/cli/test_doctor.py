"""`meshpeer doctor` as a process, with a real coturn and a real relay."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from meshpeer import IceServer, Relay, RelayConfig
from meshpeer.cli import checkup
from meshpeer.cli.app import app
from meshpeer.cli.checkup import check
from meshpeer.config import MeshConfig
from meshpeer.core.messages import IceServerInfo, IceServers, Join, Welcome
from meshpeer.errors import ConfigError
from tests.cli.processes import Start
from tests.coturn import Coturn, run_coturn

FINISHED = 0
BROKEN = 1
WRONG = 2

SECRET = "shared" * 6


@pytest.fixture(scope="module")
def coturn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    with run_coturn(tmp_path_factory.mktemp("coturn")) as running:
        yield running


async def examined(start: Start, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the object that was written."""
    command = await start("doctor", "--json", *arguments)
    status, error = await command.end()
    assert error == ""
    (line,) = command.lines
    return status, json.loads(line)


def login(coturn: Coturn) -> list[str]:
    return ["--username", coturn.username, "--credential", coturn.credential]


async def test_everything_works(start: Start, coturn: Coturn, relay: Relay) -> None:
    host = f"127.0.0.1:{coturn.port}"
    status, found = await examined(
        *(start, "--relay", relay.url, "--stun", f"stun:{host}"),
        *("--turn", f"turn:{host}", "--turn", f"turn:{host}?transport=tcp"),
        *("--turn", f"turns:localhost:{coturn.tls_port}", "--ca-file", str(coturn.ca_file)),
        *login(coturn),
    )
    assert [each["outcome"] for each in found["servers"]] == ["found"] * 4
    assert len([each for each in found["candidates"] if each["type"] == "relay"]) == 3
    assert found["loopback"]["failure"] is None
    assert found["loopback"]["round_trip"] > 0
    assert found["relay"]["url"] == relay.url
    assert found["relay"]["failure"] is None
    assert found["relay"]["round_trip"] > 0
    works = {each["case"]: each["works"] for each in found["verdicts"]}
    assert works["on this machine"] == works["over TURN"] == works["relay"] == "yes"
    if works["same network"] == "yes":  # not on a machine without a network
        assert (status, found["ok"]) == (FINISHED, True)


async def test_the_servers_that_a_relay_names_are_asked_too(start: Start, tmp_path: Path) -> None:
    with run_coturn(tmp_path, f"static-auth-secret={SECRET}", ephemeral=True) as coturn:
        urls = [f"turn:127.0.0.1:{coturn.port}?transport={each}" for each in ("udp", "tcp")]
        stun = f"stun:127.0.0.1:{coturn.port}"
        config = RelayConfig(
            port=0,
            ice_servers=(IceServer(urls=stun),),
            turn_urls=tuple(urls),
            turn_secret=SECRET,
        )
        async with Relay(config) as relay:
            _, found = await examined(start, "--relay", relay.url)
        async with Relay(replace(config, turn_secret="another" * 5)) as relay:
            status, broken = await examined(start, "--relay", relay.url)
    assert found["relay"]["servers"] == [stun, *urls]
    assert {each["url"]: each["outcome"] for each in found["servers"]} == dict.fromkeys(
        [stun, *urls], "found"
    )
    works = {each["case"]: each["works"] for each in found["verdicts"]}
    assert works["over TURN"] == works["relay"] == works["over the relay"] == "yes"
    assert not any("TURN server" in change for change in found["changes"])
    assert status == BROKEN
    assert [each["outcome"] for each in broken["servers"]] == ["found", *["wrong credentials"] * 2]
    assert "the credentials that the relay gives" in " ".join(broken["changes"])


async def test_a_server_that_a_relay_should_not_name(relay: Relay) -> None:
    class Wrong(checkup._Seat):
        async def open(self, join: Join) -> Welcome:
            named = IceServers(servers=[IceServerInfo(urls=["stun:[::1", "turn:no.login"])])
            self.welcome = msgspec.structs.replace(await super().open(join), ice_servers=named)
            return self.welcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkup, "_Seat", Wrong)
        facts = await check(MeshConfig(), relay.url, 60)
    assert facts.relay is not None
    assert facts.relay.failure is None
    assert facts.relay.servers == ("stun:[::1", "turn:no.login")
    assert [(each.url, each.outcome) for each in facts.network.servers] == [
        ("stun:[::1", "failed"),
        ("turn:no.login", "failed"),
    ]


async def test_what_is_broken_is_said(start: Start, coturn: Coturn) -> None:
    status, found = await examined(
        *(start, "--relay", "ws://user:secret@127.0.0.1:1/?token=hidden"),
        *(
            "--turn",
            f"turn:127.0.0.1:{coturn.port}",
            "--turn",
            f"turns:127.0.0.1:{coturn.tls_port}",
        ),
        *("--username", "user", "--credential", "not the password"),
    )
    assert (status, found["ok"]) == (BROKEN, False)
    assert [each["outcome"] for each in found["servers"]] == [
        "wrong credentials",
        "untrusted certificate",
    ]
    assert "connection refused" in found["relay"]["failure"]
    assert len(found["changes"]) >= 2
    for secret in ("not the password", "secret", "hidden"):
        assert secret not in json.dumps(found)


async def test_a_server_that_is_silent_takes_as_long_as_it_may(start: Start) -> None:
    class Silent(asyncio.DatagramProtocol):
        pass

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    status, found = await examined(start, "--stun", f"stun:127.0.0.1:{port}", "--timeout", "1")
    transport.abort()
    assert status == BROKEN
    assert found["servers"][0]["outcome"] == "timed out"
    assert found["loopback"]["failure"] is None


async def test_the_credential_may_come_from_the_environment(
    start: Start, coturn: Coturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHPEER_TURN_CREDENTIAL", coturn.credential)
    _, found = await examined(
        start, "--turn", f"turn:127.0.0.1:{coturn.port}", "--username", coturn.username
    )
    assert found["servers"][0]["outcome"] == "found"


@pytest.mark.parametrize("columns", ["40", "200"])
async def test_people_read_it_at_every_width(
    start: Start, coturn: Coturn, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    url = f"stun:127.0.0.1:{coturn.port}"
    command = await start("doctor", "--stun", url)
    _, error = await command.end()
    assert error == ""
    assert max(map(len, command.lines)) <= int(columns)
    titles = [line for line in command.lines if line and not line.startswith(" ")]
    for title in ("Interfaces", "Candidates", "Servers", "NAT", "Tried", "What will work"):
        assert title in titles
    assert titles[-1].endswith(".")
    words = " ".join(" ".join(command.lines).split())
    assert f"found {url}" in words
    assert "on this machine yes Two peers in this process connect" in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stun", "stun.example.org"], "stun:"),
        (["--stun", "stun:"], "stun:"),
        (["--stun", "turn:turn.example.org"], "stun:"),
        (["--turn", "stun:stun.example.org", "--username", "u", "--credential", "c"], "turns:"),
        (["--turn", "turn:turn.example.org"], "--credential"),
        (["--turn", "turn:a?transport=x", "--username", "u", "--credential", "c"], "transport"),
        (["--relay", "http://relay.example.org"], "ws://"),
        (["--ca-file", "/does/not/exist"], "exist"),
        (["--timeout", "0"], "greater"),
        (["--unknown"], "No such option"),
    ],
)
def test_a_command_that_is_wrong_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(sys.modules, "uvloop", None)  # its first loop keeps a pipe for the process
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == WRONG
    assert said in result.stderr
    assert result.stdout == ""


def test_the_other_commands_do_without_webrtc() -> None:
    code = "import json, sys, meshpeer.cli.app; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"aiortc", "aioice", "av"}.isdisjoint(json.loads(done.stdout))


# --- the parts that need a fault ------------------------------------------------------------------


async def test_a_relay_that_says_nothing() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        facts = await check(MeshConfig(), url, 0.3)
    assert facts.relay is not None
    assert facts.relay.failure == "it did not answer within 0.3 s"


async def test_a_relay_that_refuses(relay: Relay) -> None:
    # Longer than a test may take: it must not try again until then.
    facts = await check(MeshConfig(), relay.url + "/nowhere", 1000)
    assert facts.relay is not None
    assert facts.relay.failure is not None
    assert "is not a relay" in facts.relay.failure


async def test_peers_that_do_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshpeer.rtc.ice.local_addresses", lambda config: ())
    facts = await check(MeshConfig(), None, 0.5)
    assert facts.loopback.failure == "they were not connected within 0.5 s"


async def test_webrtc_that_can_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "meshpeer.rtc.connection", None)
    facts = await check(MeshConfig(), None, 1)
    assert facts.loopback.failure is not None
    assert "meshpeer.rtc.connection" in facts.loopback.failure


async def test_a_url_that_can_not_be_one_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_load", lambda: pytest.fail("it began"))
    with pytest.raises(ConfigError):
        await check(MeshConfig(), "not a url", 1)


async def test_cancelling_leaves_nothing(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshpeer.rtc.ice.local_addresses", lambda config: ())
    checking = asyncio.create_task(check(MeshConfig(), relay.url, 60))
    await asyncio.sleep(0)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
