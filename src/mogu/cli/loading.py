"""From ``--model`` and ``--adapter`` to something that answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.loading import Loaded


def load(
    model: str | None,
    adapter: Path | None,
    *,
    template: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quantize: str | None = None,
    offload: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load the base and, if given, an adapter; each tells what the other leaves out.

    Raises:
        ConfigError: Neither says which base.
        MoguError: As :func:`mogu.loading.load_run`.
    """
    if model is None and adapter is None:
        raise ConfigError("name a model with --model, or an adapter with --adapter")
    from mogu.loading import load_run

    return load_run(
        adapter,
        base=model,
        template=template,
        dtype=dtype,
        device=device,
        quantize=quantize,
        offload=offload,
        trust_remote_code=trust_remote_code,
    )


def batch_size_for(loaded: Loaded, prompts: Sequence[Any], given: int | None) -> int:
    """``given``, or what decodes fast here; not worth measuring for a few prompts."""
    from mogu.respond import FEW_PROMPTS, good_batch_size

    if given is not None:
        return given
    if len(prompts) <= FEW_PROMPTS:
        return max(len(prompts), 1)
    return good_batch_size(loaded.model, loaded.tokenizer, prompts, template=loaded.template)


@contextmanager
def routing(loaded: Loaded, plain: bool) -> Iterator[None]:
    """Inside, the model answers routed as trained, or, if ``plain``, as its base."""
    from mogu.adapter.model import plain_base

    if loaded.routed and plain:
        with plain_base(loaded.model):
            yield
    else:
        yield


def answer(loaded: Loaded, prompts: Sequence[Any], system: str | None, batch_size: int, **options: Any) -> list[str]:
    """Answers to bare prompts or conversations, with an optional system prompt; ``options`` are those of generate."""
    from mogu.chat import to_messages
    from mogu.respond import respond

    return respond(
        loaded.model,
        loaded.tokenizer,
        [to_messages(prompt, system) for prompt in prompts],
        batch_size=batch_size,
        template=loaded.template,
        **options,
    )


def reports(
    loaded: Loaded, prompts: Sequence[Any], system: str | None, batch_size: int, **options: Any
) -> list[tuple[str, int, float | None]]:
    """As :func:`answer`, but each answer with its number of routed tokens and the risk of its prompt, if calibrated."""
    import torch

    from mogu.chat import pad_prompts, prompt_ids
    from mogu.respond import as_text, by_length

    model, tokenizer = loaded.model, loaded.tokenizer
    ids = [prompt_ids(tokenizer, prompt, system=system, template=loaded.template) for prompt in prompts]
    found: list[tuple[str, int, float | None]] = [("", 0, None)] * len(ids)
    for indices in by_length(ids, batch_size):
        batch = pad_prompts(tokenizer, [ids[index] for index in indices], model.device)
        with torch.inference_mode():
            output = model.generate(**batch, **{"do_sample": False, "return_dict_in_generate": True, **options})
        new = output.sequences[:, batch["input_ids"].shape[1] :]
        routed = output.get("routed_tokens")
        risk = output.get("risk")
        for place, index in enumerate(indices):
            found[index] = (
                as_text(tokenizer, new[place]),
                0 if routed is None else int(routed[place]),
                None if risk is None else round(float(risk[place]), 4),
            )
    return found


def sampling(temperature: float | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """Options of generate; greedy without a temperature above 0 or a top share."""
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    if temperature == 0 or (temperature is None and top_p is None):
        return {}
    given = {"temperature": temperature, "top_p": top_p}
    return {"do_sample": True, **{name: value for name, value in given.items() if value is not None}}


def routing_options(loaded: Loaded, *, reference: bool = False, **settings: Any) -> dict[str, Any]:
    """Options of routed generate; those of ``settings`` that are None are left to the adapter.

    Raises:
        ConfigError: There is nothing to route.
    """
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if reference:
        given["reference"] = True
    if given and not loaded.routed:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} needs an --adapter")
    return given


def printer(loaded: Loaded) -> Any:
    """A streamer that writes an answer to stdout as it comes, and keeps what it wrote in ``text``."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            super().on_finalized_text(text, stream_end)

    return Printer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
