"""From judged responses to the numbers of an evaluation: pure functions on rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.metrics import discordant, mcnemar, rates
from mogu.evaluate.suites import HARMFUL, OWN_FIELDS, Prompts
from mogu.evaluate.text import distinct, rouge_l, words
from mogu.judge import judge_response

BASE = "none"
"""The defence that all others are compared with."""
_EXAMPLES = 4
_FLIPS = 3
OUTCOMES = ("refusal", "complied", "degenerate")
"""Labels of the paired test."""

Row = dict[str, Any]


def shown(name: str) -> str:
    """What people read for the name of a defence: none is the base."""
    return "base" if name == BASE else name


def judged(
    suite: Prompts,
    index: int,
    defense: str,
    reply: Any,
    seed: int | None,
    perplexity: float | None,
    max_perplexity: float | None,
) -> Row:
    """One line of ``responses.jsonl``: prompt, answer, label and reasons.

    The judge reads the bare instruction, also where the model was asked in other words, and of a prefilled answer the
    part that the model wrote.
    """
    prompt = suite.rows[index]
    limits = {"perplexity": perplexity, "max_perplexity": max_perplexity}
    verdict = judge_response(str(prompt["instruction"]), reply.answer, **limits)
    theirs = {k: v for k, v in prompt.items() if k not in OWN_FIELDS}
    mine = {k: prompt[k] for k in ("asked", "prefill") if k in prompt}
    row: Row = {"suite": suite.name, "kind": suite.kind, "defense": defense}
    if seed is not None:
        row["seed"] = seed
    row |= {**theirs, **mine, "response": reply.answer, "label": verdict.label, "reasons": list(verdict.reasons)}
    if reply.stopped_by is not None:
        row |= {"stopped_by": reply.stopped_by, "stopped_because": reply.reason}
    if perplexity is not None:
        row["perplexity"] = round(perplexity, 3)
    return row


def suite_summary(suite: Prompts, answers: Mapping[str, Sequence[Row]], fingerprint: str) -> dict[str, Any]:
    """What each defence did on one suite; ``answers`` by defence, each seed's in the order of the prompts."""
    n = len(suite.rows)
    found: dict[str, Any] = {"name": suite.name, "kind": suite.kind, "n": n, "sha256": fingerprint}
    for key in ("licence", "citation"):
        if value := getattr(suite.suite, key):
            found[key] = value
    if suite.excluded is not None:
        found["excluded"] = dict(suite.excluded)
    found["systems"] = {
        name: rates(rows, [index % n for index in range(len(rows))] if len(rows) > n else None)
        for name, rows in answers.items()
    }
    for name, rows in answers.items():
        if by_perplexity := sum(_only_by_perplexity(row) for row in rows):
            found["systems"][name]["degenerate_by_perplexity"] = by_perplexity
    found["mcnemar"] = _tests(answers, n)
    if categories := _by_category(answers):
        found["categories"] = categories
    return found


def _only_by_perplexity(row: Row) -> bool:
    """Whether nothing but its perplexity makes an answer degenerate."""
    return row["label"] == "degenerate" and all(reason.startswith("perplexity:") for reason in row["reasons"])


def _tests(answers: Mapping[str, Sequence[Row]], n: int) -> dict[str, Any]:
    """Paired tests of each defence against the base, on the answers of the first seed."""
    if BASE not in answers:
        return {}
    base = [row["label"] for row in answers[BASE][:n]]
    tests: dict[str, Any] = {}
    for name, rows in answers.items():
        if name != BASE:
            labels = [row["label"] for row in rows[:n]]
            tests[name] = {}
            for outcome in OUTCOMES:
                only_base, only_this = discordant(base, labels, outcome)
                p = mcnemar(base, labels, outcome)
                tests[name][outcome] = {"only_base": only_base, "only_this": only_this, "p": p}
    return tests


def _by_category(answers: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts of labels by category and defence; empty without categories."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, rows in answers.items():
        for row in rows:
            if category := str(row.get("category") or ""):
                counts = found.setdefault(category, {}).setdefault(name, {"n": 0, "refusal": 0, "complied": 0})
                counts["n"] += 1
                for label in ("refusal", "complied"):
                    counts[label] += row["label"] == label
    return dict(sorted(found.items()))


def usability(answers: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Any]]:
    """How each defence's answers to benign prompts read, and how far they are from the base's, without a model.

    ``words`` is the mean length, ``length_ratio`` that over the base's, ``distinct_1`` and ``distinct_2`` shares of
    different words and pairs of words, ``rouge_l`` the mean over prompts against the base's answer.
    """
    found = {}
    for name, rows in answers.items():
        texts = [row["response"] for row in rows]
        if not texts:
            continue
        length = sum(len(words(text)) for text in texts) / len(texts)
        one: dict[str, Any] = {"n": len(texts), "words": round(length, 2)}
        one |= {f"distinct_{n}": _round(distinct(texts, n)) for n in (1, 2)}
        if name != BASE and len(base := answers.get(BASE, ())) == len(texts):
            references = [row["response"] for row in base]
            base_length = sum(len(words(text)) for text in references) / len(references)
            one["length_ratio"] = _round(length / base_length if base_length else None)
            each = [rouge_l(text, reference) for text, reference in zip(texts, references, strict=True)]
            one["rouge_l"] = _round(sum(each) / len(each))
        found[name] = one
    return found


def flips(suites: Sequence[Prompts], answers: Mapping[tuple[str, str], Sequence[Row]]) -> list[dict[str, Any]]:
    """Prompts on which a defence refuses and the base complies, or the reverse: counts, and the first few of each."""
    found = []
    for suite in suites:
        base = answers.get((BASE, suite.name), ())[: len(suite.rows)]
        for name in dict.fromkeys(name for name, _ in answers):
            pairs = list(zip(base, answers.get((name, suite.name), ()), strict=False)) if name != BASE else []
            for before, after in (("complied", "refusal"), ("refusal", "complied")):
                hits = [(b, a) for b, a in pairs if b["label"] == before and a["label"] == after]
                if hits:
                    good = (after == "refusal") == (suite.kind in HARMFUL)
                    found.append(
                        {
                            **{"suite": suite.name, "kind": suite.kind, "defense": name, "base": before, "then": after},
                            **{"good": good, "n": len(hits), "of": len(pairs)},
                            "examples": [example({BASE: b, name: a}) for b, a in hits[:_FLIPS]],
                        }
                    )
    return found


def examples(suites: Sequence[Prompts], answers: Mapping[tuple[str, str], Sequence[Row]]) -> list[dict[str, Any]]:
    """The first prompts of every kind with the answers of all defences."""
    found: list[dict[str, Any]] = []
    names = list(dict.fromkeys(name for name, _ in answers))
    for suite in suites:
        room = _EXAMPLES - sum(one["kind"] == suite.kind for one in found)
        for index in range(min(room, len(suite.rows))):
            found.append(example({name: answers[name, suite.name][index] for name in names}))
    return found


def example(rows: Mapping[str, Row]) -> dict[str, Any]:
    """One prompt with the answers of several defences, as the report shows it."""
    first = next(iter(rows.values()))
    kept: Row = {key: first[key] for key in ("kind", "instruction", "asked", "prefill") if key in first}
    return {
        **kept,
        "answers": {name: {"response": row["response"], "label": row["label"]} for name, row in rows.items()},
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
