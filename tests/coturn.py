"""A real TURN server for tests: coturn, on loopback by default, with ports and files of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from aioice import stun

from meshpeer.config import IceServer
from tests.needs import require

__all__ = ["Coturn", "make_certificate", "run_coturn"]

_HOST = "127.0.0.1"
_SECRET = "the secret of these tests"


def make_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for ``names`` (``DNS:localhost``), and its key."""
    require("openssl")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"],
            *["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=meshpeer tests"],
            *["-addext", f"subjectAltName={','.join(names)}"],
            *["-keyout", str(key), "-out", str(certificate)],
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Coturn:
    """A running coturn. ``server`` says how to reach it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        tls_port: int,
        login: tuple[str, str],
        ca_file: Path,
        log: Path,
        host: str,
    ) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.tls_port = tls_port
        self.username, self.credential = login
        self.ca_file = ca_file
        self.log = log

    def server(self, transport: str, *, host: str | None = None, trusted: bool = True) -> IceServer:
        """``stun``, or TURN over ``udp``, ``tcp`` or ``tls``, with its credentials."""
        host = host or self.host
        if transport == "stun":
            return IceServer(urls=f"stun:{host}:{self.port}")
        tls = transport == "tls"
        return IceServer(
            urls=f"turns:{host}:{self.tls_port}"
            if tls
            else f"turn:{host}:{self.port}?transport={transport}",
            username=self.username,
            credential=self.credential,
            ca_file=str(self.ca_file) if tls and trusted else None,
        )

    def freeze(self) -> None:
        """It keeps its sockets, and says nothing any more."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)  # until it has stopped

    def kill(self) -> None:
        """It is gone, with its sockets."""
        self.process.kill()
        self.process.wait()


@contextmanager
def run_coturn(
    folder: Path,
    *options: str,
    ephemeral: bool = False,
    instead: str | None = None,
    host: str = _HOST,
) -> Iterator[Coturn]:
    """coturn with STUN and TURN over UDP, TCP and TLS, ready when it is entered.

    ``ephemeral``: credentials that run out (use-auth-secret) instead of a user's. ``options``:
    more lines for its configuration. ``instead``: a configuration of its own, of which only
    addresses, ports and files are not what it says.
    """
    require("turnserver")
    certificate, key = make_certificate(folder, f"IP:{host}", "DNS:localhost")
    login = _ephemeral_login() if ephemeral else ("user", "the password")
    configuration, log = folder / "turnserver.conf", folder / "log"
    for _ in range(5):
        port, tls_port = _free_ports(host)
        here = [
            f"listening-ip={host}",
            f"relay-ip={host}",
            f"listening-port={port}",
            f"tls-listening-port={tls_port}",
            f"cert={certificate}",
            f"pkey={key}",
            f"userdb={folder / 'turndb'}",
            f"pidfile={folder / 'pid'}",
        ]
        usual = [
            "realm=meshpeer",
            f"use-auth-secret\nstatic-auth-secret={_SECRET}"
            if ephemeral
            else f"lt-cred-mech\nuser={':'.join(login)}",
            "allow-loopback-peers",
            "no-cli",
            "no-dtls",
            "relay-threads=1",
            "log-file=stdout",
            "simple-log",
            "verbose",
        ]
        # Of two lines for the same thing the latter counts.
        lines = [*(usual if instead is None else [instead]), *here, *options]
        configuration.write_text("\n".join(lines) + "\n")
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["turnserver", "-c", str(configuration)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            if _ready(process, host, port, tls_port):
                yield Coturn(process, port, tls_port, login, certificate, log, host)
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail(f"coturn does not start:\n{log.read_text()[-2000:]}", pytrace=False)


def _ephemeral_login() -> tuple[str, str]:
    username = f"{int(time.time()) + 3600}:somebody"
    digest = hmac.new(_SECRET.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def _free_ports(host: str) -> tuple[int, int]:
    """Two ports that are free for UDP and TCP. Another may take one before coturn does."""
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < 2:
            tcp = stack.enter_context(socket.socket())
            udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            tcp.bind((host, 0))
            with suppress(OSError):
                udp.bind(tcp.getsockname())
                found.append(tcp.getsockname()[1])
        return found[0], found[1]


def _ready(process: subprocess.Popen[bytes], host: str, port: int, tls_port: int) -> bool:
    """Wait until it listens everywhere and answers a binding request; False when it has ended."""
    request = bytes(stun.Message(stun.Method.BINDING, stun.Class.REQUEST))
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.1)
        asking.connect((host, port))
        while process.poll() is None:
            try:
                for each in (port, tls_port):
                    socket.create_connection((host, each), timeout=1).close()
                asking.send(request)
                asking.recv(2000)
            except ConnectionRefusedError:
                time.sleep(0.01)  # coturn tells nobody when it listens
            except TimeoutError:
                pass  # asked before it read
            else:
                return True
    return False
