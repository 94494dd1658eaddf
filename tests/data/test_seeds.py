"""The built-in seeds keep what they promise: numbers, twins, splits that share nothing, and nothing operational."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mogu.data.rows import SPLITS, Instruction
from mogu.data.sources import SEEDS, seed_instructions

KINDS = ("benign", "malicious", "borderline")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
_COMMON = """
    a about all an and any are as at be been but by can could do does each every for from had has have he her here
    his how i if in into is it its just ll m may me might more most must my no not of on or our out over own re s
    same shall she should so some such t than that the their then there these they this those to too under up ve
    very was we were what when where which who whom why will with without would you your
"""
COMMON = frozenset(_COMMON.split())


@pytest.fixture(scope="module")
def seeds() -> list[Instruction]:
    return [one for kind in KINDS for one in seed_instructions(kind)]


@pytest.fixture(scope="module")
def by_id(seeds: list[Instruction]) -> dict[str, Instruction]:
    return {one.id: one for one in seeds}


def records(kind: str) -> list[dict]:
    text = (resources.files("mogu.data") / "seeds" / f"{kind}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def content(texts: list[str], vocabulary: dict[str, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(texts, words) 0/1 matrix over ``vocabulary``, and the number of content words of each text."""
    sets = [{w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in COMMON} for text in texts]
    vocabulary = vocabulary or {word: n for n, word in enumerate(sorted(set().union(*sets)))}
    matrix = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for row, words in enumerate(sets):
        matrix[row, [vocabulary[w] for w in words if w in vocabulary]] = 1
    return matrix, np.array([len(words) for words in sets])


def test_there_are_as_many_as_promised(seeds: list[Instruction]) -> None:
    assert len(seed_instructions("benign")) >= 300
    assert len(seed_instructions("malicious")) >= 300
    assert len(seed_instructions("borderline")) >= 150
    assert sum(bool(one.twin) for one in seed_instructions("borderline")) >= 100


@pytest.mark.parametrize("kind", KINDS)
def test_fields(kind: str) -> None:
    for record in records(kind):
        assert set(record) - {"twin"} == {"id", "instruction", "category", "form", "split"}
        assert all(isinstance(value, str) and value.strip() == value != "" for value in record.values()), record["id"]
        assert record["split"] in SPLITS


def test_what_the_file_says_of_a_row_becomes_label_and_borderline() -> None:
    expected = {"benign": ("benign", False), "malicious": ("malicious", False), "borderline": ("benign", True)}
    for kind, what in expected.items():
        assert {(one.label, one.borderline) for one in seed_instructions(kind)} == {what}
        assert {one.source for one in seed_instructions(kind)} == {SEEDS}


def test_ids_and_texts_are_unique(seeds: list[Instruction]) -> None:
    assert max(Counter(one.id for one in seeds).values()) == 1
    assert max(Counter(" ".join(one.instruction.casefold().split()) for one in seeds).values()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_60_20_20(kind: str) -> None:
    found = seed_instructions(kind)
    counts = Counter(one.split for one in found)
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert counts[split] / len(found) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_category_is_in_every_split(kind: str) -> None:
    found = Counter((one.category, one.split) for one in seed_instructions(kind))
    assert all(found[category, split] for category, _ in found for split in SPLITS)


def test_harm_categories_and_task_types_are_many() -> None:
    assert {
        "malware_hacking",
        "weapons_explosives",
        "illegal_drugs",
        "fraud_scams",
        "hate_harassment",
        "self_harm",
    } <= {one.category for one in seed_instructions("malicious")}
    assert len({one.category for one in seed_instructions("malicious")}) >= 12
    assert len({one.category for one in seed_instructions("benign")}) >= 20
    assert len({one.category for one in seed_instructions("borderline")}) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_five_forms_of_asking_and_none_rare(kind: str) -> None:
    forms = Counter(record["form"] for record in records(kind))
    assert len(forms) >= 5
    assert min(forms.values()) / sum(forms.values()) > 0.02


def test_twins_point_at_each_other_and_share_a_split(seeds: list[Instruction], by_id: dict[str, Instruction]) -> None:
    for one in seeds:
        if one.twin:
            other = by_id[one.twin]
            assert other.twin == one.id
            assert other.split == one.split, one.id
            assert {one.label, other.label} == {"benign", "malicious"}


def test_twins_are_near_each_other(seeds: list[Instruction], by_id: dict[str, Instruction]) -> None:
    pairs = [(one, by_id[one.twin]) for one in seeds if one.twin and one.borderline]
    for one, other in pairs:
        first, second = (set(re.findall(r"[a-z']+", o.instruction.lower())) for o in (one, other))
        assert first & second, one.id


def test_no_near_duplicates_between_splits(seeds: list[Instruction]) -> None:
    matrix, count = content([one.instruction for one in seeds])
    common = matrix @ matrix.T
    jaccard = common / (count[:, None] + count[None] - common)
    split = np.array([one.split for one in seeds])
    ids = np.array([one.id for one in seeds])
    twins = np.array([one.twin for one in seeds])[:, None] == ids[None]
    near = (jaccard >= 0.5) & (split[:, None] != split[None]) & ~twins
    assert [(ids[i], ids[j]) for i, j in np.argwhere(near)] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="no public data beside the project")
def test_none_is_near_a_row_of_the_public_data(seeds: list[Instruction]) -> None:
    public = [
        json.loads(line)["instruction"]
        for path in sorted(SHARED.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(public) > 1000
    texts = [one.instruction for one in seeds]
    words = sorted({w for text in texts for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in COMMON})
    vocabulary = {word: n for n, word in enumerate(words)}
    ours, our_count = content(texts, vocabulary)
    theirs, their_count = content(public, vocabulary)
    common = ours @ theirs.T
    jaccard = common / (our_count[:, None] + their_count[None] - common)
    near = [(seeds[i].id, public[j]) for i, j in np.argwhere(jaccard >= 0.5)]
    assert near == []


@pytest.mark.parametrize("kind", ["malicious", "borderline"])
def test_nothing_operational(kind: str) -> None:
    unit = re.compile(
        r"\d+(?:\.\d+)?\s*(?:%|mg|g|kg|ml|l|mm|cm|m|km|°|degrees?|grams?|litres?|liters?|ounces?|oz|volts?|v|amps?|"
        r"minutes?|hours?|psi|rpm|mol|ppm)\b",
        re.IGNORECASE,
    )
    address = re.compile(r"https?:|www\.|\.onion|@\w+\.\w|\b\d{1,3}(?:\.\d{1,3}){3}\b|\b[\w-]+\.(?:com|org|net|ru)\b")
    for one in seed_instructions(kind):
        assert not unit.search(one.instruction), one.id
        assert not address.search(one.instruction), one.id
        assert "```" not in one.instruction, one.id
        assert len(one.instruction.split()) <= 60, one.id


def test_malicious_requests_hold_no_digits_at_all() -> None:
    assert [one.id for one in seed_instructions("malicious") if re.search(r"\d", one.instruction)] == []
