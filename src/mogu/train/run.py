"""The three stages, one after the other: glad responder, unwilling responder, routers; then the balance between them.

Every finished stage is kept under ``OUT/stages`` with a hash of all that it depends on; a run that is started again
goes on after the last finished stage, and inside a stage from Trainer's last checkpoint. Runs that differ in few
settings can share one folder of stages (``Run.shared``), where what two of them have in common is trained once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from mogu import processes
from mogu.adapter import store
from mogu.adapter.config import Stage
from mogu.adapter.model import active_config, fold_routers, mogu_layers, set_stage
from mogu.data.rows import Row, fingerprint, instruction_of, write_text
from mogu.finetuned import merged_lora
from mogu.offload import is_offloaded
from mogu.progress import Progress
from mogu.quantization import check_trainable, quantization_of
from mogu.recipe import RECIPE_FILE, ComputeRecipe, Recipe, ResponderRecipe
from mogu.train.balance import balance, calibrate
from mogu.train.batches import Encoder, PairCollator, RouterCollator
from mogu.train.card import model_card
from mogu.train.check import check_data
from mogu.train.checkpoints import keep_whole, save_tensors, step_of, storage
from mogu.train.drift import Drift
from mogu.train.fit import fit_routers
from mogu.train.layers import routed_by, sampled
from mogu.train.lower import Forward, Numbered, lower_states
from mogu.train.packing import (
    PackedCollator,
    PackedRouterCollator,
    packed_if_alike,
    pair_cross_entropy,
    predicted,
)
from mogu.train.selection import (
    Checkpoint,
    Respondent,
    RouterCheckpoint,
    best_checkpoint,
    best_routers,
    held_out,
    left_out,
    responder_rows,
)
from mogu.train.shape import adapter_config
from mogu.train.sharding import shard_base
from mogu.train.shares import share_of
from mogu.train.stages import Stages
from mogu.train.track import reporters, trackers
from mogu.train.trainers import (
    JsonlLog,
    ResponderTrainer,
    RouterTrainer,
    RowDataset,
    StepProgress,
    forward_parameters,
    training_arguments,
)
from mogu.train.watch import CheckpointWatch, RouterWatch
from mogu.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG_FILE = "training.jsonl"
RESPONDERS: tuple[tuple[Stage, str], ...] = (
    ("glad", "glad responder: learns always to help"),
    ("unwill", "unwilling responder: learns always to refuse"),
)


@dataclass
class Trained:
    """What training leaves behind."""

    model: PeftModel
    """Ready for inference, routers folded, shift set."""
    adapter: Path
    selection: dict[str, list[dict[str, Any]]]
    """Checkpoints of each responder and trials of the balance, with the chosen ones marked."""


def train(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    out: str | Path,
    *,
    model_name: str,
    batch_size: int = 32,
    track: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a MoGU adapter and write it to ``OUT/adapter``.

    Several processes (:mod:`mogu.processes`) train as one would; ``out`` must be a folder that all of them see.

    Args:
        base: The base model; it is wrapped in place.
        tokenizer: Its tokenizer.
        rows: A built data set, training and validation splits with both labels.
        recipe: Every number of the run.
        out: Run folder.
        model_name: What the user calls the base.
        batch_size: Prompts at a time while validating.
        track: Where losses are shown besides ``OUT/training.jsonl`` (see :func:`mogu.train.track.trackers`);
            ``None`` is tensorboard where it is installed.
        progress: Told what happens.

    Raises:
        TrainingError: A class is missing in the data, a row is longer than the base's context, no gradients pass
            through a quantized base, the loss is no longer finite, the disk is full, or a step cannot be divided among
            the processes.
    """
    check_data(base.config, tokenizer, rows, recipe)
    for part in (recipe.glad, recipe.unwill, recipe.routers):
        share_of(part.batch_size, part.accumulation)
    with storage(Path(out)):
        run = Run(base, tokenizer, rows, recipe, Path(out), model_name, batch_size, progress or Progress())
        run.track = trackers(None) if track is None else track
        return run.all_stages()


def streamed(compute: ComputeRecipe) -> ComputeRecipe:
    """How a base is trained whose layers wait elsewhere: each layer is fetched again for its backward."""
    return dataclasses.replace(compute, gradient_checkpointing=True, torch_compile=False)


class Run:
    """One training run; the arguments of :func:`train` and what they lead to."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        recipe: Recipe,
        out: Path,
        model_name: str,
        batch_size: int,
        progress: Progress,
        probed: Path | None = None,
    ) -> None:
        """As :func:`train`; ``probed`` is where the table of a layer probe is kept, if not in ``OUT/stages``."""
        check_trainable(base)
        if is_offloaded(base):  # or the graph of a step would keep the weights of all layers
            recipe = dataclasses.replace(recipe, compute=streamed(recipe.compute))
        self.rows, self.recipe, self.out = rows, recipe, out
        self.model_name, self.progress = model_name, progress
        self.track: tuple[str, ...] = ()
        self.tokenizer = tokenizer
        self.train_rows = [row for row in rows if row.split == "train"]
        self.done = ""
        """Hash of all that the last finished stage depends on."""
        self.data_hash = _hash([asdict(row) for row in rows])
        self.precision = [str(base.dtype), quantization_of(base) or False]
        self.lora = merged_lora(base)
        """Hash of what was merged into the base before."""
        if self.lora is not None:
            self.precision.append(self.lora)
        self.batch_size = batch_size
        self.layers = self._layers(base, out / "stages" if probed is None else probed)
        """Indices of the routed layers; ``None`` for all."""
        config = adapter_config(recipe, self.layers, tokenizer, model_name, self.lora)
        set_seed(recipe.seed)
        self.model = get_peft_model(base, config, autocast_adapter_dtype=True)
        if processes.sharded():
            shard_base(self.model)
        self.stages = Stages(out / "stages", self.model)
        self.ask = Respondent(self.model, tokenizer, recipe.template, batch_size)

    def _layers(self, base: PreTrainedModel, folder: Path) -> list[int] | None:
        inputs = [self.data_hash, self.model_name, self.precision]
        settings: dict[str, Any] = {"inputs": inputs, "batch_size": self.batch_size, "progress": self.progress}
        return routed_by(self.recipe, base, self.tokenizer, self.rows, folder, **settings)

    def all_stages(self) -> Trained:
        """Train what is not finished, stage after stage, and save the adapter."""
        processes.from_main(lambda: write_text(self.out / RECIPE_FILE, self.recipe.to_yaml()))
        selection = dict(self.learn())
        balanced = _hash([self.done, asdict(self.recipe.balance)])
        parts = (self.ask, self.rows, self.recipe.balance, self.stages, balanced, self.progress)
        selection["balance"] = [asdict(b) for b in balance(*parts)]
        calibrate(*parts)
        processes.from_main(self.stages.clear_leftovers)
        return Trained(self.model, self._save(selection), selection)

    def learn(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Train what is not finished: after each of glad, unwill and routers, its name and its checkpoints."""
        self.stages.folder.mkdir(parents=True, exist_ok=True)
        for stage, text in RESPONDERS:
            recipe: ResponderRecipe = getattr(self.recipe, stage)
            done = _hash([self.done, asdict(self.recipe.adapter), asdict(recipe), self._inputs()])
            checks = self.stages.finished(stage, done)
            if checks is None:
                self.progress.begin(stage, text)
                checks = [asdict(c) for c in self._responder(stage, recipe, done)]
                chosen = next(c for c in checks if c["chosen"])
                self.progress.end(f"{chosen['on_target']:.0%} on target after {chosen['pairs']} pairs")
            self.done = done
            yield stage, checks
        backbone = [asdict(self.recipe.backbone)] if self.recipe.backbone.modules else []
        done = _hash([self.done, asdict(self.recipe.routers), *backbone])
        routers = self.stages.finished("routers", done)
        if routers is None:
            routers = [asdict(c) for c in self._routers(done)]
            self.stages.finish("routers", done, routers)
            if processes.is_main():
                shutil.rmtree(self.stages.place("routers", done, "work"), ignore_errors=True)
        self.done = done
        yield "routers", routers

    def _inputs(self) -> list[Any]:
        compute = asdict(self.recipe.compute)
        layers = [] if self.recipe.adapter.layers == "range" else [self.layers]
        return [
            self.data_hash,
            self.model_name,
            self.precision,
            self.recipe.template,
            self.recipe.seed,
            compute,
            *layers,
        ]

    # --- responders ---

    def _responder(self, stage: Stage, recipe: ResponderRecipe, inputs: str) -> list[Checkpoint]:
        set_stage(self.model, stage)
        set_seed(self.recipe.seed)
        encode = Encoder(self.tokenizer, self.recipe.template, recipe.answer_tokens)
        pairs = self._pairs("malicious" if stage == "glad" else "benign", recipe.pairs)
        per_step = recipe.batch_size * recipe.accumulation
        steps = -(-len(pairs) // per_step) * recipe.epochs
        if recipe.checkpoint is not None:
            steps = min(steps, max(recipe.checkpoint // per_step, 1))
        every = min(max(recipe.checkpoint_pairs // per_step, 1), steps)
        others = self.stages.tensors_without(stage) if self.stages.shared else {}
        common = self.stages.shared and steps % every == 0  # a longer training saves no other checkpoint
        folder = self.stages.work_folder(stage, self._training(recipe) if common else inputs)
        checks_of, log = responder_rows(self.rows), folder / "checks.jsonl"
        watch = CheckpointWatch(self.ask, stage, checks_of, log, per_step, recipe, self._drift(encode))
        accepts = forward_parameters(self.model)

        def losses(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.cat(pair_cross_entropy(self.model, batch, accepts))

        settings = (encode, stage == "unwill", recipe.begun)
        collate = self._collator(PairCollator(*settings), PackedCollator(*settings), pairs, losses)
        trainer = ResponderTrainer(
            model=self.model,
            recipe=recipe,
            args=self._arguments(folder, recipe, steps, every),
            train_dataset=RowDataset(pairs, collate.length),
            data_collator=collate,
            callbacks=[*self._reporters(stage), watch],
        )
        if steps * per_step > len(pairs):
            self._keep_lower(trainer, pairs, folder, losses)
        self._run_trainer(trainer, folder, watch)
        checks = [check for check in watch.checks if check.pairs <= steps * per_step]
        best = best_checkpoint(checks) if recipe.checkpoint is None else checks[-1]
        self.stages.load_checkpoint(folder / f"checkpoint-{best.pairs // per_step}")
        self.stages.load(others)
        checks = [dataclasses.replace(c, chosen=c is best) for c in checks]
        self.stages.finish(stage, inputs, [asdict(c) for c in checks])
        if processes.is_main() and not self.stages.shared:
            shutil.rmtree(folder)
        return checks

    def _training(self, recipe: ResponderRecipe) -> str:
        """Hash of what a responder's training depends on, whichever checkpoint of it is taken."""
        whole = dataclasses.replace(recipe, checkpoint=None, stop_when_good=False)
        return _hash([asdict(self.recipe.adapter), asdict(whole), self._inputs()])

    def _collator(self, plain: Any, packed: Any, rows: Sequence[Row], losses: Forward) -> Any:
        """``packed`` where the recipe packs and the model computes the same."""
        if not self.recipe.compute.pack:
            return plain
        return packed_if_alike(self.model, plain, packed, rows, losses, forward_parameters(self.model))

    def _drift(self, encode: Encoder) -> Drift:
        """From the base, over the tokens that will be routed."""
        first, accepts = self.recipe.adapter.routed_tokens, forward_parameters(self.model)
        return Drift(self.model, encode, self.train_rows, first=first, accepts=accepts)

    def _keep_lower(self, trainer: Any, rows: Sequence[Row], folder: Path, forward: Forward) -> None:
        """Let rows that come again skip the layers below the first routed one."""
        compute = self.recipe.compute
        if not compute.keep_lower or compute.torch_compile or len({row.id for row in rows}) < len(rows):
            return
        if processes.sharded():  # all processes gather a layer's weights together, so none may skip it alone
            return
        collate = trainer.data_collator
        trainer.lower = lower_states(self.model, collate, rows, folder / f"lower{processes.machine()}.states", forward)
        if trainer.lower is not None:
            trainer.data_collator = Numbered(collate, {row.id: number for number, row in enumerate(rows)})

    def _run_trainer(self, trainer: Any, folder: Path, watch: CheckpointWatch | None) -> None:
        last = processes.from_main(lambda: keep_whole(folder))
        if last is not None:
            over = step_of(last) >= trainer.args.max_steps  # or Trainer would take one more step
            if over or (watch is not None and not watch.knows(step_of(last))):
                self.stages.load_checkpoint(last)
            if (watch is not None and watch.catch_up(step_of(last))) or over:
                return
        trainer.train(resume_from_checkpoint=None if last is None else str(last))

    def _pairs(self, label: str, limit: int | None, without: frozenset[str] = frozenset()) -> list[Row]:
        """Training rows of one label, mixed; a borderline row counts as benign."""
        pool = [row for row in self.train_rows if row.label == label and row.id not in without]
        random.Random(self.recipe.seed).shuffle(pool)
        return pool[:limit]

    def _arguments(self, folder: Path, recipe: Any, steps: int, every: int) -> Any:
        return training_arguments(
            folder,
            learning_rate=recipe.learning_rate,
            batch_size=recipe.batch_size,
            accumulation=recipe.accumulation,
            epochs=recipe.epochs,
            max_steps=steps,
            save_steps=every,
            seed=self.recipe.seed,
            quiet=True,
            use_cpu=self.model.device.type == "cpu",
            compute=self.recipe.compute,
        )

    def _reporters(self, stage: str) -> list[TrainerCallback]:
        return [
            JsonlLog(self.out / LOG_FILE, stage),
            StepProgress(self.progress.update),
            *(reporters(self.track, self.out, stage) if processes.is_main() else ()),
        ]

    # --- routers ---

    def _routers(self, inputs: str) -> list[RouterCheckpoint]:
        recipe = self.recipe.routers
        new = held_out(self.rows, recipe.hold_out, self.recipe.seed)
        set_stage(self.model, "routed")
        set_seed(self.recipe.seed)
        if recipe.start == "fit":
            self.progress.begin("routers", "routers: fitted layer after layer on what they will read")
            encode = Encoder(self.tokenizer, self.recipe.template, recipe.answer_tokens)
            without = self._unseen(new)
            fit_routers(
                self.model,
                encode,
                sampled([row for row in self.train_rows if row.id not in without], recipe.fit_rows),
                l2=recipe.l2,
                borderline_weight=recipe.borderline_weight,
                sharpness=recipe.sharpness,
                tokens=recipe.fit_tokens,
                standardise=recipe.standardise,
                states=recipe.fit_states,
                turns=recipe.turns,
                system_prompts=recipe.system_prompts,
                progress=self.progress.update,
            )
            # Layer after layer, nothing of a fit can be shared: all fit the same, and the main one's numbers count.
            self.stages.load(processes.from_main(self.stages.tensors))
            self.progress.end(f"{len(mogu_layers(self.model))} layers")
        if recipe.epochs == 0:
            return []
        self.progress.begin("routers", "routers: trained end to end")
        checks = self._train_routers(inputs, new)
        chosen = next((f", as after {c.pairs} rows" for c in checks if c.chosen), "")
        self.progress.end(f"{len(mogu_layers(self.model))} layers{chosen}")
        return checks

    def _unseen(self, new: frozenset[str]) -> frozenset[str]:
        """Ids of the rows that the routers do not learn from: held out as new, or left out of the mix."""
        return new | left_out(self.train_rows, self.recipe.routers.borderline)

    def _train_routers(self, inputs: str, new: frozenset[str]) -> list[RouterCheckpoint]:
        recipe = self.recipe.routers
        half = None if recipe.rows is None else recipe.rows // 2
        without = self._unseen(new)
        rows = [*self._pairs("malicious", half, without), *self._pairs("benign", half, without)]
        encode = Encoder(self.tokenizer, self.recipe.template, recipe.answer_tokens)
        per_step = recipe.batch_size * recipe.accumulation
        steps = -(-len(rows) // per_step) * recipe.epochs
        every = steps // recipe.epochs if recipe.checkpoint_rows is None else recipe.checkpoint_rows // per_step
        folder = self.stages.work_folder("routers", inputs)
        watch = None
        if recipe.select == "validation":
            watch = RouterWatch(
                self.ask, "routed", self.rows, folder / "checks.jsonl", per_step, drift=self._drift(encode)
            )
            watch.new = new
            self._watch_start(watch, folder / "start.safetensors")
        accepts = forward_parameters(self.model)

        def losses(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return predicted(self.model, batch, accepts).cross_entropy()

        collate = self._collator(RouterCollator(encode), PackedRouterCollator(encode), rows, losses)
        trainer = RouterTrainer(
            model=self.model,
            recipe=recipe,
            backbone=self.recipe.backbone,
            args=self._arguments(folder, recipe, steps, min(max(every, 1), steps)),
            train_dataset=RowDataset(rows, collate.length),
            data_collator=collate,
            callbacks=[*self._reporters("routers"), *([] if watch is None else [watch])],
        )
        if recipe.epochs > 1 or trainer.anchor_weight > 0:  # the base's side of an anchor reads a row once more
            self._keep_lower(trainer, rows, folder, losses)
        self._run_trainer(trainer, folder, watch)
        if watch is None:
            return []
        checks = watch.checks
        best = best_routers(checks)
        if best.pairs == 0:
            self.stages.load(load_file(folder / "start.safetensors"))
        else:
            self.stages.load_checkpoint(folder / f"checkpoint-{best.pairs // per_step}")
        return [dataclasses.replace(c, chosen=c is best) for c in checks]

    def _watch_start(self, watch: RouterWatch, file: Path) -> None:
        """What the routers do before the first step, once: training that makes nothing better is not taken."""
        if not watch.knows(0):
            processes.from_main(lambda: save_tensors(self.stages.tensors(), file))
            watch.catch_up(0)

    # --- what is kept ---

    def _save(self, selection: dict[str, list[dict[str, Any]]]) -> Path:
        fold_routers(self.model)
        set_stage(self.model, "routed")
        config = active_config(self.model)
        record = {
            "model": self.model_name,
            **({"base_lora": self.lora} if self.lora else {}),
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "shift": config.shift,
            "layers": [index for index, _ in mogu_layers(self.model)],
            **({"backbone": list(config.backbone_modules)} if config.backbone_modules else {}),
            "data": fingerprint([instruction_of(row) for row in self.rows]),
            "rows": len(self.rows),
            "selection": selection,
            "versions": versions(),
        }
        files = {
            RECIPE_FILE: self.recipe.to_yaml(),
            "mogu.json": json.dumps(record, indent=1) + "\n",
            "README.md": model_card(self.recipe, record),
        }
        self.model.eval()
        return processes.from_main(lambda: store.save(self.model, self.out / "adapter", files))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
