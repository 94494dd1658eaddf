"""The reference vectors: numbers computed once with the authors' published code (see reference/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mogu.adapter.published import import_published

FOLDER = Path(__file__).parent / "reference"
NAMES = ("llama", "falcon")


def reference_base(name: str) -> PreTrainedModel:
    config = AutoConfig.for_model(name, **json.loads((FOLDER / name / "config.json").read_text()))
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    report = base.load_state_dict(load_file(FOLDER / name / "base.safetensors"), strict=False)
    assert set(report.missing_keys) <= {"lm_head.weight"}  # tied to the embeddings in Falcon
    assert not report.unexpected_keys
    return base


def reference_model(name: str) -> PeftModel:
    folder = FOLDER / name
    return import_published(
        reference_base(name),
        folder / "resp_glad",
        folder / "resp_unwill",
        folder / "router_layer" / "router.pth",
        base_name=f"reference-{name}",
    )


def expected_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / name / "expected.safetensors")
