"""The paper's mathematics, written from the paper alone, slowly and obviously.

Nothing here calls ``mogu``: :func:`numbers_of` copies the adapter's parameters out by name, the rest is computed on
plain transformers models with forward hooks, without caches, without padding and without ``generate``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens so far (rows, n), logits (rows, vocabulary)) -> next tokens (rows,)"""


def numbers_of(model: nn.Module, adapter: str = "default") -> dict[str, dict[str, Any]]:
    """By path of the projection in the base model: A and B of both responders, routers, scale and shift.

    Where the backbone has a LoRA, its A, B and scale; on other projections nothing else.
    """
    found = {}
    for path, module in model.named_modules():
        if not hasattr(module, "mogu_glad_A"):
            continue
        one: dict[str, Any] = {"scale": module.mogu_scaling[adapter], "shift": module.mogu_shift[adapter]}
        for who in ("glad", "unwill"):
            one[who] = [getattr(module, f"mogu_{who}_{half}")[adapter].detach().clone() for half in "AB"]
            router = getattr(module, f"mogu_{who}_router")[adapter]
            one[f"{who}_router"] = {n: p.detach().clone() for n, p in router.named_parameters()}
        found[path.removeprefix("base_model.model.")] = one
    for path, module in model.named_modules():
        if hasattr(module, "mogu_backbone_A") and adapter in module.mogu_backbone_A:
            a, b = (getattr(module, f"mogu_backbone_{half}")[adapter].detach().clone() for half in "AB")
            place = path.removeprefix("base_model.model.").removesuffix(".base_layer")
            found.setdefault(place, {})["lora"] = (a, b, module.mogu_scaling[adapter])
    return found


def router_weight(numbers: dict[str, torch.Tensor], x: torch.Tensor, shift: float) -> torch.Tensor:
    """One weight per token: the three published matrices one after the other, or the logistic probe."""
    if "down" in numbers:
        hidden = x @ numbers["down"].T
        hidden = hidden @ numbers["up"].T + numbers["up_bias"]
        logit = (hidden @ numbers["out"].T + numbers["out_bias"])[..., 0]
    else:
        logit = (x * numbers["weight"]).sum(-1) + numbers["bias"]
    return 1 / (1 + torch.exp(-(logit + shift)))


def projection(base: nn.Module, numbers: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """y = (u + g) · W x + s · (u · B_u A_u x + g · B_g A_g x), W with its backbone LoRA; or W alone with that."""
    weight = base.weight if isinstance(base, nn.Linear) else base.weight.T  # GPT-2's Conv1D is transposed
    plain = x @ weight.T + (0 if base.bias is None else base.bias)
    if "lora" in numbers:
        a, b, scale = numbers["lora"]
        plain = plain + scale * (x @ a.T) @ b.T
    if "glad" not in numbers:
        return plain
    u = router_weight(numbers["unwill_router"], x, numbers["shift"])[..., None]
    g = router_weight(numbers["glad_router"], x, -numbers["shift"])[..., None]
    deltas = {}
    for who in ("unwill", "glad"):
        a, b = numbers[who]
        deltas[who] = (x @ a.T) @ b.T
    return (u + g) * plain + numbers["scale"] * (u * deltas["unwill"] + g * deltas["glad"])


def routed_copy(base: nn.Module, numbers: dict[str, dict[str, Any]]) -> nn.Module:
    """A copy of the plain ``base`` whose named projections are routed."""
    model = copy.deepcopy(base)
    for path, own in numbers.items():
        module = model.get_submodule(path)
        module.register_forward_hook(lambda module, args, _, own=own: projection(module, own, args[0]))
    return model


def greedy(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def sampler(seed: int, temperature: float = 1.0) -> Choose:
    """Draws from the softmax, from torch's global generator seeded now."""
    torch.manual_seed(seed)
    return lambda _, logits: torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0]


def penalised(penalty: float) -> Choose:
    """Greedy after dividing positive and multiplying negative logits of every token seen, prompt included."""

    def choose(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        for row, seen in zip(logits, tokens, strict=True):
            for token in set(seen.tolist()):
                row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        return logits.argmax(-1)

    return choose


@torch.no_grad()
def decode(
    routed: nn.Module,
    base: nn.Module,
    prompt: torch.Tensor,
    *,
    m: int = 5,
    new: int = 12,
    stop: Callable[[list[int]], bool] = lambda answer: False,
    choose: Choose = greedy,
    drop_end_in_head: bool = False,
) -> list[list[int]]:
    """Answers to ``prompt`` (rows, n), all of one length: first ``m`` tokens from ``routed``, the rest from ``base``.

    Every step reads the whole sequence again. With ``stop`` (of one answer so far) give one row. ``drop_end_in_head``
    is the authors' way: a head that stops loses its last token and the base goes on.
    """
    tokens = prompt
    ended_head = False
    while tokens.shape[1] - prompt.shape[1] < new:
        done = tokens.shape[1] - prompt.shape[1]
        model = routed if done < m and not ended_head else base
        chosen = choose(tokens, model(input_ids=tokens).logits[:, -1])
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        if tokens.shape[0] == 1 and stop(tokens[0, prompt.shape[1] :].tolist()):
            if not (drop_end_in_head and model is routed):
                break
            tokens, ended_head = tokens[:, :-1], True
    return tokens[:, prompt.shape[1] :].tolist()


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Mean over positions first … last-1 of one row of -log p(token | tokens before)."""
    terms = [-torch.log_softmax(logits[i - 1], -1)[ids[i]] for i in range(first, last)]
    return torch.stack(terms).mean()
