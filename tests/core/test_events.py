"""Events are values: frozen, comparable, documented."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from meshpeer.core import events
from meshpeer.core.events import (
    Closed,
    Event,
    Joined,
    MeshState,
    PeerState,
    UndeliveredMessage,
)
from meshpeer.errors import MeshError, ProtocolError

_CLASSES = [
    thing
    for thing in vars(events).values()
    if inspect.isclass(thing) and issubclass(thing, Event) and thing is not Event
]
_SAMPLES: dict[str, Any] = {
    "peer_id": "p",
    "messages": (UndeliveredMessage("x", "c"),),
    "room": "r",
    "incarnation": "abcdefgh",
    "resumed": False,
    "state": PeerState.CONNECTED,
    "previous": PeerState.CONNECTING,
    "reason": "connected",
    "path": events.Path.DIRECT,
    "epoch": 1,
    "name": None,
    "metadata": {},
    "error": ProtocolError("no"),
    "ice_state": "connected",
    "pair": None,
    "rtt": None,
    "generation": 0,
    "restarts": 0,
    "seconds": {PeerState.NEW: 1.0},
    "url": "stun:stun.example.org",
    "outcome": events.IceServerOutcome.FOUND,
    "detail": "",
    "address": None,
    "took": 0.1,
    "text": "a notice",
}


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
def test_an_event_is_a_frozen_value_with_a_docstring(cls: type[Event]) -> None:
    assert cls.__name__ in events.__all__
    assert inspect.getdoc(cls)
    needed = {
        field.name: _SAMPLES[field.name]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING
    }
    event = cls(**needed)
    assert event == cls(**needed)
    assert not hasattr(event, "__dict__")
    with pytest.raises(TypeError):
        cls(*needed.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, next(iter(needed)), None)


def test_the_states_are_the_words_that_were_promised() -> None:
    assert [str(state) for state in PeerState] == [
        "new",
        "connecting",
        "connected",
        "disconnected",
        "failed",
        "closed",
    ]
    assert [str(state) for state in MeshState] == [
        "new",
        "joining",
        "joined",
        "reconnecting",
        "closed",
    ]


def test_different_events_are_different() -> None:
    assert Closed(reason="a") != Closed(reason="a", error=MeshError("b"))
    joined = Joined(peer_id="a", room="r", incarnation="abcdefgh", resumed=False)
    assert joined != dataclasses.replace(joined, resumed=True)
