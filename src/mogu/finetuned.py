"""A base that somebody fine-tuned: a LoRA folder merged into it, and known again by its hash."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from mogu.errors import ModelError
from mogu.offload import is_offloaded
from mogu.quantization import quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LORA_FOLDER = "base_adapter"
"""Where a MoGU adapter keeps the LoRA that belongs into its base."""
_CONFIG, _WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PATHS = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping")
"""Of a LoRA's configuration: says where it came from, not what it is."""


def merge_lora(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Merge the LoRA in ``folder`` into ``base``, whose weights change; the base remembers which one it was.

    Raises:
        ModelError: No peft LoRA, one for another base, or a base whose weights are quantized or elsewhere.
    """
    from peft import PeftModel

    folder = Path(folder)
    mark = lora_hash(folder)
    if merged_lora(base) is not None:
        raise ModelError("a LoRA is merged into this base already; load the base again")
    if quantization_of(base) is not None or is_offloaded(base):
        raise ModelError("a LoRA cannot be merged into a base that is quantized or offloaded; load it whole")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the LoRA in {folder} does not go into this base: {reason}") from error
    merged.mogu_lora, merged.mogu_lora_folder = mark, folder
    merged.eval()
    return merged


def merged_lora(base: Any) -> str | None:
    """Hash of the LoRA that was merged into a base; ``None`` for one as it was loaded."""
    return getattr(base, "mogu_lora", None)


def lora_hash(folder: str | Path) -> str:
    """Hash of a LoRA's weights and configuration, wherever it lies and whatever it calls its base.

    Raises:
        ModelError: No peft LoRA is there.
    """
    config, weights = _read(Path(folder))
    text = json.dumps({name: value for name, value in config.items() if name not in _PATHS}, sort_keys=True)
    return hashlib.sha256(text.encode() + weights.read_bytes()).hexdigest()[:16]


def copy_lora(folder: str | Path, target: Path) -> None:
    """The same LoRA in a new folder, without the path of its base.

    Raises:
        ModelError: No peft LoRA is in ``folder``.
    """
    config, weights = _read(Path(folder))
    target.mkdir(parents=True)
    (target / weights.name).write_bytes(weights.read_bytes())
    (target / _CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}, indent=2), encoding="utf-8")


def _read(folder: Path) -> tuple[dict[str, Any], Path]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no LoRA in {folder}: {_CONFIG} is missing; a fine-tuned model goes to --model") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {folder / _CONFIG}: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"{folder} holds a {kind} adapter, not a LoRA")
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(f"no LoRA in {folder}: {_WEIGHTS[0]} is missing")
    return config, weights
