"""`meshpeer token`: what lets somebody join a relay that asks for tokens."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from meshpeer.cli.secret import read_secret, read_text, usage_errors, warn_of_readers
from meshpeer.errors import ConfigError
from meshpeer.relay import make_join_token

__all__ = ["token"]

_WHAT: Final = "What the token says"
_WITH: Final = "What it is signed with"
_NEW: Final = "Instead of a token"
_OPTIONS: Final = {
    "secret": "--secret-file (or MESHPEER_JOIN_SECRET)",
    "private_key": "--private-key-file",
    **{name: f"--{name.replace('_', '-')}" for name in ("subject", "room", "name", "peer_id")},
    "lifetime": "--lifetime",
}
"""What gives the arguments of `make_join_token`."""


def token(
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Who its bearer is, in the words of your application. Required.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    room: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="The rooms it is for: lobby, team-*, or * for every one.",
            rich_help_panel=_WHAT,
        ),
    ] = "*",
    name: Annotated[
        str | None,
        typer.Option(
            help="The display name that its bearer has, whatever it says of itself.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    peer_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The only peer id that it is for.", rich_help_panel=_WHAT),
    ] = None,
    lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long it lets somebody join.", rich_help_panel=_WHAT
        ),
    ] = 3600.0,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The relay's --join-secret-file; or MESHPEER_JOIN_SECRET in the environment.",
            rich_help_panel=_WITH,
        ),
    ] = None,
    private_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key that belongs to the relay's --join-public-key-file (Ed25519; PEM).",
            rich_help_panel=_WITH,
        ),
    ] = None,
    new_secret: Annotated[
        bool,
        typer.Option(
            "--new-secret",
            help="Print a new secret: for joins, for TURN, or as a password.",
            rich_help_panel=_NEW,
        ),
    ] = False,
    new_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a new pair of keys there: join-key.pem, which signs, and "
            "join-key.pub.pem for the relay.",
            rich_help_panel=_NEW,
        ),
    ] = None,
) -> None:
    """Make a token that lets its bearer join a relay, and print nothing else.

    `meshpeer token --subject ann --room lobby --secret-file join-secret`
    """
    with usage_errors(_OPTIONS):
        if new_secret or new_key is not None:
            if (subject, secret_file, private_key_file) != (None, None, None) or (
                new_secret and new_key is not None
            ):
                raise ConfigError("--new-secret and --new-key are given alone")
            if new_key is not None:
                _write_keys(new_key)
            else:
                print(secrets.token_urlsafe(32))
            return
        if subject is None:
            raise ConfigError("--subject is missing: who is the token for?")
        if secret_file is not None and private_key_file is not None:
            raise ConfigError("--secret-file and --private-key-file must not be given together")
        secret = key = None
        if private_key_file is not None:
            warn_of_readers("--private-key-file", private_key_file)
            key = read_text("--private-key-file", private_key_file)
        else:
            secret = read_secret("--secret-file", secret_file, "MESHPEER_JOIN_SECRET")
            if secret is None:
                raise ConfigError(
                    "what is it to be signed with? Give --secret-file, --private-key-file or "
                    "MESHPEER_JOIN_SECRET in the environment"
                )
        print(
            make_join_token(
                secret=secret,
                private_key=key,
                subject=subject,
                room=room,
                name=name,
                peer_id=peer_id,
                lifetime=lifetime,
            )
        )


def _write_keys(folder: Path) -> None:
    """An Ed25519 pair (RFC 8032). Overwrites nothing. Raises `ConfigError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, data, mode in (
        ("join-key.pem", private, 0o600),
        ("join-key.pub.pem", public, 0o644),
    ):
        path = folder / name
        try:
            # Its owner's alone from its first moment.
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        except OSError as exc:
            raise ConfigError(f"--new-key: can't write {path}: {exc.strerror or exc}") from None
