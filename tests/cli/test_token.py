"""`meshpeer token`: what it prints is what a relay takes."""

from __future__ import annotations

import stat
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner, Result

from meshpeer.cli.app import app
from meshpeer.config import RelayConfig
from meshpeer.errors import Forbidden, Unauthorized
from meshpeer.relay import Grant, JoinRequest, JoinTokens
from tests.cli.processes import Start

SECRET = "a secret of more than 32 characters"


def make(*options: str, secret: str | None = SECRET) -> Result:
    environment = {"MESHPEER_JOIN_SECRET": secret}
    return CliRunner().invoke(app, ["token", *options], env=environment)


def made(*options: str, secret: str | None = SECRET) -> str:
    """The token alone, as it is printed."""
    result = make(*options, secret=secret)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return result.stdout.removesuffix("\n")


async def let_in(config: RelayConfig, token: str, *, room: str = "lobby", peer: str = "p") -> Grant:
    request = JoinRequest(
        room=room, peer_id=peer, name=None, join_token=token, address="192.0.2.1", origin=None
    )
    return await JoinTokens(config).authenticate(request)


async def test_the_token_says_what_the_options_say() -> None:
    config = RelayConfig(join_secret=SECRET)
    token = made("--subject", "ann", "--room", "team-*", "--name", "Ann B", "--peer-id", "ann-1")
    grant = await let_in(config, token, room="team-1", peer="ann-1")
    assert grant == Grant(subject="ann", name="Ann B", peer_id="ann-1")
    with pytest.raises(Forbidden):
        await let_in(config, token, room="lobby", peer="ann-1")
    with pytest.raises(Forbidden):
        await let_in(config, token, room="team-1", peer="ben")
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert 3600 <= claims["exp"] - claims["iat"] <= 3601
    claims = jwt.decode(made("--subject", "ann", "--lifetime", "60"), SECRET, algorithms=["HS256"])
    assert 60 <= claims["exp"] - claims["iat"] <= 61


async def test_it_is_for_every_room_unless_one_is_named() -> None:
    grant = await let_in(RelayConfig(join_secret=SECRET), made("--subject", "ann"), room="any")
    assert grant == Grant(subject="ann")


async def test_the_file_counts_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("another secret of 32 characters.\n")
    file.chmod(0o600)
    token = made("--subject", "ann", "--secret-file", str(file))
    await let_in(RelayConfig(join_secret="another secret of 32 characters."), token)
    with pytest.raises(Unauthorized):
        await let_in(RelayConfig(join_secret=SECRET), token)


async def test_new_keys_fit_each_other(tmp_path: Path) -> None:
    result = make("--new-key", str(tmp_path))
    assert (result.exit_code, result.output) == (0, "")
    private, public = tmp_path / "join-key.pem", tmp_path / "join-key.pub.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    # The secret in the environment is not looked at.
    token = made("--subject", "ann", "--private-key-file", str(private))
    config = RelayConfig(join_public_key=public.read_text())
    assert (await let_in(config, token)).subject == "ann"

    before = private.read_bytes()
    again = make("--new-key", str(tmp_path))
    assert again.exit_code == 2
    assert f"can't write {private}: File exists" in again.stderr
    assert private.read_bytes() == before


def test_a_new_secret_is_long_enough_and_new() -> None:
    first, second = made("--new-secret"), made("--new-secret")
    assert first != second
    assert made("--subject", "ann", secret=first).count(".") == 2


def test_a_key_that_everybody_can_read_is_warned_of(tmp_path: Path) -> None:
    make("--new-key", str(tmp_path))
    key = tmp_path / "join-key.pem"
    key.chmod(0o644)
    result = make("--subject", "ann", "--private-key-file", str(key))
    assert result.exit_code == 0
    assert f"--private-key-file: every user of this machine can read {key}" in result.stderr


@pytest.mark.parametrize(
    ("options", "secret", "said"),
    [
        ("", SECRET, "--subject is missing"),
        ("--subject ann", None, "what is it to be signed with?"),
        ("--subject ann", "", "what is it to be signed with?"),
        ("--subject ann", "short", "--secret-file (or MESHPEER_JOIN_SECRET) must be of 32 bytes"),
        ("--subject ann --lifetime 0", SECRET, "--lifetime must be a number of seconds from 1"),
        ("--subject ann --room {long}", SECRET, "--room must be of 1 to 128 characters"),
        ("--subject ann --peer-id {long}", SECRET, "--peer-id must be of 1 to 128 characters"),
        ("--subject ann --secret-file {none}", SECRET, "--secret-file: can't read {none}"),
        ("--subject ann --private-key-file {none}", SECRET, "--private-key-file: can't read"),
        ("--subject ann --private-key-file {bad}", SECRET, "--private-key-file must be a private"),
        (
            "--subject ann --private-key-file {bad} --secret-file {bad}",
            SECRET,
            "--secret-file and --private-key-file must not be given together",
        ),
        ("--new-secret --subject ann", SECRET, "--new-secret and --new-key are given alone"),
        ("--new-secret --new-key {none}", SECRET, "--new-secret and --new-key are given alone"),
        ("--new-key {none}", SECRET, "--new-key: can't write {none}/join-key.pem: No such file"),
    ],
)
def test_wrong_usage_is_one_sentence_with_status_2(
    tmp_path: Path, options: str, secret: str | None, said: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_text("no key\n")
    bad.chmod(0o600)
    names = {"long": "x" * 129, "none": tmp_path / "none", "bad": bad}
    result = make(*options.format(**names).split(), secret=secret)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert said.format(**names) in result.stderr
    assert not secret or secret not in result.stderr


async def test_as_a_process(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    command = await start("token", "--subject", "ann", "--secret-file", str(file))
    assert await command.end() == (0, "")
    (token,) = command.lines
    await let_in(RelayConfig(join_secret=SECRET), token)
