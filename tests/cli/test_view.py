"""What a chat shows of the operator's words."""

from __future__ import annotations

import json

import pytest

from meshpeer.cli.view import JsonView, TextView
from meshpeer.core.events import NoticeReceived

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
