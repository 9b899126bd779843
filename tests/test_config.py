"""Every limit has its range, and says so in words a person can act on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from meshpeer.config import IceServer, MeshConfig, RelayConfig
from meshpeer.errors import ConfigError

_WIDE: dict[type, dict[str, Any]] = {
    # What lets one field be at its bounds without running against another.
    MeshConfig: {"ping_interval": 0.05, "silence_timeout": 3600, "max_message_size": 1024},
    RelayConfig: {"max_replay_bytes": 1024, "max_unread": 1 << 32},
}

# class, field, least, greatest
_BOUNDS: list[tuple[type, str, float, float]] = [
    (MeshConfig, "ice_server_timeout", 0.05, 3600),
    (MeshConfig, "connect_timeout", 0.05, 3600),
    (MeshConfig, "candidates_timeout", 0.05, 3600),
    (MeshConfig, "restart_timeout", 0.05, 3600),
    (MeshConfig, "upgrade_first", 0.05, 3600),
    (MeshConfig, "upgrade_max", 0.05, 3600),
    (MeshConfig, "retry_first", 0.01, 3600),
    (MeshConfig, "retry_max", 0.01, 3600),
    (MeshConfig, "ping_interval", 0.05, 3599.5),
    (MeshConfig, "silence_timeout", 0.06, 3600),
    (MeshConfig, "disconnected_timeout", 0.05, 3600),
    (MeshConfig, "stable_after", 0, 3600),
    (MeshConfig, "join_timeout", 0.1, 3600),
    (MeshConfig, "signaling_retry_first", 0.01, 3600),
    (MeshConfig, "signaling_retry_max", 0.01, 3600),
    (MeshConfig, "close_timeout", 0, 60),
    (MeshConfig, "max_message_size", 1024, 16 * 1024 * 1024),
    (MeshConfig, "receive_window", 64 * 1024, 1 << 32),
    (MeshConfig, "send_window", 16 * 1024, 1 << 32),
    (MeshConfig, "channel_window", 32 * 1024, 1 << 30),
    (MeshConfig, "max_channels", 2, 200),
    (MeshConfig, "send_buffer", 16 * 1024, 1 << 30),
    (MeshConfig, "ack_delay", 0, 10),
    (MeshConfig, "max_pending_events", 10, 10_000_000),
    (MeshConfig, "max_pending_signals", 100, 1_000_000),
    (RelayConfig, "port", 0, 65535),
    (RelayConfig, "seat_timeout", 0, 3600),
    (RelayConfig, "join_timeout", 0.1, 3600),
    (RelayConfig, "keepalive_interval", 0.1, 3600),
    (RelayConfig, "restart_delay", 0, 3600),
    (RelayConfig, "max_message_size", 1024, 1 << 30),
    (RelayConfig, "report_interval", 0, 3600),
    (RelayConfig, "admin_attempts", 1, 1_000_000),
    (RelayConfig, "turn_lifetime", 1, 86400),
    (RelayConfig, "max_connections", 1, 10_000_000),
    (RelayConfig, "max_connections_per_address", 1, 10_000_000),
    (RelayConfig, "join_rate", 0.1, 10_000_000),
    (RelayConfig, "join_burst", 1, 10_000_000),
    (RelayConfig, "byte_rate", 1024, 1 << 40),
    (RelayConfig, "byte_burst", 64 * 1024, 1 << 32),
    (RelayConfig, "max_rooms", 1, 10_000_000),
    (RelayConfig, "max_members", 1, 10_000_000),
    (RelayConfig, "message_rate", 0.1, 10_000_000),
    (RelayConfig, "message_burst", 1, 10_000_000),
    (RelayConfig, "max_replay", 1, 10_000_000),
    (RelayConfig, "max_replay_bytes", 1024, 1 << 32),
    (RelayConfig, "max_unread", 1024, 1 << 32),
    (RelayConfig, "forward_window", 0, 1 << 30),
    (RelayConfig, "max_forwarded", 128 * 1024, 1 << 32),
]
_IDS = [f"{owner.__name__}.{name}" for owner, name, _, _ in _BOUNDS]


def _make(owner: type, name: str, value: object) -> Any:
    return owner(**{**_WIDE[owner], name: value})


@pytest.mark.parametrize("owner", [MeshConfig, RelayConfig])
def test_every_number_is_in_the_table_below(owner: type) -> None:
    numbers = {f.name for f in dataclasses.fields(owner) if f.type in ("int", "float")}
    assert numbers == {name for there, name, _, _ in _BOUNDS if there is owner}


def test_the_relay_may_be_no_path_or_one_after_a_while() -> None:
    for good in (None, 0, 3600):
        assert MeshConfig(relay_after=good).relay_after == good
    for bad in (-1, 3601, math.nan, "1"):
        with pytest.raises(ConfigError, match=r"MeshConfig\.relay_after"):
            MeshConfig(relay_after=bad)  # type: ignore[arg-type]


def test_a_window_that_no_frame_fits_into_is_refused() -> None:
    assert RelayConfig(forward_window=128 * 1024).forward_window == 128 * 1024
    with pytest.raises(ConfigError, match="forward_window must be 0 or at least 131072"):
        RelayConfig(forward_window=128 * 1024 - 1)


def test_priorities_are_checked() -> None:
    assert MeshConfig(channel_priorities={"a": "high"}).channel_priorities["a"] == "high"
    with pytest.raises(ConfigError, match="must map names"):
        MeshConfig(channel_priorities="high")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"channel_priorities\['a'\] must be one of very-low"):
        MeshConfig(channel_priorities={"a": "urgent"})  # type: ignore[dict-item]


@pytest.mark.parametrize(("owner", "name", "low", "high"), _BOUNDS, ids=_IDS)
def test_bounds(owner: type, name: str, low: float, high: float) -> None:
    for good in (low, high):
        assert getattr(_make(owner, name, good), name) == good
    below = low - (1 if isinstance(low, int) else 0.01)
    for bad in (below, high + 1, -1, math.nan, math.inf, -math.inf, True, None, "1", [1]):
        with pytest.raises(ConfigError) as caught:
            _make(owner, name, bad)
        text = str(caught.value)
        assert f"{owner.__name__}.{name}" in text
        assert repr(bad) in text or str(bad) in text
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, field.name)
        for owner in (MeshConfig, RelayConfig)
        for field in dataclasses.fields(owner)
        if field.type == "int"
    ],
)
def test_a_count_is_a_whole_number(owner: type, name: str) -> None:
    value = getattr(owner(), name) + 0.5
    with pytest.raises(ConfigError, match=rf"{owner.__name__}\.{name} must be a whole number .*"):
        owner(**{name: value})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: MeshConfig(connect_timeout=0),
            "MeshConfig.connect_timeout must be between 0.05 and 3600, not 0",
        ),
        (
            lambda: RelayConfig(port=70000),
            "RelayConfig.port must be between 0 and 65535, not 70000",
        ),
        (
            lambda: RelayConfig(port=3001.5),  # type: ignore[arg-type]
            "RelayConfig.port must be a whole number between 0 and 65535, not 3001.5",
        ),
        (
            lambda: MeshConfig(on_conflict="steal"),  # type: ignore[arg-type]
            "MeshConfig.on_conflict must be 'reject', 'takeover' or 'rename', not 'steal'",
        ),
        (
            lambda: MeshConfig(ping_interval=3, silence_timeout=3),
            (
                "MeshConfig.silence_timeout (3) must be longer than ping_interval (3), "
                "or a quiet link is never connected"
            ),
        ),
        (
            lambda: MeshConfig(max_message_size=1 << 20, receive_window=1 << 19),
            "MeshConfig.max_message_size (1048576) must fit into receive_window (524288)",
        ),
        (
            lambda: MeshConfig(ice_servers=[IceServer(urls="stun:a")]),  # type: ignore[arg-type]
            "MeshConfig.ice_servers must be a tuple of IceServer, not list",
        ),
        (
            lambda: MeshConfig(ice_servers=("stun:a",)),  # type: ignore[arg-type]
            "MeshConfig.ice_servers must be a tuple of IceServer, not tuple",
        ),
        (
            lambda: MeshConfig(ice_transport_policy="turn"),  # type: ignore[arg-type]
            "MeshConfig.ice_transport_policy must be 'all' or 'relay', not 'turn'",
        ),
        (
            lambda: MeshConfig(interfaces=("eth*", "!")),
            "MeshConfig.interfaces must be a tuple of patterns like 'eth*', not ('eth*', '!')",
        ),
        (
            lambda: MeshConfig(interfaces="eth0"),  # type: ignore[arg-type]
            "MeshConfig.interfaces must be a tuple of patterns like 'eth*', not 'eth0'",
        ),
        (
            lambda: MeshConfig(address_families=("ipv5",)),  # type: ignore[arg-type]
            (
                "MeshConfig.address_families must be a tuple of 'ipv4', 'ipv6' or both, "
                "not ('ipv5',)"
            ),
        ),
        (
            lambda: MeshConfig(address_families=()),
            "MeshConfig.address_families must be a tuple of 'ipv4', 'ipv6' or both, not ()",
        ),
        (
            lambda: RelayConfig(host=""),
            "RelayConfig.host must be an address or a name, not ''",
        ),
        (
            lambda: IceServer(urls="http://a"),
            "IceServer.urls must begin with stun:, turn: or turns:, not 'http://a'",
        ),
        (
            lambda: IceServer(urls=["stun:a", 5]),  # type: ignore[list-item]
            "IceServer.urls must begin with stun:, turn: or turns:, not 5",
        ),
        (lambda: IceServer(urls=[]), "IceServer.urls must be one address or several, not []"),
        (
            lambda: IceServer(urls=None),  # type: ignore[arg-type]
            "IceServer.urls must be one address or several, not None",
        ),
        (
            lambda: IceServer(urls="turn:a", username="u"),
            "IceServer.username and IceServer.credential must be given for 'turn:a'",
        ),
    ],
)
def test_texts(make: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == text


def test_a_mistaken_ice_server_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        MeshConfig(ice_servers=({"urls": "turn:a", "credential": "hunter2"},))  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_credentials_are_not_shown() -> None:
    server = IceServer(urls=("turn:a", "turns:a"), username="u", credential="hunter2")
    assert server.credential == "hunter2"
    assert "hunter2" not in repr(server)
    assert "hunter2" not in repr(MeshConfig(ice_servers=(server,)))


@pytest.mark.parametrize("config", [MeshConfig(), RelayConfig(), IceServer(urls="stun:a")])
def test_frozen(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))
    with pytest.raises((AttributeError, TypeError)):
        config.unknown = 1


@pytest.mark.parametrize("owner", [MeshConfig, RelayConfig])
def test_unknown_settings_are_refused(owner: type) -> None:
    with pytest.raises(TypeError, match="unknown"):
        owner(unknown=1)


@pytest.mark.parametrize("ports", [(1, 65535), (5000, 5000), None])
def test_a_port_range(ports: tuple[int, int] | None) -> None:
    assert MeshConfig(port_range=ports).port_range == ports


@pytest.mark.parametrize(
    "ports", [(0, 5), (5, 4), (1, 65536), (1.0, 2), (1,), (1, 2, 3), "12", 7, ("1", "2")]
)
def test_no_port_range(ports: Any) -> None:
    with pytest.raises(ConfigError, match="port_range must be two ports between 1 and 65535"):
        MeshConfig(port_range=ports)
