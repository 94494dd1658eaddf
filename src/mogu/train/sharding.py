"""A base that is too large for one device, spread over the processes while its adapter trains (FSDP).

Each decoder layer is one unit of torch's ``fully_shard``: every process keeps an n-th of its parameters and gathers the
rest just before the layer computes. Only what is frozen is spread. The adapter, some thousandths of the parameters, is
whole in every process, and its gradients are averaged as in DDP; so stages, checkpoints and validation are as always.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mogu import processes
from mogu.adapter.model import decoder_layers
from mogu.errors import TrainingError


def shard_base(model: Any) -> None:
    """Spread the frozen parameters of the decoder layers over the processes; the rest goes whole to each device.

    Args:
        model: peft model with a MoGU adapter, on the CPU or on this process's device.

    Raises:
        TrainingError: The base is quantized.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if getattr(model.get_base_model(), "is_quantized", False):
        raise TrainingError("FSDP cannot spread a quantized base; load it whole, or use DDP")
    device = torch.device(processes.own_device(None) or "cpu")
    mesh = init_device_mesh(device.type, (processes.count(),))
    adapter = {parameter for name, parameter in model.named_parameters() if "mogu_" in name}
    for layer in decoder_layers(model):
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
    _rest_to(model, device)


def _rest_to(model: nn.Module, device: torch.device) -> None:
    """Move what is not spread, which FSDP leaves where it is."""
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not isinstance(tensor, DTensor) and tensor.device != device:
                tensor.data = tensor.data.to(device)
