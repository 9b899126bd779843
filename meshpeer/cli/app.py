"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from meshpeer import __version__
from meshpeer.cli.bot import bot
from meshpeer.cli.chat import chat
from meshpeer.cli.demo import demo
from meshpeer.cli.doctor import doctor
from meshpeer.cli.receive import receive
from meshpeer.cli.relay import relay
from meshpeer.cli.send import send
from meshpeer.cli.token import token

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Its paragraphs are wrapped to the terminal; in the other modes lines end where they do here.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(relay)
app.command()(token)
app.command()(chat)
app.command()(send)
app.command()(receive)
app.command()(demo)
app.command()(doctor)
app.command("demo-bot", hidden=True)(bot)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"meshpeer {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Peers that find each other, connect directly, and stay connected.

    Try it: `meshpeer demo`. To talk: `meshpeer relay` in one terminal, then `meshpeer chat lobby`
    in others.
    """
