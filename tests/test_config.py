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
    RelayConfig: {
        "max_replay_bytes": 1024,
        "max_unread": 1 << 32,
        "max_message_size": 1024,
        "byte_rate": 1 << 40,
    },
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


HALF = "half-\udcff-of-a-character"
"""Of an argument or a variable that is not UTF-8 the system makes such a text."""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("host", ["", HALF, 5]),
        ("tls_cert", ["", "a\0b", b"cert.pem", 5]),
        ("trusted_proxies", ["10.0.0.1", ("",), (HALF,), (True,), (1,), (b"\x0a\0\0\1",), (None,)]),
        ("trusted_proxies", [("10.0.0.1/8",), ("::ffff:10.0.0.0/104",), ("::ffff:10.0.0.1",)]),
        ("join_public_key", [HALF, b"key", 5]),
        ("origins", ["*", (5,), ("",), ("https://",), ("https://a/",), ("https://a b",), (HALF,)]),
        (
            "origins",
            [("https://a:99999",), ("https://a:port",), ("https://a:0",), ("https://:80",)],
        ),
        ("origins", [("https://[::1",), ("https://[nonsense]",), ("https://u:p@a",), ("//a",)]),
        ("origins", [("https://a?b",), ("https://a\0",), (f"https://{HALF}",), ("a", "https://a")]),
        ("admin_user", ["", "a:b", "a\nb", HALF, 5, None]),
        ("turn_urls", ["turn:a", (5,), ("stun:a",), (f"turn:{HALF}",)]),
        ("ice_servers", [[], ("stun:a",), None]),
    ],
)
def test_what_a_relay_can_not_be_given(name: str, values: list[Any]) -> None:
    more = {"tls_key": "key.pem"} if name == "tls_cert" else {}
    for value in values:
        with pytest.raises(ConfigError, match=rf"^RelayConfig\.{name} must "):
            RelayConfig(**{name: value, **more})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "::1"),
        ("trusted_proxies", ("10.0.0.0/8", "192.0.2.1", "2001:db8::/32")),
        ("origins", ("https://app.example.org", "http://[::1]:3000", "https://a:65535", "*")),
        ("origins", ("chrome-extension://abcdefgh", "http://b\u00fccher.example")),
        ("admin_user", "J\u00f6rg the admin"),
        ("admin_password", "p\u00e4ssw\u00f6rd"),
        ("join_secret", "\u00e4" * 16),
        ("tls_cert", HALF),  # names of files are what they are
    ],
)
def test_what_it_can(name: str, value: Any) -> None:
    more = {"tls_key": "key.pem"} if name == "tls_cert" else {}
    assert getattr(RelayConfig(**{name: value, **more}), name) == value


@pytest.mark.parametrize("name", ["join_secret", "admin_password", "turn_secret"])
@pytest.mark.parametrize("value", [f"hunter2-{HALF}-and-much-more-of-it", b"hunter2" * 9, 5, True])
def test_a_secret_that_can_not_be_used_is_not_shown(name: str, value: Any) -> None:
    more = {"turn_urls": ("turn:a",)} if name == "turn_secret" else {}
    with pytest.raises(ConfigError, match=rf"RelayConfig\.{name} must be a str") as caught:
        RelayConfig(**{name: value, **more})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None or "hunter2" not in repr(caught.value.__context__)


@pytest.mark.parametrize("name", ["username", "credential"])
@pytest.mark.parametrize("value", [f"hunter2-{HALF}", b"hunter2", 5])
def test_what_an_ice_server_can_not_be_given(name: str, value: Any) -> None:
    fields = {"username": "u", "credential": "c", name: value}
    with pytest.raises(ConfigError, match=rf"IceServer\.{name} must be a str") as caught:
        IceServer(urls="turn:a", **fields)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"IceServer\.urls must begin"):
        IceServer(urls=f"stun:{HALF}")


def test_a_member_that_sent_too_much_is_read_again_after_one_keepalive() -> None:
    size, interval = 256 * 1024, 10
    least = (size + 1024) / interval
    RelayConfig(byte_rate=least + 0.01, max_message_size=size, keepalive_interval=interval)
    with pytest.raises(ConfigError) as caught:
        RelayConfig(byte_rate=least - 0.01, max_message_size=size, keepalive_interval=interval)
    assert str(caught.value) == (
        "RelayConfig.byte_rate (26316.79) must be at least 26317, so that one keepalive_interval "
        "(10 s) makes up for the largest message (max_message_size, 262144)"
    )


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
