"""What the commands share: reading lines, and words for what went wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from meshpeer import IdentityReplaced, MeshTimeout, RoomFull, SignalingUnavailable
from meshpeer.cli.common import (
    CommandError,
    expected,
    printable,
    read_lines,
    reason_of,
    until_stopped,
)
from meshpeer.cli.view import name_style


async def lines_of(data: bytes, path: Path | None = None) -> list[str]:
    """Through a pipe, or through a file."""
    if path is None:
        fd, writing = os.pipe()
    else:
        writing = os.open(path, os.O_WRONLY | os.O_CREAT)
        fd = os.open(path, os.O_RDONLY)
    os.write(writing, data)
    os.close(writing)
    try:
        return [line async for line in read_lines(fd)]
    finally:
        os.close(fd)


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n\ntwo", ["one", "", "two"]),
        ("grüß\u2028dich\x0b\n".encode(), ["grüß\u2028dich\x0b"]),
        (b"\xff\n\xc3", ["\ufffd", "\ufffd"]),
    ],
)
async def test_lines(data: bytes, lines: list[str], through_file: bool, tmp_path: Path) -> None:
    assert await lines_of(data, tmp_path / "file" if through_file else None) == lines


async def test_a_character_may_come_in_parts_and_a_line_be_too_long(tmp_path: Path) -> None:
    # Chunks have 64 KiB: one ends in the middle of a character of two bytes.
    text = "x" + "ü" * 100_000
    parts = await lines_of(text.encode() + b"\nnext\n", tmp_path / "file")
    assert "".join(parts) == text + "next"
    assert parts[-1] == "next"
    assert max(map(len, parts)) < 100_000


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
async def test_reading_gives_up_when_it_is_told_to(number: signal.Signals | None) -> None:
    reading, writing = os.pipe()
    try:
        async with until_stopped() as stop:
            if number is None:
                stop.now()
            else:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            stop.after(3600)  # does not put it off
            async for _ in read_lines(reading):
                pytest.fail("there was nothing to read")
        stop.now()  # too late, and no error
    finally:
        os.close(reading)
        os.close(writing)


def test_reasons_are_words() -> None:
    assert reason_of(RoomFull("full", code="room_full")) == "room_full"
    assert reason_of(IdentityReplaced("gone", reason="replaced")) == "replaced"
    assert reason_of(CommandError("no", reason="bad_seat")) == "bad_seat"
    assert reason_of(SignalingUnavailable("away")) == "signaling_unavailable"
    assert reason_of(MeshTimeout("late")) == "mesh_timeout"


def test_the_error_with_a_sentence_is_found_in_a_group() -> None:
    error = RoomFull("full", code="room_full")
    group = BaseExceptionGroup("outer", [KeyError(), ExceptionGroup("inner", [error])])
    assert expected(group) is error
    assert expected(KeyError()) is None
    assert expected(ExceptionGroup("none", [KeyError()])) is None


def test_nothing_printable_steers_a_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07\u202ec") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc"
    assert printable("zwei\tZeilen\n👩\u200d🍳") == "zwei\tZeilen\n👩\u200d🍳"


def test_a_colour_is_a_property_of_the_id() -> None:
    assert name_style("a") == name_style("a")
    assert len({name_style(str(n)) for n in range(100)}) > 5
