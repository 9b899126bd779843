"""The envelope of a data frame: what it is, byte for byte, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshpeer.core.forward import (
    MARK,
    MAX_FORWARD,
    MAX_HEAD,
    FrameIn,
    decode_forward,
    encode_forward,
    forward_head,
    head_size,
    names,
)
from meshpeer.errors import InvalidData, MessageTooLarge, ProtocolError

_VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "forward.json").read_text(encoding="utf-8")
)
FRAME = b"\0frame"  # no letter at its beginning that an incarnation could have
WHOLE = encode_forward("änn", "inc-ann1", FRAME)


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda v: v["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if "error" in vector:
        with pytest.raises(ProtocolError) as refused:
            decode_forward(data)
        assert refused.value.code == vector["error"]["code"]
        return
    shown = vector["decodes"]
    message = decode_forward(data)
    assert message == FrameIn(shown["peer_id"], shown["incarnation"], bytes.fromhex(shown["frame"]))
    assert encode_forward(message.sender, message.incarnation, message.data) == data


def test_the_head_is_what_comes_before_the_frame() -> None:
    head = forward_head("änn", "inc-ann1")
    assert head + FRAME == WHOLE
    assert head_size(WHOLE) == len(head)
    assert names(head) == ("änn", "inc-ann1")


def test_the_longest_of_all_fits() -> None:
    longest = encode_forward("\U0001f600" * 128, "i" * 64, bytes(MAX_FORWARD))
    assert len(longest) == MAX_HEAD + MAX_FORWARD
    assert len(decode_forward(longest).data) == MAX_FORWARD


def test_it_is_refused_when_cut_off_at_any_byte() -> None:
    for size in range(len(WHOLE) - len(FRAME) + 1):
        with pytest.raises(ProtocolError):
            decode_forward(WHOLE[:size])


@pytest.mark.parametrize("at", [1, 2, 3 + len("änn".encode())])
def test_a_length_that_lies_is_refused(at: int) -> None:
    for lie in range(256):
        if lie != WHOLE[at]:
            with pytest.raises(ProtocolError):
                decode_forward(WHOLE[:at] + bytes([lie]) + WHOLE[at + 1 :])


@given(st.binary(max_size=200))
@example(b"")
@example(MARK)
def test_whatever_comes_it_decodes_or_is_refused(data: bytes) -> None:
    for each in (data, MARK + data, WHOLE[:3] + data):
        try:
            message = decode_forward(each)
        except ProtocolError:
            continue
        assert encode_forward(message.sender, message.incarnation, message.data) == each


def test_a_frame_has_a_least_and_a_largest_size() -> None:
    with pytest.raises(InvalidData):
        encode_forward("ann", "inc-ann-1", b"")
    with pytest.raises(MessageTooLarge, match="65536"):
        encode_forward("ann", "inc-ann-1", bytes(MAX_FORWARD + 1))
    for size in (0, MAX_FORWARD + 1):
        with pytest.raises(ProtocolError):
            decode_forward(forward_head("ann", "inc-ann-1") + bytes(size))
