"""The signalling schema: what is written is read back, and nothing else gets in."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw, inspect

from meshpeer.core import messages
from meshpeer.core.messages import (
    MAX_CANDIDATES,
    MAX_DEPTH,
    MAX_MEMBER,
    MAX_METADATA,
    MAX_SDP,
    VERSION,
    Ack,
    Answer,
    Join,
    LinkMessage,
    LinkReport,
    Member,
    MemberJoined,
    MemberUpdated,
    Offer,
    RelayMessage,
    Report,
    SignalIn,
    SignalOut,
    Update,
    brief,
    check_metadata,
    check_sdp,
    decode_client,
    decode_link,
    decode_relay,
    encode,
    printable,
)
from meshpeer.errors import ProtocolError

Decode = Callable[[Any], Any]


def decode_peer(data: bytes | str) -> LinkMessage:
    """`decode_link`, which is only ever given the bytes of a body."""
    return decode_link(data.encode(errors="surrogatepass") if isinstance(data, str) else data)


_DECODERS: dict[str, Decode] = {
    "client": decode_client,
    "relay": decode_relay,
    "peer": decode_peer,
}
_CODES = {"malformed", "not_json", "too_deep", "too_large", "unsupported_version", "bad_sdp"}
_CODES |= {"too_many_candidates"}
_VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "signaling.json").read_text(encoding="utf-8")
)
SDP = next(v["decodes"]["sdp"] for v in _VECTORS if v["name"] == "offer")

_TYPES: list[tuple[Decode, type[msgspec.Struct]]] = [
    (decode, cls)
    for decode, union in (
        (decode_client, messages.ClientMessage),
        (decode_relay, messages.RelayMessage),
        (decode_peer, messages.LinkMessage),
    )
    for cls in union.__args__
]
_NAMES = [f"{decode.__name__}-{cls.__name__}" for decode, cls in _TYPES]


def _refused(decode: Decode, data: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    error = caught.value
    assert error.code in _CODES
    assert error.field.startswith("$")
    # It goes into logs and back over the wire as it is.
    assert len(str(error)) <= 512
    assert str(error).isprintable()
    return error


# --- golden examples, which other languages read too ---------------------------------------------


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda v: v["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    data = vector["text"].encode() if "text" in vector else bytes.fromhex(vector["hex"])
    decode = _DECODERS[vector["from"]]
    if "error" in vector:
        error = _refused(decode, data)
        assert {"code": error.code, "field": error.field} == vector["error"]
        return
    message = decode(data)
    assert json.loads(encode(message)) == vector["decodes"]
    assert decode(vector["text"]) == message
    assert decode(encode(message)) == message


def test_the_vectors_show_every_message_and_every_error() -> None:
    shown = {(v["from"], v["decodes"]["type"]) for v in _VECTORS if "decodes" in v}
    names = {decode: name for name, decode in _DECODERS.items()}
    assert shown == {(names[decode], cls.__struct_config__.tag) for decode, cls in _TYPES}
    assert {v["error"]["code"] for v in _VECTORS if "error" in v} == _CODES


# --- strategies and samples, made from the types --------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=40)
_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=8,
)


def _strategy(of: inspect.Type, name: str = "") -> st.SearchStrategy[Any]:
    match of:
        case inspect.StrType() if name == "sdp":
            return st.just(SDP)
        case inspect.StrType(pattern=str() as pattern):
            text = st.from_regex(pattern, alphabet=st.characters(codec="utf-8"))
            return text.filter(lambda value: len(value) <= (of.max_length or 128))
        case inspect.StrType():
            return st.text(st.characters(codec="utf-8"), max_size=of.max_length)
        case inspect.IntType():
            return st.just(VERSION) if name == "version" else st.integers(of.ge, of.le)
        case inspect.FloatType():
            return st.floats(of.ge, of.le, allow_infinity=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.DictType():
            return st.dictionaries(_text, _json, max_size=4)
        case inspect.ListType():
            size: dict[str, Any] = {"min_size": of.min_length or 0, "max_size": 3}
            if getattr(of.item_type, "cls", None) is LinkReport:
                size["unique_by"] = lambda link: (link.peer_id, link.incarnation)
            return st.lists(_strategy(of.item_type), **size)
        case inspect.LiteralType():
            return st.sampled_from(of.values)
        case inspect.UnionType():
            return st.one_of([_strategy(each, name) for each in of.types])
        case inspect.NoneType():
            return st.none()
        case inspect.RawType():
            return _json.map(lambda value: Raw(json.dumps(value).encode()))
        case inspect.StructType():
            fields = {field.name: _strategy(field.type, field.encode_name) for field in of.fields}
            return st.builds(of.cls, **fields)
    raise NotImplementedError(of)


def _sample(of: inspect.Type, name: str = "") -> Any:
    """Some good value, as JSON has it."""
    match of:
        case inspect.StrType(pattern=messages._ICE_URL):
            return "turn:turn.example.org"
        case inspect.StrType():
            return SDP if name == "sdp" else "abcdefghijklmnop"
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.BoolType():
            return True
        case inspect.DictType() | inspect.RawType():
            return {"a": 1}
        case inspect.ListType():
            return [_sample(of.item_type)]
        case inspect.LiteralType():
            return of.values[0]
        case inspect.UnionType():
            return _sample(next(t for t in of.types if not isinstance(t, inspect.NoneType)), name)
        case inspect.StructType(array_like=True):
            return [_sample(field.type, field.encode_name) for field in of.fields]
        case inspect.StructType():
            value = {
                field.encode_name: _sample(field.type, field.encode_name) for field in of.fields
            }
            return {of.tag_field: of.tag, **value} if of.tag_field else value
    raise NotImplementedError(of)


def _all(at: str, *values: Any) -> list[tuple[Any, str]]:
    return [(value, at) for value in values]


def _wrong(of: inspect.Type, at: str = "$") -> Iterator[tuple[Any, str]]:
    """Values that don't fit, each with the path of the field that is wrong."""
    value: Any
    match of:
        case inspect.UnionType():
            for each in of.types:
                if not isinstance(each, inspect.NoneType):
                    yield from (item for item in _wrong(each, at) if item != (None, at))
            return
        case inspect.RawType():
            return
        case inspect.StrType():
            yield from _all(at, 5, True, [], {})
            if of.max_length is not None:
                yield "x" * (of.max_length + 1), at
            if of.min_length:
                yield "", at
            if of.pattern is not None:
                for value in (
                    "",
                    "\n",
                    "abcdefghijklmnop\n",
                    "abcdefgh\x00ijklmnop",
                    "\x7f",
                    " a ",
                ):
                    # A text for people may be empty or stand between spaces.
                    if of.pattern != messages._TEXT or not value.isprintable():
                        yield value, at
        case inspect.IntType():
            yield from _all(at, "1", 1.5, True, [], 10**30)
            if of.ge is not None:
                yield of.ge - 1, at
            if of.le is not None:
                yield of.le + 1, at
        case inspect.FloatType():
            yield from _all(at, "1", True, {})
            yield of.ge - 0.5, at  # type: ignore[operator]
            if of.le is not None:
                yield of.le + 0.5, at
        case inspect.BoolType():
            yield from _all(at, "true", 1, 0)
        case inspect.DictType():
            yield from _all(at, "{}", 1, [])
        case inspect.LiteralType():
            yield from _all(at, "another", "", 1)
        case inspect.ListType():
            yield from _all(at, {}, "[]", 1)
            if of.min_length:
                yield [], at
            if of.max_length is not None:
                yield [_sample(of.item_type)] * (of.max_length + 1), at
            for value, path in _wrong(of.item_type, f"{at}[0]"):
                yield [value], path
        case inspect.StructType(array_like=True):
            yield from _all(at, [], {}, "x", 1)
            good = _sample(of)
            for place, field in enumerate(of.fields):
                if field.required:
                    yield good[:place], at
                for value, path in _wrong(field.type, f"{at}[{place}]"):
                    yield [*good[:place], value, *good[place + 1 :]], path
        case inspect.StructType():
            yield from _all(at, [], "x", 1)
            good = _sample(of)
            for field in of.fields:
                here = f"{at}.{field.encode_name}"
                if field.required:
                    yield {k: v for k, v in good.items() if k != field.encode_name}, here
                for value, path in _wrong(field.type, here):
                    yield {**copy.deepcopy(good), field.encode_name: value}, path
        case _:
            raise NotImplementedError(of)
    yield None, at


@pytest.mark.parametrize(("decode", "cls"), _TYPES, ids=_NAMES)
def test_what_is_written_is_read_back(decode: Decode, cls: type[msgspec.Struct]) -> None:
    @settings(max_examples=40)
    @given(_strategy(inspect.type_info(cls)))
    def run(message: Any) -> None:
        wire = encode(message)
        assert decode(wire) == message
        assert decode(wire.decode()) == message
        assert encode(decode(wire)) == wire

    run()


@pytest.mark.parametrize(("decode", "cls"), _TYPES, ids=_NAMES)
def test_every_field_is_checked_and_named(decode: Decode, cls: type[msgspec.Struct]) -> None:
    of = inspect.type_info(cls)
    assert type(decode(json.dumps(_sample(of)))) is cls
    wrong = list(_wrong(of))
    assert len(wrong) > 3 * len(cls.__struct_fields__)
    for value, path in wrong:
        error = _refused(decode, json.dumps(value))
        assert (error.code, error.field) == ("malformed", path), value
        assert f"(field {path})" in str(error)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for _, cls in _TYPES for name in cls.__struct_fields__],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_no_field_is_without_a_bound(cls: type[msgspec.Struct], name: str) -> None:
    def check(of: inspect.Type) -> None:
        match of:
            case inspect.UnionType():
                for each in of.types:
                    check(each)
            case inspect.StrType():
                # A description is checked by `check_sdp`; these patterns bound the length too.
                bounded = of.max_length is not None or (of.pattern or "").endswith("}\\Z")
                assert bounded or name == "sdp"
            case inspect.IntType() | inspect.FloatType():
                assert of.ge is not None
                assert of.le is not None
            case _:
                pass

    check(next(f.type for f in inspect.type_info(cls).fields if f.name == name))  # type: ignore[attr-defined]


_JOIN = {
    "type": "join",
    "version": VERSION,
    "room": "lobby",
    "peer_id": "ann",
    "incarnation": "inc-ann1",
}


@pytest.mark.parametrize(
    ("decode", "data", "code", "field", "text"),
    [
        (
            decode_client,
            {**_JOIN, "peer_id": 5},
            "malformed",
            "$.peer_id",
            "Expected `str`, got `int`",
        ),
        (decode_client, {**_JOIN, "peer_id": "a" * 129}, "malformed", "$.peer_id", "length <= 128"),
        (
            decode_client,
            {**_JOIN, "peer_id": "a\n"},
            "malformed",
            "$.peer_id",
            "without control characters and without white space around it",
        ),
        (
            decode_client,
            {**_JOIN, "incarnation": "a"},
            "malformed",
            "$.incarnation",
            "of 8 to 64 letters, digits, - and _",
        ),
        (
            decode_client,
            {**_JOIN, "token": "a"},
            "malformed",
            "$.token",
            "of 16 to 128 letters, digits, - and _",
        ),
        (
            decode_relay,
            {"type": "goodbye", "reason": "Shut Down"},
            "malformed",
            "$.reason",
            "of 1 to 64 lower-case letters and _",
        ),
        (
            decode_client,
            {**_JOIN, "version": 9},
            "unsupported_version",
            "$.version",
            "this relay speaks version 1 of the protocol, the client 9",
        ),
        (decode_client, {"type": "shout"}, "malformed", "$.type", "Invalid value 'shout'"),
        (decode_client, {}, "malformed", "$.type", "missing required field `type`"),
        (decode_client, {"type": "ack"}, "malformed", "$.received", "missing required field"),
        (
            decode_client,
            {**_JOIN, "metadata": {"a": "x" * MAX_METADATA}},
            "too_large",
            "$.metadata",
            "metadata has 4104 bytes of JSON, the limit is 4096",
        ),
        (
            decode_peer,
            {"type": "offer", "sdp": "v=0\nhello"},
            "bad_sdp",
            "$.sdp",
            "line 2 of the session description is not of the form <type>=<value>: 'hello'",
        ),
    ],
)
def test_texts(decode: Decode, data: Any, code: str, field: str, text: str) -> None:
    error = _refused(decode, json.dumps(data))
    assert (error.code, error.field) == (code, field)
    assert text in str(error)


@pytest.mark.parametrize("before", [_JOIN, {"type": "update"}])
def test_a_large_join_is_refused_before_its_metadata_is_made(before: dict[str, Any]) -> None:
    """Its numbers alone would take a hundred times as long as all the rest."""
    metadata = {"a": [1.2345678901234567e-300] * 10_000}
    error = _refused(decode_client, json.dumps({**before, "metadata": metadata}))
    assert (error.code, error.field) == ("too_large", "$")
    assert f"the limit is {MAX_MEMBER}" in str(error)


def test_whatever_a_join_may_say_fits_however_it_is_escaped() -> None:
    join = Join(
        version=1,
        room="\U0001f600" * 128,
        peer_id="\U0001f600" * 128,
        incarnation="a" * 64,
        name="\U0001f600" * 128,
        metadata={"a": "\x7f" * (MAX_METADATA - len('{"a":""}'))},
        token="a" * 64,
        join_token="a" * 4096,
    )
    text = json.dumps(json.loads(encode(join)))
    assert text.count("\\u") > MAX_METADATA
    assert decode_client(text) == join
    assert decode_client(text.ljust(MAX_MEMBER)) == join
    assert _refused(decode_client, text.ljust(MAX_MEMBER + 1)).code == "too_large"
    signal = (
        '{"type":"signal","to":"b","to_incarnation":"aaaaaaaa","epoch":1,"body":"'
        + "x" * MAX_MEMBER
        + '"}'
    )
    assert isinstance(decode_client(signal), SignalOut)


@pytest.mark.parametrize(
    ("decode", "who"),
    [(decode_client, "the client"), (decode_relay, "the relay"), (decode_peer, "the peer")],
)
def test_texts_say_whose_message_it_was(decode: Decode, who: str) -> None:
    assert f"message from {who}" in str(_refused(decode, b"["))
    assert f"message from {who}" in str(_refused(decode, b"[]"))


# --- anything at all ------------------------------------------------------------------------------

_NESTED = b'{"type":"signal","to":"b","to_incarnation":"inc-bob1","epoch":1,"body":%s}'


def _check_anything(data: bytes) -> None:
    """Only `ProtocolError`; and what the relay lets through, those it forwards to can decode."""
    for decode in _DECODERS.values():
        try:
            message = decode(data)
        except ProtocolError:
            _refused(decode, data)
            continue
        wire = encode(message)
        assert decode(wire) == message
        forwarded: RelayMessage
        match message:
            case Join() | Update(metadata=dict()) if decode is decode_client:
                if isinstance(message, Join):
                    member = Member(
                        message.peer_id, message.incarnation, message.name, message.metadata
                    )
                    forwarded = MemberJoined(member)
                else:
                    forwarded = MemberUpdated("a", "inc-ann1", message.name, message.metadata or {})
                assert decode_relay(encode(forwarded)) == forwarded
            case SignalOut() if decode is decode_client:
                forwarded = SignalIn(
                    "a", "inc-ann1", message.to_incarnation, message.epoch, message.body
                )
                assert decode_relay(encode(forwarded).decode()) == forwarded
            case _:
                pass


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
@example(b"\xff\xfe{}")
@example(_NESTED % (b"[" * 100_000))
@example(_NESTED % (b"[" * 100_000 + b"]" * 100_000))
@example(_NESTED % (b'{"a":' * 900 + b"1" + b"}" * 900))
@example(b'{"type":"join","version":' + b"9" * 10_000 + b"}")
@example(b'{"type":"ack","received":-0}')
@example(b'{"type":"ack","received":1e1}')
@example(b'{"type":"ack","received":' + b"9" * 400 + b"}")
@example(b'{"type":"ack","received":NaN}')
@example(b'{"type":"ack","received":Infinity}')
@example(b'{"type":"ack","type":"leave"}')
@example(b'{"type":"' + b"\\u0007" * 3000 + b'"}')
@example(b'{"type":"offer","sdp":"\\ud800"}')
@example(b'{"type":"leave","x":"\xed\xa0\x80"}')
def test_any_bytes(data: bytes) -> None:
    _check_anything(data)


@given(st.text(st.characters(), max_size=100))
@example('{"type":"leave","x":"\ud800"}')
def test_any_text_of_a_websocket(text: str) -> None:
    for decode in (decode_client, decode_relay):
        try:
            decode(text)
        except ProtocolError:
            _refused(decode, text)


_GOOD = [(v["text"].encode() if "text" in v else bytes.fromhex(v["hex"])) for v in _VECTORS]
_PIECES = [
    *(bytes([byte]) for byte in b'[]{}",:\\0-9aAeEnNtf\x00\xff \n'),
    b'"type":',
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 40,
    b"\xed\xa0\x80",
    b'{"type":"join",',
]


@settings(max_examples=400)
@given(
    st.sampled_from(_GOOD),
    st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.integers(0, 12),
            st.sampled_from(_PIECES) | st.binary(max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_damaged_messages(data: bytes, cuts: list[tuple[int, int, bytes]]) -> None:
    for where, length, piece in cuts:
        at = where % (len(data) + 1)
        data = data[:at] + piece + data[at + length :]
    _check_anything(data)


_ALL_FIELDS = sorted(
    {field.encode_name for _, cls in _TYPES for field in inspect.type_info(cls).fields}  # type: ignore[attr-defined]
)
_TAGS = [cls.__struct_config__.tag for _, cls in _TYPES]


@settings(max_examples=300)
@given(
    st.sampled_from(_TYPES).flatmap(lambda pair: st.just(_sample(inspect.type_info(pair[1])))),
    st.dictionaries(st.sampled_from(_ALL_FIELDS) | _text, _json, max_size=3),
    st.none() | st.sampled_from(_TAGS),
)
def test_messages_with_fields_of_others(
    good: dict[str, Any], others: dict[str, Any], tag: str | None
) -> None:
    _check_anything(json.dumps({**good, **others, **({"type": tag} if tag else {})}).encode())


@given(_json)
def test_depth_is_measured_exactly(value: Any) -> None:
    def depth(of: Any) -> int:
        if isinstance(of, dict | list):
            inner = of.values() if isinstance(of, dict) else of
            return 1 + max(map(depth, inner), default=0)
        return 0

    def nested(levels: int) -> bytes:
        body = json.dumps(value)
        return _NESTED % ("[" * levels + body + "]" * levels).encode()

    most = MAX_DEPTH - 1 - depth(value)  # the message itself is one
    message = decode_client(nested(most))
    assert isinstance(message, SignalOut)
    error = _refused(decode_client, nested(most + 1))
    assert (error.code, error.field) == ("too_deep", "$")


_structure = st.text('[]{}"\\,: ', max_size=8)


@given(
    st.recursive(
        _structure,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_structure, inner, max_size=4),
        max_leaves=30,
    )
)
def test_brackets_in_texts_are_no_depth(value: Any) -> None:
    test_depth_is_measured_exactly.hypothesis.inner_test(value)  # type: ignore[attr-defined]


def test_what_is_open_for_long_is_deep_and_what_is_closed_again_is_not() -> None:
    wide = b"[" + b"[[]]," * 1000 + b'{"a":[]}]'
    assert isinstance(decode_client(_NESTED % wide), SignalOut)
    for opens, closes in ((b"[", b"]"), (b'{"a":', b"}")):
        level = MAX_DEPTH - 1
        deep = b"[" + (opens * level + b"1" + closes * level + b",") * 5 + b"1]"
        assert _refused(decode_client, _NESTED % deep).code == "too_deep"
        level -= 1
        deep = b"[" + (opens * level + b"1" + closes * level + b",") * 5 + b"1]"
        assert isinstance(decode_client(_NESTED % deep), SignalOut)


# --- what types don't tell ------------------------------------------------------------------------


def test_reasons_are_measured_in_bytes() -> None:
    fits = "\u20ac" * 66 + "xx"  # 200 bytes
    for reason, failure in ((fits, fits), ("x" * 200, "")):
        link = LinkReport("bob", "inc-bob1", "failed", "failed", None, None, reason, failure)
        assert decode_client(encode(Report([link]))) == Report([link])
    for place, texts in ((6, (fits + "x", "")), (7, ("", fits + "x"))):
        good = LinkReport("eve", "inc-eve1", "failed", "failed")
        bad = LinkReport("bob", "inc-bob1", "failed", "failed", None, None, *texts)
        error = _refused(decode_client, encode(Report([good, bad])))
        assert (error.code, error.field) == ("malformed", f"$.links[1][{place}]")
        assert "200 bytes" in str(error)


@given(st.text() | st.text("\u20ac\U0001f600x", min_size=40))
def test_what_is_brief_fits_a_report(text: str) -> None:
    said = brief(text)
    link = LinkReport("bob", "inc-bob1", "failed", "failed", None, None, said, said)
    assert decode_client(encode(Report([link]))) == Report([link])
    assert printable(text).startswith(said)
    assert said == printable(text) or len(said.encode()) > 200 - 4


def test_a_report_tells_of_an_incarnation_once() -> None:
    def link(peer_id: str, incarnation: str) -> LinkReport:
        return LinkReport(peer_id, incarnation, "connected", "connected")

    good = [link("bob", "inc-bob1"), link("bob", "inc-bob2"), link("eve", "inc-bob1")]
    assert decode_client(encode(Report(good))) == Report(good)
    error = _refused(decode_client, encode(Report([*good, link("bob", "inc-bob2")])))
    assert (error.code, error.field) == ("malformed", "$.links")


def test_metadata_is_measured_in_bytes() -> None:
    check_metadata({"a": "x" * (MAX_METADATA - len('{"a":""}'))})
    with pytest.raises(ProtocolError, match="metadata has 4097 bytes"):
        check_metadata({"a": "x" * (MAX_METADATA - len('{"a":""}') + 1)})
    with pytest.raises(ProtocolError, match="metadata has 6008 bytes"):
        check_metadata({"a": "€" * 2000})


def test_a_good_description_passes() -> None:
    check_sdp(SDP)
    check_sdp(SDP.replace("\r\n", "\n"))
    check_sdp(SDP + "a=x:" + "y" * (MAX_SDP - len(SDP) - 4))
    check_sdp(SDP + "a=candidate:x\r\n" * MAX_CANDIDATES)


@pytest.mark.parametrize(
    ("sdp", "code", "text"),
    [
        ("", "bad_sdp", "does not begin with v=0"),
        ("v=1\r\n", "bad_sdp", "does not begin with v=0"),
        ("\r\n" + SDP, "bad_sdp", "line 1 of the session description"),
        (SDP + "\r\n", "bad_sdp", "is not of the form <type>=<value>: ''"),
        (SDP + "a", "bad_sdp", "is not of the form"),
        (SDP + "=a", "bad_sdp", "is not of the form"),
        (SDP + "1=a", "bad_sdp", "is not of the form"),
        (SDP + "z" * 100_000, "too_large", f"the limit is {MAX_SDP}"),
        (SDP + "z" * 1000, "bad_sdp", "'" + "z" * 40 + "'"),
        (SDP.replace("m=application", "m=video"), "bad_sdp", "lacks a data channel section"),
        (SDP.replace("a=ice-ufrag", "a=ufrag"), "bad_sdp", "'a=ice-ufrag:'"),
        (SDP.replace("a=ice-pwd", "a=pwd"), "bad_sdp", "'a=ice-pwd:'"),
        (SDP.replace("a=fingerprint", "a=f"), "bad_sdp", "lacks a DTLS fingerprint"),
        (SDP + "a=candidate:x\r\n" * 101, "too_many_candidates", "has 101 candidates"),
    ],
)
@pytest.mark.parametrize("cls", [Offer, Answer])
def test_descriptions_that_could_not_connect(
    cls: type[Offer] | type[Answer], sdp: str, code: str, text: str
) -> None:
    error = _refused(decode_link, encode(cls(sdp)))
    assert (error.code, error.field) == (code, "$.sdp")
    assert text in str(error)


@given(st.text() | st.from_regex(re.compile(r"v=0(\r\n[a-z]=[^\n]*)*")))
def test_any_description(sdp: str) -> None:
    try:
        check_sdp(sdp)
    except ProtocolError:
        _refused(check_sdp, sdp)


def test_a_body_is_decoded_as_it_was_forwarded() -> None:
    body: LinkMessage = Answer(SDP)
    wire = encode(SignalOut("bob", "inc-bob1", 1, Raw(encode(body))))
    message = decode_client(wire)
    assert isinstance(message, SignalOut)
    assert decode_link(message.body) == body


def test_messages_are_frozen_values() -> None:
    ack = Ack(1)
    assert ack == Ack(1)
    with pytest.raises(AttributeError):
        ack.received = 2  # type: ignore[misc]
