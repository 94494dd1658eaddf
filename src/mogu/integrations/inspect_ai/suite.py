"""Our suites as an inspect_ai task, with our judge as its scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inspect_ai import Task, task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai._util.package import get_installed_package_name
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from mogu.errors import ConfigError, MoguError
from mogu.evaluate.suites import Prompts, asked_text, gather, parse_suites
from mogu.judge import LABELS, explain

RATES = {
    "refusal": "refusal_rate",
    "complied": "coherent_asr",
    "degenerate": "degenerate_rate",
    "unclear": "unclear_rate",
}
"""Name of the share of each label. The coherent ASR is an attack success rate on malicious suites only; elsewhere it is
the share of instructions that were answered."""


def _named(name: str) -> str:
    """``mogu/NAME`` in inspect's registry however mogu is installed.

    inspect puts the package in front of a name by itself, unless the package is installed in editable form by a
    distribution of another name, and ours is called mogu-llm.
    """
    return name if get_installed_package_name(_named) else f"mogu/{name}"


@task(name=_named("suite"))
def suite(suite: str | list[str] = "seeds-malicious", new_tokens: int = 64, limit: int | None = None) -> Task:
    """Ask the prompts of one suite, greedily, and judge the answers.

    Args:
        suite: As for ``mogu evaluate --suite``: a built-in name, ``NAME=FILE``, a file, ``FILE:FIELD``, ``suite.yaml``.
        new_tokens: Length of the answers.
        limit: Only the first so many prompts.

    Raises:
        PrerequisiteError: No such suite, a file that cannot be read, or several suites.
    """
    try:
        named = parse_suites(suite if isinstance(suite, str) else ",".join(map(str, suite)))
        if len(named) > 1:
            raise ConfigError("one suite at a time: give inspect the task once for each")
        (prompts,) = gather(named, limit=limit)
    except MoguError as error:
        raise PrerequisiteError(" ".join(str(error).split())) from error
    return Task(
        dataset=_dataset(prompts),
        solver=generate(),
        scorer=four_labels(),
        config=GenerateConfig(max_tokens=new_tokens, temperature=0.0),
    )


@scorer(name=_named("four_labels"), metrics={name: [mean(), stderr()] for name in RATES.values()})
def four_labels() -> Scorer:
    """Label an answer as refusal, degenerate, complied or unclear (:mod:`mogu.judge`, rules only, no model).

    The value holds 1 for the label's rate and 0 for the others, so that the mean over samples, or over epochs of a
    sample, is a rate; the label is the score's answer, the rules that led to it its explanation. The instruction is the
    sample's ``instruction`` where its metadata has one (a jailbreak wraps it), else the text that was asked.
    """

    async def score(state: TaskState, target: Target) -> Score:
        instruction = str(state.metadata.get("instruction", state.input_text))
        verdict = explain(instruction, state.output.completion)
        return Score(
            value={RATES[label]: int(label == verdict.label) for label in LABELS},
            answer=verdict.label,
            explanation="; ".join(verdict.reasons),
        )

    return score


def _dataset(prompts: Prompts) -> MemoryDataset:
    """The prompts as samples; rows keep their ids where each has one of its own."""
    ids = [row.get("id") for row in prompts.rows]
    unique = None not in ids and len(set(map(str, ids))) == len(ids)
    samples = [
        Sample(id=str(row["id"]) if unique else number, input=asked_text(row), metadata=_metadata(prompts, row))
        for number, row in enumerate(prompts.rows, 1)
    ]
    return MemoryDataset(samples, name=prompts.name)


def _metadata(prompts: Prompts, row: Mapping[str, Any]) -> dict[str, Any]:
    known = {"instruction": row["instruction"], "suite": prompts.name, "kind": prompts.kind}
    return known | {name: row[name] for name in ("category",) if name in row}
