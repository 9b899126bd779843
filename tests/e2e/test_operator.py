"""What an operator sees of real processes: three bots in two rooms, and one of them is killed."""

from __future__ import annotations

from typing import Any

from meshpeer.relay import Relay
from tests.cli.processes import Command, starter
from tests.relay.test_admin_relay import api, ask, dashboard


async def test_three_bots_in_two_rooms(relay: Relay) -> None:
    async with starter() as start, dashboard(relay) as page:
        await page.say(type="watch", room="lobby")
        bots: dict[str, Command] = {}
        for name, where in (("Ann", "lobby"), ("Ben", "lobby"), ("Cid", "hall")):
            bots[name] = await start("chat", where, "--relay", relay.url, "--json", "--name", name)

        def linked(room: dict[str, Any] | None) -> bool:
            sides = [s for link in (room or {"links": []})["links"] for s in _sides(link)]
            return [s and (s["state"], s["path"]) for s in sides] == [("connected", "direct")] * 2

        while not linked(room := (await page.until("room"))["room"]):
            pass
        assert sorted(m["displayName"] for m in room["members"]) == ["Ann", "Ben"]
        while _counts((await page.until("overview"))["rooms"]) != {"lobby": (2, 1), "hall": (1, 0)}:
            pass

        # The same numbers, whoever asks.
        status = await api(relay, "mesh-status")
        metrics = status["metrics"]
        assert metrics["activeP2PConnections"] == 1
        assert metrics["successfulP2PConnections"] == 1
        assert metrics["meshUpgradeRate"] == 1.0
        assert {c["displayName"]: len(c["p2pPeers"]) for c in status["connections"]} == {
            "Ann": 1,
            "Ben": 1,
            "Cid": 0,
        }
        rooms = (await api(relay, "rooms"))["rooms"]
        assert _counts(rooms) == {"lobby": (2, 1), "hall": (1, 0)}
        text = (await ask(relay, "/metrics"))[2].decode()
        assert 'meshpeer_mesh_pairs{path="direct"} 1.0' in text.splitlines()

        await bots["Ben"].kill()
        while True:
            members = (await page.until("room"))["room"]["members"]
            presence = {m["displayName"]: m["presence"] for m in members}
            if presence == {"Ann": "present", "Ben": "away"}:
                break


def _sides(link: dict[str, Any]) -> tuple[Any, Any]:
    return link["aSide"], link["bSide"]


def _counts(rooms: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {room["roomId"]: (room["members"], room["direct"]) for room in rooms}
