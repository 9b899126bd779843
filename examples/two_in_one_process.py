"""Two peers in one process, which meet in memory: no relay, no server, nothing to start.

``python examples/two_in_one_process.py [relay-url] [room]``; with a URL they meet at that relay.
What they say to each other goes over a real WebRTC connection either way.
"""

from __future__ import annotations

import asyncio
import sys

from meshpeer import MemoryHub, PeerManager, SignalingTransport


async def talk(one: PeerManager, other: PeerManager) -> None:
    async with one, other:
        (peer,) = await one.wait_for_peers(timeout=10)
        answers, questions = one.messages(), other.messages()
        await peer.send({"question": "how far is it?"})
        question = await anext(questions)
        print(f"{other.peer_id} heard {question.data} from {question.sender.id}")
        await question.sender.send("not far")
        answer = await anext(answers)
        print(f"{one.peer_id} heard {answer.data!r} ({answer.path})")


async def main(relay: str | None = None, room: str = "lobby") -> None:
    async with MemoryHub() as hub:

        def signaling() -> str | SignalingTransport:
            return relay or hub.transport()

        await talk(
            PeerManager(signaling(), room=room, peer_id="here"),
            PeerManager(signaling(), room=room, peer_id="there"),
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
