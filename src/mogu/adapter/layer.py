"""The routed attention output projection.

With x the projection's input at one token, W the frozen base projection (with its bias, if any), s the LoRA scale, and
u, g the router weights of the unwilling and the glad responder (MoGU paper, section 3):

    y = (u + g) · W x + s · (u · B_u A_u x + g · B_g A_g x)

While one responder is trained or looked at alone, its weight is 1 and the other's 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from mogu.adapter.config import MoguConfig, Stage
from mogu.adapter.fused import Fused, Numbers, puts_out_its_own
from mogu.adapter.router import FactoredRouter, FoldedRouter
from mogu.errors import AdapterError
from mogu.offload import execution_device

if TYPE_CHECKING:
    from mogu.adapter.rows import Rows

_RESPONDER = {
    "glad": ("mogu_glad_A", "mogu_glad_B"),
    "unwill": ("mogu_unwill_A", "mogu_unwill_B"),
}
_ROUTERS = ("mogu_glad_router", "mogu_unwill_router")


class MoguLayer(BaseTunerLayer):
    """Marks the layers of a MoGU adapter for peft."""

    adapter_layer_names: tuple[str, ...] = (*_RESPONDER["glad"], *_RESPONDER["unwill"], *_ROUTERS)
    other_param_names: tuple[str, ...] = ("mogu_scaling", "mogu_shift", "mogu_stage", "mogu_dropout")

    if TYPE_CHECKING:  # what peft's class gives, which ships no types
        active_adapters: list[str]
        disable_adapters: bool
        get_base_layer: Callable[[], nn.Module]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter (peft calls this also with an empty list)."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise AdapterError(f"only one MoGU adapter can be active, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapter on or off; what is frozen stays frozen (peft's own un-freezes when it enables)."""
        self._disable_adapters = not enabled

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Impossible: what routers add depends on the input."""
        raise AdapterError("a MoGU adapter cannot be merged into the base: its routers depend on the input")

    def unmerge(self) -> None:
        """Impossible, as nothing was merged."""
        raise AdapterError("a MoGU adapter is never merged, so there is nothing to unmerge")

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To where the base layer computes, even if its weights wait elsewhere."""
        super()._move_adapter_to_device_of_base_layer(adapter_name, device or execution_device(self.get_base_layer()))


class MoguLinear(nn.Module, MoguLayer):
    """A frozen projection with a glad and an unwilling responder and a router for each."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoguConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise AdapterError(f"cannot put responders on a {type(base_layer).__name__}: it is no linear projection")
        self.in_features, self.out_features = in_features, out_features
        self.mogu_glad_A = nn.ParameterDict()
        self.mogu_glad_B = nn.ParameterDict()
        self.mogu_unwill_A = nn.ParameterDict()
        self.mogu_unwill_B = nn.ParameterDict()
        self.mogu_glad_router = nn.ModuleDict()
        self.mogu_unwill_router = nn.ModuleDict()
        self.mogu_scaling: dict[str, float] = {}
        self.mogu_shift: dict[str, float] = {}
        self.mogu_stage: dict[str, Stage] = {}
        self.mogu_dropout: dict[str, float] = {}
        # Own copies: the class attributes of BaseTunerLayer are shared between all layers.
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.recorded: tuple[torch.Tensor, torch.Tensor] | None = None
        """Unwill and glad weights (batch, tokens) of the last forward while ``recording``."""
        self.recorded_logits: tuple[torch.Tensor, torch.Tensor] | None = None
        """The routers' logits of the same forward, before the shift; ``None`` while ``override`` is set."""
        self.recording = False
        self.override: tuple[torch.Tensor, torch.Tensor] | None = None
        """Unwill and glad weights to use instead of the routers', while these are being fitted."""
        self.fused: Fused | None = None
        """Set while an answer is decoded (:func:`mogu.adapter.model.fused`)."""
        self.rows: Rows | None = None
        """Set while rows are routed one by one (:func:`mogu.adapter.rows.by_row`)."""
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MoguConfig) -> None:
        """Add one adapter to this layer; its B matrices start at zero, as LoRA's do."""
        self.mogu_scaling[adapter_name] = config.scaling
        self.mogu_shift[adapter_name] = config.shift
        self.mogu_dropout[adapter_name] = config.lora_dropout
        for name_a, name_b in _RESPONDER.values():
            a = torch.empty(config.r, self.in_features)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            getattr(self, name_a)[adapter_name] = nn.Parameter(a)
            getattr(self, name_b)[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        for name in _ROUTERS:
            getattr(self, name)[adapter_name] = (
                FoldedRouter(self.in_features)
                if config.router == "folded"
                else FactoredRouter(self.in_features, config.router_width)
            )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_stage(adapter_name, config.stage)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_stage(self, adapter_name: str, stage: Stage) -> None:
        """Choose which part of the adapter answers; the parameters of the others stay frozen."""
        self.mogu_stage[adapter_name] = stage
        trained = _ROUTERS if stage == "routed" else _RESPONDER[stage]
        self.frozen_peft_weight_names[adapter_name] = tuple(n for n in self.adapter_layer_names if n not in trained)

    def router_weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unwill and glad weights in (0, 1), each of shape x.shape[:-1], of inputs (..., d_in)."""
        return self._weights(*self.router_logits(x))

    def router_logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unwill and glad logits as trained, before the shift; shapes as for :meth:`router_weights`."""
        name = self.active_adapters[0]
        return self.mogu_unwill_router[name](x), self.mogu_glad_router[name](x)

    def _weights(self, unwill: torch.Tensor, glad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift = self.mogu_shift[self.active_adapters[0]]
        return torch.sigmoid(unwill + shift), torch.sigmoid(glad - shift)

    def numbers(self) -> Numbers | None:
        """Of the active adapter, to be fused; ``None`` where it is not routed."""
        name = next(iter(self.active_adapters), None)
        if name is None or self.mogu_stage.get(name) != "routed" or self.override is not None:
            return None
        unwill_router: Any = self.mogu_unwill_router[name]
        glad_router: Any = self.mogu_glad_router[name]
        (unwill, unwill_bias), (glad, glad_bias) = unwill_router.probe(), glad_router.probe()
        return Numbers(
            (self.mogu_unwill_A[name], self.mogu_glad_A[name]),
            (self.mogu_unwill_B[name], self.mogu_glad_B[name]),
            (unwill, glad),
            (unwill_bias, glad_bias),
            self.mogu_scaling[name],
        )

    def use(self, fused: Fused | None) -> None:
        """Route by ``fused``, made of :meth:`numbers`, from now on; ``None``: by the parameters."""
        name = next(iter(self.active_adapters), None)
        if fused is not None and name is not None:
            in_place = puts_out_its_own(self.base_layer)
            fused = dataclasses.replace(fused, adapter=name, shift=self.mogu_shift[name], in_place=in_place)
        self.fused = fused

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Projection of x (..., d_in) to (..., d_out), in the base's dtype."""
        result = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or (self.rows is not None and not self.rows.any_routed):
            return result
        if self.fused is not None and self._may_use(self.fused, x):
            result, both = self.fused(x, result, self.rows)
            if self.rows is not None:
                self.rows.logits.append(both)
            if self.recording:
                self._record_fused(self.fused, both.view(*x.shape[:-1], 2))
            return result
        name = next(iter(self.active_adapters), None)
        if name is None or name not in self.mogu_stage:
            return result
        stage = self.mogu_stage[name]
        if stage != "routed":
            return result + self._responder(stage, name, x, self.mogu_dropout[name]).to(result.dtype)
        if self.rows is not None:
            return self._by_row(self.rows, name, x, result)
        if self.override is None:
            logits = self.router_logits(x)
            unwill, glad = self._weights(*logits)
        else:
            logits, (unwill, glad) = None, self.override
        if self.recording:
            self.recorded, self.recorded_logits = (unwill, glad), logits
        unwill, glad = unwill.unsqueeze(-1), glad.unsqueeze(-1)
        delta = unwill * self._responder("unwill", name, x) + glad * self._responder("glad", name, x)
        return result * (unwill + glad).to(result.dtype) + delta.to(result.dtype)

    def _by_row(self, rows: Rows, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """As :class:`~mogu.adapter.fused.Fused` does it, from the parameters."""
        logits = torch.stack([each.flatten() for each in self.router_logits(x)], dim=1)
        rows.logits.append(logits)
        weights, total = rows.mixed(logits)
        unwill, glad = weights.view(*x.shape[:-1], 2).unbind(-1)
        delta = unwill.unsqueeze(-1) * self._responder("unwill", name, x)
        delta = delta + glad.unsqueeze(-1) * self._responder("glad", name, x)
        return result * total.view(*x.shape[:-1], 1).to(result.dtype) + delta.to(result.dtype)

    def _may_use(self, fused: Fused, x: torch.Tensor) -> bool:
        """False where numbers have changed since, or where gradients or autocast need the operations one by one."""
        unchanged = self.override is None and fused.shift == self.mogu_shift[fused.adapter]
        return unchanged and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)

    def _record_fused(self, fused: Fused, logits: torch.Tensor) -> None:
        weights = torch.sigmoid(logits if fused.offset is None else logits + fused.offset)
        self.recorded = (weights[..., 0], weights[..., 1])
        self.recorded_logits = (logits[..., 0], logits[..., 1])

    def _responder(self, responder: str, name: str, x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        """s · B A x of one responder, (..., d_out), in the adapter's dtype."""
        name_a, name_b = _RESPONDER[responder]
        a, b = getattr(self, name_a)[name], getattr(self, name_b)[name]
        x = nn.functional.dropout(x.to(a.dtype), dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, a), b) * self.mogu_scaling[name]
