"""Two hosts on one wire, out of network namespaces: one for Python, one for Chromium.

The wire can be cut without anybody being told, as when a page is out of reach of its access point.
Nothing of it shows in the machine's own namespace, so tests that run at the same time see no
address come or go.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["CHROMIUM", "PYTHON_ADDRESS", "Host", "missing", "two_hosts"]

CHROMIUM = "/usr/bin/chromium"
PYTHON_ADDRESS = "10.77.0.1"
CHROMIUM_ADDRESS = "10.77.0.2"

_numbers = itertools.count()


def missing() -> list[str]:
    """What this machine lacks for it, in words."""
    lacks = [f"the command {name}" for name in ("ip", "nft") if shutil.which(name) is None]
    if not shutil.which(CHROMIUM):
        lacks.append(CHROMIUM)
    try:
        import playwright  # noqa: F401
    except ImportError:
        lacks.append("the package playwright")
    if os.geteuid() != 0:
        lacks.append("root's rights, for network namespaces")
    return lacks


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str

    def command(self, *arguments: str) -> list[str]:
        """The command that runs another one in it."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def go_offline(self) -> None:
        """Drop every packet, in and out, from now on."""
        rules = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; {way} lo accept; drop; }}\n"
            for hook, way in (("input", "iif"), ("output", "oif"))
        )
        self._run("nft", "-f", "-", stdin=f"table inet offline {{\n{rules}}}")

    def go_online(self) -> None:
        """Let them pass again."""
        self._run("nft", "delete", "table", "inet", "offline")

    def _run(self, *arguments: str, stdin: str | None = None) -> None:
        subprocess.run(self.command(*arguments), check=True, text=True, input=stdin)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Python's host and Chromium's. At the end they are gone, with every process in them."""
    own = f"mpb{os.getpid()}-{next(_numbers)}"
    hosts = Host(f"{own}p"), Host(f"{own}c")
    python, chromium = (host.name for host in hosts)
    try:
        for name in (python, chromium):
            _ip("netns", "add", name)
            # One family, so that every run takes the same way.
            _ip("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        _ip("-n", python, "link", "add", "wire", "type", "veth", "peer", "wire", "netns", chromium)
        for name, own, other in (
            (python, PYTHON_ADDRESS, CHROMIUM_ADDRESS),
            (chromium, CHROMIUM_ADDRESS, PYTHON_ADDRESS),
        ):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{own}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
            # Chromium offers the address of its default route, and multicast DNS needs one.
            _ip("-n", name, "route", "add", "default", "via", other)
        yield hosts
    finally:
        for host in hosts:
            _end(host)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def _end(host: Host) -> None:
    with suppress(subprocess.CalledProcessError):  # it was not made yet
        for pid in _ip("netns", "pids", host.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", host.name)
