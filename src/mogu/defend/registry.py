"""Defences by name: the built-in ones, and those that other packages bring."""

from __future__ import annotations

import math
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from mogu.defend.base import Defense, Pipeline, Target
from mogu.errors import ConfigError

ENTRY_POINTS = "mogu.defenses"
"""Group of entry points under which a package names its own :class:`~mogu.defend.base.Defense` classes."""

_BUILT_IN = {
    "none": "mogu.defend.none:NoDefense",
    "sft": "mogu.defend.sft:Sft",
    "detect": "mogu.defend.detect:Detect",
    "self-examine": "mogu.defend.self_examine:SelfExamine",
    "retokenize": "mogu.defend.retokenize:Retokenize",
    "self-reminder": "mogu.defend.self_reminder:SelfReminder",
    "icd": "mogu.defend.icd:InContextDefense",
    "safedecoding": "mogu.defend.safedecoding:SafeDecoding",
    "perplexity": "mogu.defend.perplexity:PerplexityFilter",
    "mogu": "mogu.defend.mogu:Mogu",
    "glad-only": "mogu.defend.mogu:GladOnly",
    "unwill-only": "mogu.defend.mogu:UnwillOnly",
    "constant-weight": "mogu.defend.mogu:ConstantWeight",
}


def defense_names() -> list[str]:
    """Built-in names, in the order of the comparison, then those of other packages."""
    return [*_BUILT_IN, *sorted(set(_foreign()) - set(_BUILT_IN))]


def defense_class(name: str) -> type[Defense]:
    """The class behind a name; ``mogu@2`` is MoGU with its dial at 2, ``mogu@all`` with that hand-over.

    Raises:
        ConfigError: No such defence, or another package's does not load.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: type[Defense] = getattr(import_module(module), attribute)
        return found
    foreign = _foreign()
    if name.startswith("mogu@"):
        return _mogu_at(name)
    if name not in foreign:
        raise ConfigError(f"no defence {name!r}; choose from {', '.join(defense_names())}")
    try:
        loaded = foreign[name].load()
    except Exception as error:  # another package's code: whatever it raises, the user must learn whose it is
        raise ConfigError(f"the defence {name!r} of {foreign[name].value} does not load: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Defense)):
        raise ConfigError(f"the defence {name!r} of {foreign[name].value} is no subclass of mogu.defend.Defense")
    return loaded


def _mogu_at(name: str) -> type[Defense]:
    from mogu.adapter.config import HANDOVERS
    from mogu.defend.mogu import at_dial, at_handover

    setting = name.partition("@")[2]
    if setting in HANDOVERS:
        return at_handover(setting)  # type: ignore[arg-type]
    try:
        value = float(setting)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"the defence {name!r} needs a number behind the @, the dial, or {', '.join(HANDOVERS)}")
    return at_dial(value)


def create(names: str, target: Target) -> Pipeline:
    """A pipeline from ``"mogu"`` or ``"self-reminder+mogu"``.

    Raises:
        ConfigError: Unknown name, the same name twice, or two that cannot be combined.
    """
    parts = [part.strip() for part in names.split("+")]
    if len(set(parts)) < len(parts):
        raise ConfigError(f"{names!r} names a defence twice")
    return Pipeline([defense_class(part)(target) for part in parts])


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
