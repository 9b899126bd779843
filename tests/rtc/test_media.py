"""Media on a connection that restarts: the tracks never notice either."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiortc import RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamTrack

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidatePair, IceServerReport
from meshpeer.rtc.connection import PeerConnection
from meshpeer.rtc.servers import Server


class Quiet:
    """Takes what ICE tells, and keeps the generations that took over."""

    def __init__(self) -> None:
        self.taken_over: asyncio.Queue[int] = asyncio.Queue()

    def servers(self) -> Sequence[Server]:
        return ()

    def candidates_found(self, generation: int, candidates: list[str], end: bool) -> None:
        pass

    def server_reported(self, report: IceServerReport) -> None:
        pass

    def pair_selected(self, generation: int, pair: CandidatePair) -> None:
        self.taken_over.put_nowait(generation)

    def heard(self, answered: bool) -> None:
        pass

    def ponged(self, nonce: int) -> None:
        pass

    def path_lost(self, reason: str) -> None:
        pass

    def path_changed(self) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        raise error


async def negotiate(a: PeerConnection, b: PeerConnection) -> None:
    await a.setLocalDescription(await a.createOffer())
    offer = a.localDescription
    await b.setRemoteDescription(RTCSessionDescription(offer.sdp, offer.type))
    await b.setLocalDescription(await b.createAnswer())
    answer = b.localDescription
    await a.setRemoteDescription(RTCSessionDescription(answer.sdp, answer.type))


async def test_tracks_go_on_over_the_next_generation() -> None:
    told = Quiet(), Quiet()
    failures: list[str] = []
    a, b = (PeerConnection(MeshConfig(), each, failures.append) for each in told)
    try:
        a.addTrack(AudioStreamTrack())
        arriving: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        b.on("track", arriving.set_result)
        await negotiate(a, b)
        track = await arriving
        await track.recv()
        for number in (1, 2):
            a.restart_ice(number)
            b.restart_ice(number)
            await negotiate(a, b)
            for each in told:
                while await each.taken_over.get() != number:
                    pass
            old = [t.generation(number - 1) for pc in (a, b) for t in pc.ice_transports]
            assert old == [None, None]
            for _ in range(10):
                await track.recv()
        assert failures == []
    finally:
        await a.end()
        await b.end()
