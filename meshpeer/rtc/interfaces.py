"""This host's addresses: which of them ICE may use, and the moment when they are others.

The choice is in one place, so that what is bound, what is watched and what `meshpeer doctor` lists
can't differ. On Linux the kernel tells of a change at once (netlink, RFC 3549), long before
anything on the old address times out; elsewhere a look a second finds it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import ifaddr

from meshpeer.config import MeshConfig

__all__ = ["Interface", "interfaces", "local_addresses", "watch_addresses"]

_LOOPBACK = ("127.0.0.1", "::1")
_LOOK_EVERY = 1.0
_IF_INET6 = Path("/proc/net/if_inet6")
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface."""

    name: str
    addresses: tuple[str, ...]
    """What can be bound on it: of the families that are set, and nothing link-local of IPv6."""
    up: bool
    """Up and running; where that can't be seen (not Linux), True."""
    used: bool
    """Whether `local_addresses` has addresses of it."""


def local_addresses(config: MeshConfig) -> tuple[str, ...]:
    """The addresses to bind for ICE, each once, in the system's order.

    Loopback is among them only when there is nothing else and ``config.interfaces`` does not leave
    it out: so a host without a network can still connect to itself. Raises `OSError` when the
    system does not tell.
    """
    return _chosen(config, _found(config))


def interfaces(config: MeshConfig) -> tuple[Interface, ...]:
    """Every interface of this host, and whether it is used. Raises like `local_addresses`."""
    found = _found(config)
    chosen = _chosen(config, found)
    return tuple(
        Interface(each.name, each.addresses, each.up, not set(chosen).isdisjoint(each.addresses))
        for each in found
    )


_SETTLE = 0.05
"""Seconds that a change is given to become whole."""


async def watch_addresses(config: MeshConfig, changed: Callable[[], None]) -> None:
    """Call ``changed`` whenever `local_addresses` is another set than before. Does not return.

    Within a second; on Linux almost at once. Cancelling it leaves no socket and no reader.
    """
    with _news() as news:
        known = await _look(config)
        while True:
            await news()
            # An address comes before its route, and one that goes makes way for another.
            await asyncio.sleep(_SETTLE)
            found = await _look(config)
            if found != known:
                known = found
                changed()


# --- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    addresses: tuple[str, ...]
    up: bool


def _found(config: MeshConfig) -> list[_Found]:
    unfit = _unfit()
    return [
        _Found(
            adapter.nice_name,
            tuple(
                dict.fromkeys(
                    address
                    for ip in adapter.ips
                    if _fits(address := ip.ip if isinstance(ip.ip, str) else ip.ip[0], config)
                    and address not in unfit
                )
            ),
            _is_up(adapter.name),
        )
        for adapter in ifaddr.get_adapters(include_unconfigured=True)
    ]


def _fits(address: str, config: MeshConfig) -> bool:
    ip = ipaddress.ip_address(address)
    if f"ipv{ip.version}" not in config.address_families:
        return False
    if ip.is_loopback:
        return address in _LOOPBACK
    # A link-local address of IPv6 means nothing without the name of an interface, and a candidate
    # has no room for one. That of IPv4 is all that two hosts on one cable may have.
    return not (ip.version == 6 and ip.is_link_local)


def _unfit() -> frozenset[str]:
    """IPv6 addresses that can't be bound yet, or should not be any more (RFC 4862, section 5.5.4).

    The kernel tells when that changes, as for any other change.
    """
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return frozenset()  # not Linux, or without IPv6
    dad_failed, deprecated, tentative = 0x08, 0x20, 0x40
    fields = (line.split() for line in lines)
    return frozenset(
        str(ipaddress.IPv6Address(bytes.fromhex(address)))
        for address, _, _, _, flags, _ in fields
        if int(flags, 16) & (dad_failed | deprecated | tentative)
    )


def _is_up(name: str) -> bool:
    if sys.platform != "linux":
        return True
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("16sH14x", name.encode()[:15], 0)
        try:
            answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, request)
        except OSError:
            return False  # it is gone since it was listed
    flags: int = struct.unpack_from("16sH", answer)[1]
    return flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING


# --- what of it is used ---------------------------------------------------------------------------


def _chosen(config: MeshConfig, found: list[_Found]) -> tuple[str, ...]:
    wanted = [
        address
        for each in found
        if each.up and _matches(each.name, config.interfaces)
        for address in each.addresses
    ]
    others = [address for address in wanted if address not in _LOOPBACK]
    return tuple(dict.fromkeys(others or sorted(wanted)))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # "eth0:1" is a label for some of the addresses of eth0.
    device = name.partition(":")[0]
    return next(
        (
            not pattern.startswith("!")
            for pattern in reversed(patterns)
            if fnmatchcase(device, pattern.removeprefix("!"))
        ),
        False,
    )


# --- when it changes ------------------------------------------------------------------------------


async def _look(config: MeshConfig) -> frozenset[str]:
    while True:
        try:
            return frozenset(local_addresses(config))
        except OSError:
            # No file descriptor or no memory is left for the question. Nothing is known of a
            # change, and nobody tells when it can be asked again.
            await asyncio.sleep(_LOOK_EVERY)


@contextmanager
def _news() -> Iterator[Callable[[], Awaitable[None]]]:
    """Something to await: it returns when the addresses may have changed."""

    async def second() -> None:
        await asyncio.sleep(_LOOK_EVERY)

    try:
        netlink = _netlink()
    except OSError:
        yield second
        return
    with netlink:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        try:
            loop.add_reader(netlink, told.set)
        except NotImplementedError:  # an event loop that has none
            yield second
            return

        async def message() -> None:
            await told.wait()
            _drain(netlink)
            told.clear()

        try:
            yield message
        finally:
            loop.remove_reader(netlink)


def _netlink() -> socket.socket:
    """A socket that the kernel tells every change of interfaces and addresses. Raises `OSError`."""
    if sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, "there is no netlink here")
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        netlink.close()
        raise
    return netlink


def _drain(netlink: socket.socket) -> None:
    """Read what has come, without a look at it: only that something has is needed."""
    while True:
        try:
            netlink.recv(65536)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.ENOBUFS:  # more than it could keep: no less news than the rest
                raise
