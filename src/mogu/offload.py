"""A base larger than its device: decoder layers that do not fit wait in main memory or on disk, and stream through.

accelerate's hooks bring a layer's weights to the device for its forward and drop them afterwards. Embeddings, norms,
the vocabulary projection and all adapters stay on the device; so do as many of the upper layers as have room, for the
lower ones need no backward, and rows that come again skip them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from mogu.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHARE = 0.6
"""Of the free memory of a device, or of the machine, that weights may take; the rest is for activations."""


def budget(offload: str, device: str) -> int:
    """Bytes of the base that may lie on ``device``: ``auto`` is 60% of what is free there, else a size (10GiB).

    Raises:
        ConfigError: Neither.
    """
    if offload == "auto":
        return round(_SHARE * available_memory(device))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", offload.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--offload takes auto or a size such as 10GiB, not {offload!r}")
    return round(float(match[1]) * _UNITS[(match[2] or "").upper()])


def available_memory(device: str | torch.device) -> int:
    """Bytes that are free now on ``device``."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def placement(base: PreTrainedModel, itemsize: int, device: str, room: int) -> dict[str, str]:
    """Where each part of a base goes, as transformers' ``device_map``.

    Layers that do not fit go to main memory if the device is another one and they fit there, else to disk.

    Args:
        base: The base, perhaps without its weights.
        itemsize: Bytes of a parameter.
        device: Where it computes.
        room: Bytes of weights that may lie there.

    Raises:
        ConfigError: Not even what is outside of the decoder layers fits, with one layer that passes through.
    """
    path, layers = _layers(base)
    sizes = [itemsize * sum(p.numel() for p in layer.parameters()) for layer in layers]
    room -= least_bytes(base, itemsize)
    if room < 0:
        least = least_bytes(base, itemsize) / 2**20
        raise ConfigError(f"--offload leaves too little: embeddings and one layer alone take {least:.1f} MiB")
    memory = 0 if torch.device(device).type == "cpu" else round(_SHARE * available_memory("cpu"))
    places = dict.fromkeys(_outside(base, path), device)
    for index in reversed(range(len(layers))):
        if (room := room - sizes[index]) >= 0:
            place = device
        else:
            place = "cpu" if (memory := memory - sizes[index]) >= 0 else "disk"
        places[f"{path}.{index}"] = place
    return places


def least_bytes(base: PreTrainedModel, itemsize: int) -> int:
    """What lies on the device if every decoder layer streams: all else, and the largest layer while it computes."""
    _, layers = _layers(base)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    return itemsize * (sum(p.numel() for p in base.parameters()) - sum(sizes) + max(sizes))


def is_offloaded(base: Any) -> bool:
    """Whether some layers of a base stream."""
    return any(place == "disk" for place in _places(base)) or len({*map(str, _places(base))}) > 1


def _places(base: Any) -> list[Any]:
    return list((getattr(base, "hf_device_map", None) or {}).values())


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate computes ``module`` if its weights wait elsewhere; else ``None``."""
    first = getattr(module, "_hf_hook", None)
    for hook in getattr(first, "hooks", [first]):
        if getattr(hook, "offload", False):
            return torch.device(hook.execution_device)
    return None


def _layers(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: of the lists as long as the text model is deep, the heaviest."""
    depth = base.config.get_text_config().num_hidden_layers
    found = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise ConfigError(f"--offload finds no decoder layers in a {base.config.model_type}")
    return max(found, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _outside(base: nn.Module, path: str, name: str = "") -> list[str]:
    """The largest modules without decoder layers inside."""
    inside = []
    for child_name, child in base.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if full == path:
            continue
        inside += _outside(child, path, full) if path.startswith(f"{full}.") else [full]
    return inside
