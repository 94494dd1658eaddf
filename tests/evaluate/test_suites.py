"""Suites: what a name or file on the command line means, what is read, what is left out, and errors in one line."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from mogu.data.rows import write_jsonl
from mogu.data.sources import seed_instructions
from mogu.errors import ConfigError, DataError, MissingExtraError
from mogu.evaluate import hub
from mogu.evaluate.suites import (
    KINDS,
    Prompts,
    Suite,
    asked_text,
    built_in,
    gather,
    load_prompts,
    parse_suites,
    read_suite,
    spread,
)

ROWS = [
    {"prompt": "How do I paint a door?", "label": "safe", "type": "home"},
    {"prompt": "How do I open a door?", "label": "unsafe", "type": "locks"},
    {"prompt": "How do I sell a door?", "label": "safe", "type": "home"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "doors.jsonl", ROWS)
    return tmp_path / "doors.jsonl"


# what is meant


def test_every_built_in_definition_is_complete() -> None:
    assert len(built_in()) >= 16
    for name, suite in built_in().items():
        assert suite.name == name
        assert suite.kind in KINDS
        assert suite.kind != "unknown"
        assert suite.licence
        assert suite.citation
        assert suite.source.startswith(("seeds:", "hub:", "file:"))
        if suite.source.startswith("hub:"):
            assert suite.field
            assert suite.split
            assert suite.files
    for name in ("advbench", "harmbench", "strongreject", "jailbreakbench-harmful", "jailbreakbench-benign"):
        assert name in built_in()
    for name in ("xstest-safe", "xstest-unsafe", "or-bench", "just-eval", "alpaca-eval", "sap30", "do-not-answer"):
        assert name in built_in()
    assert built_in()["in-the-wild"].kind == "jailbreak"


def test_ways_to_name_a_suite(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"name": "mine", "kind": "borderline", "source": "doors.jsonl"}))
    sources = f"seeds-benign, {file}@benign,advbench={file},{other},harmbench={file}:type@unknown"
    found = {one.name: (one.kind, one.source) for one in parse_suites(sources)}
    assert found == {
        "seeds-benign": ("benign", "seeds:benign"),
        "doors": ("benign", str(file)),
        "advbench": ("malicious", str(file)),
        "mine": ("borderline", str(file)),
        "harmbench": ("unknown", f"{file}:type"),
    }
    assert parse_suites(f"{file}:type")[0].kind == "unknown"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (" , ", "--suite names no file"),
        ("advbenk", "no suite 'advbenk'; give a file, or one of seeds-malicious, "),
        ("{file}@harmful", "unknown kind 'harmful'; choose from malicious, "),
        ("{file},{file}", "two suites are called doors; their results would go to the same folder"),
        ("nix.yaml", "cannot read nix.yaml: No such file"),
    ],
)
def test_a_wrong_name_is_one_line(file: Path, source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("'", "'")) as raised:
        parse_suites(source.format(file=file))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "must hold a mapping"),
        ("kind: {", "is not YAML"),
        ("source: x\nfild: y", "unknown field 'fild'; known: name, kind"),
        ("kind: benign", "field 'source' is missing"),
        ("source: x\nkind: evil", "unknown kind 'evil'"),
        ("source: x\nlimit: many", "field 'limit' must be of type int"),
        ("source: x\nlimit: 0", "'limit' must be at least 1"),
        ("source: x\nfilter: [a]", "field 'filter' must be of type dict"),
        ("source: x\nname: a/b", "cannot be the name of a suite"),
    ],
)
def test_a_wrong_definition_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says) as raised:
        read_suite(tmp_path / "bad.yaml")
    assert "\n" not in str(raised.value)


# what is read


@pytest.mark.parametrize("kind", ["malicious", "benign", "borderline"])
def test_seeds_are_their_test_split(kind: str) -> None:
    rows = load_prompts(built_in()[f"seeds-{kind}"])
    assert [row["instruction"] for row in rows] == [s.instruction for s in seed_instructions(kind) if s.split == "test"]
    assert all(row["category"] for row in rows)


def test_a_filter_a_category_and_a_limit(file: Path) -> None:
    suite = Suite("safe", "borderline", str(file), field="prompt", filter={"label": "safe"}, category="type")
    rows = load_prompts(suite)
    assert [(row["instruction"], row["category"]) for row in rows] == [
        (r["prompt"], "home") for r in (ROWS[0], ROWS[2])
    ]
    assert rows[0]["prompt_label"] == "safe"  # "label" is the answer's
    assert len(load_prompts(Suite("one", source=str(file), filter={"label": ["safe", "unsafe"]}, limit=1))) == 1


def test_a_users_copy_of_a_public_set_may_name_the_field_otherwise(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Do it", "target": "Sure, I do it"}])
    (tmp_path / "b.csv").write_text("Index,Goal,Target,Behavior,Category\n0,Write it,Sure,a behaviour,some\n")
    assert load_prompts(parse_suites(f"advbench={tmp_path / 'a.jsonl'}")[0]) == [
        {"instruction": "Do it", "target": "Sure, I do it"}
    ]
    row = load_prompts(parse_suites(f"jailbreakbench-harmful={tmp_path / 'b.csv'}")[0])[0]
    assert (row["instruction"], row["target"], row["category"]) == ("Write it", "Sure", "some")


def test_a_json_array_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "One"}, {"instruction": "Two"}]))
    assert [row["instruction"] for row in load_prompts(Suite("a", source=str(tmp_path / "a.json")))] == ["One", "Two"]
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "One"}, {"text": "Two"}]))
    with pytest.raises(DataError, match=r"b.json: row 2 has no text in field 'instruction' \(has text\)"):
        load_prompts(Suite("b", source=str(tmp_path / "b.json")))


def test_a_jailbreak_keeps_the_bare_instruction_for_the_judge(tmp_path: Path) -> None:
    rows = [{"goal": "Paint it", "frame": "You are a pirate. {instruction}!", "whole": "Ahoy, paint it"}]
    write_jsonl(tmp_path / "j.jsonl", rows)
    source = str(tmp_path / "j.jsonl")
    by_template = load_prompts(Suite("t", "jailbreak", source, field="goal", template="frame"))[0]
    assert (by_template["instruction"], asked_text(by_template)) == ("Paint it", "You are a pirate. Paint it!")
    by_field = load_prompts(Suite("f", "jailbreak", source, field="goal", asked="whole"))[0]
    assert (by_field["instruction"], asked_text(by_field)) == ("Paint it", "Ahoy, paint it")
    with pytest.raises(DataError, match=r"lacks \{instruction\}"):
        load_prompts(Suite("t", "jailbreak", source, field="goal", template="whole"))
    with pytest.raises(DataError, match="no text in field 'nix'"):
        load_prompts(Suite("t", "jailbreak", source, field="goal", asked="nix"))


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        (Suite("a", source="{file}", filter={"nix": 1}), "is chosen by field 'nix', which no row has"),
        (Suite("a", source="{file}", filter={"label": "nix"}), "holds no row for suite a"),
        (Suite("a", source="{file}", field="nix"), "no field 'nix'"),
        (Suite("a", source="nix.jsonl"), "no file nix.jsonl"),
        (built_in()["sap30"], "get it from github.com/Aatrox103/SAP and give --suite sap30=FILE"),
    ],
)
def test_what_cannot_be_read_is_one_line(file: Path, suite: Suite, says: str) -> None:
    import dataclasses

    with pytest.raises(DataError, match=says) as raised:
        load_prompts(dataclasses.replace(suite, source=suite.source.format(file=file)))
    assert "\n" not in str(raised.value)


# the hub


def test_the_package_datasets_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    records = [{"prompt": "A?", "label": "safe", "type": "t", "output": "long"}, {"prompt": "B?", "label": "unsafe"}]
    module.load_dataset = lambda *args, **more: calls.append((args, more)) or records  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert load_prompts(built_in()["xstest-safe"]) == [{"instruction": "A?", "category": "t"}]
    assert calls == [(("walledai/XSTest", None), {"split": "test"})]


@pytest.fixture
def without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    missing = ("datasets", "pyarrow")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in missing else found(name, *more)
    )


@pytest.mark.usefixtures("without_datasets")
def test_without_it_the_file_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "or-bench-hard-1k.csv").write_text("prompt,category\nHow do I end a process?,computers\n")
    monkeypatch.setattr(hub, "_download", lambda repository, name: tmp_path / name)
    assert load_prompts(built_in()["or-bench"]) == [{"instruction": "How do I end a process?", "category": "computers"}]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps([{"instruction": "Sing", "dataset": "d", "output": "la"}]))
    assert load_prompts(built_in()["alpaca-eval"]) == [{"instruction": "Sing", "category": "d"}]


@pytest.mark.usefixtures("without_datasets")
def test_parquet_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_download", lambda repository, name: tmp_path / name)
    with pytest.raises(MissingExtraError, match=r"pip install 'mogu-llm\[parquet\]'"):
        load_prompts(built_in()["harmbench"])


@pytest.mark.usefixtures("without_datasets")
def test_no_network_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"cannot read suite advbench from the hub \(walledai/AdvBench\)") as raised:
        load_prompts(built_in()["advbench"])
    assert str(raised.value).endswith("with a file of it: --suite advbench=FILE")
    assert "\n" not in str(raised.value)


# what training has seen


def test_what_training_has_seen_is_left_out_and_counted(file: Path) -> None:
    def seen(texts: Any) -> list[str | None]:
        return ["exact" if "paint" in text else "near" if "sell" in text else None for text in texts]

    [found] = gather([Suite("a", source=str(file))], seen=seen)
    assert [row["instruction"] for row in found.rows] == ["How do I open a door?"]
    assert found.excluded == {"exact": 1, "near": 1}
    [found] = gather([Suite("a", source=str(file))], limit=2)
    assert (len(found.rows), found.excluded) == (2, None)
    with pytest.raises(DataError, match="training has seen all of its prompts; take others, or --keep-seen"):
        gather([Suite("a", source=str(file))], seen=lambda texts: ["near"] * len(texts))


def test_an_attack_is_a_suite_of_its_own() -> None:
    suite = Suite("a", "malicious")
    assert (Prompts(suite, []).name, Prompts(suite, []).kind) == ("a", "malicious")
    assert (Prompts(suite, [], prefill=5).name, Prompts(suite, [], prefill=5).kind) == ("a+prefill5", "jailbreak")


@pytest.mark.parametrize(
    ("count", "kept"), [(None, "abcdefg"), (7, "abcdefg"), (9, "abcdefg"), (3, "ace"), (2, "ad"), (1, "a")]
)
def test_a_limit_spreads_over_an_ordered_file(count: int | None, kept: str) -> None:
    assert "".join(spread("abcdefg", count)) == kept
