"""The accounts notice whatever can be wrong with a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.stream import HEADER, LARGE, Ledger, decode, encode


@given(number=st.integers(1, 10**7), size=st.sampled_from([HEADER, 20, 2000, LARGE]))
def test_a_message_tells_its_number(number: int, size: int) -> None:
    message = encode(number, size)
    assert len(message) == size
    assert decode(message) == number


@given(number=st.integers(1, 10**7), size=st.integers(20, 2000), data=st.data())
def test_a_damaged_message_is_noticed(number: int, size: int, data: st.DataObject) -> None:
    message = bytearray(encode(number, size))
    message[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="damaged"):
        decode(bytes(message))


@given(number=st.integers(1, 10**7), size=st.integers(20, 2000), data=st.data())
def test_a_cut_message_is_noticed(number: int, size: int, data: st.DataObject) -> None:
    with pytest.raises(ValueError, match=r"damaged|not a message"):
        decode(encode(number, size)[: data.draw(st.integers(0, size - 1))])


@pytest.mark.parametrize(
    ("came", "faults"),
    [
        ([1, 2, 3, 4], {}),
        ([], {"lost": 4}),
        ([1, 2, 3], {"lost": 1}),
        ([2, 3, 4], {"lost": 1}),
        ([1, 4], {"lost": 2}),
        ([1, 2, 2, 3, 4], {"repeated": 1}),
        ([1, 2, 3, 4, 1], {"repeated": 1}),
        ([1, 3, 2, 4], {"out of order": 1}),
        ([1, 4, 2, 2, 3], {"repeated": 1, "out of order": 2}),
        ([1, 2, 3, 4, 5], {"lost": -1}),
    ],
)
def test_what_is_wrong_with_a_stream_of_four(came: list[int], faults: dict[str, int]) -> None:
    ledger = Ledger()
    for number in came:
        ledger.take(encode(number, 20))
    assert ledger.faults(4) == faults
    assert ledger.received == len(came)


def test_a_damaged_message_did_not_come() -> None:
    ledger = Ledger()
    ledger.take(encode(1, 20))
    ledger.take(encode(2, 20) + b"more")
    ledger.take("text")
    assert ledger.faults(2) == {"lost": 1, "damaged": 2}
