"""Backbone LoRA: what v2 changes in the base itself while it routes, beside the responders.

With x the input of a projection W of the base, and s its own scale,

    y = W x + s · B A x        while routed; W x in the plain base and while a responder is trained alone

peft mixes no LoRA adapter with a MoGU one, so the tuner puts these in itself, under the name of its adapter. They lie
in routed layers or above the first of them: below it nothing of ours changes anything, whichever modules are adapted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from mogu.adapter.config import BACKBONE_MODULES, MoguConfig, Stage
from mogu.adapter.layer import MoguLayer, MoguLinear
from mogu.errors import AdapterError


class MoguLora(nn.Module, MoguLayer):
    """A frozen projection of the base with a LoRA for each adapter that has one here."""

    adapter_layer_names = ("mogu_backbone_A", "mogu_backbone_B")
    other_param_names = ("mogu_scaling", "mogu_stage")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoguConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise AdapterError(
                f"cannot put a backbone LoRA on a {type(base_layer).__name__}: it is no linear projection"
            )
        self.in_features, self.out_features = in_features, out_features
        self.mogu_backbone_A = nn.ParameterDict()
        self.mogu_backbone_B = nn.ParameterDict()
        self.mogu_scaling: dict[str, float] = {}
        self.mogu_stage: dict[str, Stage] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.rows: Any = None
        """Set while rows are routed one by one: whether ``any_routed``, and ``routed`` (tokens, 1), 0 in plain rows."""

    def update_layer(self, adapter_name: str, config: MoguConfig) -> None:
        """Add the LoRA of one adapter; its B starts at zero."""
        self.mogu_scaling[adapter_name] = config.backbone_alpha / config.backbone_rank
        a = torch.empty(config.backbone_rank, self.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.mogu_backbone_A[adapter_name] = nn.Parameter(a)
        self.mogu_backbone_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.backbone_rank))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_stage(adapter_name, config.stage)

    def set_stage(self, adapter_name: str, stage: Stage) -> None:
        """It answers and trains while routed only."""
        self.mogu_stage[adapter_name] = stage
        self.frozen_peft_weight_names[adapter_name] = () if stage == "routed" else self.adapter_layer_names

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Projection of x (..., d_in) to (..., d_out), in the base's dtype."""
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        name = next(iter(self.active_adapters), None)
        if self._disable_adapters or name is None or self.mogu_stage.get(name) != "routed":
            return result
        if self.rows is not None and not self.rows.any_routed:
            return result
        a, b = self.mogu_backbone_A[name], self.mogu_backbone_B[name]
        low = nn.functional.linear(x.to(a.dtype), a)
        if self.rows is not None and self.rows.routed is not None:
            low = low * self.rows.routed.view(*x.shape[:-1], 1)
        return result + (nn.functional.linear(low, b) * self.mogu_scaling[name]).to(result.dtype)


def add_backbone(model: nn.Module, adapter_name: str, config: MoguConfig) -> list[MoguLora]:
    """Put the backbone LoRA of one adapter on a model that carries its responders; returns what it was put on.

    Raises:
        AdapterError: This architecture has no such module, or it is no linear projection.
    """
    if not config.backbone_modules:
        return []
    routed = [path for path, layer in _named(model, MoguLinear) if adapter_name in layer.mogu_glad_A]
    places = [match for path in routed if (match := re.match(r"(.*?\.)(\d+)\.(.*)", path))]
    if not places:
        raise AdapterError("a backbone LoRA needs decoder layers in a list, and this model has none")
    stack = places[0].group(1).rstrip(".")
    indices = sorted({int(match.group(2)) for match in places})
    if config.backbone_layers == "upper":
        indices = list(range(indices[0], len(list(model.get_submodule(stack).children()))))
    suffixes = {**BACKBONE_MODULES, "o": tuple(sorted({match.group(3) for match in places}))}
    made = []
    for index in indices:
        layer = model.get_submodule(f"{stack}.{index}")
        wanted = [_found(layer, name, suffixes[name]) for name in config.backbone_modules]
        made += [_adapt(layer, path, adapter_name, config) for path in dict.fromkeys(wanted)]
    return made


def _found(layer: nn.Module, name: str, paths: tuple[str, ...]) -> str:
    for path in paths:
        try:
            layer.get_submodule(path)
        except AttributeError:
            continue
        return path
    have = ", ".join(
        short
        for short, known in BACKBONE_MODULES.items()
        if any(path in dict(layer.named_modules()) for path in known) or short == "o"
    )
    raise AdapterError(f"{type(layer).__name__} has no backbone module {name!r}; choose from {have}")


def _adapt(layer: nn.Module, path: str, adapter_name: str, config: MoguConfig) -> MoguLora:
    """The LoRA at ``path``; on a routed projection it lies below the responders, next to the base's weights."""
    parent_path, _, child = path.rpartition(".")
    parent = layer.get_submodule(parent_path)
    target = getattr(parent, child)
    if isinstance(target, MoguLinear):
        parent, child, target = target, "base_layer", target.base_layer
    if not isinstance(target, MoguLora):
        lora = MoguLora(target, adapter_name, config)
        setattr(parent, child, lora)
        target = lora
    target.update_layer(adapter_name, config)
    return target


def _named(model: nn.Module, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, kind):
            yield path, module
