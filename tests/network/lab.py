"""Real networks on one machine: hosts, NATs and a public segment out of network namespaces.

A `Lab` has one public segment. Hosts and routers are attached to it, and hosts to routers. What
goes to an address that nobody has is swallowed in silence, as it mostly is in the world. All of it
is gone when the ``with`` block ends, however it ends.

Nothing here is about meshpeer: what breaks, breaks as it does between machines. Packets are dropped
on routers and never on the host that sends them, whose system calls would fail.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = [
    "NOBODY",
    "ONLY_TCP_443",
    "UDP_BLOCKED",
    "Lab",
    "Nat",
    "Node",
    "Router",
    "Segment",
    "from_and_to",
    "loss",
]

NOBODY = "192.0.2.66"
"""An address that nobody has: what is sent there is never answered."""

UDP_BLOCKED = ("meta l4proto udp drop",)
"""For `Router.drop`: a firewall that lets no UDP through."""
ONLY_TCP_443 = (
    "meta l4proto != tcp drop",
    'iifname "lan" tcp dport != 443 drop',
)
"""For `Router.drop`: a firewall that lets only TCP to port 443 through."""

_SETTINGS = Path("/etc/netns")
"""Where `ip netns exec` looks for the files that it puts over those in /etc."""

_serial = itertools.count(1)


def loss(percent: int) -> tuple[str, ...]:
    """For `Router.drop`: lose so many of a hundred packets, in each direction."""
    return (f"numgen random mod 100 < {percent} drop",)


def from_and_to(address: str) -> tuple[str, str]:
    """For `Router.drop`: two rules, what this host sends and what is sent to it."""
    return f"ip saddr {address} drop", f"ip daddr {address} drop"


class Nat(StrEnum):
    """How a router translates (RFC 4787; the names are RFC 3489's, which everybody uses)."""

    FULL_CONE = "full cone"
    """Endpoint-independent mapping and filtering."""
    ADDRESS_RESTRICTED = "address-restricted"
    """Endpoint-independent mapping, address-dependent filtering."""
    PORT_RESTRICTED = "port-restricted"
    """Endpoint-independent mapping, address- and port-dependent filtering."""
    SYMMETRIC = "symmetric"
    """Address- and port-dependent mapping and filtering."""


# A new packet from outside must not leave a trace on the router: with an entry in its table the
# port would be taken when the host behind it sends from there, and the mapping another one.
_FILTER = """
table ip filter {
    chain input {
        type filter hook input priority filter; policy drop;
    }
    chain forward {
        type filter hook forward priority filter;
        iifname "wan" ct status dnat accept
        iifname "wan" ct state new drop
    }
}
"""

_MASQUERADE = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan" masquerade
    }
}
"""

# Masquerading keeps the port where it can, and a host behind a router here is alone with its ports:
# so the port outside is the one inside, and tells whose it is.
_FULL_CONE = """
table ip nat {
    map learned { type inet_service : ipv4_addr; flags dynamic; size 65535; }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "wan" dnat to udp dport map @learned
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan" meta l4proto udp update @learned { udp sport : ip saddr }
        oifname "wan" masquerade
    }
}
"""

_ADDRESS_RESTRICTED = """
table ip nat {
    map learned { type inet_service : ipv4_addr; flags dynamic; size 65535; }
    set spoken { type inet_service . ipv4_addr; flags dynamic; size 65535; }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "wan" udp dport . ip saddr @spoken dnat to udp dport map @learned
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan" meta l4proto udp update @learned { udp sport : ip saddr }
        oifname "wan" meta l4proto udp update @spoken { udp sport . ip daddr }
        oifname "wan" masquerade
    }
}
"""

_RULES = {
    Nat.FULL_CONE: _FILTER + _FULL_CONE,
    Nat.ADDRESS_RESTRICTED: _FILTER + _ADDRESS_RESTRICTED,
    Nat.PORT_RESTRICTED: _FILTER + _MASQUERADE,
    Nat.SYMMETRIC: _FILTER + _MASQUERADE.replace("masquerade", "masquerade fully-random"),
}

# Bridges would otherwise pass their frames through the rules for routed packets.
_QUIET = """
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
    echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
fi
ip link set lo up
"""


def _shell(script: str, *before: str) -> None:
    """Run a shell script that must succeed."""
    done = _run([*before, "sh", "-e"], script)
    if done.returncode:
        raise RuntimeError(f"{done.stderr.strip() or done.returncode} in:\n{script}")


def _run(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    # In a session of its own: what ends this program must not end what cleans up after it.
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, start_new_session=True
    )


class Node:
    """A network namespace: a host, or more with what the subclasses add."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.namespace = f"{lab.name}-{name}"
        self.address = ""
        """Of the interface that was attached last."""
        self.interfaces: dict[str, Segment] = {}
        lab.add(self)
        _shell(f"ip netns add {self.namespace}")
        self.run(_QUIET)

    @property
    def command(self) -> tuple[str, ...]:
        """What runs a program in here when it is put before it."""
        return "ip", "netns", "exec", self.namespace

    def run(self, script: str) -> None:
        """Run a shell script in here. Raises `RuntimeError` when it fails."""
        _shell(script, *self.command)

    def attach(self, segment: Segment, *, interface: str = "eth0", up: bool = True) -> None:
        """Connect to a segment, with an address there, and make it the way to everywhere else.

        Not ``up``: for later, by `switch`.
        """
        port = f"port{next(_serial)}"
        _shell(
            f"ip link add {interface} netns {self.namespace}"
            f" type veth peer name {port} netns {segment.namespace}"
        )
        segment.run(f"ip link set {port} master lan up")
        self.interfaces[interface] = segment
        if up:
            self.run(self._up(interface))

    def _up(self, interface: str) -> str:
        segment = self.interfaces[interface]
        self.address = segment.free_address()
        return (
            f"ip address add {self.address}/24 dev {interface}\n"
            f"ip link set {interface} up\n"
            f"ip route replace default via {segment.gateway}\n"
        )

    def switch(self, down: str, up: str) -> None:
        """Take one interface down and another up, as between a cable and a mobile network."""
        self.run(f"ip link set {down} down\nip address flush dev {down}\n{self._up(up)}")

    def change_address(self, interface: str = "eth0") -> None:
        """Have another address on the same interface, and the old one no more."""
        # The addresses of one interface in one network hang together: without the old one first,
        # the new one would be a secondary of it, and go with it.
        self.run(f"ip address flush dev {interface}\n{self._up(interface)}")


class Segment(Node):
    """A network that nodes are attached to, and the node that is its way out."""

    def __init__(self, lab: Lab, name: str, prefix: str) -> None:
        super().__init__(lab, name)
        self.prefix = prefix
        self.gateway = f"{prefix}.254"
        self._numbers = itertools.count(10)
        self.run(
            "ip link add lan type bridge\n"
            f"ip address add {self.gateway}/24 dev lan\n"
            "ip link set lan up\n"
        )

    def free_address(self) -> str:
        """An address in it that nobody had so far."""
        return f"{self.prefix}.{next(self._numbers)}"


class Router(Segment):
    """A router with a NAT; its own network behind it, and what it drops on the way."""

    def __init__(self, lab: Lab, name: str, prefix: str, nat: Nat, upstream: Segment) -> None:
        super().__init__(lab, name, prefix)
        self.attach(upstream, interface="wan")
        self.run(f"echo 1 > /proc/sys/net/ipv4/ip_forward\nnft -f - <<'END'\n{_RULES[nat]}\nEND\n")

    def drop(self, *rules: str) -> None:
        """Drop what these rules say, of all that is forwarded, and nothing else any more."""
        # First of all hooks for forwarded packets: the addresses are those inside.
        text = "\n".join(rules)
        self.run(
            "nft -f - <<'END'\n"
            "add table ip fault\n"
            "delete table ip fault\n"
            "table ip fault {\nchain forward {\n"
            f"type filter hook forward priority -300;\n{text}\n"
            "}\n}\n"
            "END\n"
        )

    def change_public_address(self) -> None:
        """Have another address outside, and forget every mapping."""
        self.change_address("wan")
        self.run("conntrack --flush 2>/dev/null")


class Lab:
    """A public segment and what is attached to it. Needs root, and a ``with`` block."""

    def __init__(self) -> None:
        self.name = f"lab{os.getpid()}x{next(_serial)}"
        self._nodes: list[Node] = []
        self._networks = itertools.count(1)

    def __enter__(self) -> Self:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        """For files that end with the lab."""
        try:
            # It forwards nothing: what is sent to its own address or beyond ends there, unheard.
            self.public = Segment(self, "public", "203.0.113")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for node in self._nodes:
            _delete(node.namespace)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, node: Node) -> None:
        """Remove this node with the lab. Called by the node before it exists."""
        self._nodes.append(node)
        # Every lookup of a name goes to a server that never answers.
        settings = _SETTINGS / node.namespace
        settings.mkdir(parents=True)
        (settings / "resolv.conf").write_text(f"nameserver {NOBODY}\n")

    def host(self, name: str, segment: Segment | None = None) -> Node:
        """A host, on the public segment if no other is given."""
        node = Node(self, name)
        node.attach(segment or self.public)
        return node

    def router(
        self, name: str, nat: Nat, *, prefix: str = "", upstream: Segment | None = None
    ) -> Router:
        """A router with its network behind it, at the public segment if no other is given."""
        prefix = prefix or f"192.168.{next(self._networks)}"
        return Router(self, name, prefix, nat, upstream or self.public)


def _delete(namespace: str) -> None:
    _run(["ip", "netns", "delete", namespace])
    shutil.rmtree(_SETTINGS / namespace, ignore_errors=True)


def _sweep() -> None:
    """Remove the labs of processes that were killed, with the programs that run there still."""
    for settings in _SETTINGS.glob("lab*-*"):
        owner = re.match(r"lab(\d+)x\d+-", settings.name)
        if owner is None or (Path("/proc") / owner[1]).exists():
            continue
        for pid in _run(["ip", "netns", "pids", settings.name]).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _delete(settings.name)
        for folder in Path(tempfile.gettempdir()).glob(f"{owner[0]}*"):
            shutil.rmtree(folder, ignore_errors=True)
