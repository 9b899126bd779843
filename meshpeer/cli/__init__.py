"""The `meshpeer` command. typer and rich come with the ``cli`` extra: only `main` imports them."""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = ("typer", "rich")


def main() -> None:
    """Run the command line; exits with its status."""
    try:
        from meshpeer.cli.app import app
        from meshpeer.cli.common import open_streams
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRA:
            raise
        sys.exit(
            f"The meshpeer command needs the package {exc.name}, which comes with the cli extra: "
            "pip install 'meshpeer[cli]'"
        )
    open_streams()
    app(prog_name="meshpeer")
