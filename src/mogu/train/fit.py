"""Warm start: fit the routers as the logistic probes that they are, layer after layer, in one forward pass.

A folded router is σ(w·x + b). Fitting it on the base's hidden states is quick but wrong in the routed model: what a
layer routes changes the states that all layers above it read. So the whole fitting set goes through the model once,
and each routed projection, when reached, fits its router on the states that arrive there, routes, and passes on.

The rows that a router was fitted on look easier to it than new rows will. Layers above would learn to trust it, errors
and all. Hence cross-fitting: while the pass goes on, every row is routed by a router fitted without that row (and
without its twin); the router that is kept is fitted on all rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from mogu.adapter.layer import MoguLinear
from mogu.adapter.model import decoder_layers, mogu_layers, plain_base, set_shift, set_stage
from mogu.adapter.router import FoldedRouter
from mogu.chat import accepts_system
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.offload import is_offloaded
from mogu.train.batches import Encoded, Encoder
from mogu.train.contexts import FOLDS, Context, contexts, folds_of
from mogu.train.layout import Layout, packed, packs_alike, padded
from mogu.train.pieces import in_pieces, piece_lines

_FOLD_STEPS = 20
"""L-BFGS steps of a probe that only routes the rows of its fold: enough for logits that correlate by 0.997 and more."""
_ANSWER_TOKENS = 5
_INSTRUCTION_TOKENS = 7
TOKEN_WEIGHTS = {
    "weighted": (0.1, 1.0, 0.3),
    "equal": (1.0, 1.0, 1.0),
    "prompt": (0.1, 1.0, 0.0),
    "template": (0.0, 1.0, 0.0),
}
"""Weight of one of the last instruction tokens, of a template token after the instruction, and of an answer token."""
_MAX_TOKENS = 120_000


def fit_probe(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, l2: float, steps: int = 50, *, standardise: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted, ridge-regularised logistic regression on inputs standardised inside.

    L-BFGS in coordinates where the curvature at zero is the identity, so that a few dozen steps suffice.

    Args:
        x: (n, d) float32 inputs.
        y: (n,) float32 in {0, 1}.
        weight: (n,) float32, summing to 1.
        l2: Ridge on the standardised weights, not on the bias.
        steps: L-BFGS steps at most.
        standardise: False: the ridge is on the weights for inputs as given.

    Returns:
        ``(w, b)``, (d,) and (1,) float32, for inputs as given.
    """
    problem = Standardised(x)
    moments = problem.moments(weight)
    return problem.fit(moments, slice(None), y, weight, l2, steps, standardise=standardise)


class Standardised:
    """Inputs of several fits that share rows, shifted and scaled once; a fit is the same whatever they are shifted by.

    A fit without some rows differs in its moments and in its ridge, which is on weights for inputs standardised over
    the rows that are there.
    """

    def __init__(self, x: torch.Tensor) -> None:
        """``x``: (n, d) float32."""
        self.mean = x.mean(dim=0)
        self.scale = (x - self.mean).square().mean(dim=0).sqrt().clamp(min=1e-6)
        self.inputs = torch.cat([(x - self.mean) / self.scale, x.new_ones(len(x), 1)], dim=1)

    def moments(self, weight: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Sums of products of the inputs of ``rows``, (d + 1, d + 1); those of disjoint rows add up.

        ``weight`` is of these rows, (n,).
        """
        inputs = self.inputs[rows]
        return (inputs * weight[:, None]).T @ inputs

    def fit(
        self,
        moments: torch.Tensor,
        rows: torch.Tensor | slice,
        y: torch.Tensor,
        weight: torch.Tensor,
        l2: float,
        steps: int,
        *,
        standardise: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :func:`fit_probe`, on ``rows`` with their ``moments``; ``y`` and ``weight`` are of these rows."""
        inputs = self.inputs[rows]
        mean = moments[:-1, -1]
        spread = moments.diagonal()[:-1] - mean.square()
        spread = spread.clamp(min=1e-6) if standardise else self.scale.reciprocal().square()
        ridge = torch.cat([l2 * spread, spread.new_zeros(1)])
        factor = torch.linalg.cholesky(moments / 4 + torch.diag(ridge + 1e-6))

        def unwhiten(z: torch.Tensor) -> torch.Tensor:
            return torch.linalg.solve_triangular(factor.T, z[:, None], upper=True)[:, 0]

        z = inputs.new_zeros(inputs.shape[1])
        optimizer = torch.optim.LBFGS(
            [z], max_iter=steps, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            theta = unwhiten(z)
            logits = inputs @ theta
            loss = weight @ nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
            loss = loss + (ridge * theta.square()).sum() / 2
            gradient = inputs.T @ (weight * (torch.sigmoid(logits) - y)) + ridge * theta
            z.grad = torch.linalg.solve_triangular(factor, gradient[:, None], upper=False)[:, 0]
            return loss

        optimizer.step(closure)
        theta = unwhiten(z)
        w = theta[:-1] / self.scale
        return w, (theta[-1] - w @ self.mean).reshape(1)


@dataclass(frozen=True)
class FitSet:
    """The tokens that routers are fitted on, one entry each."""

    line: torch.Tensor
    column: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    fold: torch.Tensor
    lines: torch.Tensor
    """Fold of each line of the batch, (lines,) int64."""

    def to(self, device: Any) -> FitSet:
        """The same on another device."""
        return FitSet(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def fit_routers(
    model: Any,
    encode: Encoder,
    rows: Sequence[Row],
    *,
    l2: float = 1e-3,
    borderline_weight: float = 1.0,
    sharpness: float = 1.0,
    tokens: str = "weighted",
    standardise: bool = True,
    states: str = "routed",
    turns: float = 0.0,
    system_prompts: float = 0.0,
    pack: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fit the folded routers of the active adapter in place; the glad router gets the negated logit of the unwill one.

    Half of the rows of each label are seen with a refusal and half with a helpful beginning, so that a router reads
    what is asked and not how the answer sounds. Fitted on the template's tokens after the instruction and, with less
    weight, on the first answer tokens and the end of the instruction; every row weighs the same, and malicious and
    benign rows weigh the same together.

    Args:
        model: peft model with trained responders and folded routers.
        encode: Encoder of the run.
        rows: Training rows.
        l2: Ridge of the fit.
        borderline_weight: Weight of borderline rows relative to other benign ones.
        sharpness: Factor of the fitted logits. Layers that hesitate leave an answer half-way between two responders,
            where a base makes excuses of its own; above 1, each layer decides more firmly.
        tokens: Which tokens, with which weights: a key of :data:`TOKEN_WEIGHTS`.
        standardise: As for :func:`fit_probe`.
        states: ``routed``, what the layers below make of the row when they route; ``base``, what the plain base does.
        turns: Share of the rows that are the second turn of a conversation (:mod:`mogu.train.contexts`), where the
            base's context holds it.
        system_prompts: Share of the rows under a system prompt that is not the template's own; none where the template
            takes no system prompt.
        pack: Many rows to a line of the batch (:mod:`mogu.train.layout`); default: where the model computes the same.
        progress: Called with (layers done, layers in all).

    Raises:
        TrainingError: Only one label in ``rows``, or more tokens than one pass should hold.
    """
    if len({row.label for row in rows}) < 2:
        raise TrainingError("routers need benign and malicious rows; the data has only one kind")
    layers = mogu_layers(model)
    layout, entries = lay_out(model, encode, rows, borderline_weight, pack, tokens, turns, system_prompts)
    fit = _Fit(model.active_adapter, entries, l2, sharpness, standardise, states == "routed")
    set_stage(model, "routed")
    set_shift(model, 0.0)
    was_training = model.training
    model.eval()
    base = model.get_base_model().base_model
    below = dict(enumerate(decoder_layers(model)[: layers[-1][0] + 1]))
    lines = len(entries.lines)
    try:
        plain = plain_base(model) if states == "base" else contextlib.nullcontext()
        with torch.no_grad(), plain, contextlib.suppress(_AllFitted):
            size = lines if is_offloaded(model) else piece_lines(base, layout.inputs, below)
            stops = {}
            for done, (index, layer) in enumerate(layers, 1):
                stops[index] = (layer, _Between(fit, layer, done, len(layers), progress))
            with in_pieces(below, lines, size, stops):
                base(**layout.inputs, use_cache=False)
    finally:
        for _, layer in layers:
            layer.override = None
        model.train(was_training)


def lay_out(
    model: Any,
    encode: Encoder,
    rows: Sequence[Row],
    borderline_weight: float = 1.0,
    pack: bool | None = None,
    tokens: str = "weighted",
    turns: float = 0.0,
    system_prompts: float = 0.0,
) -> tuple[Layout, FitSet]:
    """The batch of the fitting pass, on the model's device, and the tokens of it that routers are fitted on.

    Arguments and errors are those of :func:`fit_routers`.
    """
    takes_system = system_prompts > 0 and accepts_system(encode.tokenizer, encode.template)
    before = contexts(rows, turns, system_prompts if takes_system else 0.0)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    encoded = [_with_either_answer(encode, row, index, before[index]) for index, row in enumerate(rows)]
    for index in (index for index, (prompt, answer) in enumerate(encoded) if len(prompt) + len(answer) > limit):
        before[index] = Context()  # what the base cannot read to the end, it reads alone
        encoded[index] = _with_either_answer(encode, rows[index], index, before[index])
    prompts, pad_token_id = [prompt for prompt, _ in encoded], encode.tokenizer.pad_token_id
    # A system prompt before the instruction says nothing about it; the template's tokens after it say most.
    suffix = max(_shared([prompt[::-1] for prompt in prompts]), 1)
    prefixes = _beginnings(prompts, [context.system for context in before], suffix)
    if pack or (pack is None and packs_alike(model, encoded, prefixes, pad_token_id)):
        layout = packed(model, encoded, folds_of(rows), prefixes, pad_token_id)
    else:
        kept = _without_longest(encoded)
        rows, encoded = [rows[index] for index in kept], [encoded[index] for index in kept]
        prefixes = [prefixes[index] for index in kept]
        layout = padded(encoded, folds_of(rows), pad_token_id)
    if layout.size > _MAX_TOKENS:
        raise TrainingError(f"{len(rows)} rows are too many for one fitting pass; set data.limit in the recipe")
    instruction, template, said = TOKEN_WEIGHTS[tokens]
    counts = [
        [
            (instruction, min(len(prompt) - prefix - suffix, _INSTRUCTION_TOKENS)),
            (template, suffix),
            (said, len(answer)),
        ]
        for (prompt, answer), prefix in zip(encoded, prefixes, strict=True)
    ]
    weights = [[weight for weight, count in each for _ in range(count)] for each in counts]
    return layout.to(model.device), _fit_set(rows, weights, layout, borderline_weight).to(model.device)


def _beginnings(prompts: Sequence[Sequence[int]], systems: Sequence[str | None], suffix: int) -> list[int]:
    """Tokens at the beginning of each prompt that all prompts under the same system prompt share, the suffix apart."""
    found = {}
    for system in set(systems):
        alike = [prompt for prompt, own in zip(prompts, systems, strict=True) if own == system]
        found[system] = max(min(_shared(alike), min(map(len, alike)) - suffix), 0)
    return [found[system] for system in systems]


def _without_longest(encoded: Sequence[Encoded]) -> list[int]:
    """All but the longest twentieth: every row is padded to the longest, and a few of these would double the pass."""
    lengths = [len(prompt) for prompt, _ in encoded]
    longest = sorted(lengths)[(len(lengths) - 1) * 19 // 20]
    return [index for index, length in enumerate(lengths) if length <= longest]


def _with_either_answer(encode: Encoder, row: Row, index: int, before: Context) -> Encoded:
    helpful = (index // FOLDS) % 2 == 0
    prompt, answer = encode(before(row.instruction), row.glad if helpful else row.unwill, closed=False)
    return prompt, answer[:_ANSWER_TOKENS]


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all prompts begin; at least one of each prompt is left."""
    length, limit = 0, min(map(len, prompts)) - 1
    while length < limit and len({prompt[length] for prompt in prompts}) == 1:
        length += 1
    return length


def _fit_set(
    rows: Sequence[Row], weights: Sequence[Sequence[float]], layout: Layout, borderline_weight: float
) -> FitSet:
    """The last tokens of each row, as many as it has weights."""
    line: list[int] = []
    column: list[int] = []
    y: list[float] = []
    weight: list[float] = []
    for row, each, n, end in zip(rows, weights, layout.line, layout.end, strict=True):
        line += [n] * len(each)
        column += range(end - len(each), end)
        y += [float(row.label == "malicious")] * len(each)
        weight += [w / sum(each) * (borderline_weight if row.borderline else 1.0) for w in each]
    labels, shares = torch.tensor(y), torch.tensor(weight)
    for value in (0.0, 1.0):
        shares[labels == value] /= 2 * shares[labels == value].sum()
    return FitSet(
        torch.tensor(line), torch.tensor(column), labels, shares, layout.fold[torch.tensor(line)], layout.fold
    )


@dataclass(frozen=True)
class _Fit:
    """Fits the router of a projection on what arrives there."""

    name: str
    tokens: FitSet
    l2: float
    sharpness: float
    standardise: bool
    routed: bool

    def __call__(self, layer: MoguLinear, states: torch.Tensor) -> torch.Tensor | None:
        """Logits (lines, columns) float32 to route ``states`` (lines, columns, d_in) by, or ``None``: plain."""
        tokens = self.tokens
        problem = Standardised(states[tokens.line, tokens.column].float())
        folds = [tokens.fold == fold for fold in range(FOLDS)]
        moments = [problem.moments(tokens.weight[own], own) for own in folds]
        everything = torch.stack(moments).sum(dim=0)
        w, b = self._probe(problem, everything, slice(None), 50)
        for sign, routers in ((1, layer.mogu_unwill_router), (-1, layer.mogu_glad_router)):
            router = routers[self.name]
            assert isinstance(router, FoldedRouter)
            router.weight.copy_(sign * self.sharpness * w)
            router.bias.copy_(sign * self.sharpness * b)
        if not self.routed:
            return None
        logits = states.new_zeros(states.shape[:-1], dtype=torch.float32)
        for fold, (own, mine) in enumerate(zip(folds, moments, strict=True)):
            # What the layers above see is routed by probes that did not see the row.
            w, b = self._probe(problem, everything - mine, ~own, _FOLD_STEPS)
            lines = tokens.lines == fold
            logits[lines] = self.sharpness * (states[lines].float() @ w + b)
        return logits

    def _probe(
        self, problem: Standardised, moments: torch.Tensor, rows: torch.Tensor | slice, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, weight = self.tokens.y[rows], self.tokens.weight[rows]
        total = weight.sum()
        return problem.fit(moments / total, rows, y, weight / total, self.l2, steps, standardise=self.standardise)


@dataclass(frozen=True)
class _Between:
    """What happens when all lines have come to a routed projection."""

    fit: _Fit
    layer: MoguLinear
    done: int
    total: int
    progress: Callable[[int, int], None] | None

    def __call__(self, states: torch.Tensor) -> Callable[[slice], None]:
        logits = self.fit(self.layer, states)
        if self.progress is not None:
            self.progress(self.done, self.total)
        if self.done == self.total:
            raise _AllFitted

        def route(lines: slice) -> None:
            if logits is not None:
                self.layer.override = (torch.sigmoid(logits[lines]), torch.sigmoid(-logits[lines]))

        return route


class _AllFitted(Exception):
    """Nothing above the last routed projection needs to be computed."""
