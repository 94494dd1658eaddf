"""The calibration of the risk: from router logits of validation rows to probabilities.

The routers were fitted on training rows, where they are surer than they should be; validation rows are new to them. Two
forms are tried for the last token of a prompt, the mean margin over the layers (Platt 1999) and a ridge-regularised
logistic regression over the layers' margins, and the one with the lower cross-validated log loss is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mogu.adapter.model import plain_base, recorded_logits
from mogu.adapter.risk import margins
from mogu.chat import pad_prompts, prompt_ids, response_ids
from mogu.data.answers import affirmation_for, refusal_for
from mogu.data.rows import Row
from mogu.respond import by_length
from mogu.respond import response_ids as responses
from mogu.routing import logits_after_prompt
from mogu.train.fit import fit_probe
from mogu.train.selection import Respondent, validation_groups

FOLDS = 5
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
ANSWERED_ROWS = 16
"""Validation rows of each kind whose answers are read."""
ANSWER_TOKENS = 20
_LEAST = 2
"""Rows of either label below which there is nothing to calibrate on."""


def fit_risk(ask: Respondent, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Calibrate the risk of the active adapter on validation rows.

    Args:
        ask: The routed model, balanced.
        rows: All rows; the validation split is used, at the base rate of malicious rows that it has.

    Returns:
        ``MoguConfig.risk``: for ``prompt`` and ``answer`` tokens a ``weight`` for each routed layer and a ``bias``; how
        each was fitted is beside them. ``None`` with too few validation rows.
    """
    groups = validation_groups(rows, None)
    everyone = [row for group in groups.values() for row in group]
    counts = [sum(row.label == label for row in everyone) for label in ("malicious", "benign")]
    if min(counts) < _LEAST:
        return None
    was_training = ask.model.training
    ask.model.eval()
    texts = [row.instruction for row in everyone]
    logits = logits_after_prompt(ask.model, ask.tokenizer, texts, batch_size=ask.batch_size, template=ask.template)
    after = margins(logits)
    y = torch.tensor([float(row.label == "malicious") for row in everyone])
    found = {"prompt": best_fit(after, y, _folds(everyone)), "answer": _answers(ask, rows)}
    ask.model.train(was_training)
    return found


def _answers(ask: Respondent, rows: Sequence[Row]) -> dict[str, Any]:
    """The calibration on answer tokens: each row with a refusal, an affirmative beginning, and the base's own words."""
    some = [row for group in validation_groups(rows, ANSWERED_ROWS).values() for row in group]
    own: list[list[int]] = [[] for _ in some]
    texts = [row.instruction for row in some]
    with plain_base(ask.model):
        for index, new in responses(
            ask.model,
            ask.tokenizer,
            texts,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=ask.batch_size,
            template=ask.template,
        ):
            own[index] = [token for token in new.tolist() if token != ask.tokenizer.pad_token_id]
    read: list[tuple[Row, list[int]]] = []
    for row, words in zip(some, own, strict=True):
        for answer in (refusal_for(row.instruction), affirmation_for(row.instruction)):
            read.append((row, response_ids(ask.tokenizer, answer, end_of_turn=False)[:ANSWER_TOKENS]))
        read.append((row, words))
    read = [(row, answer) for row, answer in read if answer]
    ids = [[*prompt_ids(ask.tokenizer, row.instruction, template=ask.template), *answer] for row, answer in read]
    tokens = _read(ask, ids, [len(answer) for _, answer in read])
    x = torch.cat(tokens)
    owner = [row for (row, _), each in zip(read, tokens, strict=True) for _ in each]
    weight = torch.cat([torch.full((len(each),), 1 / len(each)) for each in tokens])
    y = torch.tensor([float(row.label == "malicious") for row in owner])
    return best_fit(x, y, _folds(owner), weight)


def _read(ask: Respondent, ids: Sequence[Sequence[int]], counts: Sequence[int]) -> list[torch.Tensor]:
    """Margins (tokens, routed layers) of the last so many tokens of each row."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    for indices in by_length(ids, ask.batch_size):
        batch = pad_prompts(ask.tokenizer, [ids[index] for index in indices], ask.model.device)
        positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        with torch.inference_mode(), recorded_logits(ask.model) as logits:
            ask.model(**batch, position_ids=positions, use_cache=False, logits_to_keep=1)
            recorded = logits()
            assert recorded is not None
            each = margins(recorded).cpu()
        for index, row in zip(indices, each, strict=True):
            found[index] = row[-counts[index] :].clone()
    return found


def best_fit(
    x: torch.Tensor, y: torch.Tensor, folds: torch.Tensor, weight: torch.Tensor | None = None
) -> dict[str, Any]:
    """The form with the lowest cross-validated log loss, fitted on all rows.

    Args:
        x: Margins, (n, routed layers) float32.
        y: (n,) float32 in {0, 1}.
        folds: Fold of each row, (n,) int64.
        weight: (n,) float32; default: all alike.

    Returns:
        ``weight`` (a list, one for each layer), ``bias``, ``form`` (``mean`` or ``layers``), ``l2``, ``log_loss``
        (cross-validated, nats), ``n``.
    """
    weight = torch.ones(len(y)) if weight is None else weight
    trials = [(form, l2) for form, ridges in (("mean", (1e-3,)), ("layers", RIDGES)) for l2 in ridges]
    losses = {trial: _cross_validated(x, y, folds, weight, *trial) for trial in trials}
    form, l2 = min(trials, key=lambda trial: losses[trial])
    w, b = _fit(x, y, weight, form, l2)
    return {
        "weight": [round(value, 6) for value in w.tolist()],
        "bias": round(float(b), 6),
        **{"form": form, "l2": l2, "log_loss": round(losses[form, l2], 5), "n": len(y)},
    }


def _fit(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, form: str, l2: float) -> tuple[torch.Tensor, float]:
    weight = weight / weight.sum()
    if form == "layers":
        w, b = fit_probe(x, y, weight, l2)
        return w, float(b)
    w, b = fit_probe(x.mean(dim=1, keepdim=True), y, weight, l2)
    return w.expand(x.shape[1]) / x.shape[1], float(b)


def _cross_validated(
    x: torch.Tensor, y: torch.Tensor, folds: torch.Tensor, weight: torch.Tensor, form: str, l2: float
) -> float:
    total = 0.0
    for fold in folds.unique().tolist():
        own = folds == fold
        w, b = _fit(x[~own], y[~own], weight[~own], form, l2)
        losses = nn.functional.binary_cross_entropy_with_logits(x[own] @ w + b, y[own], reduction="none")
        total += float((losses * weight[own]).sum())
    return total / float(weight.sum())


def _folds(rows: Sequence[Row]) -> torch.Tensor:
    """Fold of each row; twins, and answers to one row, share one."""
    known: dict[str, int] = {}
    for row in rows:
        known.setdefault(row.id, known.get(row.twin, len(known) % FOLDS))
    return torch.tensor([known[row.id] for row in rows])
