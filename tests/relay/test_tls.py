"""A relay that speaks TLS: who gets in, what is in the way, and a certificate that changes.

On both event loops: each has TLS of its own, and both are what relays run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http
import itertools
import random
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from meshpeer.config import RelayConfig
from meshpeer.core.forward import decode_forward, encode_forward
from meshpeer.core.messages import Goodbye, MemberJoined, Refused, SignalIn, encode
from meshpeer.errors import ConfigError, MeshClosed, UsageError
from meshpeer.relay import Relay
from meshpeer.relay.http import Answer
from meshpeer.relay.sockets import Socket
from tests.coturn import make_certificate
from tests.needs import require
from tests.relay.board import captured
from tests.relay.test_server import Peer, close_of, join, signal
from tests.relay.wires import UPGRADE, client_frame, refused, until_gone


class Files:
    """A certificate for this machine, and its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.renew()

    def renew(self) -> None:
        """Another certificate, with another key."""
        self.certificate, self.key = make_certificate(self._folder, "IP:127.0.0.1")

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())

    def relay(self, **config: Any) -> Relay:
        certificate, key = str(self.certificate), str(self.key)
        return Relay(RelayConfig(port=0, tls_cert=certificate, tls_key=key, **config))

    def trusted(self) -> ssl.SSLContext:
        """For a client that takes this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextlib.asynccontextmanager
async def member(relay: Relay, trusted: ssl.SSLContext) -> AsyncIterator[Peer]:
    async with connect(relay.url, ssl=trusted, compression=None) as ws:
        yield Peer(ws)


Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def wire(relay: Relay, tls: ssl.SSLContext | None) -> AsyncIterator[Wire]:
    """A connection for any bytes; without ``tls`` a plain one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; nothing where it is cut off."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def shake_hands(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trusted: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """TLS over a plain connection, and what of it is to be written. Where it fails, it says so."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusted.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
        except ssl.SSLError:
            writer.write(outgoing.read())
            raise
        else:
            return tls, outgoing


# --- who gets in ---------------------------------------------------------------------------------
async def test_members_meet_and_send_what_takes_many_records(files: Files) -> None:
    trusted = files.trusted()
    async with files.relay() as relay:
        assert relay.url == f"wss://127.0.0.1:{relay.port}"
        async with member(relay, trusted) as ann, member(relay, trusted) as bob:
            await ann.join("ann")
            await bob.join("bob")
            assert isinstance(await ann.hear(), MemberJoined)
            large = b'"%s"' % (b"x" * 200_000)
            await ann.say(signal("bob", large))
            got = await bob.hear()
            assert isinstance(got, SignalIn)
            assert bytes(got.body) == large
            data = random.Random(1).randbytes(60_000)
            await bob.ws.send(encode_forward("ann", "incarnation-ann", data))
            while not isinstance(frame := await ann.ws.recv(), bytes):
                pass
            assert decode_forward(frame).data == data


async def test_many_messages_in_one_record_are_all_read(files: Files) -> None:
    """By turns, which with TLS are not the system's: what was read is decrypted already."""
    trusted = files.trusted()
    async with (
        files.relay(message_burst=1000, message_rate=1000) as relay,
        wire(relay, trusted) as (reader, writer),
    ):
        asked = client_frame(encode(signal("nobody", b"1")))
        writer.write(UPGRADE + b"\r\n" + client_frame(encode(join("ann"))) + asked * 300)
        for _ in range(300):
            await reader.readuntil(b'"no_such_peer"')


async def test_what_is_over_http_is_over_https(files: Files) -> None:
    trusted = files.trusted()
    async with files.relay() as relay:
        assert relay.admin_url == f"https://127.0.0.1:{relay.port}/admin-analytics"
        for path, status in (("/healthz", 200), ("/admin-analytics", 401), ("/nothing", 404)):
            async with wire(relay, trusted) as (reader, writer):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            assert f"Content-Length: {len(body)}".encode() in head
        # A page that came without TLS may have been changed on its way.
        own = relay.url.replace("wss", "https")
        async with connect(relay.url, ssl=trusted, origin=own):  # type: ignore[arg-type]
            pass
        with pytest.raises(InvalidStatus) as caught:
            await connect(relay.url, ssl=trusted, origin=own.replace("https", "http"))  # type: ignore[arg-type]
        assert caught.value.response.status_code == http.HTTPStatus.FORBIDDEN


async def test_an_answer_comes_whole_to_who_reads_slowly(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 0.05)
    body = random.Random(1).randbytes(8_000_000)
    for relay, tls in (
        (files.relay(join_timeout=1), files.trusted()),
        (Relay(RelayConfig(port=0, join_timeout=1)), None),
    ):
        async with relay, wire(relay, tls) as (reader, writer):
            monkeypatch.setattr(relay._admin, "answer", lambda *_: Answer(200, body))
            # Or the system takes much of it for us, and the relay does not see that we read.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
            writer.write(b"GET /large HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            got = b""
            while data := await reader.read(50_000):
                got += data
                # Over all for longer than a join and a close may take.
                await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.02)
            assert got == body


@pytest.mark.parametrize("size", [10, 8_000_000])
@pytest.mark.parametrize("tls", [True, False])
async def test_who_does_not_take_its_answer_is_cut_off(
    files: Files, tls: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = files.relay(join_timeout=0.3) if tls else Relay(RelayConfig(port=0, join_timeout=0.3))
    async with relay:
        monkeypatch.setattr(relay._admin, "answer", lambda *_: Answer(200, bytes(size)))
        with socket.create_connection(("127.0.0.1", relay.port)) as plain:
            plain.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=plain.dup())
            if tls:
                end, outgoing = await shake_hands(reader, writer, files.trusted())
                end.write(b"GET /large HTTP/1.1\r\n\r\n")
                writer.write(outgoing.read())
            else:
                writer.write(b"GET /large HTTP/1.1\r\n\r\n")
            await writer.drain()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until_gone(relay)
            assert not relay._sockets
            writer.transport.abort()
        assert not refused(relay)


async def test_nothing_older_than_tls_1_2_is_spoken(files: Files) -> None:
    async with files.relay() as relay:
        assert relay._certificate is not None
        for context in (relay._certificate.context, relay._certificate._current):
            assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        old = files.trusted()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with member(relay, old) as ann:
            await ann.join("ann")


# --- who does not --------------------------------------------------------------------------------
HELLO = bytes.fromhex("16030100c8010000c40303")
"""How a client begins: of 200 bytes the first few."""


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n",
        UPGRADE + b"\r\n",
        HELLO + bytes(300),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        bytes(100),
        b"\xff" * 100,
    ],
)
async def test_what_is_no_tls_is_shut_at_once(
    files: Files, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with files.relay(join_timeout=3600) as relay, member(relay, files.trusted()) as ann:
        await ann.join("ann")
        async with wire(relay, None) as (reader, writer):
            writer.write(data)
            # An alert at most (RFC 8446, section 6), and nothing that was meant for others.
            said = await rest_of(reader)
            assert said == b"" or (said[0] == 0x15 and len(said) <= 7)
        await ann.say(signal("nobody", b"1"))
        assert isinstance(await ann.hear(), Refused)
        assert refused(relay) == {"bad_request": 1}
        assert len(relay._sockets) == 1
        assert sum(relay._from.values()) == 1
    assert not caplog.records


async def test_a_client_of_plain_websockets_is_told_something_it_understands(files: Files) -> None:
    async with files.relay() as relay:
        with pytest.raises((InvalidMessage, ConnectionError)):
            await connect(relay.url.replace("wss", "ws"))


async def test_who_does_not_trust_the_certificate_does_not_get_in(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with files.relay(join_timeout=3600) as relay:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(relay.url, ssl=ssl.create_default_context())
        async with wire(relay, None) as (reader, writer):
            with pytest.raises(ssl.SSLCertVerificationError):
                await shake_hands(reader, writer, ssl.create_default_context())
            await rest_of(reader)
        async with member(relay, files.trusted()) as ann:
            await ann.join("ann")
            assert refused(relay) == {"bad_request": 1}  # of who says so
    assert not caplog.records


@pytest.mark.parametrize("said", [b"", HELLO, "hello"])
async def test_a_handshake_that_stalls_is_ended_and_counts_as_a_connection(
    files: Files, said: bytes | str
) -> None:
    trusted = files.trusted()
    if isinstance(said, str):  # a whole one, and then nothing
        outgoing = ssl.MemoryBIO()
        tls = trusted.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        said = outgoing.read()
    async with files.relay(join_timeout=0.5, max_connections_per_address=1) as relay:
        async with wire(relay, None) as (reader, writer):
            writer.write(said)
            with pytest.raises(InvalidStatus) as caught:
                await connect(relay.url, ssl=trusted)
            assert caught.value.response.status_code == http.HTTPStatus.TOO_MANY_REQUESTS
            await rest_of(reader)
            assert refused(relay) == {"max_connections_per_address": 1, "handshake_timeout": 1}
        await until_gone(relay)
        assert not relay._from
        async with member(relay, trusted) as ann:
            await ann.join("ann")


async def test_who_says_nothing_after_its_handshake_is_shut(files: Files) -> None:
    async with (
        files.relay(join_timeout=0.2) as relay,
        wire(relay, files.trusted()) as (reader, _),
    ):
        assert await rest_of(reader) == b""
        await until_gone(relay)
        assert refused(relay) == {"handshake_timeout": 1}


@pytest.mark.parametrize("reset", [False, True])
async def test_who_goes_in_the_middle_of_its_handshake_is_forgotten(
    files: Files, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with files.relay(join_timeout=3600) as relay, member(relay, files.trusted()) as ann:
        await ann.join("ann")
        gone, forget = asyncio.Event(), relay._door._failed

        def note(*args: Any) -> None:
            forget(*args)
            gone.set()

        relay._door._failed = note
        async with wire(relay, None) as (_, writer):
            writer.write(HELLO)
            await writer.drain()
            if reset:
                writer.transport.abort()
        await gone.wait()
        assert len(relay._sockets) == sum(relay._from.values()) == 1
        assert not refused(relay)
    assert not caplog.records


@pytest.mark.parametrize("data", [b"", b"GET /healthz HTTP/1.1\r\n\r\n", UPGRADE + b"\r\n"])
async def test_the_end_may_come_right_behind_the_request(
    files: Files, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """In one piece, so that the end is there before the request is answered."""
    async with files.relay(join_timeout=3600) as relay:
        async with wire(relay, None) as (reader, writer):
            tls, outgoing = await shake_hands(reader, writer, files.trusted())
            if data:
                tls.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            writer.write(outgoing.read())
            await rest_of(reader)
        await until_gone(relay)
        assert not relay._sockets
        async with member(relay, files.trusted()) as ann:
            await ann.join("ann")
    assert not caplog.records


async def test_a_slow_reader_is_cut_off(files: Files) -> None:
    trusted = files.trusted()
    limits = {"max_unread": 256 * 1024, "max_replay_bytes": 256 * 1024, "message_rate": 10_000}
    async with (
        files.relay(**limits) as relay,
        member(relay, trusted) as fast,
        member(relay, trusted) as slow,
    ):
        await fast.join("fast")
        await slow.join("slow")
        await fast.hear()
        slow.ws.transport.pause_reading()
        body = b'"%s"' % (b"x" * 200_000)
        held = max(relay._sockets, key=lambda one: one.conn)
        most = 0
        for _ in range(100):
            await fast.say(signal("slow", body))
            await fast.say(signal("nobody", b"1"))
            while not isinstance(await fast.hear(), Refused):
                pass
            if held not in relay._sockets or held.transport.is_closing():
                break
            most = max(most, held.unsent)
        assert relay._figures().cut_off == 1
        assert most <= 256 * 1024 + len(body) + 1000
        slow.ws.transport.abort()


# --- a certificate that changes ------------------------------------------------------------------
async def shown(relay: Relay) -> bytes | None:
    """The certificate that a newcomer is shown."""
    anything = ssl.create_default_context()
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    async with wire(relay, anything) as (_, writer):
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found


async def test_it_can_be_loaded_anew_and_members_stay(files: Files) -> None:
    before = files.trusted()
    async with files.relay() as relay, member(relay, before) as ann:
        await ann.join("ann")
        first = files.der
        files.renew()
        assert await shown(relay) == first
        relay.reload_tls()
        assert await shown(relay) == files.der != first
        async with member(relay, files.trusted()) as bob:
            await bob.join("bob")
            assert isinstance(await ann.hear(), MemberJoined)
            await ann.say(signal("bob", b"1"))
            assert isinstance(await bob.hear(), SignalIn)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(relay.url, ssl=before)


def _a_folder(files: Files) -> None:
    files.key.unlink()
    files.key.mkdir()


def _the_key_of_another(files: Files) -> None:
    key = files.key.read_text()
    files.renew()
    files.key.write_text(key)


def _a_passphrase(files: Files) -> None:
    command = ["openssl", "ec", "-in", str(files.key), "-out", str(files.key), "-aes256"]
    subprocess.run([*command, "-passout", "pass:secret"], check=True, capture_output=True)


BROKEN: dict[str, tuple[str, Callable[[Files], object]]] = {
    "no certificate": ("tls_cert", lambda files: files.certificate.write_text("nonsense")),
    "half a certificate": (
        "tls_cert",
        lambda files: files.certificate.write_text(files.certificate.read_text()[:200]),
    ),
    "missing certificate": ("tls_cert", lambda files: files.certificate.unlink()),
    "a folder": ("tls_key", _a_folder),
    "no key": ("tls_key", lambda files: files.key.write_text("")),
    "missing key": ("tls_key", lambda files: files.key.unlink()),
    "the key of another": ("tls_key", _the_key_of_another),
    "a passphrase": ("tls_key", _a_passphrase),
    "the wrong way round": ("tls_key", lambda files: files.key.rename(files.certificate)),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_what_can_not_be_used_changes_nothing_and_is_named(files: Files, how: str) -> None:
    named, break_it = BROKEN[how]
    first = files.der
    async with files.relay() as relay:
        secret = files.key.read_text().splitlines()[1]
        break_it(files)
        with pytest.raises(ConfigError, match=rf"RelayConfig\.{named}") as caught:
            relay.reload_tls()
        assert str(files.key) in str(caught.value) or str(files.certificate) in str(caught.value)
        assert secret not in str(caught.value)
        assert await shown(relay) == first
    with pytest.raises(ConfigError, match=rf"RelayConfig\.{named}"):
        files.relay()


async def test_without_tls_there_is_nothing_to_load(relay: Relay) -> None:
    with pytest.raises(UsageError, match="tls_cert"):
        relay.reload_tls()


async def test_a_session_of_before_is_resumed_after_it(files: Files) -> None:
    """Browsers come back with one (RFC 8446, section 2.2), and then want no certificate."""
    require("openssl")
    async with files.relay() as relay:
        session = files.certificate.with_name("session")
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}", "-tls1_2"]
        for option in ("-sess_out", "-sess_in"):
            process = await asyncio.create_subprocess_exec(
                *[*command, option, str(session)],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert process.returncode == 0, said.decode()
            assert (b"Reused," in said) == (option == "-sess_in"), said.decode()
            files.renew()
            relay.reload_tls()


# --- the end -------------------------------------------------------------------------------------
async def test_a_shutdown_says_goodbye_and_waits_for_no_handshake(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 3600)
    trusted = files.trusted()
    relay = files.relay(join_timeout=3600)
    await relay.start()
    async with wire(relay, None) as (reader, writer), wire(relay, trusted) as (silent, _):
        writer.write(HELLO)
        async with member(relay, trusted) as ann:
            await ann.join("ann")
            assert len(relay._sockets) == 3
            await relay.close()
            heard, closed = await ann.until_closed()
            assert heard == [Goodbye(reason="shutdown", retry_after=RelayConfig().restart_delay)]
            assert close_of(closed)[0] == 1012
        assert await rest_of(reader) == b""
        assert await rest_of(silent) == b""
    assert not relay._sockets
    assert not relay._from


@pytest.mark.parametrize("tls", [True, False])
async def test_who_is_shut_out_in_the_moment_it_is_in_is_counted_once(
    files: Files, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = files.relay() if tls else Relay(RelayConfig(port=0))
    made = Socket.connection_made

    def make(one: Socket, transport: asyncio.BaseTransport) -> None:
        made(one, transport)
        for task in relay._door._entering:
            task.cancel()

    monkeypatch.setattr(Socket, "connection_made", make)
    async with relay:
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with wire(relay, files.trusted() if tls else None) as (reader, _):
                await reader.readexactly(1)
        await relay._serving.wait()
        assert not relay._sockets
        assert not relay._from


@pytest.mark.parametrize("later", range(6))
@pytest.mark.parametrize("tls", [True, False])
async def test_who_comes_in_at_the_very_end_is_not_left_open(
    files: Files, tls: bool, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection was taken, and nothing, or not all, was done with it yet."""
    relay = files.relay() if tls else Relay(RelayConfig(port=0))
    await relay.start()
    taken = asyncio.Event()
    closing: list[asyncio.Task[None]] = []
    admit = relay._door._admit

    async def close() -> None:
        for _ in range(later):
            await asyncio.sleep(0)
        await relay.close()

    def let_in(address: str) -> Any:
        closing.append(asyncio.ensure_future(close()))
        taken.set()
        return admit(address)

    monkeypatch.setattr(relay._door, "_admit", let_in)
    with captured() as log, socket.create_connection(("127.0.0.1", relay.port)):
        await taken.wait()
        await asyncio.gather(*closing)
        assert not relay._sockets
        assert not relay._from
    assert not [entry for entry in log if entry["log_level"] == "error"]


@pytest.mark.parametrize("later", range(5))
@pytest.mark.parametrize("tls", [True, False])
async def test_who_comes_while_it_ends_is_not_left_open(
    files: Files, tls: bool, later: int
) -> None:
    """One after the other, so that at each moment there is one: with the system, with the event
    loop, with a task."""
    relay = files.relay() if tls else Relay(RelayConfig(port=0))
    await relay.start()
    with contextlib.ExitStack() as stack, captured() as log:

        async def arrive() -> None:
            with contextlib.suppress(OSError, MeshClosed):
                while True:
                    one = socket.create_connection(("127.0.0.1", relay.port))
                    stack.enter_context(one)
                    await asyncio.sleep(0)

        arriving = asyncio.create_task(arrive())
        for _ in range(3 + later):
            await asyncio.sleep(0)
        await relay.close()
        await arriving
        gc.collect()  # what was left open warns
        assert not relay._sockets
        assert not relay._from
    assert not [entry for entry in log if entry["log_level"] == "error"]


async def test_who_is_in_when_it_ends_and_says_nothing_holds_up_nothing(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS waits for the other side's goodbye, as long as for its handshake."""
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 0.05)
    relay = files.relay(join_timeout=3600)
    made = Socket.connection_made
    entered = asyncio.Event()

    def make(one: Socket, transport: asyncio.BaseTransport) -> None:
        made(one, transport)
        for task in relay._door._entering:
            task.cancel()
        entered.set()

    monkeypatch.setattr(Socket, "connection_made", make)
    await relay.start()
    async with wire(relay, None) as (reader, writer):
        _, outgoing = await shake_hands(reader, writer, files.trusted())
        writer.write(outgoing.read())
        await entered.wait()
        await relay.close()
    assert not relay._sockets


async def test_anything_may_come_instead_of_tls(files: Files) -> None:
    draw = random.Random(3)
    async with files.relay(join_timeout=3600, max_connections_per_address=1000) as relay:
        for number in itertools.count(1):
            async with wire(relay, None) as (reader, writer):
                junk = bytearray(HELLO + draw.randbytes(200))
                for _ in range(draw.randrange(4)):
                    junk[draw.randrange(len(junk))] = draw.randrange(256)
                writer.write(junk)
                writer.write_eof()
                await rest_of(reader)
            if number == 100:
                break
        async with member(relay, files.trusted()) as ann:
            await ann.join("ann")
            assert len(relay._sockets) == 1
