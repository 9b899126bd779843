"""The pages that people open in a browser, and the module that they and other pages import.

==========================  =====================================================================
``/``                       asks which room
``/chat/<room>``            the room's chat; the same page for every room, which reads its address
``/chat/<room>/qr.svg``     the link to that page as a QR code (ISO/IEC 18004); ``?at=`` is the
                            origin that the asking page has: a relay behind a proxy does not know
                            whether that is https. Only this address, or one of the origins
``/meshpeer.js``            the client, which pages of `RelayConfig.origins` may import (CORS)
``/assets/…``               what the pages are made of
==========================  =====================================================================

Files are read once, and found by their whole paths: no path of a request is ever opened.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from io import BytesIO
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from meshpeer.core.limits import Bucket
from meshpeer.core.messages import Room
from meshpeer.relay.addresses import Origins
from meshpeer.relay.http import Answer

__all__ = ["Pages", "read_files"]

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# A page takes nothing from elsewhere, and what is in the names and messages that it shows can run
# nothing. 'self' is the relay's WebSocket as well (CSP Level 3, section 6.7.2.8).
_POLICY: Final = (
    "Content-Security-Policy",
    (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
)
_QR_BYTES: Final = 512
"""Bytes of a link that becomes a QR code. A phone reads larger ones with difficulty."""
_QR_RATE: Final = 10.0
"""QR codes that are made a second, for all addresses together: each takes some milliseconds. So
whoever asks for ever new ones leaves the others none but those that are kept."""
_QR_BURST: Final = 30
_QR_KEPT: Final = 256
"""QR codes that are kept, of some kilobytes each."""
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,262}\Z")


def read_files(*folders: str, at: str) -> dict[str, Answer]:
    """The files of these folders in ``meshpeer/relay/web``, as if they were one at the path ``at``.

    All of them have the policy that nothing comes from elsewhere.
    """
    found = {}
    for folder in folders:
        for file in (files("meshpeer.relay") / "web").joinpath(folder).iterdir():
            kind = next((kind for end, kind in _TYPES.items() if file.name.endswith(end)), None)
            if kind is not None:
                found[f"{at}/{file.name}"] = Answer(200, file.read_bytes(), kind, (_POLICY,))
    return found


class Pages:
    """Answers for what needs no password.

    ``origins``: whose pages may import the client. ``now`` is any clock that does not go back.
    """

    def __init__(self, origins: Origins, *, now: Callable[[], float]) -> None:
        self._origins = origins
        self._now = now
        self._codes: OrderedDict[str, Answer] = OrderedDict()
        self._making: Bucket | None = None
        self._packed: dict[str, Answer] = {}

    def answer(self, path: str, query: str, headers: Mapping[str, str]) -> Answer | None:
        """Answer a GET; None when nothing of this is there. ``headers`` are looked up as they are
        written in RFC 9110."""
        if path in ("/chat", "/chat/"):
            return Answer(302, b"", headers=(("Location", "/"),))
        if path.startswith("/chat/"):
            room, _, rest = path.removeprefix("/chat/").partition("/")
            if not _is_room(room):
                return Answer(404, b"A room has a name of 1 to 128 characters.\n")
            if rest == "qr.svg":
                return self._code(room, query, _one(headers, "Host") or "")
            path = path.removesuffix(room)
        answer = self._files.get(path)
        if answer is None:
            return None
        if _takes_gzip(headers):
            answer = self._packed.get(path)
            if answer is None:
                answer = self._packed[path] = _packed(self._files[path])
        if path in self._shared:
            answer = self._share(answer, headers)
        return _unless_known(answer, headers)

    @cached_property
    def _shared(self) -> dict[str, Answer]:
        """The client's own, by path."""
        return read_files("", at="")

    @cached_property
    def _files(self) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        for folder in ("chat", "common", "home"):
            found |= read_files(folder, at=f"/assets/{folder}")
        found["/"] = found.pop("/assets/home/index.html")
        found["/chat/"] = found.pop("/assets/chat/index.html")
        return {path: _tagged(answer) for path, answer in {**found, **self._shared}.items()}

    def _share(self, answer: Answer, headers: Mapping[str, str]) -> Answer:
        """For the page that asks, if it may connect as well (Fetch, section 3.3)."""
        shared: list[tuple[str, str]] = [("Vary", "Accept-Encoding, Origin")]
        origin, host = _one(headers, "Origin"), _one(headers, "Host") or ""
        if origin is not None and self._origins.refusal(origin, host) is None:
            shared.append(("Access-Control-Allow-Origin", origin))
        others = (header for header in answer.headers if header[0] != "Vary")
        return replace(answer, headers=(*others, *shared))

    def _code(self, room: str, query: str, host: str) -> Answer:
        try:
            pairs = parse_qsl(query, strict_parsing=True, errors="strict")
        except ValueError:
            pairs = []
        if len(pairs) != 1 or pairs[0][0] != "at" or _ORIGIN.match(pairs[0][1]) is None:
            return Answer(400, b"at: must be the origin of a page, like http://localhost:3001\n")
        origin = pairs[0][1]
        # A code that this relay shows leads nowhere but to it.
        if self._origins.refusal(origin, host) is not None:
            text = (
                "at: must be the address that this relay was asked for (Host), or one that its "
                "operator has listed (--origin).\n"
            )
            return Answer(403, text.encode())
        text = f"{origin}/chat/{room}"
        if len(text) > _QR_BYTES:
            return Answer(400, f"A link may have {_QR_BYTES} bytes here.\n".encode())
        answer = self._codes.get(text)
        if answer is None:
            now = self._now()
            if self._making is None:
                self._making = Bucket(_QR_RATE, _QR_BURST, now)
            if self._making.wait(1, now) > 0:
                text = "Too many codes were asked for. Try again later.\n"
                return Answer(429, text.encode(), headers=(("Retry-After", "1"),))
            self._making.take(1, now)
            answer = self._codes[text] = Answer(200, _make_code(text), _TYPES[".svg"])
            if len(self._codes) > _QR_KEPT:
                self._codes.popitem(last=False)
        self._codes.move_to_end(text)
        return answer


def _make_code(text: str) -> bytes:
    # Imported late: a relay starts without it.
    import segno

    # Always the same one of the eight masks: to choose the best of them takes most of the time.
    code = segno.make_qr(text, error="m", boost_error=False, mask=0)
    written = BytesIO()
    code.save(written, kind="svg", border=4, light="#fff", xmldecl=False, omitsize=True)
    return written.getvalue()


def _is_room(name: str) -> bool:
    """Whether this part of a path is a room's name (RFC 3986, section 2.1)."""
    try:
        msgspec.convert(unquote(name, errors="strict"), Room)
    except (UnicodeDecodeError, msgspec.ValidationError):
        return False
    return True


def _one(headers: Mapping[str, str], name: str) -> str | None:
    """None as well where there are several."""
    try:
        return headers[name]
    except LookupError:  # websockets raises its own where there are several
        return None


def _tagged(answer: Answer) -> Answer:
    """What a browser may keep, if it asks each time whether it is still so (RFC 9110, 8.8.3)."""
    tag = hashlib.sha256(answer.body).hexdigest()[:32]
    return replace(answer, headers=(*answer.headers, *_kept(tag)))


def _kept(tag: str) -> tuple[tuple[str, str], ...]:
    return (("Cache-Control", "no-cache"), ("ETag", f'"{tag}"'), ("Vary", "Accept-Encoding"))


def _packed(answer: Answer) -> Answer:
    """The same by gzip (RFC 1952), which makes a quarter of a script. It is another representation,
    so it has a tag of its own."""
    kept = _kept(dict(answer.headers)["ETag"].strip('"') + "-gzip")
    own = dict(kept)
    others = ((name, value) for name, value in answer.headers if name not in own)
    return replace(
        answer,
        body=gzip.compress(answer.body, mtime=0),
        headers=(*others, *kept, ("Content-Encoding", "gzip")),
    )


def _takes_gzip(headers: Mapping[str, str]) -> bool:
    """RFC 9110, section 12.5.3."""
    for each in (_one(headers, "Accept-Encoding") or "").split(","):
        coding, _, weight = each.partition(";")
        if coding.strip().lower() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False


def _unless_known(answer: Answer, headers: Mapping[str, str]) -> Answer:
    """RFC 9110, section 13.1.2."""
    tag = dict(answer.headers)["ETag"]
    asked = (_one(headers, "If-None-Match") or "").split(",")
    if any(each.strip().removeprefix("W/") == tag for each in asked):
        return replace(answer, status=304, body=b"")
    return answer
