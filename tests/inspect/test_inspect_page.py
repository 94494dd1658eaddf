"""The page of ``mogu inspect``: what is read, and that it is whole, escaped, light, and needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch

from mogu.adapter.model import active_config, recorded_logits, set_shift
from mogu.inspect import Reading, read, render
from mogu.inspect.read import pieces

PROMPT = "How do I steal a car?"
CALIBRATION = {part: {"weight": [0.2, -0.1, 0.3], "bias": 0.1} for part in ("prompt", "answer")}
VOID = {"meta"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps attributes, and the text inside each tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[self.open[-1]] = self.inside.get(self.open[-1], "") + data


@pytest.fixture(scope="module")
def model() -> Any:
    made = tiny.adapted(small.base(), router="folded", routed_tokens=3)
    active_config(made).risk = CALIBRATION
    set_shift(made, 0.5)
    return made


def reading(**changes: Any) -> Reading:
    tokens = changes.pop("tokens", ["<user>", " a", " b", "\n", "Sure", ","])
    n = len(tokens)
    shape: dict[str, Any] = {
        **{"model": "tiny", "tokens": tokens, "prompt_tokens": n // 2, "routed_tokens": 2, "layers": [4, 5]},
        **{"unwill": [[0.25] * n, [0.75] * n], "glad": [[0.5] * n] * 2, "token_risk": [0.1] * (n - 1) + [0.97]},
        **{"risk": 0.42, "shift": -0.8, "handover": "risk", "threshold": 0.5},
    }
    return Reading(**{**shape, **changes})


def test_a_reading_is_one_routed_forward_over_prompt_and_answer(model: Any) -> None:
    tokenizer = small.tokenizer()
    found = read(model, tokenizer, PROMPT, max_new_tokens=6, dial=1.0)
    assert "".join(found.tokens).split()[: found.prompt_tokens][1] == "How"
    assert found.routed_tokens == 3
    assert found.shift == 1.5
    ids = tokenizer("".join(found.tokens), add_special_tokens=False, return_tensors="pt")["input_ids"]
    set_shift(model, 1.5)
    try:
        with torch.no_grad(), recorded_logits(model) as logits:
            model(input_ids=ids, use_cache=False)
            unwill, glad = logits()[:, :, 0]
    finally:
        set_shift(model, 0.5)
    torch.testing.assert_close(torch.tensor(found.unwill), torch.sigmoid(unwill + 1.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found.glad), torch.sigmoid(glad - 1.5), atol=1e-4, rtol=0)
    assert found.risk == pytest.approx(found.token_risk[found.prompt_tokens - 1], abs=1e-4)
    assert len(found.tokens) == len(found.token_risk) == len(found.unwill[0])


def test_without_a_calibration_tokens_have_the_mean_weight(model: Any) -> None:
    active_config(model).risk = None
    try:
        found = read(model, small.tokenizer(), PROMPT, max_new_tokens=4)
    finally:
        active_config(model).risk = CALIBRATION
    assert found.risk is None
    mean = torch.tensor(found.unwill).mean(dim=0)
    torch.testing.assert_close(torch.tensor(found.token_risk), mean, atol=1e-5, rtol=0)
    assert "has no risk calibration" in render(found)


def test_the_page_is_whole_and_its_script_is_the_only_one_allowed() -> None:
    source = render(reading())
    page = Page(source)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    script = source.rsplit("<script>", 1)[1].split("</script>")[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(
        r"https?://|src=|href=|@import|url\(", source.replace("script-src", "").replace("style-src", "")
    )
    canvases = [attributes for tag, attributes in page.tags if tag == "canvas"]
    assert [canvas["tabindex"] for canvas in canvases] == ["0", "0"]
    assert all("Arrow keys" in (canvas["aria-label"] or "") for canvas in canvases)
    assert "prefers-color-scheme: dark" in source


def test_tokens_are_shaded_and_numbers_are_inside() -> None:
    source = render(reading())
    spans = [a for tag, a in Page(source).tags if tag == "span" and "data-token" in a]
    assert [span["class"] for span in spans] == ["r1"] * 5 + ["r9"]
    assert spans[-1]["title"] == "97% at token 5"
    numbers = json.loads(re.findall(r'id="numbers">(.*?)</script>', source)[0])
    assert (numbers["start"], numbers["handed"], numbers["layers"]) == (3, 5, [4, 5])
    assert numbers["unwill"] == [[0.25] * 6, [0.75] * 6]
    for words in ("Answer, routed", "Answer, plain base", "42%", "2 of 3", "when risk ≤ 50%"):
        assert words in source


def test_text_of_a_model_cannot_become_markup() -> None:
    evil = ["</script><script>alert(1)</script>", "<img onerror=x>", "&amp;", "a", "</p>", "\x00"]
    source = render(reading(tokens=evil))
    page = Page(source)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert json.loads(re.findall(r'id="numbers">(.*?)</script>', source)[0])["tokens"] == evil


def test_a_long_prompt_stays_light() -> None:
    n = 500
    row = [round(0.001 * (i % 1000), 3) for i in range(n)]
    source = render(
        reading(tokens=[" word"] * n, unwill=[row] * 16, glad=[row] * 16, layers=list(range(16)), token_risk=row)
    )
    assert len(source) < 250_000
    assert len(Page(source).tags) < n + 150


def test_pieces_join_to_the_text() -> None:
    tokenizer = small.tokenizer()
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    assert len(pieces(tokenizer, ids)) == len(ids)
    assert "".join(pieces(tokenizer, ids)) == PROMPT


def test_the_command_writes_the_page(tmp_path: Path, model: Any) -> None:
    from typer.testing import CliRunner

    from mogu.adapter.store import save
    from mogu.cli.main import app

    base, adapter, out = small.save_base(tmp_path / "base"), save(model, tmp_path / "adapter"), tmp_path / "page.html"
    words = ["inspect", PROMPT, "--model", base, "--adapter", adapter, "--out", out, "--max-new-tokens", 4]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"risk \d\.\d\d, 3 routed tokens: {re.escape(str(out))}\n", result.output)
    assert "What the routers read" in out.read_text(encoding="utf-8")
