"""mogu: route an open chat LLM between a glad and an unwilling responder (MoGU, NeurIPS 2024).

    import mogu

    model, tokenizer = mogu.load("smollm2", adapter="runs/demo/adapter")

``import mogu`` is quick: torch, transformers and peft load when they are first needed, and MoGU registers itself as a
peft method the moment that peft is there, so ``peft.PeftModel.from_pretrained(base, DIR)`` works too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mogu._peft_hook import register_with_peft

if TYPE_CHECKING:
    from mogu.adapter.config import MoguConfig
    from mogu.adapter.store import load
    from mogu.decode.inspect import risk

__version__ = "0.1.0"
__all__ = ["MoguConfig", "__version__", "load", "risk"]

_LAZY = {"MoguConfig": "mogu.adapter.config", "load": "mogu.adapter.store", "risk": "mogu.decode.inspect"}

register_with_peft()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        importlib.import_module("mogu.decode")
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mogu' has no attribute {name!r}")
