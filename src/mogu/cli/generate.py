"""``mogu generate``: one answer to one prompt, or to each prompt of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mogu.cli import options
from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.loading import Loaded

_CHUNK = 4
"""Batches of a file between two outputs: answers come in order, and an interruption loses few."""


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; left out, stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts: .txt, one a line, or .jsonl or .csv.")
    ] = None,
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    max_new_tokens: options.MaxNewTokens = 256,
    plain: options.Plain = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line, with risk, mean router weights, routed tokens."),
    ] = False,
    system: options.System = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show words as they come; default: on a terminal.")
    ] = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    routed_tokens: options.RoutedTokens = None,
    dial: options.Dial = None,
    handover: options.Handover = None,
    risk_threshold: options.RiskThreshold = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="As the authors' code: end-of-turn in the routed head is dropped.")
    ] = False,
    batch_size: options.BatchSize = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    config: options.Config = None,
) -> None:
    """Answer a prompt, or each prompt of a file."""
    prompts = read_prompts(prompt, file)
    from mogu.cli import loading

    loaded = loading.load(
        model, adapter, template=template, dtype=dtype, device=device, quantize=quantize, offload=offload
    )
    decoding = loading.sampling(temperature, top_p, seed) | loading.routing_options(
        loaded,
        **{"routed_tokens": routed_tokens, "dial": dial, "handover": handover, "risk_threshold": risk_threshold},
        reference=reference,
    )
    streamed = not as_json and len(prompts) == 1 and (sys.stdout.isatty() if stream is None else stream)
    if streamed:
        decoding["streamer"] = loading.printer(loaded)
    told = {"max_new_tokens": max_new_tokens, **decoding}
    size = 1 if reference else loading.batch_size_for(loaded, prompts, batch_size)
    with loading.routing(loaded, plain):
        for start in range(0, len(prompts), _CHUNK * size):
            chunk = prompts[start : start + _CHUNK * size]
            if as_json:
                for one, found in zip(chunk, _reported(loaded, chunk, system, size, plain, told), strict=True):
                    print(json.dumps({"instruction": one, **found}, ensure_ascii=False), flush=True)
                continue
            answers = loading.answer(loaded, chunk, system, size, max_new_tokens=max_new_tokens, **decoding)
            for one, text in zip(chunk, answers, strict=True):
                if not streamed:
                    print(text if len(prompts) == 1 else f"> {one}\n{text}\n", flush=True)


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt of the command line, those of ``file``, or all of stdin as one.

    Raises:
        ConfigError: Two of them, or none.
        DataError: A bad file.
    """
    if file is not None:
        if prompt is not None:
            raise ConfigError("give a prompt or --file, not both")
        from mogu.data import sources

        return [record["instruction"] for record in sources.read_prompts(str(file))]
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None or not prompt.strip():
        raise ConfigError('no prompt; give one: mogu generate "…", or --file FILE, or text on stdin')
    return [prompt.strip()]


def _reported(
    loaded: Loaded, prompts: list[str], system: str | None, size: int, plain: bool, decoding: dict[str, Any]
) -> list[dict[str, Any]]:
    """Answers with what the routers said: ``response``, ``risk``, ``routed_tokens``, mean ``unwill`` and ``glad``."""
    from mogu.cli import loading

    found: list[dict[str, Any]] = []
    routed = loaded.routed and not plain and decoding.get("routed_tokens") != 0
    for text, tokens, risk in loading.reports(loaded, prompts, system, size, **decoding):
        weights = weights_of(loaded, prompts[len(found)], system, decoding.get("dial") or 0.0) if routed else {}
        found.append({"response": text, "risk": risk, "routed_tokens": tokens, "unwill": None, "glad": None, **weights})
    return found


def weights_of(loaded: Loaded, prompt: str, system: str | None, dial: float) -> dict[str, Any]:
    """The mean router weights over the layers at the end of ``prompt``."""
    import torch

    from mogu.adapter.model import dialled
    from mogu.chat import prompt_ids
    from mogu.decode.inspect import prompt_weights

    ids = prompt_ids(loaded.tokenizer, prompt, system=system, template=loaded.template)
    with dialled(loaded.model, dial):
        unwill, glad = prompt_weights(loaded.model, torch.tensor([ids]))
    return {"unwill": round(unwill.mean().item(), 4), "glad": round(glad.mean().item(), 4)}
