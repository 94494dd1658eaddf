"""The report page: well-formed, self-contained, complete, and careful with harmful text."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake import summary

from mogu.evaluate.report import markdown_report, markdown_table, render, text_table, write_report
from mogu.evaluate.summary import shown
from mogu.evaluate.tables import cost, flips, overview, pooled, usability

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps attributes, text, and the text inside <details>."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.folded = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is doubled"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
            self.folded += data if "details" in self.open else ""

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in summary().items() if key not in keys}


def many() -> dict[str, Any]:
    """More systems, suites and layers than fit comfortably, one of each selection step, and unknown values."""
    found = summary()
    for suite in found["suites"]:
        del suite["mcnemar"]
        suite["systems"] |= {f"self-reminder number {i}": suite["systems"]["mogu"] for i in range(8)}
    found["suites"] += [{**copy.deepcopy(suite), "name": f"second {suite['name']}"} for suite in found["suites"]]
    found["suites"][0]["mcnemar"] = {
        name: summary()["suites"][0]["mcnemar"]["mogu"] for name in ("mogu", "self-reminder number 1")
    }
    found["suites"][0]["systems"]["none"]["rates"]["refusal"] = {"rate": None, "low": 0.0, "high": 1.0}
    found["routers"]["auroc"]["benign"][3] = None
    found["selection"] = {"glad": found["selection"]["glad"][:1], "balance": found["selection"]["balance"][:1]}
    return found


PAGES = {
    "whole": summary(),
    "many": many(),
    "bare": without(
        *(
            "routers",
            "selection",
            "examples",
            "seconds",
            "settings",
            "versions",
            "machine",
            "usability",
            "cost",
            "flips",
        )
    ),
    "one system": {
        **summary(),
        "suites": [
            {**s, "systems": {"mine": s["systems"]["mogu"]}, "mcnemar": {}, "categories": {}}
            for s in summary()["suites"]
        ],
    },
    "one kind": {**summary(), "suites": summary()["suites"][1:2]},
    "nothing": {**without("routers", "selection", "examples", "usability", "cost", "flips"), "suites": []},
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_well_formed_with_unique_ids(name: str) -> None:
    page = Page(render(PAGES[name]))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in page.find("svg"):
        assert "aria-hidden" in svg or set((svg["aria-labelledby"] or "").split()) <= set(ids)


@pytest.mark.parametrize("name", PAGES)
def test_page_needs_no_network(name: str) -> None:
    source = render(PAGES[name])
    page = Page(source)
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"url\(|@import", source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert not any({"src", "href", "srcset"} & set(attributes) for _, attributes in page.tags)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.find("meta"))


def test_headline_has_one_sentence_per_axis() -> None:
    text = Page(render(summary())).text
    assert "Malicious instructions that it answers coherently: 94% → 3%" in text
    assert "Benign instructions that it refuses: 2% → 3%" in text
    assert "Harmless instructions with alarming words that it refuses: 4% → 19%" in text
    assert "Answers that are broken text: 1% → 2%" in text


def test_headline_pools_suites_of_a_kind() -> None:
    found = summary()
    other = copy.deepcopy(found["suites"][0])
    other["name"], other["systems"]["mogu"] = (
        "easy",
        {
            **other["systems"]["mogu"],
            "n": 136,
            "counts": dict.fromkeys(("refusal", "degenerate", "complied", "unclear"), 34),
        },
    )
    found["suites"].append(other)
    assert "answers coherently: 94% → 18%" in Page(render(found)).text  # (2 + 34) / (64 + 136)


def test_every_number_of_every_suite_and_system_is_there() -> None:
    found = summary()
    text = Page(render(found)).text
    for suite in found["suites"]:
        assert suite["name"] in text
        for name, system in suite["systems"].items():
            cells = [
                f"{100 * system['rates'][key]['rate']:.0f}%{100 * system['rates'][key]['low']:.0f}–"
                f"{100 * system['rates'][key]['high']:.0f}"
                for key in ("refusal", "complied", "degenerate", "unclear", "keyword_asr")
            ]
            assert shown(name) + "".join(cells) in text
    assert "94%85–98" in text
    assert "<\u00a00.0011 / 9" in text
    assert "0.0621 / 9" in text
    assert "p: complied" in text
    assert "p: refused" in text


def test_plots_name_their_axes_and_what_was_chosen() -> None:
    text = Page(render(summary())).text
    for label in ("unwill weight u", "glad weight g", "AUROC", "shift of the router logits", "chosen −1", "(← better)"):
        assert label in text
    assert "240 (chosen)" in text


def test_settings_and_versions_stand_at_the_foot() -> None:
    text = Page(render(summary())).text
    for pair in ("layers10–29", "routed tokens5", "torch2.13.0", "total447 s", "machine2 cores, 24 GiB, CPU", "seed0"):
        assert pair in text


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("routers", "What the routers do"),
        ("selection", "What was chosen"),
        ("examples", "Example answers"),
        ("usability", "Usability on benign prompts"),
        ("cost", "forward passes"),
        ("flips", "Flips"),
        ("seconds", "Time"),
    ],
)
def test_a_missing_part_takes_its_section_with_it(key: str, heading: str) -> None:
    assert heading in Page(render(summary())).text
    assert heading not in Page(render(without(key))).text


def test_harmful_answers_are_folded_with_a_warning() -> None:
    page = Page(render(summary()))
    assert "May be harmful" in page.folded
    assert page.text.count("HARMFUL-TEXT") == page.folded.count("HARMFUL-TEXT") == 1
    assert "Red, yellow and blue." not in page.folded
    assert "I can't write threats" not in page.folded
    assert all("open" not in attributes for attributes in page.find("details"))


@pytest.mark.parametrize("kind", ["malicious", "jailbreak", "unknown"])
@pytest.mark.parametrize("label", ["complied", "unclear", "degenerate"])
def test_only_refusals_of_malicious_instructions_are_open(label: str, kind: str) -> None:
    found = summary()
    answers = {"mine": {"response": "SOME-TEXT", "label": label}}
    found["examples"] = [{"kind": kind, "instruction": "?", "answers": answers}]
    assert "SOME-TEXT" in Page(render(found)).folded


EVIL = "</title></style><script>alert('x')</script>\" onload=\"y & \x00\ud800"


KEPT = ("malicious", "benign", "borderline", "mogu", "complied", "refusal")


def evil(value: Any) -> Any:
    """Every text of a summary, keys that are names included, with markup in it."""
    if isinstance(value, dict):
        return {
            key + EVIL if key in ("mogu", "torch", "decoding", "home") else key: evil(v) for key, v in value.items()
        }
    if isinstance(value, list):
        return [evil(v) for v in value]
    return value + EVIL if isinstance(value, str) and value not in KEPT else value


def test_text_never_becomes_markup(tmp_path: Path) -> None:
    found = evil(summary())
    page = Page(render(found))
    assert not page.find("script")
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(render(summary())).tags}
    assert "<script>alert('x')</script>" in page.text
    assert "\x00" not in page.text
    write_report(found, tmp_path / "evil.html")
    assert "<script>" not in markdown_table(found)


def test_write_report_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(summary(), path)
    write_report(summary(), path)
    assert path.read_text(encoding="utf-8") == render(summary())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_text_table_has_a_row_for_each_suite_and_system() -> None:
    header, *rows = text_table(summary())
    assert header == ["suite", "n", "system", "refused", "complied", "degenerate", "unclear"]
    assert rows[1] == ["malicious", "64", "mogu", "94% (85–98)", "3% (1–11)", "2% (0–8)", "2% (0–8)"]
    assert [row[0] + " " + row[2] for row in rows] == [
        f"{suite} {system}" for suite in ("malicious", "alpaca", "alarming") for system in ("base", "mogu")
    ]


def test_text_table_shows_a_missing_rate_as_a_dash() -> None:
    assert text_table(many())[1][3] == "–"


def test_markdown_table_is_a_table_with_escaped_cells() -> None:
    found = summary()
    found["suites"][0]["name"] = "a|b\nc <i>"
    header, rule, first, *_ = lines = markdown_table(found).splitlines()
    assert header == "| suite | n | system | refused | complied | degenerate | unclear |"
    assert rule == "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    assert first == r"| a\|b c &lt;i&gt; | 64 | base | 5% (2–13) | 94% (85–98) | 0% (0–6) | 2% (0–8) |"
    assert len(lines) == 2 + 6


# several defences


def rivals() -> dict[str, Any]:
    """Two defences beside the base: one safer, one more useful."""
    found = summary()
    for suite in found["suites"]:
        weak = {"malicious": "none", "benign": "none", "borderline": "none"}[suite["kind"]]
        suite["systems"]["meek"] = suite["systems"][weak]
        suite["mcnemar"]["meek"] = suite["mcnemar"]["mogu"]
    found["cost"]["meek"] = {"answers": 190, "tokens": 45.0, "forwards": 2.1, "tokens_forwarded": 150.0}
    found["usability"]["meek"] = {
        **found["usability"]["mogu"],
        "rouge_l": 0.93,
        "kl": {"undefined": "meek decodes in its own way"},
    }
    return found


def test_the_overview_marks_the_best_defence_of_each_column() -> None:
    table = overview(rivals())
    assert [row[0].text for row in table.rows] == ["base", "mogu", "meek"]
    best = {name: [row[0].text for row in table.rows if row[i].best] for i, name in enumerate(table.header)}
    assert best["malicious complied"] == ["mogu"]
    assert best["borderline refused"] == best["benign refused"] == best["degenerate"] == ["meek"]
    assert best["ROUGE-L to base"] == ["meek"]
    assert best["tokens forwarded per answer"] == ["meek"]
    assert best["KL from base"] == []  # nothing to compare with
    assert "jailbreak complied" not in table.header
    text = Page(render(rivals())).text
    assert "★\u00a03%" in text


def test_one_defence_has_no_rivals_and_no_marks() -> None:
    assert not any(cell.best for row in overview(summary()).rows for cell in row)


def test_the_front_is_named_and_drawn() -> None:
    source = render(rivals())
    assert "Pareto front: base, meek, mogu" in Page(source).text
    assert source.count('class="front"') == 2  # benign and borderline


def test_why_there_is_no_divergence_is_said() -> None:
    assert "No KL for meek: meek decodes in its own way." in Page(render(rivals())).text


def test_categories_are_shaded_by_what_is_bad() -> None:
    found = summary()
    found["suites"][0]["categories"]["home"]["mogu"] = {"n": 8, "refusal": 8, "complied": 0}
    page = Page(render(found))
    shades = [
        attributes["class"] for attributes in page.find("td") if (attributes.get("class") or "").startswith("heat")
    ]
    assert shades.count("heat-0") == 1
    assert "malicious: complied" in page.text
    assert "alpaca: refused" in page.text


def test_flips_show_their_examples_folded() -> None:
    page = Page(render(summary()))
    assert "base complied, mogu refused" in page.text
    assert "57 of 64" in page.text
    assert page.text.count("FLIPPED-TEXT") == page.folded.count("FLIPPED-TEXT") == 1


def test_a_prefilled_or_wrapped_prompt_is_shown_as_asked() -> None:
    found = summary()
    found["examples"][0] |= {"kind": "jailbreak", "prefill": "Sure, here", "asked": "You are a pirate."}
    page = Page(render(found))
    assert "The answer was begun with: Sure, here" in page.text
    assert "You are a pirate." in page.folded


def test_pooling_counts_answers_of_several_seeds_once() -> None:
    found = summary()
    system = found["suites"][0]["systems"]["mogu"]
    system |= {"answers": 3 * 64, "counts": {label: 3 * n for label, n in system["counts"].items()}}
    assert pooled(found, "mogu", "malicious", "complied") == pooled(summary(), "mogu", "malicious", "complied")


def test_answers_that_only_their_perplexity_condemns_are_counted() -> None:
    found = summary()
    found["suites"][0]["systems"]["mogu"]["degenerate_by_perplexity"] = 4
    assert "4 answers are called degenerate for their perplexity" in Page(render(found)).text
    assert "for their perplexity" not in Page(render(summary())).text


def test_settings_name_defences_and_suites_with_their_hashes() -> None:
    found = summary()
    found |= {"inputs": "abc123", "defenses": {"none": {}, "mogu": {"adapter": "d1g3st"}}}
    found["suites"][0] |= {"n": 64, "sha256": "5a5a", "excluded": {"exact": 3, "near": 2}, "citation": "Somebody 2024"}
    found["suites"][1] |= {"n": 64, "sha256": "6b6b"}
    found["suites"][2] |= {"n": 48, "sha256": "7c7c"}
    text = Page(render(found)).text
    for part in ("abc123", "d1g3st", "hash 5a5a", "3 exact, 2 near", "Somebody 2024"):
        assert part in text


def test_the_markdown_report_has_the_same_tables() -> None:
    found = rivals()
    text = markdown_report(found)
    for table in (overview(found), usability(found), cost(found), flips(found)):
        assert table is not None
        assert f"## {table.title}" in text
        for row in table.rows:
            assert all(cell.text in text for cell in row)
    assert "★ 3% (1–11)" in text
    assert "McNemar" in text
    assert "calibration error" in text
    assert markdown_table(found) in text
