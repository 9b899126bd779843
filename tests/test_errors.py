"""The error tree is what its docstring says, and each error is what Python programs expect."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from meshpeer import errors

_LINE = re.compile(
    r"^ {4}(?P<branch>(?:│ {3}| {4})*(?:[├└]── )?)(?P<name>[A-Z]\w+)"
    r"(?: .*?(?:\(also (?P<also>\w+)\))?)?$"
)


def _documented() -> list[tuple[str, str | None, str | None]]:
    """Name, parent and second base of each line of the tree."""
    found: list[tuple[str, str | None, str | None]] = []
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := _LINE.match(line):
            depth = len(match["branch"]) // 4
            del above[depth:]
            found.append((match["name"], above[-1] if above else None, match["also"]))
            above.append(match["name"])
    return found


def _classes() -> dict[str, type[BaseException]]:
    return {
        name: thing
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, BaseException)
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    real: list[tuple[str, str | None, str | None]] = []
    for name, thing in _classes().items():
        parent, *also = (base.__name__ for base in thing.__bases__)
        assert len(also) < 2
        real.append((name, None if name == "MeshError" else parent, also[0] if also else None))
    documented = _documented()
    assert len(documented) > 20
    assert sorted(documented, key=str) == sorted(real, key=str)


def test_every_class_is_public() -> None:
    assert set(errors.__all__) == set(_classes())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("peer_id_taken", errors.PeerIdTaken),
        ("room_full", errors.RoomFull),
        ("too_many_rooms", errors.TooManyRooms),
        ("rate_limited", errors.RateLimited),
        ("a_code_of_a_later_version", errors.RefusedError),
    ],
)
def test_the_class_of_a_refusal(code: str, expected: type[errors.RefusedError]) -> None:
    error = errors.refusal(code, "no", field="$.room", retry_after=1.5)
    assert type(error) is expected
    assert (str(error), error.code, error.field, error.retry_after) == ("no", code, "$.room", 1.5)


def test_every_class_of_refusal_has_its_code() -> None:
    assert set(errors._REFUSALS.values()) == set(errors.RefusedError.__subclasses__())


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_has_its_text_and_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("what happened")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == "what happened"
    assert vars(copy) == vars(error)
