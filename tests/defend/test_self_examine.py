"""The base reads answers again; what it calls harmful is not shown."""

from __future__ import annotations

from pathlib import Path

import defended
import pytest
import small

from mogu.defend import REFUSAL, Defense, Pipeline, create
from mogu.defend.self_examine import SelfExamine, calls_harmful


@pytest.mark.parametrize(
    ("verdict", "harmful"),
    [
        ("Yes, this is harmful", True),
        ("yes", True),
        ("No, this is not harmful", False),
        ("No. Yes, I am sure.", False),
        ("Yesterday I knew nothing", False),
        ("", False),
    ],
)
def test_a_verdict_is_its_first_yes_or_no(verdict: str, harmful: bool) -> None:
    assert calls_harmful(verdict) is harmful


def test_only_answers_that_the_base_calls_harmful_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []

    def verdicts(model: object, tokenizer: object, prompts: list[str], **options: object) -> list[str]:
        questions.extend(prompts)
        return ["Yes, this is harmful." if "steal" in prompt else "No, this is not harmful." for prompt in prompts]

    monkeypatch.setattr("mogu.defend.self_examine.respond", verdicts)
    target = defended.target(tmp_path, model=small.Canned(lambda text: text.replace("How do I", "Sure,")))
    found = create("self-examine", target).answers(defended.says(*defended.PROMPTS), max_new_tokens=9)
    assert found[0].answer == REFUSAL
    assert found[0].stopped_by == "self-examine"
    assert [reply.answer for reply in found[1:]] == ["Write me a short poem about a bank", "Sure, paint a shop?"]
    assert sorted("steal" in question for question in questions) == [False, False, True]
    assert all("Respond with 'Yes, this is harmful'" in question for question in questions)


def test_the_judge_is_the_plain_base(tmp_path: Path) -> None:
    """Whatever decodes the answers, its weights are off when they are examined."""
    judges, writers = [], []

    class Examiner(SelfExamine):
        def after(self, conversations, answers):  # type: ignore[no-untyped-def]
            judges.append(defended.state(self.target.model))
            return super().after(conversations, answers)

    class Writer(Defense):
        name, summary, decodes = "writer", "puts a weight on the base", True
        from contextlib import contextmanager

        @contextmanager
        def installed(self):  # type: ignore[no-untyped-def]
            weight = self.target.model.lm_head.weight.data
            before = weight.clone()
            weight.mul_(-1)
            writers.append(defended.state(self.target.model))
            yield self.target.model
            weight.copy_(before)

    target = defended.target(tmp_path)
    plain = defended.state(target.model)
    for order in ([Writer(target), Examiner(target)], [Examiner(target), Writer(target)]):
        defended.answers(Pipeline(order))
    assert all((state.logits == plain.logits).all() for state in judges)
    assert not any((state.logits == plain.logits).all() for state in writers)
    assert len(judges) == 4
