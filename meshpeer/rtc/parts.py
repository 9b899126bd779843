"""The private parts of aiortc and aioice that meshpeer builds on, looked for when it is imported.

Neither package can restart ICE, trickle, or ask more than one server; the way to add it is to
override what they do inside. A version that lacks one of these parts is told in one sentence,
instead of failing in the middle of a connection.
"""

from __future__ import annotations

import aioice
import aiortc
from aioice import ice
from aiortc import rtcdtlstransport, rtcicetransport, rtcpeerconnection, rtcsctptransport

from meshpeer.rtc.servers import PRIVATE_PARTS

__all__ = ["ALL", "check", "missing_parts"]

_PARTS: tuple[tuple[type, str], ...] = tuple(
    (owner, name)
    for owner, names in {
        ice.Connection: (
            "_add_remote_candidate",
            "_check_list",
            "_closing",
            "_early_checks",
            "_early_checks_done",
            "_local_candidates",
            "_local_candidates_end",
            "_local_candidates_start",
            "_nominated",
            "_pair_remote_candidate",
            "_protocols",
            "_remote_candidates",
            "_transport_policy",
            "build_request",
            "check_complete",
            "check_incoming",
            "check_start",
            "check_start_task",
            "check_state",
            "protocol_lost",
            "request_received",
            "respond_error",
            "sort_check_list",
            "switch_role",
        ),
        ice.StunProtocol: ("_StunProtocol__closed", "request", "send_stun", "transactions"),
        rtcicetransport.RTCIceGatherer: (
            "_RTCIceGatherer__setState",
            "_connection",
        ),
        rtcicetransport.RTCIceTransport: (
            "_RTCIceTransport__setState",
            "_connection",
            "_recv",
            "_send",
        ),
        rtcpeerconnection.RTCPeerConnection: (
            "_RTCPeerConnection__certificates",
            "_RTCPeerConnection__connect",
            "_RTCPeerConnection__createDtlsTransport",
            "_RTCPeerConnection__dtlsTransports",
            "_RTCPeerConnection__iceTransports",
            "_RTCPeerConnection__pendingLocalDescription",
            "_RTCPeerConnection__pendingRemoteDescription",
            "_RTCPeerConnection__remoteIce",
            "_RTCPeerConnection__setSignalingState",
            "_RTCPeerConnection__updateConnectionState",
            "_RTCPeerConnection__updateIceConnectionState",
            "_RTCPeerConnection__updateIceGatheringState",
        ),
        rtcdtlstransport.RTCDtlsTransport: ("_send_data",),
        rtcsctptransport.RTCSctpTransport: (
            "_rto",
            "_sack_duplicates",
            "_sack_misordered",
            "_send_sack",
            "_sent_queue",
            "_t3_cancel",
            "_t3_expired",
            "_t3_handle",
            "_rttvar",
            "_srtt",
            "_update_rto",
        ),
    }.items()
    for name in names
)


ALL: tuple[tuple[object, str], ...] = ((ice, "_mdns"), *_PARTS, *PRIVATE_PARTS)
"""Owner and attribute of each."""


def missing_parts(parts: tuple[tuple[object, str], ...] = ALL) -> list[str]:
    """Those of ``parts`` (owner, attribute) that are not there."""
    return [
        f"{getattr(owner, '__qualname__', owner)}.{name}"
        for owner, name in parts
        if not hasattr(owner, name) and name not in _set_by_init(owner)
    ]


def _set_by_init(owner: object) -> tuple[str, ...]:
    """The attributes that are made with an instance: the names that ``__init__`` uses."""
    code = getattr(getattr(owner, "__init__", None), "__code__", None)
    return () if code is None else tuple(code.co_names)


def check(parts: tuple[tuple[object, str], ...] = ALL) -> None:
    """Raise ImportError when one is missing, naming the versions that work."""
    if missing := missing_parts(parts):
        raise ImportError(
            f"meshpeer does not work with aiortc {aiortc.__version__} and aioice "
            f"{aioice.__version__}, which lack {', '.join(missing)}: it needs aiortc 1.16 or a "
            "later 1.x, and aioice 0.13"
        )


check()
