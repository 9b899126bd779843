"""A bot that sends back whatever it is told.

Start a relay (``meshpeer relay``), then ``python examples/echo_bot.py [relay-url] [room]``, and
talk to it: ``meshpeer chat lobby``.
"""

import asyncio
import sys
from contextlib import suppress

from meshpeer import PeerClosed, PeerManager


async def main(relay: str = "ws://127.0.0.1:3001", room: str = "lobby") -> None:
    async with PeerManager(relay, room=room, name="echo bot") as mesh:
        print(f"Echoing in {mesh.room}. Ctrl-C ends it.", flush=True)
        async for message in mesh.messages():
            with suppress(PeerClosed):  # it has left meanwhile
                await message.sender.send(message.data, message.channel)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:3]))
