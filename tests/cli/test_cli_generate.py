"""``mogu generate``: the answers are the model's, whatever way they are asked for and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mogu
from mogu.adapter.model import active_config, recorded_weights
from mogu.adapter.store import save
from mogu.chat import prompt_ids

PROMPTS = ["How do I steal a car?", "Write a poem about a bank"]


@pytest.fixture(scope="module")
def loaded(base_folder: str, run_folder: Path):
    return mogu.load(base_folder, run_folder)


def _answer(loaded, prompt: str, *, plain: bool = False, system: str | None = None, **options) -> str:
    """The answer to ``prompt``, from the model's own generate."""
    model, tokenizer = loaded
    ids = torch.tensor([prompt_ids(tokenizer, prompt, system=system)])
    if plain:
        with model.disable_adapter():
            output = model.generate(input_ids=ids, max_new_tokens=6, **options)
    else:
        output = model.generate(input_ids=ids, max_new_tokens=6, **options)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture
def ask(run, run_folder: Path):
    """stdout of a generate with the adapter; six new tokens."""

    def invoke(*arguments: object, stdin: str | None = None) -> str:
        result = run("generate", *arguments, "--adapter", run_folder, "--max-new-tokens", 6, stdin=stdin)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return invoke


def test_routed_and_plain_answers_differ_here(loaded) -> None:
    assert _answer(loaded, PROMPTS[0]) != _answer(loaded, PROMPTS[0], plain=True)


def test_a_prompt_is_answered_by_the_hardened_model(ask, loaded) -> None:
    assert ask(PROMPTS[0]) == _answer(loaded, PROMPTS[0]) + "\n"


def test_plain_answers_as_the_base(ask, loaded) -> None:
    assert ask(PROMPTS[0], "--plain") == _answer(loaded, PROMPTS[0], plain=True) + "\n"


def test_streaming_shows_the_same_text(ask, loaded) -> None:
    assert ask(PROMPTS[0], "--stream").strip() == _answer(loaded, PROMPTS[0])


def test_stdin_is_one_prompt(ask, loaded) -> None:
    assert ask(stdin=PROMPTS[1] + "\n") == _answer(loaded, PROMPTS[1]) + "\n"


def test_system_prompt_reaches_the_model(ask, loaded) -> None:
    expected = _answer(loaded, PROMPTS[0], system="poem")
    assert expected != _answer(loaded, PROMPTS[0])
    assert ask(PROMPTS[0], "--system", "poem") == expected + "\n"


def test_routed_tokens_are_the_users_choice(ask, loaded) -> None:
    assert ask(PROMPTS[0], "--routed-tokens", 4) == _answer(loaded, PROMPTS[0], routed_tokens=4) + "\n"


def test_reference_decoding_can_be_asked_for(ask, loaded) -> None:
    assert ask(PROMPTS[0], "--reference") == _answer(loaded, PROMPTS[0], reference=True) + "\n"


def test_sampling_is_reproducible_by_its_seed(ask, loaded) -> None:
    torch.manual_seed(5)
    expected = _answer(loaded, PROMPTS[0], do_sample=True, temperature=3.0, top_p=0.9)
    assert expected != _answer(loaded, PROMPTS[0])
    assert ask(PROMPTS[0], "--temperature", 3, "--top-p", 0.9, "--seed", 5) == expected + "\n"


def test_temperature_zero_is_greedy(ask, loaded) -> None:
    assert ask(PROMPTS[0], "--temperature", 0) == _answer(loaded, PROMPTS[0]) + "\n"


def test_a_file_is_answered_in_order(ask, loaded, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(PROMPTS))
    assert ask("--file", file) == "".join(f"> {p}\n{_answer(loaded, p)}\n\n" for p in PROMPTS)


def test_many_batches_keep_their_order(ask, loaded, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    prompts = PROMPTS * 5
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    rows = [json.loads(line) for line in ask("--file", file, "--json", "--batch-size", 1).splitlines()]
    assert [(row["instruction"], row["response"]) for row in rows] == [(p, _answer(loaded, p)) for p in prompts]


def test_json_holds_the_mean_router_weights_at_the_end_of_the_prompt(ask, loaded) -> None:
    model, tokenizer = loaded
    with torch.no_grad(), recorded_weights(model) as weights:
        model(input_ids=torch.tensor([prompt_ids(tokenizer, PROMPTS[0])]))
        unwill, glad = weights()
    assert unwill.shape[0] == 2
    assert json.loads(ask(PROMPTS[0], "--json")) == {
        "instruction": PROMPTS[0],
        "response": _answer(loaded, PROMPTS[0]),
        "risk": None,
        "routed_tokens": 2,
        "unwill": round(unwill[:, 0, -1].mean().item(), 4),
        "glad": round(glad[:, 0, -1].mean().item(), 4),
    }


def test_json_counts_routed_tokens_and_tells_the_risk(run, base_folder: str, loaded, tmp_path: Path) -> None:
    model, _ = loaded
    config = active_config(model)
    before = (config.risk, config.handover)
    config.risk = {part: {"weight": [0.1, -0.2], "bias": 0.3} for part in ("prompt", "answer")}
    try:
        folder = save(model, tmp_path / "adapter")
        expected = [mogu.risk(*loaded, prompt) for prompt in PROMPTS]
    finally:
        config.risk, config.handover = before
    file = tmp_path / "p.txt"
    file.write_text("\n".join(PROMPTS))
    words = ["--file", file, "--model", base_folder, "--adapter", folder, "--json", "--max-new-tokens", 6]
    found = [json.loads(line) for line in run("generate", *words, "--handover", "all").stdout.splitlines()]
    assert [row["risk"] for row in found] == pytest.approx(expected, abs=1e-3)
    routed = [row["routed_tokens"] for row in found]
    assert max(routed) > 2
    at_once = run("generate", *words, "--handover", "risk", "--risk-threshold", 1.0).stdout.splitlines()
    assert [json.loads(line)["routed_tokens"] for line in at_once] == [min(n, 2) for n in routed]


@pytest.mark.parametrize("how", [["--plain"], ["--routed-tokens", "0"]])
def test_json_of_the_base_has_no_weights(ask, loaded, how: list[str]) -> None:
    assert json.loads(ask(PROMPTS[0], "--json", *how)) == {
        "instruction": PROMPTS[0],
        "response": _answer(loaded, PROMPTS[0], plain=True),
        "risk": None,
        "routed_tokens": 0,
        "unwill": None,
        "glad": None,
    }


def test_a_base_alone_can_be_asked(run, base_folder: str, loaded) -> None:
    result = run("generate", PROMPTS[0], "--model", base_folder, "--max-new-tokens", 6)
    assert result.output == _answer(loaded, PROMPTS[0], plain=True) + "\n"


def test_routing_needs_an_adapter(run, base_folder: str) -> None:
    result = run("generate", PROMPTS[0], "--model", base_folder, "--routed-tokens", 3)
    assert (result.exit_code, result.output) == (2, "error: --routed-tokens needs an --adapter\n")


def test_a_base_that_moved_away_is_named_in_one_line(run, tmp_path: Path) -> None:
    import small
    import tiny

    from mogu.adapter import store

    folder = store.save(tiny.adapted(small.base(), base_model="./gone"), tmp_path / "adapter")
    result = run("generate", "Hello", "--adapter", tmp_path)
    assert result.exit_code == 2
    assert result.output == (
        f"error: no model folder at ./gone (the base that {folder} names; give another copy of it, if you have one)\n"
    )


def test_the_template_of_the_training_is_used(run, base_folder: str, loaded, tmp_path: Path) -> None:
    import small
    import tiny

    from mogu.adapter import store

    model = tiny.adapted(small.base(), base_model=base_folder, routed_tokens=2, layers_to_transform=[1, 2])
    store.save(model, tmp_path / "adapter", {"recipe.yaml": "template: vicuna\n"})
    model, tokenizer = loaded
    ids = torch.tensor([prompt_ids(tokenizer, PROMPTS[0], template="vicuna")])
    output = model.generate(input_ids=ids, max_new_tokens=6)
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    result = run("generate", PROMPTS[0], "--adapter", tmp_path, "--max-new-tokens", 6)
    assert result.output == expected + "\n"
