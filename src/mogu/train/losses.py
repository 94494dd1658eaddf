"""The losses, as pure functions of tensors (MoGU paper, section 3).

Responders: the ratio CE(wanted answer) / CE(unwanted answer) per pair. Routers: CE(answer) + λ · (how far the router
weights are from their targets).
"""

from __future__ import annotations

import torch
from torch.nn import functional

IGNORED = -100
"""Label of tokens that no loss counts: prompt and padding."""


def response_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over each row's response tokens.

    Args:
        logits: (rows, tokens, vocabulary), any float dtype; computed in float32.
        labels: (rows, tokens) int64, :data:`IGNORED` on prompt and padding; not shifted.

    Returns:
        (rows,) float32, in nats per token.
    """
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    losses = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


def over_rows(each: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean of ``each`` (rows,), or its sum weighed by ``weights`` (rows,): a process's share of the mean of a step."""
    return each.mean() if weights is None else (each * weights).sum()


def ratio_loss(wanted: torch.Tensor, unwanted: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Published responder loss, mean over pairs of CE(wanted) / CE(unwanted).

    Unbounded: an unwanted answer that the base finds very likely (small denominator) dominates its batch.

    Args:
        wanted: (pairs,) cross-entropies of the answers to learn.
        unwanted: (pairs,) cross-entropies of the answers to unlearn.
        weights: (pairs,), as for :func:`over_rows`.
    """
    return over_rows(wanted / unwanted, weights)


def log_ratio_loss(
    wanted: torch.Tensor, unwanted: torch.Tensor, floor: float, cap: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """log CE(wanted) - log CE(unwanted), with both cross-entropies bounded; mean over pairs (ours).

    Every pair pulls with the same strength, whatever its scale.

    Args:
        wanted: (pairs,) cross-entropies of the answers to learn.
        unwanted: (pairs,) cross-entropies of the answers to unlearn.
        floor: Least value that either counts as, so that nothing is divided by almost zero.
        cap: Greatest value that the unwanted one counts as: unlearning further only breaks the text.
        weights: (pairs,), as for :func:`over_rows`.
    """
    return over_rows(wanted.clamp(min=floor).log() - unwanted.clamp(min=floor, max=cap).log(), weights)


def router_penalty(
    unwill: torch.Tensor,
    glad: torch.Tensor,
    malicious: torch.Tensor,
    mask: torch.Tensor,
    kind: str = "squared",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the router weights are from their targets: unwill from t and glad from 1 - t, t = 1 for malicious rows.

    The authors' code squares the difference; the paper's text writes an L1 norm.

    Args:
        unwill: (layers, rows, tokens) weights in (0, 1).
        glad: The same for the glad responder.
        malicious: (rows,) bool.
        mask: (rows, tokens), true on real tokens; padding never counts.
        kind: ``"squared"`` or ``"l1"``.
        weights: (rows,), as for :func:`over_rows`.

    Returns:
        Scalar: mean over rows of the means over layers and that row's real tokens, both responders added.
    """
    target = malicious.to(unwill.dtype)[None, :, None]
    differences = (unwill - target, glad - (1 - target))
    each = sum(d.abs() if kind == "l1" else d.square() for d in differences).mean(dim=0)  # type: ignore[union-attr]
    mask = mask.to(each.dtype)
    return over_rows((each * mask).sum(dim=1) / mask.sum(dim=1), weights)


def divergence(base: torch.Tensor, logits: torch.Tensor, answers: torch.Tensor, count: int) -> torch.Tensor:
    """KL(base ‖ model) at the tokens of answers, the mean over each answer's.

    Args:
        base: (tokens, vocabulary) logits of the plain base, any float dtype; computed in float32.
        logits: The model's, likewise.
        answers: (tokens,) int64: which answer each token is of.
        count: Answers.

    Returns:
        (answers,) float32, in nats per token; 0 for an answer without tokens.
    """
    target = functional.log_softmax(base.float(), dim=-1)
    each = (target.exp() * (target - functional.log_softmax(logits.float(), dim=-1))).sum(dim=-1)
    total = each.new_zeros(count).index_add(0, answers, each)
    return total / torch.bincount(answers, minlength=count).clamp(min=1)
