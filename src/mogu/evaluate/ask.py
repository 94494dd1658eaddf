"""Ask one defence the prompts of one suite, batch by batch, so that a killed run loses at most a batch.

The batches follow from the prompts alone, and a batch is written as one line when it is done. A run that goes on asks
the batches that are missing, in the same company and, when sampling, from the same seed: it ends in the same answers.
So do several processes (:mod:`mogu.processes`), among which the batches are dealt.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mogu import processes
from mogu.chat import prompt_ids
from mogu.data.parts import joined, own_part
from mogu.defend import Pipeline, Reply
from mogu.errors import ConfigError, DataError
from mogu.evaluate.cost import Cost, measured, total
from mogu.evaluate.suites import Prompts, asked_text

ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; without seeds they are greedy."""

    seeds: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("a seed is named twice")
        if bool(self.seeds) != any(value is not None for value in (self.temperature, self.top_p)):
            raise ConfigError(
                "sampling needs seeds and a temperature (or top-p above 0): --seeds 1,2,3 --temperature 0.7"
            )
        if self.temperature is not None and self.temperature <= 0:
            raise ConfigError("the temperature must be above 0; leave it out for greedy answers")

    @property
    def runs(self) -> tuple[int | None, ...]:
        """The seed of each pass over the prompts; one pass without a seed when greedy."""
        return self.seeds or (None,)

    def options(self) -> dict[str, Any]:
        """Options of ``generate``."""
        given = {"temperature": self.temperature, "top_p": self.top_p}
        return {"do_sample": True, **{k: v for k, v in given.items() if v is not None}} if self.seeds else {}

    def settings(self) -> dict[str, Any]:
        """For the record."""
        if not self.seeds:
            return {"decoding": "greedy"}
        return {"decoding": "sampled", "temperature": self.temperature, "top_p": self.top_p, "seeds": list(self.seeds)}


@dataclass(frozen=True)
class Asked:
    """The answers of one defence to one suite."""

    replies: Mapping[tuple[int | None, int], Reply]
    """By seed and index of the prompt."""
    cost: Cost


def key_of(value: Any) -> str:
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def prompts_key(suite: Prompts) -> str:
    """Short hash of the prompts of a suite, in order."""
    return key_of([{k: v for k, v in row.items() if k != "prefill_ids"} for row in suite.rows])


class Workbook:
    """The answers of one defence to one suite on disk, finished or not."""

    def __init__(self, folder: Path, suite: Prompts, settings: Mapping[str, Any]) -> None:
        self.folder, self.suite = folder, suite
        self.header = {"prompts": prompts_key(suite), "settings": key_of(settings)}

    def check(self, fresh: bool) -> None:
        """See that what is there is of these prompts and settings; ``fresh`` throws anything else away.

        Raises:
            DataError: It is of others.
        """
        path = self.folder / ANSWERS_FILE
        if not path.is_file():
            return
        try:
            with path.open(encoding="utf-8") as file:
                same = json.loads(file.readline()) == self.header
        except (OSError, ValueError):
            same = False
        if not same and not fresh:
            raise other_evaluation(self.folder.parents[2])
        if not same:
            shutil.rmtree(self.folder)

    def count(self, sampling: Sampling) -> int:
        """Answers that are wanted."""
        return len(self.suite.rows) * len(sampling.runs)

    def read(self) -> Asked:
        """The answers so far, of all processes."""
        records = joined(self.folder / ANSWERS_FILE, self.header)
        replies = {(r["seed"], index): Reply(*reply) for r in records for index, *reply in r["rows"]}
        return Asked(replies, total(r["cost"] for r in records))

    def fill(self, pipeline: Pipeline, new_tokens: int, sampling: Sampling, progress: Callable[[int], None]) -> Asked:
        """Ask what is missing; ``progress`` learns how many answers are done after every batch."""
        found = self.read().replies
        done, size = len(found), pipeline.target.batch_size
        order = _like_length(pipeline, self.suite)
        missing: list[tuple[int | None, int, list[int]]] = []
        for seed in sampling.runs:
            for start in range(0, len(order), size):
                if todo := [index for index in order[start : start + size] if (seed, index) not in found]:
                    missing.append((seed, start, todo))
        with own_part(self.folder / ANSWERS_FILE).open("a", encoding="utf-8") as file:
            for seed, start, todo in processes.share(missing):
                replies, cost = self._batch(pipeline, todo, new_tokens, seed, start, sampling)
                rows = [[i, r.answer, r.stopped_by, r.reason] for i, r in zip(todo, replies, strict=True)]
                file.write(json.dumps({"seed": seed, "rows": rows, "cost": asdict(cost)}) + "\n")
                file.flush()
                done += len(todo) * processes.count()  # the others are about as far
                progress(min(done, self.count(sampling)))
        processes.wait()
        asked = self.read()
        if not processes.is_main():
            own_part(self.folder / ANSWERS_FILE).unlink()
        return asked

    def _batch(
        self, pipeline: Pipeline, todo: Sequence[int], new_tokens: int, seed: int | None, start: int, sampling: Sampling
    ) -> tuple[list[Reply], Cost]:
        rows = [self.suite.rows[index] for index in todo]
        prefill = [list(row["prefill_ids"]) for row in rows] if self.suite.prefill else None
        conversations = [[{"role": "user", "content": asked_text(row)}] for row in rows]
        with measured(pipeline.target.model) as cost, _seeded(seed, self.suite.name, start):
            replies = pipeline.answers(conversations, max_new_tokens=new_tokens, prefill=prefill, **sampling.options())
        cost.answers = len(rows)
        cost.tokens = sum(
            len(ids)
            for ids in pipeline.target.tokenizer([r.answer for r in replies], add_special_tokens=False)["input_ids"]
        )
        return replies, cost


def other_evaluation(out: Path) -> DataError:
    """What to say when a folder is already used for something else."""
    return DataError(f"{out} holds an evaluation of other prompts or settings; choose another --out or delete it")


def _like_length(pipeline: Pipeline, suite: Prompts) -> list[int]:
    """Indices of the prompts, the longest first: batches of like length waste little on padding."""
    tokenizer, template = pipeline.target.tokenizer, pipeline.target.template
    lengths = [len(prompt_ids(tokenizer, asked_text(row), template=template)) for row in suite.rows]
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


@contextmanager
def _seeded(seed: int | None, *where: Any) -> Iterator[None]:
    """Inside, random numbers depend on the seed and the place only; outside they go on as before."""
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(key_of([seed, *where]), 16) % 2**63)
        yield
