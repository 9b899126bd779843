"""docs/protocol.md says what the code does: its examples, its codes, its numbers."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections import deque
from types import ModuleType

import pytest

from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.core import (
    delivery,
    forward,
    frames,
    link,
    messages,
    node,
    restart,
    rooms,
    session,
    values,
)
from meshpeer.core.frames import (
    Ack,
    Bye,
    Channel,
    Frame,
    Limit,
    Open,
    Part,
    Parts,
    Ping,
    Pong,
    Resume,
    Run,
    Start,
    encode_message,
)
from meshpeer.core.messages import LinkReport, decode_client, decode_link, decode_relay
from meshpeer.core.rooms import Rooms, Send
from meshpeer.core.values import Kind
from tests.docs.blocks import blocks
from tests.docs.generate import DOCS

_PAGE = (DOCS / "protocol.md").read_text(encoding="utf-8")
_LINE = re.compile(r"(?P<socket>\w+) (?P<what>→|←|closed|dropped)(?: (?P<rest>.+))?")


def test_the_exchange_is_what_the_relay_says() -> None:
    tokens = (f"secret-number-{number:03}" for number in itertools.count(1))
    relay = Rooms(RelayConfig(), new_token=lambda: next(tokens))
    sockets: dict[str, int] = {}
    said: deque[rooms.Output] = deque()
    lines = "".join(b.text for b in blocks("protocol.md") if b.kind == "text exchange").splitlines()
    assert lines
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match, line
        name, what, rest = match.groups()
        if what in ("→", "dropped"):
            assert not said, f"the relay says more before {line}"
        if what == "→":
            decode_client(rest)
            if name not in sockets:
                sockets[name] = len(sockets)
                relay.opened(sockets[name], 0)
            said += relay.received(sockets[name], rest, 0)
        elif what == "dropped":
            said += relay.dropped(sockets[name], 0)
        else:
            output = said.popleft()
            assert output.conn == sockets[name], line
            if isinstance(output, Send):
                assert what == "←", line
                assert decode_relay(output.data) == decode_relay(rest)
            else:
                assert isinstance(output, rooms.Shut)
                assert (what, int(rest)) == ("closed", output.code), line
    assert not said


def test_the_examples_of_link_messages_decode() -> None:
    lines = "".join(b.text for b in blocks("protocol.md") if b.kind == "json peer").splitlines()
    assert lines
    for line in lines:
        decode_link(line.encode())


def test_the_examples_of_other_messages_of_the_relay_decode() -> None:
    lines = "".join(b.text for b in blocks("protocol.md") if b.kind == "json relay").splitlines()
    assert lines
    for line in lines:
        decode_relay(line)


def test_the_examples_of_other_messages_of_a_client_decode() -> None:
    lines = "".join(b.text for b in blocks("protocol.md") if b.kind == "json client").splitlines()
    assert lines
    for line in lines:
        decode_client(line)


def test_the_places_of_a_link_in_a_report_are_those_of_the_code() -> None:
    places = re.findall(r"^\| (\d+) \| `(\w+)` \|", _PAGE, re.MULTILINE)
    fields = LinkReport.__struct_fields__
    assert places == [(str(place), name) for place, name in enumerate(fields)]


def test_every_action_of_the_tables_is_explained() -> None:
    rows = {name for row in _first_cells() for name in re.findall(r"`(\w+)`", row)}
    for table in ([row.actions for row in link.TABLE], [row.actions for row in restart.TABLE]):
        assert {action for actions in table for action in actions} <= rows


def test_the_examples_of_frames_decode() -> None:
    shown = [
        frames.decode(bytes.fromhex(match))
        for match in re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \|", _PAGE, re.MULTILINE)
    ]
    text, json, data = (frames.FIRST | frames.LAST | kind << 2 for kind in (1, 2, 0))
    request = text | frames.Role.REQUEST << 4
    expected: list[Frame] = [
        Parts([Run(0, 0, [Part(text, 0, 0, b"hi")])]),
        Parts(
            [
                Run(0, 3, [Part(text, 0, 0, b"a"), Part(data, 0, 0, b"")]),
                Run(1, 0, [Part(json, 0, 0, b"null")]),
            ]
        ),
        Parts([Run(0, 0, [Part(request, 0, 300, b"?")])]),
        Resume(2, True, 16_777_216, 32, 524_288, [Limit(0, 7, 525_318)]),
        Start(2, [Channel(0, 7, 1030, "default")]),
        Open(1, "chat"),
        Ack([Limit(0, 8, 525_448)]),
        Ping(0),
        Pong(2147483649),
        Bye(),
    ]
    assert shown == expected
    assert {
        frame.split("`")[1] for frame in re.findall(r"^\| 0x1\d \| .*$", _PAGE, re.MULTILINE)
    } == {type(frame).__name__.lower() for frame in expected}


def test_the_exchange_of_frames_is_what_two_sides_say() -> None:
    sides = {name: delivery.Delivery(MeshConfig()) for name in "ab"}
    attached: dict[str, bytes] = {}
    path = -1
    text = "".join(b.text for b in blocks("protocol.md") if b.kind == "text frames")
    assert text
    for line in text.splitlines():
        name, what, *rest = line.split()
        if name == "path":
            for each in sides.values():
                each.detach(path)
            continue
        side = sides[name]
        if what == "accepts":
            message = encode_message(Kind.TEXT, rest[0].strip('"').encode())
            side.accept(delivery.Outgoing(rest[2], 2, message))
        elif what == "attaches":
            path = int(rest[1])
            attached[name] = side.attach(path, ask=True)
        else:
            lost = rest[-1] == "(lost)"
            data = bytes.fromhex("".join(rest[:-1] if lost else rest))
            assert what == "→"
            assert (attached.pop(name, None) or side.pull(65_536)) == data, line
            if not lost:
                _arrives(sides["b" if name == "a" else "a"], path, frames.decode(data))
    assert [side.pull(65_536) for side in sides.values()] == [None, None]
    assert not any(side.unacknowledged for side in sides.values())


def _arrives(at: delivery.Delivery, path: int, frame: Frame) -> None:
    if not isinstance(frame, Resume):
        at.received(path, frame, 0.0, [])
    elif at.resumed(path, frame) and frame.ask:
        at.answer(path)


def _codes(module: ModuleType) -> set[str]:
    """The codes of errors and refusals that a module spells out."""
    found = set()
    for call in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(call, ast.Call):
            continue
        values = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
        match call.func:
            case ast.Attribute(attr="_refuse"):
                values.append(call.args[1])
            case ast.Attribute(attr="_turn_away"):
                values.append(call.args[2])
            case ast.Name(id="ProtocolError") if not values:
                values.append(ast.Constant("malformed"))
        found |= {
            value.value
            for value in values
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        }
    return found


@pytest.mark.parametrize(
    "module",
    [messages, forward, rooms, values, frames, delivery, session, node],
    ids=lambda m: m.__name__,
)
def test_every_code_is_explained(module: ModuleType) -> None:
    codes = _codes(module)
    assert codes
    rows = {code for row in _first_cells() for code in re.findall(r"`(\w+)`", row)}
    assert codes - rows == set()


def test_every_code_of_a_link_is_explained() -> None:
    rows = {code for row in _first_cells() for code in re.findall(r"`(\w+)`", row)}
    assert {f"unexpected_{on.replace(' ', '_')}" for on in link._FROM_PEER} <= rows
    assert {f"unexpected_{on}" for on in restart._FROM_PEER} <= rows
    assert _codes(link) | _codes(restart) <= rows


def test_every_close_code_is_explained() -> None:
    codes = {str(getattr(rooms, name)) for name in rooms.__all__ if name.startswith("CLOSE_")}
    assert codes <= {cell.strip() for cell in _first_cells()}


def _first_cells() -> list[str]:
    return re.findall(r"^\| (.*?) \|", _PAGE, re.MULTILINE)


def test_the_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", _PAGE, re.MULTILINE)
    assert len(rows) == 18
    for name, value in rows:
        owner = next(m for m in (messages, values, frames, delivery) if name in m.__all__)
        assert getattr(owner, name) == int(value), name


_SETTING = re.compile(
    r"`(?:(?P<owner>MeshConfig|RelayConfig)\.)?(?P<name>[a-z_]+)`"
    r"(?: \(|, )(?P<number>\d[\d.]*)(?P<unit> s| KiB| MiB)?\)"
)
_UNITS = {"": 1, " s": 1, " KiB": 1024, " MiB": 1024 * 1024}


@pytest.mark.parametrize("page", ["protocol.md", "guide.md", "delivery.md"])
def test_the_defaults_in_brackets_are_those_of_the_code(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8").replace("\n", " ")
    found = list(_SETTING.finditer(text))
    assert len(found) > 5
    for match in found:
        owners = [
            config
            for config in (MeshConfig(), RelayConfig())
            if hasattr(config, match["name"]) and match["owner"] in (None, type(config).__name__)
        ]
        assert owners, f"{match.group()}: there is no such setting"
        value = float(match["number"]) * _UNITS[match["unit"] or ""]
        assert value == getattr(owners[0], match["name"]), match.group()


def test_how_often_is_acknowledged() -> None:
    assert f"after each {rooms._ACK_EVERY}nd" in _PAGE
    assert f"after each {session.ACK_EVERY}th, and {session.ACK_AFTER:g} seconds" in _PAGE
    assert f"(of the last {rooms._PAST})" in _PAGE


def test_what_a_message_takes_from_its_limits() -> None:
    assert f"one more for each {rooms._PART} bytes" in _PAGE
    assert f"(other members of the room) / {rooms._REACH} more" in _PAGE
    assert f"links / {rooms._LINKS} more" in _PAGE
    assert f"its size and {rooms._MESSAGE_COST} bytes" in _PAGE
    assert rooms._RENEW_AFTER == 0.75
    assert "when three quarters of that have passed" in _PAGE


def test_the_test_vectors_are_where_the_page_says() -> None:
    named = set(re.findall(r"`(tests/vectors/\w+\.json)`", _PAGE))
    root = DOCS.parent
    assert named == {p.relative_to(root).as_posix() for p in (root / "tests/vectors").iterdir()}
