"""What an evaluation measures with further forward passes; each result is kept on disk and computed once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mogu.data.rows import write_text
from mogu.defend import Pipeline
from mogu.defend.mogu import Mogu
from mogu.evaluate.ask import Asked, key_of, prompts_key
from mogu.evaluate.forcing import asked_ids, divergence, perplexities
from mogu.evaluate.routers import router_statistics
from mogu.evaluate.suites import Prompts, asked_text
from mogu.evaluate.summary import BASE, Row, usability
from mogu.progress import Progress

PERCENTILE = 99
"""Of the perplexities of the base's own answers to benign prompts: above it, an answer counts as degenerate."""
FIRST_TOKENS = 5
"""Tokens that count as the first ones where nothing is routed: the paper's m."""

_Places = dict[tuple[int | None, int], float | None]


@dataclass(frozen=True)
class Perplexities:
    """Of all answers under the base."""

    of: Mapping[tuple[str, str], _Places]
    """By defence and suite, then by seed and prompt."""
    limit: float | None
    """The 99th percentile of those of the base's benign answers."""


class Measures:
    """The measurements of one evaluation."""

    def __init__(
        self, pipelines: Sequence[Pipeline], suites: Sequence[Prompts], work: Path, progress: Progress
    ) -> None:
        self.pipelines = {pipeline.name: pipeline for pipeline in pipelines}
        self.suites = {suite.name: suite for suite in suites}
        self.work, self.progress = work, progress
        self.benign = [suite for suite in suites if suite.kind == "benign"]
        self._perplexity: dict[tuple[tuple[int, ...], str], float | None] = {}
        """Of each prompt and answer; defences often give the base's own answer, or one fixed refusal."""

    def perplexities(self, answers: Mapping[tuple[str, str], Asked]) -> Perplexities | None:
        """Of every answer under the base; None without the base's own answers to benign prompts to compare with."""
        if BASE not in self.pipelines or not self.benign:
            return None
        count, done = sum(len(asked.replies) for asked in answers.values()), 0
        self.progress.begin("perplexity", f"perplexity of {count} answers under the base")
        found: dict[tuple[str, str], _Places] = {}
        for (defense, name), asked in answers.items():
            places = sorted(asked.replies, key=lambda place: (place[0] or 0, place[1]))
            found[defense, name] = self._of(defense, name, asked, places, done, count)
            done += len(places)
        own = [v for suite in self.benign for v in found[BASE, suite.name].values() if v is not None]
        limit = float(np.percentile(own, PERCENTILE)) if own else None
        self.progress.end("none of the base's is text" if limit is None else f"degenerate above {limit:.3g}")
        return Perplexities(found, limit)

    def _of(
        self, defense: str, name: str, asked: Asked, places: list[tuple[int | None, int]], done: int, count: int
    ) -> _Places:
        """Of one defence's answers to one suite; ``done`` of ``count`` answers were looked at before."""
        base, suite = self.pipelines[BASE], self.suites[name]
        rows = [suite.rows[index] for _, index in places]
        prompts = [(*asked_ids(base, asked_text(row)), *row.get("prefill_ids", ())) for row in rows]
        pairs = [(prompt, asked.replies[place].answer) for prompt, place in zip(prompts, places, strict=True)]

        def compute() -> list[float | None]:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._perplexity]
            values = perplexities(
                base.target, [p for p, _ in new], [t for _, t in new], lambda n: self.progress.update(done + n, count)
            )
            self._perplexity |= dict(zip(new, values, strict=True))
            return [self._perplexity[pair] for pair in pairs]

        key = key_of([prompts_key(suite), places, [text for _, text in pairs]])
        values = _kept(self.work / defense / name / "perplexity.json", key, compute)
        self._perplexity |= dict(zip(pairs, values, strict=True))
        return dict(zip(places, values, strict=True))

    def usability(self, rows: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, dict[str, Any]]:
        """How useful each defence leaves the model on benign prompts; empty without any."""
        if not self.benign:
            return {}
        found = usability(
            {name: [row for suite in self.benign for row in rows[name, suite.name]] for name in self.pipelines}
        )
        for name, one in found.items():
            own = [row.get("perplexity") for suite in self.benign for row in rows[name, suite.name]]
            if values := [value for value in own if value is not None]:
                one["perplexity"] = round(median(values), 3)
            if name != BASE and BASE in self.pipelines:
                one["kl"] = self._divergence(name, rows)
        return found

    def _divergence(self, name: str, rows: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, Any]:
        """KL from the base, or the reason why there is none, over the base's answers of the first seed."""
        own = [row for suite in self.benign for row in rows[BASE, suite.name][: len(suite.rows)]]
        texts, answers = [asked_text(row) for row in own], [row["response"] for row in own]
        pipeline = self.pipelines[name]

        def compute() -> dict[str, Any]:
            self.progress.begin("divergence", f"{name}: next-token distributions against the base's")
            found = divergence(pipeline, texts, answers, FIRST_TOKENS)
            self.progress.end("" if isinstance(found, str) else f"KL {found.whole:.3g}")
            if isinstance(found, str):
                return {"undefined": found}
            return {k: round(v, 5) if isinstance(v, float) else v for k, v in dataclasses.asdict(found).items()}

        return _kept(self.work / name / "divergence.json", key_of([pipeline.settings(), texts, answers]), compute)

    def routers(self) -> dict[str, Any] | None:
        """What the routers make of the prompts, by kind; None if MoGU is not among the defences."""
        pipeline = self.pipelines.get(Mogu.name) or self.pipelines.get(f"{Mogu.name}@0")
        if pipeline is None or not isinstance(pipeline.decoder, Mogu):
            return None
        prompts: dict[str, list[str]] = {}
        for suite in self.suites.values():
            if not suite.prefill:
                prompts.setdefault(suite.kind, []).extend(asked_text(row) for row in suite.rows)
        target = pipeline.target

        def compute() -> dict[str, Any]:
            with pipeline.decoder.installed() as model:
                return router_statistics(
                    model, target.tokenizer, prompts, batch_size=target.batch_size, template=target.template
                )

        return _kept(self.work / pipeline.name / "routers.json", key_of([pipeline.settings(), prompts]), compute)


def _kept(path: Path, key: str, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns, from disk if it was computed before from the same inputs."""
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept["value"]
        except (ValueError, KeyError, TypeError):
            pass  # half of an older file: compute it again
    value = json.loads(json.dumps(compute()))
    write_text(path, json.dumps({"key": key, "value": value}) + "\n")
    return value
