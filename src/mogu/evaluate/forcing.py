"""Teacher forcing: how likely answers are, and how far a defended model's next tokens are from the base's.

Both read given answers instead of writing their own, so models are compared on the same text, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mogu.adapter.model import active_config
from mogu.chat import Message, pad_prompts, prompt_ids, response_ids
from mogu.defend import Defense, Pipeline, Stopped, Target
from mogu.defend.learnt import read_batch
from mogu.defend.mogu import Mogu

_BATCH = 8
"""Rows in one forward: the logits of a whole answer are large."""

Done = Callable[[int], None]


@dataclass(frozen=True)
class Divergence:
    """Mean KL(base ‖ defended) in nats per token over rows, each row weighing the same."""

    first: float
    """Over the first ``routed_tokens`` tokens of the base's answers."""
    whole: float
    """Over the whole answers."""
    routed_tokens: int
    rows: int
    """Prompts compared: those that the base answers and that the defence lets through."""


def perplexities(
    target: Target, prompts: Sequence[Sequence[int]], answers: Sequence[str], done: Done | None = None
) -> list[float | None]:
    """Perplexity exp(mean −log p) of each answer under the base, given the tokens before it; None for an empty one."""
    ids = [response_ids(target.tokenizer, answer, end_of_turn=False) for answer in answers]
    found: list[float | None] = [None] * len(answers)
    for number, indices in enumerate(_batches(prompts, ids), 1):
        logs = _answer_logs(target.model, target, [prompts[i] for i in indices], [ids[i] for i in indices])
        for index, log in zip(indices, logs, strict=True):
            said = log.gather(1, torch.tensor(ids[index], device=log.device)[:, None])
            found[index] = math.exp(min(-said.mean().item(), 700.0))
        if done is not None:
            done(number * _BATCH)
    return found


def divergence(pipeline: Pipeline, texts: Sequence[str], answers: Sequence[str], first: int) -> Divergence | str:
    """KL of the defended model's next-token distributions from the base's, on the base's ``answers`` to ``texts``.

    A defence that decodes with other weights throughout (sft) is compared over the whole answer. One that routes its
    first m tokens is compared there; from then on it is the base, given its own prompt. One that only edits the prompt
    is the base given the edited prompt.

    Args:
        pipeline: The defence.
        texts: What the users ask.
        answers: The base's answers.
        first: Tokens that count as the first ones where nothing is routed.

    Returns:
        The divergence, or why there is none to speak of.
    """
    if reason := undefined(pipeline):
        return reason
    target, decoder = pipeline.target, pipeline.decoder
    plain, edited, wanted = _both_prompts(pipeline, texts, answers)
    if not wanted:
        return "it lets no prompt with an answer through"
    routed = _routed_tokens(decoder)
    first = first if routed is None else routed
    kls: list[torch.Tensor] = [torch.zeros(0)] * len(wanted)
    own_weights = type(decoder).installed is not Defense.installed
    for indices in _batches(edited, wanted):
        mine, theirs, ids = ([group[i] for i in indices] for group in (plain, edited, wanted))
        base = _answer_logs(target.model, target, mine, ids)
        # Nothing is computed that is known: the base given an unedited prompt, and what a head covers to the end.
        tail = base if mine == theirs or routed is None else _answer_logs(target.model, target, theirs, ids)
        head = base
        if own_weights or mine != theirs:
            with decoder.installed() as model:
                head = _answer_logs(model, target, theirs, [row[:routed] for row in ids])
        for index, b, h, t in zip(indices, base, head, tail, strict=True):
            kls[index] = (b.exp() * (b - torch.cat([h, t[len(h) :]]))).sum(dim=1).clamp(min=0).cpu()
    return Divergence(
        first=float(torch.stack([kl[:first].mean() for kl in kls]).mean()),
        whole=float(torch.stack([kl.mean() for kl in kls]).mean()),
        routed_tokens=first,
        rows=len(kls),
    )


def undefined(pipeline: Pipeline) -> str | None:
    """Why the next-token distributions of a defence cannot be compared with the base's; None if they can."""
    for one in pipeline.defenses:
        if type(one).after is not Defense.after:
            return f"{one.name} looks at the finished answer, which is no change of next-token distributions"
    decoder = pipeline.decoder
    if type(decoder).decode is not Defense.decode and not isinstance(decoder, Mogu):
        return f"{decoder.name} decodes in its own way, which no single forward pass shows"
    if isinstance(decoder, Mogu) and decoder.hands_over == "risk":
        return f"{decoder.name} hands over by risk, at another token in every answer"
    if isinstance(decoder, Mogu) and decoder.hands_over == "fixed" and decoder.through_thoughts:
        return f"{decoder.name} hands over after a thought, at another token in every answer"
    return None


def asked_ids(pipeline: Pipeline, text: str) -> list[int]:
    """Token ids of an undefended prompt."""
    return prompt_ids(pipeline.target.tokenizer, text, template=pipeline.target.template)


def _routed_tokens(decoder: Defense) -> int | None:
    """m of a decoder whose weights are on for the first m tokens; None where they are on throughout."""
    if not isinstance(decoder, Mogu) or decoder.hands_over == "all":
        return None
    with decoder.installed() as model:
        return active_config(model).routed_tokens


def _both_prompts(
    pipeline: Pipeline, texts: Sequence[str], answers: Sequence[str]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Plain prompts, edited prompts and answers as token ids, without rows that are stopped or have no answer."""
    plain, edited, wanted = [], [], []
    for text, answer in zip(texts, answers, strict=True):
        ids = response_ids(pipeline.target.tokenizer, answer, end_of_turn=False)
        conversation: list[Message] | Stopped = [{"role": "user", "content": text}]
        for one in pipeline.defenses:
            if not isinstance(conversation, Stopped):
                conversation = one.before([conversation])[0]
        if ids and not isinstance(conversation, Stopped):
            plain.append(asked_ids(pipeline, text))
            edited.append(pipeline._encode(conversation))
            wanted.append(ids)
    return plain, edited, wanted


def _batches(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of rows with an answer, in batches of like length, the longest first."""
    order = sorted((i for i in range(len(answers)) if answers[i]), key=lambda i: -len(prompts[i]) - len(answers[i]))
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]


def _answer_logs(
    model: Any, target: Target, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """For each row the log-probabilities (tokens × vocabulary, float32) from which each answer token is drawn."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    keep = max(map(len, answers)) + 1
    logits = read_batch(model, pad_prompts(target.tokenizer, rows, target.model.device), logits_to_keep=keep).logits
    logits = logits[:, -keep:]  # for models that do not know logits_to_keep
    return [logits[row, -len(ids) - 1 : -1].float().log_softmax(-1) for row, ids in enumerate(answers)]
