"""Perplexity and divergence, against the definitions applied to one row at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch

from mogu.adapter import store
from mogu.chat import prompt_ids, response_ids
from mogu.defend import Conversation, Defense, Pipeline, Stopped, Target, create
from mogu.evaluate.forcing import Divergence, divergence, perplexities, undefined

ROWS = [row for row in small.rows() if row.id.startswith("good")][:11]
TEXTS = [row.instruction for row in ROWS]
ANSWERS = [" ".join(row.unwill.split()[: 3 + n]) for n, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    store.save(tiny.adapted(small.base(), routed_tokens=2, layers_to_transform=[1, 2]), path / "adapter")
    return path


@pytest.fixture
def target(folder: Path, tmp_path: Path) -> Target:
    return Target(small.base(), small.tokenizer(), "m", tmp_path, adapter=folder)


def logs_alone(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities before each answer token, of one row without padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : len(prompt) + len(answer) - 1]


def kl(p: torch.Tensor, q: torch.Tensor) -> list[float]:
    return (p.exp() * (p - q)).sum(-1).tolist()


def ids(text: str, answer: str) -> tuple[list[int], list[int]]:
    return prompt_ids(small.tokenizer(), text), response_ids(small.tokenizer(), answer, end_of_turn=False)


def test_perplexity_is_that_of_each_answer_alone(target: Target) -> None:
    prompts = [ids(text, "")[0] for text in TEXTS]
    done: list[int] = []
    found = perplexities(target, prompts, [*ANSWERS[:10], ""], done.append)
    for text, answer, value in zip(TEXTS, ANSWERS, found[:10], strict=False):
        prompt, said = ids(text, answer)
        logs = logs_alone(target.model, prompt, said)
        expected = math.exp(-sum(logs[i, token].item() for i, token in enumerate(said)) / len(said))
        assert value == pytest.approx(expected, rel=1e-4)
    assert found[10] is None
    assert len(done) == 2


class Shouts(Defense):
    name = "shouts"
    summary = "adds a word; stops the first prompt"

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        return [
            Stopped("No.", "first")
            if c[-1]["content"] == TEXTS[0]
            else [{**c[-1], "content": f"steal {c[-1]['content']}"}]
            for c in conversations
        ]


class OtherWeights(Defense):
    name = "other-weights"
    summary = "as fine-tuning would: other weights throughout"
    decodes = True

    @contextmanager
    def installed(self) -> Iterator[Any]:
        torch.manual_seed(3)
        other = small.base()
        with torch.no_grad():
            other.lm_head.weight.add_(torch.randn(other.lm_head.weight.shape) * 0.1)
        yield other


def test_the_base_does_not_diverge_from_itself(target: Target) -> None:
    assert divergence(create("none", target), TEXTS, ANSWERS, 5) == Divergence(0.0, 0.0, 5, len(TEXTS))


def test_mogu_diverges_while_it_routes_and_not_after(target: Target, folder: Path) -> None:
    found = divergence(create("mogu", target), TEXTS, ANSWERS, 5)
    routed, base = store.attach(small.base(), folder), small.base()
    rows = [
        kl(logs_alone(base, *ids(text, answer))[:2], logs_alone(routed, *ids(text, answer))[:2])
        for text, answer in zip(TEXTS, ANSWERS, strict=True)
    ]
    lengths = [len(ids(text, answer)[1]) for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    assert isinstance(found, Divergence)
    assert (found.routed_tokens, found.rows) == (2, len(TEXTS))
    assert found.first == pytest.approx(sum(sum(row) / 2 for row in rows) / len(rows), rel=1e-3)
    whole = sum(sum(row) / n for row, n in zip(rows, lengths, strict=True)) / len(rows)
    assert found.whole == pytest.approx(whole, rel=1e-3)
    assert found.first > found.whole > 0


def test_another_handover_is_compared_where_it_routes(target: Target, folder: Path) -> None:
    whole = divergence(create("mogu@all", target), TEXTS, ANSWERS, 5)
    model = store.attach(small.base(), folder)
    expected = []
    for text, answer in zip(TEXTS, ANSWERS, strict=True):
        prompt, wanted = ids(text, answer)
        each = kl(logs_alone(small.base(), prompt, wanted), logs_alone(model, prompt, wanted))
        expected.append(sum(each) / len(each))
    assert isinstance(whole, Divergence)
    assert whole.whole == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert "hands over by risk" in str(undefined(create("mogu@risk", target)))


def test_an_answer_routed_through_its_thought_is_not_compared(tmp_path: Path) -> None:
    marks = {"think": "through", "think_tokens": [[5], [6]]}
    store.save(tiny.adapted(small.base(), **marks), tmp_path / "adapter")
    target = Target(small.base(), small.tokenizer(), "m", tmp_path, adapter=tmp_path)
    assert "hands over after a thought" in str(undefined(create("mogu", target)))
    assert undefined(create("mogu@all", target)) is None


def test_other_weights_are_compared_over_the_whole_answer(target: Target) -> None:
    pipeline = Pipeline([OtherWeights(target)])
    found = divergence(pipeline, TEXTS, ANSWERS, 3)
    base = small.base()
    with pipeline.decoder.installed() as other:
        rows = [
            kl(logs_alone(base, *ids(text, answer)), logs_alone(other, *ids(text, answer)))
            for text, answer in zip(TEXTS, ANSWERS, strict=True)
        ]
    assert isinstance(found, Divergence)
    assert found.first == pytest.approx(sum(sum(row[:3]) / len(row[:3]) for row in rows) / len(rows), rel=1e-3)
    assert found.whole == pytest.approx(sum(sum(row) / len(row) for row in rows) / len(rows), rel=1e-3)


def test_an_edited_prompt_is_compared_with_the_plain_one(target: Target) -> None:
    found = divergence(Pipeline([Shouts(target)]), TEXTS, ANSWERS, 5)
    base = small.base()
    rows = [
        kl(logs_alone(base, *ids(text, answer)), logs_alone(base, *ids(f"steal {text}", answer)))
        for text, answer in zip(TEXTS[1:], ANSWERS[1:], strict=True)
    ]
    assert isinstance(found, Divergence)
    assert found.rows == len(TEXTS) - 1
    assert found.whole == pytest.approx(sum(sum(row) / len(row) for row in rows) / len(rows), rel=1e-3)


def test_after_an_edited_prompt_mogu_hands_over_to_the_base_with_that_prompt(target: Target, folder: Path) -> None:
    mogu = create("mogu", target).defenses[0]
    found = divergence(Pipeline([Shouts(target), mogu]), TEXTS, ANSWERS, 5)
    routed, base = store.attach(small.base(), folder), small.base()
    rows = []
    for text, answer in zip(TEXTS[1:], ANSWERS[1:], strict=True):
        plain, (prompt, said) = ids(text, answer)[0], ids(f"steal {text}", answer)
        other = torch.cat([logs_alone(routed, prompt, said)[:2], logs_alone(base, prompt, said)[2:]])
        rows.append(kl(logs_alone(base, plain, said), other))
    assert isinstance(found, Divergence)
    assert found.whole == pytest.approx(sum(sum(row) / len(row) for row in rows) / len(rows), rel=1e-3)


class Checks(Defense):
    name = "checks"
    summary = "reads the answer"

    def after(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> list[str | Stopped]:
        return list(answers)


class Contrasts(Defense):
    name = "contrasts"
    summary = "decodes in its own way"
    decodes = True

    def decode(self, model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(("kind", "says"), [(Checks, "looks at the finished answer"), (Contrasts, "its own way")])
def test_where_it_is_not_defined_it_says_why(target: Target, kind: type[Defense], says: str) -> None:
    pipeline = Pipeline([kind(target)])
    assert says in str(undefined(pipeline))
    assert divergence(pipeline, TEXTS, ANSWERS, 5) == undefined(pipeline)


def test_without_an_answer_there_is_nothing_to_compare(target: Target) -> None:
    assert "no prompt" in str(divergence(create("none", target), TEXTS, [""] * len(TEXTS), 5))


def test_comparing_leaves_the_base_as_it_was(target: Target) -> None:
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    divergence(create("mogu", target), TEXTS, ANSWERS, 5)
    assert set(target.model.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())
