"""Where connections come in: a few at a time, so that a crowd does not hold up who is inside.

asyncio and uvloop take all connections that wait, at once, and set each of them up before anything
else happens: a hundred of them are fifty milliseconds. Here who is one too many is turned away
before anything was spent on it, and the others come in by turns.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import ssl
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from meshpeer.log import Log
from meshpeer.relay.sockets import Socket

__all__ = ["Door"]

_BACKLOG: Final = 4096
"""Connections that the system keeps for us, as far as it lets us."""
_AT_ONCE: Final = 2
"""Connections that are let in before others have their turn."""
_TURNED_AWAY: Final = 1 / 16
"""How much of a turn it costs to turn one away."""
_OUT_OF_FILES: Final = 1.0
"""Seconds to wait for some to become free."""
_TLS_END: Final = 3600.0
"""Seconds that what is left to send, and TLS's goodbye, may take at most."""
_ABORT: Final = struct.pack("ii", 1, 0)
"""A linger of no time: closing sends a reset, and the system keeps nothing (socket(7))."""

_log = Log(part="relay")


class Door:
    """Listens, and lets in.

    ``admit`` is asked for each connection by the address that it comes from, and gives a `Socket`
    for it or None. ``failed`` is told of such a socket that never had a connection, with what is
    to be counted as the reason, if that is the other side's fault. ``tls`` is for all of them; its
    handshake may take ``timeout`` seconds. Its end has no limit of its own: the owner cuts it off.
    """

    def __init__(
        self,
        admit: Callable[[str], Socket | None],
        failed: Callable[[Socket, str | None], None],
        *,
        tls: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        self._admit = admit
        self._failed = failed
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": timeout,
                # Whose sockets these are ends them, when nothing is read from them any more.
                "ssl_shutdown_timeout": _TLS_END,
            }
        self._closing = False
        self._listening: list[sockets.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._entering: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None when it doesn't."""
        if not self._listening:
            return None
        host, port = self._listening[0].getsockname()[:2]
        return host, port

    async def open(self, host: str, port: int) -> None:
        """Listen on every address of ``host``. Raises `OSError`. Nobody is let in yet."""
        try:
            for address in await _resolve(host):
                # Where a name has two, both have the same port.
                family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
                listening = sockets.create_server((address, port), family=family, backlog=_BACKLOG)
                self._listening.append(listening)
                listening.setblocking(False)
                port = listening.getsockname()[1]
        except BaseException:
            self._shut()
            raise

    def start(self) -> None:
        """Let in who comes."""
        for listening in self._listening:
            _own(self._accept(listening), self._accepting)

    async def close(self) -> None:
        """Let nobody in any more. What is inside is not touched."""
        self._closing = True
        loop = asyncio.get_running_loop()
        try:
            # Who has just come is still with the event loop, and would be lost with a task that is
            # cancelled now. So nobody else comes, and then each task has a turn.
            for listening in self._listening:
                with suppress(NotImplementedError):  # by Windows, whose tasks shut what they have
                    loop.remove_reader(listening)
            await asyncio.sleep(0)
            # One after the other: a task that has not begun when it is cancelled never does, and
            # what it was given would be left open.
            for tasks in (self._accepting, self._entering):
                await _end(list(tasks))
        finally:
            for task in (*self._accepting, *self._entering):
                task.cancel()
            self._shut()

    def _shut(self) -> None:
        for listening in self._listening:
            listening.close()
        self._listening.clear()

    async def _accept(self, listening: sockets.socket) -> None:
        loop = asyncio.get_running_loop()
        spent = 0.0
        while not self._closing:
            if spent >= _AT_ONCE:
                spent = 0.0
                await asyncio.sleep(0)
                continue
            try:
                connection, peer = await loop.sock_accept(listening)
            except ConnectionError:
                spent += _TURNED_AWAY  # it was gone again before we looked
                continue
            except OSError as exc:
                _log.warning("no connection can be accepted now", error=str(exc))
                await asyncio.sleep(_OUT_OF_FILES)
                continue
            socket = None
            try:
                if not self._closing:
                    socket = self._admit(peer[0])
            except Exception:  # noqa: BLE001 - nobody waits for this task
                _log.exception("a connection can't be let in", address=peer[0])
            if socket is None:
                _reset(connection)
                spent += _TURNED_AWAY
            else:
                _own(self._let_in(connection, socket), self._entering)
                spent += 1

    async def _let_in(self, connection: sockets.socket, socket: Socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: socket, connection, **self._tls)
        except ssl.SSLError:
            self._failed(socket, "bad_request")
        except ConnectionAbortedError:  # what event loops make of their timeout
            self._failed(socket, "handshake_timeout")
        except OSError:
            self._failed(socket, None)
        except Exception:  # noqa: BLE001 - nobody waits for this task
            self._failed(socket, None)
            _log.exception("a connection can't be let in", address=socket.address)
        except BaseException:
            self._failed(socket, None)
            raise


def _reset(connection: sockets.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _ABORT)
    connection.close()


def _own(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure


async def _resolve(host: str) -> list[str]:
    """The addresses of a name, in the system's order."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, None, type=sockets.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))
    return [host]
