"""Which addresses are used, and that a change of them is told. The changes are real ones, in a
network namespace of each test's own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ifaddr import IP, Adapter

from meshpeer.config import MeshConfig
from meshpeer.rtc import interfaces as module
from meshpeer.rtc.interfaces import interfaces, local_addresses, watch_addresses
from tests.needs import lacking

_LO = ("lo", ("127.0.0.1", "::1"))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what interfaces there are: (name, addresses), and the names of those that are down."""

    def set_to(*listed: tuple[str, tuple[str, ...]], down: tuple[str, ...] = ()) -> None:
        adapters = [
            Adapter(
                name,
                name,
                [IP((ip, 0, 0) if ":" in ip else ip, 24, name) for ip in addresses],
            )
            for name, addresses in listed
        ]
        monkeypatch.setattr("ifaddr.get_adapters", lambda include_unconfigured: adapters)
        monkeypatch.setattr(module, "_is_up", lambda name: name not in down)

    monkeypatch.setattr(module, "_IF_INET6", Path("/does/not/exist"))
    return set_to


class TestChoice:
    def test_every_address_is_used_once_and_loopback_is_not(
        self, host: Callable[..., None]
    ) -> None:
        host(
            _LO,
            ("wlan0", ("192.0.2.9", "2001:db8::9")),
            ("eth0", ("192.0.2.2", "192.0.2.9")),
        )
        assert local_addresses(MeshConfig()) == ("192.0.2.9", "2001:db8::9", "192.0.2.2")

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            (("*",), ("192.0.2.1", "172.17.0.1", "10.8.0.1")),
            (("eth*",), ("192.0.2.1",)),
            (("*", "!docker*"), ("192.0.2.1", "10.8.0.1")),
            (("!docker*", "*"), ("192.0.2.1", "172.17.0.1", "10.8.0.1")),
            (("*", "!*", "tun0"), ("10.8.0.1",)),
            (("!eth0",), ()),
            (("tun[1-9]",), ()),
            (("ETH0",), ()),
        ],
    )
    def test_the_last_pattern_that_matches_counts(
        self, host: Callable[..., None], patterns: tuple[str, ...], expected: tuple[str, ...]
    ) -> None:
        host(("eth0", ("192.0.2.1",)), ("docker0", ("172.17.0.1",)), ("tun0", ("10.8.0.1",)))
        assert local_addresses(MeshConfig(interfaces=patterns)) == expected

    def test_a_label_belongs_to_its_interface(self, host: Callable[..., None]) -> None:
        host(("eth0", ("192.0.2.1",)), ("eth0:1", ("192.0.2.2",)))
        assert local_addresses(MeshConfig(interfaces=("eth0",))) == ("192.0.2.1", "192.0.2.2")
        assert local_addresses(MeshConfig(interfaces=("*", "!eth0"))) == ()

    @pytest.mark.parametrize(
        ("families", "expected"),
        [
            (("ipv4",), ("192.0.2.1",)),
            (("ipv6",), ("2001:db8::1",)),
            (("ipv6", "ipv4"), ("192.0.2.1", "2001:db8::1")),
        ],
    )
    def test_only_the_families_that_are_set(
        self, host: Callable[..., None], families: Any, expected: tuple[str, ...]
    ) -> None:
        host(("eth0", ("192.0.2.1", "2001:db8::1")))
        assert local_addresses(MeshConfig(address_families=families)) == expected

    def test_what_is_link_local_of_ipv6_is_not_used(self, host: Callable[..., None]) -> None:
        host(("eth0", ("fe80::1", "169.254.1.1", "fd00::1")))
        assert local_addresses(MeshConfig()) == ("169.254.1.1", "fd00::1")

    def test_what_is_down_is_not_used(self, host: Callable[..., None]) -> None:
        host(("eth0", ("192.0.2.1",)), ("eth1", ("192.0.2.2",)), down=("eth0",))
        assert local_addresses(MeshConfig()) == ("192.0.2.2",)

    @pytest.mark.parametrize(
        "unfit",
        [
            pytest.param("40", id="tentative"),
            pytest.param("20", id="deprecated"),
            pytest.param("08", id="a duplicate"),
        ],
    )
    def test_an_address_that_should_not_be_bound_is_not_used(
        self,
        host: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        unfit: str,
    ) -> None:
        table = tmp_path / "if_inet6"
        table.write_text(
            f"20010db8000000000000000000000001 02 40 00 {unfit}     eth0\n"
            "20010db8000000000000000000000002 02 40 00 81     eth0\n"
        )
        host(("eth0", ("2001:db8::1", "2001:db8::2")))
        monkeypatch.setattr(module, "_IF_INET6", table)
        assert local_addresses(MeshConfig()) == ("2001:db8::2",)


class TestLoopback:
    def test_it_is_used_when_there_is_nothing_else(self, host: Callable[..., None]) -> None:
        host(("lo", ("::1", "127.0.0.1", "127.0.0.53")), ("eth0", ("192.0.2.1",)), down=("eth0",))
        assert local_addresses(MeshConfig()) == ("127.0.0.1", "::1")
        assert local_addresses(MeshConfig(address_families=("ipv6",))) == ("::1",)

    def test_it_is_not_used_when_it_is_left_out(self, host: Callable[..., None]) -> None:
        host(_LO)
        assert local_addresses(MeshConfig(interfaces=("*", "!lo"))) == ()
        assert local_addresses(MeshConfig(interfaces=("eth*",))) == ()

    def test_another_address_on_it_is_like_any_other(self, host: Callable[..., None]) -> None:
        host(("lo", ("127.0.0.1", "192.0.2.1")))
        assert local_addresses(MeshConfig()) == ("192.0.2.1",)


def test_interfaces_are_listed_with_what_is_used_of_them(host: Callable[..., None]) -> None:
    host(
        _LO,
        ("eth0", ("192.0.2.1", "fe80::1")),
        ("docker0", ("172.17.0.1",)),
        ("ppp0", ()),
        down=("docker0",),
    )
    assert [(i.name, i.addresses, i.up, i.used) for i in interfaces(MeshConfig())] == [
        ("lo", ("127.0.0.1", "::1"), True, False),
        ("eth0", ("192.0.2.1",), True, True),
        ("docker0", ("172.17.0.1",), False, False),
        ("ppp0", (), True, False),
    ]


class TestWatchWithoutNetlink:
    @pytest.fixture(autouse=True)
    def looks_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_LOOK_EVERY", 0.001)

    async def test_a_look_finds_the_change(
        self, host: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none() -> None:
            raise OSError

        monkeypatch.setattr(module, "_netlink", none)
        await self._watch(host)

    @pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
    async def test_an_event_loop_without_readers_looks_too(
        self, host: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", none)
        await self._watch(host)

    async def test_a_system_that_does_not_tell_is_asked_again(
        self, host: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none() -> None:
            raise OSError

        monkeypatch.setattr(module, "_netlink", none)
        host(("eth0", ("192.0.2.1",)))
        answers: Iterator[OSError | set[str]] = iter(
            [OSError(), {"192.0.2.1"}, {"192.0.2.1"}, OSError(), {"192.0.2.2"}]
        )

        def addresses(config: MeshConfig) -> set[str]:
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(module, "local_addresses", addresses)
        with pytest.raises(_Changed):
            await watch_addresses(MeshConfig(), _raise)
        assert list(answers) == []

    async def _watch(self, host: Callable[..., None]) -> None:
        host(("eth0", ("192.0.2.1",)))
        told = asyncio.Event()
        watching = asyncio.create_task(watch_addresses(MeshConfig(), told.set))
        await asyncio.sleep(0)
        host(("eth1", ("192.0.2.2",)))
        await told.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


class _Changed(Exception):
    pass


def _raise() -> None:
    raise _Changed


async def test_a_watch_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    read: list[int] = []
    add, remove = loop.add_reader, loop.remove_reader

    def added(sock: Any, callback: Callable[[], None]) -> None:
        read.append(sock.fileno())
        add(sock, callback)

    def removed(sock: Any) -> bool:
        read.remove(sock.fileno())
        return remove(sock)

    monkeypatch.setattr(loop, "add_reader", added)
    monkeypatch.setattr(loop, "remove_reader", removed)
    watching = asyncio.create_task(watch_addresses(MeshConfig(), _raise))
    await asyncio.sleep(0)
    assert len(read) == (sys.platform == "linux")
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert read == []


# --- real changes ---------------------------------------------------------------------------------

_CHILD = """
import asyncio, json, sys
from meshpeer.config import MeshConfig
from meshpeer.rtc.interfaces import interfaces, local_addresses, watch_addresses
from tests.needs import lacking

config = MeshConfig(**json.loads(sys.argv[2], object_hook=lambda d: {k: tuple(d[k]) for k in d}))

def say(event):
    print(json.dumps([event, *local_addresses(config)]), flush=True)

def read():
    if (line := sys.stdin.readline()) == "wait\\n":
        print("[]", flush=True)
        sys.stdin.readline()
    elif line == "interfaces\\n":
        print(json.dumps([[i.name, i.up] for i in interfaces(config)]), flush=True)

async def main():
    asyncio.get_running_loop().add_reader(sys.stdin, read)
    watching = asyncio.create_task(watch_addresses(config, lambda: say("changed")))
    await asyncio.sleep(0)
    say("start")
    await watching

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


class Host:
    """A network namespace with a process in it that watches."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    def ip(self, *commands: str) -> None:
        """Change it, in the words of ``ip``."""
        text = "\n".join(commands)
        subprocess.run(["ip", "-n", self._name, "-batch", "-"], input=text, text=True, check=True)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def heard(self) -> list[Any]:
        """What the process says next."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the process has ended"
        answer: list[Any] = json.loads(line)
        return answer

    def plug(self, name: str, *addresses: str) -> None:
        """Add an interface with these addresses, and a cable to nowhere in it."""
        self.ip(
            f"link add {name} type veth peer name far-{name}",
            # Without addresses of IPv6's own making, which are news of their own.
            f"link set {name} addrgenmode none",
            f"link set far-{name} addrgenmode none",
            *(f"addr add {address} dev {name} {_at_once(address)}" for address in addresses),
            f"link set {name} up",
            f"link set far-{name} up",
        )


def _at_once(address: str) -> str:
    return "nodad" if ":" in address else ""


@contextmanager
def _namespace() -> Iterator[str]:
    if sys.platform != "linux" or os.geteuid() or shutil.which("ip") is None:
        lacking("network namespaces need Linux, root and ip (iproute2)")
    name = f"meshpeer-{uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@asynccontextmanager
async def _host(loop: str = "asyncio", **config: Any) -> AsyncIterator[Host]:
    with _namespace() as name:
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", name, sys.executable, "-c", _CHILD, loop, json.dumps(config)),
            stdin=PIPE,
            stdout=PIPE,
        )
        try:
            yield Host(name, process)
        finally:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_addresses_come_and_go(loop: str) -> None:
    async with _host(loop) as host:
        assert await host.heard() == ["start"]
        host.ip("link set lo up")
        assert await host.heard() == ["changed", "127.0.0.1", "::1"]
        host.plug("a0", "192.0.2.1/24")
        assert await host.heard() == ["changed", "192.0.2.1"]
        host.ip("addr add 2001:db8::1/64 dev a0 nodad")
        assert await host.heard() == ["changed", "192.0.2.1", "2001:db8::1"]
        host.ip("addr del 192.0.2.1/24 dev a0")
        assert await host.heard() == ["changed", "2001:db8::1"]
        host.ip("link set a0 down")
        assert await host.heard() == ["changed", "127.0.0.1", "::1"]


async def test_a_cable_that_is_pulled_is_noticed() -> None:
    async with _host() as host:
        await host.heard()
        host.plug("a0", "192.0.2.1/24")
        assert await host.heard() == ["changed", "192.0.2.1"]
        host.ip("link set far-a0 down")  # a0 is up as before, and has no carrier
        assert await host.heard() == ["changed"]
        host.say("interfaces")
        assert ["a0", False] in await host.heard()


async def test_an_address_counts_when_it_is_known_to_be_nobody_elses() -> None:
    async with _host() as host:
        await host.heard()
        host.plug("a0")
        host.ip("addr add 2001:db8::1/64 dev a0")
        assert await host.heard() == ["changed", "2001:db8::1"]
        host.ip("addr change 2001:db8::1/64 dev a0 preferred_lft 0")
        assert await host.heard() == ["changed"]


async def test_what_changes_nothing_is_not_told() -> None:
    async with _host(interfaces=("a*",), address_families=("ipv4",)) as host:
        await host.heard()
        host.plug("a0", "192.0.2.1/24")
        assert await host.heard() == ["changed", "192.0.2.1"]
        host.plug("b0", "192.0.2.2/24")
        host.ip("addr add 2001:db8::1/64 dev a0 nodad")
        host.plug("a1", "192.0.2.3/24")
        assert await host.heard() == ["changed", "192.0.2.1", "192.0.2.3"]


async def test_more_news_than_the_socket_keeps_is_news() -> None:
    async with _host() as host:
        await host.heard()
        host.say("wait")
        assert await host.heard() == []
        added = [f"192.0.{n // 250}.{n % 250 + 1}" for n in range(2000)]
        host.plug("a0", *(f"{address}/32" for address in added))
        host.say("go on")
        assert await host.heard() == ["changed", *added]
        host.ip("link set a0 down")
        assert await host.heard() == ["changed"]
