"""docs/operations.md and the files in docs/operations/: what an operator copies is run here.

Addresses, ports and paths are replaced by ones of this machine, and nothing else is. What a machine
lacks skips a test, saying so; under MESHPEER_NO_SKIPS it fails it.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aioice.stun
import aioice.turn
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from meshpeer import Relay, RelayConfig, make_join_token
from meshpeer.cli import relay as relay_command
from meshpeer.cli import token as token_command
from meshpeer.cli.app import app
from meshpeer.core.messages import VERSION, Join, Welcome, decode_relay, encode
from tests.cli.processes import Command, Start, starter
from tests.coturn import make_certificate, run_coturn
from tests.docs.blocks import blocks
from tests.docs.generate import DOCS
from tests.needs import require

HERE = DOCS / "operations"
PAGE = "operations.md"
SECRET = "secret-of-these-tests-0123456789abcdef"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MESHPEER = re.compile(r"(?:^|[;&|(] *)(?:\S*/)?meshpeer ([^;&|()]*)")
"""Its arguments, up to what the shell does next."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start commands; what is left of them at the end is killed."""
    async with starter() as commands:
        yield commands


# --- what an operator types ---------------------------------------------------------------------


def typed() -> list[list[str]]:
    """The arguments of every ``meshpeer`` command in the console blocks of the documentation."""
    found = []
    pages = [f"{path.relative_to(DOCS)}" for path in sorted(DOCS.rglob("*.md"))] + ["../README.md"]
    for block in (block for page in pages for block in blocks(page) if block.kind == "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if not line.startswith(("$ ", "# ")):
                continue
            commands = MESHPEER.findall(line[2:].partition(" #")[0])
            found += [shlex.split(command.partition(" >")[0]) for command in commands]
    return found


def unit() -> dict[str, list[str]]:
    """The settings of the systemd unit."""
    found: dict[str, list[str]] = {}
    text = (HERE / "meshpeer-relay.service").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
    return found


def containerfile(instruction: str) -> list[str]:
    """What stands behind each such instruction."""
    text = (HERE / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(f"{instruction} ")]
    return [line.partition(" ")[2].strip() for line in lines]


TYPED = typed()
RELAYS = {
    "unit": shlex.split(unit()["ExecStart"][0])[2:],
    "compose": [str(each) for each in compose()["services"]["relay"]["command"]],
    **{shlex.join(words): words[1:] for words in TYPED if words[0] == "relay" and len(words) > 1},
}
"""The options of each relay that the documentation starts."""


@pytest.mark.parametrize("words", TYPED, ids=shlex.join)
def test_commands_have_options_that_there_are(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("holiday.mp4").touch()  # which is sent there
    if words != ["--version"]:
        options = [word for word in words[1:] if word != "--help"]
        COMMANDS[words[0]].make_context(words[0], options)


def test_the_page_has_commands() -> None:
    assert len(RELAYS) >= 6
    assert {words[0] for words in TYPED} >= {"relay", "token", "chat", "doctor"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What stands for the paths of the documentation."""
    certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    for path in (secret, key):
        path.chmod(0o600)
    return {
        "/etc/meshpeer/tls/fullchain.pem": str(certificate),
        "/etc/meshpeer/tls/privkey.pem": str(key),
        **{
            f"{folder}{name}": str(secret)
            for folder in ("${CREDENTIALS_DIRECTORY}/", "/run/secrets/", "/etc/meshpeer/", "")
            for name in ("join-secret", "admin-password", "turn-secret")
        },
    }


def here(options: Sequence[str], files: dict[str, str]) -> list[str]:
    """The options with files of this machine, on a free port of loopback."""
    found = []
    for option in options:
        name, equals, value = (
            option.rpartition("=") if option.startswith("--") else ("", "", option)
        )
        found.append(f"{name}{equals}{files.get(value, value)}")
    assert not [each for each in found if "/etc/" in each or "/run/" in each]
    return [*found, "--host", "127.0.0.1", "--port", "0"]


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def join(socket: ClientConnection, *, token: str | None = None) -> Welcome:
    message = Join(
        version=VERSION,
        room="team-1",
        peer_id="ann",
        incarnation="incarnation",
        join_token=token,
    )
    await socket.send(encode(message), text=True)
    welcome = decode_relay(await socket.recv())
    assert isinstance(welcome, Welcome), welcome
    return welcome


def token() -> str:
    return make_join_token(secret=SECRET, subject="ann")


@pytest.mark.parametrize("options", RELAYS.values(), ids=RELAYS)
async def test_the_relays_of_the_documentation_run(
    start: Start, files: dict[str, str], options: list[str]
) -> None:
    given = here(options, files)
    relay, url = await start.relay(*given)
    tls = trusting() if "--tls-cert" in given else None
    assert url.startswith("wss:" if tls else "ws:")
    with_token = any(each.startswith("--join-secret-file") for each in given)
    async with connect(url, ssl=tls) as socket:
        welcome = await join(socket, token=token() if with_token else None)
    servers = welcome.ice_servers.servers if welcome.ice_servers else []
    named = {url for server in servers for url in server.urls}
    text = " ".join(given).replace("=stun:", " stun:").replace("=turn", " turn").split()
    assert named == {word for word in text if word.startswith(("stun:", "turn:", "turns:"))}
    assert all(server.credential for server in servers if server.urls[0].startswith("turn"))
    relay.process.send_signal(signal.SIGTERM)
    status, error = await relay.end()
    assert status == 0
    assert "warning" not in error


# --- Python --------------------------------------------------------------------------------------


async def test_the_python_of_the_page(files: dict[str, str]) -> None:
    names: dict[str, Any] = {}
    async with Relay(RelayConfig(port=0, join_secret=SECRET)) as relay, asyncio.timeout(60):
        ran = 0
        for block in blocks(PAGE):
            if block.kind != "python":
                continue
            source = "\n" * (block.line - 1) + block.text
            source = source.replace("wss://relay.example.org", relay.url).replace(
                "/etc/meshpeer/join-secret", files["/etc/meshpeer/join-secret"]
            )
            code = compile(source, str(block.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                result = eval(code, names)
                if inspect.isawaitable(result):
                    await result
            assert printed.getvalue() == (block.output or ""), f"line {block.line}"
            ran += 1
    assert ran == 3


# --- tables --------------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, up to the next one."""
    text = (DOCS / PAGE).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def test_every_limit_is_explained_with_its_default() -> None:
    limits = {
        parameter.opts[0]: str(parameter.default)
        for parameter in COMMANDS["relay"].params
        if parameter.rich_help_panel == "Limits"
    }
    assert {row[0].strip("`"): row[1] for row in rows("Limits")} == limits
    assert all(len(row) == 4 and row[2] and row[3] for row in rows("Limits"))


def test_every_variable_is_explained() -> None:
    source = "".join(inspect.getsource(module) for module in (relay_command, token_command))
    explained = {row[0].strip("`") for row in rows("Signals, statuses, secrets")}
    assert explained == set(re.findall(r"\bMESHPEER_\w+", source))


# --- systemd -------------------------------------------------------------------------------------


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    require("systemd-analyze")
    text = (HERE / "meshpeer-relay.service").read_text()
    copy = tmp_path / "meshpeer-relay.service"
    program = Path(sys.executable).parent / "meshpeer"
    copy.write_text(text.replace("/opt/meshpeer/bin/meshpeer", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    copy.write_text(copy.read_text() + "\n[Service]\nProtectSytem=strict\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "ProtectSytem" in done.stderr, "it says what it does not know"


def test_the_unit_leaves_little_open(tmp_path: Path) -> None:
    require("systemd-analyze")
    copy = tmp_path / "meshpeer-relay.service"
    shutil.copy(HERE / "meshpeer-relay.service", copy)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold", "20", str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    # It says 0.0 for nothing open at all and 10.0 for everything; 2.0 is the threshold.
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_the_unit_loads_the_secrets_that_it_uses() -> None:
    settings = unit()
    loaded = {value.partition(":")[0] for value in settings["LoadCredential"]}
    used = re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", settings["ExecStart"][0])
    assert loaded == set(used)
    assert settings["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert float(settings["TimeoutStopSec"][0]) > 2


# --- the certificate -----------------------------------------------------------------------------


async def certificate_of(port: int) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(found)


async def logged(relay: Command, event: str) -> None:
    assert relay.process.stderr is not None
    async for line in relay.process.stderr:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"it ended without {event!r}")


async def test_a_renewed_certificate_is_served(start: Start, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("live", "relay", "coturn", "bin")}
    for folder in folders.values():
        folder.mkdir()
    systemctl = folders["bin"] / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$@" >> "$SAID"\n')
    systemctl.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folders['bin']}:{os.environ['PATH']}",
        "RENEWED_LINEAGE": str(folders["live"]),
        "RELAY_FOLDER": str(folders["relay"]),
        "RELAY_GROUP": str(os.getgid()),
        "COTURN_GROUP": str(os.getgid()),
        "COTURN_FOLDER": str(folders["coturn"]),
        "SAID": str(tmp_path / "said"),
    }

    def renew() -> str:
        certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
        certificate.rename(folders["live"] / "fullchain.pem")
        key.rename(folders["live"] / "privkey.pem")
        subprocess.run([HERE / "certificate-renewed.sh"], check=True, env=environment)
        for folder in (folders["relay"], folders["coturn"]):
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
            assert modes == {"fullchain.pem": 0o640, "privkey.pem": 0o640}
        return (folders["live"] / "fullchain.pem").read_text()

    first = renew()
    relay, url = await start.relay(
        *("--port", "0", "--log-json", "--tls-cert", str(folders["relay"] / "fullchain.pem")),
        *("--tls-key", str(folders["relay"] / "privkey.pem")),
    )
    port = int(url.rsplit(":", 1)[1])
    assert await certificate_of(port) == first
    second = renew()
    assert (tmp_path / "said").read_text().splitlines() == [
        "try-reload-or-restart meshpeer-relay",
        "is-active --quiet coturn",
        "kill --signal=USR2 coturn",
    ] * 2
    relay.process.send_signal(signal.SIGHUP)  # which is what ExecReload does
    await logged(relay, "the certificate was loaded anew")
    assert await certificate_of(port) == second


# --- nginx ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[int]:
    """The real nginx with our file: its port."""
    require("nginx")
    certificate, key = make_certificate(folder, "DNS:relay.example.org")
    port = free_port()
    text = (HERE / "nginx.conf").read_text()
    for before, after in {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:443 ssl;\n": "",
        "/etc/letsencrypt/live/relay.example.org/fullchain.pem": str(certificate),
        "/etc/letsencrypt/live/relay.example.org/privkey.pem": str(key),
        "127.0.0.1:3001;": f"127.0.0.1:{upstream};",
    }.items():
        assert before in text
        text = text.replace(before, after)
    (folder / "relay.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder / 'pid'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder / 'relay.conf'};\n}}\n"
    )
    process = subprocess.Popen(
        ["nginx", "-p", folder, "-e", folder / "log", "-c", folder / "nginx.conf"],
        stderr=subprocess.PIPE,
    )
    try:
        while True:  # nginx tells nobody when it listens
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.fail(f"nginx does not start: {process.stderr.read().decode()}")
        yield port
    finally:
        process.terminate()
        process.communicate()


async def test_the_relay_behind_nginx(tmp_path: Path) -> None:
    config = RelayConfig(
        port=0,
        trusted_proxies=("127.0.0.1",),
        origins=("https://relay.example.org",),
        join_secret=SECRET,
        admin_password=SECRET,
    )
    async with Relay(config) as relay:
        with nginx(tmp_path, relay.port) as port:

            def through(origin: str | None, path: str = "/ws") -> connect:
                return connect(
                    f"wss://relay.example.org{path}",
                    origin=origin,  # type: ignore[arg-type]
                    host="127.0.0.1",
                    port=port,
                    local_addr=("127.0.0.2", 0),
                    ssl=trusting(),
                    proxy=None,
                    # Somebody who would like to be somebody else.
                    additional_headers={"X-Forwarded-For": "192.0.2.66"},
                )

            async with through("https://relay.example.org") as ann:
                await join(ann, token=token())
                url = f"{relay.url.replace('ws', 'http', 1)}/api/admin/peers"
                (peer,) = json.loads(await asyncio.to_thread(_get, url))["peers"]
                assert peer["member"]["address"] == "127.0.0.2"
            # The dashboard's own socket is for pages of this name alone.
            async with through("https://relay.example.org", "/api/admin/live"):
                pass
            for origin, path in (
                ("https://elsewhere.example", "/ws"),
                ("https://elsewhere.example", "/api/admin/live"),
            ):
                with pytest.raises(InvalidStatus) as refused:
                    await through(origin, path)
                assert refused.value.response.status_code == 403
            health = await asyncio.to_thread(_get, f"https://127.0.0.1:{port}/healthz")
            assert json.loads(health)["status"] == "ok"


def _get(url: str, user: str = "admin") -> str:
    login = base64.b64encode(f"{user}:{SECRET}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting())
    )
    with opener.open(request, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


# --- coturn --------------------------------------------------------------------------------------


async def test_coturn_takes_the_credentials_of_the_relay_and_reaches_nothing_private(
    tmp_path: Path,
) -> None:
    text = (HERE / "turnserver.conf").read_text()
    assert text.count("REPLACE-WITH-THE-TURN-SECRET") == 1
    text = text.replace("REPLACE-WITH-THE-TURN-SECRET", SECRET)
    with run_coturn(tmp_path, instead=text) as coturn:
        config = RelayConfig(
            port=0,
            turn_urls=(f"turn:127.0.0.1:{coturn.port}?transport=udp",),
            turn_secret=SECRET,
        )
        async with Relay(config) as relay, connect(relay.url) as socket:
            welcome = await join(socket)
        assert welcome.ice_servers is not None
        (server,) = welcome.ice_servers.servers

        async def allocate(credential: str | None) -> Any:
            return await aioice.turn.create_turn_endpoint(
                asyncio.DatagramProtocol,
                server_addr=("127.0.0.1", coturn.port),
                username=server.username,
                password=credential,
            )

        with pytest.raises(aioice.stun.TransactionFailed) as refused:
            await allocate("not the credential")
        assert refused.value.response.attributes["ERROR-CODE"][0] == 401

        transport, _ = await allocate(server.credential)
        try:
            turn = transport._TurnTransport__inner_protocol
            for peer in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"):
                request = aioice.stun.Message(
                    aioice.stun.Method.CHANNEL_BIND, aioice.stun.Class.REQUEST
                )
                request.attributes["CHANNEL-NUMBER"] = 0x4000
                request.attributes["XOR-PEER-ADDRESS"] = (peer, 4000)
                with pytest.raises(aioice.stun.TransactionFailed) as refused:
                    await turn.request_with_retry(request)
                assert refused.value.response.attributes["ERROR-CODE"][0] == 403, peer
            request = aioice.stun.Message(
                aioice.stun.Method.CHANNEL_BIND, aioice.stun.Class.REQUEST
            )
            request.attributes["CHANNEL-NUMBER"] = 0x4000
            request.attributes["XOR-PEER-ADDRESS"] = ("9.9.9.9", 4000)
            await turn.request_with_retry(request)
        finally:
            await turn.delete()

        # What the hook of certbot asks of it.
        before = await certificate_of(coturn.tls_port)
        certificate, _ = make_certificate(tmp_path, "IP:127.0.0.1")
        coturn.process.send_signal(signal.SIGUSR2)
        async with asyncio.timeout(30):
            while (served := await certificate_of(coturn.tls_port)) == before:
                pass
        assert served == certificate.read_text()


# --- containers ----------------------------------------------------------------------------------


def test_the_containerfile_copies_what_there_is_and_calls_what_there_is() -> None:
    root = DOCS.parent
    for copied in containerfile("COPY"):
        if not copied.startswith("--from"):
            *sources, _ = copied.split()
            assert all((root / source).exists() for source in sources)
    # What the build reads of the repository.
    copied = " ".join(containerfile("COPY"))
    assert all(name in copied for name in ("pyproject.toml", "README.md", "LICENSE", "meshpeer"))
    (entry,), (command,) = containerfile("ENTRYPOINT"), containerfile("CMD")
    program, name = json.loads(entry)
    assert program.endswith("/meshpeer")
    COMMANDS[name].make_context(name, json.loads(command))
    assert [user for user in containerfile("USER") if not user.startswith(("0", "root"))]
    for image in containerfile("FROM"):
        found = re.match(r"docker\.io/library/python:3\.(\d+)-slim", image)
        assert found
        assert int(found[1]) >= 11


async def test_the_health_check_of_the_container(start: Start) -> None:
    (check,) = re.findall(r"CMD (\[.*\])", containerfile("HEALTHCHECK")[0])
    _, *arguments = json.loads(check)
    _, url = await start.relay()
    port = url.rsplit(":", 1)[1]
    for used, status in ((port, 0), (str(free_port()), 1)):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(each.replace(":3001/", f":{used}/") for each in arguments),
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == status


def test_the_parts_of_the_compose_file_fit() -> None:
    parts = compose()
    relay, caddy, coturn = (parts["services"][name] for name in ("relay", "caddy", "coturn"))
    build = HERE / relay["build"]["context"]
    assert (build / relay["build"]["dockerfile"]).samefile(HERE / "Containerfile")
    options = dict(each.removeprefix("--").partition("=")[::2] for each in relay["command"])
    # The proxy, and nobody else, is in the network that is trusted.
    (network,) = parts["networks"]["default"]["ipam"]["config"]
    assert options["trusted-proxy"] == network["subnet"]
    assert f"reverse_proxy relay:{options['port']}" in (HERE / "Caddyfile").read_text()
    assert relay["expose"] == [options["port"]]
    secrets = {
        name.removesuffix("-file"): value
        for name, value in options.items()
        if name.endswith("-file")
    }
    assert secrets == {name: f"/run/secrets/{name}" for name in relay["secrets"]}
    assert set(parts["secrets"]) == set(relay["secrets"])
    mounted = [each.split(":")[0] for each in [*caddy["volumes"], *coturn["volumes"]]]
    assert all((HERE / each).exists() for each in mounted if each.startswith("."))
    assert {each for each in mounted if not each.startswith(".")} == set(parts["volumes"])
    site = re.findall(r"^(\S+) \{$", (HERE / "Caddyfile").read_text(), re.MULTILINE)
    assert f"--origin=https://{site[0]}" in relay["command"]


# --- Prometheus ----------------------------------------------------------------------------------


async def test_prometheus_finds_the_figures() -> None:
    (job,) = yaml.safe_load((HERE / "prometheus.yml").read_text())["scrape_configs"]
    assert job["scheme"] == "https"
    assert set(job["basic_auth"]) == {"username", "password_file"}
    async with Relay(RelayConfig(port=0, admin_password=SECRET)) as relay:
        url = f"{relay.url.replace('ws', 'http', 1)}{job['metrics_path']}"
        text = await asyncio.to_thread(_get, url, job["basic_auth"]["username"])
    names = {family.name for family in text_string_to_metric_families(text)}
    # Those that the page wants an alarm for.
    page = (DOCS / PAGE).read_text()
    spoken_of = {name.removesuffix("_total") for name in re.findall(r"meshpeer_\w+", page)}
    assert spoken_of - {"meshpeer_relay_refused", "meshpeer_relay_refused_connections"} <= names
    assert {"meshpeer_relay_refused", "meshpeer_relay_refused_connections"} <= names
