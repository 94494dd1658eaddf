"""From the name of a base and a run folder to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu.adapter import store
from mogu.adapter.model import active_config
from mogu.errors import ConfigError, ModelError
from mogu.models import load_base
from mogu.recipe import load_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer: a base, perhaps with an adapter on it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    """What the user calls the base."""
    adapter: Path | None
    """Folder of the adapter that is on the model; ``None``: the plain base."""
    template: str | None
    """Published chat template that the adapter was trained with; ``None`` is the tokenizer's own."""

    @property
    def routed(self) -> bool:
        """Whether an adapter is on the model."""
        return self.adapter is not None

    @property
    def routed_tokens(self) -> int:
        """m: how many new tokens are routed; 0 without an adapter."""
        return 0 if self.adapter is None else active_config(self.model).routed_tokens

    def record(self) -> dict[str, Any]:
        """What decides the answers, for logs."""
        return {
            "base": self.name,
            "adapter": None if self.adapter is None else store.digest(self.adapter),
            "routed_tokens": self.routed_tokens,
        }


def load_run(
    run: str | Path | None,
    *,
    base: str | None = None,
    plain: bool = False,
    template: str | None = None,
    routed_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quantize: str | None = None,
    offload: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load what is in a run folder or an adapter folder, on the base that it names.

    Args:
        run: The folder; ``None`` needs ``base`` and is that model without an adapter.
        base: Another copy of the base: ``"smollm2"``, a hub id, a local folder or a ``.gguf`` file.
        plain: Leave the adapter off; everything else, the chat template too, stays as with it.
        template: As for :func:`mogu.chat.prompt_ids`; default: what the adapter was trained with.
        routed_tokens: m, where it shall differ from what the adapter was trained with.
        dtype: As for :func:`mogu.load`.
        device: As for :func:`mogu.load`.
        quantize: As for :func:`mogu.load`.
        offload: As for :func:`mogu.load`.
        trust_remote_code: As for :func:`mogu.models.load_base`.

    Raises:
        ConfigError: Nothing says which base, or ``routed_tokens`` without an adapter or below 0.
        MoguError: As :func:`mogu.load`.
    """
    if run is None and base is None:
        raise ConfigError("name a run folder or a base model")
    folder = None if run is None else store.adapter_folder(run)
    name = base or (None if folder is None else store.read_config(folder).base_model)
    if name is None:
        raise ConfigError(f"the adapter in {folder} does not say which base it is for; give the base, too")
    if routed_tokens is not None and (folder is None or plain):
        raise ConfigError("routed_tokens needs an adapter: the plain base routes nothing")
    if routed_tokens is not None and routed_tokens < 0:
        raise ConfigError(f"routed_tokens must be at least 0, not {routed_tokens}")
    on = None if plain else folder
    try:
        model: Any
        model, tokenizer = load_base(
            name, dtype=dtype, device=device, quantize=quantize, offload=offload, trust_remote_code=trust_remote_code
        )
        if folder is not None:
            model = store.with_its_lora(model, folder)
    except ModelError as error:
        if base is None:
            raise ModelError(
                f"{error} (the base that {folder} names; give another copy of it, if you have one)"
            ) from error
        raise
    if on is not None:
        model = store.attach(model, on)
        model.base_model.tokenizer = tokenizer
    if routed_tokens is not None:
        active_config(model).routed_tokens = routed_tokens
    template = template or _template(folder)
    if on is not None:
        model.base_model.template = template
    return Loaded(model, tokenizer, name, on, template)


def _template(folder: Path | None) -> str | None:
    if folder is None or not (folder / "recipe.yaml").is_file():
        return None
    return load_recipe(folder / "recipe.yaml").template
