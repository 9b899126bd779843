"""Who is at the other end: addresses behind proxies, and the origins of pages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Origins", "Proxies", "is_loopback", "plain_address"]

_PORTS: Final = {"http": 80, "https": 443}
_MAX_PROXIES: Final = 32
"""Entries of X-Forwarded-For that are looked at, from the end."""


@lru_cache(maxsize=1024)  # who connects often comes back
def plain_address(address: str) -> str:
    """``address`` as IPv4 or IPv6 without a zone; IPv4 in IPv6 form (RFC 4291, section 2.5.5.2) as
    IPv4. Raises `ValueError` for what is none."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip)


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address, is only this machine (RFC 6761, section 6.3)."""
    try:
        return ip_address(plain_address(host)).is_loopback
    except ValueError:
        name = host.lower().removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")


class Proxies:
    """The proxies whose ``X-Forwarded-For`` is believed."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(each) for each in trusted]

    def trusts(self, address: str) -> bool:
        """Whether ``address`` is one of them."""
        if not self._networks:
            return False
        ip = ip_address(address)
        return any(ip in network for network in self._networks)

    def client(self, peer: str, headers: Sequence[str]) -> str:
        """Who is behind ``peer``, the address that a connection comes from.

        ``headers`` are the values of its ``X-Forwarded-For``, of which the last address is what the
        last proxy saw: the client is the last that is no trusted proxy, whatever was there before.
        What is malformed proves nothing: then it is ``peer``.
        """
        if not self.trusts(peer):
            return peer
        client = peer
        entries = ",".join(headers).rsplit(",", _MAX_PROXIES)[-_MAX_PROXIES:]
        for entry in reversed(entries):
            try:
                client = plain_address(_without_port(entry.strip(" \t")))
            except ValueError:
                return peer
            if not self.trusts(client):
                return client
        return client


def _without_port(entry: str) -> str:
    """``[2001:db8::1]:80``, ``192.0.2.1:80`` and addresses without a port."""
    if entry.startswith("["):
        address, bracket, port = entry[1:].partition("]")
        if not bracket or (port and not _is_port(port.removeprefix(":"))):
            raise ValueError(entry)
        return address
    address, colon, port = entry.partition(":")
    if not colon or ":" in port:
        return entry
    if not _is_port(port):
        raise ValueError(entry)
    return address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


class Origins:
    """Which pages may open a WebSocket (RFC 6454; RFC 6455, section 10.2): this host's, and
    ``allowed``, which is `RelayConfig.origins`.

    ``tls``: this relay speaks it. ``loopback``: it listens on this machine only; then a page is
    told by its name from one whose name was made to lead here (DNS rebinding).
    """

    def __init__(self, allowed: Sequence[str], *, tls: bool, loopback: bool) -> None:
        self._every = "*" in allowed
        self._allowed = {_parts(origin) for origin in allowed if origin != "*"}
        self._tls = tls
        self._loopback = loopback

    def refusal(self, origin: str, host: str, *, own: bool = False) -> str | None:
        """Why a page of ``origin`` may not; None when it may. ``host`` is the Host header of its
        request. ``own``: what is asked for is the operator's, and ``*`` lets nobody have it."""
        try:
            page = _parts(origin)
            same = self._is_own(page, host)
        except ValueError:
            page, same = ("", None, None), False
        listed = page in self._allowed
        if listed or (self._every and not own):
            return None
        if not same and own:
            return (
                "The dashboard's WebSocket is for pages of the address that this relay was asked "
                "for (Host). Where a proxy asks for another one, its operator lists the address of "
                "the page itself (--origin; '*' does not count here)."
            )
        if not same:
            return (
                "Pages of this origin may not connect to this relay. Its operator can let them "
                "(--origin)."
            )
        # Where a proxy in front has another name than this machine, that name is listed.
        if self._loopback and not is_loopback(page[1] or ""):
            return (
                "This relay is for this machine, by the names that it has itself. Its operator can "
                "let pages of another name connect by listing their address (--origin)."
            )
        return None

    def _is_own(self, page: _Parts, host: str) -> bool:
        scheme, name, port = page
        here = urlsplit(f"//{host.lower()}")
        # A proxy may speak TLS in front of a relay that does not; never the other way round.
        if scheme not in _PORTS or (self._tls and scheme != "https"):
            return False
        return bool(name) and (name, port) == (here.hostname, here.port or _PORTS[scheme])


_Parts = tuple[str, str | None, int | None]


def _parts(origin: str) -> _Parts:
    """Scheme, host and port. Raises `ValueError`."""
    url = urlsplit(origin.lower())
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)
