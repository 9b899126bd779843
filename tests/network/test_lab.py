"""The lab is what it says: each NAT maps and filters as its kind, and what breaks is broken."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.network.lab import Lab, Nat, Node, Router, from_and_to

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

Address = tuple[str, int]


class Sockets:
    """UDP sockets on the hosts of a lab, closed at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, node: Node) -> socket.socket:
        """A socket on this host. A thread's sockets are made in the namespace that it is in."""
        with (
            Path("/proc/thread-self/ns/net").open() as home,
            (Path("/run/netns") / node.namespace).open() as there,
        ):
            _enter(there.fileno())
            try:
                made = self._stack.enter_context(
                    socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                )
            finally:
                _enter(home.fileno())
        made.bind((node.address, 0))
        made.settimeout(5)
        return made


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def udp() -> Iterator[Sockets]:
    with ExitStack() as stack:
        yield Sockets(stack)


def _seen_by(server: socket.socket, sender: socket.socket) -> Address:
    """What a server takes a sender for."""
    sender.sendto(b"who am I", server.getsockname())
    address: Address = server.recvfrom(100)[1]
    return address


def _let_in(receiver: socket.socket, address: Address, *senders: socket.socket) -> list[int]:
    """Which of the senders get something to the receiver, of which the last does for sure."""
    for number, sender in enumerate(senders):
        sender.sendto(bytes([number]), address)
    arrived: list[int] = []
    while not arrived or arrived[-1] != len(senders) - 1:
        arrived.append(receiver.recv(100)[0])
    return arrived


@pytest.mark.parametrize(
    ("nat", "same_mapping", "lets_in"),
    [
        (Nat.FULL_CONE, True, ["other address", "other port", "spoken to"]),
        (Nat.ADDRESS_RESTRICTED, True, ["other port", "spoken to"]),
        (Nat.PORT_RESTRICTED, True, ["spoken to"]),
        (Nat.SYMMETRIC, False, ["spoken to"]),
    ],
)
def test_nat(lab: Lab, udp: Sockets, nat: Nat, same_mapping: bool, lets_in: list[str]) -> None:
    one, two = lab.host("one"), lab.host("two")
    inside = udp(lab.host("inside", lab.router("home", nat)))
    spoken_to, other_port, other_address = udp(one), udp(one), udp(two)

    outside = _seen_by(spoken_to, inside)

    names = ["other address", "other port", "spoken to"]
    got = _let_in(inside, outside, other_address, other_port, spoken_to)
    assert [names[number] for number in got] == lets_in
    assert (_seen_by(other_address, inside) == outside) == same_mapping
    assert (_seen_by(other_port, inside) == outside) == same_mapping


def test_an_early_packet_does_not_take_the_port(lab: Lab, udp: Sockets) -> None:
    home = lab.router("home", Nat.PORT_RESTRICTED)
    inside, outside = udp(lab.host("inside", home)), udp(lab.host("outside"))
    port = inside.getsockname()[1]
    outside.sendto(b"too early", (home.address, port))
    assert _seen_by(outside, inside) == (home.address, port)


def test_a_carrier_sends_nothing_back_in(lab: Lab, udp: Sockets) -> None:
    carrier = lab.router("carrier", Nat.PORT_RESTRICTED, prefix="100.64.0")
    homes = [lab.router(name, Nat.PORT_RESTRICTED, upstream=carrier) for name in ("left", "right")]
    left, right = (udp(lab.host(f"in-{home.name}", home)) for home in homes)
    server = udp(lab.host("server"))
    addresses = [_seen_by(server, left), _seen_by(server, right)]
    assert {address for address, _ in addresses} == {carrier.address}

    left.sendto(b"hairpin", addresses[1])
    right.sendto(b"hairpin", addresses[0])
    assert _let_in(left, addresses[0], server) == [0]
    assert _let_in(right, addresses[1], server) == [0]


def test_what_a_router_drops_and_then_no_more(lab: Lab, udp: Sockets) -> None:
    home = lab.router("home", Nat.PORT_RESTRICTED)
    host = lab.host("inside", home)
    inside, outside = udp(host), udp(lab.host("outside"))
    address = _seen_by(outside, inside)
    sent, received = from_and_to(host.address)

    home.drop(sent)
    inside.sendto(b"lost", outside.getsockname())
    assert _let_in(inside, address, outside) == [0]
    home.drop(received)
    outside.sendto(b"lost", address)
    home.drop()
    assert _seen_by(outside, inside) == address
    assert _let_in(inside, address, outside) == [0]


def test_addresses_change(lab: Lab, udp: Sockets) -> None:
    home, mobile = (lab.router(name, Nat.PORT_RESTRICTED) for name in ("home", "mobile"))
    host, server = lab.host("inside", home), udp(lab.host("server"))
    host.attach(mobile, interface="eth1", up=False)
    assert _seen_by(server, udp(host))[0] == home.address

    before = home.address
    home.change_public_address()
    assert home.address != before
    assert _seen_by(server, udp(host))[0] == home.address

    inside = host.address
    host.change_address()
    assert host.address != inside
    assert _seen_by(server, udp(host))[0] == home.address

    host.switch("eth0", "eth1")
    assert _seen_by(server, udp(host))[0] == mobile.address


def test_nothing_is_left_of_a_lab() -> None:
    with suppress(ZeroDivisionError), Lab() as lab:
        lab.router("home", Nat.FULL_CONE)
        assert lab.name in _namespaces()
        raise ZeroDivisionError
    assert lab.name not in _namespaces()
    assert not lab.folder.exists()
    assert not list(Path("/etc/netns").glob(f"{lab.name}-*"))


def test_a_lab_whose_process_was_killed_is_removed_by_the_next() -> None:
    code = (
        "import os, signal, subprocess\n"
        "from tests.network.lab import Lab\n"
        "with Lab() as lab:\n"
        "    command = [*lab.host('left').command, 'sleep', '600']\n"
        "    program = subprocess.Popen(command, stdout=subprocess.DEVNULL)\n"
        "    print(lab.name, program.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    name, program = done.stdout.split()
    assert name in _namespaces()
    running = os.pidfd_open(int(program))
    try:
        with Lab():
            assert name not in _namespaces()
        assert select.select([running], [], [], 10)[0], "its program runs still"
    finally:
        os.close(running)
    assert not list(Path(tempfile.gettempdir()).glob(f"{name}-*"))


def _namespaces() -> str:
    return subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=True
    ).stdout


def test_a_router_that_can_not_be_set_up_says_why(lab: Lab) -> None:
    router = lab.router("home", Nat.FULL_CONE)
    assert isinstance(router, Router)
    with pytest.raises(RuntimeError, match="syntax error"):
        router.drop("nonsense")
