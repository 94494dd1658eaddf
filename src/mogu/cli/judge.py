"""``mogu judge``: label any file of responses, and measure a judge against people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mogu.cli import options
from mogu.cli.view import print_table, progress_view
from mogu.errors import ConfigError, DataError
from mogu.progress import Progress

if TYPE_CHECKING:
    from mogu.judge.calibration import Agreement
    from mogu.judge.models import Judgement, JudgeSettings, ModelJudge
    from mogu.statistics import Interval

RULES = "rules"
"""Name of the judge that needs no model."""


class JudgeGroup(TyperGroup):
    """Takes a first argument that is no command as the file to label."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the labelling command in front of what is not the name of a command."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["label", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=JudgeGroup,
    help="Label responses: [bold]mogu judge FILE.jsonl --out OUT.jsonl[/bold]. "
    "Measure a judge: [bold]mogu judge calibrate --labels FILE[/bold].",
    subcommand_metavar="FILE.jsonl --out OUT.jsonl | COMMAND [ARGS]...",
    rich_markup_mode="rich",
    invoke_without_command=True,
)

Judge = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="rules|URL|MODEL",
        help="Rules (no model), an OpenAI-compatible endpoint, or a model: hub id, folder, .gguf file, smollm2.",
    ),
]
JudgeModel = Annotated[str | None, typer.Option(metavar="NAME", help="What the endpoint calls its model.")]
RubricName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What to ask a language model: refusal (default), harmfulness or helpfulness."),
]
KeyEnv = Annotated[
    str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the endpoint's key; default: no key.")
]
ScoreLabel = Annotated[
    str | None,
    typer.Option(metavar="NAME|INDEX", help="A classifier's label whose probability is the score; default: harmful."),
]
Concurrency = Annotated[int, typer.Option(metavar="N", min=1, help="Requests to an endpoint at a time.")]
JudgeBatch = Annotated[int, typer.Option(metavar="N", min=1, help="Rows at a time for a model on this machine.")]


@dataclass(frozen=True)
class Response:
    """A row of a file of responses."""

    where: str
    """``file:line``."""
    record: dict[str, Any]


@app.callback()
def _start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("label")
def label(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Rows with an instruction and a response.")],
    out: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="The same rows with their labels.")],
    judge: Judge = RULES,
    judge_model: JudgeModel = None,
    rubric: RubricName = None,
    key_env: KeyEnv = None,
    score_label: ScoreLabel = None,
    concurrency: Concurrency = 4,
    batch_size: JudgeBatch = 8,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    config: options.Config = None,
) -> None:
    """Label each response of a file: mogu judge FILE.jsonl --out OUT.jsonl.

    Each row comes back with judge_label and judge_reasons; with a model judge also its score, raw answer and prompt
    hash. An interrupted run goes on. If rows have a person's label, the agreement is shown.
    """
    from mogu.data.rows import write_jsonl
    from mogu.judge.models import JudgeSettings

    settings = JudgeSettings(
        judge, judge_model, rubric, key_env, score_label, concurrency, batch_size, dtype, device, quantize
    )
    if out.exists() and file.exists() and out.samefile(file):
        raise ConfigError(f"--out {out} is the input; choose another file")
    rows = read_responses(file)
    options.writable_folder(out.parent)
    partial = out.with_name(f"{out.stem}.partial.jsonl")
    with progress_view() as progress:
        judged = judge_rows(rows, _open(settings, progress), progress, partial)
    write_jsonl(out, [{**row.record, **found} for row, found in zip(rows, judged, strict=True)])
    partial.unlink(missing_ok=True)
    _print_counts(judged)
    _print_own_agreement(rows, judged)
    print(f"\nlabels: {out}")


@app.command("calibrate")
def calibrate(
    labels: Annotated[
        str, typer.Option(metavar="FILE[,FILE…]", help="Rows with instruction, response and a person's label.")
    ],
    judge: Judge = RULES,
    judge_model: JudgeModel = None,
    rubric: RubricName = None,
    key_env: KeyEnv = None,
    score_label: ScoreLabel = None,
    concurrency: Concurrency = 4,
    batch_size: JudgeBatch = 8,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    config: options.Config = None,
) -> None:
    """Recall, precision, false alarms and kappa of a judge against people, with 95% intervals.

    The label stands in the field label (refusal, compliance, or XSTest's 1_full_compliance, 2_full_refusal,
    3_partial_refusal) or in is_refusal (true or false). Partial refusals are shown apart.
    """
    from mogu.judge.calibration import agreement
    from mogu.judge.models import JudgeSettings

    settings = JudgeSettings(
        judge, judge_model, rubric, key_env, score_label, concurrency, batch_size, dtype, device, quantize
    )
    files = {path: read_responses(path) for path in _paths(labels)}
    people = {path: [_required_person(row) for row in rows] for path, rows in files.items()}
    with progress_view() as progress:
        opened = _open(settings, progress)
        pairs = {
            str(path): list(zip(people[path], _labels(judge_rows(rows, opened, progress)), strict=True))
            for path, rows in files.items()
        }
    overall = agreement(pair for each in pairs.values() for pair in each)
    results = {name: agreement(each) for name, each in pairs.items()} if len(pairs) > 1 else {}
    _print_agreement({**results, "overall": overall})


def read_responses(path: Path) -> list[Response]:
    """The rows of a file of responses, checked.

    Raises:
        DataError: No such file, no rows, or a row without an instruction or a response.
    """
    from mogu.data.rows import read_jsonl

    if not path.is_file():
        raise DataError(f"no file {path}; give a .jsonl file of responses, or a command: label, calibrate")
    rows = [Response(f"{path}:{number}", record) for number, record in read_jsonl(path)]
    for row in rows:
        for name in ("instruction", "response"):
            if not isinstance(row.record.get(name), str):
                have = ", ".join(row.record) or "none"
                raise DataError(f"{row.where}: field {name!r} must be a string (fields: {have})")
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def judge_rows(
    rows: Sequence[Response], judge: ModelJudge | None, progress: Progress, partial: Path | None = None
) -> list[dict[str, Any]]:
    """What a judge adds to each row; ``None`` is the rule judge.

    Judgements of a model are kept in ``partial`` as they come, and rows with the same prompt are not asked again.
    """
    records = [row.record for row in rows]
    if judge is None:
        from mogu.judge import explain

        verdicts = [explain(record["instruction"], record["response"]) for record in records]
        return [{"judge": RULES, "judge_label": v.label, "judge_reasons": list(v.reasons)} for v in verdicts]
    progress.begin("judge", f"judge: {judge.name} reads {len(rows)} responses")
    hashes = [judge.prompt_hash(record) for record in records]
    known = _resume(partial, judge.name)
    todo = list({key: index for index, key in enumerate(hashes) if key not in known}.values())
    asked = 0

    def keep(position: int, judgement: Judgement) -> None:
        nonlocal asked
        asked += 1
        key = hashes[todo[position]]
        known[key] = _fields(judgement)
        progress.update(asked, len(todo))
        if partial is not None:
            with partial.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "found": known[key]}, ensure_ascii=False) + "\n")

    judge.judge([records[index] for index in todo], keep)
    progress.end(f"{asked} asked" + (f", {len(rows) - asked} known" if asked < len(rows) else ""))
    return [known[key] for key in hashes]


def _resume(partial: Path | None, name: str) -> dict[str, dict[str, Any]]:
    """Judgements of an interrupted run by prompt hash: same judge and same prompt, same answer."""
    from mogu.data.rows import resume_jsonl

    return {} if partial is None else {r["key"]: r["found"] for r in resume_jsonl(partial, {"judge": name})}


def _fields(judgement: Judgement) -> dict[str, Any]:
    found: dict[str, Any] = {
        "judge": judgement.judge,
        "judge_label": judgement.label,
        "judge_score": judgement.score,
        "judge_answer": judgement.answer,
        "judge_prompt_hash": judgement.prompt_hash,
    }
    return {**found, "judge_scores": judgement.scores} if len(judgement.scores) > 1 else found


def _open(settings: JudgeSettings, progress: Progress) -> ModelJudge | None:
    if settings.judge == RULES:
        settings.need_no("the rules", "model", "rubric", "key_env", "score_label", "dtype", "device", "quantize")
        return None
    from mogu.judge.models import open_judge

    progress.begin("judge", f"judge: loads {settings.judge}")
    opened = open_judge(settings)
    progress.end(opened.name)
    return opened


def _paths(sources: str) -> list[Path]:
    paths = list(dict.fromkeys(Path(part.strip()) for part in sources.split(",") if part.strip()))
    if not paths:
        raise ConfigError("--labels names no file")
    return paths


def _person(row: Response) -> str | None:
    """A person's label of a row, if it has one.

    Raises:
        DataError: An unknown one, with file and line.
    """
    from mogu.judge.calibration import human_label

    try:
        return human_label(row.record)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def _required_person(row: Response) -> str:
    found = _person(row)
    if found is None:
        raise DataError(f"{row.where}: no person's label; it stands in the field label or is_refusal")
    return found


def _labels(judged: Sequence[dict[str, Any]]) -> list[str | None]:
    """The judge's labels.

    Raises:
        ConfigError: The judge only scores.
    """
    if any(found["judge_label"] is None and found.get("judge_score") is not None for found in judged):
        raise ConfigError("this judge gives scores and no labels to compare with a person's; take --rubric refusal")
    return [found["judge_label"] for found in judged]


def _print_counts(judged: Sequence[dict[str, Any]]) -> None:
    from mogu.judge.calibration import UNPARSED
    from mogu.statistics import bootstrap_mean, wilson

    scores = [found["judge_score"] for found in judged if found.get("judge_score") is not None]
    parsed = [found for found in judged if found["judge_label"] is not None or found.get("judge_score") is not None]
    counts = Counter(found["judge_label"] for found in parsed if found["judge_label"] is not None)
    counts[UNPARSED] = len(judged) - len(parsed)
    table = [["label", "n", "share"]]
    for name, count in counts.items():
        if count:
            table.append([name, str(count), _interval(wilson(count, len(judged)))])
    if len(table) > 1:
        print_table(table)
    if scores:
        print(f"mean score: {_interval(bootstrap_mean(scores))} of {len(scores)}")


def _print_own_agreement(rows: Sequence[Response], judged: Sequence[dict[str, Any]]) -> None:
    """Agreement with the labels that rows bring along, if they are labels of responses."""
    from mogu.judge.calibration import agreement

    try:
        people = [_person(row) for row in rows]
        labelled = [(p, label) for p, label in zip(people, _labels(judged), strict=True) if p is not None]
        result = agreement(labelled)
    except (DataError, ConfigError) as error:
        if any("label" in row.record for row in rows):
            typer.echo(f"no agreement: {error}", err=True)
        return
    if labelled:
        print(f"\nagreement with the labels of {len(labelled)} rows")
        _print_agreement({"all": result})


def _print_agreement(results: dict[str, Agreement]) -> None:
    """The four numbers of each result, and the confusion table of the last, which is over all rows."""
    from mogu.judge.calibration import UNPARSED

    table = [["labels", "n", "recall", "precision", "false alarms", "kappa"]]
    for name, one in results.items():
        called = one.found + one.alarms
        table.append(
            [
                name,
                str(one.n),
                f"{_interval(one.recall)} {one.found}/{one.found + one.missed}",
                f"{_interval(one.precision)} {one.found}/{called}",
                f"{_interval(one.false_alarms)} {one.alarms}/{one.alarms + one.passed}",
                _interval(one.kappa),
            ]
        )
    print_table(table)
    confusion = list(results.values())[-1].confusion
    people = sorted({person for person, _ in confusion})
    judged = sorted({judge for _, judge in confusion}, key=lambda name: (name == UNPARSED, name))
    print()
    rows = [[person, *(str(confusion.get((person, judge), 0)) for judge in judged)] for person in people]
    print_table([["person \\ judge", *judged], *rows])


def _interval(one: Interval) -> str:
    return "-" if one.rate is None else f"{one.rate:.3f} [{one.low:.3f}, {one.high:.3f}]"
