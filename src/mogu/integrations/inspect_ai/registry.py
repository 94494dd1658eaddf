"""What inspect_ai finds of mogu; it reads this at every start, so nothing heavy is imported."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from mogu.integrations.inspect_ai.suite import four_labels, suite

__all__ = ["four_labels", "mogu", "suite"]


@modelapi(name="mogu")
def mogu() -> type[ModelAPI]:
    """The provider behind ``--model mogu/RUN``."""
    from mogu.integrations.inspect_ai.provider import MoguAPI

    return MoguAPI
