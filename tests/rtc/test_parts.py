"""The contract with the private parts of aiortc and aioice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from aioice import ice

import meshpeer.rtc
from meshpeer.rtc import parts

_MANGLED = re.compile(r"_(?:RTC\w+?|StunProtocol|TurnTransport|TurnClientMixin)__\w+")


def test_all_are_there() -> None:
    assert parts.missing_parts() == []


def test_one_that_is_missing_is_told_with_the_versions_that_work() -> None:
    with pytest.raises(ImportError, match=r"lack Connection\._no_such_part: it needs aiortc 1\.16"):
        parts.check(((ice.Connection, "_check_list"), (ice.Connection, "_no_such_part")))


def test_it_is_told_when_meshpeer_is_imported() -> None:
    program = (
        "import aioice.ice\n"
        "del aioice.ice.Connection.check_start_task\n"
        "import meshpeer.rtc.connection\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: meshpeer does not work with aiortc")
    assert "Connection.check_start_task" in last


def test_every_mangled_name_in_use_is_in_the_contract() -> None:
    listed = {name for _, name in parts.ALL}
    folder = Path(meshpeer.rtc.__path__[0])
    used = {name for path in folder.glob("*.py") for name in _MANGLED.findall(path.read_text())}
    assert used <= listed
