"""Options that several commands share, ``--config`` for all of them, and checks of what they name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mogu.errors import ConfigError


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Make the settings in ``file`` the defaults of the command; runs before any other option is looked at."""
    if file is None or context.resilient_parsing:
        return file
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of option names to values")
    known = _names(context.command)
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = known.get(str(key).replace("-", "_"))
        if name is None:
            raise ConfigError(f"{file}: unknown option {str(key)!r}; known: {', '.join(sorted(known))}")
        if value is not None:
            defaults[name] = _as_on_command_line(value, f"{file}: {key}")
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


def _names(command: Any) -> dict[str, str]:
    """Parameter by every name that a configuration may use: that of the argument, or of a long option."""
    names = {}
    for parameter in command.params:
        if parameter.name in ("config", "help"):
            continue
        options = [o.removeprefix("--") for o in parameter.opts if o.startswith("--")]
        for name in options or [parameter.name]:
            names[name.replace("-", "_")] = parameter.name
    return names


def _as_on_command_line(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        raise ConfigError(f"{where}: expected a single value, found a mapping")
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        callback=_read_config,
        is_eager=True,
        help="Options of this command as YAML; flags on the command line win.",
    ),
]
Model = Annotated[str, typer.Option(metavar="MODEL", help="smollm2, a hub id, a local folder, or a .gguf file.")]
OptionalModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Base model; left out, the one that the adapter was trained on.")
]
Adapter = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Run folder or adapter folder; left out, the plain model.")
]
Defenses = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME…]", help="Defences to compare, '+' joins them; default: mogu with --adapter, else none."
    ),
]
TrainingData = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Data set that was trained on: its prompts are left out, learning defences use it; default: RUN/data.",
    ),
]
RecipeName = Annotated[str, typer.Option(metavar="NAME|FILE", help="A shipped recipe (see mogu recipes) or YAML file.")]
Benign = Annotated[
    str, typer.Option(metavar="SOURCE", help="'seeds', or .jsonl, .csv or .txt files, separated by commas.")
]
Malicious = Annotated[str, typer.Option(metavar="SOURCE", help="The same for malicious instructions.")]
Track = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME…]",
        help="Where losses are shown: tensorboard, wandb, mlflow; default: tensorboard where it is installed.",
    ),
]
BaseAdapter = Annotated[
    Path | None,
    typer.Option(
        "--base-adapter", metavar="LORA", help="Folder of a peft LoRA that is merged into the model first: a fine-tune."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="float32 (default), bfloat16, float16, auto: the checkpoint's, or fastest: bfloat16 where it is quick.",
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, …; default: CUDA where there is one.")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="BITS", help="Load the base quantized: 4bit, 8bit, torchao-8bit, or torchao-4bit (not trained)."
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE|auto",
        help="Keep so much of the base on the device (10GiB); other layers wait in main memory or on disk.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="llama-2, vicuna or falcon; default: the adapter's, else the tokenizer's."),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Prompts at a time; default: what is fast here.")
]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Length at which an answer is cut.")]
Plain = Annotated[bool, typer.Option("--plain", help="Answer as the base, without the adapter.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")]
Temperature = Annotated[
    float | None, typer.Option(metavar="T", min=0.0, help="Sample at this temperature; default and 0: greedy.")
]
TopP = Annotated[
    float | None, typer.Option(metavar="P", min=0.0, max=1.0, help="Sample from the most likely tokens of share P.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of sampling.")]
RoutedTokens = Annotated[
    int | None, typer.Option(metavar="M", min=0, help="Routed new tokens; default: as the adapter was trained.")
]

Dial = Annotated[
    float | None,
    typer.Option(metavar="D", help="Safety dial: above 0 refuses more, below 0 less; default 0, as trained."),
]

Handover = Annotated[
    str | None,
    typer.Option(
        metavar="fixed|risk|all",
        help="When the plain base takes over: after m tokens, when the risk is low, never; default: the adapter's.",
    ),
]
RiskThreshold = Annotated[
    float | None,
    typer.Option(metavar="P", min=0.0, max=1.0, help="Risk above which the hand-over by risk waits."),
]


def writable_folder(folder: Path) -> Path:
    """``folder``, made if need be, and known to be writable before hours are spent.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error


def run_folder(model: str) -> Path:
    """Where a run goes by default: ``runs/`` and the last part of the model's name."""
    name = Path(model.rstrip("/")).name.removesuffix(".gguf")
    return Path("runs") / (name if name not in ("", ".", "..") else "model")
