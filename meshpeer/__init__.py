"""Peers that find each other, connect directly over WebRTC data channels, and stay connected.

::

    async with PeerManager("ws://localhost:3001", room="lobby", name="echo bot") as mesh:
        async for message in mesh.messages():
            await message.sender.send(message.data)

Names are loaded when they are first used, so that a host that only runs the relay never loads
aiortc.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshpeer.config import IceServer, MeshConfig, RelayConfig
    from meshpeer.core.events import (
        BadInput,
        CandidateInfo,
        CandidatePair,
        Closed,
        ConnectionReport,
        Event,
        IceServerOutcome,
        IceServerReport,
        Joined,
        MeshState,
        MessagesUndelivered,
        NoticeReceived,
        Path,
        PeerJoined,
        PeerLeft,
        PeerState,
        PeerStateChanged,
        PeerUpdated,
        Replaced,
        SignalingChanged,
        UndeliveredMessage,
    )
    from meshpeer.errors import (
        ChannelClosed,
        ClosedError,
        ConfigError,
        ConnectionFailed,
        Forbidden,
        IdentityReplaced,
        InvalidData,
        MeshClosed,
        MeshError,
        MeshTimeout,
        MessageTooLarge,
        NetworkError,
        PeerClosed,
        PeerIdTaken,
        ProtocolError,
        RateLimited,
        RefusedError,
        RemoteError,
        Removed,
        RequestFailed,
        RoomFull,
        SignalingBacklog,
        SignalingUnavailable,
        SlowReader,
        TooManyChannels,
        TooManyRooms,
        TransferFailed,
        Unauthorized,
        Undelivered,
        UnexpectedInput,
        UsageError,
    )
    from meshpeer.files import FileProgress, FileReceived, FileSent
    from meshpeer.manager import MeshStats, PeerManager, PeerStats
    from meshpeer.peer import Channel, ChannelOpened, Message, PathTest, Peer
    from meshpeer.relay import (
        Authenticator,
        Grant,
        JoinRequest,
        JoinTokens,
        Relay,
        make_join_token,
    )
    from meshpeer.signaling.base import SignalingTransport
    from meshpeer.signaling.memory import MemoryHub
    from meshpeer.signaling.websocket import WebSocketTransport

__version__ = "0.1.0"

__all__ = [
    "Authenticator",
    "BadInput",
    "CandidateInfo",
    "CandidatePair",
    "Channel",
    "ChannelClosed",
    "ChannelOpened",
    "Closed",
    "ClosedError",
    "ConfigError",
    "ConnectionFailed",
    "ConnectionReport",
    "Event",
    "FileProgress",
    "FileReceived",
    "FileSent",
    "Forbidden",
    "Grant",
    "IceServer",
    "IceServerOutcome",
    "IceServerReport",
    "IdentityReplaced",
    "InvalidData",
    "JoinRequest",
    "JoinTokens",
    "Joined",
    "MemoryHub",
    "MeshClosed",
    "MeshConfig",
    "MeshError",
    "MeshState",
    "MeshStats",
    "MeshTimeout",
    "Message",
    "MessageTooLarge",
    "MessagesUndelivered",
    "NetworkError",
    "NoticeReceived",
    "Path",
    "PathTest",
    "Peer",
    "PeerClosed",
    "PeerIdTaken",
    "PeerJoined",
    "PeerLeft",
    "PeerManager",
    "PeerState",
    "PeerStateChanged",
    "PeerStats",
    "PeerUpdated",
    "ProtocolError",
    "RateLimited",
    "RefusedError",
    "Relay",
    "RelayConfig",
    "RemoteError",
    "Removed",
    "Replaced",
    "RequestFailed",
    "RoomFull",
    "SignalingBacklog",
    "SignalingChanged",
    "SignalingTransport",
    "SignalingUnavailable",
    "SlowReader",
    "TooManyChannels",
    "TooManyRooms",
    "TransferFailed",
    "Unauthorized",
    "Undelivered",
    "UndeliveredMessage",
    "UnexpectedInput",
    "UsageError",
    "WebSocketTransport",
    "__version__",
    "make_join_token",
]

# Where each name lives; looked through in this order, the light modules first.
_MODULES = (
    "meshpeer.errors",
    "meshpeer.config",
    "meshpeer.core.events",
    "meshpeer.signaling.base",
    "meshpeer.signaling.memory",
    "meshpeer.signaling.websocket",
    "meshpeer.relay",
    "meshpeer.peer",
    "meshpeer.files",
    "meshpeer.manager",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module_name in _MODULES:
            module = import_module(module_name)
            if name in module.__all__:
                value = getattr(module, name)
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
