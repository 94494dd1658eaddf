"""Recipes: every number that decides a run, as data.

A recipe is a frozen dataclass, read from YAML (a shipped name or the user's file) and saved beside every output.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from mogu.errors import ConfigError
from mogu.recipe_check import check

RECIPE_FILE = "recipe.yaml"
"""Where a recipe lies in a run folder, and beside an adapter."""


@dataclass(frozen=True)
class AdapterRecipe:
    """Shape of the adapter (MoGU paper, section 3)."""

    rank: int = 8
    """LoRA rank of the responders."""
    alpha: float = 16.0
    """LoRA scale is alpha / rank."""
    dropout: float = 0.05
    """Dropout on the responders' input while they train."""
    layers: str = "range"
    """Which layers are routed: ``range``: from ``layers_from`` to ``layers_to``; ``probe``: those where a probe of the
    base reads best what is asked (v2, see :mod:`mogu.train.probe`); ``random``: as many, drawn by the seed."""
    layers_budget: float = 0.3
    """How many a probe chooses, as a share of the model's depth."""
    probe_rows: int | None = None
    """At most so many training rows of each kind (malicious, benign, borderline) are probed; null is all."""
    layers_from: float = 0.0
    """Where the routed layers begin, as a share of the model's depth; 0 is every layer (v1)."""
    layers_to: float = 1.0
    """Where they end, as a share of the depth."""
    routed_tokens: int = 5
    """m: new tokens decoded with routing."""
    think: str = "ignore"
    """Where m tokens are counted in an answer that begins with a thought: ``ignore``: from its first token, as
    published; ``through``: routed through the thought, and m tokens after it."""
    think_open: str = "<think>"
    """What begins a thought, in the prompt's end or the answer."""
    think_close: str = "</think>"
    """What ends it."""
    think_limit: int = 256
    """New tokens after which the base takes over though the thought goes on."""
    router_width: int = 512
    """Inner width of a router that is trained in its factors."""


@dataclass(frozen=True)
class DataRecipe:
    """What to train and validate on."""

    limit: int | None = None
    """At most so many instructions of each kind (malicious, benign, borderline) and split; null is all."""
    answer_tokens: int = 32
    """Length of the base's own answers to benign instructions."""


@dataclass(frozen=True)
class ResponderRecipe:
    """How one responder is trained."""

    loss: str = "ratio"
    """``ratio``: CE(wanted)/CE(unwanted), as published; ``log_ratio``: its logarithm with bounded terms."""
    learning_rate: float = 5e-5
    """Peak rate of AdamW; constant."""
    pairs: int | None = 300
    """Different pairs to train on; null is all."""
    epochs: int = 10
    """Passes over the pairs."""
    batch_size: int = 1
    """Pairs in one forward and backward: memory."""
    accumulation: int = 8
    """Forwards per optimizer step, which learns from batch_size times accumulation pairs."""
    answer_tokens: int = 128
    """Length at which answers are cut."""
    begun: float = 0.0
    """Share of pairs whose unwanted answer has begun before the wanted one is due, as after a prefilled beginning."""
    checkpoint_pairs: int = 80
    """Pairs seen between checkpoints."""
    stop_when_good: bool = False
    """Stop at the first checkpoint whose validation answers are as they should be."""
    checkpoint: int | None = None
    """Take the checkpoint after so many pairs (a published choice) instead of selecting on validation prompts."""


@dataclass(frozen=True)
class RouterRecipe:
    """How the routers are made."""

    start: str = "random"
    """``random``: factored routers as published; ``fit``: one logistic fit per layer on the base's hidden states."""
    l2: float = 0.001
    """Ridge of the fit, on standardised inputs."""
    borderline_weight: float = 1.0
    """Weight of borderline benign rows in the fit, relative to the other benign rows."""
    fit_rows: int | None = None
    """At most so many rows of each kind (malicious, benign, borderline) are fitted on; null is all."""
    fit_tokens: str = "weighted"
    """What is fitted on: ``template`` tokens after the instruction; ``prompt``: also its end, a tenth the weight;
    ``weighted``: also the first answer tokens, a third the weight; ``equal``: all of these alike."""
    fit_states: str = "routed"
    """Hidden states to fit on: as they are when the layers below route (``routed``), or the plain ``base``'s."""
    standardise: bool = True
    """Fit on standardised inputs."""
    turns: float = 0.0
    """Share of the rows of the fit that are the second turn of a conversation."""
    system_prompts: float = 0.0
    """Share of the rows of the fit under a system prompt that is not the template's own."""
    borderline: float = 1.0
    """Share of the borderline training rows that the routers learn from."""
    hold_out: float = 0.0
    """Share of harm categories kept from the routers' training; checkpoints' AUROC is then taken on those."""
    sharpness: float = 1.0
    """Factor of the fitted router logits; above 1, each layer decides more firmly."""
    learning_rate: float = 5e-4
    """Rate of end-to-end training."""
    epochs: int = 10
    """Passes of end-to-end training; 0 leaves the start as it is."""
    rows: int | None = 600
    """Rows of end-to-end training, half benign and half malicious; null is all."""
    batch_size: int = 1
    """Rows in one forward."""
    accumulation: int = 16
    """Forwards per optimizer step."""
    penalty: str = "squared"
    """``squared`` (the authors' code) or ``l1`` (the paper's text)."""
    penalty_weight: float = 2.0
    """λ, weight of the router penalty."""
    checkpoint_rows: int | None = None
    """Rows seen between checkpoints of end-to-end training; null is one for each pass."""
    select: str = "last"
    """Which checkpoint is taken: ``last`` (published), or the best on ``validation`` prompts, the start included."""
    answer_tokens: int = 128
    """Length at which answers are cut."""


@dataclass(frozen=True)
class BackboneRecipe:
    """LoRA on modules of the base, trained with the routers and there while routed (v2)."""

    modules: tuple[str, ...] = ()
    """Of q, k, v, o, up, gate, down; none is no backbone LoRA."""
    reach: str = "routed"
    """In the ``routed`` layers, or in all from the first routed one up (``upper``)."""
    rank: int = 8
    """LoRA rank."""
    alpha: float = 16.0
    """LoRA scale is alpha / rank."""
    learning_rate: float = 2e-4
    """Its rate; that of the routers is their own."""
    anchor_weight: float = 1.0
    """β, weight of KL(base ‖ routed) on the answers to benign rows."""


@dataclass(frozen=True)
class ComputeRecipe:
    """How a training step is computed: what it costs, not what it learns."""

    pack: bool = True
    """Several rows in one line behind what their prompts share, where the base computes the same with it."""
    bf16: bool = False
    """Matrix products in bfloat16 (autocast); parameters, norms and losses stay in their own precision."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest again in backward: less memory, more time."""
    torch_compile: bool = False
    """Compile the model with torch's inductor; minutes at the start, and on a CPU it needs a C++ compiler."""
    keep_lower: bool = True
    """Compute what enters the first routed layer once for each row, and keep it on disk: for later epochs, and for the
    base that routed answers are anchored to."""


@dataclass(frozen=True)
class BalanceRecipe:
    """How the shift δ of the router logits is chosen on validation prompts."""

    shifts: tuple[float, ...] = (0.0,)
    """Values of δ to try; one value is taken as it is."""
    prompts: int = 48
    """Validation prompts of each kind (malicious, benign, borderline)."""
    new_tokens: int = 16
    """Length of the validation answers."""
    benign_refused: float = 0.03
    """Most that δ may add to the refusal rate on benign prompts, over the mildest δ tried."""
    borderline_refused: float = 0.25
    """The same for borderline prompts."""
    handover: str = "fixed"
    """When the plain base takes over: after m tokens (``fixed``, published), at low ``risk``, never (``all``)."""
    risk_threshold: float = 0.5
    """Risk above which the hand-over by risk waits."""


@dataclass(frozen=True)
class EvaluationRecipe:
    """The quick evaluation at the end of ``mogu harden``."""

    prompts: int = 64
    """Held-out prompts of each kind."""
    new_tokens: int = 48
    """Length of the answers."""


@dataclass(frozen=True)
class SearchRecipe:
    """What ``mogu harden --search`` varies, and when it gives a trial up.

    ``…_by`` is a range of factors, lowest and highest, of the recipe's own value, and holds 1; ``[1, 1]`` leaves the
    value alone, as does a recipe whose routers do not use it.
    """

    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Factors of both responders' learning rate. A few and no range: each one is a training of its own."""
    checkpoints: tuple[float, ...] | None = None
    """Pairs seen at which a responder may be taken, besides the recipe's own choice. Null: the first, second and fourth
    checkpoint, or half and twice the recipe's ``checkpoint``; an empty list: only the recipe's own choice."""
    sharpness_by: tuple[float, ...] = (0.5, 2.0)
    """Of ``routers.sharpness``; where the routers are fitted."""
    l2_by: tuple[float, ...] = (0.1, 10.0)
    """Of ``routers.l2``; where the routers are fitted."""
    borderline_weight_by: tuple[float, ...] = (0.5, 4.0)
    """Of ``routers.borderline_weight``; where the routers are fitted."""
    router_rate_by: tuple[float, ...] = (0.3, 3.0)
    """Of ``routers.learning_rate``; where the routers are trained end to end."""
    penalty_weight_by: tuple[float, ...] = (0.25, 4.0)
    """Of ``routers.penalty_weight``, λ; where the routers are trained end to end."""
    borderline_by: tuple[float, ...] = (0.25, 1.0)
    """Of ``routers.borderline``, the data mix."""
    shifts: tuple[float, ...] | None = None
    """Values of δ that every trial is measured at. Null: those of the balance, or where that has only one, it and
    1 and 0.5 on either side of it."""
    on_target: float = 0.5
    """A responder below this share of validation answers on target ends its trial."""
    first_prompts: int = 24
    """Validation prompts of each kind that a trial is measured on first."""
    beaten_times: int = 2
    """Finished trials that must beat a trial on all objectives, beyond its 95% intervals on those, to end it."""
    broken: float = 0.05
    """Most that the share of broken answers may lie above the base's."""


@dataclass(frozen=True)
class Recipe:
    """All of a run."""

    name: str = "default"
    """Shown in reports."""
    description: str = ""
    """One line."""
    template: str | None = None
    """A published chat template (see :data:`mogu.chat.TEMPLATES`); null is the tokenizer's own."""
    seed: int = 0
    """Seed of order, initialisation and dropout."""
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    glad: ResponderRecipe = field(default_factory=ResponderRecipe)
    unwill: ResponderRecipe = field(default_factory=ResponderRecipe)
    routers: RouterRecipe = field(default_factory=RouterRecipe)
    backbone: BackboneRecipe = field(default_factory=BackboneRecipe)
    compute: ComputeRecipe = field(default_factory=ComputeRecipe)
    balance: BalanceRecipe = field(default_factory=BalanceRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    search: SearchRecipe = field(default_factory=SearchRecipe)

    def __post_init__(self) -> None:
        check(self)

    def to_yaml(self) -> str:
        """The recipe as YAML that :func:`load_recipe` reads back."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("mogu") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def launch_files() -> dict[str, Path]:
    """Shipped configurations of ``accelerate launch``, by name."""
    folder = Path(str(resources.files("mogu"))) / "recipes" / "accelerate"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_file: str | Path) -> Recipe:
    """A shipped recipe by name, or a YAML file of the same fields; what a file leaves out keeps its default.

    Raises:
        ConfigError: Unknown name, unreadable file, unknown field, wrong type or value.
    """
    text, where = _recipe_text(str(name_or_file))
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold a mapping of recipe fields")
    values.setdefault("name", Path(where).stem)
    recipe: Recipe = _build(Recipe, values, where, "")
    return recipe


def _recipe_text(name: str) -> tuple[str, str]:
    shipped = resources.files("mogu") / "recipes" / f"{name}.yaml"
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8"), name
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no recipe {name!r}; choose from {', '.join(recipe_names())} or give a YAML file")
    try:
        return path.read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {error}") from error


def _build(cls: Any, values: dict[str, Any], where: str, prefix: str) -> Any:
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{where}: unknown field {prefix + str(name)!r}; known: {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix + name} must be a mapping")
            arguments[name] = _build(hints[name], value, where, f"{prefix}{name}.")
        else:
            arguments[name] = _convert(value, hints[name], f"{where}: {prefix + name}")
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` says; YAML reads ``5e-5`` as a string and 1 for 1.0."""
    options = [o for o in get_args(hint) if o is not type(None)] if get_origin(hint) is not tuple else []
    if value is None:
        if type(None) in get_args(hint):
            return None
        raise ConfigError(f"{where} must not be null")
    kind = options[0] if options else hint
    try:
        if get_origin(kind) is tuple:
            if not isinstance(value, list):
                raise ValueError
            return tuple(str(v) if get_args(kind)[0] is str else _finite(v) for v in value)
        if kind is bool or isinstance(value, bool | list | dict):
            if kind is bool and isinstance(value, bool):
                return value
            raise ValueError
        if kind is str:
            return str(value)
        number = _finite(value)
        if kind is int and int(number) != number:
            raise ValueError
        return kind(number)
    except (TypeError, ValueError):
        name = kind.__name__
        if get_origin(kind) is tuple:
            name = "list of names" if get_args(kind)[0] is str else "list of numbers"
        raise ConfigError(f"{where}: {value!r} is no {name}") from None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def routed_layers(recipe: AdapterRecipe, depth: int) -> list[int] | None:
    """Indices of the routed decoder layers of a model of ``depth`` layers; ``None`` for all of them."""
    first, last = round(recipe.layers_from * depth), round(recipe.layers_to * depth)
    if first == 0 and last == depth:
        return None
    return list(range(min(first, depth - 1), max(last, min(first, depth - 1) + 1)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
