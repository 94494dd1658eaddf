"""The two stages of published training as ``transformers.Trainer`` with our losses."""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mogu import processes
from mogu.adapter.model import plain_base, recorded_weights
from mogu.data.rows import Row
from mogu.errors import DivergedError, TrainingError
from mogu.recipe import BackboneRecipe, ComputeRecipe, ResponderRecipe, RouterRecipe
from mogu.train.losses import divergence, log_ratio_loss, over_rows, ratio_loss, router_penalty
from mogu.train.lower import LowerStates
from mogu.train.packing import Predicted, lines_with, of_texts, pair_cross_entropy, predicted
from mogu.train.shares import WEIGHTS, Share, StepSampler, loader_of_share, share_of

_BACKBONE = "mogu_backbone"
LOG_RATIO_FLOOR = 0.05
LOG_RATIO_CAP = 4.0
"""Bounds of the log-ratio loss in nats per token; beyond the cap an answer is already out of reach for decoding."""


class AdapterTrainer(Trainer):
    """What all of our trainers share: saves only the adapter, and averages over accumulated batches itself.

    Batch size and accumulation in ``args`` are those of one process. Several share every step, so that they train as
    one would (:mod:`mogu.train.shares`).
    """

    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._share = _divided(kwargs["args"])
        super().__init__(*args, **kwargs)
        if processes.count() > 1:
            # What no gradient is averaged of: not sent around at the start of each stage, and perhaps sharded.
            frozen = [name for name, tensor in _tensors(self.model) if not tensor.requires_grad]
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, frozen)
            self.add_callback(_OwnDraws())
        # peft's forward takes **kwargs, from which Trainer concludes that the loss is already normalised.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)  # which prints every log entry when there is no progress bar
        self.accepts = forward_parameters(self.model)
        """Arguments of the base's forward."""
        self.lower: LowerStates | None = None
        """Hidden states below the first routed layer, if they are kept."""
        if self.args.gradient_checkpointing:
            self.add_callback(_NoGraphBelow())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which leaves autocast and gradient checkpointing switched on; here the model gets them off."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            if self.args.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        lengths = getattr(self.train_dataset if train_dataset is None else train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return StepSampler(lengths, together, self.args.seed)

    def get_train_dataloader(self) -> Any:
        """As Trainer's; of several processes, the batches that fall to this one."""
        if self._share.count == 1:
            return super().get_train_dataloader()
        return loader_of_share(self.train_dataset, self.data_collator, self._share, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            raise DivergedError(  # a finite loss may have a gradient that is not
                f"the weights are no longer finite at step {self.state.global_step}; lower the learning rate"
                " (earlier checkpoints are kept)"
            )
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # save_embedding_layers=False: "auto" asks the hub for the base's config at every save.
        self.model.save_pretrained(folder, save_embedding_layers=False)

    def skipping(self, inputs: dict[str, torch.Tensor]) -> AbstractContextManager[None]:
        """Around the forward of ``inputs``: computes no lower layers that were computed before."""
        return nullcontext() if self.lower is None else self.lower(inputs)

    def finite(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` as it is.

        Raises:
            DivergedError: It is infinite or not a number.
        """
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step}; lower the learning rate"
                " (earlier checkpoints are kept)"
            )
        return loss


def forward_parameters(model: Any) -> frozenset[str]:
    """Names of the parameters of the forward of a peft model's base."""
    return frozenset(inspect.signature(model.get_base_model().forward).parameters)


def _divided(args: TrainingArguments) -> Share:
    """Make the settings of one process those of this one among several; returns what falls to it."""
    share = share_of(args.per_device_train_batch_size, args.gradient_accumulation_steps)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = share.part, share.parts
    if args.n_gpu > 1:  # or one process would copy the model to all devices, and take as many more rows at a time
        args._n_gpu = 1
    return share


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


class _OwnDraws(TrainerCallback):
    """Lets each process draw its own dropout: Trainer seeds all of them alike, and their rows differ."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the state of an interrupted run is restored."""
        torch.manual_seed(args.seed + processes.rank())


class _NoGraphBelow(TrainerCallback):
    """Lets autograd end at the lowest layer that is trained.

    With gradient checkpointing, transformers makes the embeddings' output require gradients, for the reentrant kind,
    and so every layer below keep its graph.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After Trainer has switched it on."""
        model.disable_input_require_grads()


class ResponderTrainer(AdapterTrainer):
    """Trains the responder whose stage is active, on batches of a :class:`mogu.train.batches.PairCollator`."""

    def __init__(self, *args: Any, recipe: ResponderRecipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The ratio (or bounded log ratio) of the wanted answers' cross-entropy to the unwanted ones'."""
        with self.skipping(inputs):
            wanted, unwanted = pair_cross_entropy(model, inputs, self.accepts)
        if self.recipe.loss == "ratio":
            loss = ratio_loss(wanted, unwanted, inputs.get(WEIGHTS))
        else:
            loss = log_ratio_loss(wanted, unwanted, LOG_RATIO_FLOOR, LOG_RATIO_CAP, inputs.get(WEIGHTS))
        return (self.finite(loss), None) if return_outputs else self.finite(loss)


class RouterTrainer(AdapterTrainer):
    """Trains the routers end to end, and the backbone LoRA with them, on batches of a
    :class:`mogu.train.batches.RouterCollator`.
    """

    def __init__(self, *args: Any, recipe: RouterRecipe, backbone: BackboneRecipe | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.backbone = backbone if backbone is not None and backbone.modules else None

    @property
    def anchor_weight(self) -> float:
        """β of the KL from the base; above 0, the plain base reads benign rows beside the routed model."""
        return 0.0 if self.backbone is None else self.backbone.anchor_weight

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the backbone LoRA learns at a rate of its own."""
        if self.optimizer is None and self.backbone is not None:
            model = args[0] if args else kwargs.get("model") or self.model
            made, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for name, p in parameters if (_BACKBONE in name) == backbone], "lr": rate}
                for backbone, rate in ((False, self.args.learning_rate), (True, self.backbone.learning_rate))
            ]
            self.optimizer = made(groups, **{**settings, "weight_decay": self.args.weight_decay})
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Cross-entropy of the wanted answer plus λ times the router penalty over all real tokens.

        With a backbone LoRA, plus β times KL(base ‖ routed) on the answers to benign rows.
        """
        with recorded_weights(model) as weights, self.skipping(inputs):
            said = predicted(model, inputs, self.accepts)
            (unwill, mask), (glad, _) = (of_texts(each.float(), inputs) for each in weights())
        weights_of_rows = inputs.get(WEIGHTS)
        penalty = router_penalty(unwill, glad, inputs["malicious"], mask, self.recipe.penalty, weights_of_rows)
        loss = over_rows(said.cross_entropy(), weights_of_rows) + self.recipe.penalty_weight * penalty
        if self.anchor_weight > 0:
            loss = loss + self.anchor_weight * self._from_base(model, inputs, said)
        return (self.finite(loss), None) if return_outputs else self.finite(loss)

    def _from_base(self, model: nn.Module, inputs: dict[str, torch.Tensor], said: Predicted) -> torch.Tensor:
        """KL(base ‖ routed) of the benign rows, (); malicious ones count as 0."""
        benign = ~inputs["malicious"]
        chosen = benign.nonzero()[:, 0]
        if not len(chosen):
            if not processes.sharded():
                return said.logits.new_zeros((), dtype=torch.float32)
            chosen = chosen.new_zeros(1)  # all processes gather a layer's weights together
        part, held = lines_with(inputs, chosen)
        plain = self.accelerator.unwrap_model(model)
        with torch.no_grad(), plain_base(plain), self.skipping(part):
            base = predicted(plain, part, self.accepts)
        mine = held[said.answers]
        found = divergence(base.logits, said.logits[mine], said.answers[mine], said.count)
        return over_rows(found * benign, inputs.get(WEIGHTS))


class JsonlLog(TrainerCallback):
    """Appends Trainer's log entries to a JSONL file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line per entry, with stage, step and wall-clock time (seconds since the epoch)."""
        if state.is_world_process_zero and logs:
            entry = {"stage": self.stage, "step": state.global_step, "time": round(time.time(), 1), **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class StepProgress(TrainerCallback):
    """Reports (steps done, steps in all)."""

    def __init__(self, report: Any) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After every optimizer step."""
        self.report(state.global_step, state.max_steps)


def training_arguments(
    folder: Path,
    *,
    learning_rate: float,
    batch_size: int,
    accumulation: int,
    epochs: float,
    max_steps: int,
    save_steps: int,
    seed: int,
    quiet: bool,
    use_cpu: bool,
    compute: ComputeRecipe | None = None,
) -> TrainingArguments:
    """Trainer's settings for one stage: AdamW at a constant rate, step checkpoints, no evaluation of its own.

    Raises:
        TrainingError: The machine cannot do what ``compute`` asks for.
    """
    compute = compute or ComputeRecipe()
    _check_machine(compute, use_cpu)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        logging_steps=5,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=save_steps,
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=quiet,
        use_cpu=use_cpu,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        bf16=compute.bf16,
        torch_compile=compute.torch_compile,
        gradient_checkpointing=compute.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if compute.gradient_checkpointing else None,
    )


def _check_machine(compute: ComputeRecipe, use_cpu: bool) -> None:
    if compute.bf16 and not use_cpu and not torch.cuda.is_bf16_supported():
        raise TrainingError("this GPU cannot compute in bfloat16; set compute.bf16 to false in the recipe")
    if compute.torch_compile and use_cpu and not any(map(shutil.which, ("g++", "clang++"))):
        raise TrainingError(
            "compute.torch_compile needs a C++ compiler on a CPU; install g++, or set it to false in the recipe"
        )


def tensorboard(folder: Path) -> list[TrainerCallback]:
    """A callback that writes event files to ``folder``, if tensorboard is installed.

    ``report_to`` would put them beside the checkpoints, which are removed at the end of a stage.
    """
    from transformers.integrations import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(folder)))]


class RowDataset(torch.utils.data.Dataset[Row]):
    """Rows as a map-style dataset."""

    def __init__(self, rows: Sequence[Row], length: Callable[[Row], int] | None = None) -> None:
        """With ``length`` (columns that a row takes) trainers sort the rows of each step by it."""
        self.rows = list(rows)
        self.lengths = None if length is None else [length(row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]
