"""Runs that share a folder of stages: each ends in what it would have ended in alone, and nothing is trained twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import small
import torch

from mogu.progress import Progress
from mogu.recipe import Recipe
from mogu.train.run import LOG_FILE, Run
from mogu.train.stages import Stages

CHOICES = ((8, 4), (4, 12), (None, 8), (6, 8))
"""Pairs after which glad and unwill are taken, of 12; a checkpoint comes after every fourth. ``None``: validation's."""


def recipe(glad: int | None, unwill: int | None) -> Recipe:
    change = dataclasses.replace
    return change(
        small.RECIPE, glad=change(small.RESPONDER, checkpoint=glad), unwill=change(small.RESPONDER, checkpoint=unwill)
    )


def learn(out: Path, stages: Path | None, choice: tuple[Any, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    out.mkdir()
    run = Run(small.base(), small.tokenizer(), small.rows(), recipe(*choice), out, "tiny", 4, Progress())
    if stages is not None:
        run.stages = Stages(stages, run.model, shared=True)
    selection = dict(run.learn())
    return selection, {k: v.clone() for k, v in run.model.state_dict().items() if "mogu_" in k}


def steps(out: Path, stage: str) -> list[int]:
    if not (out / LOG_FILE).is_file():
        return []
    lines = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    return [line["step"] for line in lines if line["stage"] == stage]


def test_each_run_ends_as_it_would_alone(tmp_path: Path) -> None:
    for number, choice in enumerate(CHOICES):
        alone = learn(tmp_path / f"alone-{number}", None, choice)
        shared = learn(tmp_path / f"shared-{number}", tmp_path / "stages", choice)
        for stage, wanted in zip(("glad", "unwill"), choice, strict=True):
            (chosen,) = (check for check in shared[0][stage] if check["chosen"])
            assert chosen in alone[0][stage]
            assert wanted in (None, chosen["pairs"])
        assert [name for name in alone[1] if not torch.equal(alone[1][name], shared[1][name])] == []
    # glad went to 8 of its 12 pairs with the first choice, and on to 12 with the third
    assert steps(tmp_path / "shared-1", "glad") == []
    assert max(steps(tmp_path / "shared-2", "glad")) > 4
    assert [steps(tmp_path / f"shared-{number}", "unwill") for number in (2, 3)] == [[], []]
    assert len(list((tmp_path / "stages").glob("*.work"))) == 3  # six pairs are no checkpoint of the common training
