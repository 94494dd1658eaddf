"""The conductor: trial after trial, the Pareto set of what they gave, and the one that is picked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu.data.rows import Row, write_text
from mogu.progress import Progress
from mogu.recipe import RECIPE_FILE, Recipe
from mogu.search import check_rule
from mogu.search.choice import Member, kept, own_choice, pick
from mogu.search.space import described, settings, settle
from mogu.search.study import Trials
from mogu.search.trial import Gauge, GivenUp, Titled, Trial, gauge, sound
from mogu.train.check import check_data
from mogu.train.checkpoints import storage
from mogu.train.layers import LAYERS_FILE
from mogu.train.run import Run
from mogu.train.selection import Balance
from mogu.train.stages import Stages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEARCH = "search"
"""Where a search lies in a run folder."""
JOURNAL_FILE, PARETO_FILE = "journal.log", "pareto.json"
_STAGES = ("glad", "unwill", "routers")


@dataclass
class Found:
    """What a search ends in."""

    base: PreTrainedModel
    """The base model, without an adapter."""
    recipe: Recipe
    """Of the member that was picked: with it, training finds its stages finished."""
    summary: dict[str, Any]
    """What ``pareto.json`` holds."""


def search(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    out: str | Path,
    *,
    trials: int,
    rule: str = "balance",
    model_name: str,
    batch_size: int = 32,
    track: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Found:
    """Vary the recipe until there are so many trials, and put the stages of the picked member into ``OUT/stages``.

    The first trial is the recipe as it is. What is finished in ``OUT/search`` is not done again.

    Args:
        base: The base model; each trial wraps it and leaves it as it was.
        tokenizer: Its tokenizer.
        rows: A built data set; validation rows are measured on, test rows are never read.
        recipe: Where the search starts; ``recipe.search`` says how far it goes.
        out: Run folder.
        trials: In all, those of earlier calls and those that were given up among them.
        rule: As for :func:`mogu.search.choice.pick`.
        model_name: What the user calls the base.
        batch_size: Prompts at a time while validating.
        track: As for :func:`mogu.train.run.train`.
        progress: Told what happens.

    Raises:
        ConfigError: ``OUT/search`` holds another search, or there is no such rule or member.
        TrainingError: As for :func:`mogu.train.run.train`.
    """
    check_rule(rule)
    check_data(base.config, tokenizer, rows, recipe)
    folder = Path(out) / SEARCH
    with storage(folder):
        found = _Search(base, tokenizer, rows, recipe, folder, model_name, batch_size, track, progress or Progress())
        found.until(trials)
        return found.result(rule)


class _Search:
    """The arguments of :func:`search` and what they lead to."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        recipe: Recipe,
        folder: Path,
        model_name: str,
        batch_size: int,
        track: tuple[str, ...],
        progress: Progress,
    ) -> None:
        self.base, self.tokenizer, self.rows, self.recipe, self.folder = base, tokenizer, rows, recipe, folder
        self.model_name, self.batch_size, self.track, self.progress = model_name, batch_size, track, progress
        inputs = {
            "recipe": _key({k: v for k, v in asdict(recipe).items() if k not in ("name", "description", "evaluation")}),
            "data set": _key([asdict(row) for row in rows]),
            "model": model_name,
            "precision": f"{base.dtype}, quantized: {bool(getattr(base, 'is_quantized', False))}",
        }
        self.trials = Trials(folder / JOURNAL_FILE, settings(recipe, rows), inputs, recipe.seed)
        self.gauge: Gauge | None = None

    def until(self, count: int) -> None:
        """Run trials until ``count`` are over."""
        while len(self.trials.records) < count:
            if self.gauge is None:
                self.progress.begin("search", "search: the base answers validation prompts")
                self.gauge = gauge(self.base, self.tokenizer, self.rows, self.recipe, self.batch_size)
                self.progress.end(f"{sum(self.gauge.prompts.values())} prompts")
            number, values = self.trials.next()
            self._run(number, values, f"trial {len(self.trials.records) + 1} of {count}")

    def _run(self, number: int, values: Mapping[str, float], title: str) -> None:
        assert self.gauge is not None
        folder, start = self.trials.folder(number), time.monotonic()
        progress = Titled(self.progress, title, f"trial {number}")
        recipe = settle(self.recipe, values)
        write_text(folder / RECIPE_FILE, recipe.to_yaml())
        stages = self.folder / "stages"
        run = Run(
            self.base, self.tokenizer, self.rows, recipe, folder, self.model_name, self.batch_size, progress, stages
        )
        run.stages, run.track = Stages(stages, run.model, shared=True), self.track
        record: dict[str, Any] = {
            "number": number,
            "values": dict(values),
            "changes": described(self.recipe, values),
            "stages": {},
            "responders": {},
            "members": [],
            "given_up": None,
            "objectives": None,
            "base": asdict(self.gauge.base),
            "prompts": self.gauge.prompts,
        }
        finished = {
            each["number"]: [m for m in _members(each) if sound(m, self.gauge.base, recipe.search)]
            for each in self.trials.records
            if each["members"]
        }
        trial = Trial(number, recipe, run, self.gauge, finished, progress)
        try:
            members = trial.members(record)
            record["members"] = [asdict(member) for member in members]
            usable = [m for m in members if sound(m, self.gauge.base, recipe.search)] or members
            record["objectives"] = list(own_choice(usable, recipe.balance).objectives)
        except GivenUp as reason:
            record["given_up"] = str(reason)
            progress.end(f"given up: {reason}")
        finally:
            self.base = run.model.unload()
        self.trials.finish(number, {**record, "seconds": round(time.monotonic() - start, 1)})

    def result(self, rule: str) -> Found:
        """The Pareto set, on disk, and the member picked from it."""
        records = self.trials.records
        members = [member for record in records for member in _members(record)]
        base = records[0]["base"]
        usable = [m for m in members if sound(m, Balance(**base), self.recipe.search)] or members
        front = kept(usable, members, self.recipe.balance)
        chosen = pick(rule, front, members, self.recipe.balance)
        by_number = {record["number"]: record for record in records}
        summary = {
            "rule": rule,
            "picked": front.index(chosen) + 1,
            "prompts": records[0]["prompts"],
            "base": base,
            "recipe": front.index(own_choice(members, self.recipe.balance)) + 1,
            "members": [_shown(member, by_number) for member in front],
            "trials": [
                {key: each[key] for key in ("number", "changes", "responders", "given_up", "seconds", "members")}
                for each in records
            ],
        }
        write_text(self.folder / PARETO_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        record = by_number[chosen.trial]
        self._place(record["stages"])
        recipe = settle(self.recipe, record["values"])
        recipe = dataclasses.replace(
            recipe,
            name=f"{recipe.name}, searched",
            balance=dataclasses.replace(recipe.balance, shifts=(chosen.shift,)),
        )
        return Found(self.base, recipe, summary)

    def _place(self, stages: Mapping[str, str]) -> None:
        """Put finished stages where a run of their recipe looks for them."""
        target = self.folder.parent / "stages"
        target.mkdir(parents=True, exist_ok=True)
        if (self.folder / "stages" / LAYERS_FILE).is_file():
            _link(self.folder / "stages" / LAYERS_FILE, target / LAYERS_FILE)
        for stage in _STAGES:
            (target / f"{stage}.json").unlink(missing_ok=True)
            # The weights first: a record without them would be believed.
            for kind in ("safetensors", "json"):
                _link(self.folder / "stages" / f"{stage}-{stages[stage]}.{kind}", target / f"{stage}.{kind}")


def _link(source: Path, target: Path) -> None:
    """``target`` becomes ``source`` in one step, without a second copy on disk where that is possible."""
    half = target.with_suffix(".tmp")
    half.unlink(missing_ok=True)
    try:
        os.link(source, half)
    except OSError:
        shutil.copyfile(source, half)
    half.replace(target)


def _members(record: Mapping[str, Any]) -> list[Member]:
    return [Member(**entry) for entry in record["members"]]


def _shown(member: Member, records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    objectives = {"asr": member.asr, "over_refusal": member.over_refusal, "benefit": member.benefit}
    return {**asdict(member), **objectives, "changes": records[member.trial]["changes"]}


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
