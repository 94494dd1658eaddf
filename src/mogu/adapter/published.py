"""The authors' published files: two LoRA responders and a ``router.pth``, as one MoGU adapter.

Their names: ``alpha_`` weighs the unwilling responder and ``beta_`` the glad one; ``linear_0``, ``linear_1`` and
``linear_2`` are a router's three matrices. Base weights are not in these files; the base comes separately.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors.torch import load_file

from mogu.adapter.config import MoguConfig
from mogu.adapter.layer import MoguLinear
from mogu.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DEFAULT_ALPHA = 16
_LORA_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_ROUTER_KEY = re.compile(r"(?:.+\.)?routers\.(\d+)\.(alpha_|beta_)\.(linear_[012]\.(?:weight|bias))")
_PARAMETER = {
    "linear_0.weight": "down",
    "linear_1.weight": "up",
    "linear_1.bias": "up_bias",
    "linear_2.weight": "out",
    "linear_2.bias": "out_bias",
}


class _Responder(NamedTuple):
    file: Path
    r: int
    lora_alpha: float
    tensors: dict[tuple[str, str], torch.Tensor]
    """By module path in the peft model and ``"A"`` or ``"B"``."""


def import_published(
    base_model: PreTrainedModel,
    glad_dir: str | Path,
    unwill_dir: str | Path,
    router_file: str | Path,
    *,
    base_name: str,
) -> PeftModel:
    """Put the authors' responders and routers on ``base_model``; write them with :func:`mogu.adapter.store.save`.

    Args:
        base_model: The base that they were trained on; left as it was if they do not fit.
        glad_dir: Folder of the glad responder: ``adapter_model.safetensors`` or ``.bin``, ``adapter_config.json`` if
            there is one (else r is read from the tensors and lora_alpha is 16).
        unwill_dir: The same for the unwilling responder.
        router_file: ``router.pth``; read without running code that it may hold.
        base_name: What the user calls the base; recorded in the adapter.

    Returns:
        The model with a factored, routed adapter in float32 (or the base's own dtype if that is wider).

    Raises:
        AdapterError: A file is missing, unreadable or unsafe, or does not fit the base or the other files.
    """
    if any(isinstance(m, BaseTunerLayer) for m in base_model.modules()):
        raise AdapterError("the base already carries an adapter; load it afresh")
    glad, unwill = _read_responder(Path(glad_dir)), _read_responder(Path(unwill_dir))
    for what in ("r", "lora_alpha"):
        if getattr(glad, what) != getattr(unwill, what):
            raise AdapterError(
                f"{unwill.file} has {what} {getattr(unwill, what)} but {glad.file} has {getattr(glad, what)}; "
                "give two responders of one training"
            )
    router_file = Path(router_file)
    routers = _read_routers(router_file)
    config = MoguConfig(
        r=glad.r, lora_alpha=glad.lora_alpha, router="factored", router_width=_width(routers), base_model=base_name
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base_model, config)
    except AdapterError:
        raise
    except ValueError as error:
        raise AdapterError(f"no attention output projection found in {base_name}: {error}") from error
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MoguLinear)}
    try:
        _fill_responder(layers, "glad", glad, base_name)
        _fill_responder(layers, "unwill", unwill, base_name)
        _fill_routers(list(layers.values()), routers, router_file, base_name)
    except AdapterError:
        model.unload()
        raise
    return model.eval()


def _read_responder(folder: Path) -> _Responder:
    file = next((f for n in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (f := folder / n).is_file()), None)
    if file is None:
        raise AdapterError(f"no responder in {folder}: {SAFETENSORS_WEIGHTS_NAME} or {WEIGHTS_NAME} is missing")
    tensors = {}
    for key, tensor in _read_tensors(file).items():
        if (match := _LORA_KEY.fullmatch(key)) is None:
            raise AdapterError(
                f"{file} holds {key!r}, which is no LoRA matrix; give a responder as the authors publish it"
            )
        tensors[match[1], match[2]] = tensor
    ranks = sorted(
        {tensor.shape[0 if half == "A" else -1] for (_, half), tensor in tensors.items() if tensor.dim() == 2}
    )
    if len(ranks) != 1:
        raise AdapterError(f"{file} mixes the ranks {ranks}; every layer of a responder needs the same")
    settings = _read_settings(folder / CONFIG_NAME)
    if settings.get("r", ranks[0]) != ranks[0]:
        raise AdapterError(
            f"{file} has rank {ranks[0]} but {CONFIG_NAME} beside it says {settings['r']}; give one pair"
        )
    alpha = settings.get("lora_alpha", _DEFAULT_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise AdapterError(f"{folder / CONFIG_NAME} has lora_alpha {alpha!r}; a number is needed")
    return _Responder(file, ranks[0], alpha, tensors)


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot read {file}: {error}; mend it or remove it") from error
    if not isinstance(settings, dict) or settings.get("peft_type", "LORA") != "LORA":
        raise AdapterError(f"{file} describes no LoRA adapter; give a responder as the authors publish it")
    for odd in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if settings.get(odd):
            raise AdapterError(f"{file} sets {odd}, which the published responders do not; only plain LoRA is imported")
    return settings


def _read_routers(file: Path) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    """Layer -> ``alpha_`` or ``beta_`` -> our parameter name -> tensor."""
    routers: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
    for key, tensor in _read_tensors(file).items():
        match = _ROUTER_KEY.fullmatch(key)
        if match is None or match[3] not in _PARAMETER:
            raise AdapterError(f"{file} holds {key!r}, which is no router weight; give the authors' router.pth")
        routers.setdefault(int(match[1]), {}).setdefault(match[2], {})[_PARAMETER[match[3]]] = tensor
    return routers


def _width(routers: dict[int, dict[str, dict[str, torch.Tensor]]]) -> int:
    downs = (r["down"] for pair in routers.values() for r in pair.values() if "down" in r)
    return next((int(down.shape[0]) for down in downs if down.dim() == 2), 512)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            tensors: Any = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterError(f"no file {file}") from None
    except UnpicklingError as error:
        raise AdapterError(
            f"{file} is no plain PyTorch file of tensors, and loading it could run code; "
            "save it again as a dict of tensors with torch.save"
        ) from error
    except Exception as error:  # a damaged pickle raises anything, down to KeyError: 101
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise AdapterError(f"cannot read {file}: {reason}; download it again") from error
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise AdapterError(f"{file} is no dict of named tensors; give the file as the authors publish it")
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{file}: {key} holds values that are not finite; download it again")
    return tensors


def _fill_responder(layers: dict[str, MoguLinear], which: str, responder: _Responder, base_name: str) -> None:
    wanted = {(name, half) for name in layers for half in "AB"}
    _same(wanted, set(responder.tensors), responder.file, base_name, lambda key: f"{key[0]}.lora_{key[1]}.weight")
    for (name, half), tensor in responder.tensors.items():
        parameter = getattr(layers[name], f"mogu_{which}_{half}")["default"]
        _copy(parameter, tensor, responder.file, f"{name}.lora_{half}.weight", base_name)


def _fill_routers(
    layers: list[MoguLinear],
    routers: dict[int, dict[str, dict[str, torch.Tensor]]],
    file: Path,
    base_name: str,
) -> None:
    published = {ours: theirs for theirs, ours in _PARAMETER.items()}
    found = {(n, kind, p) for n, pair in routers.items() for kind, router in pair.items() for p in router}
    wanted = {(n, kind, p) for n in range(len(layers)) for kind in ("alpha_", "beta_") for p in published}

    def spell(key: Any) -> str:
        return f"routers.{key[0]}.{key[1]}.{published[key[2]]}"

    _same(wanted, found, file, base_name, spell)
    for n, kind, p in sorted(found):
        layer = layers[n]
        router = (layer.mogu_unwill_router if kind == "alpha_" else layer.mogu_glad_router)["default"]
        _copy(getattr(router, p), routers[n][kind][p], file, spell((n, kind, p)), base_name)


def _same(wanted: set[Any], found: set[Any], file: Path, base_name: str, spell: Any) -> None:
    """Raise unless ``found`` in ``file`` is all that the base has a place for, no more and no less."""
    for odd, fault in ((wanted - found, "lacks"), (found - wanted, "has a place too many:")):
        if odd:
            raise AdapterError(
                f"{file} {fault} {spell(min(odd))} for {base_name}; give the base that these files were trained on"
            )


def _copy(parameter: torch.nn.Parameter, tensor: torch.Tensor, file: Path, key: str, base_name: str) -> None:
    if parameter.shape != tensor.shape:
        raise AdapterError(
            f"{file}: {key} has shape {tuple(tensor.shape)} where {base_name} needs {tuple(parameter.shape)}; "
            "give the base that these files were trained on"
        )
    with torch.no_grad():
        parameter.copy_(tensor)
