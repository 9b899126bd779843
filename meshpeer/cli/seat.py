"""The seat file: what a process needs to have its peer id back after it died."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from meshpeer.cli.common import CommandError

__all__ = ["Seat"]

_MAX_SIZE = 64 * 1024


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Who we were in which room. The token is a secret: whoever has it can take the id over."""

    peer_id: str
    resume_token: str
    room: str
    relay: str

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The seat in ``path``; None when there is no such file. Raises `CommandError`."""
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_SIZE + 1)
            return msgspec.json.decode(data, type=cls)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise CommandError(
                f"the seat file {path} can't be read: {exc.strerror}", reason="bad_seat"
            ) from None
        except (msgspec.DecodeError, UnicodeError) as exc:
            raise CommandError(
                f"{path} is not a seat file ({exc}): name another one, or remove it",
                reason="bad_seat",
            ) from None

    def write(self, path: Path) -> None:
        """Put it into ``path`` at once or not at all, for nobody else to read.

        Raises `CommandError`.
        """
        try:
            fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
                Path(name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as exc:
            raise CommandError(
                f"the seat can't be kept in {path}: {exc.strerror}", reason="bad_seat"
            ) from None
