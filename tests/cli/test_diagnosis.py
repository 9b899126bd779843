"""Facts in, sentences out: every network that can be met, without meeting it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from meshpeer.cli.diagnosis import Diagnosis, Facts, Loopback, Relay, Verdict, Works, diagnose
from meshpeer.core.events import IceServerOutcome, IceServerReport
from meshpeer.rtc.probe import FoundCandidate, Mapping, Nat, Network

STUN, TURN = "stun:stun.example", "turn:turn.example"
TCP, TLS = "turn:turn.example?transport=tcp", "turns:turn.example"
OUTSIDE = ("203.0.113.7:6000",)
FINE = Loopback(None, 0.03, 0.001)


def report(url: str, outcome: IceServerOutcome = IceServerOutcome.FOUND) -> IceServerReport:
    found = outcome is IceServerOutcome.FOUND
    address = "203.0.113.7:6000" if found else None
    return IceServerReport(
        url=url, outcome=outcome, detail="" if found else "its words", address=address, took=0.1
    )


def network(
    *servers: IceServerReport,
    mapping: Mapping | None = None,
    own: str = "192.168.1.2",
    hosts: tuple[str, ...] | None = None,
) -> Network:
    seen = (f"{own}:5000",) if mapping is Mapping.NONE else OUTSIDE
    return Network(
        interfaces=(),
        candidates=tuple(
            FoundCandidate("host", each, None) for each in ((own,) if hosts is None else hosts)
        ),
        servers=servers,
        nats=() if mapping is None else (Nat(own, mapping, seen),),
    )


def about(
    found: Network, loopback: Loopback = FINE, relay: Relay | None = None
) -> tuple[Diagnosis, dict[str, Verdict]]:
    diagnosis = diagnose(Facts(found, loopback, relay))
    return diagnosis, {each.case: each for each in diagnosis.verdicts}


def test_nothing_was_named() -> None:
    diagnosis, verdicts = about(network())
    assert diagnosis.ok
    assert diagnosis.summary == (
        "Peers will connect in the same network; beyond it nothing is known."
    )
    assert {case: each.works for case, each in verdicts.items()} == {
        "on this machine": Works.YES,
        "same network": Works.YES,
        "across NATs": Works.UNKNOWN,
        "over TURN": Works.UNKNOWN,
    }
    assert diagnosis.changes == (
        "Name two STUN servers on different hosts (--stun), to know more of the NAT.",
    )


@pytest.mark.parametrize(
    ("mapping", "works", "ok", "summary"),
    [
        (Mapping.INDEPENDENT, Works.MOSTLY, True, "Peers will connect."),
        (Mapping.DEPENDENT, Works.NO, False, "Peers will connect in the same network only."),
        (
            Mapping.UNKNOWN,
            Works.UNKNOWN,
            True,
            "Peers will connect in the same network; beyond it nothing is known.",
        ),
    ],
)
def test_a_nat_says_what_works_across_it(
    mapping: Mapping, works: Works, ok: bool, summary: str
) -> None:
    diagnosis, verdicts = about(network(report(STUN), mapping=mapping))
    assert verdicts["across NATs"].works is works
    assert OUTSIDE[0] in verdicts["across NATs"].text
    assert (diagnosis.ok, diagnosis.summary) == (ok, summary)
    assert len(diagnosis.changes) == 1


def test_with_turn_every_nat_will_do() -> None:
    for mapping in Mapping:
        found = network(report(STUN), report(TURN), mapping=mapping, own="198.51.100.1")
        diagnosis, verdicts = about(found)
        assert verdicts["over TURN"].works is Works.YES
        assert TURN in verdicts["over TURN"].text
        assert (diagnosis.ok, diagnosis.summary) == (True, "Peers will connect.")


def test_a_public_address_needs_nothing() -> None:
    found = network(report(STUN), mapping=Mapping.NONE, own="198.51.100.1")
    diagnosis, verdicts = about(found)
    assert verdicts["across NATs"].works is Works.YES
    assert (diagnosis.ok, diagnosis.summary, diagnosis.changes) == (True, "Peers will connect.", ())


@pytest.mark.parametrize("own", ["192.168.1.2", "10.1.1.1", "100.64.0.1", "fd00::1"])
def test_a_server_on_our_side_tells_nothing_of_the_nat(own: str) -> None:
    diagnosis, verdicts = about(network(report(STUN), mapping=Mapping.NONE, own=own))
    assert verdicts["across NATs"].works is Works.UNKNOWN
    assert "private" in verdicts["across NATs"].text
    assert diagnosis.changes == (
        "Name another STUN server, on another host outside (--stun), to know more of the NAT.",
    )


def test_ipv6_does_not_make_up_for_a_nat_of_ipv4() -> None:
    found = network(report(STUN), mapping=Mapping.DEPENDENT)
    six = Nat("2001:db8::1", Mapping.NONE, ("[2001:db8::1]:5000",))
    _, verdicts = about(replace(found, nats=(six, *found.nats)))
    assert verdicts["across NATs"].works is Works.NO
    _, verdicts = about(replace(found, nats=(six,)))
    assert verdicts["across NATs"].works is Works.YES


def test_the_best_of_several_addresses_counts() -> None:
    found = network(report(STUN), mapping=Mapping.DEPENDENT)
    other = Nat("10.8.0.2", Mapping.INDEPENDENT, OUTSIDE)
    _, verdicts = about(replace(found, nats=(*found.nats, other)))
    assert verdicts["across NATs"].works is Works.MOSTLY
    assert "10.8.0.2" in verdicts["across NATs"].text


def test_udp_that_is_blocked() -> None:
    silent = report(STUN, IceServerOutcome.TIMED_OUT)
    diagnosis, verdicts = about(network(silent))
    assert verdicts["across NATs"] == Verdict(
        "across NATs",
        Works.NO,
        "UDP seems blocked: no STUN server answered over UDP.",
    )
    assert not diagnosis.ok
    assert diagnosis.summary == "Peers will connect in the same network only."
    assert diagnosis.changes == (
        f"{STUN} did not answer: is it running, and is UDP to it let through?",
        "Configure a turn:…?transport=tcp or turns: server, which needs no UDP.",
    )


@pytest.mark.parametrize("url", [TCP, TLS])
def test_udp_that_is_blocked_with_turn_over_tcp(url: str) -> None:
    silent = report(STUN, IceServerOutcome.TIMED_OUT)
    diagnosis, verdicts = about(network(silent, report(url)))
    assert verdicts["across NATs"].works is Works.NO
    assert verdicts["over TURN"].works is Works.YES
    assert not diagnosis.ok
    assert diagnosis.summary == f"Peers will connect, but not with the help of {STUN}."
    assert not any("Configure" in each for each in diagnosis.changes)


def test_udp_is_not_blocked_when_a_turn_server_answers() -> None:
    silent = report(STUN, IceServerOutcome.TIMED_OUT)
    diagnosis, verdicts = about(network(silent, report(TURN), mapping=Mapping.UNKNOWN))
    assert "UDP seems blocked" not in verdicts["across NATs"].text
    assert "A TURN server did" in verdicts["across NATs"].text
    refusing = report(TURN, IceServerOutcome.WRONG_CREDENTIALS)
    diagnosis, _ = about(network(silent, refusing, mapping=Mapping.UNKNOWN))
    assert "Configure a TURN server, for peers that can't connect directly." in diagnosis.changes


@pytest.mark.parametrize("outcome", [o for o in IceServerOutcome if o != IceServerOutcome.FOUND])
@pytest.mark.parametrize("url", [STUN, TURN, TCP, TLS])
def test_each_server_that_fails_is_named_with_what_to_do(
    url: str, outcome: IceServerOutcome
) -> None:
    good = [report("stun:another.example"), report("turn:another.example")]
    found = network(report(url, outcome), *good, mapping=Mapping.INDEPENDENT)
    diagnosis, _ = about(found)
    assert not diagnosis.ok
    assert diagnosis.summary == f"Peers will connect, but not with the help of {url}."
    (change,) = diagnosis.changes
    assert url in change
    if outcome not in (IceServerOutcome.TIMED_OUT, IceServerOutcome.NAME_NOT_FOUND):
        assert "its words" in change
    if outcome is IceServerOutcome.TIMED_OUT:
        assert ("TCP" if url in (TCP, TLS) else "UDP") in change


def test_no_turn_server_works() -> None:
    broken = report(TURN, IceServerOutcome.WRONG_CREDENTIALS)
    diagnosis, verdicts = about(network(broken))
    assert verdicts["over TURN"].works is Works.NO
    assert not diagnosis.ok
    diagnosis, _ = about(network(broken, report(STUN), mapping=Mapping.INDEPENDENT))
    assert not diagnosis.ok
    assert diagnosis.summary == f"Peers will connect, but not with the help of {TURN}."


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1", "::1")])
def test_there_is_no_network(hosts: tuple[str, ...]) -> None:
    failed = report(STUN, IceServerOutcome.FAILED)
    diagnosis, verdicts = about(network(failed, hosts=hosts))
    assert verdicts["same network"].works is Works.NO
    assert verdicts["across NATs"].works is Works.NO
    assert (diagnosis.ok, diagnosis.summary) == (False, "Peers will connect on this machine only.")
    assert len(diagnosis.changes) == 1


def test_peers_that_do_not_connect_on_this_machine() -> None:
    diagnosis, verdicts = about(network(), Loopback("they were not connected within 5 s"))
    assert verdicts["on this machine"].works is Works.NO
    assert "within 5 s." in verdicts["on this machine"].text
    assert (diagnosis.ok, diagnosis.summary) == (False, "Peers will not connect.")
    assert "firewall" in diagnosis.changes[0]


def test_the_relay() -> None:
    url = "ws://relay.example:3001"
    diagnosis, verdicts = about(network(), relay=Relay(url, None, 0.01, 0.001))
    assert verdicts["relay"] == Verdict("relay", Works.YES, f"Peers find each other at {url}.")
    assert diagnosis.ok
    diagnosis, verdicts = about(network(), relay=Relay(url, "no relay answers there"))
    assert verdicts["relay"] == Verdict("relay", Works.NO, "No relay answers there.")
    assert not diagnosis.ok
    assert diagnosis.summary == "Peers will not find each other: the relay can't be used."


@pytest.mark.parametrize(
    ("refusal", "works", "summary", "change"),
    [
        (
            "unauthorized",
            Works.NO,
            "Peers will not find each other without a join token that the relay takes.",
            "Give a join token that is valid (--join-token, or MESHPEER_JOIN_TOKEN).",
        ),
        (
            "forbidden",
            Works.UNKNOWN,
            "What the relay does is not known: the join token is for others.",
            (
                "Give a join token that is for every room and peer id: what is tried here uses a "
                "room and ids of its own."
            ),
        ),
        (
            "room_full",
            Works.NO,
            "Peers will not find each other: the relay can't be used.",
            "Name two STUN servers on different hosts (--stun), to know more of the NAT.",
        ),
    ],
)
def test_a_relay_that_lets_nobody_in(refusal: str, works: Works, summary: str, change: str) -> None:
    relay = Relay("ws://relay.example", "its words", refusal=refusal)
    diagnosis, verdicts = about(network(), relay=relay)
    assert verdicts["relay"] == Verdict("relay", works, "Its words.")
    assert "over the relay" not in verdicts
    assert (diagnosis.ok, diagnosis.summary) == (False, summary)
    assert diagnosis.changes[0] == change


def over(carries_data: bool = True, *servers: str) -> Relay:
    return Relay(
        "ws://relay.example", None, 0.01, 0.001, servers=servers, carries_data=carries_data
    )


def test_what_a_relay_does_without_another_path() -> None:
    symmetric = network(report(STUN), mapping=Mapping.DEPENDENT)
    diagnosis, verdicts = about(symmetric, relay=over())
    assert verdicts["over the relay"].works is Works.YES
    assert (diagnosis.ok, diagnosis.summary) == (
        True,
        "Peers will connect, over the relay where there is no other path.",
    )
    assert "Configure a TURN server, for peers that can't connect directly." in diagnosis.changes
    diagnosis, verdicts = about(symmetric, relay=over(carries_data=False))
    assert verdicts["over the relay"].works is Works.NO
    assert (diagnosis.ok, diagnosis.summary) == (
        False,
        "Peers will connect in the same network only.",
    )
    diagnosis, _ = about(replace(symmetric, servers=(report(TURN),)), relay=over())
    assert (diagnosis.ok, diagnosis.summary) == (True, "Peers will connect.")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (IceServerOutcome.WRONG_CREDENTIALS, "the credentials that the relay gives"),
        (IceServerOutcome.UNTRUSTED_CERTIFICATE, "that every member's system trusts"),
    ],
)
def test_servers_that_the_relay_names_are_its_operator_s_to_mend(
    outcome: IceServerOutcome, said: str
) -> None:
    found = network(report(TLS, outcome), report(TURN, outcome))
    diagnosis, verdicts = about(found, relay=over(True, TLS))
    assert verdicts["relay"].text.endswith(f" It names {TLS}.")
    assert not diagnosis.ok
    of_relay, of_user, *_ = diagnosis.changes
    assert (TLS in of_relay, said in of_relay) == (True, True)
    assert (TURN in of_user, said in of_user) == (True, False)


def test_every_combination_has_whole_sentences() -> None:
    """And is well only when nothing that was named is broken."""
    outcomes = [None, *IceServerOutcome]
    for stun, turn, mapping, own in product(
        outcomes, outcomes, Mapping, ("192.168.1.2", "198.51.100.1")
    ):
        servers = [report(STUN, stun)] if stun else []
        servers += [report(TURN, turn)] if turn else []
        answered = IceServerOutcome.FOUND in (stun, turn)
        diagnosis, verdicts = about(
            network(*servers, mapping=mapping if answered else None, own=own)
        )
        for text in [*(v.text for v in verdicts.values()), *diagnosis.changes, diagnosis.summary]:
            assert text[0].isupper() or text.startswith((STUN, TURN, own))
            assert text.endswith((".", "?"))
        broken = {stun, turn} - {None, IceServerOutcome.FOUND}
        assert not (diagnosis.ok and broken)
        assert diagnosis.ok or diagnosis.changes
