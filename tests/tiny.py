"""Tiny random models of many architectures, adapters with strong random weights on them, and a tiny tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mogu import MoguConfig
from mogu.adapter.backbone import MoguLora
from mogu.adapter.model import mogu_layers

VOCABULARY = 97
LAYERS = 3

ARCHITECTURES = (
    "llama falcon gpt_neox qwen2 qwen3 gemma2 gemma3_text phi mistral gpt2".split()  # noqa: SIM905
)
"""The ten on which everything is tried."""

_LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("llama", {"num_key_value_heads": 4}),
    "Vicuna": ("llama", {"num_key_value_heads": 4}),
    "Llama 3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "Llama 3.1, 3.3": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "Llama 3.2": ("llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "SmolLM2": ("llama", {"tie_word_embeddings": True}),
    "SmolLM3": ("smollm3", {"tie_word_embeddings": True, "no_rope_layer_interval": 4}),
    "Qwen 2.5": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen 3": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen 3 MoE": ("qwen3_moe", {}),
    "Mistral 7B": ("mistral", {}),
    "Mistral Nemo": ("mistral", {"head_dim": 16, "sliding_window": None}),
    "Ministral": ("ministral", {}),
    "Mixtral": ("mixtral", {}),
    "Gemma 2": ("gemma2", {"tie_word_embeddings": True}),
    "Gemma 3 1B": ("gemma3_text", {"tie_word_embeddings": True}),
    "Gemma 3 4B": ("gemma3", {}),
    "Phi 2": ("phi", {}),
    "Phi 3, Phi 4": ("phi3", {}),
    "Falcon 7B": ("falcon", {}),
    "Falcon 40B": ("falcon", {"multi_query": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
}
"""Chat model families that people use: the type of each, and what its configuration does differently."""

_SPECIAL: dict[str, dict[str, Any]] = {
    "falcon": {"multi_query": True, "parallel_attn": True, "alibi": False},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "sliding_window_pattern": 2},
    "mistral": {"sliding_window": 6},
    "ministral": {"head_dim": 16, "sliding_window": 6},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "mixtral": {"num_local_experts": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gptj": {"rotary_dim": 4},
}


def config(model_type: str, **changes: Any) -> Any:
    """Configuration of a model with three layers of width 32."""
    if model_type == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return AutoConfig.for_model(
            "gemma3",
            text_config=config("gemma3_text", **changes).to_dict(),
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        )
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,  # far from zero, so that greedy answers vary
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(model_type, **{**common, **_SPECIAL.get(model_type, {}), **changes})


def base(model_type: str, **changes: Any) -> PreTrainedModel:
    """The same random model at every call with the same arguments."""
    torch.manual_seed(7)
    if model_type == "gemma3":
        from transformers import Gemma3ForConditionalGeneration

        return Gemma3ForConditionalGeneration(config(model_type, **changes)).eval()
    model = AutoModelForCausalLM.from_config(config(model_type, **changes)).eval()
    model.generation_config.pad_token_id = 0
    return model


def adapted(
    model: PreTrainedModel | str, *, name: str = "default", strength: float = 1.0, **settings: Any
) -> PeftModel:
    """``model`` with an adapter that changes its answers a lot."""
    model = base(model) if isinstance(model, str) else model
    settings = {"r": 4, "router_width": 8, "lora_dropout": 0.0, **settings}
    peft_model = get_peft_model(model, MoguConfig(**settings), adapter_name=name)
    randomise(peft_model, name, strength)
    return peft_model.eval()


def randomise(model: PeftModel, name: str = "default", strength: float = 1.0, seed: int = 11) -> None:
    """Strong responders, and routers whose weights differ from token to token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in mogu_layers(model):
            for part in layer.adapter_layer_names:
                entry = getattr(layer, part)[name]
                for parameter in [entry] if isinstance(entry, torch.nn.Parameter) else entry.parameters():
                    noise = torch.randn(parameter.shape, generator=generator) * 0.5 * strength
                    parameter.copy_(noise)
        for lora in (module for module in model.modules() if isinstance(module, MoguLora)):
            for half in (lora.mogu_backbone_A[name], lora.mogu_backbone_B[name]):
                half.copy_(torch.randn(half.shape, generator=generator) * 0.3 * strength)


def prompts(*lengths: int, seed: int = 3) -> list[torch.Tensor]:
    """One random prompt (1, length) for each length, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (1, n), generator=generator) for n in lengths]


def left_padded(rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows (1, length) as one batch, padded on the left with token 0."""
    width = max(row.shape[1] for row in rows)
    pads = [width - row.shape[1] for row in rows]
    ids = [torch.nn.functional.pad(row, (pad, 0)) for row, pad in zip(rows, pads, strict=True)]
    mask = [torch.tensor([[0] * pad + [1] * (width - pad)]) for pad in pads]
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(mask)}


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One word per token: ``<pad> <s> </s> abcdef w4 w5 …``; ``abcdef`` because transformers' stop strings need it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["<pad>", "<s>", "</s>", "abcdef", *(f"w{n}" for n in range(4, VOCABULARY))]
    core = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    made.chat_template = chat_template
    return made
