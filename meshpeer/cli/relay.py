"""`meshpeer relay`: the server that peers meet at."""

from __future__ import annotations

import ipaddress
import sys
from typing import Annotated

import typer

from meshpeer.cli.common import (
    LogJson,
    LogLevel,
    LogLevelOption,
    configure_logging,
    run,
    until_stopped,
)
from meshpeer.config import RelayConfig
from meshpeer.relay import Relay

__all__ = ["relay"]

_DEFAULT = RelayConfig()


def relay(
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")
    ] = _DEFAULT.host,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = _DEFAULT.port,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Sockets that may be open.")
    ] = _DEFAULT.max_connections,
    max_rooms: Annotated[int, typer.Option(min=1, help="Rooms there may be.")] = _DEFAULT.max_rooms,
    max_members: Annotated[
        int, typer.Option(min=1, help="Members a room may have.")
    ] = _DEFAULT.max_members,
    max_message_size: Annotated[
        int, typer.Option(min=1024, metavar="BYTES", help="The largest message taken.")
    ] = _DEFAULT.max_message_size,
    message_rate: Annotated[
        float, typer.Option(min=0.1, help="Messages a second from one member, on average.")
    ] = _DEFAULT.message_rate,
    seat_timeout: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long a member that dropped out keeps its seat."
        ),
    ] = _DEFAULT.seat_timeout,
    log_level: LogLevelOption = LogLevel.INFO,
    log_json: LogJson = False,
) -> None:
    """Run the server that peers meet at.

    Everything is in memory. It listens on this machine only, unless --host says otherwise. SIGTERM
    and Ctrl-C tell the members to come back soon, and end it with status 0.
    """
    configure_logging(log_level, log_json)

    async def main() -> int:
        config = RelayConfig(
            host=host,
            port=port,
            max_connections=max_connections,
            max_rooms=max_rooms,
            max_members=max_members,
            max_message_size=max_message_size,
            message_rate=message_rate,
            seat_timeout=seat_timeout,
        )
        async with until_stopped(), Relay(config) as server:
            print(f"relay   {server.url}")
            print(f"health  {server.url.replace('ws', 'http', 1)}/healthz")
            print("Ctrl-C stops it.", flush=True)
            if not _is_loopback(host):
                print(
                    f"meshpeer: warning: anyone who can reach {host} port {server.port} may join "
                    "any room and write to everybody in it",
                    file=sys.stderr,
                )
            await server.serve_forever()
        return 0

    run(main)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
