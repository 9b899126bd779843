"""`meshpeer relay`: the server that peers meet at."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from meshpeer.cli.common import (
    LogJson,
    LogLevel,
    LogLevelOption,
    Stop,
    configure_logging,
    run,
    until_stopped,
)
from meshpeer.cli.garbage import garbage_by_the_clock
from meshpeer.cli.secret import read_secret, read_text, usage_errors, warn_of_readers
from meshpeer.config import IceServer, RelayConfig
from meshpeer.errors import MeshError
from meshpeer.log import Log
from meshpeer.relay import Relay

__all__ = ["relay"]

_DEFAULT: Final = RelayConfig()
_LISTENING: Final = "Listening"
_ACCESS: Final = "Who may join"
_ADMIN: Final = "Dashboard, admin API and metrics"
_ICE: Final = "STUN and TURN servers that members are told"
_TIMES: Final = "Times"
_LIMITS: Final = "Limits"
_OPTIONS: Final = {
    "trusted_proxies": "--trusted-proxy",
    "origins": "--origin",
    "join_secret": "--join-secret-file (or MESHPEER_JOIN_SECRET)",
    "join_public_key": "--join-public-key-file",
    "admin_password": "--admin-password-file (or MESHPEER_ADMIN_PASSWORD)",
    "urls": "--stun",
    "ice_servers": "--stun",
    "turn_urls": "--turn",
    "turn_secret": "--turn-secret-file (or MESHPEER_TURN_SECRET)",
}
"""What gives the fields that no option of the same name does."""

_log = Log(part="command")


def relay(
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on; 0.0.0.0 is every IPv4 one of this machine.",
            rich_help_panel=_LISTENING,
        ),
    ] = _DEFAULT.host,
    port: Annotated[
        int,
        typer.Option(help="The port to listen on; 0 takes a free one.", rich_help_panel=_LISTENING),
    ] = _DEFAULT.port,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The certificate and its chain (PEM), for wss and https. SIGHUP loads it anew.",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its private key (PEM).", rich_help_panel=_LISTENING),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="A proxy, or a network of them, whose X-Forwarded-For is believed. May be given "
            "several times.",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Anybody who can reach this relay may join. On this machine alone, without a "
            "proxy, that is so without it.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    join_secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Joins need a token that was signed with this secret (HS256); or "
            "MESHPEER_JOIN_SECRET in the environment.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    join_public_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Joins need a token that was signed with the key of this one (EdDSA; PEM).",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Pages that may connect besides the relay's own: https://app.example.org, or * "
            "for all. May be given several times.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    admin_user: Annotated[
        str,
        typer.Option(
            envvar="MESHPEER_ADMIN_USER",
            help="Who may see them, and act.",
            rich_help_panel=_ADMIN,
        ),
    ] = _DEFAULT.admin_user,
    admin_password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With this password; or MESHPEER_ADMIN_PASSWORD in the environment. With neither "
            "a random one is printed.",
            rich_help_panel=_ADMIN,
        ),
    ] = None,
    admin_attempts: Annotated[
        int,
        typer.Option(
            help="Wrong passwords a minute from one address before it is refused unheard.",
            rich_help_panel=_ADMIN,
        ),
    ] = _DEFAULT.admin_attempts,
    report_interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Members tell how their links stand when that changes, and this often; 0: never.",
            rich_help_panel=_ADMIN,
        ),
    ] = _DEFAULT.report_interval,
    stun: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A STUN server: stun:stun.example.org. May be given several times.",
            rich_help_panel=_ICE,
        ),
    ] = None,
    turn: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A TURN server that shares a secret with this relay (coturn's use-auth-secret): "
            "turn:turn.example.org?transport=udp. May be given several times.",
            rich_help_panel=_ICE,
        ),
    ] = None,
    turn_secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="That secret; or MESHPEER_TURN_SECRET in the environment.",
            rich_help_panel=_ICE,
        ),
    ] = None,
    turn_lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a member's TURN credentials are valid; it gets new ones in time.",
            rich_help_panel=_ICE,
        ),
    ] = _DEFAULT.turn_lifetime,
    seat_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a member that dropped out keeps its seat.",
            rich_help_panel=_TIMES,
        ),
    ] = _DEFAULT.seat_timeout,
    join_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a socket may be open without having joined.",
            rich_help_panel=_TIMES,
        ),
    ] = _DEFAULT.join_timeout,
    keepalive_interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Between two pings to a member; who does not answer within as long is cut off.",
            rich_help_panel=_TIMES,
        ),
    ] = _DEFAULT.keepalive_interval,
    restart_delay: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long members are told to wait when the relay ends.",
            rich_help_panel=_TIMES,
        ),
    ] = _DEFAULT.restart_delay,
    max_connections: Annotated[
        int, typer.Option(help="Sockets that may be open.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_connections,
    max_connections_per_address: Annotated[
        int,
        typer.Option(
            help="The same from one address (IPv6: from one /64).", rich_help_panel=_LIMITS
        ),
    ] = _DEFAULT.max_connections_per_address,
    join_rate: Annotated[
        float,
        typer.Option(help="Joins a second from one address, on average.", rich_help_panel=_LIMITS),
    ] = _DEFAULT.join_rate,
    join_burst: Annotated[
        int, typer.Option(help="Joins from one address at once.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.join_burst,
    max_rooms: Annotated[
        int, typer.Option(help="Rooms there may be.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_rooms,
    max_members: Annotated[
        int, typer.Option(help="Members a room may have.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_members,
    max_message_size: Annotated[
        int,
        typer.Option(metavar="BYTES", help="The largest message taken.", rich_help_panel=_LIMITS),
    ] = _DEFAULT.max_message_size,
    message_rate: Annotated[
        float,
        typer.Option(
            help="Messages a second from one member, on average.", rich_help_panel=_LIMITS
        ),
    ] = _DEFAULT.message_rate,
    message_burst: Annotated[
        int, typer.Option(help="Messages from one member at once.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.message_burst,
    byte_rate: Annotated[
        float,
        typer.Option(
            metavar="BYTES",
            help="Bytes a second from one member, data for others included; beyond it the member "
            "is slowed down.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.byte_rate,
    byte_burst: Annotated[
        int,
        typer.Option(
            metavar="BYTES", help="Bytes from one member at once.", rich_help_panel=_LIMITS
        ),
    ] = _DEFAULT.byte_burst,
    max_replay: Annotated[
        int,
        typer.Option(
            help="Messages kept for a member that has not acknowledged them.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.max_replay,
    max_replay_bytes: Annotated[
        int, typer.Option(metavar="BYTES", help="The same.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_replay_bytes,
    max_unread: Annotated[
        int,
        typer.Option(
            metavar="BYTES",
            help="What a member may leave unread before it is cut off.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.max_unread,
    forward_window: Annotated[
        int,
        typer.Option(
            metavar="BYTES",
            help="Data that a member may have on its way to one other through the relay; 0: none "
            "goes through it.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.forward_window,
    max_forwarded: Annotated[
        int,
        typer.Option(
            metavar="BYTES",
            help="Data that may wait for one member, from all others together.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.max_forwarded,
    log_level: LogLevelOption = LogLevel.INFO,
    log_json: LogJson = False,
) -> None:
    """Run the server that peers meet at.

    Everything is in memory. It listens on this machine only, unless --host says otherwise. Then,
    and behind a proxy, it wants --open, or a secret that joins need a token of (`meshpeer token`).

    SIGTERM and Ctrl-C tell the members to come back soon, and end it with status 0. SIGHUP loads
    the certificate anew. Secrets are never options: they come from files or from the environment.
    """
    configure_logging(log_level, log_json)
    with usage_errors(_OPTIONS):
        if tls_key is not None:
            warn_of_readers("--tls-key", tls_key)
        config = RelayConfig(
            host=host,
            port=port,
            tls_cert=None if tls_cert is None else str(tls_cert),
            tls_key=None if tls_key is None else str(tls_key),
            trusted_proxies=tuple(trusted_proxy or ()),
            open=open_,
            join_secret=read_secret("--join-secret-file", join_secret_file, "MESHPEER_JOIN_SECRET"),
            join_public_key=None
            if join_public_key_file is None
            else read_text("--join-public-key-file", join_public_key_file),
            origins=tuple(origin or ()),
            admin_user=admin_user,
            admin_password=read_secret(
                "--admin-password-file", admin_password_file, "MESHPEER_ADMIN_PASSWORD"
            ),
            admin_attempts=admin_attempts,
            ice_servers=tuple(IceServer(urls=url) for url in stun or ()),
            turn_urls=tuple(turn or ()),
            turn_secret=read_secret("--turn-secret-file", turn_secret_file, "MESHPEER_TURN_SECRET"),
            turn_lifetime=turn_lifetime,
            seat_timeout=seat_timeout,
            join_timeout=join_timeout,
            keepalive_interval=keepalive_interval,
            restart_delay=restart_delay,
            report_interval=report_interval,
            max_message_size=max_message_size,
            max_connections=max_connections,
            max_connections_per_address=max_connections_per_address,
            join_rate=join_rate,
            join_burst=join_burst,
            max_rooms=max_rooms,
            max_members=max_members,
            message_rate=message_rate,
            message_burst=message_burst,
            byte_rate=byte_rate,
            byte_burst=byte_burst,
            max_replay=max_replay,
            max_replay_bytes=max_replay_bytes,
            max_unread=max_unread,
            forward_window=forward_window,
            max_forwarded=max_forwarded,
        )

    async def main() -> int:
        with usage_errors(_OPTIONS):
            server = Relay(config)
            async with until_stopped() as stop:
                with _hangup(server, config, stop):
                    async with garbage_by_the_clock(), server:
                        _say_where(server, config)
                        await server.serve_forever()
        return 0

    run(main)


def _say_where(server: Relay, config: RelayConfig) -> None:
    print(f"relay      {server.url}")
    print(f"chat       {server.chat_url()}")
    print(f"health     {server.url.replace('ws', 'http', 1)}/healthz")
    print(f"dashboard  {server.admin_url}")
    if config.admin_password is None:
        print(f"admin      {server.admin_user}, password {server.admin_password}")
    else:
        print(f"admin      {server.admin_user}, with the password that was configured")
    print("Ctrl-C stops it.", flush=True)


@contextmanager
def _hangup(server: Relay, config: RelayConfig, stop: Stop) -> Iterator[None]:
    """While inside, SIGHUP loads the certificate anew; the one of a terminal that is gone ends it.

    What can't be loaded is logged, and the certificate of before stays in use.
    """
    if not hasattr(signal, "SIGHUP"):  # Windows
        yield
        return
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def hung_up() -> None:
        if terminals and not any(stream.isatty() for stream in terminals):
            # Whatever is still written would fail.
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in terminals:
                os.dup2(null, stream.fileno())
            os.close(null)
            stop.now()
        elif config.tls_cert is None:
            _log.info("nothing to load anew: the relay speaks no TLS")
        else:
            try:
                server.reload_tls()
            except MeshError as exc:
                _log.warning("the certificate of before stays in use", error=str(exc))
            else:
                _log.info("the certificate was loaded anew", file=config.tls_cert)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
