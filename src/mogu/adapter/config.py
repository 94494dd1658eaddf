"""Configuration of a MoGU adapter, as a peft config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import peft_types

from mogu.adapter.risk import check_calibration
from mogu.errors import ConfigError

Stage = Literal["glad", "unwill", "routed"]
RouterForm = Literal["factored", "folded"]
Handover = Literal["fixed", "risk", "all"]
BackboneLayers = Literal["routed", "upper"]
Think = Literal["ignore", "through"]

STAGES: tuple[str, ...] = get_args(Stage)
ROUTER_FORMS: tuple[str, ...] = get_args(RouterForm)
HANDOVERS: tuple[str, ...] = get_args(Handover)
BACKBONE_LAYERS: tuple[str, ...] = get_args(BackboneLayers)
THINK: tuple[str, ...] = get_args(Think)

TARGET_MODULES: dict[str, list[str]] = {
    **{
        model_type: ["self_attn.o_proj"]
        for model_type in (
            *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
            *("gemma3_text", "gemma3", "phi3", "olmo", "olmo2", "stablelm", "starcoder2", "cohere", "cohere2"),
            *("granite", "smollm3", "ministral", "ministral3", "olmo3", "olmoe", "phimoe", "glm", "glm4", "gpt_oss"),
            *("granitemoe", "exaone4", "seed_oss", "arcee", "apertus", "ernie4_5", "nemotron", "helium"),
        )
    },
    "falcon": ["self_attention.dense"],
    "bloom": ["self_attention.dense"],
    "gpt_neox": ["attention.dense"],
    "phi": ["self_attn.dense"],
    "opt": ["self_attn.out_proj"],
    "gptj": ["attn.out_proj"],
    "mpt": ["attn.out_proj"],
    "gpt2": ["attn.c_proj"],
}
"""Attention output projection by transformers ``model_type``. peft has no such table."""

_FUSED = ("self_attn.qkv_proj", "self_attention.query_key_value", "attention.query_key_value", "attn.c_attn")
_UP = ("mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1", "fc1", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc_in")
BACKBONE_MODULES: dict[str, tuple[str, ...]] = {
    **{name: (f"self_attn.{name}_proj", f"attn.{name}_proj", *_FUSED, "attn.Wqkv") for name in "qkv"},
    "o": (),  # the attention output projection itself
    "up": (*_UP, "ffn.up_proj"),
    "gate": ("mlp.gate_proj", "mlp.gate_up_proj"),
    "down": ("mlp.down_proj", "mlp.fc2", "fc2", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "ffn.down_proj"),
}
"""What a backbone module may be called inside a decoder layer; several may be one projection, adapted as one."""


def _add_peft_type() -> None:
    """Give peft's closed ``PeftType`` enum the member ``MOGU``.

    ``register_peft_method`` demands it, and a plain string instead breaks wherever peft reads ``.value``.
    """
    if "MOGU" in peft_types.PeftType.__members__:
        return
    member = str.__new__(peft_types.PeftType, "MOGU")
    member._name_, member._value_ = "MOGU", "MOGU"
    peft_types.PeftType._member_map_["MOGU"] = member
    peft_types.PeftType._member_names_.append("MOGU")
    peft_types.PeftType._value2member_map_["MOGU"] = member
    type.__setattr__(peft_types.PeftType, "MOGU", member)


_add_peft_type()


@dataclass
class MoguConfig(PeftConfig):
    """One adapter: both responders and the routers (MoGU paper, section 3).

    Raises:
        ConfigError: A value out of range, or fields that contradict each other.
    """

    r: int = field(default=8, metadata={"help": "LoRA rank of the responders."})
    lora_alpha: float = field(default=16, metadata={"help": "LoRA scale is lora_alpha / r."})
    lora_dropout: float = field(
        default=0.05, metadata={"help": "Dropout on the responders' input while training them."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Attention output projections; None looks the architecture up."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Decoder layers with responders and routers; None is all of them (v1)."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list, if unusual."}
    )
    router: RouterForm = field(
        default="factored",
        metadata={"help": "'factored' has the published three matrices, 'folded' their product, a logistic probe."},
    )
    router_width: int = field(default=512, metadata={"help": "Inner width of a factored router."})
    routed_tokens: int = field(
        default=5, metadata={"help": "m: new tokens decoded with routing before the plain base."}
    )
    think: Think = field(
        default="ignore",
        metadata={"help": "What m counts: all new tokens ('ignore'), or those after a thought ('through')."},
    )
    think_tokens: list[list[int]] | None = field(
        default=None, metadata={"help": "Token ids of what begins a thought, and of what ends it."}
    )
    think_limit: int = field(
        default=256, metadata={"help": "New tokens after which the base takes over though the thought goes on."}
    )
    shift: float = field(
        default=0.0, metadata={"help": "Added to the unwill router's logit and taken from the glad router's."}
    )
    handover: Handover = field(
        default="fixed",
        metadata={"help": "When the plain base takes over: after m tokens, when the 'risk' is low, or never ('all')."},
    )
    risk_threshold: float = field(
        default=0.5, metadata={"help": "Of the hand-over by risk: routing goes on while the risk is above it."}
    )
    risk: dict[str, Any] | None = field(
        default=None, metadata={"help": "Calibration of the risk (mogu.adapter.risk); None where it was not fitted."}
    )
    backbone_modules: list[str] | None = field(
        default=None,
        metadata={"help": "LoRA on these while routed (v2): of q, k, v, o, up, gate, down; None is no backbone LoRA."},
    )
    backbone_layers: BackboneLayers = field(
        default="routed",
        metadata={"help": "Where: in the 'routed' layers, or in all from the first routed one up ('upper')."},
    )
    backbone_rank: int = field(default=8, metadata={"help": "Its rank."})
    backbone_alpha: float = field(default=16, metadata={"help": "Its scale is backbone_alpha / backbone_rank."})
    stage: Stage = field(default="routed", metadata={"help": "Which part answers and trains: glad, unwill or routed."})
    base_model: str | None = field(default=None, metadata={"help": "What the user calls the base: a name, id or path."})
    base_lora: str | None = field(
        default=None, metadata={"help": "Hash of the LoRA that was merged into the base first (mogu.finetuned)."}
    )
    bias: str = field(default="none", metadata={"help": "Only 'none': biases of the base are never trained."})
    task_type: str | None = field(
        default="CAUSAL_LM",
        # Of a model without a task peft calls the base's own generate, past the tuner: every token would be routed.
        metadata={"help": "Only CAUSAL_LM."},
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "As in every peft config."})

    def __post_init__(self) -> None:
        if self.task_type is None:
            self.task_type = "CAUSAL_LM"
        super().__post_init__()
        self.peft_type = peft_types.PeftType("MOGU")
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                "layers_to_transform is ignored when target_modules is a regex; give target_modules as a list"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern needs layers_to_transform")
        if self.bias != "none":
            raise ConfigError(
                f"bias must be 'none', not {self.bias!r}: disabling the adapter must restore the base exactly"
            )
        if self.task_type != "CAUSAL_LM":
            raise ConfigError(f"task_type must be CAUSAL_LM, not {self.task_type!r}: MoGU decodes answers")
        if self.stage not in STAGES:
            raise ConfigError(f"unknown stage {self.stage!r}; choose from {', '.join(STAGES)}")
        if self.router not in ROUTER_FORMS:
            raise ConfigError(f"unknown router form {self.router!r}; choose from {', '.join(ROUTER_FORMS)}")
        if self.handover not in HANDOVERS:
            raise ConfigError(f"unknown hand-over {self.handover!r}; choose from {', '.join(HANDOVERS)}")
        if self.backbone_layers not in BACKBONE_LAYERS:
            raise ConfigError(
                f"unknown backbone_layers {self.backbone_layers!r}; choose from {', '.join(BACKBONE_LAYERS)}"
            )
        self.backbone_modules = list(self.backbone_modules) if self.backbone_modules else None
        if strange := sorted(set(self.backbone_modules or ()) - set(BACKBONE_MODULES)):
            raise ConfigError(f"unknown backbone module {strange[0]!r}; choose from {', '.join(BACKBONE_MODULES)}")
        if self.think not in THINK:
            raise ConfigError(f"unknown think {self.think!r}; choose from {', '.join(THINK)}")
        marks = self.think_tokens or []
        if self.think == "through" and not (len(marks) == 2 and all(marks)):
            raise ConfigError("think='through' needs think_tokens: the ids that begin a thought, and those that end it")
        if not 0 <= self.risk_threshold <= 1:
            raise ConfigError(f"risk_threshold must be in [0, 1], not {self.risk_threshold!r}")
        if self.risk is not None:
            check_calibration(self.risk)
        for name, low in (("r", 1), ("router_width", 1), ("backbone_rank", 1), ("routed_tokens", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise ConfigError(f"{name} must be an integer of at least {low}, not {getattr(self, name)!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must be in [0, 1), not {self.lora_dropout!r}")

    @property
    def scaling(self) -> float:
        """LoRA scale s = lora_alpha / r."""
        return self.lora_alpha / self.r

    def to_dict(self) -> dict[str, Any]:
        """As saved: sets become sorted lists, so that two saves of one adapter are equal byte for byte."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}
