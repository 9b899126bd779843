"""What the commands share: running until told to stop, sentences for errors, logging, input."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import structlog
import typer

from meshpeer.errors import ClosedError, MeshError, RefusedError

__all__ = [
    "CommandError",
    "JoinTokenOption",
    "LogJson",
    "LogLevel",
    "LogLevelOption",
    "Stop",
    "configure_logging",
    "expected",
    "input_fd",
    "open_streams",
    "printable",
    "read_lines",
    "reason_of",
    "run",
    "told_at_the_end",
    "until_stopped",
]

_CHUNK = 64 * 1024
_MAX_LINE = 64 * 1024


class CommandError(Exception):
    """A sentence for the person at the terminal. ``reason`` is one word for programs."""

    def __init__(self, text: str, *, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


JoinTokenOption = Annotated[
    str | None,
    typer.Option(
        "--join-token",
        metavar="TOKEN",
        envvar="MESHPEER_JOIN_TOKEN",
        help="What `meshpeer token` made, where the relay takes only who has one. Other users of "
        "this machine may see the options of a command, not its environment.",
    ),
]


def reason_of(error: MeshError | CommandError) -> str:
    """One word for programs: the relay's code, the reason, or the name of the error."""
    match error:
        case RefusedError():
            return error.code
        case ClosedError() | CommandError():
            return error.reason
        case _:
            return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


# --- standard streams ---------------------------------------------------------------------------


def open_streams() -> None:
    """Make standard streams that are closed the null device, and the others take every character.

    A closed one's number would go to the next file or socket, and what is printed into that. Names
    and messages come from anywhere: what an encoding does not have is shown as a "?".
    """
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    sys.stderr = sys.stderr or _null("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _null(mode: str) -> TextIO:
    return cast("TextIO", Path(os.devnull).open(mode))


# --- running --------------------------------------------------------------------------------------


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run a command to its exit status, on uvloop where that is installed.

    What can be put right by the person who started it is said in one sentence, with status 1.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):  # not installed, or not made for this platform
        import uvloop

        factory = uvloop.new_event_loop
    status = 1
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            status = runner.run(main())
    except (MeshError, CommandError, BrokenPipeError, BaseExceptionGroup) as exc:
        match expected(exc):
            case None:
                raise
            case BrokenPipeError():
                # Nobody reads any more. Nor may the interpreter try to flush when it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            case error:
                print(f"meshpeer: {error}", file=sys.stderr)
    raise typer.Exit(status)


def expected(exc: BaseException) -> BaseException | None:
    """The error that there is a sentence for, in ``exc`` or in the group that it is."""
    if isinstance(exc, BaseExceptionGroup):
        return next((found for e in exc.exceptions if (found := expected(e))), None)
    return exc if isinstance(exc, MeshError | CommandError | BrokenPipeError) else None


class Stop:
    """Ends the body of `until_stopped`."""

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope = scope

    def now(self) -> None:
        """End it now. Nothing happens when it has ended."""
        self.after(0)

    def after(self, seconds: float) -> None:
        """End it in so many seconds, unless it was told to end before."""
        at = asyncio.get_running_loop().time() + seconds
        planned = self._scope.when()
        if planned is None or at < planned:
            with suppress(RuntimeError):  # it has ended
                self._scope.reschedule(at)


@contextmanager
def told_at_the_end(closed: Callable[[str], None]) -> Iterator[None]:
    """Call ``closed`` with the one word for why it ended: that of the error, or ``closed``."""
    try:
        yield
    except (MeshError, CommandError, BaseExceptionGroup) as exc:
        error = expected(exc)
        if isinstance(error, MeshError | CommandError):
            closed(reason_of(error))
        raise
    closed("closed")


@asynccontextmanager
async def until_stopped() -> AsyncIterator[Stop]:
    """Cancel the body at SIGINT, at SIGTERM, or by `Stop`; what comes after it runs on.

    A second signal does nothing: what follows is leaving, and that has its own deadlines.
    """
    scope = asyncio.timeout(None)
    stop = Stop(scope)
    with _signals(stop.now):
        try:
            async with scope:
                yield stop
        except TimeoutError:
            if not scope.expired():
                raise


@contextmanager
def _signals(callback: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in signals:
            loop.add_signal_handler(number, callback)
    except NotImplementedError:  # Windows

        def handler(*_: object) -> None:
            loop.call_soon_threadsafe(callback)

        before = [(number, signal.signal(number, handler)) for number in signals]
        try:
            yield
        finally:
            for number, old in before:
                signal.signal(number, old)
        return
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


# --- logging --------------------------------------------------------------------------------------


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevelOption = Annotated[
    LogLevel, typer.Option(help="The least that is logged, on standard error.")
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log as JSON, one object a line.")]


def configure_logging(level: LogLevel, as_json: bool) -> None:
    """Configure structlog: readable lines on a terminal and elsewhere, or JSON, to stderr."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="iso" if as_json else "%H:%M:%S", utc=as_json, key="timestamp"
            ),
            *([structlog.processors.dict_tracebacks] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level.value),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


# --- standard input -------------------------------------------------------------------------------


def input_fd() -> int | None:
    """The file descriptor of standard input; None when it is the null device."""
    fd = sys.stdin.fileno()
    return None if os.path.samestat(os.fstat(fd), Path(os.devnull).stat()) else fd


async def read_lines(fd: int) -> AsyncIterator[str]:
    """The lines of ``fd``, without their ends, until its end. A very long one comes in parts.

    Reads when the next line is asked for. Cancelling it leaves no thread that an exit waits for.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while data := await _read(fd):
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        for line in lines:
            yield line.removesuffix("\r")
        if len(rest) > _MAX_LINE:
            yield rest
            rest = ""
    if rest := rest + decoder.decode(b"", final=True):
        yield rest


async def _read(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        # The descriptor stays blocking: a terminal's is shared with the output, and with the shell.
        loop.add_reader(fd, ready.set)
    except (OSError, NotImplementedError):
        return await _read_in_thread(fd)  # a file, which is always ready; or Windows
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, _CHUNK)


async def _read_in_thread(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(data)
        else:
            done.set_exception(error)

    def read() -> None:
        data, error = b"", None
        try:
            data = os.read(fd, _CHUNK)
        except OSError as exc:
            error = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, data, error)

    threading.Thread(target=read, name="meshpeer input", daemon=True).start()
    return await done


def printable(text: str) -> str:
    """``text`` without what would steer a terminal: escapes, or a change of direction."""
    return "".join(c if c.isprintable() or c in "\t\n\u200d" else "\ufffd" for c in text)
