"""The files of the pages, read: nothing there runs what a peer wrote, or asks elsewhere."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import typer

from meshpeer.cli.app import app
from tests.docs.generate import DOCS

WEB = files("meshpeer.relay") / "web"
FILES = WEB / "admin"


@pytest.mark.parametrize(
    "file",
    [
        f"{folder}/{file.name}"
        for folder in ("admin", "chat", "common", "home")
        for file in (WEB / folder).iterdir()
    ],
)
def test_the_files_hold_nothing_that_makes_markup_or_leads_outside(file: str) -> None:
    text = (WEB / file).read_text(encoding="utf-8")
    for sink in (
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
        "srcdoc", "DOMParser", "createContextualFragment", "setHTML", " style=", " onclick=",
    ):  # fmt: skip
        assert sink not in text
    addresses = set(re.findall(r"\w+://[^\s\"'`]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "://${location.host}${LIVE}"}


def _colours(file: str) -> dict[str, tuple[str, str]]:
    css = (WEB / file).read_text(encoding="utf-8")
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    return {name: (light, dark) for name, light, dark in found}


def test_text_has_the_contrast_that_it_needs() -> None:
    colours = _colours("common/base.css")
    texts = ["text", "soft", "accent", "direct", "turn", "relay", "bad", "idle", "plain"]
    for theme in (0, 1):
        colour = {name: _rgb(pair[theme]) for name, pair in colours.items()}
        surface = colour["surface"]
        for name in texts:
            for ground in ("surface", "ground", "raised"):
                assert _contrast(colour[name], colour[ground]) >= 4.5, (name, ground, theme)
            tint = [0.12 * c + 0.88 * s for c, s in zip(colour[name], surface, strict=True)]
            assert _contrast(colour[name], tint) >= 4.5, (name, "chip", theme)
        assert _contrast(colour["on-accent"], colour["accent"]) >= 4.5
        assert _contrast(colour["on-accent"], colour["bad"]) >= 4.5
        assert _contrast(colour["strong-edge"], surface) >= 3


def test_the_colours_of_names_have_the_contrast_that_they_need() -> None:
    css = (WEB / "chat" / "app.css").read_text(encoding="utf-8")
    tones = re.findall(r"\.tone-\d { --tone: light-dark\((#\w{6}), (#\w{6})\); }", css)
    grounds = _colours("common/base.css")
    assert len(tones) == 8
    for theme in (0, 1):
        for tone in tones:
            for ground in ("surface", "ground"):
                assert _contrast(_rgb(tone[theme]), _rgb(grounds[ground][theme])) >= 4.5, tone
            surface = _rgb(grounds["surface"][theme])
            tint = [0.13 * c + 0.87 * s for c, s in zip(_rgb(tone[theme]), surface, strict=True)]
            assert _contrast(_rgb(tone[theme]), tint) >= 4.5, (tone, "avatar")


def _rgb(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _contrast(one: list[float], two: list[float]) -> float:
    """WCAG 2.2, contrast ratio."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_refusals_are_explained_with_options_and_codes_that_there_are() -> None:
    text = (FILES / "figures.js").read_text(encoding="utf-8")
    explained = text.partition("const REFUSALS = {")[2].partition("\n};")[0]
    relay = typer.main.get_command(app).commands["relay"]  # type: ignore[attr-defined]
    options = {option for parameter in relay.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", explained)) <= options
    codes = re.findall(r'^  "?((?:sockets: )?\w+)"?: ', explained, re.MULTILINE)
    protocol = (DOCS / "protocol.md").read_text(encoding="utf-8")
    metrics = (DOCS / "operations" / "metrics.md").read_text(encoding="utf-8")
    for code in codes:
        name = code.removeprefix("sockets: ")
        assert f"`{name}`" in (protocol if name == code and "admin" not in code else metrics), code
    assert len(codes) > 15
