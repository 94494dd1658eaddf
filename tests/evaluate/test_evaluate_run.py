"""Defences on suites: every prompt answered once and judged, the same files after an interruption, nothing mixed up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch

from mogu.adapter import store
from mogu.adapter.model import plain_base
from mogu.defend import Conversation, Defense, Pipeline, Stopped, Target, create
from mogu.errors import ConfigError, DataError
from mogu.evaluate.ask import ANSWERS_FILE, Sampling
from mogu.evaluate.forcing import perplexities
from mogu.evaluate.prefill import with_prefill
from mogu.evaluate.run import (
    COST_FILE,
    RESPONSES_FILE,
    SUMMARY_FILE,
    Options,
    as_it_is,
    evaluate,
    evaluate_suite,
    read_responses,
    stored_batch_size,
)
from mogu.evaluate.suites import Prompts, Suite

ROWS = small.rows()
PROMPTS = [
    {"id": row.id, "instruction": row.instruction, "label": row.label, "category": f"c{number % 2}"}
    for number, row in enumerate(ROWS[:10])
]
REFUSAL = "I can't help with that."
SETTINGS = {"model": "m"}
FINAL = ("responses.jsonl", "summary.json", "report.html", "report.md")


def answer(text: str) -> str:
    return REFUSAL if "steal" in text else f"Sure, here is a short poem about a {text.split()[-1]}"


def one(out: Path, model: Any = None, prompts: Any = PROMPTS, **more: Any) -> dict[str, Any]:
    options = {"max_new_tokens": 12, "batch_size": 3, "template": None, "settings": SETTINGS, **more}
    return evaluate_suite(model or small.Canned(answer), small.tokenizer(), prompts, out=out, **options)


def final(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes."""
    return {name: (folder / name).read_bytes() for name in FINAL}


def stop(after: int, step: str = "evaluate model") -> small.Interrupts:
    return small.Interrupts(step, after)


# one model, one suite


def test_every_prompt_is_answered_and_judged_in_its_order(tmp_path: Path) -> None:
    model = small.Canned(answer)
    summary = one(tmp_path, model)
    rows = read_responses(tmp_path)
    assert [row["id"] for row in rows] == [prompt["id"] for prompt in PROMPTS]
    assert [row["response"] for row in rows] == [answer(prompt["instruction"]) for prompt in PROMPTS]
    assert [row["label"] for row in rows] == [
        "refusal" if "steal" in prompt["instruction"] else "complied" for prompt in PROMPTS
    ]
    refused = sum("steal" in prompt["instruction"] for prompt in PROMPTS)
    assert summary["n"] == 10
    assert summary["counts"] == {"refusal": refused, "degenerate": 0, "complied": 10 - refused, "unclear": 0}
    assert summary["rates"]["refusal"]["rate"] == refused / 10
    assert summary == json.loads((tmp_path / SUMMARY_FILE).read_text())
    assert {path.name for path in tmp_path.iterdir()} == {*FINAL, COST_FILE, "work"}
    assert {options["do_sample"] for options in model.options} == {False}


def test_fields_of_a_response(tmp_path: Path) -> None:
    one(tmp_path)
    first = read_responses(tmp_path)[0]
    assert first == {
        "suite": "prompts",
        "kind": "unknown",
        "defense": "model",
        "id": PROMPTS[0]["id"],
        "instruction": PROMPTS[0]["instruction"],
        "prompt_label": "malicious",  # its own label says what the prompt is
        "category": "c0",
        "response": REFUSAL,
        "label": "refusal",
        "reasons": first["reasons"],
    }
    assert first["reasons"]
    assert all(isinstance(reason, str) for reason in first["reasons"])


def test_the_summary_says_under_which_settings(tmp_path: Path) -> None:
    summary = one(tmp_path, settings={"model": "m", "adapter": "abc"}, template="vicuna", model=small.base())
    assert summary["settings"] == {
        "model": "m",
        "adapter": "abc",
        "new_tokens": 12,
        "template": "vicuna",
        "decoding": "greedy",
    }


def test_no_time_stands_in_what_is_compared(tmp_path: Path) -> None:
    one(tmp_path / "a")
    one(tmp_path / "b")
    assert final(tmp_path / "a") == final(tmp_path / "b")
    assert "seconds" in json.loads((tmp_path / "a" / COST_FILE).read_text())["defenses"]["model"]


def test_an_answer_with_odd_line_separators_is_read_back(tmp_path: Path) -> None:
    odd = "Sure,\u2028here\x85it\nis"
    one(tmp_path)
    rows = read_responses(tmp_path)
    (tmp_path / RESPONSES_FILE).write_text(json.dumps({**rows[0], "response": odd}, ensure_ascii=False) + "\n")
    assert [row["response"] for row in read_responses(tmp_path)] == [odd]


# going on


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    one(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path / "broken", progress=stop(after))
    assert not (tmp_path / "broken" / SUMMARY_FILE).exists()
    model = small.Canned(answer)
    one(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == max(0, 10 - 3 * after)
    assert final(tmp_path / "broken") == final(tmp_path / "whole")


def test_a_routed_model_gives_the_same_bytes_too(tmp_path: Path) -> None:
    model = tiny.adapted(small.base(), routed_tokens=3, strength=0.3)
    one(tmp_path / "whole", model)
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path / "broken", model, progress=stop(2))
    one(tmp_path / "broken", model)
    assert final(tmp_path / "broken") == final(tmp_path / "whole")
    assert len({row["response"] for row in read_responses(tmp_path / "whole")}) > 5


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_line_that_was_cut_off_costs_its_batch(tmp_path: Path, cut: int) -> None:
    one(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path / "broken", progress=stop(2))
    partial = tmp_path / "broken" / "work" / "model" / "prompts" / ANSWERS_FILE
    partial.write_bytes(partial.read_bytes()[:-cut])
    model = small.Canned(answer)
    one(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == 7
    assert final(tmp_path / "broken") == final(tmp_path / "whole")


def test_a_finished_evaluation_asks_nothing_again(tmp_path: Path) -> None:
    summary = one(tmp_path)
    before = final(tmp_path)
    model = small.Canned(answer)
    assert one(tmp_path, model) == summary
    assert model.asked == []
    assert final(tmp_path) == before


CHANGES: list[dict[str, Any]] = [
    {"max_new_tokens": 5},
    {"template": "vicuna"},
    {"settings": {"model": "other"}},
    {"prompts": PROMPTS[:5]},
    {"prompts": [{**PROMPTS[0], "category": "x"}, *PROMPTS[1:]]},
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_an_evaluation_of_other_prompts_or_settings_is_refused(tmp_path: Path, change: dict, finished: bool) -> None:
    if finished:
        one(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            one(tmp_path, progress=stop(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=f"{tmp_path} holds an evaluation of other prompts or settings") as raised:
        one(tmp_path, **change)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_batches_of_another_size_go_on_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path, progress=stop(2))
    assert stored_batch_size(tmp_path) == 3
    model = small.Canned(answer)
    one(tmp_path, model, batch_size=7)
    assert sorted(map(len, model.asked)) == [1, 3]
    assert stored_batch_size(tmp_path) == 7


def test_an_unreadable_state_says_what_to_do(tmp_path: Path) -> None:
    one(tmp_path)
    (tmp_path / "work" / "state.json").write_text("{")
    with pytest.raises(DataError, match="to evaluate anew"):
        one(tmp_path)


# several defences, several suites


class Polite(Defense):
    """Asks politely; stops prompts about shops, and answers about bridges."""

    name = "polite"
    summary = "says please"

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        return [
            Stopped("No.", "a shop")
            if "shop" in c[-1]["content"]
            else [{**c[-1], "content": c[-1]["content"] + " now"}]
            for c in conversations
        ]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store.save(tiny.adapted(small.base(), routed_tokens=2, layers_to_transform=[1, 2]), folder / "adapter")
    return folder


def world(adapter: Path, out: Path, batch_size: int = 4) -> Target:
    return Target(small.base(), small.tokenizer(), "m", out / "work" / "learnt", adapter=adapter, batch_size=batch_size)


def kinds() -> list[Prompts]:
    groups = {
        "malicious": [row for row in ROWS if row.label == "malicious"][:5],
        "benign": [row for row in ROWS if row.id.startswith("good")][:6],
        "borderline": [row for row in ROWS if row.borderline][:4],
    }
    return [
        Prompts(Suite(f"my-{kind}", kind), [{"instruction": r.instruction, "category": r.id[:6]} for r in group])
        for kind, group in groups.items()
    ]


def matrix(out: Path, adapter: Path, names: str = "none,mogu,polite", **more: Any) -> dict[str, Any]:
    target = world(adapter, out)
    pipelines = [Pipeline([Polite(target)]) if name == "polite" else create(name, target) for name in names.split(",")]
    suites = more.pop("suites", None) or with_prefill(kinds(), [0, 2], target.tokenizer)
    options = more.pop("options", Options(new_tokens=6))
    return evaluate(pipelines, suites, out, settings=SETTINGS, options=options, **more)


@pytest.fixture(scope="module")
def whole(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole")
    return out, matrix(out, adapter)


def test_every_defence_answers_every_suite(whole: tuple[Path, dict[str, Any]]) -> None:
    out, summary = whole
    rows = read_responses(out)
    suites = ["my-malicious", "my-malicious+prefill2", "my-benign", "my-borderline"]
    sizes = dict(zip(suites, (5, 5, 6, 4), strict=True))
    assert [suite["name"] for suite in summary["suites"]] == suites
    assert [(row["defense"], row["suite"]) for row in rows] == [
        (defense, name) for defense in ("none", "mogu", "polite") for name, n in sizes.items() for _ in range(n)
    ]
    for suite in summary["suites"]:
        assert {name: system["n"] for name, system in suite["systems"].items()} == dict.fromkeys(
            ("none", "mogu", "polite"), sizes[suite["name"]]
        )
        assert set(suite["mcnemar"]) == {"mogu", "polite"}
    assert "n" not in summary
    assert {row["kind"] for row in rows if row["suite"].endswith("prefill2")} == {"jailbreak"}
    assert all(("prefill" in row) == row["suite"].endswith("prefill2") for row in rows)


def test_the_base_answers_as_itself_and_mogu_as_its_model(whole: tuple[Path, dict[str, Any]], adapter: Path) -> None:
    from mogu.respond import respond

    texts = [row["instruction"] for suite in kinds() for row in suite.rows]
    model = store.attach(small.base(), adapter)
    routed = respond(model, small.tokenizer(), texts, max_new_tokens=6)
    with plain_base(model):
        plain = respond(model, small.tokenizer(), texts, max_new_tokens=6)
    assert routed != plain
    for defense, expected in (("none", plain), ("mogu", routed)):
        rows = [r for r in read_responses(whole[0]) if r["defense"] == defense and "prefill" not in r["suite"]]
        assert [row["response"] for row in rows] == expected


def test_a_stopped_conversation_says_who_stopped_it(whole: tuple[Path, dict[str, Any]]) -> None:
    stopped = [row for row in read_responses(whole[0]) if "stopped_by" in row]
    assert stopped
    assert {(row["defense"], row["response"], row["stopped_because"]) for row in stopped} == {
        ("polite", "No.", "a shop")
    }
    assert all("shop" in row["instruction"] for row in stopped)


def test_a_prefilled_answer_is_continued_and_only_the_continuation_is_judged(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    model, tokenizer = small.base(), small.tokenizer()
    for row in read_responses(whole[0]):
        if row["defense"] == "none" and row["suite"] == "my-malicious+prefill2":
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True, tokenize=False
            )
            ids = torch.tensor([tokenizer(f"{prompt} {row['prefill']}", add_special_tokens=False)["input_ids"]])
            new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
            assert row["response"] == tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert row["prefill"].split() == ["Sure,", "here"]


@pytest.mark.parametrize(
    ("step", "after"),
    [("evaluate base", 1), ("evaluate base", 5), ("evaluate mogu", 2), ("evaluate polite", 4), ("perplexity", 1)],
)
def test_a_broken_matrix_goes_on_to_the_same_bytes(
    tmp_path: Path, adapter: Path, whole: tuple[Path, dict[str, Any]], step: str, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        matrix(tmp_path, adapter, progress=stop(after, step))
    assert not (tmp_path / SUMMARY_FILE).exists()
    matrix(tmp_path, adapter)
    assert final(tmp_path) == final(whole[0])


def test_a_defence_can_be_added_later(tmp_path: Path, adapter: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    matrix(tmp_path, adapter, "none,mogu")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob(ANSWERS_FILE)}
    matrix(tmp_path, adapter)
    assert final(tmp_path) == final(whole[0])
    assert len(list((tmp_path / "work").rglob(ANSWERS_FILE))) == len(kept) + 4


def test_passes_through_the_base_are_counted(whole: tuple[Path, dict[str, Any]]) -> None:
    cost = whole[1]["cost"]
    # batches of 4: 2 + 2 + 2 + 1 batches, each one pass per token (none ends early in six tokens)
    rows = [row for row in read_responses(whole[0]) if row["defense"] == "none"]
    assert cost["none"]["answers"] == 20
    assert 7 * 1 <= cost["none"]["forwards"] * 20 <= 7 * 6
    assert cost["mogu"]["tokens_forwarded"] > cost["none"]["tokens_forwarded"]
    tokens = sum(len(small.tokenizer()(row["response"])["input_ids"]) for row in rows)
    assert cost["none"]["tokens"] == pytest.approx(tokens / 20)


def test_the_same_answer_of_two_defences_is_looked_at_once(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], str]] = []

    def watched(target: Target, prompts: Any, answers: Any, done: Any = None) -> Any:
        seen.extend(zip(map(tuple, prompts), answers, strict=True))
        return perplexities(target, prompts, answers, done)

    monkeypatch.setattr("mogu.evaluate.measures.perplexities", watched)
    target = world(adapter, tmp_path)
    evaluate([create("none", target), as_it_is(target, "twin")], kinds(), tmp_path, settings=SETTINGS)
    assert len(seen) == len(set(seen)) == 15
    found = {
        name: [r["perplexity"] for r in read_responses(tmp_path) if r["defense"] == name] for name in ("none", "twin")
    }
    assert found["none"] == found["twin"]
    assert all(value > 1 for value in found["none"])


def test_fresh_does_again_only_what_has_changed(tmp_path: Path, adapter: Path) -> None:
    options = Options(new_tokens=6, measures=False, fresh=True)
    suites = kinds()
    matrix(tmp_path, adapter, "none", suites=suites, options=options)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob(ANSWERS_FILE)}
    changed = [Prompts(suites[0].suite, suites[0].rows[:2]), *suites[1:]]
    summary = matrix(tmp_path, adapter, "none", suites=changed, options=options)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob(ANSWERS_FILE)}
    assert [path.parent.name for path in before if before[path] == after[path]].count("my-malicious") == 0
    assert summary["suites"][0]["n"] == 2
    shorter = matrix(tmp_path, adapter, "none", suites=changed, options=Options(3, measures=False, fresh=True))
    assert shorter["settings"]["new_tokens"] == 3


def test_names_must_differ_and_be_there(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ConfigError, match="the defence 'none' is named twice"):
        matrix(tmp_path, adapter, "none,none")
    with pytest.raises(ConfigError, match="the suite 'my-malicious' is named twice"):
        matrix(tmp_path, adapter, "none", suites=[kinds()[0]] * 2)
    with pytest.raises(ConfigError, match="at least one defence"):
        evaluate([], kinds(), tmp_path, settings=SETTINGS)


# sampling


def test_sampling_with_seeds_is_the_same_again_and_after_an_interruption(tmp_path: Path, adapter: Path) -> None:
    options = Options(6, Sampling((1, 2), temperature=1.5), measures=False)
    summary = matrix(tmp_path / "whole", adapter, "none,mogu", options=options)
    rows = read_responses(tmp_path / "whole")
    first = [r["response"] for r in rows if r["seed"] == 1]
    assert first != [r["response"] for r in rows if r["seed"] == 2]
    system = summary["suites"][0]["systems"]["none"]
    assert (system["n"], system["answers"], sum(system["counts"].values())) == (5, 10, 10)
    with pytest.raises(KeyboardInterrupt):
        matrix(tmp_path / "broken", adapter, "none,mogu", options=options, progress=stop(3, "evaluate mogu"))
    torch.manual_seed(99)  # of no consequence
    matrix(tmp_path / "broken", adapter, "none,mogu", options=options)
    assert final(tmp_path / "broken") == final(tmp_path / "whole")


@pytest.mark.parametrize(
    "arguments",
    [
        {"seeds": (1,)},
        {"temperature": 0.5},
        {"seeds": (1, 1), "temperature": 1.0},
        {"seeds": (1,), "temperature": -1.0},
    ],
)
def test_sampling_needs_seeds_and_a_temperature(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**arguments)


def test_a_single_pipeline_of_any_model(tmp_path: Path) -> None:
    target = Target(small.Canned(answer), small.tokenizer(), "m", tmp_path, batch_size=2)
    pipeline = as_it_is(target, "mine", {"a": 1})
    assert (pipeline.name, pipeline.settings()) == ("mine", {"mine": {"a": 1}})
