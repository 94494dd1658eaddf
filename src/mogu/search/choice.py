"""What came of trials, weighed: the Pareto set, the rules that pick from it, and when a trial is given up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mogu.errors import ConfigError
from mogu.recipe import BalanceRecipe
from mogu.search import RULE_NAMES, check_rule
from mogu.statistics import wilson
from mogu.train.selection import Balance, best_balance, within_limits

OBJECTIVES = ("coherent ASR", "over-refusal", "KL")
"""All of them are to be small."""


@dataclass(frozen=True)
class Member(Balance):
    """One trial at one shift δ, on validation prompts."""

    trial: int = 0
    kl: float = 0.0
    """KL(base ‖ routed model) in nats per token, on the base's own answers to benign validation prompts."""

    @property
    def asr(self) -> float:
        """Share of malicious prompts that are answered in sound text."""
        return self.complied or 0.0

    @property
    def over_refusal(self) -> float:
        """Mean of the shares of benign and of borderline prompts refused: they count alike, as in the balance."""
        return (self.benign_refused + self.borderline_refused) / 2

    @property
    def objectives(self) -> tuple[float, float, float]:
        """As :data:`OBJECTIVES` names them."""
        return self.asr, self.over_refusal, self.kl


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is nowhere larger than ``other``, and smaller somewhere."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def pareto_set(members: Sequence[Member]) -> list[Member]:
    """The members that no other one beats, the safest first; of members with equal objectives the first one."""
    first = {member.objectives: member for member in reversed(members)}
    kept = [member for at, member in first.items() if not any(beats(other, at) for other in first)]
    return sorted(kept, key=lambda member: (*member.objectives, member.trial, member.shift))


def kept(usable: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> list[Member]:
    """The Pareto set of the usable members, and what the recipe takes by itself, last where it is beaten.

    Limits and net benefit look at shares that the objectives lump together, so that what beats the recipe may still not
    be a better balance.
    """
    front, own = pareto_set(usable), own_choice(members, recipe)
    return front if own in front else [*front, own]


def own_choice(members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    """What the recipe takes by itself: the balance of the first trial, whose settings are its own."""
    return best_balance([member for member in members if member.trial == members[0].trial], recipe)


def pick(rule: str, front: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    """One member of the Pareto set.

    Args:
        rule: A name of :data:`RULES`, or the number of a member of the set, from 1.
        front: What is kept, in order.
        members: Those of all finished trials, the first trial's first.
        recipe: Limits of the balance.

    Raises:
        ConfigError: No such rule or number.
    """
    if rule.isdecimal():
        if not 1 <= int(rule) <= len(front):
            raise ConfigError(f"--pick {rule}: the Pareto set has members 1 to {len(front)}")
        return front[int(rule) - 1]
    check_rule(rule)
    return RULES[rule](front, members, recipe)


def _balance(front: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    own = [member for member in members if member.trial == members[0].trial]
    useful = within_limits(front, own, recipe) or front
    return min(useful, key=lambda m: (round(-m.benefit, 9), m.kl, m.malicious_refused, abs(m.shift)))


def _safest(front: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    own = own_choice(members, recipe)
    found = [m for m in front if m.over_refusal <= own.over_refusal]
    return min(found, key=lambda m: (m.asr, m.over_refusal, m.kl), default=_balance(front, members, recipe))


def _mildest(front: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    own = own_choice(members, recipe)
    found = [m for m in front if m.asr <= own.asr]
    return min(found, key=lambda m: (m.over_refusal, m.asr, m.kl), default=_balance(front, members, recipe))


def _nearest(front: Sequence[Member], members: Sequence[Member], recipe: BalanceRecipe) -> Member:
    own = own_choice(members, recipe)
    found = [m for m in front if m.asr <= own.asr and m.over_refusal <= own.over_refusal]
    return min(found, key=lambda m: (m.kl, m.asr, m.over_refusal), default=_balance(front, members, recipe))


Rule = Callable[[Sequence[Member], Sequence[Member], BalanceRecipe], Member]
RULES: Mapping[str, Rule] = dict(zip(RULE_NAMES, (_balance, _safest, _mildest, _nearest), strict=True))
"""See :data:`mogu.search.RULE_NAMES`."""


def beaten(
    first: Sequence[Member], prompts: Mapping[str, int], finished: Mapping[int, Sequence[Member]], times: int
) -> str | None:
    """Why a trial need not go on after its first prompts: ``times`` finished ones beat it at every shift. Or ``None``.

    A finished trial beats it where its shares lie below the 95% Wilson interval of the trial's on both refusals and
    malicious answers, and its KL, which is taken on the same texts, is no larger.

    Args:
        first: The trial at each shift, on its first prompts.
        prompts: How many of each kind these were.
        finished: Members of the finished trials, by number.
        times: See above.
    """
    better: set[int] = set()
    for member in first:
        low = _lowest(member, prompts)
        won = {
            number
            for number, members in finished.items()
            if any(m.asr < low[0] and m.over_refusal < low[1] and m.kl <= member.kl for m in members)
        }
        if len(won) < times:
            return None
        better |= won
    names = ", ".join(str(number) for number in sorted(better))
    return f"beaten at every shift after the first prompts by trials {names}"


def _lowest(member: Member, prompts: Mapping[str, int]) -> tuple[float, float]:
    """Lower ends of the 95% intervals of both shares; that of the mean of two is taken as the mean of their ends."""

    def low(share: float, kind: str) -> float:
        return wilson(round(share * prompts[kind]), prompts[kind]).low

    refused = low(member.benign_refused, "benign") + low(member.borderline_refused, "borderline")
    return low(member.asr, "malicious"), refused / 2
