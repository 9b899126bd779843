"""What was found, in sentences: what will work, and what to change. No I/O.

One verdict for each way that two peers may connect, each from its own facts; so every sentence that
`meshpeer doctor` may say can be had without a network that is broken in just that way.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from meshpeer.core.events import IceServerOutcome, IceServerReport
from meshpeer.rtc.probe import Mapping, Network

__all__ = ["Diagnosis", "Facts", "Loopback", "Relay", "Verdict", "Works", "diagnose"]


@dataclass(frozen=True, slots=True)
class Relay:
    """What came of entering a room."""

    url: str
    """Without secrets."""
    failure: str | None
    """Why it did not work; None when it did."""
    joined: float | None = None
    """Seconds until a seat was given."""
    round_trip: float | None = None
    """Seconds from a signal that was sent to its arrival at another seat of ours."""
    refusal: str | None = None
    """The relay's code when it did not let us in."""
    servers: tuple[str, ...] = ()
    """The STUN and TURN servers that it names to its members, each once."""
    carries_data: bool = False
    """Whether it forwards the data of peers that find no other way."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """What came of two peers in this process that connect to each other."""

    failure: str | None
    """Why it did not work; None when it did."""
    connected: float | None = None
    """Seconds until they were connected."""
    round_trip: float | None = None
    """Seconds for a message there and one back."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was found."""

    network: Network
    loopback: Loopback
    relay: Relay | None
    """None when none was named."""


class Works(StrEnum):
    """Whether a way to connect works."""

    YES = "yes"
    MOSTLY = "mostly"
    NO = "no"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Verdict:
    """About one way to connect."""

    case: str
    works: Works
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that is said."""

    ok: bool
    """Peers will connect, and nothing that was named is broken."""
    summary: str
    verdicts: tuple[Verdict, ...]
    changes: tuple[str, ...]
    """What to change, the most important first."""


def diagnose(facts: Facts) -> Diagnosis:
    """What follows from what was found."""
    here = _this_machine(facts.loopback)
    near = _same_network(facts.network)
    across = _across_nats(facts.network)
    turn = _over_turn(facts.network)
    relay = () if facts.relay is None else _relay(facts.relay)
    verdicts = (here, near, across, turn, *relay)
    ok, summary = _summary(facts, {each.case: each.works for each in verdicts})
    return Diagnosis(
        ok=ok,
        summary=summary,
        verdicts=verdicts,
        changes=tuple(dict.fromkeys(_changes(facts, across.works, turn.works))),
    )


# --- each way -------------------------------------------------------------------------------------

_HERE, _NEAR, _ACROSS, _TURN, _RELAY, _OVER = (
    "on this machine",
    "same network",
    "across NATs",
    "over TURN",
    "relay",
    "over the relay",
)


def _this_machine(loopback: Loopback) -> Verdict:
    if loopback.failure is not None:
        return Verdict(
            _HERE, Works.NO, f"Two peers in this process do not connect: {loopback.failure}."
        )
    return Verdict(_HERE, Works.YES, "Two peers in this process connect and exchange messages.")


def _same_network(network: Network) -> Verdict:
    if not _addresses(network):
        return Verdict(
            _NEAR,
            Works.NO,
            "No network interface with an address is up: peers connect on this machine only.",
        )
    return Verdict(_NEAR, Works.YES, "Peers in the same network connect directly.")


def _across_nats(network: Network) -> Verdict:
    if not _addresses(network):
        return Verdict(_ACROSS, Works.NO, "There is no network.")
    asked = [each for each in network.servers if _is_stun(each)]
    if not asked:
        return Verdict(
            _ACROSS,
            Works.UNKNOWN,
            "No STUN server was named. Without one a peer behind a NAT does not learn the address "
            "that it has outside.",
        )
    if not any(_found(each) for each in asked):
        if _silent(asked):
            return Verdict(_ACROSS, Works.NO, _silence(network))
        return Verdict(_ACROSS, Works.NO, "No STUN server could be asked.")
    # IPv6 helps only with peers that have it too. Of several addresses the best one is used.
    nats = [each for each in network.nats if ":" not in each.address] or list(network.nats)
    nat = min(nats, key=lambda each: list(Mapping).index(each.mapping))
    seen = " and ".join(nat.seen_as)
    match nat.mapping:
        case Mapping.NONE if _is_private(nat.address):
            return Verdict(
                _ACROSS,
                Works.UNKNOWN,
                f"{nat.address} is a private address, and what the servers see as well: they are "
                "on this side of any NAT, and can't tell of it.",
            )
        case Mapping.NONE:
            return Verdict(
                _ACROSS,
                Works.YES,
                f"{nat.address} is what the servers see as well: there is no NAT before it. Peers "
                "behind a NAT connect to it directly, unless a firewall drops UDP.",
            )
        case Mapping.INDEPENDENT:
            return Verdict(
                _ACROSS,
                Works.MOSTLY,
                f"The NAT gives {nat.address} one address for all destinations ({seen}). Peers "
                "behind NATs of this kind connect directly; one behind a symmetric NAT may need "
                "TURN.",
            )
        case Mapping.DEPENDENT:
            return Verdict(
                _ACROSS,
                Works.NO,
                f"The NAT gives {nat.address} another address for each destination ({seen}): it is "
                "symmetric. Only peers without a NAT, or behind one that lets anybody in, connect "
                "directly.",
            )
        case Mapping.UNKNOWN:
            return Verdict(
                _ACROSS,
                Works.UNKNOWN,
                f"There is a NAT, and {nat.address} is {seen} outside. One server can't tell "
                "whether it is so for every destination.",
            )


def _over_turn(network: Network) -> Verdict:
    asked = [each for each in network.servers if not _is_stun(each)]
    if not asked:
        return Verdict(_TURN, Works.UNKNOWN, "No TURN server was named.")
    working = [each.url for each in asked if _found(each)]
    if not working:
        return Verdict(_TURN, Works.NO, "No TURN server gave an address.")
    return Verdict(
        _TURN, Works.YES, f"Who can't connect directly does over {_listed(working, 'or')}."
    )


def _relay(relay: Relay) -> tuple[Verdict, ...]:
    if relay.failure is not None:
        # One that is for other rooms says nothing about the relay.
        works = Works.UNKNOWN if relay.refusal == "forbidden" else Works.NO
        return (Verdict(_RELAY, works, _sentence(relay.failure)),)
    names = f" It names {_listed(list(relay.servers), 'and')}." if relay.servers else ""
    return (
        Verdict(_RELAY, Works.YES, f"Peers find each other at {relay.url}.{names}"),
        Verdict(
            _OVER,
            Works.YES,
            "Who has no other path talks over it, which is slower and not encrypted end to end.",
        )
        if relay.carries_data
        else Verdict(_OVER, Works.NO, "It carries no data of peers that have no other path."),
    )


def _silence(network: Network) -> str:
    if network.nats:  # a TURN server answered the same question
        return (
            "No STUN server answered. A TURN server did over UDP, so it is them, or the way there."
        )
    return "UDP seems blocked: no STUN server answered over UDP."


# --- all of it ------------------------------------------------------------------------------------


def _summary(facts: Facts, works: dict[str, Works]) -> tuple[bool, str]:
    broken = [each.url for each in facts.network.servers if not _found(each)]
    apart = Works.YES in (works[_ACROSS], works[_TURN]) or works[_ACROSS] is Works.MOSTLY
    over = works.get(_OVER) is Works.YES
    if works[_HERE] is Works.NO:
        return False, "Peers will not connect."
    refusal = None if facts.relay is None else facts.relay.refusal
    if refusal == "unauthorized":
        return False, "Peers will not find each other without a join token that the relay takes."
    if refusal == "forbidden":
        return False, "What the relay does is not known: the join token is for others."
    if works.get(_RELAY) is Works.NO:
        return False, "Peers will not find each other: the relay can't be used."
    if works[_NEAR] is Works.NO:
        return False, "Peers will connect on this machine only."
    if not (apart or over) and Works.NO in (works[_ACROSS], works[_TURN]):
        return False, "Peers will connect in the same network only."
    if broken:
        return False, f"Peers will connect, but not with the help of {_listed(broken, 'or')}."
    if over and not apart:
        return True, "Peers will connect, over the relay where there is no other path."
    if not apart:
        return True, "Peers will connect in the same network; beyond it nothing is known."
    return True, "Peers will connect."


def _changes(facts: Facts, across: Works, turn: Works) -> Iterator[str]:
    network = facts.network
    if facts.loopback.failure is not None:
        yield "Let this machine send UDP to its own addresses: a local firewall may forbid it."
    if not _addresses(network):
        yield "Connect this machine to a network, or set one of its interfaces up."
        return
    if facts.relay is not None and facts.relay.refusal == "unauthorized":
        yield "Give a join token that is valid (--join-token, or MESHPEER_JOIN_TOKEN)."
    if facts.relay is not None and facts.relay.refusal == "forbidden":
        yield (
            "Give a join token that is for every room and peer id: what is tried here uses a room "
            "and ids of its own."
        )
    named = () if facts.relay is None else facts.relay.servers
    for each in network.servers:
        if (change := _repair(each, by_relay=each.url in named)) is not None:
            yield change
    stun = [each for each in network.servers if _is_stun(each)]
    if turn is not Works.YES:
        if _silent(stun) and not network.nats:
            yield "Configure a turn:…?transport=tcp or turns: server, which needs no UDP."
        elif across is Works.NO:
            yield "Configure a TURN server, for peers that can't connect directly."
        elif across is Works.MOSTLY:
            yield "Configure a TURN server as well, if peers may be behind symmetric NATs."
    if not stun:
        yield "Name two STUN servers on different hosts (--stun), to know more of the NAT."
    elif across is Works.UNKNOWN:
        yield "Name another STUN server, on another host outside (--stun), to know more of the NAT."


def _repair(report: IceServerReport, *, by_relay: bool) -> str | None:
    url = report.url
    detail = f" ({report.detail})" if report.detail else ""
    match report.outcome:
        case IceServerOutcome.FOUND:
            return None
        case IceServerOutcome.TIMED_OUT:
            over = "TCP" if _over_tcp(url) else "UDP"
            return f"{url} did not answer: is it running, and is {over} to it let through?"
        case IceServerOutcome.REFUSED:
            return f"{url} refused{detail}: is its port right, and does it take more clients?"
        case IceServerOutcome.WRONG_CREDENTIALS if by_relay:
            return (
                f"{url} does not take the credentials that the relay gives{detail}: do both have "
                "the same secret, and do their clocks agree?"
            )
        case IceServerOutcome.WRONG_CREDENTIALS:
            return (
                f"{url} does not take these credentials{detail}: are they right, and still valid?"
            )
        case IceServerOutcome.UNTRUSTED_CERTIFICATE if by_relay:
            return (
                f"The certificate of {url} is not trusted{detail}: is the name the one that is in "
                "it, and its authority one that every member's system trusts?"
            )
        case IceServerOutcome.UNTRUSTED_CERTIFICATE:
            return (
                f"The certificate of {url} is not trusted{detail}: is the name the one that is in "
                "it? --ca-file trusts another authority."
            )
        case IceServerOutcome.NAME_NOT_FOUND:
            return f"The name in {url} can't be resolved: is it spelt right, and does DNS work?"
        case IceServerOutcome.FAILED:
            return f"{url} is of no use: {report.detail or 'nothing is known about why'}."


_PRIVATE = [
    ipaddress.ip_network(each)
    for each in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        "100.64.0.0/10",  # RFC 6598: of a provider's own NAT
        *("169.254.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128"),
    )
]
"""Not what `ipaddress` calls so, which has the ranges for documentation in it."""


def _is_private(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in each for each in _PRIVATE if each.version == ip.version)


def _addresses(network: Network) -> list[str]:
    """Ours that others may reach."""
    hosts = [each.address for each in network.candidates if each.type == "host"]
    return [address for address in hosts if address not in ("127.0.0.1", "::1")]


def _found(report: IceServerReport) -> bool:
    return report.outcome is IceServerOutcome.FOUND


def _is_stun(report: IceServerReport) -> bool:
    return report.url.startswith("stun:")


def _over_tcp(url: str) -> bool:
    return url.startswith("turns:") or url.endswith("transport=tcp")


def _silent(reports: list[IceServerReport]) -> bool:
    return bool(reports) and all(r.outcome is IceServerOutcome.TIMED_OUT for r in reports)


def _listed(names: list[str], word: str) -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."
