"""MoGU itself, and what is left of it without its routers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch

from mogu.adapter import store
from mogu.adapter.config import Handover, Stage
from mogu.adapter.model import active_config, fix_weights, set_shift, set_stage
from mogu.decode import generate
from mogu.defend.base import Defense, Target
from mogu.defend.overlay import Overlay
from mogu.errors import ConfigError
from mogu.progress import Progress


class Mogu(Defense):
    """The routed head, then the plain base."""

    name = "mogu"
    summary = "responders weighed by routers for the first tokens, then the base"
    source = "Du et al. 2024, NeurIPS, arXiv:2405.14488"
    decodes = True
    dial: ClassVar[float | None] = None
    """Added to the adapter's shift."""
    handover: ClassVar[Handover | None] = None
    """When the base takes over; ``None``: as the adapter says."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if target.adapter is None:
            raise ConfigError(f"the defence {self.name!r} needs a trained adapter; give one with --adapter DIR")
        self.folder = store.adapter_folder(target.adapter)

    @cached_property
    def _overlay(self) -> Overlay:
        return Overlay(self.target.model, self._wrap)

    def _wrap(self, base: Any) -> Any:
        model = store.attach(base, self.folder)
        config = active_config(model)
        set_shift(model, config.shift + (self.dial or 0.0))
        config.handover = self.handover or config.handover
        return model

    def settings(self) -> dict[str, Any]:
        """Hash of the adapter, whose configuration holds m and the shift; and what differs from it."""
        given = {"dial": self.dial, "handover": self.handover}
        return {
            "adapter": store.digest(self.folder),
            **{name: value for name, value in given.items() if value is not None},
        }

    def prepare(self, progress: Progress) -> None:
        """Load the adapter."""
        _ = self._overlay

    @property
    def hands_over(self) -> Handover:
        """When the base takes over."""
        return active_config(self._overlay.model).handover

    @property
    def through_thoughts(self) -> bool:
        """Whether routing goes on until a thought is over."""
        return active_config(self._overlay.model).think == "through"

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The peft model with the adapter."""
        with self._overlay.installed() as model:
            yield model


def at_dial(value: float) -> type[Mogu]:
    """The defence with its dial at ``value``, by the name ``mogu@value``."""

    class Dialled(Mogu):
        name = f"{Mogu.name}@{value:g}"
        dial = value

    return Dialled


def at_handover(value: Handover) -> type[Mogu]:
    """The defence with another hand-over, by the name ``mogu@value``."""

    class HandedOver(Mogu):
        name = f"{Mogu.name}@{value}"
        handover = value

    return HandedOver


class _Ablation(Mogu):
    """Decodes the first m tokens with something else than the routers' weights."""

    @property
    def hands_over(self) -> Handover:
        """After m tokens: without routers there is no risk."""
        return "fixed"

    @property
    def through_thoughts(self) -> bool:
        """Never."""
        return False

    def decode(self, model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """The adapter as it is for the first m tokens, then the plain base."""
        arguments: dict[str, Any] = {"routed_tokens": active_config(model).routed_tokens, **inputs, **options}
        sequences: torch.Tensor = generate(model.get_base_model(), **arguments)
        return sequences


class _OneResponder(_Ablation):
    """One responder alone."""

    stage: ClassVar[Stage]

    def _wrap(self, base: Any) -> Any:
        model = super()._wrap(base)
        set_stage(model, self.stage)
        return model


class GladOnly(_OneResponder):
    """The glad responder alone for the first tokens."""

    name = "glad-only"
    summary = "ablation: the glad responder alone for the first tokens, then the base"
    stage = "glad"


class UnwillOnly(_OneResponder):
    """The unwilling responder alone for the first tokens."""

    name = "unwill-only"
    summary = "ablation: the unwilling responder alone for the first tokens, then the base"
    stage = "unwill"


class ConstantWeight(_Ablation):
    """Both responders with the same weight, whatever is asked."""

    name = "constant-weight"
    summary = "ablation: both responders at weight 0.5 for the first tokens, then the base"
    weight: ClassVar[float] = 0.5
    """u = g in every layer and at every token."""

    def _wrap(self, base: Any) -> Any:
        model = super()._wrap(base)
        fix_weights(model, self.weight, self.weight)
        return model

    def settings(self) -> dict[str, Any]:
        """The adapter and the weight."""
        return {**super().settings(), "weight": self.weight}
