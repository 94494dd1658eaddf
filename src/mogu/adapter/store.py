"""Adapters on disk: load one with its base, save one atomically."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError

from mogu.adapter.config import MoguConfig
from mogu.adapter.model import fold_routers, tuner_layers
from mogu.errors import AdapterError
from mogu.finetuned import LORA_FOLDER, copy_lora, lora_hash, merge_lora, merged_lora
from mogu.models import load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    quantize: str | None = None,
    offload: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer and, if given, a MoGU adapter on top, folded for inference.

    Args:
        model: ``"smollm2"``, a hub id, a local folder, or a ``.gguf`` file.
        adapter: Folder of a trained adapter; a run folder that contains ``adapter/`` will do.
        dtype: Parameter dtype; ``None`` is float32, ``"auto"`` the checkpoint's own.
        device: ``"cpu"``, ``"cuda"``, …; ``None`` picks CUDA where there is one.
        quantize: As for :func:`mogu.models.load_base`.
        offload: As for :func:`mogu.models.load_base`.

    Returns:
        ``(model, tokenizer)``; with an adapter a :class:`peft.PeftModel` whose ``generate`` is routed, then plain.

    Raises:
        ModelError: The base cannot be loaded.
        AdapterError: The folder holds no MoGU adapter, or one for another base.
    """
    folder = None if adapter is None else adapter_folder(adapter)
    base, tokenizer = load_base(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
    if folder is None:
        return base, tokenizer
    routed = attach(with_its_lora(base, folder), folder)
    routed.base_model.tokenizer = tokenizer
    return routed, tokenizer


def with_its_lora(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """``base`` with the LoRA merged into it that the adapter in ``folder`` was trained on; as it is without one.

    Raises:
        AdapterError: The LoRA is not beside the adapter, or another one is.
        ModelError: It does not go into this base.
    """
    folder = adapter_folder(folder)
    wanted = read_config(folder).base_lora
    if wanted is None:
        return base
    if not (folder / LORA_FOLDER).is_dir() or lora_hash(folder / LORA_FOLDER) != wanted:
        raise AdapterError(
            f"the adapter in {folder} was trained on a base with a LoRA merged into it, and {LORA_FOLDER}/ is missing "
            "there or holds another one; copy it from where the adapter was trained"
        )
    return merge_lora(base, folder / LORA_FOLDER)


def attach(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put the adapter in ``folder`` on ``base``, in inference mode, its routers folded."""
    folder = adapter_folder(folder)
    config = read_config(folder)
    config.inference_mode = True
    tensors = _read_weights(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base, config)
        result = set_peft_model_state_dict(model, tensors)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"the adapter in {folder} does not fit this model: {reason}") from error
    missing = [key for key in result.missing_keys if "mogu_" in key]
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise AdapterError(
            f"the adapter in {folder} does not fit this model: {odd} is {'missing' if missing else 'unknown'}"
        )
    fold_routers(model)  # in float32; only then to the base's dtype
    for layer in tuner_layers(model):
        layer._move_adapter_to_device_of_base_layer(model.active_adapter)
    model.eval()
    return model


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise missing(folder, SAFETENSORS_WEIGHTS_NAME)
    try:
        return load_peft_weights(str(folder), device="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"cannot read the adapter in {folder}: {reason}; copy or train it again") from error


def adapter_folder(path: str | Path) -> Path:
    """The folder with ``adapter_config.json``: ``path`` itself or ``path/adapter``.

    Raises:
        AdapterError: Neither is there.
    """
    for folder in (Path(path), Path(path) / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise missing(path, "adapter_config.json")


def missing(folder: str | Path, name: str) -> AdapterError:
    """What is said of a folder without the file ``name`` of an adapter."""
    return AdapterError(f"no adapter in {folder}: {name} is missing (is the run finished?)")


def read_config(folder: str | Path) -> MoguConfig:
    """The configuration of the adapter in ``folder``.

    Raises:
        AdapterError: Unreadable, or another kind of adapter.
    """
    folder = adapter_folder(folder)
    try:
        kind = json.loads((folder / "adapter_config.json").read_text()).get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise AdapterError(f"cannot read {folder / 'adapter_config.json'}: {error}") from error
    if kind != "MOGU":
        raise AdapterError(f"{folder} holds a {kind} adapter, not a MoGU one")
    return MoguConfig.from_pretrained(str(folder))


def save(model: PeftModel, folder: str | Path, files: dict[str, str] | None = None) -> Path:
    """Write the active adapter, and the text ``files`` beside it, to ``folder``; all of it or nothing.

    Raises:
        AdapterError: The folder cannot be written.
    """
    folder, name = Path(folder), model.active_adapter
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for killed in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(killed, ignore_errors=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise AdapterError(f"cannot write to {folder.parent}: {error}") from error
    try:
        new = workshop / "new"  # mkdtemp's own folder is closed to other users
        # save_embedding_layers=False: "auto" asks the hub for the base's config at every save.
        model.save_pretrained(new, selected_adapters=[name], save_embedding_layers=False)
        if name != "default":  # which peft saves one folder deeper
            for file in (new / name).iterdir():
                file.replace(new / file.name)
            (new / name).rmdir()
        base = model.get_base_model()
        if merged_lora(base) is not None:
            copy_lora(base.mogu_lora_folder, new / LORA_FOLDER)
        for file_name, text in (files or {}).items():
            (new / file_name).write_text(text, encoding="utf-8")
        swap(new, folder, workshop / "old")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"cannot write the adapter to {folder}: {error}") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return folder


def swap(new: Path, target: Path, old: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, which goes to ``old`` and comes back if that fails."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def digest(folder: str | Path) -> str:
    """Short hash of an adapter's weights and configuration: equal for equal adapters, wherever they lie."""
    folder = adapter_folder(folder)
    parts = [(folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
