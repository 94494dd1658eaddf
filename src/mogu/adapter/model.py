"""The peft tuner, and the few switches that training and decoding need on a model that carries it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import peft_types, register_peft_method
from torch import nn

from mogu.adapter.backbone import MoguLora, add_backbone
from mogu.adapter.config import TARGET_MODULES, MoguConfig, Stage
from mogu.adapter.fused import fuse
from mogu.adapter.layer import MoguLayer, MoguLinear
from mogu.adapter.router import FactoredRouter
from mogu.errors import AdapterError
from mogu.finetuned import merged_lora
from mogu.models import spare_head
from mogu.offload import execution_device
from mogu.prefix import prefilled

_OTHER_BASE = (
    "the adapter belongs on a base with a LoRA merged into it; load both with mogu.load, or merge it first "
    "(mogu.finetuned.merge_lora)"
)
_ANOTHER_LORA = (
    "the adapter belongs on the base as it was before a LoRA was merged into it; load that one "
    "(for a new adapter: MoguConfig(base_lora=mogu.finetuned.merged_lora(base)))"
)
_ROUTING = ("routed_tokens", "handover", "risk_threshold", "think")
"""Options of ``generate`` that mean nothing where nothing is routed."""


class MoguModel(BaseTuner):
    """Puts responders and routers on the attention output projections of a causal language model."""

    prefix = "mogu_"
    tuner_layer_cls = MoguLayer
    target_module_mapping = TARGET_MODULES

    decoder: Callable[..., Any] | None = None
    """How ``generate`` decodes while routing; :mod:`mogu.decode` sets it on import."""

    reader: Callable[..., float] | None = None
    """How :meth:`risk` is read; set likewise."""
    tokenizer: Any = None
    """Of the base, where :func:`mogu.load` made the model; with the template that the adapter was trained with."""
    template: str | None = None

    def _prepare_adapter_config(self, peft_config: MoguConfig, model_config: dict[str, Any]) -> MoguConfig:
        if peft_config.target_modules is None:
            model_type = model_config.get("model_type")
            if model_type not in TARGET_MODULES:
                raise AdapterError(
                    f"no attention output projection known for model type {model_type!r}; "
                    "name it: MoguConfig(target_modules=['self_attn.o_proj'])"
                )
            peft_config.target_modules = list(TARGET_MODULES[model_type])
        return peft_config

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        super()._mark_only_adapters_as_trainable(model)
        spare_head(model)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As peft's, which puts in responders and routers; then the backbone LoRA, if the adapter has one."""
        config = self.peft_config[adapter_name]
        if config.base_lora != merged_lora(model):
            raise AdapterError(_OTHER_BASE if config.base_lora is not None else _ANOTHER_LORA)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for lora in add_backbone(model, adapter_name, config):
            lora.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_and_replace(
        self,
        peft_config: MoguConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, MoguLinear):
            target.update_layer(adapter_name, peft_config)
            return
        layer = MoguLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if execution_device(target) is None:
            self._replace_module(parent, target_name, layer, target)
        else:  # peft would move the adapter to where the weights wait
            setattr(parent, target_name, layer)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Half precision becomes float32; what is frozen stays frozen (peft's new parameters are trainable)."""
        trained = {name: p.requires_grad for name, p in self.model.named_parameters() if self.prefix in name}
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        for name, parameter in self.model.named_parameters():
            if name in trained:
                parameter.requires_grad_(trained[name])

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter."""
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise AdapterError(f"only one MoGU adapter can be active, not {', '.join(adapter_name)}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    takes_shared_prefix = True
    """``generate`` takes ``shared_prefix``: so many tokens with which all prompts begin (:mod:`mogu.prefix`)."""

    def generate(self, *args: Any, dial: float = 0.0, **kwargs: Any) -> Any:
        """``GenerationMixin.generate``: routed for the first m new tokens, then plain (see :mod:`mogu.decode`).

        ``dial`` is added to the adapter's shift for this call: above 0 safer, below 0 more compliant, 0 as trained.
        """
        with dialled(self, dial):
            return self._generate(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        layer = next((m for m in self.model.modules() if isinstance(m, MoguLinear)), None)
        name = next(iter(self.active_adapters), None)
        if layer is None or name is None or layer.disable_adapters or layer.mogu_stage.get(name) != "routed":
            kwargs = {key: value for key, value in kwargs.items() if key not in _ROUTING}
            if shared := kwargs.pop("shared_prefix", 0):
                ids = kwargs["input_ids"]
                kwargs["past_key_values"] = prefilled(self.model, ids[:1, :shared], len(ids))
            return self.model.generate(*args, **kwargs)
        decoder = type(self).decoder
        if decoder is None:
            raise AdapterError("routed decoding is not loaded; import mogu before generating")
        config = self.peft_config[name]
        trained = {name: getattr(config, name) for name in _ROUTING}
        if config.think_tokens:
            trained["think_tokens"], trained["think_limit"] = config.think_tokens, config.think_limit
        return decoder(self.model, *args, calibration=config.risk, **{**trained, **kwargs})

    def risk(self, messages: Any, tokenizer: Any = None, *, template: str | None = None) -> float:
        """Calibrated probability that a conversation, or a bare instruction, asks for harm (:func:`mogu.risk`).

        ``tokenizer`` may be left out of a model that :func:`mogu.load` made.
        """
        reader, tokenizer = type(self).reader, tokenizer or self.tokenizer
        if reader is None or tokenizer is None:
            raise AdapterError("risk needs the tokenizer; pass it, or load the model with mogu.load")
        found: float = reader(self, tokenizer, messages, template=template or self.template)
        return found


def register() -> None:
    """Tell peft about MoGU. Safe to call again."""
    if peft_types.PeftType("MOGU") not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="mogu", config_cls=MoguConfig, model_cls=MoguModel, prefix="mogu_")


def mogu_layers(model: nn.Module) -> list[tuple[int, MoguLinear]]:
    """(decoder layer index, layer) of every routed projection of ``model``, from the first layer up."""
    found = [(_layer_index(path), layer) for path, layer in _walk(model)]
    return sorted(found, key=lambda pair: pair[0])


def tuner_layers(model: nn.Module) -> list[MoguLinear | MoguLora]:
    """Everything of ours in ``model``: routed projections, and backbone LoRA beside and below them."""
    found: list[MoguLinear | MoguLora] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if isinstance(module, MoguLinear | MoguLora):
            found.append(module)
            waiting.append(module.base_layer)
        else:
            waiting += [child for child in module._modules.values() if child is not None]
    return found


def _walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, MoguLinear]]:
    """As ``named_modules``, but not into the layers, which have many parts: this is on the way to the first token."""
    if isinstance(module, MoguLinear):
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}")


def _layer_index(name: str) -> int:
    match = re.search(r"\.(\d+)\.", f".{name}.")
    return int(match.group(1)) if match else 0


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """All decoder layers of a model with a MoGU adapter, from the first up.

    Raises:
        AdapterError: The model carries no MoGU adapter.
    """
    for name, module in model.named_modules():
        if isinstance(module, MoguLinear):
            match = re.match(r"(.*?\.)\d+\.", f"{name}.")
            assert match is not None
            return list(model.get_submodule(match.group(1).rstrip(".")).children())
    raise AdapterError("the model carries no active MoGU adapter; load one with mogu.load(model, adapter=DIR)")


def layers_with_projection(base: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Each decoder layer of a plain base, from the first up, and its attention output projection.

    Raises:
        AdapterError: The projection of this architecture is not known.
    """
    model_type = getattr(getattr(base, "config", None), "model_type", None)
    suffixes = tuple(f".{name}" for name in TARGET_MODULES.get(str(model_type), ()))
    found = {}
    for name, module in base.named_modules():
        if suffixes and name.endswith(suffixes) and (match := re.match(r"(.*?\.\d+)\.", name)):
            found[_layer_index(name)] = (base.get_submodule(match.group(1)), module)
    if not found:
        raise AdapterError(f"no attention output projection known for model type {model_type!r}")
    return [found[index] for index in sorted(found)]


def active_config(model: nn.Module) -> MoguConfig:
    """The configuration of the active MoGU adapter of a peft model.

    Raises:
        AdapterError: The model carries no MoGU adapter.
    """
    name = getattr(model, "active_adapter", None)
    config = getattr(model, "peft_config", {}).get(name[0] if isinstance(name, list) else name)
    if not isinstance(config, MoguConfig):
        raise AdapterError("the model carries no active MoGU adapter; load one with mogu.load(model, adapter=DIR)")
    return config


def set_stage(model: nn.Module, stage: Stage) -> None:
    """Let the glad responder, the unwilling one, or the routed mix answer and train."""
    config, name = active_config(model), str(model.active_adapter)
    config.stage = stage
    for layer in tuner_layers(model):
        if name in layer.mogu_stage:
            layer.set_stage(name, stage)
        layer.set_adapter(name, inference_mode=config.inference_mode)


def set_shift(model: nn.Module, shift: float) -> None:
    """Set the shift δ of the router logits (unwill + δ, glad - δ); 0 is the routers as trained."""
    config, name = active_config(model), str(model.active_adapter)
    config.shift = float(shift)
    for _, layer in mogu_layers(model):
        layer.mogu_shift[name] = float(shift)


@contextmanager
def dialled(model: nn.Module, dial: float) -> Iterator[None]:
    """Inside, ``dial`` is added to the shift of every adapter; 0 changes nothing.

    Raises:
        AdapterError: ``dial`` is not a finite number.
    """
    if not math.isfinite(dial):
        raise AdapterError(f"the dial must be a finite number, not {dial}")
    layers = [layer for _, layer in mogu_layers(model)] if dial else []
    before = [dict(layer.mogu_shift) for layer in layers]
    for layer in layers:
        for name in layer.mogu_shift:
            layer.mogu_shift[name] += float(dial)
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.mogu_shift.update(was)


def fix_weights(model: nn.Module, unwill: float, glad: float) -> None:
    """Let both responders answer with constant weights, in every layer and at every token, instead of the routers'."""
    for _, layer in mogu_layers(model):
        weights = torch.tensor([unwill, glad], device=next(layer.parameters()).device)
        layer.override = (weights[0], weights[1])


def fold_routers(model: nn.Module) -> None:
    """Replace factored routers of the active adapter by the logistic probes that they are, and drop the factors."""
    config, name = active_config(model), str(model.active_adapter)
    for _, layer in mogu_layers(model):
        for routers in (layer.mogu_unwill_router, layer.mogu_glad_router):
            if isinstance(router := routers[name], FactoredRouter):
                routers[name] = router.fold()
    config.router = "folded"


@contextmanager
def plain_base(model: nn.Module) -> Iterator[None]:
    """The base model inside, without touching what is trainable (peft's ``disable_adapter`` un-freezes on leaving)."""
    layers = tuner_layers(model)
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Routed projections in few operations inside (:mod:`mogu.adapter.fused`).

    They answer with their parameters as these are on entering: do not write to parameters inside. A new shift is seen.
    """
    layers = [layer for _, layer in mogu_layers(model)]
    before = [layer.fused for layer in layers]
    try:
        numbers = [(layer, found) for layer in layers if (found := layer.numbers()) is not None]
        for (layer, _), made in zip(numbers, fuse([found for _, found in numbers]), strict=True):
            layer.use(made)
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.fused = was


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """Keep the router weights of the last forward inside.

    Yields:
        A function that stacks them: unwill and glad, each (routed layers, batch, tokens), gradients attached.
    """
    layers = [layer for _, layer in mogu_layers(model)]

    def stacked() -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [layer.recorded for layer in layers if layer.recorded is not None]
        if not pairs:
            raise AdapterError("no router weights were recorded: the adapter is disabled or not in the routed stage")
        return torch.stack([u for u, _ in pairs]), torch.stack([g for _, g in pairs])

    with _recording(layers):
        yield stacked


@contextmanager
def recorded_logits(model: nn.Module) -> Iterator[Callable[[], torch.Tensor | None]]:
    """Keep the router logits of the last forward inside, as they are before the shift.

    Yields:
        A function that stacks them: (2, routed layers, batch, tokens), unwill first; ``None`` where nothing was routed.
    """
    layers = [layer for _, layer in mogu_layers(model)]

    def stacked() -> torch.Tensor | None:
        pairs = [layer.recorded_logits for layer in layers]
        if not pairs or any(pair is None for pair in pairs):
            return None
        known = [pair for pair in pairs if pair is not None]
        device = known[0][0].device  # layers of one model may lie on several
        return torch.stack([torch.stack([pair[i].to(device) for pair in known]) for i in (0, 1)])

    with _recording(layers):
        yield stacked


@contextmanager
def _recording(layers: Sequence[MoguLinear]) -> Iterator[None]:
    for layer in layers:
        layer.recording, layer.recorded, layer.recorded_logits = True, None, None
    try:
        yield
    finally:
        for layer in layers:
            layer.recording, layer.recorded, layer.recorded_logits = False, None, None
