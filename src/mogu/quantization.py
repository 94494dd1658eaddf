"""Bases in fewer bits: bitsandbytes (4 and 8 bits, any device) and torchao (8 bits; 4 bits on CUDA, for answering)."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from mogu.errors import ConfigError, MissingExtraError, TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUANTIZATIONS = ("4bit", "8bit", "torchao-8bit", "torchao-4bit")
_GROUP = 32
"""Weights that share a scale in torchao's 4 bits."""
_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0, "torchao-8bit": 1.0, "torchao-4bit": 0.5 + 4 / _GROUP}
"""Of one quantized weight, with the scales of its group; those of a row weigh nothing."""


def quantization_config(quantize: str, dtype: torch.dtype, device: str) -> Any:
    """What transformers' ``from_pretrained`` takes as ``quantization_config``.

    Args:
        quantize: One of :data:`QUANTIZATIONS`.
        dtype: Of what is not quantized, and of the products.
        device: Where the base will be.

    Raises:
        ConfigError: An unknown name, or one that does not go with the device or the dtype.
        MissingExtraError: bitsandbytes or torchao is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if quantize not in QUANTIZATIONS:
        raise ConfigError(f"unknown quantization {quantize!r}; choose from {', '.join(QUANTIZATIONS)}")
    if not quantize.startswith("torchao"):
        _require("bitsandbytes", "quantize")
        if quantize == "8bit":
            # Which it says at every product: outside of float16 it casts.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantize == "torchao-4bit" and (torch.device(device).type != "cuda" or dtype != torch.bfloat16):
        raise ConfigError("torchao-4bit needs a CUDA device and bfloat16; take 4bit or torchao-8bit")
    _require("torchao", "torchao")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # which misses kernels for devices that are not there
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if quantize == "torchao-8bit":
        return TorchAoConfig(Int8WeightOnlyConfig())
    # torch's own kernels; the default format needs one more package.
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d"))


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module, extra)


def keep_differentiable(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a CPU's bfloat16 units at the first answer.

    Packed weights stay packed while training, and their product has no backward: gradients would be wrong without a
    word (seen in 0.50.2).
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantization_of(base: PreTrainedModel) -> str | None:
    """How ``base`` is quantized, by our names, or else by transformers' name of the method; ``None``: it is not."""
    quantizer = getattr(base, "hf_quantizer", None)
    if quantizer is None:
        return None
    config = quantizer.quantization_config
    method = str(getattr(config.quant_method, "value", config.quant_method))
    if method == "bitsandbytes":
        return "4bit" if config.load_in_4bit else "8bit"
    if method == "torchao":
        return {"Int8WeightOnlyConfig": "torchao-8bit", "Int4WeightOnlyConfig": "torchao-4bit"}.get(
            type(config.quant_type).__name__, method
        )
    return method


def saved_quantization(config: Any) -> str | None:
    """How a checkpoint that was saved quantized with bitsandbytes is quantized, from its configuration."""
    saved = getattr(config, "quantization_config", None)
    if not isinstance(saved, dict) or saved.get("quant_method") != "bitsandbytes":
        return None
    return "4bit" if saved.get("load_in_4bit") else "8bit"


def check_trainable(base: PreTrainedModel) -> None:
    """Whether gradients pass through a quantized base.

    Raises:
        TrainingError: They do not.
    """
    quantizer = getattr(base, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        raise TrainingError(
            f"no gradients pass through a base quantized as {quantization_of(base)}; train on 4bit, 8bit or "
            "torchao-8bit, or on the base as it is"
        )


def quantized_bytes(base: PreTrainedModel, quantize: str | None, itemsize: int) -> int:
    """Bytes of a base that is not loaded yet: its linear layers but the vocabulary's quantized, the rest as it is."""
    from torch import nn

    head = base.get_output_embeddings()
    small = {
        id(module.weight)
        for module in base.modules()
        if quantize and isinstance(module, nn.Linear) and module is not head
    }
    widths = ((p.numel(), _BYTES[quantize] if quantize and id(p) in small else itemsize) for p in base.parameters())
    return round(sum(number * width for number, width in widths))


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor as it lies in memory, scales of quantized ones included; 0 if it lies elsewhere."""
    return sum(part.numel() * part.element_size() for part in stored_parts(tensor))


def stored_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with storage of their own that a (quantized) tensor consists of; none if it lies elsewhere."""
    if tensor.is_meta:
        return []
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    state = getattr(tensor, "quant_state", None)
    return [tensor] if state is None else [tensor, state.absmax]
