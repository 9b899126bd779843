"""Which event loop the tests of a relay run on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Final

import pytest
import uvloop

_BOTH: Final = ("test_http", "test_tls")
"""What is the event loop's own, and so runs on each that a relay runs on."""


def _uvloop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    loop.run_until_complete(_have_a_stream())
    return loop


async def _have_a_stream() -> None:
    # libuv opens a file for the first one, and keeps it as long as its loop.
    one, other = socket.socketpair()
    with other:
        _, writer = await asyncio.open_connection(sock=one)
        writer.close()
        await writer.wait_closed()


@pytest.hookimpl(optionalhook=True)  # before 1.4 pytest-asyncio has no such thing
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Called for each async test; more than one, and it is run on each."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]]
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in _BOTH:
        factories["uvloop"] = _uvloop
    return factories
