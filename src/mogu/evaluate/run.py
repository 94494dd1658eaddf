"""Ask a model the prompts of a suite, judge the answers, count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import mogu_layers, recorded_weights
from mogu.data.rows import read_jsonl, resume_jsonl, write_jsonl, write_text
from mogu.errors import DataError
from mogu.evaluate.metrics import auroc, five_numbers, rates
from mogu.judge import judge_response
from mogu.progress import Progress
from mogu.respond import batches, respond

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSES_FILE = "responses.jsonl"
SUMMARY_FILE = "summary.json"
_PARTIAL_FILE = "responses.partial.jsonl"


def evaluate_suite(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    batch_size: int,
    template: str | None,
    out: str | Path,
    settings: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answer and judge ``prompts`` greedily; an interrupted run goes on, a finished answer is never generated twice.

    Args:
        model: Base model, or peft model with a MoGU adapter.
        tokenizer: Its tokenizer.
        prompts: Records with an ``instruction``; other fields are kept.
        max_new_tokens: Length at which answers are cut.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.
        out: Folder for ``responses.jsonl`` (each prompt with ``response``, ``label``, ``reasons``) and ``summary.json``
            (n, counts, rates with 95% Wilson intervals, settings).
        settings: What decides the answers besides the prompts (model, adapter, …); saved, and a partial run of other
            settings is not continued.
        progress: Told how many answers are done.

    Returns:
        The summary.

    Raises:
        DataError: ``out`` holds a finished evaluation of other prompts or settings.
    """
    out, progress = Path(out), progress or Progress()
    settings = {**settings, "new_tokens": max_new_tokens, "template": template, "decoding": "greedy"}
    inputs = hashlib.sha256(json.dumps([list(prompts), settings], sort_keys=True).encode()).hexdigest()[:16]
    if (out / SUMMARY_FILE).is_file():
        return _finished(out, inputs)
    answers = {r["index"]: r["response"] for r in resume_jsonl(out / _PARTIAL_FILE, {"inputs": inputs})}
    todo = [index for index in range(len(prompts)) if index not in answers]
    with (out / _PARTIAL_FILE).open("a", encoding="utf-8") as partial:

        def keep(position: int, answer: str) -> None:
            answers[todo[position]] = answer
            partial.write(json.dumps({"index": todo[position], "response": answer}, ensure_ascii=False) + "\n")
            partial.flush()
            progress.update(len(answers), len(prompts))

        respond(
            model,
            tokenizer,
            [prompts[index]["instruction"] for index in todo],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            template=template,
            on_done=keep,
        )
    rows = [_judged(prompt, answers[index]) for index, prompt in enumerate(prompts)]
    summary = {**rates(rows), "settings": settings, "inputs": inputs}
    write_jsonl(out / RESPONSES_FILE, rows)
    write_text(out / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    (out / _PARTIAL_FILE).unlink()
    return summary


def read_responses(out: str | Path) -> list[dict[str, Any]]:
    """The judged responses of a finished evaluation, in the order of its prompts."""
    return [record for _, record in read_jsonl(Path(out) / RESPONSES_FILE)]


def _judged(prompt: dict[str, Any], response: str) -> dict[str, Any]:
    verdict = judge_response(prompt["instruction"], response)
    # A suite's own "label" says what the prompt is; ours says what the response is.
    kept = {("prompt_label" if key == "label" else key): value for key, value in prompt.items()}
    return {**kept, "response": response, "label": verdict.label, "reasons": list(verdict.reasons)}


def _finished(out: Path, inputs: str) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {out / SUMMARY_FILE}: {error}; delete the folder to evaluate anew") from error
    if summary.get("inputs") != inputs:
        raise DataError(f"{out} holds an evaluation of other prompts or settings; choose another --out or delete it")
    return summary


def router_statistics(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, list[str]],
    *,
    batch_size: int,
    template: str | None,
) -> dict[str, Any]:
    """Router weights at the last prompt token, per layer and kind of prompt.

    Args:
        model: peft model with a MoGU adapter in the routed stage.
        tokenizer: Its tokenizer.
        prompts: Instructions by kind; ``malicious`` is set against each other kind in the AUROC.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.

    Returns:
        ``layers`` (indices), ``kinds`` (for each the five-number summary of unwill and glad per layer), and ``auroc``
        of the unwill weight per layer, malicious against each other kind (empty without malicious prompts).
    """
    layers = [index for index, _ in mogu_layers(model)]
    unwill: dict[str, torch.Tensor] = {}
    glad: dict[str, torch.Tensor] = {}
    for kind, instructions in prompts.items():
        u, g = torch.zeros(len(layers), len(instructions)), torch.zeros(len(layers), len(instructions))
        for indices, batch in batches(tokenizer, instructions, batch_size, template, model.device):
            with torch.inference_mode(), recorded_weights(model) as weights:
                positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
                model(**batch, position_ids=positions, use_cache=False, logits_to_keep=1)
                each = weights()
            u[:, indices], g[:, indices] = (w[:, :, -1].float().cpu() for w in each)
        unwill[kind], glad[kind] = u, g
    return {
        "layers": layers,
        "kinds": {
            kind: {
                "unwill": [five_numbers(row) for row in unwill[kind].tolist()],
                "glad": [five_numbers(row) for row in glad[kind].tolist()],
            }
            for kind in prompts
        },
        "auroc": {
            kind: [
                auroc(bad, good) for bad, good in zip(unwill["malicious"].tolist(), unwill[kind].tolist(), strict=True)
            ]
            for kind in prompts
            if kind != "malicious" and "malicious" in prompts
        },
    }
