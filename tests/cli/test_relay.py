"""`meshpeer relay`, `--help` and `--version`, as processes."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import pty
import signal
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from meshpeer import (
    IceServer,
    Joined,
    MeshState,
    PeerManager,
    Relay,
    RelayConfig,
    SignalingChanged,
    Unauthorized,
    __version__,
)
from meshpeer.cli.app import app
from meshpeer.errors import ConfigError
from tests.cli.processes import Command, Start
from tests.coturn import make_certificate

relay_options = {
    option: parameter
    for parameter in typer.main.get_command(app).commands["relay"].params  # type: ignore[attr-defined]
    for option in parameter.opts
}


async def get(url: str, *, login: tuple[str, str] | None = None) -> tuple[int, bytes]:
    """The status and the body of what a plain HTTP server answers."""
    host, _, path = url.removeprefix("http://").partition("/")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    token = base64.b64encode(":".join(login).encode()).decode() if login else ""
    authorization = f"Authorization: Basic {token}\r\n" if login else ""
    writer.write(
        f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def addresses(relay: Command) -> dict[str, str]:
    """What a relay that has started says of itself, up to the last line."""
    while relay.lines[-1] != "Ctrl-C stops it.":
        await relay.line()
    return {name: text.strip() for name, _, text in (x.partition(" ") for x in relay.lines[:-1])}


async def test_it_prints_the_addresses_it_serves(start: Start) -> None:
    relay, url = await start.relay()
    printed = await addresses(relay)
    assert list(printed) == ["relay", "chat", "health", "dashboard", "admin"]
    status, body = await get(printed["health"])
    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert printed["chat"] == f"{url.replace('ws', 'http')}/"
    assert (await get(printed["chat"]))[0] == 200
    assert printed["dashboard"] == f"{url.replace('ws', 'http')}/admin-analytics"
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


# --- the operator -------------------------------------------------------------------------------


async def test_a_password_that_was_made_is_printed_once_and_never_logged(start: Start) -> None:
    relay, url = await start.relay("--port", "0", "--log-level", "debug")
    user, _, password = (await addresses(relay))["admin"].partition(", password ")
    api = f"{url.replace('ws', 'http')}/api/admin/rooms"
    assert (await get(api))[0] == 401
    assert (await get(api, login=(user, "password")))[0] == 401
    assert (await get(api, login=(user, password)))[0] == 200
    relay.process.send_signal(signal.SIGTERM)
    status, error = await relay.end()
    assert status == 0
    assert "\n".join(relay.lines).count(password) == 1
    assert password not in error


async def test_a_password_that_is_configured_is_not_printed(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of the file\n")
    file.chmod(0o600)
    both = {"MESHPEER_ADMIN_USER": "ann", "MESHPEER_ADMIN_PASSWORD": "of the environment"}
    for options, password in (
        ((), "of the environment"),
        (("--admin-password-file", str(file)), "of the file"),
    ):
        relay, url = await start.relay("--port", "0", *options, environment=both)
        assert (await addresses(relay))["admin"].startswith("ann, ")
        api = f"{url.replace('ws', 'http')}/api/admin/rooms"
        assert (await get(api, login=("ann", password)))[0] == 200
        assert (await get(api, login=("admin", password)))[0] == 401
        relay.process.send_signal(signal.SIGTERM)
        status, error = await relay.end()
        assert status == 0
        assert password not in "\n".join(relay.lines) + error


# --- who may join --------------------------------------------------------------------------------


async def test_an_address_that_others_reach_wants_a_decision(start: Start) -> None:
    relay = await start("relay", "--host", "0.0.0.0", "--port", "0")
    status, error = await relay.end()
    assert (status, relay.lines) == (2, [])
    assert error.count("\n") == 1
    assert "--open" in error
    assert "--join-secret-file" in error


async def test_an_open_relay_takes_everybody(start: Start) -> None:
    relay, url = await start.relay("--host", "0.0.0.0", "--port", "0", "--open", "--log-json")
    async with PeerManager(url, room="lobby"):
        pass
    relay.process.send_signal(signal.SIGTERM)
    status, error = await relay.end()
    assert status == 0
    logged = [json.loads(line) for line in error.splitlines()]
    assert logged[0]["event"] == "relay listens"
    assert logged[-1]["event"] == "relay closes"


async def test_joins_need_a_token_where_there_is_a_secret(start: Start, tmp_path: Path) -> None:
    secret, key = tmp_path / "secret", tmp_path / "join-key.pem"
    made = await start("token", "--new-secret")
    assert await made.end() == (0, "")
    secret.write_text(f"{made.lines[0]}\n")
    secret.chmod(0o600)
    assert await (await start("token", "--new-key", str(tmp_path))).end() == (0, "")
    for relays, makers in (
        (("--join-secret-file", str(secret)), ("--secret-file", str(secret))),
        (
            ("--join-public-key-file", str(tmp_path / "join-key.pub.pem")),
            ("--private-key-file", str(key)),
        ),
    ):
        _, url = await start.relay("--host", "0.0.0.0", "--port", "0", *relays)
        token = await start("token", "--subject", "ann", "--room", "lobby", *makers)
        assert await token.end() == (0, "")
        (text,) = token.lines
        async with PeerManager(url, room="lobby", join_token=text):
            pass
        with pytest.raises(Unauthorized):
            await PeerManager(url, room="lobby").start()


# --- TLS and SIGHUP ------------------------------------------------------------------------------


async def certificate_of(url: str) -> bytes | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, port = url.removeprefix("wss://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


async def logged(relay: Command, text: str) -> dict[str, Any]:
    """The next object in its log that has this event."""
    assert relay.process.stderr is not None
    async for line in relay.process.stderr:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == text:
            return found
    raise AssertionError(f"it ended without {text!r}")


async def test_sighup_loads_the_certificate_anew(start: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
    relay, url = await start.relay(
        *("--port", "0", "--log-json"), *("--tls-cert", str(certificate), "--tls-key", str(key))
    )
    assert url.startswith("wss://")
    assert (await addresses(relay))["dashboard"].startswith("https://")
    first = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert await certificate_of(url) == first

    make_certificate(tmp_path, "IP:127.0.0.1")
    second = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert second != first
    relay.process.send_signal(signal.SIGHUP)
    await logged(relay, "the certificate was loaded anew")
    assert await certificate_of(url) == second

    certificate.write_text("nonsense")
    relay.process.send_signal(signal.SIGHUP)
    said = await logged(relay, "the certificate of before stays in use")
    assert said["level"] == "warning"
    assert str(certificate) in said["error"]
    assert await certificate_of(url) == second

    relay.process.send_signal(signal.SIGTERM)
    assert (await relay.end())[0] == 0


async def test_sighup_without_tls_changes_nothing(start: Start) -> None:
    relay, url = await start.relay("--port", "0", "--log-json")
    async with PeerManager(url, room="lobby"):
        relay.process.send_signal(signal.SIGHUP)
        await logged(relay, "nothing to load anew: the relay speaks no TLS")
    relay.process.send_signal(signal.SIGTERM)
    assert (await relay.end())[0] == 0


async def test_it_ends_with_its_terminal(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    loop = asyncio.get_running_loop()
    shown, ready = bytearray(), asyncio.Event()

    def read() -> None:
        shown.extend(os.read(terminal, 65536))
        if b"Ctrl-C stops it." in shown:
            ready.set()

    loop.add_reader(terminal, read)
    # The relay is what the terminal hangs up on: setsid makes it the leader of a session there.
    process = await asyncio.create_subprocess_exec(
        *("setsid", "--ctty", sys.executable, "-m", "meshpeer.cli", "relay", "--port", "0"),
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    try:
        await ready.wait()
        url = shown.partition(b"relay      ")[2].split()[0].decode()
        async with PeerManager(url, room="lobby") as mesh:
            events = mesh.events()
            loop.remove_reader(terminal)
            os.close(terminal)
            async for event in events:
                if isinstance(event, SignalingChanged) and event.state is MeshState.RECONNECTING:
                    break
            assert await process.wait() == 0
    finally:
        loop.remove_reader(terminal)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_the_package_runs_as_a_module_too() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshpeer", "relay", "--port", "65536"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode() == "meshpeer: --port must be between 0 and 65535, not 65536\n"


# --- options --------------------------------------------------------------------------------------


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``meshpeer relay`` in this process, as far as it comes without a socket."""
    # Nothing that outlives it: no logging for all, no event loop of another make.
    monkeypatch.setattr("meshpeer.cli.relay.configure_logging", lambda *_: None)
    monkeypatch.setattr("meshpeer.cli.relay.run", lambda main: asyncio.run(main()))

    def relay(*options: str, environment: Mapping[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, ["relay", *options], env=environment)

    return relay


@pytest.fixture
def config_of(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RelayConfig]:
    """The `RelayConfig` that a command line comes to; no relay is started."""
    made: list[RelayConfig] = []

    def relay(config: RelayConfig) -> Relay:
        made.append(config)
        raise ConfigError("nothing more is wanted")

    def config(*options: str, environment: Mapping[str, str] | None = None) -> RelayConfig:
        made.clear()
        result = invoke(*options, environment=environment)
        assert made, result.output
        return made[0]

    monkeypatch.setattr("meshpeer.cli.relay.Relay", relay)
    return config


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_every_setting_is_an_option_that_reaches_it(
    config_of: Callable[..., RelayConfig], tmp_path: Path
) -> None:
    secret = "x" * 40
    given: dict[str, tuple[str, Any]] = {
        "host": ("--host=192.0.2.1", "192.0.2.1"),
        "tls_cert": ("--tls-cert=chain.pem", "chain.pem"),
        "tls_key": ("--tls-key=key.pem", "key.pem"),
        "trusted_proxies": (
            "--trusted-proxy=10.0.0.0/8 --trusted-proxy=::1",
            ("10.0.0.0/8", "::1"),
        ),
        "join_secret": (f"--join-secret-file={write(tmp_path / 'join', secret)}", secret),
        "origins": ("--origin=https://a.example --origin=*", ("https://a.example", "*")),
        "admin_user": ("--admin-user=ann", "ann"),
        "admin_password": (
            f"--admin-password-file={write(tmp_path / 'admin', ' open sesame ')}",
            " open sesame ",
        ),
        "ice_servers": (
            "--stun=stun:a.example --stun=stun:b.example",
            (IceServer(urls="stun:a.example"), IceServer(urls="stun:b.example")),
        ),
        "turn_urls": (
            "--turn=turn:a.example --turn=turns:a.example",
            ("turn:a.example", "turns:a.example"),
        ),
        "turn_secret": (f"--turn-secret-file={write(tmp_path / 'turn', secret)}", secret),
    }
    apart = {
        "open": ("--open", True),
        "join_public_key": (f"--join-public-key-file={write(tmp_path / 'key', 'a key')}", "a key"),
    }
    for number, field in enumerate(dataclasses.fields(RelayConfig), 1):
        if field.name not in given and field.name not in apart:
            value = field.default + number  # type: ignore[operator]
            given[field.name] = (f"--{field.name.replace('_', '-')}={value}", value)
    config = config_of(*" ".join(option for option, _ in given.values()).split(" "))
    for name, (_, value) in given.items():
        assert getattr(config, name) == value, name
    # These exclude each other.
    for name, (option, value) in apart.items():
        assert getattr(config_of(option), name) == value
    tried = " ".join(option for option, _ in [*given.values(), *apart.values()])
    assert {x.partition("=")[0] for x in tried.split()} == {
        option
        for option in relay_options
        if option not in ("--log-level", "--log-json", "-h", "--help")
    }


def test_the_defaults_are_those_of_the_config(config_of: Callable[..., RelayConfig]) -> None:
    assert config_of() == RelayConfig()


def test_no_secret_is_an_option(config_of: Callable[..., RelayConfig]) -> None:
    secret = "a secret of thirty-two characters"
    config = config_of(
        "--turn=turn:turn.example",
        environment={
            "MESHPEER_JOIN_SECRET": secret,
            "MESHPEER_TURN_SECRET": "shared",
            "MESHPEER_ADMIN_PASSWORD": "open sesame",
        },
    )
    assert (config.join_secret, config.turn_secret, config.admin_password) == (
        secret,
        "shared",
        "open sesame",
    )
    # An empty one, as a shell or a compose file make it, is none.
    empty = dict.fromkeys(("JOIN_SECRET", "TURN_SECRET", "ADMIN_PASSWORD", "ADMIN_USER"), "")
    assert config_of(environment={f"MESHPEER_{k}": v for k, v in empty.items()}) == RelayConfig()
    for option in relay_options:
        if any(word in option for word in ("secret", "password", "key")):
            assert option.endswith("-file") or option == "--tls-key"


@pytest.mark.parametrize(
    ("content", "secret"),
    [("s" * 32, "s" * 32), ("s" * 32 + "\n", "s" * 32), (" s\t" * 16 + "\r\n", " s\t" * 16)],
)
def test_the_end_of_the_line_is_no_part_of_a_secret(
    config_of: Callable[..., RelayConfig], tmp_path: Path, content: str, secret: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.encode())
    assert config_of("--join-secret-file", str(file)).join_secret == secret


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize("option", ["--join-secret-file", "--admin-password-file", "--tls-key"])
def test_a_secret_that_everybody_can_read_is_warned_of(
    invoke: Callable[..., Result], tmp_path: Path, mode: int, option: str
) -> None:
    path = tmp_path / "secret"
    path.write_text("s" * 32)
    path.chmod(mode)
    result = invoke(option, str(path), "--port", "-1")
    assert ("warning" in result.stderr) == (mode == 0o644)
    assert (f"{option}: every user of this machine can read {path}" in result.stderr) == (
        mode == 0o644
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--port 65536", "--port must be between 0 and 65535, not 65536"),
        ("--max-rooms 0", "--max-rooms must be between 1"),
        ("--seat-timeout -1", "--seat-timeout must be between 0"),
        ("--tls-cert a", "--tls-cert and --tls-key must be given together"),
        ("--trusted-proxy x", "--trusted-proxy must be addresses or networks"),
        ("--origin example.org", "--origin must be like https://app.example.org"),
        ("--stun turn.example", "--stun must begin with stun:"),
        ("--turn turn:x.example", "--turn and --turn-secret-file (or MESHPEER_TURN_SECRET) must"),
        ("--admin-user a:b", "--admin-user must be a name without ':'"),
        ("--join-secret-file {short}", "--join-secret-file (or MESHPEER_JOIN_SECRET) must be"),
        ("--admin-password-file {short}", "--admin-password-file (or MESHPEER_ADMIN_PASSWORD)"),
        ("--join-secret-file {none}", "--join-secret-file: can't read {none}: No such file"),
        ("--join-secret-file {folder}", "--join-secret-file: can't read {folder}: Is a directory"),
        ("--join-secret-file {empty}", "{empty} must have the secret in its only line"),
        ("--join-secret-file {two}", "{two} must have the secret in its only line"),
        ("--join-secret-file {binary}", "{binary} is no text in UTF-8"),
        ("--join-secret-file {long}", "{long} has more than 65536 bytes"),
        ("--join-public-key-file {two}", "--join-public-key-file must be a public key"),
        ("--host 0.0.0.0", "on 0.0.0.0, which others can reach, anybody could join: give --join-s"),
        ("--host 0.0.0.0", "or --join-public-key-file, so that joins need a token, or set --open"),
        ("--trusted-proxy 127.0.0.1", "behind a proxy (--trusted-proxy), which others can reach"),
        ("--open --join-secret-file {good}", "--open must not be set where joins need a token"),
    ],
)
def test_wrong_usage_is_one_sentence_with_status_2(
    invoke: Callable[..., Result], tmp_path: Path, options: str, said: str
) -> None:
    contents = {
        "short": b"secret",
        "empty": b"\n",
        "two": b"first\nsecond\n",
        "binary": b"\xff" * 40,
        "long": b"x" * 65537,
        "good": b"good" * 10,
    }
    names = {name: tmp_path / name for name in ("none", *contents)} | {"folder": tmp_path}
    for name, content in contents.items():
        names[name].write_bytes(content)
        names[name].chmod(0o600)
    result = invoke("--port", "0", *options.format(**names).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("meshpeer: ")
    assert said.format(**names) in result.stderr
    assert "first" not in result.stderr


# --- the command itself --------------------------------------------------------------------------


async def test_help_and_version(start: Start) -> None:
    command = await start("--version")
    assert await command.end() == (0, "")
    assert command.lines == [f"meshpeer {__version__}"]
    command = await start("--help")
    assert await command.end() == (0, "")
    text = "\n".join(command.lines)
    assert all(word in text for word in ("relay", "token", "chat", "demo"))
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
