"""What a chat shows of the words of others: the operator's, and those of pages and bots."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshpeer.cli.view import JsonView, TextView
from meshpeer.core.events import NoticeReceived, Path
from meshpeer.peer import Message, Peer

NOTICE = NoticeReceived(text="a restart\x1b]0;title\x07 at noon")


def test_people_read_a_notice_that_can_not_steer_their_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    TextView().event(NOTICE)
    shown = capsys.readouterr().out
    assert shown[9:] == "The relay: a restart\ufffd]0;title\ufffd at noon\n"


def test_programs_get_a_notice_as_it_is(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    JsonView().event(NOTICE)
    assert json.loads(capsysbinary.readouterr().out) == {"event": "notice", "text": NOTICE.text}


@pytest.mark.parametrize(
    ("data", "channel", "shown"),
    [
        ({"text": "hello\x1b[2J"}, "chat", "hello\ufffd[2J"),
        ({"text": "hello", "at": 5}, "chat", "hello"),
        ({"text": 5}, "chat", '{"text": 5}'),
        ({"text": "hello"}, "other", '{"text": "hello"}'),
        ("hello", "default", "hello"),
    ],
)
def test_people_read_what_a_page_says(
    capsys: pytest.CaptureFixture[str], data: Any, channel: str, shown: str
) -> None:
    sender = cast("Peer", SimpleNamespace(id="ann", name="Ann"))
    message = Message(sender=sender, data=data, channel=channel, path=Path.DIRECT, received_at=0)
    TextView().message(message)
    assert capsys.readouterr().out[9:] == f"Ann [direct] {shown}\n"
