"""The roster: presence, new incarnations, grace, and who dials whom."""

from __future__ import annotations

from meshpeer.core.mesh import CloseLink, Mesh, OpenLink, Reachable, Renamed
from meshpeer.core.messages import Member, MemberLeft, MemberUpdated

A1, A2 = Member("a", "a-first-"), Member("a", "a-second")
C1, C2 = Member("c", "c-first-"), Member("c", "c-second")


def make(*members: Member) -> Mesh:
    """The mesh of "b", in a room with these."""
    mesh = Mesh("b", "b-first-")
    mesh.welcome(members, 30.0, 0.0)
    return mesh


def left(member: Member, reason: str = "left") -> MemberLeft:
    return MemberLeft(member.peer_id, member.incarnation, reason)


def test_the_smaller_id_dials_by_code_point() -> None:
    mesh = Mesh("b", "b-first-")
    others = [Member(name, "incarnation") for name in ("B", "a", "ba", "é", "\U0001f600")]
    assert mesh.welcome(others, 30.0, 0.0) == [
        OpenLink(member, dials=dials)
        for member, dials in zip(others, (False, False, True, True, True), strict=True)
    ]
    assert all(member.peer_id in mesh for member in others)


def test_our_own_id_is_never_a_peer() -> None:
    mesh = make()
    assert mesh.joined(Member("b", "somebody-else")) == []
    assert mesh.welcome([Member("b", "somebody-else")], 30.0, 0.0) == []
    assert "b" not in mesh


def test_somebody_joins_is_updated_and_leaves() -> None:
    mesh = make()
    assert mesh.joined(C1) == [OpenLink(C1, dials=True)]
    assert mesh.updated(MemberUpdated("c", C1.incarnation, "Cee", {"x": 1})) == [
        Renamed(Member("c", C1.incarnation, "Cee", {"x": 1}))
    ]
    assert mesh.left(left(C1)) == [CloseLink("c", C1.incarnation, "left")]
    assert "c" not in mesh
    assert mesh.left(left(C1)) == []
    assert mesh.updated(MemberUpdated("c", C1.incarnation, "Cee")) == []


def test_a_new_incarnation_supersedes() -> None:
    mesh = make(C1)
    assert mesh.joined(C2) == [
        CloseLink("c", C1.incarnation, "superseded"),
        OpenLink(C2, dials=True),
    ]
    # What is said of the old one does not touch the new one.
    assert mesh.left(left(C1)) == []
    assert mesh.updated(MemberUpdated("c", C1.incarnation, "Cee")) == []
    assert mesh.departed("c", C1.incarnation) == []
    assert "c" in mesh


def test_who_is_missing_from_a_new_welcome_has_a_seats_time_to_come_back() -> None:
    mesh = make(A1, C1)
    assert mesh.welcome([A1], 30.0, 100.0) == [
        Reachable("c", reachable=False),
        Reachable("a", reachable=True),
    ]
    assert mesh.next_deadline() == 130.0
    assert mesh.welcome([A1], 30.0, 110.0) == [Reachable("a", reachable=True)]
    assert mesh.next_deadline() == 130.0, "a second restart does not begin it anew"
    assert mesh.tick(129.0) == []
    assert mesh.joined(C1) == [Reachable("c", reachable=True)]
    assert mesh.next_deadline() is None
    assert mesh.tick(200.0) == []


def test_who_does_not_come_back_is_gone_unless_a_path_lives() -> None:
    mesh = make(A1, C1)
    mesh.link_alive("a", alive=True)
    mesh.welcome([], 30.0, 100.0)
    assert mesh.tick(130.0) == [CloseLink("c", C1.incarnation, "timeout")]
    assert "a" in mesh
    assert mesh.next_deadline() is None
    assert mesh.link_alive("a", alive=False) == [CloseLink("a", A1.incarnation, "timeout")]


def test_within_the_grace_a_path_may_break_and_come_back() -> None:
    mesh = make(A1)
    mesh.link_alive("a", alive=True)
    mesh.welcome([], 30.0, 100.0)
    assert mesh.link_alive("a", alive=False) == []
    assert mesh.link_alive("a", alive=True) == []
    assert mesh.tick(130.0) == []
    assert "a" in mesh


def test_a_seat_that_ran_out_does_not_end_a_living_path() -> None:
    mesh = make(C1)
    mesh.link_alive("c", alive=True)
    assert mesh.left(left(C1, "timeout")) == [Reachable("c", reachable=False)]
    assert mesh.resumed(1.0) == []
    assert mesh.signaling_lost() == [], "it was out of reach before"
    assert mesh.joined(C1) == [Reachable("c", reachable=True)]
    assert mesh.left(left(C1)) == [CloseLink("c", C1.incarnation, "left")], "but leaving does"


def test_a_seat_that_ran_out_ends_a_link_without_a_path() -> None:
    mesh = make(C1)
    assert mesh.left(left(C1, "timeout")) == [CloseLink("c", C1.incarnation, "timeout")]
    mesh = make(C1)
    mesh.link_alive("c", alive=True)
    mesh.left(left(C1, "timeout"))
    assert mesh.link_alive("c", alive=False) == [CloseLink("c", C1.incarnation, "timeout")]


def test_signalling_that_goes_and_comes_back() -> None:
    mesh = make(A1, C1)
    assert mesh.signaling_lost() == [
        Reachable("a", reachable=False),
        Reachable("c", reachable=False),
    ]
    assert mesh.resumed(1.0) == [Reachable("a", reachable=True), Reachable("c", reachable=True)]


def test_another_name_in_a_welcome_is_told() -> None:
    mesh = make(C1)
    renamed = Member("c", C1.incarnation, "Cee", {})
    assert mesh.welcome([renamed], 30.0, 1.0) == [Renamed(renamed), Reachable("c", reachable=True)]


def test_a_goodbye_and_the_end() -> None:
    mesh = make(A1, C1)
    assert mesh.departed("a", A2.incarnation) == []
    assert mesh.departed("a", A1.incarnation) == [CloseLink("a", A1.incarnation, "left")]
    mesh.welcome([], 30.0, 1.0)
    assert mesh.close() == [CloseLink("c", C1.incarnation, "closed")]
    assert mesh.close() == []
    assert mesh.next_deadline() is None


def test_nobody_is_given_up_while_the_service_is_away() -> None:
    mesh = make(A1, C1)
    mesh.link_alive("c", alive=True)
    mesh.welcome([], 30.0, 100.0)
    mesh.signaling_lost()
    assert mesh.next_deadline() is None
    assert mesh.tick(200.0) == []
    assert mesh.link_alive("c", alive=False) == []
    assert mesh.welcome([A1], 30.0, 300.0) == [Reachable("a", reachable=True)]
    assert mesh.next_deadline() == 330.0
    mesh.signaling_lost()
    assert mesh.resumed(400.0) == [Reachable("a", reachable=True)]
    assert mesh.tick(430.0) == [CloseLink("c", C1.incarnation, "timeout")]
