"""The model card that lies beside a trained adapter: YAML that the hub reads, and text for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mogu.models import EMBEDDED, EMBEDDED_HUB_ID
from mogu.recipe import Recipe

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME."""


def hub_id(model: str) -> str | None:
    """What a base is called on the hub; ``None`` for a local folder or file.

    >>> hub_id("smollm2"), hub_id("Qwen/Qwen2.5-0.5B-Instruct"), hub_id("./mine")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'Qwen/Qwen2.5-0.5B-Instruct', None)
    """
    if model == EMBEDDED:
        return EMBEDDED_HUB_ID
    return model if HUB_ID.fullmatch(model) and not Path(model).exists() else None


def public_name(model: str) -> str:
    """What may be written about a base: its name on the hub, else the last part of its path."""
    return hub_id(model) or Path(model).name


def model_card(
    recipe: Recipe, record: dict[str, Any], summary: dict[str, Any] | None = None, *, place: str | None = None
) -> str:
    """A hub-ready README: what the adapter is, how to load it, how it was made, what not to expect.

    Args:
        recipe: How it was trained.
        record: ``mogu.json`` of the adapter.
        summary: ``summary.json`` of its run, for the figures; ``None``: nothing was measured.
        place: Hub id under which the adapter will be found; ``None``: a folder.
    """
    model = public_name(record["model"])
    where = f"snapshot_download({place!r})" if place else '"PATH/TO/THIS/FOLDER"'
    download = "from huggingface_hub import snapshot_download\n\n" if place else ""
    base = EMBEDDED if record["model"] == EMBEDDED else model
    return f"""---
{yaml.safe_dump(_metadata(record["model"], summary), sort_keys=False, allow_unicode=True)}---

# MoGU adapter for {model}

Routes the first {recipe.adapter.routed_tokens} new tokens of every answer between a glad and an unwilling responder
(MoGU, NeurIPS 2024), so that the model refuses malicious instructions and still answers benign ones.

```python
{download}import mogu

model, tokenizer = mogu.load({base!r}, adapter={where})
```

## Figures

{_figures(summary)}

## How it was made

{_facts(record)}

Limits: a refusal by rule is not the absence of harm, and attacks that this adapter was not tested against exist.
Measure it on your own prompts: `mogu evaluate --model {base} --adapter FOLDER --suite FILE.jsonl --out DIR`.
The licence of the base model applies to the two together.
"""


def _metadata(model: str, summary: dict[str, Any] | None) -> dict[str, Any]:
    """The front matter, as https://huggingface.co/docs/hub/model-cards describes it."""
    found: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    if (name := hub_id(model)) is not None:
        found |= {"base_model": name, "base_model_relation": "adapter"}
    if model == EMBEDDED:
        found["license"] = "apache-2.0"  # as its base; of others we do not know it
    found["tags"] = ["mogu", "safety", "refusal", "routing"]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": suite["name"].replace(" ", "-"), "name": suite["name"]},
            "metrics": [
                {
                    "type": "refusal-rate",
                    "name": "share of prompts refused",
                    "value": round(suite["systems"]["mogu"]["rates"]["refusal"]["rate"], 4),
                }
            ],
        }
        for suite in _measured(summary)
    ]
    if results:
        found["model-index"] = [{"name": f"MoGU on {public_name(model)}", "results": results}]
    return found


def _measured(summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [suite for suite in (summary or {}).get("suites", []) if "mogu" in suite["systems"]]


def _figures(summary: dict[str, Any] | None) -> str:
    suites = _measured(summary)
    if not suites:
        return "Nothing was measured when this was written."
    lines = ["| prompts | n | system | refused | complied | degenerate |", "|---|---:|---|---:|---:|---:|"]
    for suite in suites:
        for system, name in (("none", "base"), ("mogu", "with this adapter")):
            if system in suite["systems"]:
                rates = suite["systems"][system]["rates"]
                shares = [_share(rates[label]) for label in ("refusal", "complied", "degenerate")]
                lines.append(f"| {suite['name']} | {suite['n']} | {name} | {' | '.join(shares)} |")
    return "\n".join([*lines, "", "Greedy answers, labelled by rules, with 95% Wilson intervals."])


def _share(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.0%} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def _facts(record: dict[str, Any]) -> str:
    """A table of what the record knows; an imported adapter's knows little."""
    known = {
        "recipe": f"{record['recipe']} (beside this file as `recipe.yaml`)" if "recipe" in record else None,
        "routed layers": _layers(record.get("layers")),
        "LoRA on the backbone, while routed": ", ".join(record.get("backbone", ())),
        "shift of the router logits": f"{record['shift']:+g}" if "shift" in record else None,
        "LoRA merged into the base first": record.get("base_lora"),
        "training data": f"{record['rows']} rows, hash {record['data']}" if "rows" in record else None,
        "seed": record.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
    }
    lines = [f"| {name} | {value} |" for name, value in known.items() if value not in (None, "")]
    return "\n".join(["| | |", "|---|---|", *lines])


def _layers(layers: list[int] | None) -> str | None:
    if not layers:
        return None
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]} ({len(layers)})"
    return f"{', '.join(map(str, layers))} ({len(layers)})"
