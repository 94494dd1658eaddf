"""The playground's files as they are served: what they may do, what they say of the server, and who gets them."""

from __future__ import annotations

import re
from importlib import resources

import pytest
import scripted

FOLDER = resources.files("mogu.serve") / "playground"
FILES = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}


def test_the_page_and_all_that_it_names(serve) -> None:
    client = serve(playground=True)
    page = client.get("/playground")
    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    named += [f"playground/{name}" for name in FILES if name.endswith(".js")]
    assert {"playground/style.css", "playground/main.js", "playground/icon.svg"} <= set(named)
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in named:
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/playground/..%2fpage.py").status_code == 404


def test_scripts_import_only_files_that_are_there() -> None:
    imported = {name for text in FILES.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert imported
    assert imported <= set(FILES)


def test_nothing_from_elsewhere_and_nothing_inside_the_page(serve) -> None:
    policy = serve(playground=True).get("/playground").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert (rules["frame-ancestors"], rules["require-trusted-types-for"]) == ("'none'", "'script'")
    for name, text in FILES.items():
        outside = [
            url for url in re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text) if "w3.org/2000/svg" not in url
        ]
        assert outside == [], name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text), (
            name
        )
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", FILES["index.html"])


def test_it_is_served_only_where_it_is_wanted(serve) -> None:
    client = serve()
    for path in ("/playground", "/playground/main.js", "/playground/settings"):
        assert client.get(path).status_code == 404
    assert "/playground" not in serve(playground=True).get("/openapi.json").text


def test_what_the_page_must_know(serve) -> None:
    told = serve(playground=True, dial=1.0, allow_overrides=True, max_tokens=20).get("/playground/settings").json()
    assert told == {
        "model": "tiny",
        "layers": list(scripted.LAYERS),
        "routed_tokens": 2,
        "handover": "fixed",
        "risk_threshold": 0.5,
        "calibrated": True,
        "dial": 1.0,
        "allow_overrides": True,
        "max_tokens": 20,
    }


def test_with_keys_the_page_is_open_and_what_it_knows_is_not(serve) -> None:
    client = serve(playground=True, keys=("secret",))
    assert client.get("/playground").status_code == 200
    assert client.get("/playground/settings").status_code == 401
    answer = client.get("/playground/settings", headers={"authorization": "Bearer secret"})
    assert answer.json()["model"] == "tiny"
    assert "secret" not in client.get("/playground").text + answer.text


PAIRS = [
    *((text, paper) for text in ("text", "soft") for paper in ("paper", "card")),
    *(("text", paper) for paper in ("ask", "mark", "low")),
    *(("bad", "bad-paper"), ("good", "good-paper"), ("on-act", "act"), ("act", "paper")),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """WCAG 2 level AA: 4.5 to 1 for text, 3 to 1 for the edges of fields."""
    light, dark = re.findall(r":root \{(.*?)\}", FILES["style.css"], re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): #(\w{6})", light if scheme == "light" else dark))
    for text, paper in PAIRS:
        assert _contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    assert _contrast(colours["field"], colours["card"]) >= 3


def _contrast(one: str, other: str) -> float:
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
