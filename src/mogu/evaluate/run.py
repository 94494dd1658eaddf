"""Several defences on several suites: ask, judge, count, report; killed at any moment, it goes on to the same files.

What costs time is kept under ``OUT/work`` batch by batch; everything else is computed from there at every run's end.
Of several processes all answer, and the main one measures, judges and writes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mogu import processes
from mogu.data.rows import read_jsonl, write_jsonl, write_text
from mogu.defend import Defense, Pipeline, Target
from mogu.errors import ConfigError, DataError
from mogu.evaluate.ask import Asked, Sampling, Workbook, key_of, other_evaluation, prompts_key
from mogu.evaluate.cost import first_token_seconds, per_answer, timings, total
from mogu.evaluate.measures import Measures
from mogu.evaluate.suites import Prompts, Suite, asked_text, renamed
from mogu.evaluate.summary import Row, examples, flips, judged, shown, suite_summary
from mogu.progress import Progress
from mogu.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSES_FILE = "responses.jsonl"
SUMMARY_FILE = "summary.json"
COST_FILE = "cost.json"
WORK = "work"
_STATE_FILE = "state.json"

_Answers = dict[tuple[str, str], Asked]


@dataclass(frozen=True)
class Options:
    """How an evaluation asks and what it computes."""

    new_tokens: int = 64
    """Length at which answers are cut."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    measures: bool = True
    """Also perplexity, divergence from the base, and the time to the first token, which take more forward passes."""
    fresh: bool = False
    """Throw away an evaluation of other prompts or settings instead of refusing to touch it."""


def evaluate(
    pipelines: Sequence[Pipeline],
    suites: Sequence[Prompts],
    out: str | Path,
    *,
    settings: Mapping[str, Any],
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every defence every prompt, judge the answers, and write responses, numbers, costs and reports to ``out``.

    Writes ``responses.jsonl``, ``summary.json``, ``report.html``, ``report.md`` and ``cost.json``. All but the last are
    the same bytes for the same inputs, also after interruptions; only ``cost.json`` holds measured times and memory.

    Args:
        pipelines: Defences of one target; ``none`` is the base that the others are compared with.
        suites: Prompts, names unique.
        out: The folder.
        settings: What decides the answers besides prompts and defences (model, dtype, …); saved, and a folder that
            holds an evaluation under others is not touched.
        options: How to ask.
        progress: Told how many answers are done.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        DataError: ``out`` holds an evaluation of other prompts or settings.
        ConfigError: Two defences or suites of one name, or none.
    """
    processes.need_whole("an evaluation")
    evaluation = _Evaluation(pipelines, suites, Path(out), dict(settings), options or Options(), progress or Progress())
    return evaluation.run()


def evaluate_suite(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    batch_size: int,
    template: str | None,
    out: str | Path,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """:func:`evaluate` of one model, as it is, on one list of prompts: a base, or a peft model with an adapter.

    Each prompt has an ``instruction``; other fields are kept.
    """
    target = Target(model, tokenizer, "", Path(out) / WORK, template, batch_size=batch_size)
    suite = Prompts(Suite("prompts"), [renamed(prompt) for prompt in prompts])
    options = Options(new_tokens=max_new_tokens, measures=False)
    settings = {**settings, "template": template}
    return evaluate([as_it_is(target)], [suite], out, settings=settings, options=options, progress=progress)


def as_it_is(target: Target, name: str = "model", settings: Mapping[str, Any] | None = None) -> Pipeline:
    """A pipeline that only calls ``generate`` of the target's model, be it a base or one with an adapter."""
    label, mine = name, dict(settings or {})

    class AsItIs(Defense):
        name: ClassVar[str] = label
        summary: ClassVar[str] = "the model as it is"

        def settings(self) -> dict[str, Any]:
            return mine

    return Pipeline([AsItIs(target)])


def read_responses(out: str | Path) -> list[dict[str, Any]]:
    """The judged responses of a finished evaluation, by defence, suite, seed and prompt."""
    return [record for _, record in read_jsonl(Path(out) / RESPONSES_FILE)]


def stored_batch_size(out: str | Path) -> int | None:
    """The batch size of an evaluation that was begun in ``out``: going on with it keeps every batch as it was."""
    found = _read_state(Path(out)).get("batch_size")
    return found if isinstance(found, int) and found > 0 else None


def _read_state(out: Path) -> dict[str, Any]:
    path = out / WORK / _STATE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; delete {out} to evaluate anew") from error
    return found if isinstance(found, dict) else {}


class _Evaluation:
    """One call of :func:`evaluate`."""

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        suites: Sequence[Prompts],
        out: Path,
        settings: dict[str, Any],
        options: Options,
        progress: Progress,
    ) -> None:
        for what, names in (("defence", [p.name for p in pipelines]), ("suite", [s.name for s in suites])):
            if not names:
                raise ConfigError(f"an evaluation needs at least one {what}")
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigError(f"the {what} {twice!r} is named twice")
        self.pipelines, self.suites, self.out = pipelines, suites, out
        self.options, self.progress = options, progress
        self.settings = {**settings, "new_tokens": options.new_tokens, **options.sampling.settings()}
        self.batch_size = pipelines[0].target.batch_size

    def run(self) -> dict[str, Any]:
        """Everything, from the answers to the reports."""
        processes.from_main(self._begin)
        books: dict[str, dict[str, Workbook]] = {}
        for pipeline in self.pipelines:  # all of them first: what is wrong shows before hours are spent
            pipeline.prepare(self.progress)
            books[pipeline.name] = {suite.name: self._book(pipeline, suite) for suite in self.suites}
            for book in books[pipeline.name].values():
                processes.from_main(partial(book.check, self.options.fresh))
        defenses = {pipeline.name: pipeline.settings() for pipeline in self.pipelines}
        answers: _Answers = {}
        first_tokens: dict[str, float | None] = {}
        for pipeline in self.pipelines:
            asked = self._ask(pipeline, books[pipeline.name])
            answers |= {(pipeline.name, name): one for name, one in asked.items()}
            first_tokens[pipeline.name] = processes.from_main(partial(self._first_token, pipeline))
        return processes.from_main(partial(self._conclude, defenses, answers, first_tokens))

    def _conclude(
        self, defenses: Mapping[str, Any], answers: _Answers, first_tokens: Mapping[str, float | None]
    ) -> dict[str, Any]:
        """What is computed from the answers, written too."""
        measures = Measures(self.pipelines, self.suites, self.out / WORK, self.progress)
        limits = measures.perplexities(answers) if self.options.measures else None
        rows = {key: self._judge(key, answers[key], limits) for key in answers}
        summary = self._summary(defenses, rows, answers)
        if limits is not None:
            summary["settings"]["max_perplexity"] = limits.limit and round(limits.limit, 3)
        if self.options.measures:
            summary["usability"] = measures.usability(rows)
        if routers := measures.routers():
            summary["routers"] = routers
        self._write(summary, rows, answers, first_tokens)
        return summary

    def _begin(self) -> None:
        """Refuse, or with ``fresh`` clear, a folder that holds something else; remember settings and batch size."""
        state, settings = _read_state(self.out), json.loads(json.dumps(self.settings))
        if state.get("settings", settings) != settings:
            if not self.options.fresh:
                raise other_evaluation(self.out)
            shutil.rmtree(self.out / WORK)
        state = {"settings": settings, "batch_size": self.batch_size}
        write_text(self.out / WORK / _STATE_FILE, json.dumps(state, indent=1) + "\n")

    def _book(self, pipeline: Pipeline, suite: Prompts) -> Workbook:
        folder = self.out / WORK / pipeline.name / suite.name
        return Workbook(folder, suite, {"settings": self.settings, "defense": pipeline.settings()})

    def _ask(self, pipeline: Pipeline, books: Mapping[str, Workbook]) -> dict[str, Asked]:
        sampling = self.options.sampling
        prompts = sum(book.count(sampling) for book in books.values())
        total = prompts * len(self.pipelines)
        before = self.pipelines.index(pipeline) * prompts
        step = shown(pipeline.name)
        what = next(iter(books)) if len(books) == 1 else f"{len(books)} suites"
        who = f"{step} on " if len(self.pipelines) > 1 else ""
        self.progress.begin(f"evaluate {step}", f"{who}{what}: {prompts} prompts")
        found = {}
        for name, book in books.items():
            tell = partial(self._tell, before, total)
            found[name] = book.fill(pipeline, self.options.new_tokens, sampling, tell)
            before += book.count(sampling)
        self.progress.end(f"{prompts} answers")
        return found

    def _tell(self, before: int, total: int, done: int) -> None:
        self.progress.update(before + done, total)

    def _first_token(self, pipeline: Pipeline) -> float | None:
        """Measured once, then kept."""
        if not self.options.measures:
            return None
        path = self.out / WORK / pipeline.name / "first_token.json"
        if path.is_file():
            kept: float | None = json.loads(path.read_text(encoding="utf-8"))
            return kept
        texts = [asked_text(row) for row in self.suites[0].rows]
        seconds = first_token_seconds(pipeline, texts, self.options.new_tokens)
        write_text(path, json.dumps(seconds))
        return seconds

    def _judge(self, key: tuple[str, str], asked: Asked, limits: Any) -> list[Row]:
        defense, suite = key[0], next(one for one in self.suites if one.name == key[1])
        rows = []
        for where in _places(suite, self.options.sampling):
            perplexity = limits and limits.of[key][where]
            reply = asked.replies[where]
            limit = limits.limit if limits else None
            rows.append(judged(suite, where[1], defense, reply, where[0], perplexity, limit))
        return rows

    def _summary(
        self, defenses: Mapping[str, Any], rows: Mapping[tuple[str, str], Sequence[Row]], answers: _Answers
    ) -> dict[str, Any]:
        suites = [
            suite_summary(one, {p.name: rows[p.name, one.name] for p in self.pipelines}, prompts_key(one))
            for one in self.suites
        ]
        model = str(self.settings.get("model", ""))
        summary: dict[str, Any] = {"title": f"Evaluation of {model}".strip(), "model": model}
        if len(suites) == len(self.pipelines) == 1:
            summary |= {k: suites[0]["systems"][self.pipelines[0].name][k] for k in ("n", "counts", "rates")}
        return summary | {
            "settings": dict(self.settings),
            "inputs": key_of([self.settings, defenses, [one["sha256"] for one in suites]]),
            "versions": versions(),
            "defenses": dict(defenses),
            "suites": suites,
            "flips": flips(self.suites, rows),
            "examples": examples(self.suites, rows),
            "cost": {p.name: per_answer(self._cost(p, answers)) for p in self.pipelines},
        }

    def _cost(self, pipeline: Pipeline, answers: _Answers) -> Any:
        return total(dataclasses.asdict(answers[pipeline.name, suite.name].cost) for suite in self.suites)

    def _write(
        self,
        summary: dict[str, Any],
        rows: Mapping[tuple[str, str], Sequence[Row]],
        answers: _Answers,
        first_tokens: Mapping[str, float | None],
    ) -> None:
        from mogu.evaluate.report import write_reports

        costs = {p.name: timings(self._cost(p, answers), first_tokens[p.name]) for p in self.pipelines}
        costs = {name: {**summary["cost"][name], **one} for name, one in costs.items()}
        record = {"batch_size": self.batch_size, "defenses": costs}
        write_jsonl(self.out / RESPONSES_FILE, (row for one in rows.values() for row in one))
        write_text(self.out / COST_FILE, json.dumps(record, indent=1) + "\n")
        write_reports(summary, self.out)
        write_text(self.out / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _places(suite: Prompts, sampling: Sampling) -> Iterator[tuple[int | None, int]]:
    """(seed, index) of every answer, in order."""
    return ((seed, index) for seed in sampling.runs for index in range(len(suite.rows)))
