"""Secrets, which come from files or the environment: a command line is for everybody to see.

And options that are wrong, in the words of the command line.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from meshpeer.errors import ConfigError

__all__ = ["read_secret", "read_text", "usage_errors", "warn_of_readers"]

_LONGEST: Final = 64 * 1024
_FIELD: Final = re.compile(r"\b(?:RelayConfig|IceServer)\.(\w+)|^(\w+)")


def read_secret(option: str, path: Path | None, variable: str) -> str | None:
    """The secret in the file that ``option`` named, or else in the environment; None without.

    The end of the file's only line is no part of it. An empty variable counts as none. Raises
    `ConfigError`; says on standard error when other users of the machine can read the file.
    """
    if path is None:
        return os.environ.get(variable) or None
    warn_of_readers(option, path)
    secret = read_text(option, path).removesuffix("\n").removesuffix("\r")
    if not secret or "\n" in secret:
        raise ConfigError(f"{option}: {path} must have the secret in its only line")
    return secret


def read_text(option: str, path: Path) -> str:
    """A small file of UTF-8. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise ConfigError(f"{option}: {path} has more than {_LONGEST} bytes")
        return data.decode()
    except OSError as exc:
        raise ConfigError(f"{option}: can't read {path}: {exc.strerror or exc}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option}: {path} is no text in UTF-8") from None


def warn_of_readers(option: str, path: Path) -> None:
    """Say on standard error when every user of this machine can read a secret."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # who reads it will say so
    if os.name == "posix" and mode & stat.S_IROTH:
        print(
            f"meshpeer: warning: {option}: every user of this machine can read {path}; "
            f"chmod o-r {path}",
            file=sys.stderr,
        )


@contextmanager
def usage_errors(options: Mapping[str, str]) -> Iterator[None]:
    """End with status 2 and a sentence when the body raises `ConfigError`.

    ``options`` names the options of the arguments that it speaks of, and of those fields of a
    config that are not called like theirs.
    """
    try:
        yield
    except ConfigError as exc:

        def option(found: re.Match[str]) -> str:
            field, word = found.groups()
            if field is None:
                return options.get(word, word)
            return options.get(field) or f"--{field.replace('_', '-')}"

        print(f"meshpeer: {_FIELD.sub(option, str(exc))}", file=sys.stderr)
        raise typer.Exit(2) from None
