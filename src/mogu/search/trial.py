"""One trial: its stages, what they do to validation prompts, and the gates where it may end early."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mogu.adapter.model import fold_routers, set_shift, set_stage
from mogu.data.rows import Row
from mogu.errors import DivergedError
from mogu.judge import label_response
from mogu.progress import Progress
from mogu.recipe import Recipe, SearchRecipe
from mogu.search.choice import Member, beaten
from mogu.search.space import shifts
from mogu.train.batches import Encoder
from mogu.train.drift import Drift
from mogu.train.run import Run
from mogu.train.selection import Balance, Respondent, balance_of, labels_by_head, validation_groups
from mogu.train.trainers import forward_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DRIFT_PROMPTS = 24
"""Benign validation prompts on which KL from the base is taken."""


class GivenUp(Exception):
    """A trial that a gate ended, and why."""


@dataclass
class Gauge:
    """What every trial is measured with: the same validation prompts, and what is known of their answers."""

    groups: dict[str, list[Row]]
    first: dict[str, list[Row]]
    """The first prompts of each kind."""
    base: Balance
    """What the base does with them by itself."""
    answered: list[Row]
    """Benign prompts with the beginnings of the base's own answers, on which KL is taken."""
    known: dict[tuple[str, str], str] = field(default_factory=dict)
    """Labels by prompt and routed head: what follows the head is the base's, whatever the trial."""

    @property
    def prompts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {kind: len(group) for kind, group in self.groups.items()}


def gauge(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    batch_size: int,
) -> Gauge:
    """Validation prompts of the recipe's balance, and the plain base's answers to them."""
    groups = validation_groups(rows, recipe.balance.prompts)
    everyone = [row for group in groups.values() for row in group]
    head = max(recipe.adapter.routed_tokens, 1)
    ask = Respondent(base, tokenizer, recipe.template, batch_size)
    begun = ask.beginnings(everyone, [head, max(recipe.balance.new_tokens, head)])
    labels = {row.id: label_response(row.instruction, answer) for row, (_, answer) in zip(everyone, begun, strict=True)}
    heads = {row.id: answer for row, (answer, _) in zip(everyone, begun, strict=True)}
    answered = [dataclasses.replace(row, glad=heads[row.id]) for row in groups["benign"][:DRIFT_PROMPTS]]
    first = {kind: group[: recipe.search.first_prompts] for kind, group in groups.items()}
    return Gauge(groups, first, balance_of(0.0, groups, labels), answered)


@dataclass
class Trial:
    """One set of values, on its way through stages and gates."""

    number: int
    recipe: Recipe
    """The recipe with the trial's values."""
    run: Run
    gauge: Gauge
    finished: Mapping[int, Sequence[Member]]
    """Members of the trials before it; the first one of all is never given up."""
    progress: Progress

    def members(self, record: dict[str, Any]) -> list[Member]:
        """Train what no trial before trained, and measure every shift.

        Args:
            record: Told of each stage as it ends.

        Raises:
            GivenUp: A gate ended it.
            DivergedError: The first trial does not train.
        """
        try:
            for stage, checks in self.run.learn():
                record["stages"][stage] = self.run.done
                if stage != "routers":
                    chosen = next(check for check in checks if check["chosen"])
                    record["responders"][stage] = {
                        key: chosen[key] for key in ("pairs", "on_target", "degenerate", "kl")
                    }
                    self._must(
                        chosen["on_target"] >= self._search.on_target,
                        f"{stage} responder is on target in only {chosen['on_target']:.0%} of answers",
                    )
        except DivergedError as error:
            if not self.finished:
                raise
            raise GivenUp(f"does not train: {error}") from error
        return self._measured()

    @property
    def _search(self) -> SearchRecipe:
        return self.recipe.search

    def _must(self, holds: bool, otherwise: str) -> None:
        if self.finished and not holds:
            raise GivenUp(otherwise)

    def _measured(self) -> list[Member]:
        self.progress.begin("measure", "measures it on validation prompts")
        model, gauge, tried = self.run.model, self.gauge, shifts(self.recipe)
        set_stage(model, "routed")
        fold_routers(model)
        model.eval()
        encode = Encoder(self.run.tokenizer, self.recipe.template, self.recipe.routers.answer_tokens)
        drift = Drift(
            model,
            encode,
            gauge.answered,
            first=self.recipe.adapter.routed_tokens,
            accepts=forward_parameters(model),
            count=len(gauge.answered),
        )
        labels: dict[float, dict[str, str]] = {}
        first: list[Member] = []
        for shift in tried:
            labels[shift] = self._labels(shift, gauge.first)
            first.append(self._member(shift, gauge.first, labels[shift], drift() or 0.0))
            self.progress.update(len(first), 2 * len(tried))
        reason = beaten(first, {k: len(g) for k, g in gauge.first.items()}, self.finished, self._search.beaten_times)
        self._must(reason is None, str(reason))
        rest = {kind: group[len(gauge.first[kind]) :] for kind, group in gauge.groups.items()}
        found: list[Member] = []
        for shift, begun in zip(tried, first, strict=True):
            labels[shift] |= self._labels(shift, rest)
            found.append(self._member(shift, gauge.groups, labels[shift], begun.kl))
            self.progress.update(len(tried) + len(found), 2 * len(tried))
        self._must(any(sound(m, gauge.base, self._search) for m in found), "answers are broken text at every shift")
        self.progress.end(f"{len(found)} shifts")
        return found

    def _labels(self, shift: float, groups: Mapping[str, Sequence[Row]]) -> dict[str, str]:
        set_shift(self.run.model, shift)
        rows = [row for group in groups.values() for row in group]
        return labels_by_head(self.run.ask, rows, self.recipe.balance.new_tokens, self.gauge.known)

    def _member(
        self, shift: float, groups: Mapping[str, Sequence[Row]], labels: Mapping[str, str], kl: float
    ) -> Member:
        return Member(**asdict(balance_of(shift, groups, labels)), trial=self.number, kl=kl)


def sound(member: Member, base: Balance, search: SearchRecipe) -> bool:
    """Whether broken answers are hardly more frequent than the base's."""
    return member.degenerate <= base.degenerate + search.broken + 1e-9


class Titled(Progress):
    """Says of every step which trial it is of."""

    def __init__(self, inner: Progress, title: str, name: str) -> None:
        self.inner, self.title, self.name = inner, title, name

    def begin(self, step: str, text: str) -> None:
        """As :meth:`Progress.begin`."""
        self.inner.begin(f"{self.name} {step}", f"{self.title}: {text}")

    def update(self, done: int, total: int) -> None:
        """As :meth:`Progress.update`."""
        self.inner.update(done, total)

    def end(self, text: str) -> None:
        """As :meth:`Progress.end`."""
        self.inner.end(text)
