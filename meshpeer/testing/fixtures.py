"""The fixtures that the pytest plugin offers. They need pytest-asyncio, in either of its modes."""

from __future__ import annotations

import asyncio
import gc
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from meshpeer.relay import Relay
    from meshpeer.signaling.memory import MemoryHub

__all__ = ["memory_hub", "no_leaks", "relay"]

_FDS = next((path for path in (Path("/proc/self/fd"), Path("/dev/fd")) if path.is_dir()), None)
_JOIN = 1.0
"""Seconds that a thread which was told to end may take for it."""


@pytest_asyncio.fixture
async def _meshpeer_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a task, a file descriptor or a thread is left, naming each.

    So does what the event loop only logs: a task destroyed while pending, an exception that nobody
    retrieved, an error in a callback.

    Ask for it first (``@pytest.mark.usefixtures("no_leaks")``, or make it autouse): then the other
    fixtures are torn down before it looks. It sees the tasks of the test's own event loop; what is
    in the loop's default executor belongs to the loop. Unreferenced objects are collected before,
    so that their warnings belong to this test too. Where the system does not list the open file
    descriptors (Windows), only tasks and threads are looked at.
    """
    # A loop for every test, async or not: wrapped test functions can't be told apart reliably.
    loop: asyncio.AbstractEventLoop = request.getfixturevalue("_meshpeer_loop")
    unhandled: list[str] = []

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        unhandled.append(f"{context.get('message')}: {context.get('exception', context)!r}")
        loop.default_exception_handler(context)

    loop.set_exception_handler(handler)
    tasks = asyncio.all_tasks(loop)
    fds = _open_fds()
    threads = set(threading.enumerate())
    yield
    gc.collect()
    loop.set_exception_handler(None)
    left = [f"task {task!r}" for task in asyncio.all_tasks(loop) - tasks]
    left += [_describe(*item) for item in sorted(_open_fds() - fds)]
    for thread in set(threading.enumerate()) - threads:
        if not thread.name.startswith("asyncio_"):
            thread.join(_JOIN)
            if thread.is_alive():
                left.append(f"thread {thread!r}")
    left += [f"unhandled by the event loop: {what}" for what in unhandled]
    if left:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)


def _open_fds() -> set[tuple[int, str]]:
    """Number and target of each; the target tells a number that was used again."""
    found = set()
    for path in _FDS.iterdir() if _FDS else ():
        with suppress(OSError):  # the one that the listing itself used is closed again
            info = path.stat()
            found.add((int(path.name), f"{stat.S_IFMT(info.st_mode):o}:{info.st_ino}"))
    return found


def _describe(fd: int, target: str) -> str:
    with suppress(OSError):
        target = str((Path("/proc/self/fd") / str(fd)).readlink())
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # it is something else
        return f"fd {fd}: {target}"
    try:
        at: object = sock.getsockname()
        with suppress(OSError):  # when it has no peer
            at = f"{at}, peer {sock.getpeername()}"
        return f"fd {fd}: {sock.family.name} {sock.type.name} socket at {at}"
    finally:
        sock.detach()  # it was only borrowed


@pytest_asyncio.fixture
async def memory_hub() -> AsyncIterator[MemoryHub]:
    """A signalling service in this process: ``PeerManager(memory_hub.transport(), room=...)``."""
    from meshpeer.signaling.memory import MemoryHub

    async with MemoryHub() as hub:
        yield hub


@pytest_asyncio.fixture
async def relay() -> AsyncIterator[Relay]:
    """A relay on a free port of 127.0.0.1: ``PeerManager(relay.url, room=...)``."""
    from meshpeer.config import RelayConfig
    from meshpeer.relay import Relay

    async with Relay(RelayConfig(port=0)) as server:
        yield server
