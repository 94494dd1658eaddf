"""Search: the few settings that decide a run, varied in trials and weighed by what validation prompts say."""

from __future__ import annotations

import importlib.util

from mogu.errors import ConfigError, MissingExtraError

RULE_NAMES = ("balance", "safest", "mildest", "nearest")
"""``balance``: the greatest net benefit of those within the recipe's limits over the first trial's mildest shift, or of
all if none is; of equals the smaller KL. ``safest``: fewest malicious prompts answered of those that refuse no more
harmless ones than the recipe by itself. ``mildest``: fewest harmless ones refused of those that answer no more
malicious ones. ``nearest``: smallest KL of those that do no worse on both. Where there is none, these three are
``balance``."""


def require_optuna() -> None:
    """Raise :class:`~mogu.errors.MissingExtraError` unless optuna, of the extra ``search``, is installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError("optuna", "search")


def check_rule(rule: str) -> None:
    """Raise :class:`~mogu.errors.ConfigError` unless ``rule`` is a number or one of :data:`RULE_NAMES`."""
    if not rule.isdecimal() and rule not in RULE_NAMES:
        names = ", ".join(RULE_NAMES)
        raise ConfigError(f"--pick {rule}: give the number of a member of the Pareto set, or one of {names}")
