"""The network matrix: which networks two peers connect through, over which path, how fast."""

# The names of the cases are those of a table.
# ruff: noqa: RUF001

from __future__ import annotations

from typing import Any, Literal

from tests.network.case import Case, Outcome
from tests.network.lab import NOBODY, ONLY_TCP_443, UDP_BLOCKED, Lab, Nat, loss
from tests.network.meeting import Homes, Network, ServerList, meeting
from tests.network.processes import USER, Coturn

__all__ = ["CASES", "homes", "stun"]

Servers = list[dict[str, Any]]


# --- networks ---


def homes(left: Nat, right: Nat) -> Network:
    """Each host behind a router of its own."""

    def build(lab: Lab) -> Homes:
        return (
            lab.host("left", lab.router("home-left", left)),
            lab.host("right", lab.router("home-right", right)),
        )

    return build


def _dropping(*rules: str, both: bool) -> Network:
    """Two port-restricted homes; the routers of both, or of the left one, drop this."""

    def build(lab: Lab) -> Homes:
        left = lab.router("home-left", Nat.PORT_RESTRICTED)
        right = lab.router("home-right", Nat.PORT_RESTRICTED)
        for router in (left, right) if both else (left,):
            router.drop(*rules)
        return lab.host("left", left), lab.host("right", right)

    return build


def _same_lan(lab: Lab) -> Homes:
    home = lab.router("home", Nat.PORT_RESTRICTED)
    return lab.host("left", home), lab.host("right", home)


def _carrier_grade(lab: Lab) -> Homes:
    """Two homes of one provider, who translates as well and sends nothing back in."""
    carrier = lab.router("carrier", Nat.PORT_RESTRICTED, prefix="100.64.0")
    left = lab.router("home-left", Nat.PORT_RESTRICTED, upstream=carrier)
    right = lab.router("home-right", Nat.PORT_RESTRICTED, upstream=carrier)
    return lab.host("left", left), lab.host("right", right)


# --- servers ---


def _none(coturns: list[Coturn]) -> Servers:
    return []


def stun(coturns: list[Coturn]) -> Servers:
    return [coturns[0].stun()]


def _stun_turn(coturns: list[Coturn]) -> Servers:
    return [coturns[0].stun(), coturns[0].turn()]


def _stun_turn_tcp(coturns: list[Coturn]) -> Servers:
    return [coturns[0].stun(), coturns[0].turn("udp"), coturns[0].turn("tcp")]


def _turns(coturns: list[Coturn]) -> Servers:
    return [coturns[0].turn("tls")]


def _behind_dead_ones(good: ServerList) -> ServerList:
    def servers(coturns: list[Coturn]) -> Servers:
        return [
            {"urls": f"stun:{NOBODY}"},
            {"urls": f"turn:{NOBODY}", **USER},
            {"urls": "stun:nowhere.invalid"},
            *good(coturns),
        ]

    return servers


# --- cases ---


def _case(
    name: str,
    network: Network,
    servers: ServerList,
    path: str,
    limit: float,
    of: Literal["median", "p95"] = "p95",
    beside: str | None = None,
) -> Case:
    async def run(swapped: bool) -> Outcome:
        # However long a lossy line takes: the case is about ICE.
        async with meeting(network, servers, swapped=swapped, relay_path=False) as pair:
            seconds = await pair.connect()
            assert pair.path == path, f"connected over {pair.path}, not {path}"
            return Outcome(seconds, path)

    return Case(name=name, run=run, limit=limit, of=of, beside=beside)


def _relayed(name: str, network: Network, limit: float) -> Case:
    """No path but the relay: until each has a message of the other."""

    async def run(swapped: bool) -> Outcome:
        async with meeting(network, stun, swapped=swapped) as pair:
            known = await pair.meet()
            for peer in pair.peers:
                peer.say("stream")
            seconds = await pair.arrives(known) - known
            assert pair.path == "relay", f"connected over {pair.path}, not relay"
            return Outcome(seconds, "relay")

    return Case(name=name, run=run, limit=limit)


_FULL_CONES = homes(Nat.FULL_CONE, Nat.FULL_CONE)
_FULL_CONE_SYMMETRIC = homes(Nat.FULL_CONE, Nat.SYMMETRIC)
_PORT_RESTRICTED = homes(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED)
_PORT_RESTRICTED_SYMMETRIC = homes(Nat.PORT_RESTRICTED, Nat.SYMMETRIC)
_SYMMETRIC = homes(Nat.SYMMETRIC, Nat.SYMMETRIC)
_UDP_BLOCKED = _dropping(*UDP_BLOCKED, both=True)
_ONLY_TCP_443 = _dropping(*ONLY_TCP_443, both=True)
_LOSS = _dropping(*loss(20), both=False)

CASES = [
    _case("same LAN", _same_lan, _none, "direct", 0.15, "median"),
    _case("full cone ×2", _FULL_CONES, stun, "direct", 0.15, "median"),
    _case("port-restricted ×2", _PORT_RESTRICTED, stun, "direct", 0.7, "median"),
    _case("full cone/symmetric", _FULL_CONE_SYMMETRIC, stun, "direct", 0.7, "median"),
    _case("port-restricted/symmetric", _PORT_RESTRICTED_SYMMETRIC, _stun_turn, "turn", 1.0),
    _case("symmetric ×2", _SYMMETRIC, _stun_turn, "turn", 1.0),
    _case("carrier-grade without hairpin", _carrier_grade, _stun_turn, "turn", 1.0),
    _case("UDP blocked: stun, turn:udp, turn:tcp", _UDP_BLOCKED, _stun_turn_tcp, "turn", 1.5),
    _case("only TCP 443 open: turns:", _ONLY_TCP_443, _turns, "turn", 1.5),
    _relayed("UDP blocked: stun, no TURN", _UDP_BLOCKED, 3.5),
    _case(
        "port-restricted ×2, dead servers first",
        _PORT_RESTRICTED,
        _behind_dead_ones(stun),
        "direct",
        0.2,
        "median",
        beside="port-restricted ×2",
    ),
    _case(
        "symmetric ×2, dead servers first",
        _SYMMETRIC,
        _behind_dead_ones(_stun_turn),
        "turn",
        0.2,
        "median",
        beside="symmetric ×2",
    ),
    _case("20 % loss", _LOSS, stun, "direct", 4.0),
]
"""The rows of the table, in its order."""
