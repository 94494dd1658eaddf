"""Search: the few settings that decide a run, varied in trials and weighed by what validation prompts say."""

from __future__ import annotations

import importlib.util

from mogu.errors import MissingExtraError


def require_optuna() -> None:
    """Raise :class:`~mogu.errors.MissingExtraError` unless optuna, of the extra ``search``, is installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError("optuna", "search")
