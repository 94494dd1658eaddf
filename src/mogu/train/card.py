"""The model card that lies beside a trained adapter."""

from __future__ import annotations

from typing import Any

from mogu.recipe import Recipe


def model_card(recipe: Recipe, record: dict[str, Any]) -> str:
    """A hub-ready README: what the adapter is, how to load it, how it was made, what not to expect."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""---
library_name: peft
base_model: {record["model"]}
license: apache-2.0
tags: [mogu, safety, refusal, routing]
---

# MoGU adapter for {record["model"]}

Routes the first {recipe.adapter.routed_tokens} new tokens of every answer between a glad and an unwilling responder
(MoGU, NeurIPS 2024), so that the model refuses malicious instructions and still answers benign ones.

```python
import mogu

model, tokenizer = mogu.load({record["model"]!r}, adapter="PATH/TO/THIS/FOLDER")
```

| | |
|---|---|
| recipe | {record["recipe"]} (beside this file as `recipe.yaml`) |
| routed layers | {record["layers"][0]}-{record["layers"][-1]} ({len(record["layers"])}) |
| shift of the router logits | {record["shift"]:+g} |
| training data | {record["rows"]} rows, hash {record["data"]} |
| seed | {record["seed"]} |
| versions | {versions} |

Limits: a refusal by rule is not the absence of harm, and attacks that this adapter was not tested against exist.
Measure it on your own prompts: `mogu evaluate --model {record["model"]} --adapter FOLDER --suite FILE.jsonl --out DIR`.
"""
