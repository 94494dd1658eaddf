"""MoGU inside other people's evaluation tools: inspect_ai and lm-evaluation-harness, each an extra of its own."""

from __future__ import annotations

import importlib.util

from mogu.errors import MissingExtraError


def require(module: str, extra: str) -> None:
    """Raise :class:`~mogu.errors.MissingExtraError` unless ``module``, which comes with ``extra``, is installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module, extra)
