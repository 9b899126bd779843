"""`meshpeer doctor`: what will work in this network, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshpeer.cli.common import JoinTokenOption, run
from meshpeer.config import IceServer, MeshConfig
from meshpeer.errors import ConfigError

__all__ = ["doctor"]


def doctor(
    relay: Annotated[
        str | None, typer.Option(metavar="URL", help="A relay to enter a room of.")
    ] = None,
    join_token: JoinTokenOption = None,
    stun: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A STUN server to ask; may be given several times."),
    ] = None,
    turn: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A TURN server to ask; may be given several times."),
    ] = None,
    username: Annotated[str | None, typer.Option(help="For the TURN servers.")] = None,
    credential: Annotated[
        str | None,
        typer.Option(
            envvar="MESHPEER_TURN_CREDENTIAL",
            help="For the TURN servers: their password. Other users of this machine may see the "
            "options of a command, not its environment.",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            exists=True,
            help="Certificates (PEM) to trust for turns: instead of the system's.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, max=60, metavar="SECONDS", help="How long each answer may take."),
    ] = 5.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what was found as one JSON object.")
    ] = False,
) -> None:
    """Try what peers need, and say what will work and what to change.

    Connects two peers on this machine, enters a room of the relay, and asks each STUN and TURN
    server that is named here or by the relay. Nothing else is contacted.

    The status is 0 when peers will connect and everything that was named works, 1 when something
    is broken, 2 when the command is wrong.
    """
    # Late: these import WebRTC, which the other commands do without.
    from meshpeer.cli.checkup import check
    from meshpeer.cli.diagnosis import diagnose
    from meshpeer.cli.report import as_object, busy, show

    async def main() -> int:
        try:
            config = _config(stun or [], turn or [], username, credential, ca_file, timeout)
            with busy(silent=as_json):
                facts = await check(config, relay, timeout, join_token=join_token)
        except ConfigError as exc:
            raise typer.BadParameter(str(exc)) from None
        diagnosis = diagnose(facts)
        if as_json:
            print(as_object(facts, diagnosis))
        else:
            show(facts, diagnosis)
        return 0 if diagnosis.ok else 1

    run(main)


def _config(
    stun: list[str],
    turn: list[str],
    username: str | None,
    credential: str | None,
    ca_file: Path | None,
    timeout: float,
) -> MeshConfig:
    """Raises `typer.BadParameter` and `ConfigError`."""
    for option, urls, schemes in (("--stun", stun, ("stun:",)), ("--turn", turn, _TURN)):
        for url in urls:
            if not url.startswith(schemes):
                wanted = " or ".join(schemes)
                raise typer.BadParameter(f"{url!r} does not begin with {wanted}", param_hint=option)
    if turn and (username is None or credential is None):
        raise typer.BadParameter(
            "it needs --username and --credential (or MESHPEER_TURN_CREDENTIAL)",
            param_hint="--turn",
        )
    servers = [IceServer(urls=url) for url in stun]
    servers += [
        IceServer(
            urls=url,
            username=username,
            credential=credential,
            ca_file=None if ca_file is None else str(ca_file),
        )
        for url in turn
    ]
    return MeshConfig(ice_servers=tuple(servers), ice_server_timeout=timeout)


_TURN = ("turn:", "turns:")
