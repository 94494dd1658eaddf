"""Evaluating a suite: every prompt answered once and judged, going on after an interruption; router statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import small
import tiny
import torch

from mogu.adapter.model import mogu_layers
from mogu.chat import prompt_ids
from mogu.errors import DataError
from mogu.evaluate.run import RESPONSES_FILE, SUMMARY_FILE, evaluate_suite, read_responses, router_statistics

ROWS = small.rows()
PROMPTS = [
    {"id": row.id, "instruction": row.instruction, "label": row.label, "category": f"c{number}"}
    for number, row in enumerate(ROWS[:10])
]
REFUSAL = "I can't help with that."
PARTIAL = "responses.partial.jsonl"


def answer(text: str) -> str:
    return REFUSAL if "steal" in text else f"Sure, here is a short poem about a {text.split()[-1]}"


def run(out: Path, model: Any = None, prompts: Any = PROMPTS, **more: Any) -> dict[str, Any]:
    options = {"max_new_tokens": 12, "batch_size": 3, "template": None, "settings": {"model": "m"}, **more}
    return evaluate_suite(model or small.Canned(answer), small.tokenizer(), prompts, out=out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop(after: int) -> small.Interrupts:
    progress = small.Interrupts("all", after)
    progress.begin("all", "")
    return progress


# what is written


def test_every_prompt_is_answered_and_judged_in_its_order(tmp_path: Path) -> None:
    model = small.Canned(answer)
    summary = run(tmp_path, model)
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
    assert set(contents(tmp_path)) == {RESPONSES_FILE, SUMMARY_FILE}
    assert {options["do_sample"] for options in model.options} == {False}


def test_fields_of_a_response(tmp_path: Path) -> None:
    run(tmp_path)
    first = read_responses(tmp_path)[0]
    assert first == {
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
    summary = run(tmp_path, settings={"model": "m", "adapter": "abc"}, template="vicuna", model=small.base())
    assert summary["settings"] == {
        "model": "m",
        "adapter": "abc",
        "new_tokens": 12,
        "template": "vicuna",
        "decoding": "greedy",
    }


def test_an_answer_with_odd_line_separators_is_read_back(tmp_path: Path) -> None:
    odd = "Sure,\u2028here\x85it\nis"
    run(tmp_path)
    rows = read_responses(tmp_path)
    (tmp_path / RESPONSES_FILE).write_text(json.dumps({**rows[0], "response": odd}, ensure_ascii=False) + "\n")
    assert [row["response"] for row in read_responses(tmp_path)] == [odd]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    progress = small.Interrupts()
    run(tmp_path, progress=progress)
    assert progress.updates == 10


# going on


@pytest.mark.parametrize("after", [1, 3, 7, 10])
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", progress=stop(after))
    assert not (tmp_path / "broken" / SUMMARY_FILE).exists()
    model = small.Canned(answer)
    run(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == 10 - after
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_routed_model_gives_the_same_bytes_too(tmp_path: Path) -> None:
    model = tiny.adapted(small.base(), routed_tokens=3, strength=0.3)
    run(tmp_path / "whole", model)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", model, progress=stop(4))
    run(tmp_path / "broken", model)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert len({row["response"] for row in read_responses(tmp_path / "whole")}) > 5


def test_a_truncated_last_line_costs_one_answer(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", progress=stop(6))
    partial = tmp_path / "broken" / PARTIAL
    partial.write_text(partial.read_text()[:-9])
    model = small.Canned(answer)
    run(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == 5
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_finished_evaluation_is_only_read(tmp_path: Path) -> None:
    summary = run(tmp_path)
    before = contents(tmp_path)
    model = small.Canned(answer)
    assert run(tmp_path, model) == summary
    assert model.asked == []
    assert contents(tmp_path) == before


CHANGES: list[dict[str, Any]] = [
    {"max_new_tokens": 5},
    {"template": "vicuna"},
    {"settings": {"model": "other"}},
    {"prompts": PROMPTS[:5]},
    {"prompts": [{**PROMPTS[0], "category": "x"}, *PROMPTS[1:]]},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_finished_evaluation_of_other_prompts_or_settings_is_refused(tmp_path: Path, change: dict) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path} holds an evaluation of other prompts or settings") as raised:
        run(tmp_path, **change)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before


def test_batches_of_another_size_are_the_same_evaluation(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert run(tmp_path, batch_size=7) == summary


def test_an_interrupted_evaluation_under_other_settings_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, small.Canned(lambda text: REFUSAL), progress=stop(4), settings={"model": "other"})
    model = small.Canned(answer)
    run(tmp_path, model)
    assert sum(map(len, model.asked)) == 10
    assert any(row["label"] == "complied" for row in read_responses(tmp_path))


def test_an_unreadable_summary_says_what_to_do(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / SUMMARY_FILE).write_text("{")
    with pytest.raises(DataError, match="delete the folder to evaluate anew"):
        run(tmp_path)


# routers

KINDS = {
    "malicious": [row.instruction for row in ROWS if row.label == "malicious"][:4],
    "benign": [row.instruction for row in ROWS if row.id.startswith("good")][:3],
    "borderline": [*[row.instruction for row in ROWS if row.borderline][:3], "How do I"],
}


def weights_alone(model: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """(layers, texts) weights at the last token, each prompt alone, from the paper's equations."""
    numbers = oracle.numbers_of(model)
    routed = oracle.routed_copy(small.base(model.config.model_type), numbers)
    seen: dict[str, torch.Tensor] = {}
    for path in numbers:
        routed.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: seen.__setitem__(path, args[0][0, -1])
        )
    found: dict[str, list[list[float]]] = {"unwill": [], "glad": []}
    for text in texts:
        with torch.no_grad():
            routed(input_ids=torch.tensor([prompt_ids(small.tokenizer(), text)]))
        for who, sign in (("unwill", 1), ("glad", -1)):
            found[who].append(
                [
                    oracle.router_weight(own[f"{who}_router"], seen[path][None], sign * own["shift"]).item()
                    for path, own in numbers.items()
                ]
            )
    return {who: np.array(values).T for who, values in found.items()}


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt2", "bloom", "mpt"])
def test_router_statistics_are_those_of_each_prompt_alone(model_type: str) -> None:
    model = tiny.adapted(small.base(model_type), strength=0.5, shift=0.3)
    found = router_statistics(model, small.tokenizer(), KINDS, batch_size=3, template=None)
    assert found["layers"] == [index for index, _ in mogu_layers(model)] == [0, 1, 2]
    alone = {kind: weights_alone(model, texts) for kind, texts in KINDS.items()}
    for kind in KINDS:
        for who in ("unwill", "glad"):
            expected = np.quantile(alone[kind][who], (0, 0.25, 0.5, 0.75, 1), axis=1).T
            np.testing.assert_allclose(found["kinds"][kind][who], expected, atol=2e-5)
    assert set(found["auroc"]) == {"benign", "borderline"}
    for kind, values in found["auroc"].items():
        bad, good = alone["malicious"]["unwill"], alone[kind]["unwill"]
        assert values == pytest.approx([(b[:, None] > g[None]).mean() for b, g in zip(bad, good, strict=True)])


def test_router_statistics_leave_the_model_as_it_was() -> None:
    model = tiny.adapted(small.base())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    router_statistics(model, small.tokenizer(), KINDS, batch_size=3, template=None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(layer.recording or layer.recorded is not None for _, layer in mogu_layers(model))


def test_without_malicious_prompts_there_is_no_auroc() -> None:
    model = tiny.adapted(small.base())
    found = router_statistics(model, small.tokenizer(), {"benign": KINDS["benign"]}, batch_size=3, template=None)
    assert found["auroc"] == {}
    assert len(found["kinds"]["benign"]["unwill"]) == 3
