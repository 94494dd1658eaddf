"""SafeDecoding token for token against two models without caches, computed afresh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import defended
import pytest
import small
import tiny
import torch
from peft import PeftModel

from mogu.chat import prompt_ids
from mogu.defend import Pipeline
from mogu.defend.lora import LoraRecipe
from mogu.defend.safedecoding import EXPERT, ContrastSettings, SafeDecoding
from mogu.errors import GenerationError

STRONG = LoraRecipe(rank=4, learning_rate=5e-2, epochs=4, batch_size=4, answer_tokens=8)
SETTINGS = ContrastSettings(tokens=3, alpha=2.0, common=4)
NEW = 8


def pipeline(workspace: Path, model: Any = None) -> Pipeline:
    made = Pipeline([SafeDecoding(defended.target(workspace, model=model), STRONG, SETTINGS)])
    made.prepare()
    return made


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def safe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return pipeline(tmp_path_factory.mktemp("safe"), small.base(request.param))


def next_token(base: Any, expert: Any, ids: list[int], head: bool) -> torch.Tensor:
    """Probabilities of the next token by the formula, for one prompt."""
    with torch.no_grad():
        p, q = (model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=0).tolist() for model in (base, expert))
    if not head:
        return torch.tensor(p)
    order_p, order_q = (sorted(range(len(v)), key=lambda x: -v[x]) for v in (p, q))
    k = next(k for k in range(1, len(p) + 1) if len(set(order_p[:k]) & set(order_q[:k])) >= SETTINGS.common)
    space = set(order_p[:k]) & set(order_q[:k])
    mixed = [max(0.0, p[x] + SETTINGS.alpha * (q[x] - p[x])) if x in space else 0.0 for x in range(len(p))]
    return torch.tensor(mixed) / sum(mixed)


def models(safe: Pipeline) -> tuple[Any, Any]:
    (folder,) = (path.parent for path in safe.target.workspace.rglob("adapter_config.json"))
    return safe.target.model, PeftModel.from_pretrained(copy.deepcopy(safe.target.model), str(folder)).eval()


def expected(safe: Pipeline, prompt: str, end: int | None = None) -> list[int]:
    base, expert = models(safe)
    ids = prompt_ids(safe.target.tokenizer, prompt)
    new: list[int] = []
    while len(new) < NEW and (not new or new[-1] != end):
        new.append(int(next_token(base, expert, ids + new, len(new) < SETTINGS.tokens).argmax()))
    return new


def decoded(safe: Pipeline, prompts: list[str], **options: Any) -> list[list[int]]:
    """New tokens of one left-padded batch."""
    rows = [torch.tensor([prompt_ids(safe.target.tokenizer, prompt)]) for prompt in prompts]
    inputs = tiny.left_padded(rows)
    with safe.decoder.installed() as model, torch.inference_mode():
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **options}
        output = safe.decoder.decode(model, inputs, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def test_a_padded_batch_decodes_as_the_formula_says(safe: Pipeline) -> None:
    found = decoded(safe, defended.PROMPTS)
    assert found == [expected(safe, prompt) for prompt in defended.PROMPTS]
    plain = safe.target.model.generate(
        torch.tensor([prompt_ids(safe.target.tokenizer, defended.PROMPTS[0])]), max_new_tokens=NEW, eos_token_id=None
    )
    assert found[0] != plain[0, -NEW:].tolist()


@pytest.mark.parametrize("position", [0, SETTINGS.tokens - 1, SETTINGS.tokens + 1])
def test_a_row_that_ends_stays_ended_and_the_others_go_on(safe: Pipeline, position: int) -> None:
    end = expected(safe, defended.PROMPTS[0])[position]
    for row, prompt in zip(decoded(safe, defended.PROMPTS, eos_token_id=end), defended.PROMPTS, strict=True):
        wanted = expected(safe, prompt, end)
        assert row == (wanted + [0] * NEW)[: len(row)]


def test_sampling_draws_from_the_contrast(safe: Pipeline) -> None:
    prompt = defended.PROMPTS[1]
    found = decoded(safe, [prompt], do_sample=True, top_k=0, num_return_sequences=2000, max_new_tokens=1)
    shares = torch.bincount(torch.tensor(found).flatten(), minlength=len(safe.target.tokenizer)) / len(found)
    wanted = next_token(*models(safe), prompt_ids(safe.target.tokenizer, prompt), head=True)
    assert float((shares - wanted).abs().max()) < 0.04
    assert not bool((shares > 0)[wanted == 0].any())


def test_the_base_is_as_before_bit_for_bit(safe: Pipeline) -> None:
    fresh = defended.state(small.base(safe.target.model.config.model_type))
    defended.answers(safe)
    defended.assert_same(safe.target.model, fresh)


def test_answers_do_not_depend_on_the_batch(safe: Pipeline) -> None:
    together = defended.answers(safe)
    assert [defended.answers(safe, prompt)[0] for prompt in defended.PROMPTS] == together


def test_it_gets_ready_by_itself(safe: Pipeline) -> None:
    assert defended.answers(Pipeline([SafeDecoding(safe.target, STRONG, SETTINGS)])) == defended.answers(safe)


def test_beams_are_refused(safe: Pipeline) -> None:
    with pytest.raises(GenerationError, match="num_beams=1"):
        defended.answers(safe, num_beams=2)


def test_the_expert_learns_from_malicious_rows_only(safe: Pipeline) -> None:
    weights = safe.decoder._weights  # type: ignore[attr-defined]
    assert {row.label for row in weights.rows} == {"malicious"}
    assert {row.split for row in weights.rows} == {"train"}


def test_settings_are_the_published_ones(tmp_path: Path) -> None:
    found = SafeDecoding(defended.target(tmp_path)).settings()
    assert (found["tokens"], found["alpha"], found["common"]) == (2, 3.0, 5)
    assert (EXPERT.rank, EXPERT.alpha, EXPERT.learning_rate, EXPERT.epochs) == (16, 64, 2e-3, 2)
