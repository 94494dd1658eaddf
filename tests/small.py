"""A small world to train in: a chat tokenizer with words enough, rows with both answers, a random model to match."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mogu.data.answers import REFUSALS, affirmation_for, refusal_for
from mogu.data.rows import Label, Row, Split
from mogu.progress import Progress
from mogu.recipe import (
    AdapterRecipe,
    BalanceRecipe,
    DataRecipe,
    EvaluationRecipe,
    Recipe,
    ResponderRecipe,
    RouterRecipe,
)

CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
THINGS = "car bank shop phone boat house wallet garden letter camera engine bridge train ticket".split()  # noqa: SIM905
COUNTS: dict[Split, int] = {"train": 8, "validation": 3, "test": 3}
_MALICIOUS, _BENIGN, _TWIN = "How do I steal a {}?", "Write me a short poem about a {}", "How do I paint a {}?"


def rows() -> list[Row]:
    """14 malicious rows, as many benign ones, and a harmless twin of every second malicious one, over all splits."""
    things = iter(THINGS)
    made = []
    for split, count in COUNTS.items():
        for number in range(count):
            thing = next(things)
            bad, twin = f"bad-{thing}", f"twin-{thing}"
            made.append(_row(bad, _MALICIOUS.format(thing), "malicious", split, twin=twin if number % 2 == 0 else ""))
            made.append(_row(f"good-{thing}", _BENIGN.format(thing), "benign", split))
            if number % 2 == 0:
                made.append(_row(twin, _TWIN.format(thing), "benign", split, twin=bad, borderline=True))
    return made


def _row(name: str, instruction: str, label: Label, split: Split, **more: Any) -> Row:
    return Row(
        id=name,
        instruction=instruction,
        label=label,
        source="small",
        split=split,
        glad=affirmation_for(instruction),
        unwill=refusal_for(instruction),
        **more,
    )


@cache
def _core() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    texts = [*REFUSALS, *(text for row in rows() for text in (row.instruction, row.glad, row.unwill))]
    words = ["<pad>", "<s>", "</s>", "abcdef", "<unk>", "<user>", "<system>", "<assistant>"]
    words += sorted({word for text in texts for word in text.split()})
    core = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return core


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token, joined by blanks; every word of :func:`rows` and of the refusals is in its vocabulary."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=_core(), pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    made.chat_template = CHAT
    return made


def base(model_type: str = "llama", **changes: Any) -> PreTrainedModel:
    """The same random model at every call, with the tokenizer's vocabulary."""
    model = tiny.base(model_type, **{"vocab_size": len(tokenizer()), "eos_token_id": 2, **changes})
    model.generation_config.eos_token_id = 2
    return model


def save_base(folder: Path) -> str:
    """A folder that ``load_base`` reads."""
    base().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


RESPONDER = ResponderRecipe(
    loss="log_ratio",
    learning_rate=1e-2,
    pairs=6,
    epochs=2,
    batch_size=2,
    accumulation=1,
    answer_tokens=8,
    checkpoint_pairs=4,
)
RECIPE = Recipe(
    name="tiny",
    adapter=AdapterRecipe(rank=2, alpha=4.0, dropout=0.1, router_width=4, routed_tokens=2),
    data=DataRecipe(answer_tokens=4),
    glad=RESPONDER,
    unwill=RESPONDER,
    routers=RouterRecipe(start="fit", epochs=0, answer_tokens=8),
    balance=BalanceRecipe(shifts=(-1.0, 0.0, 1.0), prompts=2, new_tokens=4),
    evaluation=EvaluationRecipe(prompts=3, new_tokens=4),
)
"""Six steps for each responder, a checkpoint after every second one; fitted routers."""
RANDOM = dataclasses.replace(
    RECIPE,
    name="tiny-random",
    routers=RouterRecipe(
        start="random", epochs=2, rows=8, batch_size=2, accumulation=2, answer_tokens=8, learning_rate=1e-2
    ),
    balance=BalanceRecipe(shifts=(0.5,)),
)
"""The same with factored routers, trained end to end in four steps."""


class Interrupts(Progress):
    """Presses Ctrl-C when ``step`` has done ``after`` updates; and remembers the steps that began."""

    def __init__(self, step: str = "", after: int = 1) -> None:
        self.step, self.after = step, after
        self.began: list[str] = []
        self.updates = 0

    def begin(self, step: str, text: str) -> None:
        self.began.append(step)
        self.updates = 0

    def update(self, done: int, total: int) -> None:
        self.updates += 1
        if self.began and self.began[-1] == self.step and self.updates == self.after:
            raise KeyboardInterrupt


def by_id(found: Sequence[Row]) -> dict[str, Row]:
    return {row.id: row for row in found}


class Canned:
    """A model that says what ``answer`` makes of the instruction; and remembers what it was asked, batch by batch."""

    device = "cpu"
    training = False

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.asked: list[list[str]] = []
        self.options: list[dict[str, Any]] = []

    def eval(self) -> Canned:
        return self

    def train(self, mode: bool = True) -> Canned:
        return self

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        words = tokenizer()
        texts = words.batch_decode(input_ids)
        self.asked.append([text.split("<user> ")[1].split(" </s>")[0] for text in texts])
        self.options.append(options)
        answers = [words(self.answer(text), add_special_tokens=False)["input_ids"] for text in self.asked[-1]]
        width = max(map(len, answers))
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in answers])
        return torch.cat([input_ids, padded[:, : options["max_new_tokens"]]], dim=1)
