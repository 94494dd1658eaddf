"""What goes through the base is counted, whoever calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import small
import tiny
import torch

from mogu.defend import Conversation, Defense, Pipeline, Reply, Stopped, Target
from mogu.evaluate.cost import Cost, first_token_seconds, measured, per_answer, timings, total


def test_every_pass_and_position_is_counted_with_its_padding() -> None:
    model = small.base()
    with measured(model) as cost:
        model(input_ids=torch.ones(2, 5, dtype=torch.long))
        model(torch.ones(1, 3, dtype=torch.long))
        model(inputs_embeds=torch.zeros(2, 4, 32))
    assert (cost.forwards, cost.tokens_forwarded) == (3, 10 + 3 + 8)
    assert cost.seconds > 0
    model(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert cost.forwards == 3


def test_greedy_decoding_reads_the_prompt_once_and_then_token_by_token() -> None:
    model = small.base(eos_token_id=None)
    model.generation_config.eos_token_id = None
    ids = torch.ones(2, 7, dtype=torch.long)
    with measured(model) as cost:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert (cost.forwards, cost.tokens_forwarded) == (4, 2 * (7 + 3))


def test_the_base_inside_a_routed_model_is_what_counts() -> None:
    model = tiny.adapted(small.base(eos_token_id=None), routed_tokens=2)
    model.get_base_model().generation_config.eos_token_id = None
    ids = torch.ones(1, 7, dtype=torch.long)
    with measured(model) as cost:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    # head: prompt, one token; the tail reads prompt and head again, then one token
    assert (cost.forwards, cost.tokens_forwarded) == (4, 7 + 1 + 9 + 1)


def test_a_model_that_is_no_module_counts_nothing() -> None:
    with measured(small.Canned(str)) as cost:
        pass
    assert cost.forwards == 0


def test_costs_add_up_and_are_given_per_answer() -> None:
    record = {"answers": 2, "tokens": 10, "forwards": 3, "tokens_forwarded": 40, "seconds": 0.5}
    cost = total([record, record])
    assert cost == Cost(4, 20, 6, 80, 1.0)
    assert per_answer(cost) == {"answers": 4, "tokens": 5.0, "forwards": 1.5, "tokens_forwarded": 20.0}
    found = timings(cost, 0.25)
    assert (found["seconds"], found["tokens_per_second"], found["seconds_to_first_token"]) == (1.0, 20.0, 0.25)
    assert found["peak_memory_mib"] > 10
    assert timings(Cost(), None)["tokens_per_second"] is None


class Checks(Defense):
    name = "checks"
    summary = "reads the answer"

    def after(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> list[str | Stopped]:
        return list(answers)


def test_the_first_token_is_that_which_a_user_sees(tmp_path: Path, monkeypatch: Any) -> None:
    lengths: list[int] = []

    def answers(self: Pipeline, conversations: Any, *, max_new_tokens: int, **more: Any) -> list[Reply]:
        lengths.append(max_new_tokens)
        return [Reply("")]

    monkeypatch.setattr(Pipeline, "answers", answers)
    target = Target(small.base(), small.tokenizer(), "m", tmp_path)
    for kind, expected in ((Defense, 1), (Checks, 30)):
        lengths.clear()
        assert first_token_seconds(Pipeline([type("D", (kind,), {"name": "d"})(target)]), ["a"] * 9, 30) is not None
        assert lengths == [expected] * 3
    assert first_token_seconds(Pipeline([Checks(target)]), [], 30) is None
