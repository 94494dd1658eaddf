"""Defences by name, in a row, from other packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import defended
import pytest
import small
import torch

from mogu.chat import prompt_ids
from mogu.defend import Conversation, Defense, Pipeline, Stopped, create, defense_class, defense_names, registry
from mogu.errors import ConfigError


class Note(Defense):
    """Writes down what passes, and adds its mark to prompt and answer."""

    summary = "for tests"
    mark = ""

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self.got: list[str] = []

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        self.got += [one[-1]["content"] for one in conversations]
        texts = [one[-1]["content"] for one in conversations]
        return [
            Stopped("stopped", "seen") if text == "camera" else defended.says(text + self.mark)[0] for text in texts
        ]

    def after(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> list[str | Stopped]:
        return [f"{answer}{self.mark} {one[-1]['content']}" for one, answer in zip(conversations, answers, strict=True)]


class First(Note):
    name = "first"
    mark = " boat"


class Second(Note):
    name = "second"
    mark = " phone"


def test_conversations_pass_from_left_to_right_and_answers_from_right_to_left(tmp_path: Path) -> None:
    model = small.Canned(lambda text: "wallet")
    target = defended.target(tmp_path, model=model)
    first, second = First(target), Second(target)
    replies = Pipeline([first, second]).answers(defended.says("shop", "camera"), max_new_tokens=9)
    assert model.asked == [["shop boat phone"]]
    assert (first.got, second.got) == (["shop", "camera"], ["shop boat"])
    assert replies[0].answer == "wallet phone shop boat boat shop"
    assert (replies[1].answer, replies[1].stopped_by, replies[1].reason) == ("stopped", "first", "seen")


def test_the_plain_base_answers_as_its_own_generate(tmp_path: Path) -> None:
    target = defended.target(tmp_path)
    expected = []
    for prompt in defended.PROMPTS:
        ids = torch.tensor([prompt_ids(target.tokenizer, prompt)])
        output = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        expected.append(target.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    assert defended.answers(create("none", target)) == expected
    assert len(set(expected)) > 1


def test_every_built_in_defence_says_what_it_is() -> None:
    for name in defense_names():
        found = defense_class(name)
        assert found.name == name
        assert found.summary
        assert found.source or name in ("none",)


@pytest.mark.parametrize(
    ("names", "word"),
    [("nonsense", "choose from none, sft"), ("icd+icd", "twice"), ("sft+safedecoding", "cannot be combined")],
)
def test_what_cannot_be_made_is_one_clear_line(tmp_path: Path, names: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as error:
        create(names, defended.target(tmp_path))
    assert "\n" not in str(error.value)


FOREIGN = """
from mogu.defend import Defense
class Shout(Defense):
    name = "shout"
    summary = "answers in capitals"
    def after(self, conversations, answers):
        return [answer.upper() for answer in answers]
NOT_ONE = 3
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings a defence, without being installed."""
    (tmp_path / "shouting.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    values = {"shout": "shouting:Shout", "broken": "shouting:Missing", "number": "shouting:NOT_ONE"}
    points = [importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.usefixtures("foreign")
def test_another_package_s_defence_goes_by_its_name(tmp_path: Path) -> None:
    assert "shout" in defense_names()
    plain = defended.target(tmp_path, model=small.Canned(lambda text: "a boat"))
    assert defended.answers(create("icd+shout", plain), "a car") == ["A BOAT"]


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(("name", "word"), [("broken", "does not load"), ("number", "no subclass")])
def test_another_package_s_fault_names_the_package(name: str, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.* of shouting:.* {word}"):
        defense_class(name)
